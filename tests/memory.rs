//! How much memory a service takes while it serves.

use crate::harness::{Roles, embed, long_text, news_sentences, resident_without_code};

/// A million bytes, as the bounds are given.
const MB: u64 = 1_000_000;

#[tokio::test]
async fn minilm_is_served_within_220_mb_in_f32_and_90_mb_in_int8() {
    let taken = [taken_by("all-minilm-l6-v2").await, taken_by("all-minilm-l6-v2-int8").await].map(|taken| taken / MB);
    assert!(taken[0] <= 220 && taken[1] <= 90, "{taken:?} MB");
}

/// Bytes that the embedding service has in memory after it served a model for a while.
async fn taken_by(model: &str) -> u64 {
    let roles = Roles::start_with(&["embedding"], &format!("models = [{model:?}]\n")).await;
    let mut client = roles.client().await.embedding();
    // Batches of all lengths up to the longest, so that every worker's scratch has grown to what it needs.
    for part in news_sentences(512).chunks(64) {
        let texts = part.iter().cloned().chain([10, 100, 250].map(long_text));
        let response = client.embed(embed(texts)).await.unwrap().into_inner();
        assert_eq!(response.model.unwrap().model, model);
    }
    resident_without_code(roles.services[0].process.pid)
}
