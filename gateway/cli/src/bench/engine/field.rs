//! Who takes part, and whether their answers are right: a fast wrong answer is worth nothing.

use std::collections::BTreeMap;

use engine::Precision;
use serde_json::{Value, json};

use super::{Engine, Library, rounds::Contestant, work::Task};
use crate::advice::remark;

/// A contestant and how near its answers are to this program's f32.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Entrant {
    pub(crate) engine: Engine,
    /// Cosine of the vectors: the mean, and the least.
    pub(crate) mean: f64,
    pub(crate) least: f64,
}

/// The least cosine that is still the same network: what rounding to a number format may change, and nothing more.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Nearness {
    pub(crate) f32: f64,
    pub(crate) bf16: f64,
    pub(crate) int8: f64,
}

/// Vectors of texts, of the same tokens.
pub(crate) const OF_TEXTS: Nearness = Nearness { f32: 0.99999, bf16: 0.999, int8: 0.95 };
/// Logits of an image, which each library resizes in its own way.
pub(crate) const OF_IMAGES: Nearness = Nearness { f32: 0.99, bf16: 0.99, int8: 0.95 };

impl Nearness {
    fn of(self, precision: Precision) -> f64 {
        match precision {
            Precision::F32 => self.f32,
            Precision::Bf16 => self.bf16,
            Precision::Int8 => self.int8,
        }
    }
}

/// Those whose answers are near enough to `reference`, and how near each is. What is wrong with the others is said.
pub(crate) fn examine(
    contestants: &mut Vec<Box<dyn Contestant>>,
    task: &Task,
    reference: &[Vec<f32>],
    nearness: Nearness,
) -> (Vec<Entrant>, Vec<String>) {
    let (mut entrants, mut notes, mut admitted) = (Vec::new(), Vec::new(), Vec::new());
    for mut contestant in contestants.drain(..) {
        let engine = contestant.engine();
        let answers = match contestant.take(task).and_then(|()| contestant.answers()) {
            Ok(answers) => answers,
            Err(why) => {
                notes.push(format!("{engine} is not measured: {}", remark(&why)));
                continue;
            }
        };
        let (mean, least) = compare(&answers, reference);
        let wanted = nearness.of(engine.precision);
        // NaN is near to nothing.
        if least >= wanted {
            entrants.push(Entrant { engine, mean, least });
            admitted.push(contestant);
        } else {
            let rival = if engine.library == Library::Tamis { "this build" } else { "a rival" };
            notes.push(format!(
                "{engine} is not measured: the cosine of its answers with those of f32 is {least:.5} at least, below \
                 {wanted}; {rival} that computes something else is no contestant"
            ));
        }
    }
    *contestants = admitted;
    (entrants, notes)
}

/// How near the answers of each contestant are, by its name.
pub(crate) fn nearness(entrants: &[Entrant]) -> BTreeMap<String, Value> {
    let entry = |entrant: &Entrant| {
        (entrant.engine.to_string(), json!({ "cosine_mean": entrant.mean, "cosine_min": entrant.least }))
    };
    entrants.iter().map(entry).collect()
}

/// The mean and the least cosine of vectors with those that they should be; NaN if they are not as many.
fn compare(answers: &[Vec<f32>], reference: &[Vec<f32>]) -> (f64, f64) {
    if answers.len() != reference.len() || answers.is_empty() {
        return (f64::NAN, f64::NAN);
    }
    let cosines: Vec<f64> = answers.iter().zip(reference).map(|(a, b)| cosine(a, b)).collect();
    #[expect(clippy::cast_precision_loss, reason = "a few dozen")]
    let mean = cosines.iter().sum::<f64>() / cosines.len() as f64;
    let least =
        cosines.iter().copied().fold(f64::INFINITY, |least, cosine| if cosine < least { cosine } else { least });
    // A comparison with NaN is false, and would pass it over.
    (mean, if mean.is_nan() { f64::NAN } else { least })
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    if a.len() != b.len() {
        return f64::NAN;
    }
    let dot = |x: &[f32], y: &[f32]| x.iter().zip(y).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use anyhow::bail;

    use super::*;
    use crate::bench::engine::rounds::Turn;

    struct Fixed(Precision, Vec<Vec<f32>>);

    impl Contestant for Fixed {
        fn engine(&self) -> Engine {
            Engine { library: Library::Openvino, precision: self.0 }
        }

        fn take(&mut self, _: &Task) -> anyhow::Result<()> {
            Ok(())
        }

        fn answers(&mut self) -> anyhow::Result<Vec<Vec<f32>>> {
            if self.1.first().is_some_and(Vec::is_empty) {
                bail!("out of memory");
            }
            Ok(self.1.clone())
        }

        fn turn(&mut self, _: Duration) -> anyhow::Result<Turn> {
            Ok(Turn { times: vec![1.0], cores: 1.0 })
        }
    }

    fn admitted(precision: Precision, answers: Vec<Vec<f32>>) -> bool {
        let mut field: Vec<Box<dyn Contestant>> = vec![Box::new(Fixed(precision, answers))];
        let reference = [vec![1.0, 0.0], vec![0.0, 2.0]];
        let (entrants, notes) = examine(&mut field, &Task::Texts(Vec::new()), &reference, OF_TEXTS);
        assert_eq!((entrants.len(), notes.len()), (field.len(), 1 - field.len()));
        !field.is_empty()
    }

    #[test]
    fn a_format_may_round_but_not_answer_something_else() {
        assert!(admitted(Precision::F32, vec![vec![3.0, 0.0], vec![0.0, 1.0]]), "length is no matter");
        assert!(!admitted(Precision::F32, vec![vec![1.0, 0.1], vec![0.0, 1.0]]));
        assert!(admitted(Precision::Int8, vec![vec![1.0, 0.1], vec![0.0, 1.0]]));
        assert!(!admitted(Precision::Int8, vec![vec![0.0, 1.0], vec![0.0, 1.0]]));
    }

    #[test]
    fn no_answer_and_a_broken_one_are_wrong() {
        assert!(!admitted(Precision::Int8, vec![]));
        assert!(!admitted(Precision::Int8, vec![vec![1.0, 0.0]]));
        assert!(!admitted(Precision::Int8, vec![vec![f32::NAN, 0.0], vec![0.0, 1.0]]));
        assert!(!admitted(Precision::Int8, vec![vec![1.0], vec![0.0, 1.0]]));
        assert!(!admitted(Precision::Int8, vec![vec![]]), "who fails leaves, and the others are measured");
    }
}
