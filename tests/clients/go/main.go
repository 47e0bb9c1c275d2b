// The scenario of SCENARIO.md, with the generated Go library.
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
)

const patience = 60 * time.Second

// A check of the scenario.
type check struct {
	name string
	run  func(context.Context, *grpc.ClientConn) error
}

var checks = []check{
	{"embed", embed},
	{"stream", stream},
	{"classify", classify},
	{"image", image},
	{"fan-out", fanOut},
	{"item-error", itemError},
	{"bad-field", badField},
	{"no-capacity", noCapacity},
	{"deadline", deadline},
	{"cancel", cancel},
	{"mtls", mtls},
}

func main() {
	if name, err := scenario(os.Args[1:]); err != nil {
		fmt.Fprintf(os.Stderr, "failed %s: %v\n", name, err)
		os.Exit(1)
	}
}

func scenario(chosen []string) (string, error) {
	connection, err := connect(os.Getenv("TAMIS_ADDRESS"), "client-dev")
	if err != nil {
		return "to connect", err
	}
	defer connection.Close()
	for _, check := range checks {
		if len(chosen) > 0 && !slices.Contains(chosen, check.name) {
			continue
		}
		ctx, done := context.WithTimeout(context.Background(), patience)
		err := check.run(ctx, connection)
		done()
		if err != nil {
			return check.name, err
		}
		fmt.Println("ok", check.name)
	}
	return "", nil
}

// connect opens a connection with mutual TLS; without a client certificate if name is empty.
func connect(address, name string) (*grpc.ClientConn, error) {
	certs := os.Getenv("TAMIS_CERTS")
	authority, err := os.ReadFile(filepath.Join(certs, "ca.pem"))
	if err != nil {
		return nil, err
	}
	config := &tls.Config{RootCAs: x509.NewCertPool(), MinVersion: tls.VersionTLS13}
	if !config.RootCAs.AppendCertsFromPEM(authority) {
		return nil, errors.New("ca.pem has no certificate")
	}
	if name != "" {
		pair, err := tls.LoadX509KeyPair(filepath.Join(certs, name+".pem"), filepath.Join(certs, name+".key"))
		if err != nil {
			return nil, err
		}
		config.Certificates = []tls.Certificate{pair}
	}
	return grpc.NewClient(address, grpc.WithTransportCredentials(credentials.NewTLS(config)))
}

// numbers reads a vector in the encoding F32.
func numbers(data []byte) ([]float32, error) {
	vector := make([]float32, len(data)/4)
	_, err := binary.Decode(data, binary.LittleEndian, vector)
	return vector, err
}

func expect[T comparable](what string, actual, expected T) error {
	if actual != expected {
		return fmt.Errorf("%s is %v, not %v", what, actual, expected)
	}
	return nil
}

func require(condition bool, format string, values ...any) error {
	if !condition {
		return fmt.Errorf(format, values...)
	}
	return nil
}
