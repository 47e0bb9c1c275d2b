//! What a second worker brings: single texts from many callers, on one worker and on two.

use std::{sync::Arc, time::Duration};

use anyhow::bail;
use engine::{Call, Lane, Pool, Precision, TextModel};
use serde_json::{Value, json};
use tokio::{runtime::Runtime, task::JoinSet, time::Instant};

use super::{own, rounds::median};

/// Time for each number of workers in each round.
const TURN: Duration = Duration::from_millis(1000);
/// Callers of each worker: while one's answer travels, another's text is computed.
const CALLERS: u16 = 2;
const CALL: Call = Call { lane: Lane::Interactive, deadline: None };

/// Tokens a second on one worker and on two.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scaled {
    pub(crate) precision: Precision,
    pub(crate) one: f64,
    pub(crate) two: f64,
}

impl Scaled {
    /// How many times as many two do.
    pub(crate) fn ratio(&self) -> f64 {
        self.two / self.one
    }

    pub(crate) fn json(&self) -> Value {
        json!({
            "precision": self.precision.as_str(),
            "tokens_per_s_1_worker": self.one,
            "tokens_per_s_2_workers": self.two,
            "ratio": self.ratio(),
        })
    }
}

/// Measures both in turn, so many times.
pub(crate) fn measure(
    precision: Precision,
    model: &Arc<TextModel>,
    texts: &[Vec<u32>],
    rounds: usize,
) -> anyhow::Result<Scaled> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let texts = Arc::new(texts.to_vec());
    let mut rates = [Vec::new(), Vec::new()];
    for _ in 0..rounds {
        for (workers, rates) in (1..).zip(&mut rates) {
            rates.push(rate(&runtime, workers, model, &texts)?);
        }
    }
    let [one, two] = rates.map(|rates| median(rates).unwrap_or(f64::NAN));
    Ok(Scaled { precision, one, two })
}

/// Tokens a second of so many workers, in texts that were done in time. What each worker had begun is lost, which is
/// the same share of the work of one and of two.
fn rate(runtime: &Runtime, workers: u16, model: &Arc<TextModel>, texts: &Arc<Vec<Vec<u32>>>) -> anyhow::Result<f64> {
    let pool = Arc::new(own::pool(workers)?);
    runtime.block_on(async {
        let (end, mut callers) = (Instant::now() + TURN, JoinSet::new());
        for caller in 0..workers * CALLERS {
            let first = usize::from(caller) * texts.len() / usize::from(workers * CALLERS);
            callers.spawn(call(Arc::clone(&pool), Arc::clone(model), Arc::clone(texts), (first, end)));
        }
        let mut done = 0;
        while let Some(count) = callers.join_next().await {
            done += count??;
        }
        #[expect(clippy::cast_precision_loss, reason = "a few million")]
        Ok(done as f64 / TURN.as_secs_f64())
    })
}

/// One text after the other, from `first` on, until the time is over; their tokens.
async fn call(
    pool: Arc<Pool<TextModel>>,
    model: Arc<TextModel>,
    texts: Arc<Vec<Vec<u32>>>,
    (first, end): (usize, Instant),
) -> anyhow::Result<usize> {
    let mut done = 0;
    for ids in texts.iter().cycle().skip(first) {
        let answer = pool.run(&model, own::inputs(std::slice::from_ref(ids)), CALL).await?;
        if let Some(Err(error)) = answer.results.into_iter().next() {
            bail!("a text could not be computed: {error}");
        }
        if Instant::now() >= end {
            break;
        }
        done += ids.len();
    }
    Ok(done)
}
