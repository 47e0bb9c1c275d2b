//! Heads: one that is built in, and one that is trained from a table.

use std::{fs, path::PathBuf};

use proto::{
    classification::v1::{self as pb, classify_result::Outcome},
    common::v1::{ErrorReason, ModelSelector},
};
use serde_json::Value;

use crate::harness::{
    Channels, Finished, Folder, Mesh, classify, error_reason, failed, mesh, metrics, succeeded, tamis,
};

const SENTIMENT: &str = "sentiment-minilm-v1";

fn with(model: &str, request: pb::ClassifyRequest) -> pb::ClassifyRequest {
    pb::ClassifyRequest { model: Some(ModelSelector { model: model.into(), ..Default::default() }), ..request }
}

/// The label that the model decides for, and its score.
#[track_caller]
fn selected(result: &pb::ClassifyResult) -> (&str, f32) {
    let Some(Outcome::Labels(labels)) = &result.outcome else { panic!("no labels: {result:?}") };
    let chosen: Vec<_> = labels.labels.iter().filter(|label| label.selected).collect();
    assert_eq!(chosen.len(), 1, "{labels:?}");
    (&chosen[0].name, chosen[0].score)
}

async fn ask(client: &Channels, model: &str, texts: &[&str]) -> pb::ClassifyResponse {
    let request = with(model, classify(texts.iter().copied()));
    client.classification().classify(request).await.unwrap().into_inner()
}

#[tokio::test]
async fn sentiment_is_told_as_people_tell_it() {
    let texts = [
        ("What a wonderful film, I loved every minute of it!", "positive"),
        ("The battery lasts for days and the screen is gorgeous.", "positive"),
        ("Thank you all for the birthday wishes, best day ever :)", "positive"),
        ("A dull, lifeless mess with terrible acting.", "negative"),
        ("It broke after two days and the support was useless.", "negative"),
        ("So sick and tired of waiting for this train again.", "negative"),
    ];
    let mesh = mesh();
    let response = ask(&mesh.client().await, SENTIMENT, &texts.map(|(text, _)| text)).await;
    for (result, (text, expected)) in response.results.iter().zip(texts) {
        let (label, score) = selected(result);
        assert!(label == expected && score > 0.7, "{text}: {label} {score}");
    }
    assert_eq!(response.model.unwrap().model, SENTIMENT);
}

#[tokio::test]
async fn a_head_over_an_embedding_takes_no_pairs() {
    let mesh = mesh();
    let pair = pb::TextInput { text: "a".into(), text_pair: Some("b".into()) };
    let request = pb::ClassifyRequest { inputs: vec![pair, classify(["good"]).inputs.remove(0)], ..Default::default() };
    let mut client = mesh.client().await.classification();
    let over_base = client.classify(with(SENTIMENT, request.clone())).await.unwrap().into_inner();
    let reasons: Vec<_> = over_base.results.iter().map(error_reason).collect();
    assert_eq!(reasons, [Some(ErrorReason::BadParameter), None]);
    // A model with an encoder of its own reads both.
    let own = client.classify(request).await.unwrap().into_inner();
    assert!(own.results.iter().all(|result| error_reason(result).is_none()), "{own:?}");
}

/// Texts for three labels, and how they begin; every combination is a row.
const WORDS: [(&str, [&str; 5], [&str; 4]); 3] = [
    (
        "billing",
        [
            "I was charged twice",
            "the invoice is wrong",
            "please refund me",
            "my card was declined",
            "the price went up",
        ],
        ["this month", "on my last bill", "for the yearly plan", "without any notice"],
    ),
    (
        "delivery",
        ["the parcel is late", "my order never arrived", "the box was crushed", "wrong address", "where is my package"],
        ["says the courier", "since last week", "at the depot", "on the doorstep"],
    ),
    (
        "login",
        [
            "I forgot my password",
            "the code never comes",
            "my account is locked",
            "cannot sign in",
            "reset link expired",
        ],
        ["on my phone", "after the update", "since this morning", "with two factors"],
    ),
];

fn rows() -> Vec<(String, &'static str)> {
    let mut rows = Vec::new();
    for (label, begins, ends) in WORDS {
        for begin in begins {
            rows.extend(ends.iter().map(|end| (format!("{begin} {end}"), label)));
        }
    }
    rows
}

fn write(folder: &Folder, name: &str, rows: &[(String, &str)]) -> PathBuf {
    let path = folder.path().join(name);
    let lines: String = rows.iter().map(|(text, label)| format!("{text},{label}\n")).collect();
    fs::write(&path, format!("text,label\n{lines}")).unwrap();
    path
}

async fn train(folder: &Folder, table: &str, name: &str, flags: &[&str]) -> Finished {
    let table = folder.path().join(table);
    let arguments = [&["train-head", table.to_str().unwrap(), "--name", name], flags].concat();
    tamis(folder.path(), &arguments).await
}

