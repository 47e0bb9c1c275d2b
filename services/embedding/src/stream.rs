//! EmbedStream: what its messages are, and what a batch of it is.

use std::sync::Arc;

use chassis::refusal::Refusal;
use engine::TextModel;
use host::{
    Call, Computed, Host, bad_parameter,
    stream::{Answer, Batch, Batches, Message, Opened},
};
use proto::{
    common::v1 as common,
    embedding::v1::{self as pb, embed_stream_request::Message as Wire},
};

use crate::{plan::Plan, service::EMBED_STREAM};

/// Embeds the batches of one stream.
pub(crate) struct Stream {
    host: Arc<Host<TextModel>>,
    plan: Plan,
    options: Option<common::RequestOptions>,
}

/// A message of the client's side.
pub(crate) fn read(request: pb::EmbedStreamRequest) -> Option<Message<pb::EmbedStreamConfig, Vec<pb::EmbedInput>>> {
    Some(match request.message? {
        Wire::Config(config) => Message::Config(config),
        Wire::Items(items) => Message::Batch(Batch { sequence: items.sequence, items: items.inputs }),
    })
}

/// Begins a stream.
pub(crate) fn open(host: Arc<Host<TextModel>>, config: pb::EmbedStreamConfig) -> Result<Opened<Stream>, Refusal> {
    let pb::EmbedStreamConfig { model, params, options, unordered } = config;
    host::check_options(options.as_ref())?;
    let plan = Plan::new(&host, EMBED_STREAM, model.as_ref(), params.as_ref())?;
    if plan.params.matrix {
        return Err(bad_parameter("params.layout", "a stream has no matrix; its vectors stand in their results"));
    }
    Ok(Opened { batches: Stream { host, plan, options }, unordered })
}

impl Batches for Stream {
    type Items = Vec<pb::EmbedInput>;
    type Response = pb::EmbedStreamResponse;

    async fn answer(
        &self,
        batch: Batch<Vec<pb::EmbedInput>>,
        call: Call,
    ) -> Result<Answer<pb::EmbedStreamResponse>, Refusal> {
        let Batch { sequence, items } = batch;
        self.host.check_items("items.inputs", items.len())?;
        let inputs = self.plan.inputs(items);
        let computed = self.host.compute_in_turn(&self.plan.model, inputs, call, self.options.as_ref()).await?;
        let Computed { results, cost, .. } = computed;
        let results = self.plan.results(results);
        Ok(Answer { response: pb::EmbedStreamResponse { sequence, results, ..Default::default() }, cost })
    }

    fn failed(&self, sequence: u64, error: common::ItemError) -> pb::EmbedStreamResponse {
        pb::EmbedStreamResponse { sequence, error: Some(error), ..Default::default() }
    }

    fn are_current(&self) -> bool {
        self.host.catalog.holds(&self.plan.model)
    }

    fn introduce(&self, first: &mut pb::EmbedStreamResponse) {
        first.model = Some(host::model_info(self.plan.model.info()));
        first.space_id.clone_from(&self.plan.space_id);
    }
}
