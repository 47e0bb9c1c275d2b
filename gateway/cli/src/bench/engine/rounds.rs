//! Rounds: every contestant has its turn in each, and the processor's own speed is measured between them.
//!
//! A virtual machine's processor is not always all there. What it can do at best is known, and measured in a few
//! milliseconds; a round at whose beginning or end it could do less says nothing of the contestants, and is repeated.

use std::time::Duration;

use engine::Precision;

use super::{Engine, work::Task};

/// Share by which the processor's speed may differ.
const MOVED_MAX: f64 = 0.05;
/// As many times the rounds that were asked for are tried.
const TRIES: usize = 3;

/// Somebody who computes.
pub(crate) trait Contestant {
    /// Who it is.
    fn engine(&self) -> Engine;

    /// Takes what it is to compute.
    fn take(&mut self, task: &Task) -> anyhow::Result<()>;

    /// Vectors or logits of all that it was given.
    fn answers(&mut self) -> anyhow::Result<Vec<Vec<f32>>>;

    /// Computes all that it was given, again and again for about so long, once at least, warmed up.
    fn turn(&mut self, time: Duration) -> anyhow::Result<Turn>;
}

/// How a turn went.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Turn {
    /// Milliseconds of each time; at least one.
    pub(crate) times: Vec<f64>,
    /// Processors that it kept busy.
    pub(crate) cores: f64,
}

/// Operations a second that one core does at best, where that can be measured.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Peak {
    pub(crate) f32: Option<f64>,
    pub(crate) bf16: Option<f64>,
    pub(crate) int8: Option<f64>,
}

/// How a row is measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    /// Rounds that count.
    pub(crate) rounds: usize,
    /// Time of each turn.
    pub(crate) turn: Duration,
}

/// A row as it was measured.
#[derive(Clone, Debug)]
pub(crate) struct Measured {
    /// One for each contestant, in their order.
    pub(crate) scores: Vec<Score>,
    /// The median of the rounds that count.
    pub(crate) peak: Peak,
    /// The share by which the processor's speed differed in the rounds that count.
    pub(crate) moved: f64,
    /// Rounds that count.
    pub(crate) rounds: usize,
    /// Rounds that were repeated.
    pub(crate) repeated: usize,
    /// The processor was never steady for as many rounds as were asked for: the numbers are not to be trusted.
    pub(crate) discarded: bool,
}

/// The times of a contestant in a row: each is the median of one turn, in milliseconds.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Score {
    pub(crate) engine: Engine,
    pub(crate) median: f64,
    pub(crate) least: f64,
    pub(crate) most: f64,
    pub(crate) cores: f64,
}

/// One turn of each contestant, and the processor's speed before and after.
#[derive(Clone, Debug)]
struct Round {
    turns: Vec<Turn>,
    before: Peak,
    after: Peak,
}

/// Measures a row.
pub(crate) fn measure(
    contestants: &mut [Box<dyn Contestant>],
    task: &Task,
    gauge: &dyn Fn() -> Peak,
    plan: Plan,
) -> anyhow::Result<Measured> {
    for contestant in contestants.iter_mut() {
        contestant.take(task)?;
        // What is done once for each shape, such as claiming memory, is no part of any time.
        contestant.turn(Duration::ZERO)?;
    }
    let mut rounds: Vec<Round> = Vec::new();
    let mut before = gauge();
    while steady(&rounds).len() < plan.rounds && rounds.len() < plan.rounds * TRIES {
        let turns = play(contestants, rounds.len(), plan.turn)?;
        let after = gauge();
        rounds.push(Round { turns, before, after });
        before = after;
    }
    let engines: Vec<_> = contestants.iter().map(|contestant| contestant.engine()).collect();
    Ok(judge(&engines, &rounds, plan.rounds))
}

/// The median; of nothing it is nothing.
pub(crate) fn median(values: impl IntoIterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        odd if odd % 2 == 1 => Some(values[middle]),
        _ => Some(f64::midpoint(values[middle - 1], values[middle])),
    }
}

