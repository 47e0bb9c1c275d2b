//! `ClassifyZeroShot` as its contract promises it.

use proto::{
    classification::v1::{self as pb, ScoreMode, classify_result::Outcome},
    common::v1::{ErrorReason, ModelSelector, RequestOptions},
};
use tonic::{Code, Status};

use crate::harness::{classify, embed, error_reason, long_text, mesh, refused, refused_field, tamis, vector};

/// Texts that anybody would sort so.
const TOPICS: [(&str, &str); 8] = [
    ("The striker scored twice in the second half and the goalkeeper was sent off.", "sport"),
    ("She won the tennis final in straight sets.", "sport"),
    ("Parliament rejected the bill by a narrow majority after the prime minister's speech.", "politics"),
    ("The senator announced her campaign for the presidential election.", "politics"),
    ("Simmer the onions in butter, then add the stock and a pinch of nutmeg.", "cooking"),
    ("Knead the dough for ten minutes and let it rise before baking.", "cooking"),
    ("The telescope found water vapour in the atmosphere of a distant planet.", "astronomy"),
    ("The comet will be closest to the sun in March.", "astronomy"),
];

fn label(name: &str, description: &str) -> pb::ZeroShotLabel {
    pb::ZeroShotLabel { name: name.into(), description: description.into() }
}

fn labels(names: &[&str]) -> Vec<pb::ZeroShotLabel> {
    names.iter().map(|name| label(name, "")).collect()
}

fn request<T: Into<String>>(texts: impl IntoIterator<Item = T>) -> pb::ClassifyZeroShotRequest {
    let labels = labels(&["sport", "politics", "cooking", "astronomy"]);
    pb::ClassifyZeroShotRequest { inputs: classify(texts).inputs, labels, ..Default::default() }
}

async fn ask(request: pb::ClassifyZeroShotRequest) -> Result<pb::ClassifyZeroShotResponse, Status> {
    let client = mesh().client().await;
    client.classification().classify_zero_shot(request).await.map(tonic::Response::into_inner)
}

#[track_caller]
fn ranked(result: &pb::ClassifyResult) -> &[pb::Label] {
    let Some(Outcome::Labels(labels)) = &result.outcome else { panic!("no labels: {result:?}") };
    &labels.labels
}

#[tokio::test]
async fn clear_topics_are_told_apart_without_training() {
    let response = ask(request(TOPICS.map(|(text, _)| text))).await.unwrap();
    for (result, (text, topic)) in response.results.iter().zip(TOPICS) {
        let ranked = ranked(result);
        assert_eq!((ranked[0].name.as_str(), ranked.len()), (topic, 4), "{text}: {ranked:?}");
        let selected: Vec<_> = ranked.iter().map(|label| label.selected).collect();
        assert_eq!(selected, [true, false, false, false]);
        let sum: f32 = ranked.iter().map(|label| label.score).sum();
        assert!((sum - 1.0).abs() < 1e-4 && ranked.is_sorted_by(|a, b| a.score >= b.score), "{ranked:?}");
    }
    assert_eq!(response.model.unwrap().model, "all-minilm-l6-v2");
}

#[tokio::test]
async fn logits_are_the_cosines_to_the_descriptions() {
    let (mesh, text, description) = (mesh(), "A cat sleeps.", "It is about pets.");
    let asked = pb::ClassifyZeroShotRequest {
        labels: vec![label("pets", description), label("politics", "")],
        params: Some(pb::ClassifyParams { score_mode: ScoreMode::Logits.into(), ..Default::default() }),
        ..request([text])
    };
    let response = ask(asked).await.unwrap();
    let texts = embed([text, description, "This text is about politics."]);
    let vectors = mesh.client().await.embedding().embed(texts).await.unwrap().into_inner();
    let vectors: Vec<_> = vectors.results.iter().map(vector).collect();
    let cosine = |other: &[f32]| vectors[0].iter().zip(other).map(|(a, b)| a * b).sum::<f32>();
    for (label, expected) in ranked(&response.results[0]).iter().zip([cosine(&vectors[1]), cosine(&vectors[2])]) {
        assert!((label.score - expected).abs() < 1e-4, "{label:?}, expected {expected}");
    }
}

