//! `Rerank` where no model for it is loaded; the engine's tests have the scores.

use proto::{
    common::v1::{ErrorReason, ModelSelector},
    embedding::v1 as pb,
};
use tonic::Code;

use crate::harness::{mesh, refused, refused_field};

fn rerank(documents: &[&str]) -> pb::RerankRequest {
    let documents = documents.iter().map(|document| (*document).to_owned()).collect();
    pb::RerankRequest { query: "what is a mesh?".into(), documents, ..Default::default() }
}

#[tokio::test]
async fn a_model_that_does_not_rank_is_not_found() {
    let mesh = mesh();
    let mut client = mesh.client().await.embedding();
    refused(&client.rerank(rerank(&["a"])).await.unwrap_err(), Code::NotFound, ErrorReason::ModelNotFound);
    let model = Some(ModelSelector { model: "all-minilm-l6-v2".into(), ..Default::default() });
    let status = client.rerank(pb::RerankRequest { model, ..rerank(&["a"]) }).await.unwrap_err();
    refused(&status, Code::NotFound, ErrorReason::ModelNotFound);
}

#[tokio::test]
async fn bad_calls_are_refused_by_field() {
    let mesh = mesh();
    let mut client = mesh.client().await.embedding();
    let none = client.rerank(rerank(&[])).await.unwrap_err();
    refused_field(&none, ErrorReason::EmptyInput, "documents");
    let top = client.rerank(pb::RerankRequest { top_n: Some(0), ..rerank(&["a"]) }).await.unwrap_err();
    refused_field(&top, ErrorReason::BadParameter, "top_n");
}
