import io.grpc.Grpc;
import io.grpc.ManagedChannel;
import io.grpc.TlsChannelCredentials;
import java.io.IOException;
import java.nio.file.Path;

/** Opens channels. */
final class Connection {
    /** With mutual TLS. */
    static ManagedChannel open(String address, String name) throws IOException {
        Path certs = certs();
        return open(
                address,
                TlsChannelCredentials.newBuilder()
                        .trustManager(certs.resolve("ca.pem").toFile())
                        .keyManager(certs.resolve(name + ".pem").toFile(), certs.resolve(name + ".key").toFile()));
    }

    /** Without a client certificate. */
    static ManagedChannel openAnonymous(String address) throws IOException {
        return open(address, TlsChannelCredentials.newBuilder().trustManager(certs().resolve("ca.pem").toFile()));
    }

    private static ManagedChannel open(String address, TlsChannelCredentials.Builder credentials) {
        return Grpc.newChannelBuilder(address, credentials.build()).build();
    }

    private static Path certs() {
        return Path.of(System.getenv("TAMIS_CERTS"));
    }

    private Connection() {}
}
