//! When calls are to be sent: fixed before the first one goes, whatever the server does.

use std::time::Duration;

/// Arrivals at a fixed rate, first a warm-up, then what is measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Schedule {
    /// Arrivals in a second, above 0.
    pub(crate) rate: f64,
    /// Arrivals of this time are sent and not counted.
    pub(crate) warmup: Duration,
    /// How long is measured after it.
    pub(crate) duration: Duration,
}

impl Schedule {
    /// When an arrival is due, from the beginning of the run. Computed from its number and not from the one before, so
    /// that no error adds up.
    pub(crate) fn due(&self, number: u64) -> Duration {
        #[expect(clippy::cast_precision_loss, reason = "exact up to 2^53 arrivals")]
        let number = number as f64;
        Duration::try_from_secs_f64(number / self.rate).unwrap_or(Duration::MAX)
    }

    /// How many arrivals there are.
    pub(crate) fn arrivals(&self) -> u64 {
        self.before(self.end())
    }

    /// Whether a call that was due then counts.
    pub(crate) fn is_measured(&self, due: Duration) -> bool {
        due >= self.warmup
    }

    /// When the last arrival is past.
    pub(crate) fn end(&self) -> Duration {
        self.warmup.saturating_add(self.duration)
    }

    /// Arrivals due before `time`.
    pub(crate) fn before(&self, time: Duration) -> u64 {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "not negative, saturates")]
        let mut count = (time.as_secs_f64() * self.rate).ceil() as u64;
        // The product may be off by one where the quotient decides.
        while count > 0 && self.due(count - 1) >= time {
            count -= 1;
        }
        while self.due(count) < time {
            count += 1;
        }
        count
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn schedule(rate: f64, warmup_ms: u64, duration_ms: u64) -> Schedule {
        let [warmup, duration] = [warmup_ms, duration_ms].map(Duration::from_millis);
        Schedule { rate, warmup, duration }
    }

    #[test]
    fn arrivals_are_evenly_spaced_from_the_beginning() {
        let schedule = schedule(100.0, 20, 1000);
        assert_eq!(schedule.due(0), Duration::ZERO);
        assert_eq!(schedule.due(3), Duration::from_millis(30));
        assert_eq!(schedule.arrivals(), 102);
        assert!(!schedule.is_measured(schedule.due(1)) && schedule.is_measured(schedule.due(2)));
    }

    #[test]
    fn an_arrival_at_the_very_end_is_none() {
        assert_eq!(schedule(10.0, 0, 100).arrivals(), 1);
        assert_eq!(schedule(10.0, 0, 101).arrivals(), 2);
    }

    proptest! {
        #[test]
        fn arrivals_are_those_due_before_the_end(rate in 0.01f64..20_000.0, warmup in 0u64..3_000, duration in 1u64..5_000) {
            let schedule = schedule(rate, warmup, duration);
            let count = schedule.arrivals();
            prop_assert!(schedule.due(count - 1) < schedule.end());
            prop_assert!(schedule.due(count) >= schedule.end());
        }
    }
}
