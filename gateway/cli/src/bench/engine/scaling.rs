//! What a second worker brings: single texts from many callers, on one worker and on two.

use std::{sync::Arc, time::Duration};

use engine::{Precision, TextModel};
use serde_json::Value;

use super::{
    callers::Callers,
    own,
    rounds::{Pace, Peak, median, take_turns},
};

/// Time for each number of workers in each round, and what of it does not count.
const TURN: Duration = Duration::from_millis(1000);
const WARMUP: Duration = Duration::from_millis(200);
/// Callers of each worker: while one's answer travels, another's text is computed.
const CALLERS: usize = 2;

/// Tokens a second on one worker and on two.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scaled {
    pub(crate) precision: Precision,
    pub(crate) one: f64,
    pub(crate) two: f64,
    pub(crate) pace: Pace,
}

impl Scaled {
    /// How many times as many two do.
    pub(crate) fn ratio(&self) -> f64 {
        self.two / self.one
    }

    pub(crate) fn json(&self) -> Value {
        let mut json = self.pace.json();
        json["precision"] = self.precision.as_str().into();
        json["tokens_per_s_1_worker"] = self.one.into();
        json["tokens_per_s_2_workers"] = self.two.into();
        json["ratio"] = self.ratio().into();
        json
    }
}

/// Measures both in turn, in so many rounds.
pub(crate) fn measure(
    precision: Precision,
    model: &Arc<TextModel>,
    texts: &[Vec<u32>],
    rounds: usize,
    gauge: &dyn Fn() -> Peak,
) -> anyhow::Result<Scaled> {
    let callers = |workers: u16| Callers::new(model, own::inputs(texts), workers, usize::from(workers) * CALLERS);
    let both = [callers(1)?, callers(2)?];
    let taken = take_turns(both.len(), rounds, gauge, |place| {
        both[place].call(WARMUP, TURN).map(|answered| answered.tokens_per_second())
    })?;
    let rate = |place: usize| median(taken.turns[place].iter().copied()).unwrap_or(f64::NAN);
    Ok(Scaled { precision, one: rate(0), two: rate(1), pace: taken.pace })
}
