//! Sends calls: at the times of a schedule, or as soon as callers are free.
//!
//! Open loop: a call is due when the schedule says so, and its latency counts from then on, not from when it could be
//! sent. A generator that waits for a slow reply before it sends the next call asks least when the server is slowest, and
//! measures the few calls that it did send: "coordinated omission" (Gil Tene, "How NOT to Measure Latency", 2013).

use std::time::Duration;

use tokio::{sync::mpsc::Receiver, task::JoinSet, time::Instant};

use super::{
    schedule::Schedule,
    tally::{Answer, Call, Tally},
};

/// How an open loop is run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Open {
    pub(crate) schedule: Schedule,
    /// When the schedule begins.
    pub(crate) start: Instant,
    /// Calls that may be under way; an arrival beyond them is dropped and counted.
    pub(crate) in_flight_max: usize,
}

impl Open {
    /// Sends a call for each arrival, and waits for the last of them, or until `stop`.
    pub(crate) async fn run<F: Future<Output = Answer> + Send + 'static>(
        self,
        mut arrivals: Receiver<u64>,
        mut call: impl FnMut(u64) -> F,
        stop: impl Future<Output = ()>,
    ) -> Tally {
        let mut tally = Tally::new(self.schedule);
        let mut calls = JoinSet::new();
        let mut more = true;
        tokio::pin!(stop);
        while more || !calls.is_empty() {
            tokio::select! {
                biased;
                () = &mut stop => {
                    tally.interrupt(self.start.elapsed());
                    break;
                }
                arrival = arrivals.recv(), if more => match arrival {
                    // Calls that ended free their places first.
                    Some(number) => {
                        while let Some(ended) = calls.try_join_next() {
                            tally.note(ended.ok());
                        }
                        let due = self.schedule.due(number);
                        if calls.len() >= self.in_flight_max {
                            tally.drop_arrival(due);
                        } else {
                            tally.send(due);
                            calls.spawn(timed(self.start, due, call(number)));
                        }
                    }
                    None => more = false,
                },
                Some(ended) = calls.join_next() => tally.note(ended.ok()),
            }
        }
        tally.finish(self.start.elapsed());
        tally
    }
}

/// Sends a call whenever one of so many callers is free, for as long as the schedule lasts, and waits for the last ones, or
/// until `stop`.
pub(crate) async fn closed<F: Future<Output = Answer> + Send + 'static>(
    schedule: Schedule,
    callers: usize,
    mut call: impl FnMut(u64) -> F,
    stop: impl Future<Output = ()>,
) -> Tally {
    let start = Instant::now();
    let mut tally = Tally::new(schedule);
    let mut calls = JoinSet::new();
    let mut numbers = 0..;
    let mut next = |tally: &mut Tally, calls: &mut JoinSet<Call>| {
        let now = start.elapsed();
        if now < schedule.end()
            && let Some(number) = numbers.next()
        {
            tally.send(now);
            calls.spawn(timed(start, now, call(number)));
        }
    };
    for _ in 0..callers {
        next(&mut tally, &mut calls);
    }
    tokio::pin!(stop);
    loop {
        tokio::select! {
            biased;
            () = &mut stop => {
                tally.interrupt(start.elapsed());
                break;
            }
            ended = calls.join_next() => match ended {
                Some(ended) => {
                    tally.note(ended.ok());
                    next(&mut tally, &mut calls);
                }
                None => break,
            },
        }
    }
    tally.finish(start.elapsed());
    tally
}

/// Makes a call that was due at a time, and notes its times, from `start` on. The time is the one by which the call was
/// counted when it was sent: with another, a call at the end of the warm-up would be sent in it and answered after it.
async fn timed(start: Instant, due: Duration, call: impl Future<Output = Answer>) -> Call {
    let sent = start.elapsed();
    let answer = call.await;
    Call { due, sent, ended: start.elapsed(), answer }
}

