//! Rounds: every contestant has its turn in each, and the processor's own speed is measured between them.
//!
//! A virtual machine's processor is not always all there, and somebody else may want it. What it does at best and most of
//! the time is measured in some milliseconds; a round at whose beginning or end it did less than it can says nothing of
//! the contestants, and is repeated.

use std::time::Duration;

use engine::Precision;
use serde_json::{Value, json};

use super::{Engine, work::Task};

/// Share by which what the processor does most of the time may differ between rounds.
const MOVED_MAX: f64 = 0.05;
/// Share by which that may be less than what it does at best. Timers and other housekeeping take a few percent; somebody
/// who competes takes a quarter and more, maybe from the first round to the last.
const TAKEN_MAX: f64 = 0.1;
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

/// Operations a second that each core does, where that can be measured.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Peak {
    /// At best.
    pub(crate) f32: Option<f64>,
    pub(crate) bf16: Option<f64>,
    pub(crate) int8: Option<f64>,
    /// In f32 most of the time: less than at best where somebody else has the cores now and then.
    pub(crate) usual: Option<f64>,
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
    pub(crate) pace: Pace,
}

/// How the processor fared while turns were taken.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Pace {
    /// The median of the rounds that count.
    pub(crate) peak: Peak,
    /// The share by which what the processor does most of the time differed in the rounds that count.
    pub(crate) moved: f64,
    /// Rounds that count.
    pub(crate) rounds: usize,
    /// Rounds that were repeated.
    pub(crate) repeated: usize,
    /// The processor was never steady for as many rounds as were asked for: the numbers are not to be trusted.
    pub(crate) discarded: bool,
}