#[tokio::test]
async fn a_head_is_trained_loaded_swapped_and_unloaded_while_the_mesh_runs() {
    let mesh = Mesh::start("embedding=0,classification=1,vision=0");
    let (folder, client) = (&mesh.folder, mesh.client().await);
    write(folder, "tickets.csv", &rows());
    let told = train(folder, "tickets.csv", "tickets", &["--json"]).await;
    let report: Value = serde_json::from_str(succeeded(&told)).unwrap();
    assert_eq!((report["rows"].as_u64(), report["labels"].as_array().unwrap().len()), (Some(60), 3), "{report}");
    assert!(report["accuracy"].as_f64().unwrap() > 0.9 && report["converged"] == true, "{report}");

    succeeded(&tamis(folder.path(), &["models", "load", "tickets"]).await);
    let texts = ["you took the money from my account twice", "the parcel has not come", "my password does not work"];
    let response = ask(&client, "tickets", &texts).await;
    let chosen: Vec<_> = response.results.iter().map(|result| selected(result).0).collect();
    assert_eq!(chosen, ["billing", "delivery", "login"]);
    let first = response.model.unwrap().revision;
    assert_eq!(report["revision"], first.as_str());

    // A name that is taken is taken, unless --force says so; then the new revision takes the name in one step.
    failed(&train(folder, "tickets.csv", "tickets", &[]).await, &["there is a model tickets already", "--force"]);
    write(folder, "tickets.csv", &rows()[20..]);
    succeeded(&train(folder, "tickets.csv", "tickets", &["--force"]).await);
    succeeded(&tamis(folder.path(), &["models", "load", "tickets"]).await);
    assert_eq!(ask(&client, "tickets", &texts[..1]).await.model.unwrap().revision, first);
    succeeded(&tamis(folder.path(), &["models", "alias", "tickets", "tickets"]).await);
    let second = ask(&client, "tickets", &texts[..1]).await;
    assert_ne!(second.model.unwrap().revision, first);
    succeeded(&tamis(folder.path(), &["models", "unload", "tickets", "--revision", &first]).await);
    assert!(metrics(mesh.replicas()[0].admin).await.contains("tickets"));
}

#[tokio::test]
async fn two_labels_have_a_threshold_and_the_model_decides_by_it() {
    let mesh = Mesh::start("embedding=0,classification=1,vision=0");
    let folder = &mesh.folder;
    let two = rows().into_iter().map(|(text, label)| (text, if label == "login" { label } else { "other" }));
    write(folder, "two.csv", &two.collect::<Vec<_>>());
    let told = train(folder, "two.csv", "is-login", &["--json", "--precision", "0.9"]).await;
    let report: Value = serde_json::from_str(succeeded(&told)).unwrap();
    let threshold = &report["threshold"];
    assert!(threshold["label"] == "login" && threshold["precision"].as_f64().unwrap() >= 0.9, "{report}");
    succeeded(&tamis(folder.path(), &["models", "load", "is-login"]).await);
    let response = ask(&mesh.client().await, "is-login", &["I cannot sign in", "my parcel is late"]).await;
    let value = threshold["value"].as_f64().unwrap() as f32;
    for (result, expected) in response.results.iter().zip(["login", "other"]) {
        let (label, score) = selected(result);
        assert_eq!(label, expected);
        assert!(score >= if label == "login" { value } else { 1.0 - value }, "{score} at {value}");
    }
}

#[tokio::test]
async fn every_bad_parameter_of_a_training_is_refused_in_words() {
    let folder = Folder::new();
    write(&folder, "good.csv", &rows());
    write(&folder, "one.csv", &rows()[..20]);
    fs::write(folder.path().join("no-label.csv"), "text,kind\na,b\n").unwrap();
    fs::write(folder.path().join("latin.csv"), b"text,label\n\xe9,a\n").unwrap();
    let refused = async |table: &str, flags: &[&str], parts: &[&str]| {
        let told = train(&folder, table, flags.first().copied().unwrap_or("tickets"), flags.get(1..).unwrap_or(&[]));
        failed(&told.await, parts);
    };
    refused("none.csv", &[], &["cannot read", "none.csv"]).await;
    refused("one.csv", &[], &["only \"billing\"", "--label-column"]).await;
    refused("no-label.csv", &[], &["there is no column \"label\"", "text, kind"]).await;
    refused("latin.csv", &[], &["line 2", "UTF-8"]).await;
    refused("good.csv", &["Bad Name"], &["is no name for a model", "--name"]).await;
    refused("good.csv", &[SENTIMENT], &["is a built-in model"]).await;
    refused("good.csv", &["t", "--model", "no-such"], &["no-such"]).await;
    refused("good.csv", &["t", "--model", "prompt-injection-minilm-v5"], &["is for classification", "embedding model"])
        .await;
    refused("good.csv", &["t", "--folds", "1"], &["--folds", "2..=20"]).await;
    refused("good.csv", &["t", "--l2", "0"], &["--l2", "above 0"]).await;
    refused("good.csv", &["t", "--precision", "1.5"], &["--precision", "at most 1"]).await;
    refused("good.csv", &["t", "--precision", "0.9"], &["--precision is for two labels"]).await;
    refused("good.csv", &["t", "--positive", "nobody"], &["no row has the label \"nobody\"", "billing"]).await;
    refused("good.csv", &["t", "--max-rows", "10"], &["more than 10 rows", "--max-rows"]).await;
    refused("good.csv", &["t", "--group-column", "nope"], &["no column \"nope\""]).await;
    assert!(!folder.path().join("manifests").exists(), "a refused training leaves nothing");
}
