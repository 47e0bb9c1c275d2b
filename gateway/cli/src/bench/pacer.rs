//! Says when arrivals are due, on a thread of its own.
//!
//! Not a tokio timer: that ticks in milliseconds, which is as long as a whole call may take.

use std::{
    sync::mpsc::{self, RecvTimeoutError},
    thread::JoinHandle,
    time::Instant,
};

use tokio::sync::mpsc::{Receiver, Sender, channel};

use super::schedule::Schedule;

/// Arrivals that may be due and not taken yet; beyond, the thread waits, and the schedule lag shows it.
const BACKLOG_MAX: usize = 1024;

/// The thread. It ends when this is dropped.
pub(crate) struct Pacer {
    stop: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Pacer {
    /// Begins; the numbers of the arrivals come when they are due, counted from `start`.
    pub(crate) fn start(schedule: Schedule, start: Instant) -> std::io::Result<(Self, Receiver<u64>)> {
        let (sender, receiver) = channel(BACKLOG_MAX);
        let (stop, stopped) = mpsc::channel();
        let run = move || pace(&schedule, start, &sender, &stopped);
        let thread = std::thread::Builder::new().name("pacer".to_owned()).spawn(run)?;
        Ok((Self { stop: Some(stop), thread: Some(thread) }, receiver))
    }
}

impl Drop for Pacer {
    fn drop(&mut self) {
        self.stop = None;
        // It has nothing to say: were it to panic, the schedule would end early, which is seen in the counts.
        drop(self.thread.take().map(JoinHandle::join));
    }
}

fn pace(schedule: &Schedule, start: Instant, arrivals: &Sender<u64>, stopped: &mpsc::Receiver<()>) {
    for number in 0..schedule.arrivals() {
        let wait = (start + schedule.due(number)).saturating_duration_since(Instant::now());
        if !wait.is_zero() && stopped.recv_timeout(wait) != Err(RecvTimeoutError::Timeout) {
            return;
        }
        if arrivals.blocking_send(number).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn every_arrival_comes_once_and_never_early() {
        let schedule = Schedule { rate: 2000.0, warmup: Duration::ZERO, duration: Duration::from_millis(20) };
        let start = Instant::now();
        let (_pacer, mut arrivals) = Pacer::start(schedule, start).unwrap();
        for number in 0..40 {
            assert_eq!(arrivals.recv().await, Some(number));
            assert!(start.elapsed() >= schedule.due(number));
        }
        assert_eq!(arrivals.recv().await, None);
    }

    #[test]
    fn it_ends_at_once_when_nobody_wants_it() {
        let schedule = Schedule { rate: 0.001, warmup: Duration::ZERO, duration: Duration::from_secs(5000) };
        let (pacer, arrivals) = Pacer::start(schedule, Instant::now()).unwrap();
        let began = Instant::now();
        // Dropping waits for the thread.
        drop(pacer);
        drop(arrivals);
        assert!(began.elapsed() < Duration::from_secs(60));
    }
}
