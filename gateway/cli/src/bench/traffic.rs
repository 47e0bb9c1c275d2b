//! What is sent, and what the replies come to.

use std::{error::Error as _, time::Duration};

use clap::ValueEnum;
use proto::{
    classification::v1::{self as classification, classification_service_client::ClassificationServiceClient},
    common::v1 as common,
    embedding::v1::{self as embedding, embedding_service_client::EmbeddingServiceClient},
    gateway::v1::{self as gateway, gateway_service_client::GatewayServiceClient},
    vision::v1::{self as vision, vision_service_client::VisionServiceClient},
};
use tonic::{Code, Request, Response, Status, TimeoutExpired, codegen::Bytes, transport::Channel};
use tonic_types::StatusExt as _;

use super::tally::{Answer, Kind, Origin};
use crate::call::{
    client::REPLY_BYTES_MAX,
    failure::{caused_by, chain, code_name},
};

/// The method that is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Method {
    /// EmbeddingService/Embed.
    Embed,
    /// ClassificationService/Classify.
    Classify,
    /// VisionService/ClassifyImages.
    See,
    /// GatewayService/FanOut: embed and classify the texts, and look at the images if there are any.
    Fanout,
}

/// Lane of the services' queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Lane {
    /// Somebody waits for the answer.
    Interactive,
    /// Bulk work.
    Batch,
}

/// What all calls are made of.
#[derive(Clone, Debug)]
pub(crate) struct Traffic {
    pub(crate) method: Method,
    /// Texts, taken in turn; not empty for methods that take texts.
    pub(crate) texts: Vec<String>,
    /// Images, taken in turn; not empty for `See`.
    pub(crate) images: Vec<Bytes>,
    /// Items of a call.
    pub(crate) batch: usize,
    pub(crate) model: Option<String>,
    pub(crate) lane: Lane,
    pub(crate) deadline: Duration,
}

impl Traffic {
    /// Makes the call of this number: the same content for the same number.
    pub(crate) async fn call(&self, channel: Channel, number: u64) -> Answer {
        let size = REPLY_BYTES_MAX;
        match self.method {
            Method::Embed => {
                let mut client = EmbeddingServiceClient::new(channel).max_decoding_message_size(size);
                answer(client.embed(self.request(self.embed(number))).await, |reply| embedded(&reply.results))
            }
            Method::Classify => {
                let mut client = ClassificationServiceClient::new(channel).max_decoding_message_size(size);
                answer(client.classify(self.request(self.classify(number))).await, |reply| labelled(&reply.results))
            }
            Method::See => {
                let mut client = VisionServiceClient::new(channel).max_decoding_message_size(size);
                let mut request = self.request(self.see(number));
                // The gateway sees bytes; how much work they are is known here.
                let units = u32::try_from(self.batch).unwrap_or(u32::MAX);
                request.metadata_mut().insert("tamis-units", units.into());
                answer(client.classify_images(request).await, |reply| labelled(&reply.results))
            }
            Method::Fanout => {
                let mut client = GatewayServiceClient::new(channel).max_decoding_message_size(size);
                answer(client.fan_out(self.request(self.fan_out(number))).await, |reply| stepped(&reply.results))
            }
        }
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(self.deadline);
        request
    }

    fn embed(&self, number: u64) -> embedding::EmbedRequest {
        let input =
            |text: &String| embedding::EmbedInput { input: Some(embedding::embed_input::Input::Text(text.clone())) };
        let inputs = pick(&self.texts, self.batch, number).map(input).collect();
        embedding::EmbedRequest { model: self.model(), inputs, options: self.options(), ..Default::default() }
    }

    fn classify(&self, number: u64) -> classification::ClassifyRequest {
        let input = |text: &String| classification::TextInput { text: text.clone(), text_pair: None };
        let inputs = pick(&self.texts, self.batch, number).map(input).collect();
        classification::ClassifyRequest { model: self.model(), inputs, options: self.options(), ..Default::default() }
    }

