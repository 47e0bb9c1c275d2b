//! `tamis call classify`.

use proto::classification::v1::{self as pb, classification_service_client::ClassificationServiceClient};

use super::{
    Flags, client,
    labels::{Labelled, NAME_WIDTH_MAX},
};
use crate::{home::Home, output::excerpt};

/// Classifies the texts.
pub(crate) async fn call(texts: Vec<String>, flags: &Flags, home: &Home) -> anyhow::Result<Labelled> {
    let connection = client::connect(flags, home).await?;
    let inputs = texts.iter().map(|text| pb::TextInput { text: text.clone(), text_pair: None }).collect();
    let message = pb::ClassifyRequest { model: client::selector(flags), inputs, ..Default::default() };
    let mut service =
        ClassificationServiceClient::new(connection.channel.clone()).max_decoding_message_size(client::REPLY_BYTES_MAX);
    let response = service.classify(client::request(message, flags)).await;
    let response = match response {
        Ok(response) => response.into_inner(),
        Err(status) => return Err(connection.explain(&status).await),
    };
    let pb::ClassifyResponse { results, model, usage, .. } = response;
    let names = texts.iter().map(|text| excerpt(text, NAME_WIDTH_MAX)).collect();
    Ok(Labelled { heading: "TEXT", names, results, model, usage })
}
