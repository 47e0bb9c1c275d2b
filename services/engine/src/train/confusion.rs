//! What was taken for what.

/// How often each label was taken for each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Confusion {
    labels: usize,
    /// Row by row: the true label's row, the chosen one's column.
    counts: Vec<u64>,
}

impl Confusion {
    /// Counts pairs of true and chosen labels, each below `labels`.
    #[must_use]
    pub fn count(labels: usize, pairs: impl IntoIterator<Item = (u32, u32)>) -> Self {
        let mut counts = vec![0; labels * labels];
        for (truth, chosen) in pairs {
            counts[truth as usize * labels + chosen as usize] += 1;
        }
        Self { labels, counts }
    }

    /// How often a label was taken for another, or for itself.
    #[must_use]
    pub fn at(&self, truth: usize, chosen: usize) -> u64 {
        self.counts[truth * self.labels + chosen]
    }

    /// Share of right choices.
    #[must_use]
    pub fn accuracy(&self) -> f64 {
        let right: u64 = (0..self.labels).map(|label| self.at(label, label)).sum();
        share(right, self.counts.iter().sum())
    }

    /// Share of those that were taken for the label that have it; 0 if none was.
    #[must_use]
    pub fn precision(&self, label: usize) -> f64 {
        share(self.at(label, label), (0..self.labels).map(|truth| self.at(truth, label)).sum())
    }

    /// Share of those with the label that were taken for it; 0 if none has it.
    #[must_use]
    pub fn recall(&self, label: usize) -> f64 {
        share(self.at(label, label), (0..self.labels).map(|chosen| self.at(label, chosen)).sum())
    }

    /// Harmonic mean of precision and recall.
    #[must_use]
    pub fn f1(&self, label: usize) -> f64 {
        let (precision, recall) = (self.precision(label), self.recall(label));
        if precision + recall > 0.0 { 2.0 * precision * recall / (precision + recall) } else { 0.0 }
    }

    /// Mean over the labels, frequent or not.
    #[must_use]
    pub fn macro_f1(&self) -> f64 {
        (0..self.labels).map(|label| self.f1(label)).sum::<f64>() / self.labels.max(1) as f64
    }
}

fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}