/// One turn of each, in the order of the contestants. Who begins moves on by one with every round, so that what is left
/// of the round before is not always the same one's burden.
fn play(contestants: &mut [Box<dyn Contestant>], number: usize, time: Duration) -> anyhow::Result<Vec<Turn>> {
    let count = contestants.len();
    let mut turns = vec![None; count];
    for position in 0..count {
        let turn = (position + number) % count;
        turns[turn] = Some(contestants[turn].turn(time)?);
    }
    Ok(turns.into_iter().flatten().collect())
}

/// The rounds in which the processor was as fast as in the best of them.
fn steady(rounds: &[Round]) -> Vec<&Round> {
    let speeds = rounds.iter().flat_map(|round| [round.before.f32, round.after.f32]).flatten();
    let best = speeds.fold(0.0, f64::max);
    let fast = |peak: Peak| peak.f32.is_none_or(|speed| speed >= best * (1.0 - MOVED_MAX));
    rounds.iter().filter(|round| fast(round.before) && fast(round.after)).collect()
}

fn judge(engines: &[Engine], rounds: &[Round], wanted: usize) -> Measured {
    let steady = steady(rounds);
    let discarded = steady.len() < wanted;
    // Numbers that are not to be trusted are shown with that word: all of them, lest a few look better than they are.
    let counted = if discarded { rounds.iter().collect() } else { steady.clone() };
    let score = |(index, engine): (usize, &Engine)| {
        let medians = || counted.iter().filter_map(|round| median(round.turns[index].times.iter().copied()));
        Score {
            engine: *engine,
            median: median(medians()).unwrap_or(f64::NAN),
            least: medians().fold(f64::INFINITY, f64::min),
            most: medians().fold(0.0, f64::max),
            cores: median(counted.iter().map(|round| round.turns[index].cores)).unwrap_or(f64::NAN),
        }
    };
    let peaks = || counted.iter().flat_map(|round| [round.before, round.after]);
    let of = |precision: Precision| median(peaks().filter_map(|peak| peak.of(precision)));
    Measured {
        scores: engines.iter().enumerate().map(score).collect(),
        peak: Peak { f32: of(Precision::F32), bf16: of(Precision::Bf16), int8: of(Precision::Int8) },
        moved: moved(peaks().filter_map(|peak| peak.f32)),
        rounds: counted.len(),
        repeated: rounds.len() - counted.len(),
        discarded,
    }
}

/// How much the least is below the greatest.
fn moved(speeds: impl Iterator<Item = f64> + Clone) -> f64 {
    let (least, most) = (speeds.clone().fold(f64::INFINITY, f64::min), speeds.fold(0.0, f64::max));
    if most > 0.0 { 1.0 - least / most } else { 0.0 }
}

// === impl Peak ===

impl Peak {
    /// That of a number format.
    pub(crate) fn of(self, precision: Precision) -> Option<f64> {
        match precision {
            Precision::F32 => self.f32,
            Precision::Bf16 => self.bf16,
            Precision::Int8 => self.int8,
        }
    }
}

// === impl Measured ===

impl Measured {
    /// The times of one contestant.
    pub(crate) fn score(&self, engine: Engine) -> Option<&Score> {
        self.scores.iter().find(|score| score.engine == engine)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

    use super::*;
    use crate::bench::engine::Library;

    const TAMIS: Engine = Engine { library: Library::Tamis, precision: Precision::F32 };
    const RIVAL: Engine = Engine { library: Library::Openvino, precision: Precision::F32 };

    fn peak(speed: f64) -> Peak {
        Peak { f32: Some(speed), bf16: Some(2.0 * speed), int8: None }
    }

    fn round(time: f64, before: f64, after: f64) -> Round {
        let turns = vec![Turn { times: vec![time], cores: 1.0 }];
        Round { turns, before: peak(before), after: peak(after) }
    }

    /// Says in a diary when it was its turn, and takes as long as it was told.
    struct Player<'a> {
        engine: Engine,
        time: f64,
        diary: &'a RefCell<Vec<Library>>,
    }

