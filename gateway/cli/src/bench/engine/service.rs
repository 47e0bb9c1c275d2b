//! What a service could answer at best: the engine alone under the calls that `tamis bench load --closed 64` sends.
//!
//! The difference between the two is what gateway, wire and service cost.

use std::{sync::Arc, time::Duration};

use engine::{Content, Precision, Role, TextInput, TextModel, Truncation, Work};
use serde_json::Value;

use super::{
    callers::{Answered, Callers},
    rounds::{Pace, Peak, median, take_turns},
};

/// Those of the bars that the engine is built for: more than any two workers can serve at once.
pub(crate) const CALLERS: usize = 64;
/// Threads that compute.
pub(crate) const WORKERS: u16 = 2;
/// Time of each turn, and what comes before it.
const TURN: Duration = Duration::from_secs(3);
const WARMUP: Duration = Duration::from_secs(1);

/// What callers see of the engine, in each number format: the medians of some rounds.
#[derive(Clone, Debug)]
pub(crate) struct Service {
    /// The texts, in words.
    pub(crate) texts: String,
    pub(crate) served: Vec<Served>,
    pub(crate) pace: Pace,
}

/// What callers see in one number format.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Served {
    pub(crate) precision: Precision,
    pub(crate) texts_per_s: f64,
    /// Milliseconds within which half of the texts were answered, and 99 in 100.
    pub(crate) p50: f64,
    pub(crate) p99: f64,
}

/// Measures all formats in turn, in so many rounds. Texts are tokenized too: that is the engine's part of the work.
pub(crate) fn measure(
    models: &[(Precision, Arc<TextModel>)],
    (source, texts): (String, &[String]),
    rounds: usize,
    gauge: &dyn Fn() -> Peak,
) -> anyhow::Result<Service> {
    let input = |text: &String| TextInput {
        content: Content::Text(text.clone(), Role::Symmetric),
        work: Work::Compute(Truncation::End),
    };
    let inputs: Vec<_> = texts.iter().map(input).collect();
    let callers = models.iter().map(|(_, model)| Callers::new(model, inputs.clone(), WORKERS, CALLERS));
    let callers = callers.collect::<anyhow::Result<Vec<_>>>()?;
    let taken = take_turns(models.len(), rounds, gauge, |place| callers[place].call(WARMUP, TURN).map(see))?;
    let served = models.iter().zip(&taken.turns).map(|((precision, _), turns)| {
        let of = |number: fn(&Seen) -> f64| median(turns.iter().map(number)).unwrap_or(f64::NAN);
        Served {
            precision: *precision,
            texts_per_s: of(|seen| seen.texts_per_s),
            p50: of(|seen| seen.p50),
            p99: of(|seen| seen.p99),
        }
    });
    Ok(Service { texts: source, served: served.collect(), pace: taken.pace })
}

/// One turn, as callers see it.
#[derive(Clone, Copy, Debug)]
struct Seen {
    texts_per_s: f64,
    p50: f64,
    p99: f64,
}

fn see(answered: Answered) -> Seen {
    let latency = |share| answered.latency(share).unwrap_or(f64::NAN);
    Seen { texts_per_s: answered.texts_per_second(), p50: latency(0.5), p99: latency(0.99) }
}

impl Service {
    pub(crate) fn json(&self) -> Value {
        let mut json = self.pace.json();
        json["texts"] = self.texts.as_str().into();
        json["callers"] = CALLERS.into();
        json["workers"] = WORKERS.into();
        json["engines"] = self.served.iter().map(Served::json).collect();
        json
    }
}

impl Served {
    fn json(&self) -> Value {
        serde_json::json!({
            "precision": self.precision.as_str(),
            "texts_per_s": self.texts_per_s,
            "p50_ms": self.p50,
            "p99_ms": self.p99,
        })
    }
}
