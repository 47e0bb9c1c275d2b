//! Sends each call to the replica with the least outstanding work.
//!
//! Work is worker time, not a number of calls: a batch of 256 texts is not one text. The time of a call is estimated when
//! it leaves, from the client's hint or the size of its message and from what recent replies reported, and is taken back
//! when the call ends in whatever way. What other gateways keep a replica busy with is in its reports: the part of its
//! queue that is not ours. All replicas are scanned: there are tens of them, not thousands, and the simulation that
//! chose this policy lost more by sampling two (846 ms against 246 ms at the 99th percentile) than a scan costs.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use chassis::load::{Cost, Report};
use tokio::time::Instant;

/// The estimate of a call that nothing is known about. Only its order of magnitude matters, and only until the first
/// reply.
const UNKNOWN_US: f64 = 10_000.0;
/// No call is free: without this, a replica that is wrongly believed to be infinitely fast would get them all.
const ESTIMATE_US_MIN: f64 = 50.0;
/// No hint may take a replica out of rotation for longer than the longest call.
const ESTIMATE_US_MAX: f64 = 300e6;
/// Weight of the newest sample in the moving averages.
const SMOOTHING: f64 = 0.1;

/// What is known of a call before it is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Work {
    units: Option<u32>,
    bytes: u32,
}

/// The load of one replica as this gateway sees it, shared by all its workers.
#[derive(Debug)]
pub(crate) struct Load {
    epoch: Instant,
    calls: AtomicU64,
    outstanding_us: AtomicU64,
    /// Microseconds after `epoch` at which work that is not ours will be done: it drains by itself as time passes, so
    /// that an old report does not keep a replica out of rotation.
    foreign_until_us: AtomicU64,
    speed: Speed,
    ended: AtomicU64,
    failed: AtomicU64,
}

/// Recent cost of work, in worker microseconds.
#[derive(Debug, Default)]
pub(crate) struct Speed {
    unit_us: Average,
    byte_us: Average,
}

/// The work of one call on one replica; it is taken back when this is dropped.
#[derive(Debug)]
pub(crate) struct Outstanding {
    load: Arc<Load>,
    estimate_us: u64,
    sent: Sent,
}

/// How far a call has come on a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sent {
    /// It has not left.
    NotYet,
    /// The replica may have it.
    Yes,
    /// The replica has failed it.
    InVain,
}

/// A replica that may take a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Candidate {
    /// Work before this call, in microseconds.
    pub(crate) backlog_us: u64,
    /// This call's work on this replica, in microseconds.
    pub(crate) estimate_us: u64,
}

/// The place of the candidate that would be done first. Replicas that differ by less than `grain_us` are equal, and the
/// first of them wins: the caller rotates the order, so that equal replicas take turns.
pub(crate) fn least_work<T>(candidates: impl IntoIterator<Item = (T, Candidate)>, grain_us: u64) -> Option<T> {
    let score = |candidate: &Candidate| (candidate.backlog_us + candidate.estimate_us) / grain_us.max(1);
    let mut best: Option<(T, u64)> = None;
    for (item, candidate) in candidates {
        let score = score(&candidate);
        if best.as_ref().is_none_or(|(_, least)| score < *least) {
            best = Some((item, score));
        }
    }
    best.map(|(item, _)| item)
}

// === impl Work ===

impl Work {
    /// The work of a message of `bytes`, for which the client's hint is `units`.
    ///
    /// A hint is believed up to the size of the message: there is no token and no image without a byte.
    pub(crate) fn new(units: Option<u32>, bytes: usize) -> Self {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        Self { units: units.map(|units| units.clamp(1, bytes.max(1))), bytes }
    }
}

// === impl Speed ===

impl Speed {
    /// Learns what `work` has cost.
    pub(crate) fn learn(&self, work: Work, cost: &Cost) {
        let compute_us = cost.compute_ms * 1e3;
        // A call that failed before compute says nothing about speed.
        if compute_us <= 0.0 {
            return;
        }
        if cost.units > 0 {
            self.unit_us.add(compute_us / cost.units as f64);
        }
        self.byte_us.add(compute_us / f64::from(work.bytes.max(1)));
    }

    /// Worker microseconds that `work` takes at this speed, or at `other` where this has no samples yet.
    pub(crate) fn estimate_us(&self, work: Work, other: &Self) -> u64 {
        let by_units = work.units.and_then(|units| {
            let unit_us = self.unit_us.value().or_else(|| other.unit_us.value())?;
            Some(unit_us * f64::from(units))
        });
        let by_bytes = || {
            let byte_us = self.byte_us.value().or_else(|| other.byte_us.value())?;
            Some(byte_us * f64::from(work.bytes.max(1)))
        };
        let estimate_us = by_units.or_else(by_bytes).unwrap_or(UNKNOWN_US);
        estimate_us.clamp(ESTIMATE_US_MIN, ESTIMATE_US_MAX) as u64
    }
}

// === impl Load ===

