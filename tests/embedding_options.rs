//! How vectors are made and written: encodings, layouts, dimensions, truncations, roles, token ids.

use proto::{
    common::v1::{ErrorReason, ModelSelector},
    embedding::v1::{self as pb, Truncation, VectorEncoding, VectorLayout, embed_input::Input, embed_result::Outcome},
};
use tonic::Code;

use crate::harness::{embed, error_reason, long_text, mesh, refused, refused_field, vector};

const TEXTS: [&str; 2] = ["a fine mesh", "a man is eating food"];

fn with(params: pb::EmbedParams) -> pb::EmbedRequest {
    pb::EmbedRequest { params: Some(params), ..embed(TEXTS) }
}

fn embedding(result: &pb::EmbedResult) -> &pb::Embedding {
    let Some(Outcome::Embedding(embedding)) = &result.outcome else { panic!("no vector: {result:?}") };
    embedding
}

#[tokio::test]
async fn every_encoding_is_the_same_vector_and_a_matrix_its_rows() {
    let mesh = mesh();
    let mut client = mesh.client().await.embedding();
    let plain = client.embed(with(pb::EmbedParams::default())).await.unwrap().into_inner();
    let vectors: Vec<_> = plain.results.iter().map(vector).collect();
    for (encoding, bytes) in [
        (VectorEncoding::F32, 1536),
        (VectorEncoding::F16, 768),
        (VectorEncoding::I8, 384),
        (VectorEncoding::Binary, 48),
    ] {
        let params = pb::EmbedParams { encoding: encoding.into(), ..Default::default() };
        let items = client.embed(with(params)).await.unwrap().into_inner();
        let params = pb::EmbedParams { layout: VectorLayout::Matrix.into(), ..params };
        let rows = client.embed(with(params)).await.unwrap().into_inner();
        assert_eq!((rows.matrix.len(), rows.dimensions, items.matrix.len()), (2 * bytes, 384, 0), "{encoding:?}");
        assert_eq!((&items.space_id, &rows.space_id), (&plain.space_id, &plain.space_id));
        for (index, result) in items.results.iter().enumerate() {
            let written = embedding(result);
            assert_eq!((written.data.len(), written.encoding(), written.dimensions), (bytes, encoding, 384));
            assert!(embedding(&rows.results[index]).data.is_empty());
            assert_eq!(rows.matrix[index * bytes..(index + 1) * bytes], written.data);
        }
        if encoding == VectorEncoding::I8 {
            let written = embedding(&items.results[0]);
            let scale = written.scale.unwrap();
            let near = |(byte, x): (&u8, &f32)| (f32::from(byte.cast_signed()) * scale - x).abs() <= 0.51 * scale;
            assert!(written.data.iter().zip(&vectors[0]).all(near));
        }
        if encoding == VectorEncoding::Binary {
            let written = embedding(&items.results[0]);
            let bit = |i: usize| written.data[i / 8] >> (7 - i % 8) & 1 == 1;
            // A component next to zero may round to the other side.
            assert!((0..384).all(|i| vectors[0][i].abs() < 1e-5 || bit(i) == (vectors[0][i] > 0.0)));
        }
    }
}

#[tokio::test]
async fn a_failed_text_is_a_row_of_zeros() {
    let mesh = mesh();
    let params = pb::EmbedParams { layout: VectorLayout::Matrix.into(), ..Default::default() };
    let request = pb::EmbedRequest { params: Some(params), ..embed(["", "good"]) };
    let response = mesh.client().await.embedding().embed(request).await.unwrap().into_inner();
    assert_eq!(error_reason(&response.results[0]), Some(ErrorReason::EmptyInput));
    assert!(response.matrix[..1536].iter().all(|byte| *byte == 0) && response.matrix.len() == 3072);
}

