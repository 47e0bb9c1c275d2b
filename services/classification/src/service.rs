//! One call: parse, compute, reply.

use std::sync::Arc;

use chassis::refusal::Refusal;
use engine::TextModel;
use host::{Call, Computed, Host, stream::Answers};
use proto::{
    classification::v1::{self as pb, classification_service_server::ClassificationService},
    common::v1 as common,
};
use tonic::{Request, Response, Status, Streaming};

use crate::{parse, plan::Plan, stream, zero_shot};

/// Full name of the method.
pub(crate) const CLASSIFY: &str = "tamis.classification.v1.ClassificationService/Classify";
/// Full name of the method.
pub(crate) const CLASSIFY_STREAM: &str = "tamis.classification.v1.ClassificationService/ClassifyStream";

/// Answers `ClassificationService`.
pub(crate) struct Classification {
    pub(crate) host: Arc<Host<TextModel>>,
}

#[tonic::async_trait]
impl ClassificationService for Classification {
    type ClassifyStreamStream = Answers<pb::ClassifyStreamResponse>;

    async fn classify(&self, request: Request<pb::ClassifyRequest>) -> Result<Response<pb::ClassifyResponse>, Status> {
        let call = Call::begin(request.extensions());
        self.answer(call, request.into_inner()).await.map_err(Refusal::into_status)
    }

    async fn classify_stream(
        &self,
        request: Request<Streaming<pb::ClassifyStreamRequest>>,
    ) -> Result<Response<Answers<pb::ClassifyStreamResponse>>, Status> {
        let host = Arc::clone(&self.host);
        Ok(host::stream::run(&self.host, request, stream::read, move |config| stream::open(host, config)))
    }

    async fn classify_zero_shot(
        &self,
        request: Request<pb::ClassifyZeroShotRequest>,
    ) -> Result<Response<pb::ClassifyZeroShotResponse>, Status> {
        let call = Call::begin(request.extensions());
        zero_shot::answer(&self.host, call, request.into_inner()).await.map_err(Refusal::into_status)
    }
}

impl Classification {
    async fn answer(
        &self,
        call: Call,
        request: pb::ClassifyRequest,
    ) -> Result<Response<pb::ClassifyResponse>, Refusal> {
        let options = request.options.as_ref();
        self.host.check_items("inputs", request.inputs.len())?;
        let plan = Plan::new(&self.host, CLASSIFY, request.model.as_ref(), request.params.as_ref())?;

        let (items, input_bytes) = (request.inputs.len() as u64, parse::input_bytes(&request.inputs));
        let inputs = plan.inputs(request.inputs);
        let Computed { results, cost, spent } = self.host.compute(&plan.model, inputs, call, options).await?;

        let input_tokens = results.iter().flatten().map(|output| u64::from(output.tokens)).sum();
        let mut response = Response::new(pb::ClassifyResponse {
            results: plan.results(results)?,
            model: Some(host::model_info(plan.model.info())),
            usage: Some(common::Usage { items, input_tokens, input_bytes, input_pixels: 0 }),
            timing: call.timing(options, &spent, &self.host.replica),
        });
        response.extensions_mut().insert(cost);
        Ok(response)
    }
}
