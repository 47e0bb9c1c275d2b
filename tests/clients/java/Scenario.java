import io.grpc.ManagedChannel;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/** The scenario of SCENARIO.md, with the generated Java library. */
public final class Scenario {
    /** A check of the scenario; it throws what went wrong. */
    private interface Check {
        void run(ManagedChannel channel) throws Exception;
    }

    private static Map<String, Check> checks() {
        Map<String, Check> checks = new LinkedHashMap<>();
        checks.put("embed", Answers::embed);
        checks.put("stream", Answers::stream);
        checks.put("classify", Answers::classify);
        checks.put("image", Answers::image);
        checks.put("fan-out", Answers::fanOut);
        checks.put("item-error", Answers::itemError);
        checks.put("bad-field", Failures::badField);
        checks.put("no-capacity", Failures::noCapacity);
        checks.put("deadline", Failures::deadline);
        checks.put("cancel", Failures::cancel);
        checks.put("mtls", Failures::mtls);
        return checks;
    }

    public static void main(String[] arguments) throws Exception {
        Map<String, Check> checks = checks();
        List<String> chosen = arguments.length > 0 ? List.of(arguments) : List.copyOf(checks.keySet());
        ManagedChannel channel = Connection.open(System.getenv("TAMIS_ADDRESS"), "client-dev");
        for (String name : chosen) {
            try {
                checks.get(name).run(channel);
            } catch (Exception | AssertionError failure) {
                System.err.println("failed " + name + ": " + failure);
                System.exit(1);
            }
            System.out.println("ok " + name);
        }
        channel.shutdownNow();
    }

    private Scenario() {}
}
