//! What a call's chunks share: who waits, what is done, and what it cost.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::Notify;

use super::{Done, Timing, bisect::no_answer};
use crate::ItemError;

/// A call in progress.
pub(super) struct Ticket<O> {
    admitted: Instant,
    deadline: Option<Instant>,
    abandoned: AtomicBool,
    state: Mutex<State<O>>,
    finished: Notify,
}

struct State<O> {
    results: Vec<Option<Result<O, ItemError>>>,
    chunks_left: usize,
    first_start: Option<Instant>,
    last_end: Option<Instant>,
    prepare: Duration,
    compute: Duration,
    worker: Duration,
}

/// What a worker reports of one chunk.
pub(super) struct Report<O> {
    /// Outcomes by the position of their inputs in the call.
    pub(super) results: Vec<(usize, Result<O, ItemError>)>,
    /// Nothing of the chunk is left.
    pub(super) finishes: bool,
    pub(super) start: Instant,
    pub(super) end: Instant,
    /// This chunk's share of the worker's time.
    pub(super) prepare: Duration,
    pub(super) compute: Duration,
    pub(super) worker: Duration,
}

impl<O> Ticket<O> {
    pub(super) fn new(items: usize, chunks: usize, admitted: Instant, deadline: Option<Instant>) -> Self {
        let state = State {
            results: (0..items).map(|_| None).collect(),
            chunks_left: chunks,
            first_start: None,
            last_end: None,
            prepare: Duration::ZERO,
            compute: Duration::ZERO,
            worker: Duration::ZERO,
        };
        Self {
            admitted,
            deadline,
            abandoned: AtomicBool::new(false),
            state: Mutex::new(state),
            finished: Notify::new(),
        }
    }

    /// Nobody waits any more.
    pub(super) fn abandon(&self) {
        self.abandoned.store(true, Ordering::Relaxed);
    }

    /// Somebody waits, and the deadline has not passed.
    pub(super) fn wanted(&self, now: Instant) -> bool {
        !self.abandoned.load(Ordering::Relaxed) && self.deadline.is_none_or(|deadline| now < deadline)
    }

    /// Books a chunk that was computed, or a step of one, and wakes the caller with the end of the last one.
    pub(super) fn book(&self, report: Report<O>) {
        let mut state = self.state();
        for (item, result) in report.results {
            state.results[item] = Some(result);
        }
        state.first_start = Some(state.first_start.map_or(report.start, |start| start.min(report.start)));
        state.last_end = Some(state.last_end.map_or(report.end, |end| end.max(report.end)));
        state.prepare += report.prepare;
        state.compute += report.compute;
        state.worker += report.worker;
        state.chunks_left -= usize::from(report.finishes);
        if state.chunks_left == 0 {
            // notify_one keeps its word for a caller that does not listen yet.
            self.finished.notify_one();
        }
    }

    /// Every chunk is booked.
    pub(super) fn is_finished(&self) -> bool {
        self.state().chunks_left == 0
    }

    /// Waits until every chunk is booked.
    pub(super) async fn finished(&self) {
        self.finished.notified().await;
    }

    /// The outcomes; asked once, when all is booked.
    pub(super) fn take(&self, units: u64) -> Done<O> {
        let mut state = self.state();
        let results = std::mem::take(&mut state.results).into_iter().map(|result| result.unwrap_or_else(no_answer));
        let start = state.first_start.unwrap_or(self.admitted);
        let busy = state.last_end.unwrap_or(start) - start;
        // Several workers may have shared the call: their wall time is divided as their work was.
        let work = (state.prepare + state.compute).as_secs_f64();
        let prepare =
            if work > 0.0 { busy.mul_f64(state.prepare.as_secs_f64() / work).min(busy) } else { Duration::ZERO };
        let timing =
            Timing { queue: start - self.admitted, prepare, compute: busy - prepare, worker: state.worker, units };
        Done { results: results.collect(), timing }
    }

    fn state(&self) -> MutexGuard<'_, State<O>> {
        // Nothing that holds this lock can panic half-way through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
