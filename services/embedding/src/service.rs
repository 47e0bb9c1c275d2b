//! One call: parse, compute, reply.

use std::sync::Arc;

use chassis::refusal::Refusal;
use engine::TextModel;
use host::{Call, Computed, Host, stream::Answers};
use proto::{
    common::v1 as common,
    embedding::v1::{self as pb, embedding_service_server::EmbeddingService},
};
use tonic::{Request, Response, Status, Streaming};

use crate::{count, parse, plan::Plan, rerank, stream};

/// Full name of the method.
pub(crate) const EMBED: &str = "tamis.embedding.v1.EmbeddingService/Embed";
/// Full name of the method.
pub(crate) const EMBED_STREAM: &str = "tamis.embedding.v1.EmbeddingService/EmbedStream";

/// Answers `EmbeddingService`.
pub(crate) struct Embedding {
    pub(crate) host: Arc<Host<TextModel>>,
}

#[tonic::async_trait]
impl EmbeddingService for Embedding {
    type EmbedStreamStream = Answers<pb::EmbedStreamResponse>;

    async fn embed(&self, request: Request<pb::EmbedRequest>) -> Result<Response<pb::EmbedResponse>, Status> {
        let call = Call::begin(request.extensions());
        self.answer(call, request.into_inner()).await.map_err(Refusal::into_status)
    }

    async fn embed_stream(
        &self,
        request: Request<Streaming<pb::EmbedStreamRequest>>,
    ) -> Result<Response<Answers<pb::EmbedStreamResponse>>, Status> {
        let host = Arc::clone(&self.host);
        Ok(host::stream::run(&self.host, request, stream::read, move |config| stream::open(host, config)))
    }

    async fn rerank(&self, request: Request<pb::RerankRequest>) -> Result<Response<pb::RerankResponse>, Status> {
        let call = Call::begin(request.extensions());
        rerank::answer(&self.host, call, request.into_inner()).await.map_err(Refusal::into_status)
    }

    async fn count_tokens(
        &self,
        request: Request<pb::CountTokensRequest>,
    ) -> Result<Response<pb::CountTokensResponse>, Status> {
        let call = Call::begin(request.extensions());
        count::answer(&self.host, call, request.into_inner()).await.map_err(Refusal::into_status)
    }
}

impl Embedding {
    async fn answer(&self, call: Call, request: pb::EmbedRequest) -> Result<Response<pb::EmbedResponse>, Refusal> {
        let options = request.options.as_ref();
        self.host.check_items("inputs", request.inputs.len())?;
        let plan = Plan::new(&self.host, EMBED, request.model.as_ref(), request.params.as_ref())?;

        let (items, input_bytes) = (request.inputs.len() as u64, parse::input_bytes(&request.inputs));
        let inputs = plan.inputs(request.inputs);
        let Computed { results, cost, spent } = self.host.compute(&plan.model, inputs, call, options).await?;

        let input_tokens = results.iter().flatten().map(|output| u64::from(output.tokens)).sum();
        let mut results = plan.results(results);
        let matrix = plan.params.matrix.then(|| host::matrix(&mut results, plan.params.encoding, plan.dimensions));
        let mut response = Response::new(pb::EmbedResponse {
            results,
            model: Some(host::model_info(plan.model.info())),
            usage: Some(common::Usage { items, input_tokens, input_bytes, input_pixels: 0 }),
            timing: call.timing(options, &spent, &self.host.replica),
            space_id: plan.space_id,
            matrix: matrix.unwrap_or_default(),
            dimensions: plan.dimensions,
        });
        response.extensions_mut().insert(cost);
        Ok(response)
    }
}
