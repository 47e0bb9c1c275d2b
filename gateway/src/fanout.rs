//! Several calls in one: `tamis.gateway.v1.GatewayService`.
//!
//! A step's request is cut out of the message and sent on as it stands, its reply is put into the response as it comes;
//! neither is decoded, so that what a newer client or service has added passes through. Each step is a call of its own in
//! every respect (`leg.rs`); all of them belong to one future, and whoever drops that cancels them.

mod calls;
mod leg;
mod message;
mod policy;
mod request;

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use chassis::{deadline::Malformed, units::bytes};
use futures_util::{StreamExt as _, stream::FuturesUnordered};
use http::{HeaderMap, HeaderName};
use http_body::{Body, Frame};
use hyper::body::Incoming;
use prost::Message as _;
use proto::{common::v1::ErrorReason, gateway::v1 as pb};
use tokio::{sync::mpsc, time::Instant};
use tokio_util::task::AbortOnDropHandle;
use tonic::Code;

pub(crate) use self::calls::check;
use self::{
    leg::Leg,
    message::{Ended, Pieces},
    policy::{Policy, Tally, Verdict},
    request::{Request, Step},
};
use crate::{
    cutoff::Deadline,
    progress::{Progress, Stage},
    refuse::Refusal,
    replay::{ByteBudget, Reserved, hold},
    reply::{Reply, ok_trailers},
    request::UNITS,
    route::Shape,
    stack::{Stack, within},
};

/// Name of the service.
pub(crate) const GATEWAY: &str = "tamis.gateway.v1.GatewayService";

/// Bytes of a result beside its id and its reply, at most.
const RESULT_BYTES: usize = 64;

/// A fan-out that has been read.
pub(crate) struct FanOut {
    stack: Arc<Stack>,
    /// For replicas, but for the trace, in which each step has a span of its own.
    headers: HeaderMap,
    started: Instant,
    deadline: Deadline,
    request: Request,
    /// The steps' requests are slices of one message.
    reserved: Arc<Reserved>,
}

/// A call of the service as it comes.
pub(crate) struct Arrival {
    pub(crate) shape: Shape,
    /// Already those for a replica.
    pub(crate) headers: HeaderMap,
    pub(crate) deadline: Option<Deadline>,
}

/// Answers a call; a streaming reply still needs its cutoff at the deadline that comes with it.
pub(crate) async fn answer(stack: Arc<Stack>, call: Arrival, body: Incoming) -> Result<(Reply, Deadline), Refusal> {
    let (shape, deadline) = (call.shape, within_bounds(&stack, call.deadline)?);
    let fan_out = within(Some(deadline), FanOut::read(stack, call, deadline, body)).await??;
    let reply = match shape {
        Shape::Unary => within(Some(deadline), fan_out.gather()).await??,
        Shape::Streaming => fan_out.stream(),
    };
    Ok((reply, deadline))
}

/// A fan-out that streams its results is finite, as its steps are: without a deadline it gets the default.
fn within_bounds(stack: &Stack, deadline: Option<Deadline>) -> Result<Deadline, Refusal> {
    if let Some(deadline) = deadline {
        return Ok(deadline);
    }
    let timeout = stack.mesh.settings.server.deadlines().timeout(None);
    let timeout = timeout.map_err(|malformed: Malformed| Refusal::Malformed(malformed.to_string()))?;
    Ok(Deadline { at: Instant::now() + timeout, timeout })
}

// === impl FanOut ===

impl FanOut {
    async fn read(stack: Arc<Stack>, call: Arrival, deadline: Deadline, body: Incoming) -> Result<Self, Refusal> {
        let settings = &stack.mesh.settings;
        let bytes_max = bytes(settings.server.message_bytes_max);
        let held =
            hold(body, bytes_max, &stack.mesh.held).await.map_err(|not_held| not_held.into_refusal(bytes_max))?;
        let compressed = || Refusal::Malformed("the message is compressed, and a fan-out must be read".into());
        let (message, reserved) = held.into_message().ok_or_else(compressed)?;
        let steps_max = settings.fanout.steps_max;
        let request = match call.shape {
            Shape::Unary => request::parse(message, "", steps_max)?,
            Shape::Streaming => request::parse(request::inner(message)?, "request.", steps_max)?,
        };
        let mut headers = call.headers;
        // What the client says of its own message, and of the encodings that it reads, is not said of the steps.
        for name in [UNITS, "grpc-encoding", "grpc-accept-encoding"] {
            headers.remove(HeaderName::from_static(name));
        }
        Ok(Self { stack, headers, started: Instant::now(), deadline, request, reserved })
    }

    /// All results in one response.
    async fn gather(self) -> Result<Reply, Refusal> {
        let steps = &self.request.steps;
        let mut results: Vec<_> = steps.iter().map(|_| None).collect();
        let progress: Vec<_> = steps.iter().map(|_| Progress::default()).collect();
        // Of the response, every result has its frame and its id whatever comes.
        let frames: usize = steps.iter().map(|step| step.id.len() + RESULT_BYTES).sum();
        let room = Arc::new(ByteBudget::new(self.response_bytes_max().saturating_sub(frames)));
        let degraded = self.run(&progress, || Arc::clone(&room), |index, result| results[index] = Some(result)).await;
        if Instant::now() >= self.deadline.at {
            // The steps have failed for the same reason; the client is told what it is told of any late call.
            return Err(Refusal::Late { timeout: self.deadline.timeout });
        }
        let mut response = Pieces::default();
        results.into_iter().flatten().for_each(|result| response.put_message(1, result));
        response.put_number(2, degraded?.into());
        Ok(Reply::whole(response.framed()))
    }

