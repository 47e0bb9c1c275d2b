//! CountTokens: what Embed would compute.

use chassis::refusal::Refusal;
use engine::{Content, ItemError, TextInput, TextModel, TextOutput, Work};
use host::{Call, Computed, Host};
use proto::embedding::v1::{self as pb, count_tokens_result::Outcome};
use tonic::Response;

use crate::parse;

/// The method's full name.
pub(crate) const METHOD: &str = "tamis.embedding.v1.EmbeddingService/CountTokens";

/// Answers a call. The workers count: a text of a megabyte takes long, and their queue is bounded.
pub(crate) async fn answer(
    host: &Host<TextModel>,
    call: Call,
    request: pb::CountTokensRequest,
) -> Result<Response<pb::CountTokensResponse>, Refusal> {
    let selector = request.model.as_ref();
    host.check_items("texts", request.texts.len())?;
    host::refuse_space(selector)?;
    let role = parse::role("role", request.role)?;
    let model = host.catalog.select(selector, METHOD)?;

    let input = |text| Ok(TextInput { content: Content::Text(text, role), work: Work::Count });
    let inputs = request.texts.into_iter().map(input).collect();
    let Computed { results, cost, .. } = host.compute(&model, inputs, call, None).await?;

    let mut response = Response::new(pb::CountTokensResponse {
        results: (0..).zip(results).map(result).collect(),
        max_input_tokens: model.info().max_input_tokens,
        model: Some(host::model_info(model.info())),
    });
    response.extensions_mut().insert(cost);
    Ok(response)
}

fn result((index, outcome): (u32, Result<TextOutput, ItemError>)) -> pb::CountTokensResult {
    let outcome = match outcome {
        Ok(output) => Outcome::TokenCount(output.tokens),
        Err(error) => Outcome::Error(host::of_item(error)),
    };
    pb::CountTokensResult { index, outcome: Some(outcome) }
}
