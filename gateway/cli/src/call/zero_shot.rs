//! `tamis call classify --labels`.

use proto::classification::v1::{self as pb, classification_service_client::ClassificationServiceClient};

use super::{
    Flags, client,
    labels::{Labelled, NAME_WIDTH_MAX},
};
use crate::{home::Home, output::excerpt};

/// What is asked.
pub(crate) struct Question {
    pub(crate) texts: Vec<String>,
    pub(crate) labels: Vec<String>,
    /// Empty: the service's.
    pub(crate) template: String,
}

/// Finds the nearest labels of the texts.
pub(crate) async fn call(question: Question, flags: &Flags, home: &Home) -> anyhow::Result<Labelled> {
    let connection = client::connect(flags, home).await?;
    let Question { texts, labels, template } = question;
    let input = |text: &String| pb::TextInput { text: text.clone(), text_pair: None };
    let label = |name: String| pb::ZeroShotLabel { name, description: String::new() };
    let message = pb::ClassifyZeroShotRequest {
        model: client::selector(flags),
        inputs: texts.iter().map(input).collect(),
        labels: labels.into_iter().map(label).collect(),
        template,
        ..Default::default()
    };
    let mut service =
        ClassificationServiceClient::new(connection.channel.clone()).max_decoding_message_size(client::REPLY_BYTES_MAX);
    let response = service.classify_zero_shot(client::request(message, flags)).await;
    let response = match response {
        Ok(response) => response.into_inner(),
        Err(status) => return Err(connection.explain(&status).await),
    };
    let pb::ClassifyZeroShotResponse { results, model, usage, .. } = response;
    let names = texts.iter().map(|text| excerpt(text, NAME_WIDTH_MAX)).collect();
    Ok(Labelled { heading: "TEXT", names, results, model, usage })
}
