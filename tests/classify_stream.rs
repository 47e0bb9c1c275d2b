//! `ClassifyStream` as its contract promises it. What all streams have in common is tested with `EmbedStream`.

use futures_util::stream;
use proto::{
    classification::v1::{self as pb, ScoreMode, classify_stream_request::Message},
    common::v1::{ErrorReason, ModelSelector, RequestOptions},
};
use tonic::{Code, Status};

use crate::harness::{Channels, classify, error_reason, mesh, refused, refused_field};

const SENTIMENT: &str = "sentiment-minilm-v1";

fn selector(model: &str) -> Option<ModelSelector> {
    Some(ModelSelector { model: model.into(), ..Default::default() })
}

fn config(config: pb::ClassifyStreamConfig) -> Message {
    Message::Config(config)
}

fn items<T: Into<String>>(sequence: u64, texts: impl IntoIterator<Item = T>) -> Message {
    Message::Items(pb::ClassifyStreamItems { sequence, inputs: classify(texts).inputs })
}

/// Sends the messages and reads to the end.
async fn converse(client: &Channels, messages: Vec<Message>) -> (Vec<pb::ClassifyStreamResponse>, Option<Status>) {
    let requests = messages.into_iter().map(|message| pb::ClassifyStreamRequest { message: Some(message) });
    let response = client.classification().classify_stream(stream::iter(requests.collect::<Vec<_>>())).await;
    let (mut answers, mut read) = (response.unwrap().into_inner(), Vec::new());
    loop {
        match answers.message().await {
            Ok(Some(answer)) => read.push(answer),
            Ok(None) => return (read, None),
            Err(status) => return (read, Some(status)),
        }
    }
}

#[tokio::test]
async fn batches_are_answered_in_order_with_the_labels_of_classify() {
    let mesh = mesh();
    let client = mesh.client().await;
    let texts: Vec<_> = (0..20).map(|n| format!("I like the number {n}, and hate the rest.")).collect();
    let params = Some(pb::ClassifyParams { score_mode: ScoreMode::Logits.into(), ..Default::default() });
    let whole = pb::ClassifyRequest { model: selector(SENTIMENT), params, ..classify(&texts) };
    let whole = client.classification().classify(whole).await.unwrap().into_inner();

    let begin = pb::ClassifyStreamConfig { model: selector(SENTIMENT), params, ..Default::default() };
    let batches = (0_u64..).zip(texts.chunks(2)).map(|(n, pair)| items(10 * n, pair));
    let (answers, end) = converse(&client, [config(begin)].into_iter().chain(batches).collect()).await;
    assert!(end.is_none(), "{end:?}");
    let sequences: Vec<_> = answers.iter().map(|answer| answer.sequence).collect();
    assert_eq!(sequences, (0..10).map(|n| 10 * n).collect::<Vec<_>>());
    assert_eq!(answers[0].model, whole.model);
    assert!(answers[1..].iter().all(|answer| answer.model.is_none()));
    let streamed = answers.iter().flat_map(|answer| &answer.results);
    for (here, there) in streamed.zip(&whole.results) {
        let (here, there) = (labels(here), labels(there));
        for (here, there) in here.iter().zip(there) {
            assert!(here.name == there.name && here.selected == there.selected, "{here:?} instead of {there:?}");
            assert!((here.score - there.score).abs() < 1e-4, "{here:?} instead of {there:?}");
        }
    }
}

#[tokio::test]
async fn a_bad_batch_fails_alone_and_a_bad_text_in_it_too() {
    let mesh = mesh();
    let pair = pb::TextInput { text: "a".into(), text_pair: Some("b".into()) };
    let mixed = pb::ClassifyStreamItems { sequence: 4, inputs: [classify(["good", ""]).inputs, vec![pair]].concat() };
    let messages = vec![
        config(pb::ClassifyStreamConfig { model: selector(SENTIMENT), unordered: true, ..Default::default() }),
        items(1, [""; 0]),
        items(2, vec!["a"; 1025]),
        items(3, ["good"]),
        Message::Items(mixed),
    ];
    let (mut answers, end) = converse(&mesh.client().await, messages).await;
    assert!(end.is_none(), "{end:?}");
    answers.sort_by_key(|answer| answer.sequence);
    let reasons: Vec<_> = answers.iter().map(|answer| answer.error.as_ref().map(|error| error.reason())).collect();
    assert_eq!(reasons, [Some(ErrorReason::EmptyInput), Some(ErrorReason::TooManyItems), None, None]);
    let reasons: Vec<_> = answers[3].results.iter().map(error_reason).collect();
    assert_eq!(reasons, [None, Some(ErrorReason::EmptyInput), Some(ErrorReason::BadParameter)]);
    assert_eq!((answers[0].results.len(), answers[2].results.len()), (0, 1));
}

#[tokio::test]
async fn a_config_that_no_call_could_have_is_refused() {
    let mesh = mesh();
    let client = mesh.client().await;
    let base = pb::ClassifyStreamConfig::default;
    let params = |params: pb::ClassifyParams| pb::ClassifyStreamConfig { params: Some(params), ..base() };
    let space = ModelSelector { require_space_id: "any".into(), ..Default::default() };
    for (bad, field) in [
        (params(pb::ClassifyParams { score_mode: 9, ..Default::default() }), "params.score_mode"),
        (params(pb::ClassifyParams { top_k: Some(0), ..Default::default() }), "params.top_k"),
        (params(pb::ClassifyParams { min_score: Some(f32::NAN), ..Default::default() }), "params.min_score"),
        (pb::ClassifyStreamConfig { model: Some(space), ..base() }, "model.require_space_id"),
        (
            pb::ClassifyStreamConfig { options: Some(RequestOptions { priority: 9, ..Default::default() }), ..base() },
            "options.priority",
        ),
    ] {
        let (_, end) = converse(&client, vec![config(bad)]).await;
        let status = end.expect("refused");
        refused(&status, Code::InvalidArgument, ErrorReason::BadParameter);
        refused_field(&status, ErrorReason::BadParameter, field);
    }
    // A model that makes vectors gives no labels of its own.
    for model in ["none-such", "all-minilm-l6-v2"] {
        let bad = pb::ClassifyStreamConfig { model: selector(model), ..base() };
        let (_, end) = converse(&client, vec![config(bad)]).await;
        refused(&end.expect("refused"), Code::NotFound, ErrorReason::ModelNotFound);
    }
}

#[tokio::test]
async fn what_stands_in_the_wrong_place_ends_the_stream() {
    let mesh = mesh();
    let client = mesh.client().await;
    let begin = || config(pb::ClassifyStreamConfig::default());
    for (messages, answered, field) in [
        (vec![items(1, ["too soon"])], 0, "config"),
        (vec![begin(), begin()], 0, "config"),
        (vec![begin(), items(5, ["first"]), items(5, ["second"])], 1, "items.sequence"),
    ] {
        let (answers, end) = converse(&client, messages).await;
        assert_eq!(answers.len(), answered);
        refused_field(&end.expect("refused"), ErrorReason::BadParameter, field);
    }
}

#[track_caller]
fn labels(result: &pb::ClassifyResult) -> &[pb::Label] {
    match &result.outcome {
        Some(pb::classify_result::Outcome::Labels(labels)) => &labels.labels,
        other => panic!("no labels: {other:?}"),
    }
}
