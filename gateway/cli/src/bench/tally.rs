//! What became of the calls, in numbers.

use std::{collections::BTreeMap, time::Duration};

use hdrhistogram::Histogram;
use proto::common::v1::ErrorReason;

use super::schedule::Schedule;

/// Longest time that is told from longer ones.
const LONGEST: Duration = Duration::from_secs(60 * 60);
/// Three digits: an error of at most one in a thousand.
const DIGITS: u8 = 3;
/// Kinds of failure that are told apart; a server that invents reasons fills no memory.
const KINDS_MAX: usize = 64;

/// What a call came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// An answer with so many good items, and why the others failed.
    Ok { items: u64, errors: Vec<ErrorReason> },
    /// None.
    Failed(Kind, String),
}

/// What failures have in common.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Kind {
    /// As gRPC writes it, `RESOURCE_EXHAUSTED`.
    pub(crate) code: String,
    /// The typed reason, `QUEUE_FULL`; empty if the server gave none.
    pub(crate) reason: String,
    /// Who says so.
    pub(crate) origin: Origin,
}

/// Who failed a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Origin {
    /// The mesh answered with an error.
    Mesh,
    /// This side gave up, or lost its connection.
    Client,
}

/// A call that has ended; times count from the beginning of the run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Call {
    /// When it should have been sent.
    pub(crate) due: Duration,
    /// When it was.
    pub(crate) sent: Duration,
    pub(crate) ended: Duration,
    pub(crate) answer: Answer,
}

/// How often something failed in the same way.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Failures {
    pub(crate) count: u64,
    /// The first message.
    pub(crate) example: String,
}

/// The numbers of a run. Whatever was due in the warm-up is in `warmup` only.
#[derive(Debug)]
pub(crate) struct Tally {
    schedule: Schedule,
    pub(crate) warmup: u64,
    pub(crate) sent: u64,
    /// Arrivals that found too many calls under way.
    pub(crate) dropped: u64,
    pub(crate) ok: u64,
    pub(crate) failed: u64,
    pub(crate) items: u64,
    pub(crate) failures: BTreeMap<Kind, Failures>,
    pub(crate) item_errors: BTreeMap<&'static str, u64>,
    /// Microseconds from due to ended, of the calls that were answered.
    pub(crate) latency: Histogram<u64>,
    /// The same of those that failed.
    pub(crate) failed_latency: Histogram<u64>,
    /// Microseconds from due to sent.
    pub(crate) lag: Histogram<u64>,
    /// When it was stopped before its end.
    pub(crate) interrupted_at: Option<Duration>,
    ended_at: Duration,
}

impl Tally {
    pub(crate) fn new(schedule: Schedule) -> Self {
        Self {
            schedule,
            warmup: 0,
            sent: 0,
            dropped: 0,
            ok: 0,
            failed: 0,
            items: 0,
            failures: BTreeMap::new(),
            item_errors: BTreeMap::new(),
            latency: histogram(),
            failed_latency: histogram(),
            lag: histogram(),
            interrupted_at: None,
            ended_at: Duration::ZERO,
        }
    }

    /// A call goes out.
    pub(crate) fn send(&mut self, due: Duration) {
        *(if self.schedule.is_measured(due) { &mut self.sent } else { &mut self.warmup }) += 1;
    }

    /// An arrival finds no place.
    pub(crate) fn drop_arrival(&mut self, due: Duration) {
        if self.schedule.is_measured(due) {
            self.dropped += 1;
        }
    }

    /// A call has ended; nothing if it was cut off.
    pub(crate) fn note(&mut self, call: Option<Call>) {
        let Some(call) = call.filter(|call| self.schedule.is_measured(call.due)) else { return };
        self.lag.saturating_record(micros(call.sent.saturating_sub(call.due)));
        let latency = micros(call.ended.saturating_sub(call.due));
        match call.answer {
            Answer::Ok { items, errors } => {
                self.ok += 1;
                self.items += items;
                self.latency.saturating_record(latency);
                for reason in errors {
                    *self.item_errors.entry(reason.as_error_info()).or_default() += 1;
                }
            }
            Answer::Failed(kind, message) => {
                self.failed += 1;
                self.failed_latency.saturating_record(latency);
                let full = self.failures.len() >= KINDS_MAX && !self.failures.contains_key(&kind);
                let kind = if full { Kind { reason: "OTHERS".to_owned(), ..kind } } else { kind };
                let failures = self.failures.entry(kind).or_insert(Failures { count: 0, example: message });
                failures.count += 1;
            }
        }
    }

