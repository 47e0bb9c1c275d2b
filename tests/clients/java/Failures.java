import com.google.protobuf.Duration;
import com.google.rpc.BadRequest;
import com.google.rpc.RetryInfo;
import io.grpc.ManagedChannel;
import io.grpc.Status;
import io.grpc.StatusException;
import io.grpc.stub.BlockingClientCall;
import java.util.Collections;
import java.util.List;
import java.util.concurrent.Callable;
import java.util.concurrent.TimeUnit;
import tamis.embedding.v1.EmbedParams;
import tamis.embedding.v1.EmbedRequest;
import tamis.embedding.v1.EmbedStreamRequest;
import tamis.embedding.v1.EmbedStreamResponse;

/** The checks whose calls fail. */
final class Failures {
    /** Far more work than a machine does before it is told to stop. */
    private static String[] big() {
        return Collections.nCopies(256, "house ".repeat(200)).toArray(String[]::new);
    }

    static void badField(ManagedChannel channel) throws Exception {
        EmbedRequest request = Answers.request(Answers.FOOD).toBuilder()
                .setParams(EmbedParams.newBuilder().setEncodingValue(99))
                .build();
        Callable<?> call = () -> Answers.embedding(channel).embed(request);
        StatusException failure = Expect.refused(Status.Code.INVALID_ARGUMENT, call);
        Expect.reason(failure, "BAD_PARAMETER");
        var violations = Expect.detail(failure, BadRequest.class).getFieldViolationsList();
        List<String> fields = violations.stream().map(BadRequest.FieldViolation::getField).toList();
        Expect.equal("fields", fields, List.of("params.encoding"));
    }

    static void noCapacity(ManagedChannel ignored) throws Exception {
        ManagedChannel empty = Connection.open(System.getenv("TAMIS_ADDRESS_EMPTY"), "client-dev");
        StatusException failure = refusedOn(empty, Status.Code.UNAVAILABLE);
        Expect.reason(failure, "NO_CAPACITY");
        Duration delay = Expect.detail(failure, RetryInfo.class).getRetryDelay();
        Expect.that(delay.getSeconds() > 0 || delay.getNanos() > 0, "the delay is " + delay);
    }

    static void deadline(ManagedChannel channel) throws Exception {
        var stub = Answers.embedding(channel).withDeadlineAfter(1, TimeUnit.MILLISECONDS);
        Expect.refused(Status.Code.DEADLINE_EXCEEDED, () -> stub.embed(Answers.request(big())));
    }

    static void cancel(ManagedChannel channel) throws Exception {
        BlockingClientCall<EmbedStreamRequest, EmbedStreamResponse> call = Answers.embedding(channel).embedStream();
        call.write(Answers.config());
        call.write(Answers.items(1, Answers.texts(Answers.FOOD)));
        Expect.equal("sequence", call.read().getSequence(), 1L);
        call.write(Answers.items(2, Answers.texts(big())));
        call.cancel("no longer needed", null);
        Expect.refused(Status.Code.CANCELLED, call::read);
        Answers.embed(channel);
    }

    static void mtls(ManagedChannel ignored) throws Exception {
        String address = System.getenv("TAMIS_ADDRESS");
        refusedOn(Connection.openAnonymous(address), Status.Code.UNAVAILABLE);
        Expect.reason(refusedOn(Connection.open(address, "vision"), Status.Code.PERMISSION_DENIED), "NOT_ALLOWED");
    }

    /** Fails on a channel of its own, and ends the channel. */
    private static StatusException refusedOn(ManagedChannel channel, Status.Code code) throws Exception {
        try {
            return Expect.refused(code, () -> Answers.embedding(channel).embed(Answers.request(Answers.FOOD)));
        } finally {
            channel.shutdownNow();
        }
    }

    private Failures() {}
}