#[tokio::test]
async fn the_first_components_are_scaled_and_lie_in_another_space() {
    let mesh = mesh();
    let mut client = mesh.client().await.embedding();
    let whole = client.embed(with(pb::EmbedParams::default())).await.unwrap().into_inner();
    let params = |dimensions| pb::EmbedParams { dimensions: Some(dimensions), ..Default::default() };
    let cut = client.embed(with(params(64))).await.unwrap().into_inner();
    let (long, short) = (vector(&whole.results[0]), vector(&cut.results[0]));
    let norm = long[..64].iter().map(|x| x * x).sum::<f32>().sqrt();
    assert!(short.len() == 64 && short.iter().zip(&long).all(|(a, b)| (a - b / norm).abs() < 1e-5));
    assert_eq!((cut.dimensions, cut.space_id == whole.space_id), (64, false));
    let all = client.embed(with(params(384))).await.unwrap().into_inner();
    assert_eq!(all.space_id, whole.space_id);
    let model = ModelSelector { require_space_id: whole.space_id, ..Default::default() };
    let other = pb::EmbedRequest { model: Some(model), ..with(params(64)) };
    refused(&client.embed(other).await.unwrap_err(), Code::FailedPrecondition, ErrorReason::SpaceMismatch);
}

#[tokio::test]
async fn values_out_of_bounds_are_refused_by_field() {
    let mesh = mesh();
    let mut client = mesh.client().await.embedding();
    let params = pb::EmbedParams::default;
    for (params, field) in [
        (pb::EmbedParams { dimensions: Some(0), ..params() }, "params.dimensions"),
        (pb::EmbedParams { dimensions: Some(385), ..params() }, "params.dimensions"),
        (pb::EmbedParams { role: 9, ..params() }, "params.role"),
        (pb::EmbedParams { layout: 9, ..params() }, "params.layout"),
        (pb::EmbedParams { encoding: 9, ..params() }, "params.encoding"),
        (pb::EmbedParams { truncation: 9, ..params() }, "params.truncation"),
        (
            pb::EmbedParams {
                encoding: VectorEncoding::FloatList.into(),
                layout: VectorLayout::Matrix.into(),
                ..params()
            },
            "params.layout",
        ),
    ] {
        let status = client.embed(with(params)).await.unwrap_err();
        refused(&status, Code::InvalidArgument, ErrorReason::BadParameter);
        refused_field(&status, ErrorReason::BadParameter, field);
    }
}

#[tokio::test]
async fn a_long_text_loses_its_start_or_nothing() {
    let mesh = mesh();
    let mut client = mesh.client().await.embedding();
    let mut long = async |truncation: Truncation, words: usize| {
        let params = pb::EmbedParams { truncation: truncation.into(), ..Default::default() };
        let request = pb::EmbedRequest { params: Some(params), ..embed([long_text(words)]) };
        client.embed(request).await.unwrap().into_inner().results.remove(0)
    };
    let start = long(Truncation::Start, 1000).await;
    assert_eq!((start.truncated, start.token_count), (true, 256));
    // 1,000 words are 4 windows, each with two special tokens.
    let mean = long(Truncation::ChunkMean, 1000).await;
    assert_eq!((mean.truncated, mean.token_count), (false, 1008));
    let endless = long(Truncation::ChunkMean, 254 * 32 + 1).await;
    assert_eq!(error_reason(&endless), Some(ErrorReason::InputTooLong));
}

#[tokio::test]
async fn token_ids_are_taken_and_roles_of_a_model_without_prompts_are_alike() {
    let mesh = mesh();
    let mut client = mesh.client().await.embedding();
    let ids = |ids: &[u32]| pb::EmbedInput { input: Some(Input::TokenIds(pb::TokenIds { ids: ids.to_vec() })) };
    // [CLS] house [SEP]
    let inputs = vec![ids(&[101, 2160, 102]), ids(&[]), ids(&[30_522]), ids(&[2160; 257])];
    let response = client.embed(pb::EmbedRequest { inputs, ..Default::default() }).await.unwrap().into_inner();
    let reasons: Vec<_> = response.results.iter().map(error_reason).collect();
    let (empty, bad, long) = (ErrorReason::EmptyInput, ErrorReason::BadParameter, ErrorReason::InputTooLong);
    assert_eq!(reasons, [None, Some(empty), Some(bad), Some(long)]);
    let params = pb::EmbedParams { role: pb::InputRole::Query.into(), ..Default::default() };
    let request = pb::EmbedRequest { params: Some(params), ..embed(["house"]) };
    let text = client.embed(request).await.unwrap().into_inner();
    assert_eq!(text.space_id, response.space_id);
    let near = vector(&text.results[0]).iter().zip(vector(&response.results[0])).all(|(a, b)| (a - b).abs() < 1e-6);
    assert!(near, "the same tokens have another vector");
}
