//! From held-out logits to probabilities that can be taken at their word, and to a threshold.

/// Temperatures lie between 1/20 and 20: beyond, the examples are too few or too easy to tell.
const SHARPNESS: (f64, f64) = (0.05, 20.0);

/// What a threshold is for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Goal {
    /// The greatest harmonic mean of precision and recall.
    F1,
    /// The greatest recall with at least this precision.
    Precision(f32),
}

/// A threshold, and what it does on the scores that it was chosen on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Threshold {
    /// Scores from here on are taken for positive.
    pub value: f32,
    /// Share of what is taken for positive that is.
    pub precision: f64,
    /// Share of what is positive that is taken for it.
    pub recall: f64,
}

impl Threshold {
    /// The harmonic mean of precision and recall.
    #[must_use]
    pub fn f1(&self) -> f64 {
        let sum = self.precision + self.recall;
        if sum > 0.0 { 2.0 * self.precision * self.recall / sum } else { 0.0 }
    }
}

/// The temperature that makes the mean log loss least (Guo et al., "On calibration of modern neural networks", 2017).
/// The loss is convex in 1/T, so the root of its derivative is found by halving.
#[must_use]
pub fn temperature(logits: &[f32], classes: &[u32]) -> f32 {
    let labels = logits.len() / classes.len().max(1);
    let slope = |sharpness: f64| {
        let row = |(row, class): (&[f32], &u32)| {
            let greatest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let (mut sum, mut mean) = (0.0, 0.0);
            for logit in row {
                let power = (sharpness * f64::from(logit - greatest)).exp();
                sum += power;
                mean += power * f64::from(*logit);
            }
            mean / sum - f64::from(row[*class as usize])
        };
        logits.chunks_exact(labels.max(1)).zip(classes).map(row).sum::<f64>()
    };
    let (mut low, mut high) = SHARPNESS;
    for _ in 0..50 {
        // Temperatures differ by factors, so the middle is the geometric one.
        let middle = (low * high).sqrt();
        if slope(middle) < 0.0 {
            low = middle;
        } else {
            high = middle;
        }
    }
    (1.0 / (low * high).sqrt()) as f32
}

/// Mean of -ln p of the right labels.
#[must_use]
pub fn log_loss(logits: &[f32], classes: &[u32], temperature: f32) -> f64 {
    let labels = (logits.len() / classes.len().max(1)).max(1);
    let loss = |(row, class): (&[f32], &u32)| {
        let scaled = |logit: &f32| f64::from(*logit) / f64::from(temperature);
        let greatest = row.iter().map(scaled).fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = row.iter().map(|logit| (scaled(logit) - greatest).exp()).sum();
        greatest + sum.ln() - scaled(&row[*class as usize])
    };
    logits.chunks_exact(labels).zip(classes).map(loss).sum::<f64>() / classes.len().max(1) as f64
}

/// The threshold that serves the goal best on these scores, half way between two of them; none if no threshold serves it.
#[must_use]
pub fn threshold(scores: &[f32], positive: &[bool], goal: Goal) -> Option<Threshold> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
    let all = positive.iter().filter(|positive| **positive).count() as f64;
    let (mut taken, mut right) = (0.0, 0.0);
    let mut best: Option<Threshold> = None;
    for (rank, row) in order.iter().enumerate() {
        taken += 1.0;
        right += f64::from(u8::from(positive[*row]));
        let (score, next) = (scores[*row], order.get(rank + 1).map_or(0.0, |next| scores[*next]));
        // Equal scores are taken or left together.
        if next == score || all == 0.0 {
            continue;
        }
        let value = ((score + next) / 2.0).clamp(1e-4, 1.0 - 1e-4);
        let candidate = Threshold { value, precision: right / taken, recall: right / all };
        let better = match goal {
            Goal::F1 => best.is_none_or(|best| candidate.f1() > best.f1()),
            Goal::Precision(least) => {
                let enough = candidate.precision >= f64::from(least) && right > 0.0;
                enough && best.is_none_or(|best| candidate.recall >= best.recall)
            }
        };
        if better {
            best = Some(candidate);
        }
    }
    best
}
