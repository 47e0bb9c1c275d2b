//! One call: parse, compute, reply.

use std::sync::Arc;

use chassis::refusal::Refusal;
use engine::{TextModel, TextOutput, normalize};
use host::{Call, Computed, Host, Vector};
use proto::{
    common::v1 as common,
    embedding::v1::{self as pb, embedding_service_server::EmbeddingService},
};
use tonic::{Request, Response, Status};

use crate::parse::{self, Params};

/// Answers `EmbeddingService`.
pub(crate) struct Embedding {
    pub(crate) host: Arc<Host<TextModel>>,
}

#[tonic::async_trait]
impl EmbeddingService for Embedding {
    async fn embed(&self, request: Request<pb::EmbedRequest>) -> Result<Response<pb::EmbedResponse>, Status> {
        let call = Call::begin(request.extensions());
        self.answer(call, request.into_inner()).await.map_err(Refusal::into_status)
    }
}

impl Embedding {
    async fn answer(&self, call: Call, request: pb::EmbedRequest) -> Result<Response<pb::EmbedResponse>, Refusal> {
        let (selector, options) = (request.model.as_ref(), request.options.as_ref());
        self.host.check_items("inputs", request.inputs.len())?;
        let params = Params::parse(request.params.as_ref())?;
        let model = self.host.catalog.select(selector)?;
        let info = model.info();
        let unit = params.normalize.unwrap_or(info.normalize_default);
        let space_id = info.space_id(unit);
        host::require_space(selector, &space_id)?;

        let (items, input_bytes) = (request.inputs.len() as u64, parse::input_bytes(&request.inputs));
        let inputs = request.inputs.into_iter().map(|input| params.input(input)).collect();
        let Computed { results, cost, spent } = self.host.compute(model, inputs, call, options).await?;

        let input_tokens = results.iter().flatten().map(|output| u64::from(output.tokens)).sum();
        let vector = |output: TextOutput| {
            let mut values = output.values;
            if unit {
                normalize(&mut values);
            }
            Vector { values, tokens: output.tokens, truncated: output.truncated }
        };
        let outcomes = results.into_iter().map(|result| result.map(vector));
        let mut response = Response::new(pb::EmbedResponse {
            results: host::vector_results(outcomes, params.encoding),
            model: Some(host::model_info(info)),
            space_id,
            usage: Some(common::Usage { items, input_tokens, input_bytes, input_pixels: 0 }),
            timing: call.timing(options, &spent, &self.host.replica),
            ..pb::EmbedResponse::default()
        });
        response.extensions_mut().insert(cost);
        Ok(response)
    }
}
