//! Callers in a closed loop: each sends its next text when its last one was answered.

use std::{sync::Arc, time::Duration};

use anyhow::bail;
use engine::{Call, Lane, Model as _, Pool, TextInput, TextModel};
use tokio::{
    runtime::{Builder, Runtime},
    task::JoinSet,
    time::Instant,
};

use super::own;

const CALL: Call = Call { lane: Lane::Interactive, deadline: None };

/// Workers, and callers who keep them busy.
pub(crate) struct Callers {
    runtime: Runtime,
    shared: Arc<Shared>,
    count: usize,
}

struct Shared {
    pool: Pool<TextModel>,
    model: Arc<TextModel>,
    texts: Vec<TextInput>,
}

/// What was answered in the time that counts.
#[derive(Clone, Debug, Default)]
pub(crate) struct Answered {
    pub(crate) texts: u32,
    pub(crate) tokens: u32,
    /// How long each text took, in milliseconds, in no order.
    pub(crate) latencies: Vec<f64>,
    /// The time.
    pub(crate) time: Duration,
}

impl Callers {
    /// So many, for a model on so many workers.
    pub(crate) fn new(
        model: &Arc<TextModel>,
        texts: Vec<TextInput>,
        workers: u16,
        callers: usize,
    ) -> anyhow::Result<Self> {
        if texts.is_empty() {
            bail!("there are no texts");
        }
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let shared = Shared { pool: own::pool(workers)?, model: Arc::clone(model), texts };
        Ok(Self { runtime, shared: Arc::new(shared), count: callers })
    }

    /// Lets them call. What is answered in the beginning fills queues and warms caches, and counts no more than what is
    /// answered after the end.
    pub(crate) fn call(&self, warmup: Duration, time: Duration) -> anyhow::Result<Answered> {
        self.runtime.block_on(async {
            let start = Instant::now() + warmup;
            let mut callers = JoinSet::new();
            for caller in 0..self.count {
                // Everybody begins somewhere else, or all would send the long texts together.
                let first = caller * self.shared.texts.len() / self.count;
                callers.spawn(call(Arc::clone(&self.shared), first, (start, start + time)));
            }
            let mut all = Answered { time, ..Answered::default() };
            while let Some(answered) = callers.join_next().await {
                let answered = answered??;
                all.texts += answered.texts;
                all.tokens += answered.tokens;
                all.latencies.extend(answered.latencies);
            }
            Ok(all)
        })
    }
}

/// One text after the other, from `first` on, until the end.
async fn call(shared: Arc<Shared>, first: usize, (start, end): (Instant, Instant)) -> anyhow::Result<Answered> {
    let mut answered = Answered::default();
    for text in shared.texts.iter().cycle().skip(first) {
        let sent = Instant::now();
        let answer = shared.pool.run(&shared.model, vec![text.clone()], CALL).await?;
        if let Some(Err(error)) = answer.results.into_iter().next() {
            bail!("a text could not be computed: {error}");
        }
        let now = Instant::now();
        if now >= end {
            break;
        }
        if now >= start {
            answered.texts += 1;
            answered.tokens += shared.model.units(text);
            answered.latencies.push((now - sent).as_secs_f64() * 1e3);
        }
    }
    Ok(answered)
}

impl Answered {
    pub(crate) fn texts_per_second(&self) -> f64 {
        f64::from(self.texts) / self.time.as_secs_f64()
    }

    pub(crate) fn tokens_per_second(&self) -> f64 {
        f64::from(self.tokens) / self.time.as_secs_f64()
    }

    /// The time within which this share of the texts was answered, in milliseconds; nothing if none was.
    pub(crate) fn latency(&self, share: f64) -> Option<f64> {
        let mut sorted = self.latencies.clone();
        sorted.sort_by(f64::total_cmp);
        #[expect(clippy::cast_precision_loss, reason = "a few thousand")]
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and that")]
        let place = (share * sorted.len() as f64).ceil() as usize;
        sorted.get(place.saturating_sub(1)).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_a_time_that_somebody_waited() {
        let latencies: Vec<f64> = (1..=200).rev().map(f64::from).collect();
        let answered = Answered { texts: 200, tokens: 800, latencies, time: Duration::from_secs(2) };
        assert_eq!([0.5, 0.99, 1.0].map(|share| answered.latency(share)), [Some(100.0), Some(198.0), Some(200.0)]);
        assert_eq!((answered.texts_per_second(), answered.tokens_per_second()), (100.0, 400.0));
        assert_eq!(Answered::default().latency(0.5), None);
    }
}
