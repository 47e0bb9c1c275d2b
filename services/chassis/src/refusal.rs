//! Refusals: calls that fail as a whole, as gRPC statuses with `google.rpc` details.
//!
//! Every server of the mesh says no in the same form: `ErrorInfo` with a reason of the closed list, `RetryInfo` and the
//! trailer `grpc-retry-pushback-ms` where trying again makes sense, and `BadRequest` with the path of the field at fault.

use std::time::Duration;

use axum::response::Response;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

/// The domain of every `google.rpc.ErrorInfo` that Tamis sends.
pub const DOMAIN: &str = "tamis";
/// Trailer that stock gRPC clients obey: milliseconds to wait before trying again.
pub const PUSHBACK: &str = "grpc-retry-pushback-ms";

/// Why a call fails as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// gRPC code.
    pub code: Code,
    /// `ErrorInfo.reason`: a value of the contracts' `ErrorReason` without its prefix.
    pub reason: &'static str,
    /// What, why, and what to do.
    pub message: String,
    /// When to try again; `None` if trying again does not help.
    pub retry_after: Option<Duration>,
    /// Path of the request's field that is at fault, for example `params.top_k`.
    pub field: Option<String>,
}

impl Refusal {
    /// A refusal that trying again does not mend.
    pub fn new(code: Code, reason: &'static str, message: impl Into<String>) -> Self {
        Self { code, reason, message: message.into(), retry_after: None, field: None }
    }

    /// A malformed gRPC request.
    pub fn malformed(message: impl Into<String>) -> Self {
        Self::new(Code::InvalidArgument, "MALFORMED_REQUEST", message)
    }

    /// A message that could not be read, by what tonic says of it.
    #[must_use]
    pub fn unreadable(status: &Status) -> Self {
        match status.code() {
            // A message beyond the limit, as it came or once it was decompressed.
            Code::OutOfRange | Code::ResourceExhausted => {
                Self::new(Code::ResourceExhausted, "MESSAGE_TOO_LARGE", status.message())
            }
            Code::Cancelled => Self::new(Code::Cancelled, "CANCELLED", "the client has gone"),
            _ => Self::malformed(format!("a message cannot be read: {}", status.message())),
        }
    }

    /// The call's time is up.
    #[must_use]
    pub fn late(timeout: Duration) -> Self {
        let message =
            format!("the deadline of {} passed before the answer was ready", humantime::format_duration(timeout));
        Self::new(Code::DeadlineExceeded, "DEADLINE", message)
    }

    /// Too much waits already.
    pub fn full(message: impl Into<String>, retry_after: Duration) -> Self {
        Self::new(Code::ResourceExhausted, "QUEUE_FULL", message).retry_after(retry_after)
    }

    /// The server's own fault.
    pub fn engine(message: impl Into<String>) -> Self {
        Self::new(Code::Internal, "ENGINE", message)
    }

    /// The same, to be tried again after this time.
    #[must_use]
    pub fn retry_after(mut self, wait: Duration) -> Self {
        self.retry_after = Some(wait);
        self
    }

    /// The same, naming the field at fault.
    #[must_use]
    pub fn field(mut self, path: impl Into<String>) -> Self {
        self.field = Some(path.into());
        self
    }

    /// As a gRPC status.
    #[must_use]
    pub fn into_status(self) -> Status {
        let mut details = ErrorDetails::with_error_info(self.reason, DOMAIN, []);
        if let Some(wait) = self.retry_after {
            details.set_retry_info(Some(wait));
        }
        if let Some(field) = self.field {
            details.add_bad_request_violation(field, self.message.clone());
        }
        let mut status = Status::with_error_details(self.code, self.message, details);
        if let Some(wait) = self.retry_after {
            let millis = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
            status.metadata_mut().insert(PUSHBACK, millis.into());
        }
        status
    }

    /// As a trailers-only HTTP response.
    #[must_use]
    pub fn into_response(self) -> Response {
        self.into_status().into_http()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_queue_says_when_to_come_back() {
        let status = Refusal::full("128 calls wait, at most 128 may", Duration::from_millis(250)).into_status();
        assert_eq!(status.code(), Code::ResourceExhausted);
        assert_eq!(status.metadata().get(PUSHBACK).unwrap(), "250");
        let details = status.get_error_details();
        assert_eq!(details.error_info().unwrap().reason, "QUEUE_FULL");
        assert_eq!(details.retry_info().unwrap().retry_delay, Some(Duration::from_millis(250)));
    }

    #[test]
    fn a_message_that_cannot_be_read_is_its_senders_fault() {
        for (status, code, reason) in [
            (Status::out_of_range("too large"), Code::ResourceExhausted, "MESSAGE_TOO_LARGE"),
            (Status::resource_exhausted("inflates"), Code::ResourceExhausted, "MESSAGE_TOO_LARGE"),
            (Status::internal("invalid wire type"), Code::InvalidArgument, "MALFORMED_REQUEST"),
            (Status::cancelled("reset"), Code::Cancelled, "CANCELLED"),
        ] {
            let refusal = Refusal::unreadable(&status);
            assert_eq!((refusal.code, refusal.reason), (code, reason), "{status:?}");
        }
    }

    #[test]
    fn a_bad_field_is_named() {
        let refusal = Refusal::new(Code::InvalidArgument, "BAD_PARAMETER", "top_k is 0").field("params.top_k");
        let details = refusal.into_status().get_error_details();
        assert_eq!(details.bad_request().unwrap().field_violations[0].field, "params.top_k");
    }
}
