//! One call: parse, compute, reply.

use std::sync::Arc;

use chassis::refusal::Refusal;
use engine::{TextModel, TextOutput};
use host::{Call, Computed, Host, LabelChoice, Scored};
use proto::{
    classification::v1::{self as pb, classification_service_server::ClassificationService},
    common::v1 as common,
};
use tonic::{Request, Response, Status};

use crate::parse;

/// Full name of the method.
pub(crate) const CLASSIFY: &str = "tamis.classification.v1.ClassificationService/Classify";

/// Answers `ClassificationService`.
pub(crate) struct Classification {
    pub(crate) host: Arc<Host<TextModel>>,
}

#[tonic::async_trait]
impl ClassificationService for Classification {
    async fn classify(&self, request: Request<pb::ClassifyRequest>) -> Result<Response<pb::ClassifyResponse>, Status> {
        let call = Call::begin(request.extensions());
        self.answer(call, request.into_inner()).await.map_err(Refusal::into_status)
    }
}

impl Classification {
    async fn answer(
        &self,
        call: Call,
        request: pb::ClassifyRequest,
    ) -> Result<Response<pb::ClassifyResponse>, Refusal> {
        let (selector, options) = (request.model.as_ref(), request.options.as_ref());
        self.host.check_items("inputs", request.inputs.len())?;
        host::refuse_space(selector)?;
        let choice = LabelChoice::parse(request.params.as_ref(), usize::MAX)?;
        let model = self.host.catalog.select(selector, CLASSIFY)?;
        let head = host::labelling(&*model)?;

        let (items, input_bytes) = (request.inputs.len() as u64, parse::input_bytes(&request.inputs));
        let inputs = request.inputs.into_iter().map(|input| Ok(parse::input(input))).collect();
        let Computed { results, cost, spent } = self.host.compute(&model, inputs, call, options).await?;

        let input_tokens = results.iter().flatten().map(|output| u64::from(output.tokens)).sum();
        let scored =
            |output: TextOutput| Scored { logits: output.values, tokens: output.tokens, truncated: output.truncated };
        let outcomes = results.into_iter().map(|result| result.map(scored));
        let mut response = Response::new(pb::ClassifyResponse {
            results: host::label_results(outcomes, head, choice),
            model: Some(host::model_info(model.info())),
            usage: Some(common::Usage { items, input_tokens, input_bytes, input_pixels: 0 }),
            timing: call.timing(options, &spent, &self.host.replica),
        });
        response.extensions_mut().insert(cost);
        Ok(response)
    }
}
