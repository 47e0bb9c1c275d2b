//! `EmbeddingService` as its contract promises it.

use proto::{
    common::v1::{ErrorReason, ModelSelector},
    embedding::v1::{self as pb, VectorEncoding, embed_result::Outcome},
};
use tonic::Code;

use crate::harness::{embed, error_reason, long_text, mesh, refused, refused_field, vector};

fn with(params: pb::EmbedParams) -> pb::EmbedRequest {
    pb::EmbedRequest { params: Some(params), ..embed(["a fine mesh"]) }
}

fn in_space(space_id: &str) -> pb::EmbedRequest {
    let model = ModelSelector { require_space_id: space_id.to_owned(), ..Default::default() };
    pb::EmbedRequest { model: Some(model), ..embed(["a fine mesh"]) }
}

#[tokio::test]
async fn every_text_gets_its_vector_in_order() {
    let mesh = mesh();
    let client = mesh.client().await;
    let (texts, mut alone) = (["one", "a much longer text about two", "three"], Vec::new());
    for text in texts {
        alone.push(vector(&client.embedding().embed(embed([text])).await.unwrap().into_inner().results[0]));
    }
    let response = client.embedding().embed(embed(texts)).await.unwrap().into_inner();
    for (index, (result, alone)) in response.results.iter().zip(&alone).enumerate() {
        let together = vector(result);
        assert_eq!((result.index as usize, together.len(), result.truncated), (index, 384, false));
        let length: f32 = together.iter().map(|x| x * x).sum();
        assert!((length - 1.0).abs() < 1e-4, "squared length {length}");
        let largest = together.iter().zip(alone).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(largest < 1e-5, "the other texts of the call changed a component by {largest}");
    }
}

#[tokio::test]
async fn a_list_of_numbers_is_the_same_vector_as_its_bytes() {
    let mesh = mesh();
    let mut client = mesh.client().await.embedding();
    let bytes = client.embed(with(pb::EmbedParams::default())).await.unwrap().into_inner();
    let params = pb::EmbedParams { encoding: VectorEncoding::FloatList.into(), ..Default::default() };
    let list = client.embed(with(params)).await.unwrap().into_inner();
    let Some(Outcome::Embedding(list)) = &list.results[0].outcome else { panic!("{list:?}") };
    assert_eq!((list.encoding(), list.data.len()), (VectorEncoding::FloatList, 0));
    let largest = list.values.iter().zip(vector(&bytes.results[0])).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(list.values.len() == 384 && largest < 1e-6, "{} components, difference {largest}", list.values.len());
}

#[tokio::test]
async fn vectors_of_one_space_say_so_and_others_are_refused() {
    let mesh = mesh();
    let mut client = mesh.client().await.embedding();
    let space = client.embed(with(pb::EmbedParams::default())).await.unwrap().into_inner().space_id;
    let again = client.embed(in_space(&space)).await.unwrap().into_inner().space_id;
    assert!(!space.is_empty());
    assert_eq!(space, again);
    let params = pb::EmbedParams { normalize: Some(false), ..Default::default() };
    let other = client.embed(with(params)).await.unwrap().into_inner().space_id;
    assert_ne!(space, other);
    let status = client.embed(in_space(&other)).await.unwrap_err();
    refused(&status, Code::FailedPrecondition, ErrorReason::SpaceMismatch);
    refused_field(&status, ErrorReason::SpaceMismatch, "model.require_space_id");
}

#[tokio::test]
async fn a_bad_text_fails_alone() {
    let mesh = mesh();
    let mut request = embed(["good", " \n", "", &long_text(1000), "also good"]);
    request.inputs.push(pb::EmbedInput { input: None });
    let response = mesh.client().await.embedding().embed(request).await.unwrap().into_inner();
    let reasons: Vec<_> = response.results.iter().map(error_reason).collect();
    let (empty, long) = (Some(ErrorReason::EmptyInput), Some(ErrorReason::InputTooLong));
    assert_eq!(reasons, [None, empty, empty, long, None, empty]);
    assert!(response.results.iter().all(|result| (result.token_count == 0) == error_reason(result).is_some()));
    vector(&response.results[4]);
}

#[tokio::test]
async fn a_text_that_is_too_large_fails_alone() {
    let mesh = mesh();
    let request = embed(["a".repeat((1 << 20) + 1), "good".to_owned()]);
    let response = mesh.client().await.embedding().embed(request).await.unwrap().into_inner();
    let reasons: Vec<_> = response.results.iter().map(error_reason).collect();
    assert_eq!(reasons, [Some(ErrorReason::InputTooLarge), None]);
}

#[tokio::test]
async fn a_long_text_is_cut_if_the_caller_says_so() {
    let mesh = mesh();
    let params = pb::EmbedParams { truncation: pb::Truncation::End.into(), ..Default::default() };
    let request = pb::EmbedRequest { params: Some(params), ..embed([&long_text(1000), "short"]) };
    let response = mesh.client().await.embedding().embed(request).await.unwrap().into_inner();
    let cut: Vec<_> = response.results.iter().map(|result| (result.truncated, result.token_count)).collect();
    assert_eq!(cut, [(true, 256), (false, 3)]);
}

#[tokio::test]
async fn unknown_values_of_enums_are_refused_and_the_service_lives() {
    let mesh = mesh();
    let mut client = mesh.client().await.embedding();
    for (params, field) in [
        (pb::EmbedParams { encoding: 99, ..Default::default() }, "params.encoding"),
        (pb::EmbedParams { encoding: -1, ..Default::default() }, "params.encoding"),
        (pb::EmbedParams { truncation: 99, ..Default::default() }, "params.truncation"),
    ] {
        let status = client.embed(with(params)).await.unwrap_err();
        refused(&status, Code::InvalidArgument, ErrorReason::BadParameter);
        refused_field(&status, ErrorReason::BadParameter, field);
    }
    client.embed(embed(["still here"])).await.unwrap();
}