    fn see(&self, number: u64) -> vision::ClassifyImagesRequest {
        let input = |bytes: &Bytes| vision::ImageInput {
            source: Some(vision::image_input::Source::Encoded(bytes.clone())),
            ..Default::default()
        };
        let images = pick(&self.images, self.batch, number).map(input).collect();
        vision::ClassifyImagesRequest { model: self.model(), images, options: self.options(), ..Default::default() }
    }

    fn fan_out(&self, number: u64) -> gateway::FanOutRequest {
        use gateway::step::Call;
        let step = |id: &str, call: Call| gateway::Step { id: id.to_owned(), call: Some(call), ..Default::default() };
        let mut steps = vec![
            step("embed", Call::Embed(self.embed(number))),
            step("classify", Call::Classify(self.classify(number))),
        ];
        if !self.images.is_empty() {
            steps.push(step("see", Call::ClassifyImages(self.see(number))));
        }
        gateway::FanOutRequest { steps, ..Default::default() }
    }

    fn model(&self) -> Option<common::ModelSelector> {
        let model = self.model.clone()?;
        Some(common::ModelSelector { model, ..Default::default() })
    }

    fn options(&self) -> Option<common::RequestOptions> {
        let priority = match self.lane {
            Lane::Interactive => common::Priority::Interactive,
            Lane::Batch => common::Priority::Batch,
        };
        Some(common::RequestOptions { priority: priority.into(), ..Default::default() })
    }
}

/// The items of a call: the next ones in turn.
fn pick<T>(all: &[T], batch: usize, number: u64) -> impl Iterator<Item = &T> {
    let length = u64::try_from(all.len()).unwrap_or(u64::MAX).max(1);
    let batch_size = u64::try_from(batch).unwrap_or(u64::MAX);
    let first = usize::try_from(number.wrapping_mul(batch_size) % length).unwrap_or(0);
    all.iter().cycle().skip(first).take(batch)
}

fn answer<T>(
    response: Result<Response<T>, Status>,
    items: impl FnOnce(&T) -> (u64, Vec<common::ErrorReason>),
) -> Answer {
    match response {
        Ok(response) => {
            let (items, errors) = items(response.get_ref());
            Answer::Ok { items, errors }
        }
        Err(status) => failed(&status),
    }
}

fn embedded(results: &[embedding::EmbedResult]) -> (u64, Vec<common::ErrorReason>) {
    use embedding::embed_result::Outcome;
    count(results.iter().map(|result| match &result.outcome {
        Some(Outcome::Embedding(_)) => None,
        Some(Outcome::Error(error)) => Some(error.reason()),
        None => Some(common::ErrorReason::Unspecified),
    }))
}

fn labelled(results: &[classification::ClassifyResult]) -> (u64, Vec<common::ErrorReason>) {
    use classification::classify_result::Outcome;
    count(results.iter().map(|result| match &result.outcome {
        Some(Outcome::Labels(_)) => None,
        Some(Outcome::Error(error)) => Some(error.reason()),
        None => Some(common::ErrorReason::Unspecified),
    }))
}

/// A step that failed counts as one item, and those of the others by themselves.
fn stepped(results: &[gateway::StepResult]) -> (u64, Vec<common::ErrorReason>) {
    use gateway::step_result::Outcome;
    let (mut items, mut errors) = (0, Vec::new());
    for result in results {
        let (more, failed) = match &result.outcome {
            Some(Outcome::Embed(reply)) => embedded(&reply.results),
            Some(Outcome::Classify(reply)) => labelled(&reply.results),
            Some(Outcome::ClassifyImages(reply)) => labelled(&reply.results),
            Some(Outcome::Error(error)) => (0, vec![error.reason()]),
            _ => (0, vec![common::ErrorReason::Unspecified]),
        };
        items += more;
        errors.extend(failed);
    }
    (items, errors)
}

fn count(outcomes: impl Iterator<Item = Option<common::ErrorReason>>) -> (u64, Vec<common::ErrorReason>) {
    let (mut items, mut errors) = (0, Vec::new());
    for outcome in outcomes {
        match outcome {
            None => items += 1,
            Some(reason) => errors.push(reason),
        }
    }
    (items, errors)
}

