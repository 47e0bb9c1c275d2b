//! Translation of failures to the contracts' words: the one place where a service makes a refusal.

use std::time::Duration;

use chassis::{refusal::Refusal, units::Span};
use engine::{ItemError, Reason};
use proto::common::v1::{self as pb, ErrorReason};
use tonic::Code;

/// A refusal with a reason of the closed list.
pub fn refusal(code: Code, reason: ErrorReason, message: impl Into<String>) -> Refusal {
    Refusal::new(code, reason.as_error_info(), message)
}

/// A field that is out of its bounds.
pub fn bad_parameter(field: &str, message: impl Into<String>) -> Refusal {
    refusal(Code::InvalidArgument, ErrorReason::BadParameter, message).field(field)
}

/// What a failure of the engine means for the whole call.
pub(crate) fn of_engine(error: &engine::Error) -> Refusal {
    let message = error.to_string();
    match error {
        engine::Error::Full { .. } => Refusal::full(message, Duration::from_millis(100)),
        engine::Error::Late => refusal(Code::DeadlineExceeded, ErrorReason::Deadline, message),
        engine::Error::Closed => draining(message),
        _ => refusal(Code::Internal, ErrorReason::Engine, message),
    }
}

/// The server is shutting down: another replica, or this one's successor, takes the call.
pub(crate) fn draining(message: impl Into<String>) -> Refusal {
    refusal(Code::Unavailable, ErrorReason::Draining, message).retry_after(Duration::from_millis(100))
}

/// A stream on which nothing happens. It holds a place among the calls, and a model that could not be unloaded.
pub(crate) fn idle(max: Duration) -> Refusal {
    let idle = Span(max);
    let message = format!("nothing came for {idle}, the bound of this service; open another stream when there is more");
    refusal(Code::Cancelled, ErrorReason::Cancelled, message)
}

/// The failure of a whole batch as its answer has it.
pub(crate) fn to_item(refusal: &Refusal) -> pb::ItemError {
    let name = format!("ERROR_REASON_{}", refusal.reason);
    let reason = ErrorReason::from_str_name(&name).unwrap_or(ErrorReason::Engine);
    pb::ItemError { reason: reason.into(), message: refusal.message.clone() }
}

/// The failure of what a call's items share, and so of the call.
pub fn refuse_item(error: engine::ItemError) -> Refusal {
    let item = of_item(error);
    let code = match item.reason() {
        ErrorReason::Engine => Code::Internal,
        ErrorReason::Deadline => Code::DeadlineExceeded,
        _ => Code::InvalidArgument,
    };
    refusal(code, item.reason(), item.message)
}

/// An item's failure as it stands in a response.
pub fn of_item(error: ItemError) -> pb::ItemError {
    pb::ItemError { reason: reason(error.reason).into(), message: error.message }
}

fn reason(reason: Reason) -> ErrorReason {
    match reason {
        Reason::Empty => ErrorReason::EmptyInput,
        Reason::TooLong => ErrorReason::InputTooLong,
        Reason::TooLarge => ErrorReason::InputTooLarge,
        Reason::BadImage => ErrorReason::BadImage,
        Reason::UnsupportedImage => ErrorReason::UnsupportedImage,
        Reason::BadParameter => ErrorReason::BadParameter,
        Reason::ContentNotFound => ErrorReason::ContentNotFound,
        Reason::Engine => ErrorReason::Engine,
        Reason::Abandoned => ErrorReason::Deadline,
    }
}
