//! `CountTokens` as its contract promises it.

use proto::{
    common::v1::{ErrorReason, ModelSelector},
    embedding::v1::{self as pb, count_tokens_result::Outcome},
};
use tonic::Code;

use crate::harness::{embed, long_text, mesh, refused, refused_field};

fn count<T: Into<String>>(texts: impl IntoIterator<Item = T>) -> pb::CountTokensRequest {
    pb::CountTokensRequest { texts: texts.into_iter().map(Into::into).collect(), ..Default::default() }
}

#[tokio::test]
async fn tokens_are_those_that_embed_computes_and_no_bound_holds() {
    let mesh = mesh();
    let mut client = mesh.client().await.embedding();
    let texts = ["one text", "a much longer text about something else", "Füße"];
    let embedded = client.embed(embed(texts)).await.unwrap().into_inner();
    let expected: Vec<_> =
        embedded.results.iter().map(|result| Some(Outcome::TokenCount(result.token_count))).collect();
    let counted = client.count_tokens(count(texts)).await.unwrap().into_inner();
    assert_eq!(counted.results.iter().map(|result| result.outcome.clone()).collect::<Vec<_>>(), expected);
    assert_eq!((counted.max_input_tokens, counted.model), (256, embedded.model));
    let long = client.count_tokens(count([long_text(1000)])).await.unwrap().into_inner();
    assert_eq!(long.results[0].outcome, Some(Outcome::TokenCount(1002)));
}

#[tokio::test]
async fn a_bad_text_fails_alone_and_a_megabyte_is_counted() {
    let mesh = mesh();
    let texts = ["good".to_owned(), " ".to_owned(), "a".repeat((1 << 20) + 1), "word ".repeat(200_000)];
    let counted = mesh.client().await.embedding().count_tokens(count(texts)).await.unwrap().into_inner();
    let outcome = |index: usize| match counted.results[index].outcome.as_ref().unwrap() {
        Outcome::TokenCount(tokens) => Ok(*tokens),
        Outcome::Error(error) => Err(error.reason()),
    };
    let (empty, large) = (Err(ErrorReason::EmptyInput), Err(ErrorReason::InputTooLarge));
    assert_eq!([0, 1, 2, 3].map(outcome), [Ok(3), empty, large, Ok(200_002)]);
}

#[tokio::test]
async fn bad_calls_are_refused() {
    let mesh = mesh();
    let mut client = mesh.client().await.embedding();
    let none = client.count_tokens(count([""; 0])).await.unwrap_err();
    refused(&none, Code::InvalidArgument, ErrorReason::EmptyInput);
    let role = client.count_tokens(pb::CountTokensRequest { role: 9, ..count(["a"]) }).await.unwrap_err();
    refused_field(&role, ErrorReason::BadParameter, "role");
    let space = ModelSelector { require_space_id: "sha256:0".into(), ..Default::default() };
    let space = client.count_tokens(pb::CountTokensRequest { model: Some(space), ..count(["a"]) }).await.unwrap_err();
    refused_field(&space, ErrorReason::BadParameter, "model.require_space_id");
}
