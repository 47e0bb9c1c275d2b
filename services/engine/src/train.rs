//! Trains a head: a linear layer that tells the vectors of an embedding model apart.
//!
//! Multinomial logistic regression with an L2 penalty on the weights. The objective is convex, so there is one answer, and
//! everything here is a function of its arguments: the same examples give the same bits, whatever the number of threads.
//! What a head will do on texts that it has not seen is told by cross-validation: every example is judged once by a head
//! that was trained without it, and without texts equal to it.

use std::{
    collections::HashMap,
    num::NonZeroUsize,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use candle_core::{Device, Tensor};

use crate::Error;

mod calibrate;
mod confusion;
mod folds;
mod minimize;
mod objective;

pub use calibrate::{Goal, Threshold, log_loss, temperature, threshold};
pub use confusion::Confusion;

use self::objective::Objective;

/// Examples with known labels.
#[derive(Clone, Copy, Debug)]
pub struct Examples<'a> {
    /// Their vectors, one after the other.
    pub vectors: &'a [f32],
    /// Components of a vector.
    pub dimensions: usize,
    /// Their labels, each below `labels`.
    pub classes: &'a [u32],
    /// How many labels there are.
    pub labels: usize,
}

/// How a head is trained.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// Weight of the penalty, half the sum of the squared weights, beside the mean loss of an example.
    pub l2: f64,
    /// How much an example counts.
    pub balance: Balance,
    /// Most steps of the minimiser.
    pub steps_max: u32,
}

/// How much an example counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Balance {
    /// All the same, so that frequent labels are more probable, as they are in the examples.
    Examples,
    /// The less, the more examples its label has, so that all labels count the same.
    Labels,
}

/// A linear layer.
#[derive(Clone, Debug, PartialEq)]
pub struct Layer {
    /// One row of `dimensions` weights for each label, one after the other.
    pub weight: Vec<f32>,
    /// One for each label.
    pub bias: Vec<f32>,
}

/// A trained layer.
#[derive(Clone, Debug, PartialEq)]
pub struct Trained {
    /// The layer.
    pub layer: Layer,
    /// Steps of the minimiser.
    pub steps: u32,
    /// The gradient vanished; otherwise the steps ran out.
    pub converged: bool,
}

/// A head, and what heads like it do on examples that they have not seen.
#[derive(Clone, Debug)]
pub struct Validated {
    /// Trained on all examples.
    pub trained: Trained,
    /// For every example the logits of the head that was trained without it, one after the other.
    pub logits: Vec<f32>,
    /// For every example the fold that it was held out in.
    pub folds: Vec<u32>,
}

// === impl Examples ===

impl<'a> Examples<'a> {
    /// Vector of an example.
    #[must_use]
    pub fn vector(&self, index: usize) -> &'a [f32] {
        &self.vectors[index * self.dimensions..(index + 1) * self.dimensions]
    }

    /// How many examples each label has.
    #[must_use]
    pub fn counts(&self) -> Vec<usize> {
        let mut counts = vec![0; self.labels];
        for class in self.classes {
            counts[*class as usize] += 1;
        }
        counts
    }
}

// === impl Layer ===

impl Layer {
    /// One logit for each label.
    #[must_use]
    pub fn logits(&self, vector: &[f32]) -> Vec<f32> {
        let rows = self.weight.chunks_exact(vector.len());
        rows.zip(&self.bias).map(|(row, bias)| objective::dot(row, vector) + bias).collect()
    }

    /// The bytes of a head.safetensors.
    pub fn safetensors(&self) -> Result<Vec<u8>, Error> {
        let labels = self.bias.len();
        let tensor = |values: &[f32], shape: &[usize]| Tensor::from_slice(values, shape, &Device::Cpu);
        let refuse = |error: &dyn std::fmt::Display| Error::load("head.safetensors", error);
        let weight = tensor(&self.weight, &[labels, self.weight.len() / labels]).map_err(|error| refuse(&error))?;
        let bias = tensor(&self.bias, &[labels]).map_err(|error| refuse(&error))?;
        safetensors::serialize([("weight", &weight), ("bias", &bias)], None).map_err(|error| refuse(&error))
    }
}

/// Trains a layer on these of the examples.
#[must_use]
pub fn train(examples: Examples<'_>, rows: &[usize], settings: Settings) -> Trained {
    let mut objective = Objective::new(examples, rows, settings);
    let start = vec![0.0; examples.labels * (examples.dimensions + 1)];
    let minimum = minimize::minimize(|at, gradient| objective.evaluate(at, gradient), start, settings.steps_max);
    let single: Vec<f32> = minimum.at.iter().map(|x| *x as f32).collect();
    let (weight, bias) = single.split_at(examples.labels * examples.dimensions);
    let layer = Layer { weight: weight.to_vec(), bias: bias.to_vec() };
    Trained { layer, steps: minimum.steps, converged: minimum.converged }
}

/// Trains on all examples, and on all folds but one for each fold. Examples of one group, such as equal texts, are in one
/// fold. `finished` is called after each of the `folds + 1` trainings, from their threads.
#[must_use]
pub fn validate(
    examples: Examples<'_>,
    groups: &[u64],
    folds: u32,
    settings: Settings,
    finished: &(dyn Fn() + Sync),
) -> Validated {
    let fold_of = folds::stratified(examples, groups, folds);
    let rows = |keep: &dyn Fn(u32) -> bool| (0..fold_of.len()).filter(|row| keep(fold_of[*row])).collect::<Vec<_>>();
    let jobs = folds as usize + 1;
    let (next, done) = (AtomicUsize::new(0), Mutex::new(HashMap::new()));
    let work = || loop {
        let job = next.fetch_add(1, Ordering::Relaxed);
        if job >= jobs {
            return;
        }
        // The fold that no example is in: the head that is trained on all.
        let trained = train(examples, &rows(&|fold| fold as usize != job), settings);
        done.lock().unwrap_or_else(PoisonError::into_inner).insert(job, trained);
        finished();
    };
    thread::scope(|scope| {
        let threads = thread::available_parallelism().map_or(1, NonZeroUsize::get).min(jobs);
        for _ in 1..threads {
            scope.spawn(work);
        }
        work();
    });
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    let held_out = |row: usize| done[&(fold_of[row] as usize)].layer.logits(examples.vector(row));
    let logits = (0..fold_of.len()).flat_map(held_out).collect();
    #[expect(clippy::expect_used, reason = "the threads above have left no job undone")]
    let trained = done.remove(&(folds as usize)).expect("every job was done");
    Validated { trained, logits, folds: fold_of }
}

#[cfg(test)]
mod tests;
