//! The measurement of the engine by itself: what it reports is there for every precision, and adds up. How fast it is, is
//! nobody's business here: other tests have the processor too.

use serde_json::Value;

use crate::harness::{Folder, failed, succeeded, tamis};

#[tokio::test]
async fn every_precision_has_its_times_in_every_row() {
    let folder = Folder::new();
    let arguments = ["bench", "engine", "--only", "single", "--rounds", "1", "--json"];
    let done = tamis(folder.path(), &arguments).await;
    let report: Value = serde_json::from_str(succeeded(&done)).unwrap();
    assert_eq!((&report["model"], &report["rounds"]), (&"all-minilm-l6-v2".into(), &1.into()));
    let notes = report["notes"].to_string();
    assert!(!notes.contains("not measured"), "{notes}");
    let rows = report["rows"].as_array().unwrap();
    let tokens: Vec<_> = rows.iter().map(|row| row["tokens"].as_u64().unwrap()).collect();
    assert_eq!(tokens, [16, 64, 256]);
    for row in rows {
        let engines = row["engines"].as_array().unwrap();
        let precisions: Vec<_> = engines.iter().map(|engine| engine["precision"].as_str().unwrap()).collect();
        assert_eq!(precisions, ["f32", "bf16", "int8"], "{row}");
        for engine in engines {
            assert_eq!(engine["library"], "tamis");
            let [least, median, most] = ["ms_min", "ms", "ms_max"].map(|field| engine[field].as_f64().unwrap());
            assert!(0.0 < least && least <= median && median <= most, "{engine}");
            let per_second = row["tokens"].as_f64().unwrap() * 1e3 / median;
            assert!((engine["tokens_per_s"].as_f64().unwrap() / per_second - 1.0).abs() < 1e-3, "{engine}");
        }
    }
    let answers = report["answers"]["texts"].as_object().unwrap();
    assert_eq!(answers.len(), 3, "all are compared with f32 before they are measured: {answers:?}");
}

#[tokio::test]
async fn what_cannot_be_measured_is_refused_before_anything_is() {
    let folder = Folder::new();
    let measure = async |arguments: &[&str]| {
        let arguments: Vec<_> = ["bench", "engine"].iter().chain(arguments).copied().collect();
        tamis(folder.path(), &arguments).await
    };
    failed(&measure(&["--model", "nope", "--only", "single"]).await, &["nope"]);
    failed(&measure(&["--texts", "/nowhere.txt", "--only", "single"]).await, &["/nowhere.txt"]);
    failed(&measure(&["--image", "/nowhere.jpg", "--only", "image"]).await, &["/nowhere.jpg"]);
}