    /// Every event as it comes.
    fn stream(self) -> Reply {
        // Bounded by what it carries: a result and a few stages for each step.
        let (sender, frames) = mpsc::unbounded_channel();
        // A task, because a reply is asked for more only while its client reads: the steps go on meanwhile.
        let task = AbortOnDropHandle::new(tokio::spawn(async move {
            let end = match self.tell(&sender).await {
                Ok(()) => ok_trailers(),
                Err(refusal) => refusal.trailers(),
            };
            _ = sender.send(Frame::trailers(end));
        }));
        Reply::stream(Events { frames, _task: task })
    }

    async fn tell(&self, sender: &mpsc::UnboundedSender<Frame<Bytes>>) -> Result<(), Refusal> {
        let progress = self.request.steps.iter().map(|step| {
            let (id, sender) = (step.id.clone(), sender.clone());
            Progress::told(move |stage| send(&sender, step_event(&id, stage)))
        });
        let progress: Vec<_> = progress.collect();
        // Each result is a message of its own, and may be as large as any.
        let room = || Arc::new(ByteBudget::new(self.response_bytes_max()));
        let tell = |_, result| {
            let mut event = Pieces::default();
            event.put_message(2, result);
            send(sender, event);
        };
        let degraded = self.run(&progress, room, tell).await?;
        let elapsed = self.started.elapsed().try_into().ok();
        let summary = pb::FanOutSummary { degraded, elapsed };
        let mut event = Pieces::default();
        event.put_content(3, &summary.encode_to_vec());
        send(sender, event);
        Ok(())
    }

    /// Runs the steps beside each other, tells of each result under its step's place, and says whether one is missing.
    async fn run(
        &self,
        progress: &[Progress],
        room: impl Fn() -> Arc<ByteBudget>,
        mut tell: impl FnMut(usize, Pieces),
    ) -> Result<bool, Refusal> {
        let Request { steps, policy } = &self.request;
        let leg = |(index, (step, progress))| Leg { fan_out: self, index, step, progress, room: room() }.run();
        let mut legs: FuturesUnordered<_> = steps.iter().zip(progress).enumerate().map(leg).collect();
        let mut tally = Tally::new(*policy, steps.iter().filter(|step| !step.optional).count());
        let (mut open, mut degraded, mut end) = (vec![true; steps.len()], false, Ok(()));
        while let Some(ended) = legs.next().await {
            let step = &steps[ended.index];
            open[ended.index] = false;
            degraded |= ended.outcome.is_err() && !step.optional;
            let verdict = if step.optional { Verdict::Open } else { tally.count(ended.outcome.is_ok()) };
            let failure = failure(verdict, step, &ended, *policy);
            tell(ended.index, ended.into_result(&step.id, step.number));
            if let Some(refusal) = failure {
                end = Err(refusal);
            }
            if verdict != Verdict::Open {
                break;
            }
        }
        // Leaves the replicas before anybody hears of it.
        drop(legs);
        for (index, step) in steps.iter().enumerate().filter(|(index, _)| open[*index]) {
            degraded |= !step.optional;
            tell(index, self.cancelled(index, &progress[index]).into_result(&step.id, step.number));
        }
        end.map(|()| degraded)
    }

    fn cancelled(&self, index: usize, progress: &Progress) -> Ended {
        let error = pb::StepError {
            code: Code::Cancelled as i32,
            reason: ErrorReason::Cancelled.into(),
            message: "the other steps had decided already".into(),
            ..pb::StepError::default()
        };
        let (elapsed, attempts) = (self.started.elapsed(), progress.attempts());
        Ended { index, outcome: Err(Box::new(error)), elapsed, attempts }
    }

    fn response_bytes_max(&self) -> usize {
        bytes(self.stack.mesh.settings.server.message_bytes_max)
    }
}

/// Why the whole fails with the step that ended last, if it does.
fn failure(verdict: Verdict, step: &Step, ended: &Ended, policy: Policy) -> Option<Refusal> {
    match (verdict, &ended.outcome, policy) {
        (Verdict::Failed, Err(error), _) => Some(Refusal::Step { id: step.id.clone(), error: error.clone() }),
        (Verdict::OutOfReach { failed }, _, Policy::Quorum(quorum)) => {
            Some(Refusal::QuorumNotReached { quorum, failed })
        }
        _ => None,
    }
}

fn step_event(id: &str, stage: Stage) -> Pieces {
    let state = match stage {
        Stage::Waiting => pb::StepState::WaitingForCapacity,
        Stage::Running => pb::StepState::Running,
        Stage::Retrying => pb::StepState::Retrying,
    };
    let mut event = Pieces::default();
    event.put_content(1, &pb::StepEvent { id: id.to_owned(), state: state.into() }.encode_to_vec());
    event
}

fn send(sender: &mpsc::UnboundedSender<Frame<Bytes>>, event: Pieces) {
    for frame in event.framed() {
        // Nobody listens: the task is about to be dropped.
        _ = sender.send(Frame::data(frame));
    }
}

/// The reply of a stream; with it the steps end.
struct Events {
    frames: mpsc::UnboundedReceiver<Frame<Bytes>>,
    _task: AbortOnDropHandle<()>,
}

impl Body for Events {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.frames.poll_recv(cx).map(|frame| frame.map(Ok))
    }
}