    /// The run was stopped before its end.
    pub(crate) fn interrupt(&mut self, at: Duration) {
        self.interrupted_at = Some(at);
    }

    /// Nothing is under way any more.
    pub(crate) fn finish(&mut self, at: Duration) {
        self.ended_at = at;
    }

    /// Calls that were under way when the run was interrupted.
    pub(crate) fn unfinished(&self) -> u64 {
        self.sent.saturating_sub(self.ok).saturating_sub(self.failed)
    }

    /// How long arrivals were due and counted.
    pub(crate) fn window(&self) -> Duration {
        let end = self.interrupted_at.map_or(self.schedule.end(), |at| at.min(self.schedule.end()));
        end.saturating_sub(self.schedule.warmup)
    }

    /// From the first call that counts to the last reply, and no less than the window: what comes late is not fast.
    pub(crate) fn span(&self) -> Duration {
        self.window().max(self.ended_at.saturating_sub(self.schedule.warmup))
    }

    /// The schedule that was to be kept.
    pub(crate) fn schedule(&self) -> &Schedule {
        &self.schedule
    }
}

#[expect(clippy::expect_used, reason = "constants, and a test makes one")]
fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, micros(LONGEST), DIGITS).expect("bounds in order, and at most five digits")
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally() -> Tally {
        let (warmup, duration) = (Duration::from_secs(1), Duration::from_secs(10));
        Tally::new(Schedule { rate: 10.0, warmup, duration })
    }

    fn call(due_ms: u64, ended_ms: u64, answer: Answer) -> Option<Call> {
        let [due, ended] = [due_ms, ended_ms].map(Duration::from_millis);
        Some(Call { due, sent: due, ended, answer })
    }

    fn failed(code: &str, reason: &str, message: &str) -> Answer {
        Answer::Failed(Kind { code: code.into(), reason: reason.into(), origin: Origin::Mesh }, message.into())
    }

    #[test]
    fn counts_add_up_by_kind_and_reason() {
        let mut tally = tally();
        let errors = vec![ErrorReason::EmptyInput, ErrorReason::EmptyInput];
        for due in [500, 1500, 1600, 1700, 1800] {
            tally.send(Duration::from_millis(due));
        }
        tally.note(call(500, 510, Answer::Ok { items: 9, errors: Vec::new() }));
        tally.note(call(1500, 1510, Answer::Ok { items: 3, errors }));
        tally.note(call(1600, 1610, failed("RESOURCE_EXHAUSTED", "QUEUE_FULL", "first")));
        tally.note(call(1700, 1710, failed("RESOURCE_EXHAUSTED", "QUEUE_FULL", "second")));
        assert_eq!((tally.warmup, tally.sent, tally.ok, tally.failed, tally.unfinished()), (1, 4, 1, 2, 1));
        assert_eq!((tally.items, tally.item_errors["EMPTY_INPUT"]), (3, 2));
        let failures = tally.failures.values().next().unwrap();
        assert_eq!((failures.count, failures.example.as_str()), (2, "first"));
        assert_eq!((tally.latency.len(), tally.failed_latency.len(), tally.lag.len()), (1, 2, 3));
    }

    #[test]
    fn invented_reasons_fill_no_memory() {
        let mut tally = tally();
        for number in 0..1000 {
            tally.note(call(1500, 1510, failed("UNKNOWN", &number.to_string(), "")));
        }
        assert_eq!(tally.failures.len(), KINDS_MAX + 1);
        assert_eq!(tally.failures.values().map(|failures| failures.count).sum::<u64>(), 1000);
    }

    #[test]
    fn replies_after_the_end_make_the_run_longer() {
        let mut tally = tally();
        tally.finish(Duration::from_secs(14));
        assert_eq!((tally.window(), tally.span()), (Duration::from_secs(10), Duration::from_secs(13)));
        tally.interrupt(Duration::from_secs(3));
        assert_eq!(tally.window(), Duration::from_secs(2));
    }

    #[test]
    fn a_time_beyond_the_histogram_is_kept_at_its_end() {
        let mut tally = tally();
        tally.note(call(1500, 99_000_000, Answer::Ok { items: 1, errors: Vec::new() }));
        assert!(tally.latency.max() >= micros(LONGEST));
    }
}
