//! Refusals of the gateway itself. The one place in this crate where a gRPC status is made.

use std::{collections::HashMap, time::Duration};

use bytesize::ByteSize;
use chassis::{refusal::PUSHBACK, spiffe::SpiffeId};
use http::{HeaderMap, Response, StatusCode, response::Parts};
use proto::{common::v1::ErrorReason, gateway::v1 as pb};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

/// When a client is told to come back after a temporary refusal; after that its own back-off takes over.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Why the gateway answers a call itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The content type is not gRPC's; as gRPC asks, HTTP 415, so that no HTTP client takes the refusal for an answer.
    NotGrpc,
    /// Not a well-formed gRPC request.
    Malformed(String),
    /// The client's certificate names no SPIFFE identity.
    NoIdentity,
    /// No rule allows this identity this method.
    NotAllowed { identity: SpiffeId, path: String },
    /// No contract of the mesh has this method, or nothing serves it.
    UnknownMethod { path: String },
    /// The message is larger than any that would be taken.
    TooLarge { bytes: u64, bytes_max: u64 },
    /// A request is too large once the contents that it names are in it.
    ContentTooLarge { bytes: u64, bytes_max: u64 },
    /// An upload is larger than any that a request could name.
    UploadTooLarge { bytes_max: usize },
    /// A batch of more items than any that would be taken.
    TooManyItems { items: usize, items_max: usize },
    /// Too much is in flight already.
    Full { what: &'static str, max: usize },
    /// The replicas hold different revisions of the model, and none holds one for all of the batch.
    Mixed { service: String },
    /// No replica became ready in time.
    NoCapacity { service: String },
    /// Every replica that was tried was lost.
    ReplicaLost { attempts: u32 },
    /// This gateway shuts down.
    Draining,
    /// The deadline passed.
    Late { timeout: Duration },
    /// The client left; nobody will read this, but metrics and logs tell it from failures.
    Cancelled,
    /// A field of a request that the gateway answers itself is out of bounds.
    BadParameter { field: &'static str, message: String },
    /// A field of a fan-out is at fault, for this reason of the contracts' list.
    BadInput { reason: ErrorReason, field: String, message: String },
    /// This step of a fan-out failed, and the others do not count without it.
    Step { id: String, error: Box<pb::StepError> },
    /// Too many steps of a fan-out failed.
    QuorumNotReached { quorum: usize, failed: usize },
    /// The reply of a step does not fit into the response of its fan-out.
    ReplyTooLarge { bytes_max: u64 },
    /// There is no service of this name; the field that names it.
    UnknownService { field: String, name: String },
    /// No replica has this model.
    ModelNotFound,
    /// A replica's reply to the gateway itself does not decode.
    Engine(&'static str),
}

impl Refusal {
    /// As gRPC status.
    pub(crate) fn status(&self) -> Status {
        match self {
            Self::Step { id, error } => step_status(id, error),
            _ => self.refusal().into_status(),
        }
    }

    /// As a response without body.
    pub(crate) fn head(&self) -> Parts {
        let mut response: Response<()> = self.status().into_http();
        if *self == Self::NotGrpc {
            *response.status_mut() = StatusCode::UNSUPPORTED_MEDIA_TYPE;
        }
        response.into_parts().0
    }

    /// As the end of a reply that has begun.
    pub(crate) fn trailers(&self) -> HeaderMap {
        let mut trailers = HeaderMap::new();
        if self.status().add_header(&mut trailers).is_err() {
            // Only metadata that is no header can fail, and there is none; the code is what must not be lost.
            trailers.insert("grpc-status", (self.refusal().code as i32).into());
        }
        trailers
    }

    /// The reason for the metrics: a closed set.
    pub(crate) fn reason(&self) -> &'static str {
        self.refusal().reason
    }

    #[expect(clippy::too_many_lines, reason = "a table: one arm for each refusal, and nothing between them")]
    fn refusal(&self) -> chassis::refusal::Refusal {
        use chassis::refusal::Refusal as R;
        match self {
            Self::NotGrpc => R::malformed("content-type is not application/grpc or application/grpc+proto"),
            Self::Malformed(why) => R::malformed(why.clone()),
            Self::NoIdentity => R::new(
                Code::Unauthenticated,
                "NO_IDENTITY",
                "the client's certificate names no SPIFFE identity (one URI such as spiffe://tamis.local/client/NAME)",
            ),
            Self::NotAllowed { identity, path } => {
                R::new(Code::PermissionDenied, "NOT_ALLOWED", format!("no rule allows {identity} to call {path}"))
            }
            Self::UnknownMethod { path } => {
                let path = path.chars().take(256).collect::<String>();
                R::new(Code::Unimplemented, "UNKNOWN_METHOD", format!("this mesh does not serve {path}"))
            }
            Self::TooLarge { bytes, bytes_max } => {
                let message = format!("a message of {bytes} bytes is larger than {}", ByteSize(*bytes_max));
                R::new(Code::ResourceExhausted, "MESSAGE_TOO_LARGE", message)
            }
            Self::ContentTooLarge { bytes, bytes_max } => {
                let message = format!(
                    "with the images that its digests name the message has {bytes} bytes, more than {}; name fewer in a call",
                    ByteSize(*bytes_max)
                );
                R::new(Code::ResourceExhausted, "MESSAGE_TOO_LARGE", message)
            }
            Self::UploadTooLarge { bytes_max } => {
                let message =
                    format!("the image has more than {bytes_max} bytes, the most that a digest may stand for");
                R::new(Code::InvalidArgument, "INPUT_TOO_LARGE", message).field("chunk")
            }
            Self::TooManyItems { items, items_max } => {
                let message = format!("the call has {items} items, at most {items_max} are taken; send several calls");
                R::new(Code::InvalidArgument, "TOO_MANY_ITEMS", message)
            }
            Self::Full { what, max } => {
                R::full(format!("there are {max} {what} already, the most there may be"), RETRY_AFTER)
            }
            Self::Mixed { service } => {
                let message = format!("no revision of the model answers for the whole batch while {service} changes");
                R::new(Code::Unavailable, "NO_CAPACITY", message).retry_after(RETRY_AFTER)
            }
            Self::NoCapacity { service } => {
                R::new(Code::Unavailable, "NO_CAPACITY", format!("no replica of {service} is ready"))
                    .retry_after(RETRY_AFTER)
            }
            Self::ReplicaLost { attempts } => {
                let message = format!("the replica was lost before its answer was whole (attempt {attempts})");
                R::new(Code::Unavailable, "REPLICA_LOST", message).retry_after(RETRY_AFTER)
            }
            Self::Draining => {
                R::new(Code::Unavailable, "DRAINING", "the gateway is shutting down").retry_after(RETRY_AFTER)
            }
            Self::Late { timeout } => R::late(*timeout),
            Self::Cancelled => R::new(Code::Cancelled, "CANCELLED", "the client left"),
            Self::BadParameter { field, message } => {
                R::new(Code::InvalidArgument, "BAD_PARAMETER", message.clone()).field(*field)
            }
            Self::BadInput { reason, field, message } => {
                R::new(Code::InvalidArgument, reason.as_error_info(), message.clone()).field(field.clone())
            }
            Self::Step { error, .. } => {
                R::new(Code::from_i32(error.code), error.reason().as_error_info(), error.message.clone())
            }
            Self::QuorumNotReached { quorum, failed } => {
                let message = format!("{failed} steps failed, too many for a quorum of {quorum}");
                R::new(Code::Aborted, "QUORUM_NOT_REACHED", message)
            }
            Self::ReplyTooLarge { bytes_max } => {
                let what = "the reply does not fit: all its parts together may have";
                R::new(Code::ResourceExhausted, "MESSAGE_TOO_LARGE", format!("{what} {}", ByteSize(*bytes_max)))
            }
            Self::UnknownService { field, name } => {
                let name = name.chars().take(256).collect::<String>();
                R::new(Code::NotFound, "BAD_PARAMETER", format!("there is no service `{name}`")).field(field.clone())
            }
            Self::ModelNotFound => {
                R::new(Code::NotFound, "MODEL_NOT_FOUND", "no replica has loaded a model of this name")
            }
            Self::Engine(why) => R::engine(*why),
        }
    }
}

/// The status of a step as that of its fan-out: message and fields begin with the step's id.
fn step_status(id: &str, error: &pb::StepError) -> Status {
    let mut details = ErrorDetails::new();
    if error.reason() != ErrorReason::Unspecified {
        details.set_error_info(error.reason().as_error_info(), proto::ERROR_DOMAIN, HashMap::new());
    }
    let retry = error.retry_delay.and_then(|delay| Duration::try_from(delay).ok());
    if retry.is_some() {
        details.set_retry_info(retry);
    }
    for field in &error.fields {
        details.add_bad_request_violation(format!("{id}.{field}"), error.message.clone());
    }
    let message = format!("{id}: {}", error.message);
    let mut status = Status::with_error_details(Code::from_i32(error.code), message, details);
    if let Some(delay) = retry {
        let millis = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
        status.metadata_mut().insert(PUSHBACK, millis.into());
    }
    status
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(retry_delay: Option<Duration>) -> pb::StepError {
        let retry_delay = retry_delay.map(|delay| delay.try_into().unwrap());
        let fields = vec!["params.top_k".to_owned()];
        pb::StepError {
            code: 14,
            reason: ErrorReason::NoCapacity.into(),
            message: "no replica".into(),
            retry_delay,
            fields,
        }
    }

    fn every() -> Vec<Refusal> {
        vec![
            Refusal::NotGrpc,
            Refusal::Malformed("te".into()),
            Refusal::NoIdentity,
            Refusal::NotAllowed { identity: "spiffe://t/a".parse().unwrap(), path: "/a.B/C".into() },
            Refusal::UnknownMethod { path: "/a.B/C".into() },
            Refusal::TooLarge { bytes: 2, bytes_max: 1 },
            Refusal::ContentTooLarge { bytes: 2, bytes_max: 1 },
            Refusal::UploadTooLarge { bytes_max: 1 },
            Refusal::TooManyItems { items: 2, items_max: 1 },
            Refusal::Full { what: "calls in flight", max: 1 },
            Refusal::Mixed { service: "embedding".into() },
            Refusal::NoCapacity { service: "embedding".into() },
            Refusal::ReplicaLost { attempts: 3 },
            Refusal::Draining,
            Refusal::Late { timeout: RETRY_AFTER },
            Refusal::BadParameter { field: "page_size", message: "page_size is -1".into() },
            Refusal::BadInput {
                reason: ErrorReason::EmptyInput,
                field: "steps".into(),
                message: "there are no steps".into(),
            },
            Refusal::Step { id: "first".into(), error: Box::new(step(Some(RETRY_AFTER))) },
            Refusal::QuorumNotReached { quorum: 2, failed: 1 },
            Refusal::ReplyTooLarge { bytes_max: 1 },
            Refusal::UnknownService { field: "services[0]".into(), name: "x".into() },
            Refusal::ModelNotFound,
            Refusal::Engine("no reply"),
        ]
    }

    #[test]
    fn every_reason_is_of_the_contracts_list() {
        let reasons: Vec<_> = (0..64)
            .filter_map(|n| proto::common::v1::ErrorReason::try_from(n).ok())
            .map(|r| r.as_error_info())
            .collect();
        for refusal in every() {
            assert!(reasons.contains(&refusal.reason()), "{refusal:?}");
        }
    }

    #[test]
    fn a_refusal_is_the_same_as_a_response_and_as_trailers() {
        for refusal in every() {
            let (head, trailers) = (refusal.head(), refusal.trailers());
            for name in ["grpc-status", "grpc-message", "grpc-status-details-bin", "grpc-retry-pushback-ms"] {
                assert_eq!(head.headers.get(name), trailers.get(name), "{refusal:?} {name}");
            }
            let status = Status::from_header_map(&trailers).unwrap();
            assert_eq!(status.get_error_details().error_info().unwrap().domain, proto::ERROR_DOMAIN);
        }
    }

    #[test]
    fn unavailability_says_when_to_come_back_and_too_large_does_not() {
        for refusal in every() {
            let retry = refusal.trailers().contains_key("grpc-retry-pushback-ms");
            let temporary = refusal.status().code() == Code::Unavailable || refusal.reason() == "QUEUE_FULL";
            assert_eq!(retry, temporary, "{refusal:?}");
        }
    }

    #[test]
    fn a_failed_step_is_named_in_the_status_of_its_fan_out() {
        let status = Refusal::Step { id: "first".into(), error: Box::new(step(None)) }.status();
        assert_eq!((status.code(), status.message()), (Code::Unavailable, "first: no replica"));
        let details = status.get_error_details();
        assert_eq!(details.error_info().unwrap().reason, "NO_CAPACITY");
        assert_eq!(details.bad_request().unwrap().field_violations[0].field, "first.params.top_k");
        assert!(details.retry_info().is_none());
    }

    #[test]
    fn only_what_is_not_grpc_is_an_http_error() {
        for refusal in every() {
            let expected = if refusal == Refusal::NotGrpc { 415 } else { 200 };
            assert_eq!(refusal.head().status, expected, "{refusal:?}");
        }
    }
}
