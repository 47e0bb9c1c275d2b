//! Rerank: how well documents answer a query.

use std::sync::Arc;

use chassis::refusal::Refusal;
use engine::{Content, First, ItemError, TextInput, TextModel, TextOutput, Truncation, Work};
use host::{Call, Computed, Host, bad_parameter};
use proto::{
    common::v1 as common,
    embedding::v1::{self as pb, rerank_result::Outcome},
};
use tonic::Response;

/// The method's full name.
pub(crate) const METHOD: &str = "tamis.embedding.v1.EmbeddingService/Rerank";

/// Answers a call.
pub(crate) async fn answer(
    host: &Host<TextModel>,
    call: Call,
    request: pb::RerankRequest,
) -> Result<Response<pb::RerankResponse>, Refusal> {
    let (selector, options) = (request.model.as_ref(), request.options.as_ref());
    host.check_items("documents", request.documents.len())?;
    host::refuse_space(selector)?;
    if request.top_n == Some(0) {
        return Err(bad_parameter("top_n", "top_n is 0; ask for 1 document or more"));
    }
    let model = host.catalog.select(selector, METHOD)?;

    let items = request.documents.len() as u64;
    let input_bytes = (request.query.len() + request.documents.iter().map(String::len).sum::<usize>()) as u64;
    let query = First::query(request.query);
    let pair = |document| Ok(TextInput { content: Content::Pair(Arc::clone(&query), document), work: CUT });
    let inputs = request.documents.into_iter().map(pair).collect();
    let Computed { results, cost, spent } = host.compute(&model, inputs, call, options).await?;
    if let Some(error) = query.failure() {
        return Err(host::refuse_item(error.clone()).field("query"));
    }

    let input_tokens = results.iter().flatten().map(|output| u64::from(output.tokens)).sum();
    let top_n = request.top_n.map_or(usize::MAX, |n| n as usize);
    let mut response = Response::new(pb::RerankResponse {
        results: rank(results, top_n, request.raw_scores),
        model: Some(host::model_info(model.info())),
        usage: Some(common::Usage { items, input_tokens, input_bytes, input_pixels: 0 }),
        timing: call.timing(options, &spent, &host.replica),
    });
    response.extensions_mut().insert(cost);
    Ok(response)
}

const CUT: Work = Work::Compute(Truncation::End);

/// The results best first, and those that failed behind them.
fn rank(outcomes: Vec<Result<TextOutput, ItemError>>, top_n: usize, raw_scores: bool) -> Vec<pb::RerankResult> {
    let (mut scored, mut failed) = (Vec::new(), Vec::new());
    for (index, outcome) in (0_u32..).zip(outcomes) {
        match outcome {
            Ok(output) => scored.push((output.values.first().copied().unwrap_or(f32::NEG_INFINITY), index, output)),
            Err(error) => {
                let outcome = Some(Outcome::Error(host::of_item(error)));
                failed.push(pb::RerankResult { index, outcome, ..Default::default() });
            }
        }
    }
    // By what the model gave: the sigmoid makes equals of the greatest. Stable, so equals stay in their order.
    scored.sort_by(|a, b| b.0.total_cmp(&a.0));
    scored.truncate(top_n);
    let result = |(logit, index, output): (f32, u32, TextOutput)| pb::RerankResult {
        index,
        outcome: Some(Outcome::Score(if raw_scores { logit } else { sigmoid(logit) })),
        token_count: output.tokens,
        truncated: output.truncated,
    };
    scored.into_iter().map(result).chain(failed).collect()
}

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

#[cfg(test)]
mod tests {
    use engine::Reason;

    use super::*;

    fn outcomes() -> Vec<Result<TextOutput, ItemError>> {
        let score = |logit| Ok(TextOutput { values: vec![logit], tokens: 9, truncated: false });
        let failed = || Err(ItemError::new(Reason::Empty, "empty"));
        vec![failed(), score(-1.0), score(40.0), failed(), score(-1.0), score(50.0)]
    }

    fn order(results: &[pb::RerankResult]) -> Vec<u32> {
        results.iter().map(|result| result.index).collect()
    }

    #[test]
    fn the_best_come_first_equals_in_their_order_and_failures_last() {
        let results = rank(outcomes(), usize::MAX, false);
        // 40 and 50 are both 1 after the sigmoid: their order is that of the model.
        assert_eq!(order(&results), [5, 2, 1, 4, 0, 3]);
        assert_eq!(results[0].outcome, Some(Outcome::Score(1.0)));
        let Some(Outcome::Score(score)) = results[2].outcome else { panic!("no score") };
        assert!((score - 0.268_941_43).abs() < 1e-6, "{score}");
    }

    #[test]
    fn the_best_few_come_back_with_all_that_failed() {
        let results = rank(outcomes(), 1, true);
        assert_eq!(order(&results), [5, 0, 3]);
        assert_eq!(results[0].outcome, Some(Outcome::Score(50.0)));
    }
}
