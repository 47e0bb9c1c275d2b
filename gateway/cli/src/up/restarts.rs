//! How often, and how soon, a process that died is started again.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// Most restarts within [`WINDOW`]; a process that dies more often has a reason that another start does not mend.
pub(crate) const RESTARTS_MAX: usize = 5;
/// How far back restarts count.
pub(crate) const WINDOW: Duration = Duration::from_secs(60);
/// Pause before the first restart within the window; each further one takes twice as long.
const PAUSE_MIN: Duration = Duration::from_millis(100);

/// The restarts that one process has had.
#[derive(Debug, Default)]
pub(crate) struct Restarts(VecDeque<Instant>);

impl Restarts {
    /// The pause before the process is started again, or nothing if it has had its share.
    pub(crate) fn next(&mut self, now: Instant) -> Option<Duration> {
        while self.0.front().is_some_and(|first| now.duration_since(*first) >= WINDOW) {
            self.0.pop_front();
        }
        if self.0.len() >= RESTARTS_MAX {
            return None;
        }
        let pause = PAUSE_MIN * (1 << self.0.len());
        self.0.push_back(now);
        Some(pause)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_and_end() {
        let (mut restarts, now) = (Restarts::default(), Instant::now());
        let pauses: Vec<_> = (0..6).map(|_| restarts.next(now).map(|pause| pause.as_millis())).collect();
        assert_eq!(pauses, [Some(100), Some(200), Some(400), Some(800), Some(1600), None]);
    }

    #[test]
    fn old_restarts_are_forgiven() {
        let (mut restarts, now) = (Restarts::default(), Instant::now());
        for _ in 0..RESTARTS_MAX {
            restarts.next(now);
        }
        assert_eq!(restarts.next(now + WINDOW - Duration::from_millis(1)), None);
        assert_eq!(restarts.next(now + WINDOW), Some(PAUSE_MIN));
    }
}
