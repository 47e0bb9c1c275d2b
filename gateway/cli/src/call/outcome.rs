//! What a step of a fan-out came to.

use proto::{
    classification::v1::{self as classification, classify_result},
    embedding::v1::{self as embedding, embed_result},
    gateway::v1::{self as pb, step_result::Outcome},
};
use serde_json::{Value, json};
use tonic::Code;

use super::{embed::Embedded, failure::code_name, labels::Labelled, reply, reply::Reply as _};

/// In one line, for people.
pub(crate) fn line(outcome: Option<&Outcome>) -> String {
    match outcome {
        Some(Outcome::Embed(reply)) => vectors(&reply.results),
        Some(Outcome::EmbedImages(reply)) => vectors(&reply.results),
        Some(Outcome::Classify(reply)) => labels(&reply.results),
        Some(Outcome::ClassifyZeroShot(reply)) => labels(&reply.results),
        Some(Outcome::ClassifyImages(reply)) => labels(&reply.results),
        Some(Outcome::Rerank(reply)) => format!("{} scores", reply.results.len()),
        Some(Outcome::CountTokens(reply)) => format!("{} counts", reply.results.len()),
        Some(Outcome::Error(error)) => failure(error),
        None => "no outcome".to_owned(),
    }
}

/// The contract's field and its value, for programs. `tamis call fanout` asks for three kinds; of others the size is told.
pub(crate) fn json(outcome: Option<&Outcome>) -> (&'static str, Value) {
    match outcome {
        Some(Outcome::Embed(reply)) => ("embed", Embedded::of(reply.clone()).json()),
        Some(Outcome::Classify(reply)) => {
            ("classify", Labelled::of(reply.results.clone(), reply.model.clone(), reply.usage).json())
        }
        Some(Outcome::ClassifyImages(reply)) => {
            ("classify_images", Labelled::of(reply.results.clone(), reply.model.clone(), reply.usage).json())
        }
        Some(Outcome::EmbedImages(reply)) => ("embed_images", json!({ "results": reply.results.len() })),
        Some(Outcome::ClassifyZeroShot(reply)) => {
            ("classify_zero_shot", Labelled::of(reply.results.clone(), reply.model.clone(), reply.usage).json())
        }
        Some(Outcome::Rerank(reply)) => ("rerank", json!({ "results": reply.results.len() })),
        Some(Outcome::CountTokens(reply)) => ("count_tokens", json!({ "results": reply.results.len() })),
        Some(Outcome::Error(error)) => ("error", json_error(error)),
        None => ("error", Value::Null),
    }
}

fn json_error(error: &pb::StepError) -> Value {
    json!({
        "code": code_name(Code::from(error.code)),
        "reason": error.reason().as_str_name(),
        "message": error.message,
        "retry_delay_ms": error.retry_delay.and_then(|delay| {
            Some(std::time::Duration::try_from(delay).ok()?.as_secs_f64() * 1e3)
        }),
        "fields": error.fields,
    })
}

fn failure(error: &pb::StepError) -> String {
    let (code, reason) = (code_name(Code::from(error.code)), error.reason().as_error_info());
    format!("{code}, {reason}: {}", error.message)
}

fn vectors(results: &[embedding::EmbedResult]) -> String {
    let line = |result: &embedding::EmbedResult| match &result.outcome {
        Some(embed_result::Outcome::Embedding(vector)) => format!("vector of {} dimensions", vector.dimensions),
        Some(embed_result::Outcome::Error(error)) => reply::complaint(error),
        None => "no outcome".to_owned(),
    };
    results.iter().map(line).collect::<Vec<_>>().join("\n")
}

fn labels(results: &[classification::ClassifyResult]) -> String {
    let line = |result: &classification::ClassifyResult| match &result.outcome {
        Some(classify_result::Outcome::Labels(labels)) => labels
            .labels
            .first()
            .map_or_else(|| "no label".to_owned(), |label| format!("{} {:.4}", label.name, label.score)),
        Some(classify_result::Outcome::Error(error)) => reply::complaint(error),
        None => "no outcome".to_owned(),
    };
    results.iter().map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_told_by_the_first() {
        let label = |name: &str, score| classification::Label { name: name.into(), score, ..Default::default() };
        let labels = classification::Labels { labels: vec![label("goose", 0.9), label("hen", 0.1)] };
        let result = classification::ClassifyResult {
            outcome: Some(classify_result::Outcome::Labels(labels)),
            ..Default::default()
        };
        let reply = classification::ClassifyResponse { results: vec![result], ..Default::default() };
        let outcome = Outcome::Classify(reply);
        assert_eq!(line(Some(&outcome)), "goose 0.9000");
        let (name, value) = json(Some(&outcome));
        assert_eq!((name, &value["results"][0]["labels"]["labels"][1]["name"]), ("classify", &json!("hen")));
    }

    #[test]
    fn an_error_is_told_by_code_reason_and_message() {
        let error = pb::StepError { code: 4, reason: 15, message: "too late".into(), ..Default::default() };
        assert_eq!(line(Some(&Outcome::Error(error.clone()))), "DEADLINE_EXCEEDED, DEADLINE: too late");
        assert_eq!(json(Some(&Outcome::Error(error))).1["code"], "DEADLINE_EXCEEDED");
        assert_eq!(line(None), "no outcome");
    }
}
