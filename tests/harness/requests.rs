//! Requests as tests write them, and answers as they read them.

use proto::{
    classification::v1::{self as classification, classify_result},
    common::v1::{self as common, ErrorReason},
    embedding::v1::{self as embedding, embed_input::Input, embed_result},
    vision::v1::{self as vision, image_input::Source},
};
use tonic::{Status, codegen::Bytes};

use super::Channels;

/// A request for vectors of these texts.
pub(crate) fn embed<T: Into<String>>(texts: impl IntoIterator<Item = T>) -> embedding::EmbedRequest {
    let input = |text: T| embedding::EmbedInput { input: Some(Input::Text(text.into())) };
    embedding::EmbedRequest { inputs: texts.into_iter().map(input).collect(), ..Default::default() }
}

/// A request for labels of these texts.
pub(crate) fn classify<T: Into<String>>(texts: impl IntoIterator<Item = T>) -> classification::ClassifyRequest {
    let input = |text: T| classification::TextInput { text: text.into(), text_pair: None };
    classification::ClassifyRequest { inputs: texts.into_iter().map(input).collect(), ..Default::default() }
}

/// A request for labels of these images.
pub(crate) fn see(images: impl IntoIterator<Item = vision::ImageInput>) -> vision::ClassifyImagesRequest {
    vision::ClassifyImagesRequest { images: images.into_iter().collect(), ..Default::default() }
}

/// An image file.
pub(crate) fn image(file: impl Into<Bytes>) -> vision::ImageInput {
    vision::ImageInput { source: Some(Source::Encoded(file.into())), crop: None }
}

/// An image that was uploaded.
pub(crate) fn digest(digest: impl Into<String>) -> vision::ImageInput {
    vision::ImageInput { source: Some(Source::Digest(digest.into())), crop: None }
}

/// Uploads a file in chunks of 64 KiB.
pub(crate) async fn upload(client: &Channels, file: &Bytes) -> Result<vision::UploadImageResponse, Status> {
    let chunks: Vec<_> =
        file.chunks(64 << 10).map(|chunk| vision::UploadImageRequest { chunk: file.slice_ref(chunk) }).collect();
    client.vision().upload_image(futures_util::stream::iter(chunks)).await.map(tonic::Response::into_inner)
}

/// A text of about so many tokens: each word is one.
pub(crate) fn long_text(tokens: usize) -> String {
    vec!["house"; tokens].join(" ")
}

/// The vector of a result, from its bytes.
#[track_caller]
pub(crate) fn vector(result: &embedding::EmbedResult) -> Vec<f32> {
    let Some(embed_result::Outcome::Embedding(embedding)) = &result.outcome else { panic!("no vector: {result:?}") };
    let vector: Vec<_> =
        embedding.data.chunks_exact(4).map(|four| f32::from_le_bytes(four.try_into().unwrap())).collect();
    assert_eq!(vector.len(), embedding.dimensions as usize);
    vector
}

/// Why an item has no answer.
pub(crate) trait Outcome {
    fn error(&self) -> Option<&common::ItemError>;
}

impl Outcome for embedding::EmbedResult {
    fn error(&self) -> Option<&common::ItemError> {
        match self.outcome.as_ref()? {
            embed_result::Outcome::Error(error) => Some(error),
            embed_result::Outcome::Embedding(_) => None,
        }
    }
}

impl Outcome for classification::ClassifyResult {
    fn error(&self) -> Option<&common::ItemError> {
        match self.outcome.as_ref()? {
            classify_result::Outcome::Error(error) => Some(error),
            classify_result::Outcome::Labels(_) => None,
        }
    }
}

/// The reason of an item's error; `None` if it has an answer.
pub(crate) fn error_reason(result: &impl Outcome) -> Option<ErrorReason> {
    result.error().map(common::ItemError::reason)
}
