//! The mean loss of a linear layer and its gradient.

use super::{Balance, Examples, Settings};

/// Values that are summed side by side. Sums of floats may not be reordered by the compiler, so the order is chosen here.
const LANES: usize = 16;
/// Examples whose gradients are summed in f32, before the sum goes on in f64.
const BLOCK: usize = 256;

/// Penalised cross-entropy over some examples.
pub(super) struct Objective<'a> {
    examples: Examples<'a>,
    rows: &'a [usize],
    /// For each label how much one of its examples counts; over all examples they sum to 1.
    shares: Vec<f64>,
    l2: f64,
    /// Scratch: weights, gradient of a block, logits.
    single: Vec<f32>,
    block: Vec<f32>,
    logits: Vec<f64>,
}

impl<'a> Objective<'a> {
    pub(super) fn new(examples: Examples<'a>, rows: &'a [usize], settings: Settings) -> Self {
        let mut counts = vec![0.0; examples.labels];
        for row in rows {
            counts[examples.classes[*row] as usize] += 1.0;
        }
        let present = counts.iter().filter(|count| **count > 0.0).count() as f64;
        let share = |count: &f64| match settings.balance {
            Balance::Examples => 1.0 / rows.len() as f64,
            Balance::Labels => 1.0 / (present * count.max(1.0)),
        };
        let parameters = examples.labels * (examples.dimensions + 1);
        Self {
            examples,
            rows,
            shares: counts.iter().map(share).collect(),
            l2: settings.l2,
            single: vec![0.0; parameters],
            block: vec![0.0; parameters],
            logits: vec![0.0; examples.labels],
        }
    }

    /// The value at these parameters: the weights of every label, then the biases.
    pub(super) fn evaluate(&mut self, at: &[f64], gradient: &mut [f64]) -> f64 {
        let weights = self.examples.labels * self.examples.dimensions;
        self.single.iter_mut().zip(at).for_each(|(single, x)| *single = *x as f32);
        let mut value = 0.0;
        // Biases are not penalised: they say how frequent a label is, not how sure the layer may be.
        for (index, (slope, x)) in gradient.iter_mut().zip(at).enumerate() {
            let penalised = if index < weights { self.l2 * x } else { 0.0 };
            value += 0.5 * penalised * x;
            *slope = penalised;
        }
        for block in self.rows.chunks(BLOCK) {
            self.block.fill(0.0);
            for row in block {
                value += self.add(*row);
            }
            gradient.iter_mut().zip(&self.block).for_each(|(sum, x)| *sum += f64::from(*x));
        }
        value
    }

    /// The loss of one example; its gradient goes into the block.
    fn add(&mut self, row: usize) -> f64 {
        let Examples { dimensions, labels, .. } = self.examples;
        let (vector, class) = (self.examples.vector(row), self.examples.classes[row] as usize);
        let (weights, biases) = self.single.split_at(labels * dimensions);
        for (label, logit) in self.logits.iter_mut().enumerate() {
            let row = &weights[label * dimensions..(label + 1) * dimensions];
            *logit = f64::from(dot(row, vector)) + f64::from(biases[label]);
        }
        let greatest = self.logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = self.logits.iter().map(|logit| (logit - greatest).exp()).sum();
        let share = self.shares[class];
        let (slopes, bias_slopes) = self.block.split_at_mut(labels * dimensions);
        for (label, logit) in self.logits.iter().enumerate() {
            let probability = (logit - greatest).exp() / sum;
            let slope = (share * (probability - f64::from(u8::from(label == class)))) as f32;
            bias_slopes[label] += slope;
            let slopes = &mut slopes[label * dimensions..(label + 1) * dimensions];
            slopes.iter_mut().zip(vector).for_each(|(sum, x)| *sum += slope * x);
        }
        share * (greatest + sum.ln() - self.logits[class])
    }
}

/// Sum of the products.
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let (a_lanes, a_rest) = a.as_chunks::<LANES>();
    let (b_lanes, b_rest) = b.as_chunks::<LANES>();
    let mut sums = [0.0_f32; LANES];
    for (a, b) in a_lanes.iter().zip(b_lanes) {
        for lane in 0..LANES {
            sums[lane] += a[lane] * b[lane];
        }
    }
    sums.iter().sum::<f32>() + a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum::<f32>()
}
