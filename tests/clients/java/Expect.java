import com.google.protobuf.Any;
import com.google.protobuf.InvalidProtocolBufferException;
import com.google.protobuf.Message;
import com.google.rpc.ErrorInfo;
import io.grpc.Status;
import io.grpc.StatusException;
import io.grpc.protobuf.StatusProto;
import java.util.Objects;
import java.util.concurrent.Callable;

/** What an answer or a failure must be like. */
final class Expect {
    static void equal(String what, Object actual, Object expected) {
        that(Objects.equals(actual, expected), what + " is " + actual + ", not " + expected);
    }

    static void that(boolean condition, String message) {
        if (!condition) {
            throw new AssertionError(message);
        }
    }

    static StatusException refused(Status.Code code, Callable<?> call) throws Exception {
        Object answer;
        try {
            answer = call.call();
        } catch (StatusException failure) {
            equal("code (" + failure.getMessage() + ")", failure.getStatus().getCode(), code);
            return failure;
        }
        throw new AssertionError(code + " was expected, not an answer: " + answer);
    }

    /** The first google.rpc error detail of this kind. */
    static <T extends Message> T detail(StatusException failure, Class<T> kind)
            throws InvalidProtocolBufferException {
        com.google.rpc.Status status = StatusProto.fromThrowable(failure);
        for (Any detail : status.getDetailsList()) {
            if (detail.is(kind)) {
                return detail.unpack(kind);
            }
        }
        throw new AssertionError("no " + kind.getSimpleName() + " in " + failure.getMessage());
    }

    static void reason(StatusException failure, String reason) throws InvalidProtocolBufferException {
        ErrorInfo info = detail(failure, ErrorInfo.class);
        equal("domain", info.getDomain(), "tamis");
        equal("reason", info.getReason(), reason);
    }

    private Expect() {}
}
