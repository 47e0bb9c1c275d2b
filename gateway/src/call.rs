//! A call from its first attempt to its last: picks a replica, waits for one, and tries again.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, timeout_at};

use crate::{
    config::RetrySettings,
    cutoff::Deadline,
    flight::{Failed, Flight, Plan},
    metrics::Metrics,
    progress::{Progress, Stage},
    refuse::Refusal,
    replay::Replay,
    reply::Reply,
    retry::{self, Failure, Next},
    route::Shape,
    upstream::{Endpoint, Picked, RequestBody},
};

/// Attempts that did not leave the gateway are not counted as attempts, but they end: more than this many replicas that
/// look ready and cannot be reached is an outage.
const UNSENT_MAX: u32 = 16;

/// How long and how often a call is tried.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// Most times that it is sent.
    pub(crate) attempts_max: u32,
    /// Longest wait for a ready replica, each time there is none.
    pub(crate) ready_wait: Duration,
}

impl Patience {
    /// What the configuration says.
    pub(crate) fn of(settings: &RetrySettings) -> Self {
        Self { attempts_max: settings.attempts_max, ready_wait: settings.ready_wait.0 }
    }
}

/// What a client sends.
pub(crate) enum Message {
    /// All of it, to be sent as often as needed.
    Held(Replay),
    /// A stream, which can be sent once.
    Passing(RequestBody),
}

/// A call and how it is going.
pub(crate) struct Call<'a> {
    plan: Plan<'a>,
    patience: Patience,
    metrics: &'a Metrics,
    progress: Option<&'a Progress>,
    tried: Vec<Arc<Endpoint>>,
    sent: u32,
    unsent: u32,
    last: Option<Failure>,
}

impl<'a> Call<'a> {
    pub(crate) fn new(plan: Plan<'a>, patience: Patience, metrics: &'a Metrics) -> Self {
        Self { plan, patience, metrics, progress: None, tried: Vec::new(), sent: 0, unsent: 0, last: None }
    }

    /// The same, and `progress` hears how it goes.
    pub(crate) fn told_to(self, progress: &'a Progress) -> Self {
        Self { progress: Some(progress), ..self }
    }

    /// The reply of the replica that answered, or the refusal if none did before the deadline.
    pub(crate) async fn run(self, message: Message) -> Result<(Reply, Option<Flight>), Refusal> {
        match self.plan.deadline {
            Some(Deadline { at, timeout }) => {
                timeout_at(at, self.attempts(message)).await.unwrap_or(Err(Refusal::Late { timeout }))
            }
            None => self.attempts(message).await,
        }
    }

    async fn attempts(mut self, message: Message) -> Result<(Reply, Option<Flight>), Refusal> {
        self.plan.upstream.retries.deposit();
        let (mut next, mut answer) = (Next::Anywhere, None);
        let (replay, mut body) = match message {
            Message::Held(replay) => (Some(replay), None),
            Message::Passing(body) => (None, Some(body)),
        };
        loop {
            let again = replay.as_ref().map(|replay| RequestBody::Replay(replay.body()));
            // A stream that has left cannot be sent again.
            let Some(message) = again.or_else(|| body.take()) else { break };
            let Some(picked) = self.pick(next).await else { break };
            self.tried.push(Arc::clone(&picked.endpoint));
            self.tell(Progress::attempt);
            let span = tracing::Span::current();
            span.record("replica", tracing::field::display(picked.endpoint.address))
                .record("attempt", self.tried.len());
            let failure = match self.plan.attempt(picked, message).await {
                Ok((reply, flight)) => match reply.failure() {
                    Some(failure) => {
                        answer = Some((reply, flight));
                        failure
                    }
                    None => return Ok((reply, flight)),
                },
                Err(Failed { failure, body: unsent }) => {
                    (answer, body) = (None, unsent);
                    failure
                }
            };
            next = self.after(failure);
        }
        answer.ok_or_else(|| self.give_up())
    }

    /// Where to go after a failure, within the bounds.
    fn after(&mut self, failure: Failure) -> Next {
        self.last = Some(failure);
        let unsent = matches!(failure, Failure::Unsent | Failure::Full);
        if unsent {
            self.tell(Progress::unsent);
        }
        *(if unsent { &mut self.unsent } else { &mut self.sent }) += 1;
        let next = retry::next(failure, self.plan.method.repeat);
        let upstream = self.plan.upstream;
        if next == Next::Nowhere || self.unsent > UNSENT_MAX || self.sent >= self.patience.attempts_max {
            return Next::Nowhere;
        }
        // What never left costs no replica anything.
        if unsent || upstream.retries.withdraw() {
            self.metrics.retry(upstream);
            self.tell(|progress| progress.stage(Stage::Retrying));
            return next;
        }
        tracing::debug!(service = %upstream.name, "the retry budget is empty");
        Next::Nowhere
    }

    async fn pick(&self, next: Next) -> Option<Picked> {
        let upstream = self.plan.upstream;
        let pick = || upstream.pick(self.plan.work, next, &self.tried);
        let picked = pick();
        if picked.is_some() || next != Next::Anywhere {
            return picked;
        }
        let give_up = Instant::now() + self.patience.ready_wait;
        let _waiting = upstream.wait();
        self.tell(|progress| progress.stage(Stage::Waiting));
        loop {
            timeout_at(give_up, upstream.any_ready()).await.ok()?;
            if let Some(picked) = pick() {
                return Some(picked);
            }
        }
    }

    fn tell(&self, what: impl Fn(&Progress)) {
        if let Some(progress) = self.progress {
            what(progress);
        }
    }

    fn give_up(&self) -> Refusal {
        match self.last {
            Some(Failure::Full) => {
                let what = match self.plan.method.shape {
                    Shape::Unary => "connections, all full, to each replica",
                    Shape::Streaming => "connections for streams, all full, to each replica",
                };
                Refusal::Full { what, max: self.plan.upstream.dialer.connections_max() }
            }
            _ if self.sent > 0 => Refusal::ReplicaLost { attempts: self.sent },
            _ => Refusal::NoCapacity { service: self.plan.upstream.name.to_string() },
        }
    }
}
