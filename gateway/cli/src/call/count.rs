//! `tamis call count`.

use proto::embedding::v1::{
    self as pb, count_tokens_result::Outcome, embedding_service_client::EmbeddingServiceClient,
};
use serde_json::{Value, json};

use super::{Flags, RoleName, client, reply, reply::Reply};
use crate::{
    home::Home,
    output::{excerpt, render, right, table},
};

/// A reply, beside what was asked.
pub(crate) struct Counted {
    texts: Vec<String>,
    response: pb::CountTokensResponse,
}

/// Counts the tokens of the texts.
pub(crate) async fn call(texts: Vec<String>, role: RoleName, flags: &Flags, home: &Home) -> anyhow::Result<Counted> {
    let connection = client::connect(flags, home).await?;
    let role = pb::InputRole::from(role).into();
    let message = pb::CountTokensRequest { model: client::selector(flags), texts: texts.clone(), role };
    let mut service =
        EmbeddingServiceClient::new(connection.channel.clone()).max_decoding_message_size(client::REPLY_BYTES_MAX);
    let response = service.count_tokens(client::request(message, flags)).await;
    match response {
        Ok(response) => Ok(Counted { texts, response: response.into_inner() }),
        Err(status) => Err(connection.explain(&status).await),
    }
}

impl Reply for Counted {
    fn json(&self) -> Value {
        let result = |result: &pb::CountTokensResult| match &result.outcome {
            Some(Outcome::TokenCount(count)) => json!({ "index": result.index, "token_count": count }),
            Some(Outcome::Error(error)) => json!({ "index": result.index, "error": reply::error(error) }),
            None => json!({ "index": result.index }),
        };
        json!({
            "results": self.response.results.iter().map(result).collect::<Vec<_>>(),
            "max_input_tokens": self.response.max_input_tokens,
            "model": reply::model(self.response.model.as_ref()),
        })
    }

    fn table(&self) -> String {
        let mut rows = table(&["", "TEXT", "TOKENS"]);
        right(&mut rows, &[2]);
        for (result, text) in self.response.results.iter().zip(&self.texts) {
            let tokens = match &result.outcome {
                Some(Outcome::TokenCount(count)) => count.to_string(),
                Some(Outcome::Error(error)) => reply::complaint(error),
                None => "no outcome".to_owned(),
            };
            rows.add_row([&result.index.to_string(), &excerpt(text, 60), &tokens]);
        }
        let model = reply::model_line(self.response.model.as_ref());
        format!("{}\n\n{model}, takes {} tokens", render(&rows), self.response.max_input_tokens)
    }

    fn failed(&self) -> (usize, usize) {
        let results = &self.response.results;
        let good = results.iter().filter(|result| matches!(result.outcome, Some(Outcome::TokenCount(_)))).count();
        (results.len() - good, results.len())
    }
}
