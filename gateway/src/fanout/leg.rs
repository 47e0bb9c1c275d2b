//! One step on its way: exactly what a call of its own would be.

use std::sync::Arc;

use bytes::Bytes;
use chassis::trace::{self, TraceContext};
use http::HeaderMap;
use proto::{common::v1::ErrorReason, gateway::v1 as pb};
use tokio::time::Instant;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;
use tracing::Instrument as _;

use super::{
    FanOut,
    message::{Ended, Payload},
    request::Step,
};
use crate::{
    cutoff::Deadline,
    mesh::Target,
    metrics::Record,
    progress::Progress,
    refuse::Refusal,
    replay::{ByteBudget, Replay, Reserved},
    reply,
    stack::{permit, within},
    unary::Unary,
};

/// Longest text of an error, in bytes.
const MESSAGE_BYTES_MAX: usize = 1024;

/// A step and what follows it.
pub(super) struct Leg<'a> {
    pub(super) fan_out: &'a FanOut,
    pub(super) index: usize,
    pub(super) step: &'a Step,
    pub(super) progress: &'a Progress,
    /// How much the replies may have that share a response with this one.
    pub(super) room: Arc<ByteBudget>,
}

impl Leg<'_> {
    /// Makes the call. Dropped, it leaves the replica.
    pub(super) async fn run(self) -> Ended {
        let Self { fan_out, step, .. } = self;
        let mesh = &fan_out.stack.mesh;
        let trace = TraceContext::of(&fan_out.headers);
        let route = mesh.route(step.path);
        let span = fan_out.stack.span(route, &trace, Some(self.index));
        let mut record = Record::begin(route.map_or(&mesh.unknown, |route| &route.metrics), span.clone());
        let deadline = self.deadline();
        let carried = within(Some(deadline), self.carry(deadline, &trace, &mut record)).instrument(span).await;
        let outcome = match carried.flatten() {
            Ok((payload, trailers)) => {
                record.status(reply::code(&trailers));
                payload.ok_or_else(|| Box::new(error(&status_of(&trailers))))
            }
            Err(refusal) => {
                record.refused(&refusal);
                Err(Box::new(error(&refusal.status())))
            }
        };
        Ended { index: self.index, outcome, elapsed: fan_out.started.elapsed(), attempts: self.progress.attempts() }
    }

    /// The payload if the status is OK, and the status.
    async fn carry(
        &self,
        deadline: Deadline,
        trace: &TraceContext,
        record: &mut Record,
    ) -> Result<(Option<Payload>, HeaderMap), Refusal> {
        let Self { fan_out, step, .. } = self;
        let stack = &fan_out.stack;
        let caller = stack.caller.as_ref().map_err(|_| Refusal::NoIdentity)?;
        let route = permit(caller, stack.mesh.route(step.path), step.path)?;
        let Target::Upstream(upstream) = &route.target else {
            return Err(Refusal::UnknownMethod { path: step.path.to_owned() });
        };
        record.takes(stack.mesh.admit()?);
        record.is_to(upstream)?;
        let mut headers = fan_out.headers.clone();
        headers.insert(trace::HEADER, trace.to_header());
        let unary = Unary {
            mesh: &stack.mesh,
            method: &route.method,
            upstream,
            headers: &headers,
            deadline: Some(deadline),
            units: None,
            worker: stack.worker,
            progress: self.progress,
        };
        let (reply, flight) = unary.carry(Replay::part(&step.message, &fan_out.reserved)).await?;
        let (mut room, mut held) = (Reserved::none_of(&self.room), Reserved::none_of(&stack.mesh.gathered));
        let keep = |bytes| keep(bytes, &mut room, &mut held);
        let (frames, trailers) = reply.collect(flight, keep).await?;
        if reply::code(&trailers) != Code::Ok {
            return Ok((None, trailers));
        }
        Ok((Some(self.payload(frames, room, held)?), trailers))
    }

    fn payload(&self, frames: Vec<Bytes>, room: Reserved, held: Reserved) -> Result<Payload, Refusal> {
        // The room of a response is gone for good: it counts what is sent, not what is in memory.
        room.spend();
        Payload::read(frames, held).ok_or(Refusal::Engine("the reply to a step is not one message"))
    }

    fn deadline(&self) -> Deadline {
        let whole = self.fan_out.deadline;
        // Beyond what an instant can say, it is the whole's.
        let own = self.step.timeout.and_then(|timeout| {
            let at = Instant::from_std(self.fan_out.started.into_std().checked_add(timeout)?);
            Some(Deadline { at, timeout })
        });
        own.filter(|own| own.at < whole.at).unwrap_or(whole)
    }
}

fn keep(bytes: usize, room: &mut Reserved, held: &mut Reserved) -> Result<(), Refusal> {
    if !room.add(bytes) {
        return Err(Refusal::ReplyTooLarge { bytes_max: room.bytes_max() as u64 });
    }
    if !held.add(bytes) {
        return Err(Refusal::Full { what: "bytes of gathered replies", max: held.bytes_max() });
    }
    Ok(())
}

fn status_of(trailers: &HeaderMap) -> Status {
    Status::from_header_map(trailers).unwrap_or_else(|| Status::unknown("the reply has no status"))
}

/// What the status says, in the contracts' words.
fn error(status: &Status) -> pb::StepError {
    let details = status.get_error_details();
    let reason = details.error_info().filter(|info| info.domain == proto::ERROR_DOMAIN);
    let reason = reason.and_then(|info| ErrorReason::from_str_name(&format!("ERROR_REASON_{}", info.reason)));
    let retry_delay = details.retry_info().and_then(|retry| retry.retry_delay);
    let fields = details.bad_request().map(|bad| bad.field_violations.iter().map(|violation| violation.field.clone()));
    let message = status.message();
    let end = (0..=message.len().min(MESSAGE_BYTES_MAX)).rev().find(|end| message.is_char_boundary(*end)).unwrap_or(0);
    pb::StepError {
        code: status.code() as i32,
        reason: reason.unwrap_or_default().into(),
        message: message[..end].to_owned(),
        retry_delay: retry_delay.and_then(|delay| delay.try_into().ok()),
        fields: fields.into_iter().flatten().collect(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tonic_types::ErrorDetails;

    use super::*;

    #[test]
    fn an_error_says_what_the_status_says() {
        let mut details = ErrorDetails::with_error_info("QUEUE_FULL", proto::ERROR_DOMAIN, []);
        details.set_retry_info(Some(Duration::from_millis(250))).add_bad_request_violation("params.top_k", "is 0");
        let error = error(&Status::with_error_details(Code::ResourceExhausted, "full", details));
        let expected = pb::StepError {
            code: 8,
            reason: ErrorReason::QueueFull.into(),
            message: "full".into(),
            retry_delay: Some(prost_types::Duration { seconds: 0, nanos: 250_000_000 }),
            fields: vec!["params.top_k".into()],
        };
        assert_eq!(error, expected);
    }

    #[test]
    fn a_reason_of_another_domain_is_none_of_ours() {
        for (reason, domain) in [("QUEUE_FULL", "example.com"), ("NO_SUCH_REASON", proto::ERROR_DOMAIN)] {
            let details = ErrorDetails::with_error_info(reason, domain, []);
            let error = error(&Status::with_error_details(Code::Internal, "é".repeat(1000), details));
            assert_eq!(error.reason(), ErrorReason::Unspecified);
            assert_eq!(error.message.len(), MESSAGE_BYTES_MAX);
        }
    }
}
