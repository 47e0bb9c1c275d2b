//! One call through a host: options in, results, timing and cost out.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use chassis::{
    deadline::{Deadline, StreamDeadline},
    load::Cost,
    refusal::Refusal,
};
use engine::{
    ItemError, ModelInfo,
    pool::{self, Lane},
};
use proto::common::v1::{self as pb, ErrorReason};
use tonic::Code;

use crate::{Host, Hosted, bad_parameter, refusal, status};

/// A call from its arrival on.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    pub(crate) started: Instant,
    pub(crate) deadline: Option<Instant>,
}

/// What the workers made of a call.
pub struct Computed<O> {
    /// One outcome per input, in order.
    pub results: Vec<Result<O, ItemError>>,
    /// What it cost, for the load report.
    pub cost: Cost,
    /// Where the time went, for [`Call::timing`].
    pub spent: Spent,
}

/// Where a call's time went.
pub struct Spent {
    timing: pool::Timing,
    items: usize,
}

impl Call {
    /// A call that has just been decoded.
    #[must_use]
    pub fn begin(extensions: &tonic::Extensions) -> Self {
        let deadline = extensions.get::<Deadline>().map(|deadline| deadline.0.into_std());
        Self { started: Instant::now(), deadline }
    }

    /// A stream that has just begun: the deadline is its client's, or none.
    pub(crate) fn begin_stream(extensions: &tonic::Extensions) -> Self {
        let asked = extensions.get::<StreamDeadline>().and_then(|deadline| deadline.0);
        Self { started: Instant::now(), deadline: asked.map(tokio::time::Instant::into_std) }
    }

    /// The time that it had from the start; zero for one without a deadline.
    pub(crate) fn allowed(&self) -> Duration {
        self.deadline.map_or(Duration::ZERO, |deadline| deadline - self.started)
    }

    /// The response's timing block, if the caller asked for it. The parts sum to the total by construction: `other` is
    /// what no part claims.
    #[must_use]
    pub fn timing(&self, options: Option<&pb::RequestOptions>, spent: &Spent, replica: &str) -> Option<pb::Timing> {
        options.filter(|options| options.include_timing)?;
        let total = self.started.elapsed();
        let timing = &spent.timing;
        let other = total.saturating_sub(timing.queue + timing.prepare + timing.compute);
        let wire = |duration: Duration| prost_types::Duration::try_from(duration).ok();
        Some(pb::Timing {
            total: wire(total),
            queue: wire(timing.queue),
            preprocess: wire(timing.prepare),
            compute: wire(timing.compute),
            other: wire(other),
            items: u32::try_from(spent.items).unwrap_or(u32::MAX),
            replica: replica.to_owned(),
        })
    }
}

impl<M: Hosted> Host<M> {
    /// Refuses calls without items and calls with too many.
    ///
    /// # Errors
    /// EMPTY_INPUT or TOO_MANY_ITEMS.
    pub fn check_items(&self, field: &str, items: usize) -> Result<(), Refusal> {
        let max = self.batch_items_max;
        let refused = match items {
            0 => {
                refusal(Code::InvalidArgument, ErrorReason::EmptyInput, format!("`{field}` is empty; send 1 to {max}"))
            }
            n if n > max as usize => {
                let message = format!("{n} items in `{field}`, at most {max} are taken; send several calls");
                refusal(Code::InvalidArgument, ErrorReason::TooManyItems, message)
            }
            _ => return Ok(()),
        };
        Err(refused.field(field))
    }

    /// Computes the inputs that are whole; those that failed already keep their errors and cost nothing.
    ///
    /// # Errors
    /// When the call fails as a whole: queue full, too late, draining.
    pub async fn compute(
        &self,
        model: &Arc<M>,
        inputs: Vec<Result<M::Input, ItemError>>,
        call: Call,
        options: Option<&pb::RequestOptions>,
    ) -> Result<Computed<M::Output>, Refusal> {
        let (whole, outcomes) = split(inputs);
        let call = pool::Call { lane: lane(options)?, deadline: call.deadline };
        let done = self.pool.run(model, whole, call).await.map_err(|error| status::of_engine(&error))?;
        Ok(join(outcomes, done))
    }

    /// The same for a batch of a stream: where a call would be refused because the queue is full, it waits for its turn.
    ///
    /// # Errors
    /// When the batch fails as a whole: too late, draining.
    pub async fn compute_in_turn(
        &self,
        model: &Arc<M>,
        inputs: Vec<Result<M::Input, ItemError>>,
        call: Call,
        options: Option<&pb::RequestOptions>,
    ) -> Result<Computed<M::Output>, Refusal> {
        let (whole, outcomes) = split(inputs);
        let call = pool::Call { lane: lane(options)?, deadline: call.deadline };
        let done = self.pool.run_in_turn(model, whole, call).await.map_err(|error| status::of_engine(&error))?;
        Ok(join(outcomes, done))
    }
}

/// Refuses options that the contract does not have; [`Host::compute`] does too, but a stream is told when it begins.
///
/// # Errors
/// BAD_PARAMETER.
pub fn check_options(options: Option<&pb::RequestOptions>) -> Result<(), Refusal> {
    lane(options).map(drop)
}

/// The inputs that are whole, and who of all failed already.
fn split<I>(inputs: Vec<Result<I, ItemError>>) -> (Vec<I>, Vec<Result<(), ItemError>>) {
    let (mut whole, mut outcomes) = (Vec::with_capacity(inputs.len()), Vec::with_capacity(inputs.len()));
    for input in inputs {
        outcomes.push(input.map(|input| whole.push(input)));
    }
    (whole, outcomes)
}

/// The results in the places of their inputs.
fn join<O>(outcomes: Vec<Result<(), ItemError>>, done: pool::Done<O>) -> Computed<O> {
    let items = done.results.iter().filter(|result| result.is_ok()).count();
    let mut computed = done.results.into_iter();
    let missing = || Err(ItemError::new(engine::Reason::Engine, "the engine returned no result for this item"));
    let result = |outcome: Result<(), ItemError>| outcome.and_then(|()| computed.next().unwrap_or_else(missing));
    let results = outcomes.into_iter().map(result).collect();
    let cost = Cost { units: done.timing.units, compute_ms: done.timing.worker.as_secs_f64() * 1e3 };
    Computed { results, cost, spent: Spent { timing: done.timing, items } }
}

fn lane(options: Option<&pb::RequestOptions>) -> Result<Lane, Refusal> {
    let value = options.map_or(0, |options| options.priority);
    match pb::Priority::try_from(value) {
        Ok(pb::Priority::Unspecified | pb::Priority::Interactive) => Ok(Lane::Interactive),
        Ok(pb::Priority::Batch) => Ok(Lane::Batch),
        Err(_) => Err(bad_parameter("options.priority", format!("{value} is no priority"))),
    }
}

/// The model as responses name it.
#[must_use]
pub fn model_info(info: &ModelInfo) -> pb::ModelInfo {
    pb::ModelInfo {
        model: info.name.to_string(),
        revision: info.revision.to_string(),
        device: info.plan.device.to_string(),
        dtype: info.plan.precision.to_string(),
        compute_path: info.plan.path.to_string(),
    }
}