#[cfg(test)]
mod tests {
    use std::{
        future::pending,
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering},
        },
    };

    use tokio::{
        sync::mpsc::channel,
        time::{sleep, sleep_until},
    };

    use super::*;

    const OK: Answer = Answer::Ok { items: 1, errors: Vec::new() };

    fn schedule(rate: f64, warmup_ms: u64, duration_ms: u64) -> Schedule {
        let [warmup, duration] = [warmup_ms, duration_ms].map(Duration::from_millis);
        Schedule { rate, warmup, duration }
    }

    /// An open loop on paused time, and the arrivals that belong to it.
    fn open(schedule: Schedule, in_flight_max: usize) -> (Open, Receiver<u64>) {
        let (sender, receiver) = channel(1);
        let start = Instant::now();
        tokio::spawn(async move {
            for number in 0..schedule.arrivals() {
                sleep_until(start + schedule.due(number)).await;
                if sender.send(number).await.is_err() {
                    return;
                }
            }
        });
        (Open { schedule, start, in_flight_max }, receiver)
    }

    #[tokio::test(start_paused = true)]
    async fn a_stalled_server_does_not_delay_the_calls_after_it() {
        let (open, arrivals) = open(schedule(100.0, 0, 1000), 1000);
        let start = open.start;
        // From 200 ms on nothing is answered until 700 ms.
        let stalled = move |_| async move {
            let now = start.elapsed();
            if (200..700).contains(&now.as_millis()) {
                sleep_until(start + Duration::from_millis(700)).await;
            } else {
                sleep(Duration::from_millis(1)).await;
            }
            OK
        };
        let tally = open.run(arrivals, stalled, pending()).await;
        assert_eq!((tally.sent, tally.ok, tally.dropped), (100, 100, 0));
        // The 50 calls of the stall waited 500 ms, 490 ms, ... 10 ms: a closed loop would have seen one of them.
        assert!((495_000..=505_000).contains(&tally.latency.max()), "{}", tally.latency.max());
        let waited = tally.latency.count_between(9_000, u64::MAX);
        assert_eq!(waited, 50);
        // All were sent when they were due, but for the millisecond of a timer.
        assert!(tally.lag.max() <= 2_000, "{}", tally.lag.max());
    }

    #[tokio::test(start_paused = true)]
    async fn a_closed_loop_omits_what_an_open_one_shows() {
        let start = Instant::now();
        let stalled = move |_| async move {
            let now = start.elapsed();
            let until = if (200..700).contains(&now.as_millis()) { Duration::from_millis(700) } else { now };
            sleep_until(start + until.max(now + Duration::from_millis(10))).await;
            OK
        };
        let tally = closed(schedule(1.0, 0, 1000), 1, stalled, pending()).await;
        assert_eq!(tally.latency.count_between(100_000, u64::MAX), 1);
        assert_eq!(tally.sent, tally.ok);
    }

    #[tokio::test(start_paused = true)]
    async fn latency_counts_from_the_intended_time_when_the_sender_is_late() {
        let schedule = schedule(10.0, 0, 200);
        let (sender, arrivals) = channel(8);
        let open = Open { schedule, start: Instant::now(), in_flight_max: 8 };
        tokio::spawn(async move {
            sleep(Duration::from_millis(300)).await;
            for number in 0..2 {
                sender.send(number).await.unwrap();
            }
        });
        let tally = open.run(arrivals, |_| async { OK }, pending()).await;
        assert_eq!(tally.latency.count_between(299_000, 302_000), 1);
        assert_eq!(tally.latency.count_between(199_000, 202_000), 1);
        assert_eq!(tally.lag.max() / 1000, 300);
    }

    #[tokio::test(start_paused = true)]
    async fn arrivals_beyond_the_bound_are_dropped_and_counted() {
        let (open, arrivals) = open(schedule(100.0, 0, 1000), 3);
        let most = Arc::new(AtomicUsize::new(0));
        let now = Arc::new(AtomicUsize::new(0));
        let call = |_| {
            let (most, now) = (Arc::clone(&most), Arc::clone(&now));
            async move {
                most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                sleep(Duration::from_secs(5)).await;
                now.fetch_sub(1, Ordering::SeqCst);
                OK
            }
        };
        let tally = open.run(arrivals, call, pending()).await;
        assert_eq!((tally.sent, tally.ok, tally.dropped), (3, 3, 97));
        assert_eq!(most.load(Ordering::SeqCst), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn the_warm_up_is_sent_and_not_counted() {
        let (open, arrivals) = open(schedule(100.0, 500, 1000), 100);
        let tally = open.run(arrivals, |_| async { OK }, pending()).await;
        assert_eq!((tally.sent, tally.ok, tally.warmup), (100, 100, 50));
    }

    #[tokio::test(start_paused = true)]
    async fn an_interrupted_run_keeps_what_there_is() {
        let (open, arrivals) = open(schedule(100.0, 0, 10_000), 1000);
        let call = |number| async move {
            if number % 2 == 0 {
                pending::<()>().await;
            }
            OK
        };
        let tally = open.run(arrivals, call, sleep(Duration::from_millis(995))).await;
        assert_eq!((tally.sent, tally.ok, tally.unfinished()), (100, 50, 50));
        assert!(tally.interrupted_at.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_closed_loop_has_as_many_calls_under_way_as_callers() {
        let call = |_| async {
            sleep(Duration::from_millis(100)).await;
            OK
        };
        let tally = closed(schedule(1.0, 200, 1000), 4, call, pending()).await;
        assert_eq!((tally.warmup, tally.sent, tally.ok), (8, 40, 40));
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_begins_late_counts_where_it_was_sent() {
        // The first call is sent in the warm-up and begins after it: the time between is spent in the making of it.
        let start = Instant::now();
        let call = timed(start, Duration::from_millis(199), async { OK });
        tokio::time::advance(Duration::from_millis(300)).await;
        let mut tally = Tally::new(schedule(1.0, 200, 1000));
        tally.send(Duration::from_millis(199));
        tally.note(Some(call.await));
        assert_eq!((tally.warmup, tally.sent, tally.ok, tally.unfinished()), (1, 0, 0, 0));
    }
}
