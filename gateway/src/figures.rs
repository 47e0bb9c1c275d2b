//! Figures of one service's calls, written by every call without a lock.

use std::{
    sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed},
    time::Duration,
};

/// Steps of each doubling: a quantile is read at most 1/16 too high.
const STEPS: usize = 16;
const STEPS_BITS: u32 = STEPS.ilog2();
/// Longer calls, above an hour, count as this long.
const MICROS_BITS: u32 = 32;
const BUCKETS: usize = (MICROS_BITS - STEPS_BITS + 1) as usize * STEPS;
/// Ten seconds that are over, and the one that is not.
const SECONDS: usize = 11;

/// Calls that have ended.
#[derive(Debug, Default)]
pub(crate) struct Figures {
    calls: AtomicU64,
    failures: AtomicU64,
    latency: Latency,
}

/// How long the calls of the last ten seconds took: a ring with a histogram for each second.
#[derive(Debug)]
struct Latency {
    ring: Box<[[AtomicU32; BUCKETS]; SECONDS]>,
    now: AtomicUsize,
}

// === impl Figures ===

impl Figures {
    /// A call has ended.
    pub(crate) fn ended(&self, ok: bool, took: Duration) {
        self.calls.fetch_add(1, Relaxed);
        if !ok {
            self.failures.fetch_add(1, Relaxed);
        }
        self.latency.add(took);
    }

    /// Calls so far, and those that were not OK.
    pub(crate) fn calls(&self) -> (u64, u64) {
        (self.calls.load(Relaxed), self.failures.load(Relaxed))
    }

    /// Times that these shares of the calls of the last ten seconds did not exceed, if there was any.
    pub(crate) fn quantiles<const N: usize>(&self, shares: [f64; N]) -> Option<[Duration; N]> {
        self.latency.quantiles(shares)
    }

    /// A second is over.
    pub(crate) fn second(&self) {
        self.latency.second();
    }
}

// === impl Latency ===

impl Default for Latency {
    fn default() -> Self {
        let second = || std::array::from_fn(|_| AtomicU32::new(0));
        Self { ring: Box::new(std::array::from_fn(|_| second())), now: AtomicUsize::new(0) }
    }
}

impl Latency {
    fn add(&self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        if let Some(second) = self.ring.get(self.now.load(Relaxed)) {
            second[bucket(micros)].fetch_add(1, Relaxed);
        }
    }

    /// Forgets the oldest second. A call that ends at this moment may be counted there: it is lost, or ten seconds old.
    fn second(&self) {
        let next = (self.now.load(Relaxed) + 1) % SECONDS;
        self.ring[next].iter().for_each(|count| count.store(0, Relaxed));
        self.now.store(next, Relaxed);
    }

    fn quantiles<const N: usize>(&self, shares: [f64; N]) -> Option<[Duration; N]> {
        let mut sums = [0u64; BUCKETS];
        for second in self.ring.iter() {
            sums.iter_mut().zip(second).for_each(|(sum, count)| *sum += u64::from(count.load(Relaxed)));
        }
        let all: u64 = sums.iter().sum();
        (all > 0).then(|| shares.map(|share| quantile(&sums, (share * all as f64).ceil() as u64)))
    }
}

/// The bucket of a time: exact up to 15, then as many buckets for each doubling.
fn bucket(micros: u64) -> usize {
    let micros = micros.min((1 << MICROS_BITS) - 1);
    if micros < STEPS as u64 {
        return micros as usize;
    }
    let doubling = micros.ilog2() - STEPS_BITS;
    (doubling as usize + 1) * STEPS + (micros >> doubling) as usize % STEPS
}

/// The longest time of a bucket.
fn longest(bucket: usize) -> Duration {
    let (row, step) = (bucket / STEPS, (bucket % STEPS) as u64);
    Duration::from_micros(match row {
        0 => step,
        _ => ((STEPS as u64 + step + 1) << (row - 1)) - 1,
    })
}

/// The time within which the first `rank` calls ended.
fn quantile(sums: &[u64; BUCKETS], rank: u64) -> Duration {
    let mut seen = 0;
    let found = sums.iter().position(|count| {
        seen += count;
        seen >= rank.max(1)
    });
    longest(found.unwrap_or(BUCKETS - 1))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn without_calls_there_are_no_quantiles() {
        assert_eq!(Figures::default().quantiles([0.5, 0.99]), None);
    }

    #[test]
    fn quantiles_are_those_of_the_calls() {
        let figures = Figures::default();
        for millis in 1..=100 {
            figures.ended(millis % 10 != 0, Duration::from_millis(millis));
        }
        assert_eq!(figures.calls(), (100, 10));
        for (found, millis) in figures.quantiles([0.5, 0.99]).unwrap().into_iter().zip([50, 99]) {
            let exact = Duration::from_millis(millis);
            assert!(found >= exact && found < exact * 17 / 16, "{found:?} is not {exact:?}");
        }
    }

    #[test]
    fn a_call_counts_for_ten_seconds() {
        let figures = Figures::default();
        figures.ended(true, Duration::from_millis(5));
        for _ in 0..10 {
            figures.second();
            assert!(figures.quantiles([0.5]).is_some());
        }
        figures.second();
        assert_eq!(figures.quantiles([0.5]), None);
        assert_eq!(figures.calls(), (1, 0));
    }

    proptest! {
        #[test]
        fn a_bucket_holds_what_is_at_most_its_longest_and_not_much_shorter(micros in 0u64..1 << MICROS_BITS) {
            let bucket = bucket(micros);
            let longest = longest(bucket).as_micros() as u64;
            prop_assert!(bucket < BUCKETS && micros <= longest && longest - micros <= micros / 16);
        }

        #[test]
        fn longer_calls_are_in_later_buckets(a: u64, b: u64) {
            prop_assert!(bucket(a.min(b)) <= bucket(a.max(b)));
            prop_assert!(bucket(a) < BUCKETS);
        }
    }
}
