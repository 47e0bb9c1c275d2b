//! Labels of texts and images, as people and programs read them.

use proto::{
    classification::v1::{self as pb, classify_result::Outcome},
    common::v1 as common,
};
use serde_json::{Value, json};

use super::{reply, reply::Reply};
use crate::output::{render, right, table};

/// Most characters of a name.
pub(crate) const NAME_WIDTH_MAX: usize = 48;

/// A reply with labels, beside the names of what was labelled.
pub(crate) struct Labelled {
    /// What the names are, as the table's heading.
    pub(crate) heading: &'static str,
    /// Short enough for a table.
    pub(crate) names: Vec<String>,
    pub(crate) results: Vec<pb::ClassifyResult>,
    pub(crate) model: Option<common::ModelInfo>,
    pub(crate) usage: Option<common::Usage>,
}

impl Labelled {
    /// A reply without names.
    pub(crate) fn of(
        results: Vec<pb::ClassifyResult>,
        model: Option<common::ModelInfo>,
        usage: Option<common::Usage>,
    ) -> Self {
        Self { heading: "", names: Vec::new(), results, model, usage }
    }
}

impl Reply for Labelled {
    fn json(&self) -> Value {
        let label = |label: &pb::Label| json!({ "id": label.id, "name": label.name, "score": label.score, "selected": label.selected });
        let result = |result: &pb::ClassifyResult| {
            let mut json = json!({
                "index": result.index,
                "token_count": result.token_count,
                "truncated": result.truncated,
            });
            match &result.outcome {
                Some(Outcome::Labels(labels)) => {
                    json["labels"] = json!({ "labels": labels.labels.iter().map(label).collect::<Vec<_>>() });
                }
                Some(Outcome::Error(error)) => json["error"] = reply::error(error),
                None => {}
            }
            json
        };
        json!({
            "results": self.results.iter().map(result).collect::<Vec<_>>(),
            "model": reply::model(self.model.as_ref()),
            "usage": reply::usage(self.usage.as_ref()),
        })
    }

    fn table(&self) -> String {
        let mut rows = table(&[self.heading, "LABEL", "SCORE", "SELECTED"]);
        right(&mut rows, &[2]);
        for (result, name) in self.results.iter().zip(&self.names) {
            match &result.outcome {
                Some(Outcome::Labels(labels)) if labels.labels.is_empty() => {
                    rows.add_row([name, "none", "", ""]);
                }
                Some(Outcome::Labels(labels)) => {
                    for (place, label) in labels.labels.iter().enumerate() {
                        let name = if place == 0 { name.as_str() } else { "" };
                        let selected = if label.selected { "yes" } else { "" };
                        rows.add_row([name, &label.name, &format!("{:.4}", label.score), selected]);
                    }
                }
                Some(Outcome::Error(error)) => {
                    rows.add_row([name, &reply::complaint(error), "", ""]);
                }
                None => {
                    rows.add_row([name, "no outcome", "", ""]);
                }
            }
        }
        format!("{}\n\n{}", render(&rows), reply::model_line(self.model.as_ref()))
    }

    fn failed(&self) -> (usize, usize) {
        let good = self.results.iter().filter(|result| matches!(result.outcome, Some(Outcome::Labels(_)))).count();
        (self.results.len() - good, self.results.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labelled() -> Labelled {
        let label = |id, name: &str, score, selected| pb::Label { id, name: name.into(), score, selected };
        let labels = pb::Labels { labels: vec![label(0, "injection", 0.984, true), label(1, "aux", 0.1, false)] };
        let error = common::ItemError { reason: common::ErrorReason::BadImage.into(), message: "no image".into() };
        let result = |index, outcome| pb::ClassifyResult { index, outcome: Some(outcome), ..Default::default() };
        Labelled {
            heading: "TEXT",
            names: vec!["Ignore all".into(), "b".into()],
            results: vec![result(0, Outcome::Labels(labels)), result(1, Outcome::Error(error))],
            model: None,
            usage: None,
        }
    }

    #[test]
    fn a_table_names_an_item_once_and_shows_errors_in_place() {
        let text = labelled().table();
        let rows: Vec<_> = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).collect();
        assert_eq!(rows[1], ["Ignore", "all", "injection", "0.9840", "yes"]);
        assert_eq!(rows[2], ["aux", "0.1000"]);
        assert_eq!(rows[3], ["b", "BAD_IMAGE:", "no", "image"]);
    }

    #[test]
    fn json_has_the_field_names_of_the_contract() {
        let json = labelled().json();
        assert_eq!(json["results"][0]["labels"]["labels"][0]["name"], "injection");
        assert_eq!(json["results"][1]["error"]["reason"], "ERROR_REASON_BAD_IMAGE");
        assert_eq!(labelled().failed(), (1, 2));
    }
}
