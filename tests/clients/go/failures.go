package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	embedding "tamis.local/sdk/tamis/embedding/v1"
)

// big returns far more work than a machine does before it is told to stop.
func big() []*embedding.EmbedInput {
	return texts(slices.Repeat([]string{strings.Repeat("house ", 200)}, 256)...)
}

func embedFood(ctx context.Context, connection *grpc.ClientConn) error {
	request := &embedding.EmbedRequest{Inputs: texts(food)}
	_, err := embedding.NewEmbeddingServiceClient(connection).Embed(ctx, request)
	return err
}

func expectCode(err error, code codes.Code) error {
	if status.Code(err) != code {
		return fmt.Errorf("code is %v, not %v: %v", status.Code(err), code, err)
	}
	return nil
}

// detail returns the first google.rpc error detail of a type.
func detail[T any](err error) (detail T, missing error) {
	for _, any := range status.Convert(err).Details() {
		if detail, ok := any.(T); ok {
			return detail, nil
		}
	}
	return detail, fmt.Errorf("no %T in %v", detail, err)
}

func expectReason(err error, reason string) error {
	info, missing := detail[*errdetails.ErrorInfo](err)
	return errors.Join(missing, expect("domain", info.GetDomain(), "tamis"), expect("reason", info.GetReason(), reason))
}

func badField(ctx context.Context, connection *grpc.ClientConn) error {
	request := &embedding.EmbedRequest{Inputs: texts(food), Params: &embedding.EmbedParams{Encoding: 99}}
	_, err := embedding.NewEmbeddingServiceClient(connection).Embed(ctx, request)
	bad, missing := detail[*errdetails.BadRequest](err)
	var fields []string
	for _, violation := range bad.GetFieldViolations() {
		fields = append(fields, violation.Field)
	}
	return errors.Join(
		expectCode(err, codes.InvalidArgument),
		expectReason(err, "BAD_PARAMETER"),
		missing,
		expect("fields", strings.Join(fields, ", "), "params.encoding"),
	)
}

func noCapacity(ctx context.Context, _ *grpc.ClientConn) error {
	empty, err := connect(os.Getenv("TAMIS_ADDRESS_EMPTY"), "client-dev")
	if err != nil {
		return err
	}
	defer empty.Close()
	err = embedFood(ctx, empty)
	retry, missing := detail[*errdetails.RetryInfo](err)
	delay := retry.GetRetryDelay().AsDuration()
	return errors.Join(
		expectCode(err, codes.Unavailable),
		expectReason(err, "NO_CAPACITY"),
		missing,
		require(delay > 0, "the delay is %v", delay),
	)
}

func deadline(ctx context.Context, connection *grpc.ClientConn) error {
	ctx, done := context.WithTimeout(ctx, time.Millisecond)
	defer done()
	_, err := embedding.NewEmbeddingServiceClient(connection).Embed(ctx, &embedding.EmbedRequest{Inputs: big()})
	return expectCode(err, codes.DeadlineExceeded)
}

func cancel(ctx context.Context, connection *grpc.ClientConn) error {
	cancellable, cancel := context.WithCancel(ctx)
	defer cancel()
	call, err := embedding.NewEmbeddingServiceClient(connection).EmbedStream(cancellable)
	if err != nil {
		return err
	}
	if err := errors.Join(call.Send(streamConfig()), call.Send(streamItems(1, texts(food)))); err != nil {
		return err
	}
	answer, err := call.Recv()
	if err != nil {
		return err
	}
	if err := errors.Join(expect("sequence", answer.Sequence, 1), call.Send(streamItems(2, big()))); err != nil {
		return err
	}
	cancel()
	_, err = call.Recv()
	return errors.Join(expectCode(err, codes.Canceled), embedFood(ctx, connection))
}

func mtls(ctx context.Context, _ *grpc.ClientConn) error {
	refused := func(name string) (error, error) {
		stranger, err := connect(os.Getenv("TAMIS_ADDRESS"), name)
		if err != nil {
			return nil, err
		}
		defer stranger.Close()
		return embedFood(ctx, stranger), nil
	}
	nobody, err := refused("")
	other, bad := refused("vision")
	return errors.Join(
		err, bad,
		expectCode(nobody, codes.Unavailable),
		expectCode(other, codes.PermissionDenied),
		expectReason(other, "NOT_ALLOWED"),
	)
}
