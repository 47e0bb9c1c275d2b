//! Labels on the wire.

use chassis::refusal::Refusal;
use engine::{Head, ItemError, ScoreMode};
use proto::classification::v1::{self as pb, classify_result::Outcome};

use crate::{bad_parameter, status};

/// Which labels come back, and how they are scored.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LabelChoice {
    mode: ScoreMode,
    top_k: usize,
    min_score: f32,
}

impl LabelChoice {
    /// The choice of a request, where `top_k` labels come back unless it says otherwise.
    ///
    /// # Errors
    /// BAD_PARAMETER for an unknown score mode, `top_k` 0, or a score that is no number.
    pub fn parse(params: Option<&pb::ClassifyParams>, top_k: usize) -> Result<Self, Refusal> {
        let Some(params) = params else {
            return Ok(Self { mode: ScoreMode::Native, top_k, min_score: f32::NEG_INFINITY });
        };
        let mode = match pb::ScoreMode::try_from(params.score_mode) {
            Ok(pb::ScoreMode::Unspecified) => ScoreMode::Native,
            Ok(pb::ScoreMode::Softmax) => ScoreMode::Softmax,
            Ok(pb::ScoreMode::Sigmoid) => ScoreMode::Sigmoid,
            Ok(pb::ScoreMode::Logits) => ScoreMode::Logits,
            Err(_) => {
                return Err(bad_parameter("params.score_mode", format!("{} is no score mode", params.score_mode)));
            }
        };
        let top_k = match params.top_k {
            None => top_k,
            Some(0) => return Err(bad_parameter("params.top_k", "top_k is 0; ask for 1 label or more")),
            Some(k) => k as usize,
        };
        let min_score = match params.min_score {
            None => f32::NEG_INFINITY,
            Some(score) if score.is_finite() => score,
            Some(score) => {
                return Err(bad_parameter("params.min_score", format!("min_score is {score}; send a finite number")));
            }
        };
        Ok(Self { mode, top_k, min_score })
    }

    /// The labels of one input, best first.
    fn choose(&self, head: &Head, logits: &[f32]) -> pb::Labels {
        let (scores, selected) = (head.scores(logits, self.mode), head.selected(logits));
        let mut order: Vec<usize> = (0..scores.len()).filter(|&id| scores[id] >= self.min_score).collect();
        // Stable, so that equal scores stay in the order of their ids.
        order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
        order.truncate(self.top_k);
        let label = |id: usize| pb::Label {
            id: u32::try_from(id).unwrap_or(u32::MAX),
            name: head.labels.get(id).cloned().unwrap_or_default(),
            score: scores[id],
            selected: selected[id],
        };
        pb::Labels { labels: order.into_iter().map(label).collect() }
    }
}

/// What one input gave.
pub struct Scored {
    /// Raw outputs of the model.
    pub logits: Vec<f32>,
    /// Tokens that were computed; 0 for an image.
    pub tokens: u32,
    /// The input was cut.
    pub truncated: bool,
}

/// The results of a call, in order.
pub fn results(
    outcomes: impl IntoIterator<Item = Result<Scored, ItemError>>,
    head: &Head,
    choice: LabelChoice,
) -> Vec<pb::ClassifyResult> {
    let result = |(index, outcome): (usize, Result<Scored, ItemError>)| {
        let index = u32::try_from(index).unwrap_or(u32::MAX);
        match outcome {
            Ok(scored) => pb::ClassifyResult {
                index,
                token_count: scored.tokens,
                truncated: scored.truncated,
                outcome: Some(Outcome::Labels(choice.choose(head, &scored.logits))),
            },
            Err(error) => {
                let outcome = Some(Outcome::Error(status::of_item(error)));
                pb::ClassifyResult { index, outcome, ..pb::ClassifyResult::default() }
            }
        }
    };
    outcomes.into_iter().enumerate().map(result).collect()
}

#[cfg(test)]
mod tests {
    use engine::manifest::Activation;

    use super::*;

    fn head(activation: Activation) -> Head {
        let labels = ["a", "b", "c"].map(str::to_owned).to_vec();
        Head { labels, activation, temperature: 1.0, thresholds: vec![0.5; 3] }
    }

    /// Names of the labels that come back for logits 1, 3, 3.
    fn chosen(params: pb::ClassifyParams) -> Vec<String> {
        let choice = LabelChoice::parse(Some(&params), usize::MAX).unwrap();
        let labels = choice.choose(&head(Activation::Softmax), &[1.0, 3.0, 3.0]).labels;
        labels.into_iter().map(|label| label.name).collect()
    }

    #[test]
    fn labels_come_best_first_and_ties_in_the_order_of_ids() {
        assert_eq!(chosen(pb::ClassifyParams::default()), ["b", "c", "a"]);
    }

    #[test]
    fn top_k_and_min_score_cut() {
        assert_eq!(chosen(pb::ClassifyParams { top_k: Some(1), ..Default::default() }), ["b"]);
        assert_eq!(chosen(pb::ClassifyParams { min_score: Some(0.2), ..Default::default() }), ["b", "c"]);
        assert_eq!(chosen(pb::ClassifyParams { min_score: Some(1.0), ..Default::default() }), [""; 0]);
    }

    #[test]
    fn selection_does_not_depend_on_the_score_mode() {
        for (activation, expected) in [(Activation::Softmax, [false, true, false]), (Activation::Sigmoid, [true; 3])] {
            for score_mode in 0..4 {
                let params = pb::ClassifyParams { score_mode, ..Default::default() };
                let choice = LabelChoice::parse(Some(&params), usize::MAX).unwrap();
                let mut labels = choice.choose(&head(activation), &[1.0, 3.0, 2.0]).labels;
                labels.sort_by_key(|label| label.id);
                assert_eq!(labels.iter().map(|label| label.selected).collect::<Vec<_>>(), expected, "{score_mode}");
            }
        }
    }

    #[test]
    fn parameters_out_of_bounds_are_refused_by_field() {
        for (params, field) in [
            (pb::ClassifyParams { score_mode: 9, ..Default::default() }, "params.score_mode"),
            (pb::ClassifyParams { top_k: Some(0), ..Default::default() }, "params.top_k"),
            (pb::ClassifyParams { min_score: Some(f32::NAN), ..Default::default() }, "params.min_score"),
            (pb::ClassifyParams { min_score: Some(f32::INFINITY), ..Default::default() }, "params.min_score"),
        ] {
            let refused = LabelChoice::parse(Some(&params), 5).unwrap_err();
            assert_eq!((refused.reason, refused.field.as_deref()), ("BAD_PARAMETER", Some(field)));
        }
    }
}