#[tokio::test]
async fn temperature_template_top_k_and_min_score_do_what_they_say() {
    let text = TOPICS[0].0;
    let score = async |temperature: f32| {
        let response = ask(pb::ClassifyZeroShotRequest { temperature: Some(temperature), ..request([text]) }).await;
        let ranked = ranked(&response.unwrap().results[0]).to_vec();
        (ranked[0].name.clone(), ranked[0].score)
    };
    let (sharp, flat) = (score(0.01).await, score(10.0).await);
    assert!(sharp.0 == flat.0 && sharp.1 > 0.9 && flat.1 < 0.3, "{sharp:?} {flat:?}");

    let params = |params: pb::ClassifyParams| pb::ClassifyZeroShotRequest { params: Some(params), ..request([text]) };
    let one = ask(params(pb::ClassifyParams { top_k: Some(1), ..Default::default() })).await.unwrap();
    assert_eq!(ranked(&one.results[0]).len(), 1);
    let none = ask(params(pb::ClassifyParams { min_score: Some(1.5), ..Default::default() })).await.unwrap();
    assert!(ranked(&none.results[0]).is_empty());
    let template = pb::ClassifyZeroShotRequest { template: "News of {}".into(), ..request([text]) };
    let described = request([text]).labels.into_iter().map(|own| label(&own.name, &format!("News of {}", own.name)));
    let described = pb::ClassifyZeroShotRequest { labels: described.collect(), ..request([text]) };
    let (template, described) = (ask(template).await.unwrap(), ask(described).await.unwrap());
    assert_eq!(ranked(&template.results[0]), ranked(&described.results[0]));
}

#[tokio::test]
async fn an_embedding_model_or_a_head_over_one_answers_and_no_other() {
    let with = |model: &str| {
        let model = Some(ModelSelector { model: model.into(), ..Default::default() });
        pb::ClassifyZeroShotRequest { model, ..request(["a text"]) }
    };
    for model in ["all-minilm-l6-v2", "sentiment-minilm-v1"] {
        assert_eq!(ask(with(model)).await.unwrap().model.unwrap().model, "all-minilm-l6-v2");
    }
    for model in ["prompt-injection-minilm-v5", "none-such"] {
        refused(&ask(with(model)).await.unwrap_err(), Code::NotFound, ErrorReason::ModelNotFound);
    }
}

#[tokio::test]
async fn a_bad_text_fails_alone_and_usage_counts_the_descriptions() {
    let mut asked = request(["one two", "", &long_text(1000)]);
    asked.inputs.push(pb::TextInput { text: "a".into(), text_pair: Some("b".into()) });
    asked.labels = vec![label("x", "three four"), label("y", "five six")];
    asked.options = Some(RequestOptions { include_timing: true, ..Default::default() });
    let bytes: usize = asked.inputs.iter().map(|input| input.text.len()).sum();
    let response = ask(asked).await.unwrap();
    let reasons: Vec<_> = response.results.iter().map(error_reason).collect();
    assert_eq!(reasons, [None, Some(ErrorReason::EmptyInput), None, Some(ErrorReason::BadParameter)]);
    assert!(response.results[2].truncated && response.results[2].token_count == 256);
    let usage = response.usage.unwrap();
    // Two words and two special tokens each.
    assert_eq!((usage.items, usage.input_tokens), (4, 4 + 256 + 4 + 4));
    assert_eq!(usage.input_bytes, (bytes + "b".len() + "three four".len() + "five six".len()) as u64);
    assert_eq!(response.timing.unwrap().items, 2);
}

