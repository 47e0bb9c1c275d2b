//! ClassifyStream: what its messages are, and what a batch of it is.

use std::sync::Arc;

use chassis::refusal::Refusal;
use engine::TextModel;
use host::{
    Call, Computed, Host,
    stream::{Answer, Batch, Batches, Message, Opened},
};
use proto::{
    classification::v1::{self as pb, classify_stream_request::Message as Wire},
    common::v1 as common,
};

use crate::{plan::Plan, service::CLASSIFY_STREAM};

/// Classifies the batches of one stream.
pub(crate) struct Stream {
    host: Arc<Host<TextModel>>,
    plan: Plan,
    options: Option<common::RequestOptions>,
}

/// A message of the client's side.
pub(crate) fn read(
    request: pb::ClassifyStreamRequest,
) -> Option<Message<pb::ClassifyStreamConfig, Vec<pb::TextInput>>> {
    Some(match request.message? {
        Wire::Config(config) => Message::Config(config),
        Wire::Items(items) => Message::Batch(Batch { sequence: items.sequence, items: items.inputs }),
    })
}

/// Begins a stream.
pub(crate) fn open(host: Arc<Host<TextModel>>, config: pb::ClassifyStreamConfig) -> Result<Opened<Stream>, Refusal> {
    let pb::ClassifyStreamConfig { model, params, options, unordered } = config;
    host::check_options(options.as_ref())?;
    let plan = Plan::new(&host, CLASSIFY_STREAM, model.as_ref(), params.as_ref())?;
    Ok(Opened { batches: Stream { host, plan, options }, unordered })
}

impl Batches for Stream {
    type Items = Vec<pb::TextInput>;
    type Response = pb::ClassifyStreamResponse;

    async fn answer(
        &self,
        batch: Batch<Vec<pb::TextInput>>,
        call: Call,
    ) -> Result<Answer<pb::ClassifyStreamResponse>, Refusal> {
        let Batch { sequence, items } = batch;
        self.host.check_items("items.inputs", items.len())?;
        let inputs = self.plan.inputs(items);
        let computed = self.host.compute_in_turn(&self.plan.model, inputs, call, self.options.as_ref()).await?;
        let Computed { results, cost, .. } = computed;
        let results = self.plan.results(results)?;
        Ok(Answer { response: pb::ClassifyStreamResponse { sequence, results, ..Default::default() }, cost })
    }

    fn failed(&self, sequence: u64, error: common::ItemError) -> pb::ClassifyStreamResponse {
        pb::ClassifyStreamResponse { sequence, error: Some(error), ..Default::default() }
    }

    fn are_current(&self) -> bool {
        self.host.catalog.holds(&self.plan.model)
    }

    fn introduce(&self, first: &mut pb::ClassifyStreamResponse) {
        first.model = Some(host::model_info(self.plan.model.info()));
    }
}
