//! `Rerank` with a cross-encoder, and where none is loaded; the engine's tests have the scores of a known one.

use proto::{
    common::v1::{ErrorReason, ModelSelector},
    embedding::v1 as pb,
};
use serde_json::json;
use tonic::Code;

use crate::{
    harness::{Folder, Hub, Repository, Roles, mesh, refused, refused_field, succeeded},
    hub::{ask, checkpoint, with_bias},
};

pub(crate) const TINY: &str = "acme/Tiny-Rank";

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

/// A BERT of one layer that reads two texts and gives one score, with weights that only look like some.
pub(crate) fn tiny() -> Repository {
    let config = json!({
        "model_type": "bert", "architectures": ["BertForSequenceClassification"], "vocab_size": 6, "hidden_size": 4,
        "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, "hidden_act": "gelu",
        "max_position_embeddings": 16, "type_vocab_size": 2, "id2label": {"0": "LABEL_0"},
    });
    let table = |name: &str, rows: usize| (format!("bert.embeddings.{name}_embeddings.weight"), vec![rows, 4]);
    let mut shapes = vec![table("word", 6), table("position", 16), table("token_type", 2)];
    let layer = "bert.encoder.layer.0";
    for part in ["self.query", "self.key", "self.value", "output.dense"] {
        shapes.extend(with_bias(&format!("{layer}.attention.{part}"), &[4, 4]));
    }
    for norm in [
        "bert.embeddings.LayerNorm",
        &format!("{layer}.attention.output.LayerNorm"),
        &format!("{layer}.output.LayerNorm"),
    ] {
        shapes.extend(with_bias(norm, &[4]));
    }
    shapes.extend(with_bias(&format!("{layer}.intermediate.dense"), &[8, 4]));
    shapes.extend(with_bias(&format!("{layer}.output.dense"), &[4, 8]));
    shapes.extend(with_bias("bert.pooler.dense", &[4, 4]));
    shapes.extend(with_bias("classifier", &[1, 4]));
    checkpoint(&config, shapes)
}

fn score(result: &pb::RerankResult) -> f32 {
    match result.outcome {
        Some(pb::rerank_result::Outcome::Score(score)) => score,
        ref other => panic!("no score: {other:?}"),
    }
}

#[tokio::test]
async fn documents_come_back_best_first_with_the_scores_that_they_have_alone() {
    const DOCUMENTS: [&str; 5] =
        ["good", "", "bad", "bad good bad", "good bad good good bad good bad good bad good bad good"];
    let hub = Hub::start().await;
    hub.publish(TINY, tiny());
    let folder = Folder::empty();
    succeeded(&ask(&hub.endpoint, folder.path(), &["models", "add", TINY, "--task", "rerank"]).await);
    let roles = Roles::start_in(folder, &[("embedding", "models = ['tiny-rank']\n")]).await;
    let client = roles.client().await;
    let call = async |documents: &[&str], raw_scores: bool, top_n: Option<u32>| {
        let request = pb::RerankRequest { query: "good bad".into(), raw_scores, top_n, ..rerank(documents) };
        client.embedding().rerank(request).await.unwrap().into_inner()
    };
    let raw = call(&DOCUMENTS, true, None).await;
    assert_eq!(raw.model.unwrap().model, "tiny-rank");
    let (failed, scored) = raw.results.split_last().unwrap();
    let Some(pb::rerank_result::Outcome::Error(error)) = &failed.outcome else { panic!("{failed:?}") };
    assert_eq!((failed.index, error.reason(), failed.token_count), (1, ErrorReason::EmptyInput, 0));
    assert!(scored.windows(2).all(|pair| score(&pair[0]) > score(&pair[1])), "{scored:?}");
    let mut indices: Vec<_> = scored.iter().map(|result| result.index).collect();
    indices.sort_unstable();
    assert_eq!(indices, [0, 2, 3, 4]);
    for result in scored {
        // [CLS] good bad [SEP] the document [SEP], 16 tokens at most.
        let words = DOCUMENTS[result.index as usize].split(' ').count() as u32;
        assert_eq!((result.token_count, result.truncated), ((5 + words).min(16), words > 11), "{result:?}");
        let alone = call(&[DOCUMENTS[result.index as usize]], true, None).await;
        assert!((score(&alone.results[0]) - score(result)).abs() < 1e-5, "{alone:?} {result:?}");
    }
    let squashed = call(&DOCUMENTS, false, None).await.results;
    for (squashed, raw) in squashed.iter().zip(scored) {
        assert_eq!(squashed.index, raw.index);
        assert!((score(squashed) - 1.0 / (1.0 + (-score(raw)).exp())).abs() < 1e-6, "{squashed:?} {raw:?}");
    }
    let best = call(&DOCUMENTS, true, Some(2)).await.results;
    let indices: Vec<_> = best.iter().map(|result| result.index).collect();
    assert_eq!(indices, [scored[0].index, scored[1].index, 1], "the best two, and what failed");
}