#[tokio::test]
async fn every_bad_parameter_is_refused_by_field() {
    let base = || request(["a text"]);
    let with = |labels: Vec<pb::ZeroShotLabel>| pb::ClassifyZeroShotRequest { labels, ..base() };
    let params = |params: pb::ClassifyParams| pb::ClassifyZeroShotRequest { params: Some(params), ..base() };
    let many: Vec<_> = (0..257).map(|n| label(&n.to_string(), "")).collect();
    let sigmoid = pb::ClassifyParams { score_mode: ScoreMode::Sigmoid.into(), ..Default::default() };
    let space = ModelSelector { require_space_id: "any".into(), ..Default::default() };
    let priority = RequestOptions { priority: 9, ..Default::default() };
    let bad = ErrorReason::BadParameter;
    for (request, reason, field) in [
        (request([""; 0]), ErrorReason::EmptyInput, "inputs"),
        (with(vec![]), bad, "labels"),
        (with(labels(&["a"])), bad, "labels"),
        (with(many), ErrorReason::TooManyItems, "labels"),
        (with(labels(&["a", ""])), bad, "labels[1].name"),
        (with(labels(&["a", "b", "a"])), bad, "labels[2].name"),
        (with(labels(&["a", &"x".repeat(257)])), bad, "labels[1].name"),
        (with(vec![label("a", &"x".repeat(4097)), label("b", "")]), bad, "labels[0].description"),
        (with(vec![label("a", "\t "), label("b", "")]), bad, "labels[0].description"),
        (pb::ClassifyZeroShotRequest { template: "no place".into(), ..base() }, bad, "template"),
        (pb::ClassifyZeroShotRequest { template: "{} {}".into(), ..base() }, bad, "template"),
        (pb::ClassifyZeroShotRequest { template: format!("{{}}{}", "x".repeat(1023)), ..base() }, bad, "template"),
        (pb::ClassifyZeroShotRequest { temperature: Some(0.0), ..base() }, bad, "temperature"),
        (pb::ClassifyZeroShotRequest { temperature: Some(f32::NAN), ..base() }, bad, "temperature"),
        (params(sigmoid), bad, "params.score_mode"),
        (params(pb::ClassifyParams { score_mode: 9, ..Default::default() }), bad, "params.score_mode"),
        (params(pb::ClassifyParams { top_k: Some(0), ..Default::default() }), bad, "params.top_k"),
        (params(pb::ClassifyParams { min_score: Some(f32::NAN), ..Default::default() }), bad, "params.min_score"),
        (pb::ClassifyZeroShotRequest { model: Some(space), ..base() }, bad, "model.require_space_id"),
        (pb::ClassifyZeroShotRequest { options: Some(priority), ..base() }, bad, "options.priority"),
    ] {
        let status = ask(request).await.unwrap_err();
        refused(&status, Code::InvalidArgument, reason);
        refused_field(&status, reason, field);
    }
    // Beyond what one replica takes the gateway divides a call, and it has a bound too.
    let status = ask(request(vec!["a"; 8193])).await.unwrap_err();
    refused(&status, Code::InvalidArgument, ErrorReason::TooManyItems);
}

#[tokio::test]
async fn the_command_sorts_texts_into_labels_of_ones_own() {
    let mesh = mesh();
    let labels = ["call", "classify", "--labels", "sport,politics,cooking,astronomy"];
    let told = tamis(mesh.folder.path(), &[&labels[..], &[TOPICS[0].0]].concat()).await;
    assert!(told.success, "{}", told.stderr);
    let first: Vec<_> = told.stdout.lines().nth(1).unwrap().split_whitespace().rev().take(3).collect();
    assert!(first[0] == "yes" && first[2] == "sport", "{}", told.stdout);

    let template = ["--template", "A recipe with {}", "--json", TOPICS[4].0];
    let told = tamis(mesh.folder.path(), &[&labels[..], &template[..]].concat()).await;
    let json: serde_json::Value = serde_json::from_str(&told.stdout).unwrap();
    assert_eq!(json["results"][0]["labels"]["labels"].as_array().unwrap().len(), 4, "{json}");

    let told = tamis(mesh.folder.path(), &["call", "classify", "--labels", "one", "a"]).await;
    assert!(!told.success && told.stderr.contains("2 to 256"), "{}", told.stderr);
    let told = tamis(mesh.folder.path(), &["call", "classify", "--template", "{}", "a"]).await;
    assert!(!told.success && told.stderr.contains("--labels"), "{}", told.stderr);
}
