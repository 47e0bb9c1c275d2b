//! The labels that a request brings, and what they mean in words.

use std::collections::HashSet;

use chassis::refusal::Refusal;
use host::{bad_parameter, refusal};
use proto::{
    classification::v1::{self as pb, ScoreMode},
    common::v1::ErrorReason,
};
use tonic::Code;

const LABELS_MIN: usize = 2;
const LABELS_MAX: usize = 256;
const NAME_BYTES_MAX: usize = 256;
const DESCRIPTION_BYTES_MAX: usize = 4096;
const TEMPLATE_BYTES_MAX: usize = 1024;
const TEMPLATE: &str = "This text is about {}.";
/// Stands for a label's name in a template.
const PLACE: &str = "{}";
/// Similarities of short texts lie close together: divided by it, a difference of 0.05 is a factor of 2.7.
const TEMPERATURE: f32 = 0.05;

/// Labels with their descriptions, in the order of the request.
#[derive(Debug, PartialEq)]
pub(crate) struct Labels {
    pub(crate) names: Vec<String>,
    pub(crate) descriptions: Vec<String>,
    /// What similarities are divided by.
    pub(crate) temperature: f32,
}

impl Labels {
    /// The labels of a request.
    pub(crate) fn parse(request: &pb::ClassifyZeroShotRequest) -> Result<Self, Refusal> {
        check_count(request.labels.len())?;
        let template = template(&request.template)?;
        let mut seen = HashSet::new();
        let (mut names, mut descriptions) = (Vec::new(), Vec::new());
        for (index, label) in request.labels.iter().enumerate() {
            let name = || format!("labels[{index}].name");
            match label.name.len() {
                0 => return Err(bad_parameter(&name(), "the name of a label is empty")),
                1..=NAME_BYTES_MAX => {}
                bytes => {
                    let message = format!("the name of a label has {bytes} bytes, at most {NAME_BYTES_MAX} are taken");
                    return Err(bad_parameter(&name(), message));
                }
            }
            if !seen.insert(label.name.as_str()) {
                return Err(bad_parameter(&name(), "two labels have this name; the answer could not tell them apart"));
            }
            names.push(label.name.clone());
            descriptions.push(description(index, label, template)?);
        }
        if request.params.is_some_and(|params| params.score_mode() == ScoreMode::Sigmoid) {
            let message =
                "SIGMOID has no meaning for labels that are compared with each other; ask for SOFTMAX or LOGITS";
            return Err(bad_parameter("params.score_mode", message));
        }
        let temperature = request.temperature.unwrap_or(TEMPERATURE);
        if !(temperature.is_finite() && temperature > 0.0) {
            let message = format!("temperature is {temperature}; send a finite number above 0");
            return Err(bad_parameter("temperature", message));
        }
        Ok(Self { names, descriptions, temperature })
    }

    /// Bytes of the descriptions.
    pub(crate) fn bytes(&self) -> u64 {
        self.descriptions.iter().map(|description| description.len() as u64).sum()
    }
}

fn check_count(labels: usize) -> Result<(), Refusal> {
    if labels < LABELS_MIN {
        let message = format!("there are {labels} labels; send {LABELS_MIN} to {LABELS_MAX}");
        return Err(bad_parameter("labels", message));
    }
    if labels > LABELS_MAX {
        let message = format!("{labels} labels, at most {LABELS_MAX} are taken");
        return Err(refusal(Code::InvalidArgument, ErrorReason::TooManyItems, message).field("labels"));
    }
    Ok(())
}

fn template(given: &str) -> Result<&str, Refusal> {
    if given.is_empty() {
        return Ok(TEMPLATE);
    }
    if given.len() > TEMPLATE_BYTES_MAX {
        let message = format!("the template has {} bytes, at most {TEMPLATE_BYTES_MAX} are taken", given.len());
        return Err(bad_parameter("template", message));
    }
    match given.matches(PLACE).count() {
        1 => Ok(given),
        places => {
            let message = format!("the template has {places} times {PLACE:?}, where a name goes; it needs one");
            Err(bad_parameter("template", message))
        }
    }
}

