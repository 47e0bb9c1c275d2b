//! From a model's last numbers to labels.

use crate::{
    Error,
    manifest::{Activation, HeadRecipe, Labels},
};

/// Probability from which a label is selected when its recipe does not say.
const THRESHOLD_DEFAULT: f32 = 0.5;

/// What the logits of a model mean.
#[derive(Clone, Debug, PartialEq)]
pub struct Head {
    /// Names of the labels, one per logit.
    pub labels: Vec<String>,
    /// What a probability is.
    pub activation: Activation,
    /// Logits are divided by it before the activation.
    pub temperature: f32,
    /// Probability from which a label is selected, one per label.
    pub thresholds: Vec<f32>,
}

/// What a score is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScoreMode {
    /// As the model's own activation has it.
    Native,
    /// The scores of all labels sum to 1.
    Softmax,
    /// Each label for itself, 0 to 1.
    Sigmoid,
    /// The model's numbers as they are, before any temperature.
    Logits,
}

impl Head {
    /// The recipe's head; `checkpoint` has the labels that the checkpoint itself names, in order.
    pub(crate) fn new(recipe: &HeadRecipe, checkpoint: Vec<String>) -> Result<Self, Error> {
        let labels = recipe.labels.as_ref().map_or(checkpoint, Labels::names);
        if labels.is_empty() {
            return Err(Error::load(
                "head",
                "neither the manifest (head.labels) nor config.json (id2label) names labels",
            ));
        }
        let thresholds = if recipe.thresholds.is_empty() {
            vec![THRESHOLD_DEFAULT; labels.len()]
        } else {
            recipe.thresholds.clone()
        };
        if thresholds.len() != labels.len() {
            let why = format!("{} thresholds for {} labels", thresholds.len(), labels.len());
            return Err(Error::load("head", why));
        }
        Ok(Self { labels, activation: recipe.activation, temperature: recipe.temperature, thresholds })
    }

    /// One score per label, in the order of the labels.
    #[must_use]
    pub fn scores(&self, logits: &[f32], mode: ScoreMode) -> Vec<f32> {
        match (mode, self.activation) {
            (ScoreMode::Logits, _) => logits.to_vec(),
            (ScoreMode::Softmax, _) | (ScoreMode::Native, Activation::Softmax) => softmax(logits, self.temperature),
            (ScoreMode::Sigmoid, _) | (ScoreMode::Native, Activation::Sigmoid) => {
                logits.iter().map(|logit| sigmoid(logit / self.temperature)).collect()
            }
        }
    }

    /// Whether the model decides for each label: where labels exclude each other the one whose probability is the
    /// greatest multiple of its threshold (the first of equals), which is the best one unless thresholds differ; those
    /// that reach their thresholds where labels do not exclude each other.
    #[must_use]
    pub fn selected(&self, logits: &[f32]) -> Vec<bool> {
        match self.activation {
            Activation::Softmax => {
                // In logarithms, where no probability is too small to be told from another. For two thresholds that sum
                // to 1 this is the one that is reached.
                let temperature = f64::from(self.temperature);
                let margin =
                    |(logit, threshold): (&f32, &f32)| f64::from(*logit) / temperature - f64::from(*threshold).ln();
                let margins: Vec<f64> = logits.iter().zip(&self.thresholds).map(margin).collect();
                let best = (0..margins.len()).reduce(|best, i| if margins[i] > margins[best] { i } else { best });
                (0..margins.len()).map(|i| Some(i) == best).collect()
            }
            Activation::Sigmoid => {
                let scores = self.scores(logits, ScoreMode::Sigmoid);
                scores.iter().zip(&self.thresholds).map(|(score, threshold)| score >= threshold).collect()
            }
        }
    }
}

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

/// The greatest logit is subtracted first, so that no exponential overflows.
fn softmax(logits: &[f32], temperature: f32) -> Vec<f32> {
    let greatest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let powers: Vec<f32> = logits.iter().map(|logit| ((logit - greatest) / temperature).exp()).collect();
    let sum: f32 = powers.iter().sum();
    powers.iter().map(|power| power / sum).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn head(activation: Activation, temperature: f32) -> Head {
        let labels = vec!["a".to_owned(), "b".to_owned()];
        let thresholds = if activation == Activation::Softmax { vec![0.5; 2] } else { vec![0.52, 0.5] };
        Head { labels, activation, temperature, thresholds }
    }

    #[test]
    fn the_temperature_divides_before_the_activation_and_never_in_logits() {
        let head = head(Activation::Sigmoid, 2.0);
        let scores = head.scores(&[2.0, -2.0], ScoreMode::Native);
        assert!((scores[0] - 0.731_058_6).abs() < 1e-6 && (scores[1] - 0.268_941_43).abs() < 1e-6, "{scores:?}");
        assert_eq!(head.scores(&[2.0, -2.0], ScoreMode::Logits), [2.0, -2.0]);
    }

    #[test]
    fn labels_that_stand_for_themselves_are_selected_at_their_thresholds() {
        let head = head(Activation::Sigmoid, 1.0);
        // sigmoid(0.05) = 0.5125: over 0.5 but under 0.52.
        assert_eq!(head.selected(&[0.05, 0.05]), [false, true]);
        assert_eq!(head.selected(&[3.0, -3.0]), [true, false]);
    }

    #[test]
    fn of_labels_that_exclude_each_other_the_first_best_is_selected() {
        let head = head(Activation::Softmax, 1.0);
        assert_eq!(head.selected(&[1.0, 1.0]), [true, false]);
        assert_eq!(head.selected(&[-2.0, -1.0]), [false, true]);
    }

    #[test]
    fn of_two_labels_with_thresholds_the_one_that_reaches_its_own_is_selected() {
        let head = Head { thresholds: vec![0.7, 0.3], ..head(Activation::Softmax, 2.0) };
        // The second label's probability is 0.38, 0.27 and 0.5.
        for (logit, second) in [(-1.0, true), (-2.0, false), (0.0, true)] {
            assert_eq!(head.selected(&[0.0, logit]), [!second, second], "{logit}");
        }
    }

    #[test]
    fn labels_come_from_the_checkpoint_when_the_recipe_has_none() {
        let recipe = HeadRecipe { labels: None, activation: Activation::Softmax, temperature: 1.0, thresholds: vec![] };
        assert_eq!(Head::new(&recipe, vec!["x".to_owned()]).unwrap().labels, ["x"]);
        assert!(Head::new(&recipe, Vec::new()).is_err());
    }

    proptest! {
        #[test]
        fn softmax_sums_to_one_and_never_overflows(logits in prop::collection::vec(-1e30_f32..1e30, 1..50)) {
            let scores = softmax(&logits, 0.7);
            prop_assert!((scores.iter().sum::<f32>() - 1.0).abs() < 1e-4);
            prop_assert!(scores.iter().all(|score| (0.0..=1.0).contains(score)));
        }
    }
}