impl Load {
    /// No load. Instants are kept relative to `epoch`.
    pub(crate) fn new(epoch: Instant) -> Self {
        Self {
            epoch,
            calls: AtomicU64::new(0),
            outstanding_us: AtomicU64::new(0),
            foreign_until_us: AtomicU64::new(0),
            speed: Speed::default(),
            ended: AtomicU64::new(0),
            failed: AtomicU64::new(0),
        }
    }

    /// What a call would find here.
    pub(crate) fn candidate(&self, work: Work, service: &Speed, now: Instant) -> Candidate {
        Candidate { backlog_us: self.backlog_us(now), estimate_us: self.speed.estimate_us(work, service) }
    }

    /// Our calls in flight and the work of others, in microseconds.
    pub(crate) fn backlog_us(&self, now: Instant) -> u64 {
        let foreign_us = self.foreign_until_us.load(Relaxed).saturating_sub(self.since_epoch_us(now));
        self.outstanding_us.load(Relaxed) + foreign_us
    }

    /// Nothing of ours and nothing that we know of others is being computed here.
    pub(crate) fn is_idle(&self, now: Instant) -> bool {
        self.calls.load(Relaxed) == 0 && self.backlog_us(now) == 0
    }

    /// Calls in flight.
    pub(crate) fn in_flight(&self) -> u64 {
        self.calls.load(Relaxed)
    }

    /// Calls that were sent and have ended, and those of them that the replica failed.
    pub(crate) fn ended(&self) -> (u64, u64) {
        (self.ended.load(Relaxed), self.failed.load(Relaxed))
    }

    /// Recent microseconds of a unit of work, once it is measured.
    pub(crate) fn unit_us(&self) -> Option<f64> {
        self.speed.unit_us.value()
    }

    /// Microseconds of work in flight, for the metrics.
    pub(crate) fn outstanding_us(&self) -> u64 {
        self.outstanding_us.load(Relaxed)
    }

    /// Counts a call that is estimated to take `estimate_us`.
    pub(crate) fn start(self: &Arc<Self>, estimate_us: u64) -> Outstanding {
        self.calls.fetch_add(1, Relaxed);
        self.outstanding_us.fetch_add(estimate_us, Relaxed);
        Outstanding { load: Arc::clone(self), estimate_us, sent: Sent::NotYet }
    }

    fn since_epoch_us(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.epoch).as_micros()).unwrap_or(u64::MAX)
    }
}

// === impl Outstanding ===

impl Outstanding {
    /// It has come so far.
    pub(crate) fn mark(&mut self, sent: Sent) {
        self.sent = sent;
    }

    /// Ends the call with the reply's report.
    ///
    /// The replica's queue is compared with what we still have there: only the rest is the work of others. Its queue is in
    /// time and ours in work, so with several workers on the replica others are underestimated, never overestimated.
    pub(crate) fn finish(self, work: Work, report: &Report, now: Instant) {
        let load = Arc::clone(&self.load);
        drop(self);
        if let Some(cost) = &report.cost {
            load.speed.learn(work, cost);
        }
        let queue_us = (report.busy.queue_ms * 1e3).min(ESTIMATE_US_MAX) as u64;
        let foreign_us = queue_us.saturating_sub(load.outstanding_us());
        load.foreign_until_us.store(load.since_epoch_us(now) + foreign_us, Relaxed);
    }
}

impl Drop for Outstanding {
    fn drop(&mut self) {
        if self.sent != Sent::NotYet {
            self.load.ended.fetch_add(1, Relaxed);
        }
        if self.sent == Sent::InVain {
            self.load.failed.fetch_add(1, Relaxed);
        }
        self.load.calls.fetch_sub(1, Relaxed);
        self.load.outstanding_us.fetch_sub(self.estimate_us, Relaxed);
    }
}

/// An exponentially weighted moving average without a lock: when two threads add at once one sample may be lost, which
/// an average does not mind. Bits of 0.0: no sample yet; samples are positive.
#[derive(Debug, Default)]
struct Average(AtomicU64);

impl Average {
    fn value(&self) -> Option<f64> {
        let value = f64::from_bits(self.0.load(Relaxed));
        (value > 0.0).then_some(value)
    }