/// What a label means; it has characters that are not white space.
fn description(index: usize, label: &pb::ZeroShotLabel, template: &str) -> Result<String, Refusal> {
    let field = || format!("labels[{index}].description");
    let bytes = label.description.len();
    if bytes > DESCRIPTION_BYTES_MAX {
        let message = format!("a description has {bytes} bytes, at most {DESCRIPTION_BYTES_MAX} are taken");
        return Err(bad_parameter(&field(), message));
    }
    let description = match label.description.as_str() {
        "" => template.replacen(PLACE, &label.name, 1),
        own => own.to_owned(),
    };
    if description.trim().is_empty() {
        return Err(bad_parameter(&field(), "a description has nothing but white space"));
    }
    Ok(description)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn label(name: &str, description: &str) -> pb::ZeroShotLabel {
        pb::ZeroShotLabel { name: name.into(), description: description.into() }
    }

    fn request() -> pb::ClassifyZeroShotRequest {
        pb::ClassifyZeroShotRequest { labels: vec![label("a", ""), label("b", "It is b.")], ..Default::default() }
    }

    #[track_caller]
    fn refuses(request: &pb::ClassifyZeroShotRequest, reason: &str, field: &str) {
        let refused = Labels::parse(request).unwrap_err();
        assert_eq!((refused.reason, refused.field.as_deref()), (reason, Some(field)), "{}", refused.message);
    }

    #[test]
    fn a_label_without_a_description_gets_one_from_the_template() {
        let labels = Labels::parse(&request()).unwrap();
        assert_eq!(labels.descriptions, ["This text is about a.", "It is b."]);
        assert_eq!((labels.names.as_slice(), labels.temperature), (["a".to_owned(), "b".to_owned()].as_slice(), 0.05));
        let braces = pb::ClassifyZeroShotRequest {
            template: "{}!".into(),
            labels: vec![label("{}", ""), label("b", "{}")],
            ..Default::default()
        };
        assert_eq!(Labels::parse(&braces).unwrap().descriptions, ["{}!", "{}"]);
    }

    #[test]
    fn labels_are_two_to_256() {
        let many = |count: usize| {
            let labels = (0..count).map(|n| label(&n.to_string(), "")).collect();
            pb::ClassifyZeroShotRequest { labels, ..Default::default() }
        };
        refuses(&many(0), "BAD_PARAMETER", "labels");
        refuses(&many(1), "BAD_PARAMETER", "labels");
        refuses(&many(257), "TOO_MANY_ITEMS", "labels");
        assert!(Labels::parse(&many(2)).is_ok() && Labels::parse(&many(256)).is_ok());
    }

    #[test]
    fn names_and_descriptions_have_bounds() {
        let with = |second: pb::ZeroShotLabel| {
            let labels = vec![label("a", ""), second];
            pb::ClassifyZeroShotRequest { labels, ..Default::default() }
        };
        refuses(&with(label("", "b")), "BAD_PARAMETER", "labels[1].name");
        refuses(&with(label(&"x".repeat(257), "")), "BAD_PARAMETER", "labels[1].name");
        refuses(&with(label("a", "another")), "BAD_PARAMETER", "labels[1].name");
        refuses(&with(label("b", &"x".repeat(4097))), "BAD_PARAMETER", "labels[1].description");
        refuses(&with(label("b", " \n")), "BAD_PARAMETER", "labels[1].description");
        assert!(Labels::parse(&with(label(&"x".repeat(256), &"x".repeat(4096)))).is_ok());
    }

    #[test]
    fn a_template_names_the_label_once() {
        for template in ["about", "{} and {}", &format!("{{}}{}", "x".repeat(1023))] {
            let request = pb::ClassifyZeroShotRequest { template: template.to_owned(), ..request() };
            refuses(&request, "BAD_PARAMETER", "template");
        }
        let template = format!("{{}}{}", "x".repeat(1022));
        assert!(Labels::parse(&pb::ClassifyZeroShotRequest { template, ..request() }).is_ok());
    }

    #[test]
    fn a_temperature_is_finite_and_above_zero() {
        for temperature in [0.0, -1.0, f32::NAN, f32::INFINITY] {
            let request = pb::ClassifyZeroShotRequest { temperature: Some(temperature), ..request() };
            refuses(&request, "BAD_PARAMETER", "temperature");
        }
        let request = pb::ClassifyZeroShotRequest { temperature: Some(2.0), ..request() };
        assert_eq!(Labels::parse(&request).unwrap().temperature, 2.0);
    }

    #[test]
    fn each_label_for_itself_has_no_meaning() {
        let params = pb::ClassifyParams { score_mode: ScoreMode::Sigmoid.into(), ..Default::default() };
        let request = pb::ClassifyZeroShotRequest { params: Some(params), ..request() };
        refuses(&request, "BAD_PARAMETER", "params.score_mode");
    }
}
