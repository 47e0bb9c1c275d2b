//! `tamis call embed`.

use proto::embedding::v1::{self as pb, embed_result::Outcome, embedding_service_client::EmbeddingServiceClient};
use serde_json::{Value, json};

use super::{Flags, client, reply, reply::Reply};
use crate::{
    home::Home,
    output::{excerpt, render, right, table},
};

/// Components that the table shows.
const SHOWN: usize = 4;
/// Most texts that are compared with one another; more make no table that fits a screen.
const COMPARED_MAX: usize = 8;

/// A reply, beside what was asked.
pub(crate) struct Embedded {
    texts: Vec<String>,
    response: pb::EmbedResponse,
}

/// Embeds the texts.
pub(crate) async fn call(
    texts: Vec<String>,
    params: pb::EmbedParams,
    flags: &Flags,
    home: &Home,
) -> anyhow::Result<Embedded> {
    let connection = client::connect(flags, home).await?;
    let input = |text: &String| pb::EmbedInput { input: Some(pb::embed_input::Input::Text(text.clone())) };
    let inputs = texts.iter().map(input).collect();
    let message =
        pb::EmbedRequest { model: client::selector(flags), inputs, params: Some(params), ..Default::default() };
    let mut service =
        EmbeddingServiceClient::new(connection.channel.clone()).max_decoding_message_size(client::REPLY_BYTES_MAX);
    let response = service.embed(client::request(message, flags)).await;
    let response = match response {
        Ok(response) => response.into_inner(),
        Err(status) => return Err(connection.explain(&status).await),
    };
    Ok(Embedded { texts, response })
}

impl Embedded {
    /// A reply without the texts.
    pub(crate) fn of(response: pb::EmbedResponse) -> Self {
        Self { texts: Vec::new(), response }
    }

    fn vectors(&self) -> Vec<Option<Vec<f32>>> {
        let vector = |result: &pb::EmbedResult| match &result.outcome {
            Some(Outcome::Embedding(embedding)) => Some(values(embedding)),
            _ => None,
        };
        self.response.results.iter().map(vector).collect()
    }

    /// The cosine of each pair, where there are few enough.
    fn comparison(&self) -> Option<String> {
        let vectors = self.vectors();
        if !(2..=COMPARED_MAX).contains(&vectors.len()) {
            return None;
        }
        let numbers: Vec<_> = (0..vectors.len()).map(|n| n.to_string()).collect();
        let header: Vec<_> = std::iter::once("COSINE").chain(numbers.iter().map(String::as_str)).collect();
        let mut table = table(&header);
        right(&mut table, &(1..header.len()).collect::<Vec<_>>());
        for (row, a) in vectors.iter().enumerate() {
            let cell = |b: &Option<Vec<f32>>| match (a, b) {
                (Some(a), Some(b)) => format!("{:.4}", cosine(a, b)),
                _ => "-".to_owned(),
            };
            table.add_row(std::iter::once(row.to_string()).chain(vectors.iter().map(cell)));
        }
        Some(render(&table))
    }
}

impl Reply for Embedded {
    fn json(&self) -> Value {
        let result = |result: &pb::EmbedResult| {
            let mut json = json!({
                "index": result.index,
                "token_count": result.token_count,
                "truncated": result.truncated,
            });
            match &result.outcome {
                Some(Outcome::Embedding(embedding)) => {
                    json["embedding"] = json!({ "values": values(embedding), "dimensions": embedding.dimensions });
                }
                Some(Outcome::Error(error)) => json["error"] = reply::error(error),
                None => {}
            }
            json
        };
        json!({
            "results": self.response.results.iter().map(result).collect::<Vec<_>>(),
            "model": reply::model(self.response.model.as_ref()),
            "space_id": self.response.space_id,
            "usage": reply::usage(self.response.usage.as_ref()),
        })
    }

