//! When a reply that is still flowing is ended: at its deadline, or because the gateway shuts down.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::{Instant, Sleep, sleep_until};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use crate::refuse::Refusal;

/// The deadline of a call.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline {
    /// When the answer becomes worthless.
    pub(crate) at: Instant,
    /// How long the call had in all, for messages.
    pub(crate) timeout: Duration,
}

/// Ends a flowing reply.
#[derive(Default)]
pub(crate) struct Cutoff {
    deadline: Option<(Pin<Box<Sleep>>, Duration)>,
    drain: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
}

impl Cutoff {
    /// At the deadline.
    pub(crate) fn at(deadline: Option<Deadline>) -> Self {
        let sleep = |deadline: Deadline| (Box::pin(sleep_until(deadline.at)), deadline.timeout);
        Self { deadline: deadline.map(sleep), drain: None }
    }

    /// Also when the gateway shuts down: for streams that would never end by themselves and hold the connection open.
    pub(crate) fn or_drain(self, drain: &CancellationToken) -> Self {
        Self { drain: Some(Box::pin(drain.clone().cancelled_owned())), ..self }
    }

    /// Ready when the deadline has passed. To be asked before the reply, which may never pause.
    pub(crate) fn poll_late(&mut self, cx: &mut Context<'_>) -> Poll<Refusal> {
        match &mut self.deadline {
            Some((sleep, timeout)) => sleep.as_mut().poll(cx).map(|()| Refusal::Late { timeout: *timeout }),
            None => Poll::Pending,
        }
    }

    /// Ready when the gateway shuts down. To be asked when the reply pauses, so that its last words are heard.
    pub(crate) fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<Refusal> {
        match &mut self.drain {
            Some(drain) => drain.as_mut().poll(cx).map(|()| Refusal::Draining),
            None => Poll::Pending,
        }
    }
}
