//! ClassifyZeroShot: which of the request's labels lies nearest to a text.

use chassis::refusal::Refusal;
use engine::{Head, ItemError, TextModel, TextOutput, manifest::Activation, normalize};
use host::{Call, Computed, Host, LabelChoice, Scored};
use proto::{classification::v1 as pb, common::v1 as common};
use tonic::Response;

use crate::{
    labels::Labels,
    parse::{self, Pairs},
};

/// Full name of the method.
pub(crate) const METHOD: &str = "tamis.classification.v1.ClassificationService/ClassifyZeroShot";

/// Answers a call.
pub(crate) async fn answer(
    host: &Host<TextModel>,
    call: Call,
    request: pb::ClassifyZeroShotRequest,
) -> Result<Response<pb::ClassifyZeroShotResponse>, Refusal> {
    let (selector, options) = (request.model.as_ref(), request.options.as_ref());
    host.check_items("inputs", request.inputs.len())?;
    host::refuse_space(selector)?;
    let labels = Labels::parse(&request)?;
    let choice = LabelChoice::parse(request.params.as_ref(), usize::MAX)?;
    let selected = host.catalog.select(selector, METHOD)?;
    // A head stands for the embedding model that it reads.
    let model = selected.base().unwrap_or(&selected);

    let texts = request.inputs.len();
    let input_bytes = parse::input_bytes(&request.inputs) + labels.bytes();
    let inputs = request.inputs.into_iter().map(|input| parse::input(input, Pairs::Refused));
    // One call of the pool for both: the descriptions are computed beside the texts, on all cores.
    let descriptions = labels.descriptions.iter().map(|description| Ok(parse::text(description.clone())));
    let inputs = inputs.chain(descriptions).collect();
    let Computed { mut results, cost, spent } = host.compute(model, inputs, call, options).await?;

    let input_tokens = results.iter().flatten().map(|output| u64::from(output.tokens)).sum();
    let descriptions = directions(results.split_off(texts))?;
    let timing = call.timing(options, &spent, &host.replica);
    let computed = results.iter().filter(|result| result.is_ok()).count();
    let head = head(labels);
    let mut response = Response::new(pb::ClassifyZeroShotResponse {
        results: host::label_results(similarities(results, &descriptions), &head, choice),
        model: Some(host::model_info(model.info())),
        usage: Some(common::Usage { items: texts as u64, input_tokens, input_bytes, input_pixels: 0 }),
        timing: timing.map(|timing| common::Timing { items: u32::try_from(computed).unwrap_or(u32::MAX), ..timing }),
    });
    response.extensions_mut().insert(cost);
    Ok(response)
}

/// The labels as a model's own would be: their logits are the similarities.
fn head(labels: Labels) -> Head {
    let Labels { names, temperature, .. } = labels;
    Head { thresholds: vec![0.5; names.len()], labels: names, activation: Activation::Softmax, temperature }
}

/// The descriptions' vectors at length 1. Without one of them no text can be judged, so its failure is the call's.
fn directions(outcomes: Vec<Result<TextOutput, ItemError>>) -> Result<Vec<Vec<f32>>, Refusal> {
    let direction = |(index, outcome): (usize, Result<TextOutput, ItemError>)| {
        let mut output =
            outcome.map_err(|error| host::refuse_item(error).field(format!("labels[{index}].description")))?;
        normalize(&mut output.values);
        Ok(output.values)
    };
    outcomes.into_iter().enumerate().map(direction).collect()
}

/// For each text its cosine similarity to every description.
fn similarities(
    outcomes: Vec<Result<TextOutput, ItemError>>,
    descriptions: &[Vec<f32>],
) -> impl Iterator<Item = Result<Scored, ItemError>> {
    let scored = |mut output: TextOutput| {
        normalize(&mut output.values);
        let logits = descriptions.iter().map(|description| cosine(&output.values, description)).collect();
        Scored { logits, tokens: output.tokens, truncated: output.truncated }
    };
    outcomes.into_iter().map(move |outcome| outcome.map(scored))
}

/// Of two vectors of length 1.
fn cosine(a: &[f32], b: &[f32]) -> f32 {
    let dot: f64 = a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
    dot.clamp(-1.0, 1.0) as f32
}

#[cfg(test)]
mod tests {
    use engine::Reason;
    use proto::classification::v1::classify_result::Outcome;

    use super::*;

    fn output(values: &[f32]) -> TextOutput {
        TextOutput { values: values.to_vec(), tokens: 3, truncated: false }
    }

    /// Scores of a text between two labels, by id, and which is selected.
    fn scores(mode: pb::ScoreMode) -> Vec<(f32, bool)> {
        let params = pb::ClassifyParams { score_mode: mode.into(), ..Default::default() };
        let choice = LabelChoice::parse(Some(&params), usize::MAX).unwrap();
        let directions = directions(vec![Ok(output(&[2.0, 0.0])), Ok(output(&[0.0, 0.5]))]).unwrap();
        let names = vec!["x".to_owned(), "y".to_owned()];
        let head = head(Labels { names, descriptions: Vec::new(), temperature: 0.1 });
        // 3-4-5: cosines of 0.6 and 0.8.
        let results = host::label_results(similarities(vec![Ok(output(&[3.0, 4.0]))], &directions), &head, choice);
        let Some(Outcome::Labels(labels)) = &results[0].outcome else { panic!("no labels") };
        let mut labels = labels.labels.clone();
        labels.sort_by_key(|label| label.id);
        labels.into_iter().map(|label| (label.score, label.selected)).collect()
    }

    #[test]
    fn logits_are_cosines_and_the_nearest_label_is_selected() {
        let scores = scores(pb::ScoreMode::Logits);
        assert!((scores[0].0 - 0.6).abs() < 1e-6 && (scores[1].0 - 0.8).abs() < 1e-6, "{scores:?}");
        assert_eq!((scores[0].1, scores[1].1), (false, true));
    }

    #[test]
    fn softmax_is_taken_over_cosines_divided_by_the_temperature() {
        for mode in [pb::ScoreMode::Unspecified, pb::ScoreMode::Softmax] {
            let scores = scores(mode);
            let expected = 1.0 / (1.0 + (-2.0_f32).exp());
            assert!((scores[1].0 - expected).abs() < 1e-5 && (scores[0].0 + scores[1].0 - 1.0).abs() < 1e-6);
        }
    }

    #[test]
    fn a_description_that_fails_is_named() {
        let failed = Err(ItemError::new(Reason::TooLarge, "too large"));
        let refused = directions(vec![Ok(output(&[1.0])), failed]).unwrap_err();
        assert_eq!((refused.reason, refused.field.as_deref()), ("INPUT_TOO_LARGE", Some("labels[1].description")));
    }
}
