//! The load generator: what it says adds up, and what a mesh refuses is told by its reason.

use serde_json::Value;

use crate::harness::{Finished, Roles, mesh, tamis};

fn report(finished: &Finished) -> Value {
    assert!(finished.success, "{}", finished.stderr);
    serde_json::from_str(&finished.stdout).unwrap_or_else(|error| panic!("{error} in {}", finished.stdout))
}

#[track_caller]
fn count(report: &Value, field: &str) -> u64 {
    report[field].as_u64().unwrap_or_else(|| panic!("no {field} in {report}"))
}

/// Counts that must fit whatever happened.
#[track_caller]
fn check_sums(report: &Value) {
    let [sent, ok, failed, unfinished] = ["sent", "ok", "failed", "unfinished"].map(|field| count(report, field));
    assert_eq!(sent, ok + failed + unfinished, "{report}");
    let sum = |field: &str| {
        report[field].as_array().unwrap().iter().map(|entry| entry["count"].as_u64().unwrap()).sum::<u64>()
    };
    assert_eq!(sum("errors"), failed, "{report}");
    assert_eq!(sum("latency_histogram"), ok, "{report}");
    if ok > 0 {
        assert_eq!(count(&report["latency_ms"], "count"), ok, "{report}");
        let quantiles =
            ["min", "p50", "p90", "p99", "p999", "max"].map(|name| report["latency_ms"][name].as_f64().unwrap());
        assert!(quantiles.is_sorted(), "{report}");
    }
}

#[tokio::test]
async fn every_arrival_is_accounted_for() {
    let arguments = [
        "bench",
        "load",
        "--rate",
        "20",
        "--duration",
        "1s",
        "--warmup",
        "500ms",
        "--batch",
        "2",
        "--text",
        "a",
        "--json",
    ];
    let report = report(&tamis(mesh().folder.path(), &arguments).await);
    check_sums(&report);
    assert_eq!((count(&report, "sent") + count(&report, "dropped"), count(&report, "sent_in_warmup")), (20, 10));
    assert_eq!(count(&report, "items"), 2 * count(&report, "ok"));
    assert_eq!((&report["loop"], &report["method"]), (&"open".into(), &"embed".into()));
    assert_eq!(report["rate_intended"], 20.0);
    let conditions = &report["conditions"];
    assert!(conditions["cpus"].as_u64() > Some(0) && conditions["at"].is_string(), "{conditions}");
    assert_eq!(conditions["target"], mesh().gateway().grpc.to_string());
    assert!(conditions["arguments"].as_array().unwrap().contains(&"--batch".into()), "{conditions}");
}

#[tokio::test]
async fn arrivals_beyond_the_bound_are_dropped_and_said() {
    let arguments = [
        "bench",
        "load",
        "--rate",
        "400",
        "--duration",
        "500ms",
        "--warmup",
        "0s",
        "--in-flight-max",
        "1",
        "--batch",
        "8",
        "--json",
    ];
    let finished = tamis(mesh().folder.path(), &arguments).await;
    let report = report(&finished);
    check_sums(&report);
    assert_eq!(count(&report, "sent") + count(&report, "dropped"), 200, "{report}");
    assert!(count(&report, "dropped") > 0 && finished.stderr.contains("dropped"), "{report}");
}

#[tokio::test]
async fn a_table_shows_the_latencies_and_a_closed_loop_says_what_it_hides() {
    let arguments =
        ["bench", "load", "--closed", "2", "--duration", "300ms", "--warmup", "100ms", "--method", "classify"];
    let finished = tamis(mesh().folder.path(), &arguments).await;
    assert!(finished.success, "{}", finished.stderr);
    for part in ["Closed loop: 2 callers of classify", "p99", "answered", "≤", "CPUs"] {
        assert!(finished.stdout.contains(part), "{part} is missing in\n{}", finished.stdout);
    }
    assert!(finished.stderr.contains("closed loop"), "{}", finished.stderr);
}

#[tokio::test]
async fn a_full_queue_is_told_by_its_reason() {
    let roles = Roles::start_with(&["embedding"], "[pool]\nworkers = 1\nqueue_units_max = 600\n").await;
    let address = roles.gateway.at.grpc.to_string();
    let arguments = [
        "bench",
        "load",
        "--address",
        &address,
        "--rate",
        "300",
        "--duration",
        "1s",
        "--warmup",
        "0s",
        "--batch",
        "8",
        "--mixed",
        "--json",
    ];
    let report = report(&tamis(roles.data(), &arguments).await);
    check_sums(&report);
    assert_eq!(count(&report, "sent"), 300);
    let errors = report["errors"].as_array().unwrap();
    let full = errors.iter().find(|error| error["reason"] == "QUEUE_FULL").unwrap_or_else(|| panic!("{report}"));
    assert_eq!((&full["code"], &full["origin"]), (&"RESOURCE_EXHAUSTED".into(), &"mesh".into()));
    assert!(count(&report, "ok") > 0, "{report}");
}

#[tokio::test]
async fn a_run_without_an_answer_fails_and_says_why() {
    let data = mesh().folder.path().to_owned();
    let nobody = tamis(&data, &["bench", "load", "--address", "127.0.0.1:1"]).await;
    assert!(!nobody.success && nobody.stderr.contains("tamis up"), "{}", nobody.stderr);
    let arguments =
        ["bench", "load", "--model", "nope", "--rate", "20", "--duration", "300ms", "--warmup", "0s", "--json"];
    let unknown = tamis(&data, &arguments).await;
    assert!(!unknown.success && unknown.stderr.contains("MODEL_NOT_FOUND"), "{}", unknown.stderr);
    let printed: Value = serde_json::from_str(&unknown.stdout).unwrap();
    check_sums(&printed);
}