/// The turns that count of all who took some, in their order, and how the processor fared.
#[derive(Debug)]
pub(crate) struct Taken<T> {
    pub(crate) turns: Vec<Vec<T>>,
    pub(crate) pace: Pace,
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

/// Somebody who can go on no longer.
#[derive(Debug)]
pub(crate) struct Fallen {
    /// The place among the contestants.
    pub(crate) place: usize,
    pub(crate) why: anyhow::Error,
}

/// One turn of each, and the processor's speed before and after.
#[derive(Clone, Debug)]
struct Round<T> {
    turns: Vec<T>,
    before: Peak,
    after: Peak,
}

/// Measures a row.
pub(crate) fn measure(
    contestants: &mut [Box<dyn Contestant>],
    task: &Task,
    gauge: &dyn Fn() -> Peak,
    plan: Plan,
) -> Result<Measured, Fallen> {
    for (place, contestant) in contestants.iter_mut().enumerate() {
        // What is done once for each shape, such as claiming memory, is no part of any time.
        let warmed = contestant.take(task).and_then(|()| contestant.turn(Duration::ZERO));
        warmed.map_err(|why| Fallen { place, why })?;
    }
    let taken = take_turns(contestants.len(), plan.rounds, gauge, |place| {
        contestants[place].turn(plan.turn).map_err(|why| Fallen { place, why })
    })?;
    let scores = contestants.iter().zip(&taken.turns).map(|(contestant, turns)| score(contestant.engine(), turns));
    Ok(Measured { scores: scores.collect(), pace: taken.pace })
}

/// Lets so many take turns until so many rounds were steady, or [`TRIES`] times as many were tried.
pub(crate) fn take_turns<T: Clone, E>(
    count: usize,
    wanted: usize,
    gauge: &dyn Fn() -> Peak,
    mut turn: impl FnMut(usize) -> Result<T, E>,
) -> Result<Taken<T>, E> {
    let mut rounds: Vec<Round<T>> = Vec::new();
    let mut before = gauge();
    while steady(&rounds).len() < wanted && rounds.len() < wanted * TRIES {
        let turns = play(count, rounds.len(), &mut turn)?;
        let after = gauge();
        rounds.push(Round { turns, before, after });
        before = after;
    }
    Ok(judge(count, &rounds, wanted))
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

/// One turn of each, in their order. Who begins moves on by one with every round, so that what is left of the round before
/// is not always the same one's burden.
fn play<T: Clone, E>(count: usize, number: usize, turn: &mut impl FnMut(usize) -> Result<T, E>) -> Result<Vec<T>, E> {
    let mut turns = vec![None; count];
    for position in 0..count {
        let place = (position + number) % count;
        turns[place] = Some(turn(place)?);
    }
    Ok(turns.into_iter().flatten().collect())
}

/// The rounds at whose beginning and end the processor was as fast as in the best of them, and nobody else had it.
fn steady<T>(rounds: &[Round<T>]) -> Vec<&Round<T>> {
    let peaks = || rounds.iter().flat_map(|round| [round.before, round.after]);
    let usual = peaks().filter_map(|peak| peak.usual).fold(0.0, f64::max);
    let best = peaks().filter_map(|peak| peak.f32).fold(0.0, f64::max);
    let wanted = f64::max(usual * (1.0 - MOVED_MAX), best * (1.0 - TAKEN_MAX));
    let fast = |peak: Peak| peak.usual.is_none_or(|speed| speed >= wanted);
    rounds.iter().filter(|round| fast(round.before) && fast(round.after)).collect()
}

fn judge<T: Clone>(count: usize, rounds: &[Round<T>], wanted: usize) -> Taken<T> {
    let steady = steady(rounds);
    let discarded = steady.len() < wanted;
    // Numbers that are not to be trusted are shown with that word: all of them, lest a few look better than they are.
    let counted = if discarded { rounds.iter().collect() } else { steady };
    let peaks = || counted.iter().flat_map(|round| [round.before, round.after]);
    let of = |speed: fn(Peak) -> Option<f64>| median(peaks().filter_map(speed));
    let pace = Pace {
        peak: Peak {
            f32: of(|peak| peak.f32),
            bf16: of(|peak| peak.bf16),
            int8: of(|peak| peak.int8),
            usual: of(|peak| peak.usual),
        },
        moved: moved(peaks().filter_map(|peak| peak.usual)),
        rounds: counted.len(),
        repeated: rounds.len() - counted.len(),
        discarded,
    };
    let turns = |place: usize| counted.iter().map(|round| round.turns[place].clone()).collect();
    Taken { turns: (0..count).map(turns).collect(), pace }
}

/// How much the least is below the greatest.
fn moved(speeds: impl Iterator<Item = f64> + Clone) -> f64 {
    let (least, most) = (speeds.clone().fold(f64::INFINITY, f64::min), speeds.fold(0.0, f64::max));
    if most > 0.0 { 1.0 - least / most } else { 0.0 }
}

fn score(engine: Engine, turns: &[Turn]) -> Score {
    let medians = || turns.iter().filter_map(|turn| median(turn.times.iter().copied()));
    Score {
        engine,
        median: median(medians()).unwrap_or(f64::NAN),
        least: medians().fold(f64::INFINITY, f64::min),
        most: medians().fold(0.0, f64::max),
        cores: median(turns.iter().map(|turn| turn.cores)).unwrap_or(f64::NAN),
    }
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

// === impl Pace ===

impl Pace {
    /// For programs.
    pub(crate) fn json(&self) -> Value {
        let giga = |speed: Option<f64>| speed.map(|speed| speed / 1e9);
        let Peak { f32, bf16, int8, usual } = self.peak;
        json!({
            "peak_gops": { "f32": giga(f32), "bf16": giga(bf16), "int8": giga(int8), "f32_usual": giga(usual) },
            "peak_moved": self.moved,
            "rounds": self.rounds,
            "rounds_repeated": self.repeated,
            "discarded": self.discarded,
        })
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

    use anyhow::bail;

    use super::*;
    use crate::bench::engine::Library;

    const TAMIS: Engine = Engine { library: Library::Tamis, precision: Precision::F32 };
    const RIVAL: Engine = Engine { library: Library::Openvino, precision: Precision::F32 };

    fn peak(speed: f64) -> Peak {
        Peak { f32: Some(speed), bf16: Some(2.0 * speed), int8: None, usual: Some(speed) }
    }

    fn round(time: f64, before: f64, after: f64) -> Round<f64> {
        Round { turns: vec![time], before: peak(before), after: peak(after) }
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
            if self.time <= 0.0 {
                bail!("out of breath");
            }
            if !time.is_zero() {
                self.diary.borrow_mut().push(self.engine.library);
            }
            Ok(Turn { times: vec![self.time, self.time, 99.0], cores: 1.0 })
        }
    }

    fn measure_both(
        times: [f64; 2],
        diary: &'static RefCell<Vec<Library>>,
        gauge: &dyn Fn() -> Peak,
    ) -> Result<Measured, Fallen> {
        let player = |engine, time| -> Box<dyn Contestant> { Box::new(Player { engine, time, diary }) };
        let mut both = [player(TAMIS, times[0]), player(RIVAL, times[1])];
        let plan = Plan { rounds: 3, turn: Duration::from_millis(1) };
        measure(&mut both, &Task::Texts(Vec::new()), gauge, plan)
    }

    fn pace(gauge: &dyn Fn() -> Peak) -> Pace {
        measure_both([2.0, 3.0], diary(), gauge).unwrap().pace
    }

    fn diary() -> &'static RefCell<Vec<Library>> {
        Box::leak(Box::default())
    }

    #[test]
    fn all_take_turns_and_nobody_is_always_first() {
        use Library::{Openvino as B, Tamis as A};
        let diary = diary();
        let measured = measure_both([2.0, 3.0], diary, &|| peak(100.0)).unwrap();
        assert_eq!(*diary.borrow(), [A, B, B, A, A, B]);
        let pace = measured.pace;
        assert_eq!((pace.rounds, pace.repeated, pace.discarded), (3, 0, false));
        assert_eq!(measured.score(RIVAL).map(|score| score.median), Some(3.0));
        assert_eq!((pace.peak.bf16, pace.peak.int8), (Some(200.0), None));
    }

    #[test]
    fn who_can_go_on_no_longer_is_named() {
        let fallen = measure_both([2.0, 0.0], diary(), &|| peak(100.0)).unwrap_err();
        assert_eq!((fallen.place, fallen.why.to_string().as_str()), (1, "out of breath"));
    }

    #[test]
    fn a_round_in_which_the_processor_was_slow_is_repeated() {
        let speeds = Cell::new(0);
        let gauge = || {
            speeds.set(speeds.get() + 1);
            peak(if speeds.get() == 2 { 94.0 } else { 100.0 })
        };
        // The slow moment ends one round and begins another.
        let pace = pace(&gauge);
        assert_eq!((pace.rounds, pace.repeated, pace.discarded), (3, 2, false));
        assert!(pace.moved < 1e-9);
    }

    #[test]
    fn a_processor_that_is_never_steady_spoils_the_row_and_ends_it() {
        let speeds = Cell::new(100.0);
        let gauge = || {
            speeds.set(if speeds.get() > 90.0 { 80.0 } else { 100.0 });
            peak(speeds.get())
        };
        let pace = pace(&gauge);
        assert_eq!((pace.rounds, pace.repeated, pace.discarded), (9, 0, true));
        assert!((pace.moved - 0.2).abs() < 1e-9);
    }

    #[test]
    fn somebody_who_competes_from_the_first_to_the_last_spoils_the_row() {
        let pace = pace(&|| Peak { usual: Some(60.0), ..peak(100.0) });
        assert_eq!((pace.rounds, pace.discarded), (9, true));
        let housekeeping = self::pace(&|| Peak { usual: Some(93.0), ..peak(100.0) });
        assert_eq!((housekeeping.rounds, housekeeping.discarded), (3, false));
    }

    #[test]
    fn where_the_peak_can_not_be_measured_every_round_counts() {
        let pace = pace(&Peak::default);
        assert_eq!((pace.rounds, pace.discarded, pace.peak), (3, false, Peak::default()));
    }

    #[test]
    fn a_speed_that_rises_later_casts_doubt_on_what_was_before() {
        let rounds = [round(1.0, 90.0, 90.0), round(2.0, 100.0, 100.0), round(4.0, 100.0, 96.0)];
        let taken = judge(1, &rounds, 2);
        assert_eq!((taken.pace.rounds, taken.pace.repeated), (2, 1));
        assert_eq!(taken.turns, [[2.0, 4.0]]);
    }

    #[test]
    fn a_score_is_the_median_of_the_medians() {
        let turn = |times: [f64; 3]| Turn { times: times.to_vec(), cores: 1.0 };
        let score = score(TAMIS, &[turn([1.0, 2.0, 9.0]), turn([4.0, 4.0, 4.0])]);
        assert_eq!((score.median, score.least, score.most), (3.0, 2.0, 4.0));
    }

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median([3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median([4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median([]), None);
    }
}
