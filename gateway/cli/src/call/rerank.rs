//! `tamis call rerank`.

use proto::embedding::v1::{self as pb, embedding_service_client::EmbeddingServiceClient, rerank_result::Outcome};
use serde_json::{Value, json};

use super::{Flags, client, reply, reply::Reply};
use crate::{
    home::Home,
    output::{excerpt, render, right, table},
};

/// A reply, beside what was asked.
pub(crate) struct Ranked {
    documents: Vec<String>,
    response: pb::RerankResponse,
}

/// Ranks the documents for the query.
pub(crate) async fn call(query: String, documents: Vec<String>, flags: &Flags, home: &Home) -> anyhow::Result<Ranked> {
    let connection = client::connect(flags, home).await?;
    let model = client::selector(flags);
    let message = pb::RerankRequest { model, query, documents: documents.clone(), ..Default::default() };
    let mut service =
        EmbeddingServiceClient::new(connection.channel.clone()).max_decoding_message_size(client::REPLY_BYTES_MAX);
    let response = service.rerank(client::request(message, flags)).await;
    match response {
        Ok(response) => Ok(Ranked { documents, response: response.into_inner() }),
        Err(status) => Err(connection.explain(&status).await),
    }
}

impl Reply for Ranked {
    fn json(&self) -> Value {
        let result = |result: &pb::RerankResult| {
            let mut json = json!({
                "index": result.index,
                "token_count": result.token_count,
                "truncated": result.truncated,
            });
            match &result.outcome {
                Some(Outcome::Score(score)) => json["score"] = json!(score),
                Some(Outcome::Error(error)) => json["error"] = reply::error(error),
                None => {}
            }
            json
        };
        json!({
            "results": self.response.results.iter().map(result).collect::<Vec<_>>(),
            "model": reply::model(self.response.model.as_ref()),
            "usage": reply::usage(self.response.usage.as_ref()),
        })
    }

    fn table(&self) -> String {
        let mut rows = table(&["SCORE", "", "DOCUMENT"]);
        right(&mut rows, &[1]);
        for result in &self.response.results {
            let score = match &result.outcome {
                Some(Outcome::Score(score)) => format!("{score:.4}"),
                Some(Outcome::Error(error)) => reply::complaint(error),
                None => "no outcome".to_owned(),
            };
            let document = self.documents.get(result.index as usize).map_or("", String::as_str);
            rows.add_row([&score, &result.index.to_string(), &excerpt(document, 60)]);
        }
        format!("{}\n\n{}", render(&rows), reply::model_line(self.response.model.as_ref()))
    }

    fn failed(&self) -> (usize, usize) {
        let results = &self.response.results;
        let good = results.iter().filter(|result| matches!(result.outcome, Some(Outcome::Score(_)))).count();
        (results.len() - good, results.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_stand_in_the_order_of_their_scores() {
        let result =
            |index, score| pb::RerankResult { index, outcome: Some(Outcome::Score(score)), ..Default::default() };
        let response = pb::RerankResponse { results: vec![result(1, 0.9), result(0, 0.25)], ..Default::default() };
        let ranked = Ranked { documents: ["one", "two"].map(str::to_owned).into(), response };
        let text = ranked.table();
        let rows: Vec<_> = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).collect();
        assert_eq!(rows[1..3], [["0.9000", "1", "two"], ["0.2500", "0", "one"]]);
        assert_eq!((ranked.failed(), &ranked.json()["results"][1]["score"]), ((0, 2), &json!(0.25)));
    }
}