    fn add(&self, sample: f64) {
        let next = self.value().map_or(sample, |old| old + (sample - old) * SMOOTHING);
        self.0.store(next.to_bits(), Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use chassis::load::Busy;
    use proptest::prelude::*;

    use super::*;

    fn load() -> Arc<Load> {
        Arc::new(Load::new(Instant::now()))
    }

    fn cost(units: u64, compute_ms: f64) -> Cost {
        Cost { units, compute_ms }
    }

    fn at(backlog_us: u64, estimate_us: u64) -> Candidate {
        Candidate { backlog_us, estimate_us }
    }

    fn check(candidates: &[Candidate], grain_us: u64, expected: Option<usize>) {
        assert_eq!(least_work(candidates.iter().copied().enumerate(), grain_us), expected, "{candidates:?}");
    }

    #[test]
    fn the_least_work_wins() {
        check(&[at(30, 10), at(5, 10), at(20, 10)], 1, Some(1));
    }

    #[test]
    fn a_slow_replica_is_charged_for_its_own_slowness() {
        check(&[at(0, 100), at(20, 10)], 1, Some(1));
    }

    #[test]
    fn replicas_within_the_grain_are_equal_and_the_first_wins() {
        check(&[at(0, 112), at(0, 101)], 25, Some(0));
    }

    #[test]
    fn nobody_is_chosen_from_nobody() {
        check(&[], 1, None);
    }

    #[test]
    fn a_call_is_estimated_from_its_hint_and_from_its_bytes_without_one() {
        let (load, service) = (load(), Speed::default());
        let report = Report { cost: Some(cost(100, 50.0)), busy: Busy::default() };
        load.start(1).finish(Work::new(Some(100), 1000), &report, Instant::now());
        assert_eq!(load.candidate(Work::new(Some(10), 1000), &service, Instant::now()).estimate_us, 5_000);
        assert_eq!(load.candidate(Work::new(None, 2000), &service, Instant::now()).estimate_us, 100_000);
    }

    #[test]
    fn a_new_replica_is_as_fast_as_the_service_until_it_has_answered() {
        let service = Speed::default();
        service.learn(Work::new(None, 10), &cost(1, 7.0));
        assert_eq!(load().candidate(Work::new(Some(1), 10), &service, Instant::now()).estimate_us, 7_000);
    }

    #[test]
    fn a_hint_cannot_claim_more_units_than_bytes() {
        let service = Speed::default();
        service.learn(Work::new(None, 1), &cost(1, 1.0));
        let estimate = |work| load().candidate(work, &service, Instant::now()).estimate_us;
        assert_eq!(estimate(Work::new(Some(u32::MAX), 100)), estimate(Work::new(Some(100), 100)));
    }

    #[test]
    fn work_of_others_counts_and_drains_as_time_passes() {
        let (load, now) = (load(), Instant::now());
        let ours = load.start(30_000);
        let report = Report { cost: None, busy: Busy { queue_ms: 100.0, ms_per_unit: 0.0 } };
        load.start(1).finish(Work::new(None, 1), &report, now);
        assert_eq!(load.backlog_us(now), 100_000);
        assert_eq!(load.backlog_us(now + Duration::from_millis(60)), 40_000);
        assert_eq!(load.backlog_us(now + Duration::from_secs(9)), 30_000);
        drop(ours);
        assert!(load.is_idle(now + Duration::from_secs(9)));
    }

    #[test]
    fn calls_that_have_left_are_counted_once_they_have_ended() {
        let load = load();
        for sent in [Sent::NotYet, Sent::Yes, Sent::InVain] {
            let mut call = load.start(1);
            call.mark(sent);
            assert_eq!(load.in_flight(), 1);
        }
        assert_eq!((load.in_flight(), load.ended()), (0, (2, 1)));
    }

    #[test]
    fn a_call_that_was_not_computed_teaches_nothing() {
        let (load, service) = (load(), Speed::default());
        for cost in [None, Some(cost(0, 0.0)), Some(cost(5, 0.0))] {
            let report = Report { cost, busy: Busy::default() };
            load.start(1).finish(Work::new(Some(1), 1), &report, Instant::now());
        }
        let estimate_us = load.candidate(Work::new(Some(1), 1), &service, Instant::now()).estimate_us;
        assert_eq!(estimate_us, UNKNOWN_US as u64);
    }

    proptest! {
        #[test]
        fn outstanding_work_returns_to_zero(calls in proptest::collection::vec((1u64..1_000_000, 0u8..3), 0..64)) {
            let load = load();
            let mut open = Vec::new();
            for (estimate_us, end) in calls {
                let outstanding = load.start(estimate_us);
                match end {
                    0 => outstanding.finish(Work::new(None, 1), &Report::default(), Instant::now()),
                    1 => drop(outstanding),
                    _ => open.push(outstanding),
                }
            }
            let expected: u64 = open.iter().map(|call| call.estimate_us).sum();
            prop_assert_eq!(load.outstanding_us(), expected);
            open.clear();
            prop_assert!(load.is_idle(Instant::now()));
        }

        #[test]
        fn the_choice_is_never_worse_than_any_other_by_more_than_the_grain(
            candidates in proptest::collection::vec((0u64..1 << 40, 0u64..1 << 30), 1..32),
            grain_us in 1u64..1 << 20,
        ) {
            let candidates: Vec<_> = candidates.into_iter().map(|(backlog, estimate)| at(backlog, estimate)).collect();
            let chosen = least_work(candidates.iter().map(|c| (*c, *c)), grain_us).unwrap();
            let total = |c: &Candidate| c.backlog_us + c.estimate_us;
            let least = candidates.iter().map(total).min().unwrap();
            prop_assert!(total(&chosen) < least + grain_us);
        }
    }
}