fn failed(status: &Status) -> Answer {
    let kind = |code, reason: &str, origin| Kind { code: code_name(code), reason: reason.to_owned(), origin };
    match status.source() {
        // Only errors of this side have a source.
        Some(cause) if caused_by::<TimeoutExpired>(cause).is_some() => {
            Answer::Failed(kind(Code::DeadlineExceeded, "", Origin::Client), "no reply before the deadline".to_owned())
        }
        Some(cause) => Answer::Failed(kind(status.code(), "", Origin::Client), chain(cause)),
        None => {
            let details = status.get_error_details();
            let reason = details.error_info().map_or("", |info| info.reason.as_str());
            Answer::Failed(kind(status.code(), reason, Origin::Mesh), status.message().to_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use tonic_types::ErrorDetails;

    use super::*;

    fn traffic(batch: usize) -> Traffic {
        Traffic {
            method: Method::Embed,
            texts: ["a", "b", "c"].map(str::to_owned).into(),
            images: Vec::new(),
            batch,
            model: None,
            lane: Lane::Batch,
            deadline: Duration::from_secs(1),
        }
    }

    #[test]
    fn calls_take_the_texts_in_turn() {
        let texts = |number| {
            let inputs = traffic(2).classify(number).inputs;
            inputs.into_iter().map(|input| input.text).collect::<Vec<_>>()
        };
        assert_eq!([texts(0), texts(1), texts(2), texts(3)], [["a", "b"], ["c", "a"], ["b", "c"], ["a", "b"]]);
        assert_eq!(traffic(5).embed(0).inputs.len(), 5);
    }

    #[test]
    fn the_lane_and_the_model_are_in_the_request() {
        let request = Traffic { model: Some("m".into()), ..traffic(1) }.embed(0);
        assert_eq!(request.options.unwrap().priority(), common::Priority::Batch);
        assert_eq!(request.model.unwrap().model, "m");
    }

    #[test]
    fn a_fan_out_looks_at_images_if_there_are_any() {
        let steps = |traffic: Traffic| traffic.fan_out(0).steps.into_iter().map(|step| step.id).collect::<Vec<_>>();
        assert_eq!(steps(traffic(1)), ["embed", "classify"]);
        assert_eq!(steps(Traffic { images: vec![Bytes::new()], ..traffic(1) }), ["embed", "classify", "see"]);
    }

    #[test]
    fn items_and_their_errors_are_counted() {
        use super::embedding::embed_result::Outcome;
        let error = common::ItemError { reason: common::ErrorReason::EmptyInput.into(), message: String::new() };
        let result = |outcome| super::embedding::EmbedResult { outcome: Some(outcome), ..Default::default() };
        let results =
            [result(Outcome::Embedding(super::embedding::Embedding::default())), result(Outcome::Error(error))];
        assert_eq!(embedded(&results), (1, vec![common::ErrorReason::EmptyInput]));
        assert_eq!(embedded(&[super::embedding::EmbedResult::default()]), (0, vec![common::ErrorReason::Unspecified]));
        let steps = [super::gateway::StepResult {
            outcome: Some(super::gateway::step_result::Outcome::Error(super::gateway::StepError {
                reason: common::ErrorReason::QueueFull.into(),
                ..Default::default()
            })),
            ..Default::default()
        }];
        assert_eq!(stepped(&steps), (0, vec![common::ErrorReason::QueueFull]));
    }

    #[test]
    fn a_refusal_is_told_by_code_and_reason() {
        let details = ErrorDetails::with_error_info("QUEUE_FULL", "tamis", std::collections::HashMap::new());
        let status = Status::with_error_details(Code::ResourceExhausted, "full", details);
        let kind = Kind { code: "RESOURCE_EXHAUSTED".into(), reason: "QUEUE_FULL".into(), origin: Origin::Mesh };
        assert_eq!(failed(&status), Answer::Failed(kind, "full".into()));
    }

    #[test]
    fn giving_up_here_is_told_from_an_error_of_the_mesh() {
        let status = Status::from_error(Box::new(TimeoutExpired(())));
        let Answer::Failed(kind, _) = failed(&status) else { panic!("{status}") };
        assert_eq!((kind.code.as_str(), kind.origin), ("DEADLINE_EXCEEDED", Origin::Client));
    }
}