    fn table(&self) -> String {
        let mut rows = table(&["", "TEXT", "TOKENS", "DIMENSIONS", "VECTOR"]);
        right(&mut rows, &[2, 3]);
        for (result, text) in self.response.results.iter().zip(&self.texts) {
            let (dimensions, vector) = match &result.outcome {
                Some(Outcome::Embedding(embedding)) => (embedding.dimensions.to_string(), first(&values(embedding))),
                Some(Outcome::Error(error)) => ("-".to_owned(), reply::complaint(error)),
                None => ("-".to_owned(), "no outcome".to_owned()),
            };
            rows.add_row([
                &result.index.to_string(),
                &excerpt(text, 40),
                &result.token_count.to_string(),
                &dimensions,
                &vector,
            ]);
        }
        let mut text = render(&rows);
        if let Some(comparison) = self.comparison() {
            text = format!("{text}\n\n{comparison}");
        }
        let model = reply::model_line(self.response.model.as_ref());
        format!("{text}\n\n{model}\nSpace {}", self.response.space_id)
    }

    fn failed(&self) -> (usize, usize) {
        let results = &self.response.results;
        let good = results.iter().filter(|result| matches!(result.outcome, Some(Outcome::Embedding(_)))).count();
        (results.len() - good, results.len())
    }
}

fn values(embedding: &pb::Embedding) -> Vec<f32> {
    let (bytes, _) = embedding.data.as_chunks::<4>();
    bytes.iter().copied().map(f32::from_le_bytes).collect()
}

fn first(values: &[f32]) -> String {
    let shown: Vec<_> = values.iter().take(SHOWN).map(|value| format!("{value:.4}")).collect();
    let more = if values.len() > SHOWN { " …" } else { "" };
    format!("{}{more}", shown.join(" "))
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>();
    let lengths = (dot(a, a) * dot(b, b)).sqrt();
    if lengths > 0.0 { dot(a, b) / lengths } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use proto::common::v1::{ErrorReason, ItemError};

    use super::*;

    fn embedded() -> Embedded {
        let vector = |values: &[f32]| pb::Embedding {
            data: values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>().into(),
            dimensions: 2,
            ..Default::default()
        };
        let result =
            |index, outcome| pb::EmbedResult { index, outcome: Some(outcome), token_count: 3, truncated: false };
        let error = ItemError { reason: ErrorReason::EmptyInput.into(), message: "the text is empty".into() };
        let results = vec![
            result(0, Outcome::Embedding(vector(&[1.0, 0.0]))),
            result(1, Outcome::Embedding(vector(&[0.6, 0.8]))),
            result(2, Outcome::Error(error)),
        ];
        let response = pb::EmbedResponse { results, space_id: "sha256:ab".into(), ..Default::default() };
        Embedded { texts: ["one", "two", ""].map(str::to_owned).into(), response }
    }

    #[test]
    fn a_table_shows_vectors_errors_in_place_and_cosines() {
        let text = embedded().table();
        let rows: Vec<_> = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).collect();
        assert_eq!(rows[1], ["0", "one", "3", "2", "1.0000", "0.0000"]);
        assert!(text.contains("EMPTY_INPUT: the text is empty"), "{text}");
        assert_eq!(rows[6], ["0", "1.0000", "0.6000", "-"]);
        assert!(text.ends_with("Space sha256:ab"), "{text}");
    }

    #[test]
    fn json_has_whole_vectors_and_errors() {
        let json = embedded().json();
        assert_eq!(json["results"][1]["embedding"]["values"][1], json!(0.8f32));
        assert_eq!(json["results"][2]["error"]["reason"], "ERROR_REASON_EMPTY_INPUT");
    }

    #[test]
    fn failed_items_are_counted() {
        assert_eq!(embedded().failed(), (1, 3));
    }

    #[test]
    fn the_cosine_of_nothing_is_zero() {
        assert_eq!(cosine(&[0.0], &[1.0]), 0.0);
    }
}