    impl Contestant for Player<'_> {
        fn engine(&self) -> Engine {
            self.engine
        }

        fn take(&mut self, _: &Task) -> anyhow::Result<()> {
            Ok(())
        }

        fn answers(&mut self) -> anyhow::Result<Vec<Vec<f32>>> {
            Ok(Vec::new())
        }

        fn turn(&mut self, time: Duration) -> anyhow::Result<Turn> {
            if !time.is_zero() {
                self.diary.borrow_mut().push(self.engine.library);
            }
            Ok(Turn { times: vec![self.time, self.time, 99.0], cores: 1.0 })
        }
    }

    fn contest(diary: &'static RefCell<Vec<Library>>, gauge: &dyn Fn() -> Peak) -> Measured {
        let player = |engine, time| -> Box<dyn Contestant> { Box::new(Player { engine, time, diary }) };
        let mut both = [player(TAMIS, 2.0), player(RIVAL, 3.0)];
        let plan = Plan { rounds: 3, turn: Duration::from_millis(1) };
        measure(&mut both, &Task::Texts(Vec::new()), gauge, plan).unwrap()
    }

    fn diary() -> &'static RefCell<Vec<Library>> {
        Box::leak(Box::default())
    }

    #[test]
    fn all_take_turns_and_nobody_is_always_first() {
        use Library::{Openvino as B, Tamis as A};
        let diary = diary();
        let measured = contest(diary, &|| peak(100.0));
        assert_eq!(*diary.borrow(), [A, B, B, A, A, B]);
        assert_eq!((measured.rounds, measured.repeated, measured.discarded), (3, 0, false));
        assert_eq!(measured.score(RIVAL).map(|score| score.median), Some(3.0));
        assert_eq!((measured.peak.bf16, measured.peak.int8), (Some(200.0), None));
    }

    #[test]
    fn a_round_in_which_the_processor_was_slow_is_repeated() {
        let speeds = Cell::new(0);
        let gauge = || {
            speeds.set(speeds.get() + 1);
            peak(if speeds.get() == 2 { 94.0 } else { 100.0 })
        };
        // The slow moment ends one round and begins another.
        let measured = contest(diary(), &gauge);
        assert_eq!((measured.rounds, measured.repeated, measured.discarded), (3, 2, false));
        assert!(measured.moved < 1e-9);
    }

    #[test]
    fn a_processor_that_is_never_steady_spoils_the_row_and_ends_it() {
        let speeds = Cell::new(100.0);
        let gauge = || {
            speeds.set(if speeds.get() > 90.0 { 80.0 } else { 100.0 });
            peak(speeds.get())
        };
        let measured = contest(diary(), &gauge);
        assert_eq!((measured.rounds, measured.repeated, measured.discarded), (9, 0, true));
        assert!((measured.moved - 0.2).abs() < 1e-9);
    }

    #[test]
    fn where_the_peak_can_not_be_measured_every_round_counts() {
        let measured = contest(diary(), &Peak::default);
        assert_eq!((measured.rounds, measured.discarded, measured.peak), (3, false, Peak::default()));
    }

    #[test]
    fn a_speed_that_rises_later_casts_doubt_on_what_was_before() {
        let rounds = [round(1.0, 90.0, 90.0), round(2.0, 100.0, 100.0), round(4.0, 100.0, 96.0)];
        let measured = judge(&[TAMIS], &rounds, 2);
        assert_eq!((measured.rounds, measured.repeated), (2, 1));
        let score = &measured.scores[0];
        assert_eq!((score.median, score.least, score.most), (3.0, 2.0, 4.0));
    }

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median([3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median([4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median([]), None);
    }
}
