//! The deadline of a call: one absolute instant, from the gRPC header `grpc-timeout`.
//!
//! Source of the header's form: the gRPC over HTTP/2 protocol, `Timeout`: 1 to 8 digits and a unit.

use std::time::Duration;

use axum::{
    extract::{Request, State},
    middleware::Next,
    response::Response,
};
use tokio::time::Instant;

use crate::refusal::Refusal;

/// Name of the header.
pub const HEADER: &str = "grpc-timeout";

/// When the answer to a call becomes worthless. A request extension, set by [`enforce`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deadline(pub Instant);

/// When the client of a call that streams gives up. A request extension, set by [`enforce`]: what the header says and
/// never cut, for a stream may run for hours and is bound by what it holds, not by its age. `None` if it brought none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamDeadline(pub Option<Instant>);

/// Bounds of every call's deadline.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// For calls that bring none.
    pub default: Duration,
    /// For calls that bring a longer one.
    pub max: Duration,
}

impl Limits {
    /// The time that a call with this header has.
    ///
    /// # Errors
    /// When the header is there and not of the protocol's form.
    pub fn timeout(&self, header: Option<&[u8]>) -> Result<Duration, Malformed> {
        let wanted = header.map(parse).transpose()?.unwrap_or(self.default);
        Ok(wanted.min(self.max))
    }
}

/// A `grpc-timeout` that is not of the protocol's form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("grpc-timeout is not 1 to 8 digits and a unit of H, M, S, m, u or n")]
pub struct Malformed;

/// Reads a `grpc-timeout` value.
///
/// # Errors
/// When it is not of the protocol's form.
pub fn parse(value: &[u8]) -> Result<Duration, Malformed> {
    let (unit, digits) = value.split_last().ok_or(Malformed)?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return Err(Malformed);
    }
    let n = digits.iter().fold(0u64, |n, digit| n * 10 + u64::from(digit - b'0'));
    Ok(match unit {
        b'H' => Duration::from_secs(n * 3600),
        b'M' => Duration::from_secs(n * 60),
        b'S' => Duration::from_secs(n),
        b'm' => Duration::from_millis(n),
        b'u' => Duration::from_micros(n),
        b'n' => Duration::from_nanos(n),
        _ => return Err(Malformed),
    })
}

/// Writes a `grpc-timeout` value in the finest unit that fits 8 digits, rounded down: a callee must not believe that it
/// has more time than its caller.
#[must_use]
pub fn format(left: Duration) -> String {
    const DIGITS_MAX: u128 = 99_999_999;
    let units = [(left.as_nanos(), 'n'), (left.as_micros(), 'u'), (left.as_millis(), 'm')];
    for (n, unit) in units {
        if n <= DIGITS_MAX {
            return format!("{n}{unit}");
        }
    }
    format!("{}S", u128::from(left.as_secs()).min(DIGITS_MAX))
}

/// Ends a call at its deadline and tells the handler when that is.
///
/// tower's `Timeout` would answer UNKNOWN; a late call is DEADLINE_EXCEEDED.
pub async fn enforce(State(limits): State<Limits>, mut request: Request, next: Next) -> Response {
    let header = request.headers().get(HEADER).map(http::HeaderValue::as_bytes);
    let (asked, timeout) = match (header.map(parse).transpose(), limits.timeout(header)) {
        (Ok(asked), Ok(timeout)) => (asked, timeout),
        (Err(malformed), _) | (_, Err(malformed)) => return Refusal::malformed(malformed.to_string()).into_response(),
    };
    let now = Instant::now();
    let deadline = now + timeout;
    let asked = asked.and_then(|asked| now.checked_add(asked));
    request.extensions_mut().insert(Deadline(deadline));
    request.extensions_mut().insert(StreamDeadline(asked));
    match tokio::time::timeout_at(deadline, next.run(request)).await {
        Ok(response) => response,
        Err(_) => Refusal::late(timeout).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_unit_is_read() {
        for (text, nanos) in [
            ("1H", 3_600_000_000_000),
            ("2M", 120_000_000_000),
            ("3S", 3_000_000_000),
            ("4m", 4_000_000),
            ("5u", 5_000),
            ("6n", 6),
        ] {
            assert_eq!(parse(text.as_bytes()), Ok(Duration::from_nanos(nanos)), "{text}");
        }
    }

    #[test]
    fn malformed_values_are_refused() {
        for text in ["", "S", "1", "-1S", "1.5S", "123456789S", "1s", "1 S"] {
            assert_eq!(parse(text.as_bytes()), Err(Malformed), "{text}");
        }
    }

    #[test]
    fn what_is_written_is_never_longer_than_what_is_left() {
        for left in [Duration::ZERO, Duration::from_nanos(123_456_789_123), Duration::from_secs(86_400), Duration::MAX]
        {
            let read = parse(format(left).as_bytes()).unwrap();
            assert!(read <= left, "{left:?} became {read:?}");
        }
    }

    #[test]
    fn the_default_and_the_maximum_hold() {
        let limits = Limits { default: Duration::from_secs(30), max: Duration::from_secs(60) };
        assert_eq!(limits.timeout(None), Ok(Duration::from_secs(30)));
        assert_eq!(limits.timeout(Some(b"10S")), Ok(Duration::from_secs(10)));
        assert_eq!(limits.timeout(Some(b"10H")), Ok(Duration::from_secs(60)));
    }

    /// A call with this header to a handler that answers with the time it was given, or never.
    async fn call(timeout: &str, handler: axum::routing::MethodRouter) -> Response {
        let limits = Limits { default: Duration::from_secs(30), max: Duration::from_secs(60) };
        let router =
            axum::Router::new().route("/s/m", handler).layer(axum::middleware::from_fn_with_state(limits, enforce));
        let request = Request::post("/s/m").header(HEADER, timeout).body(axum::body::Body::empty()).unwrap();
        tower::ServiceExt::oneshot(router, request).await.unwrap()
    }

    fn code(response: &Response) -> tonic::Code {
        let headers = response.headers();
        headers.get("grpc-status").map_or(tonic::Code::Ok, |code| tonic::Code::from_bytes(code.as_bytes()))
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_never_answers_ends_at_its_deadline() {
        let started = Instant::now();
        let response = call("250m", axum::routing::post(std::future::pending::<()>)).await;
        assert_eq!((code(&response), started.elapsed()), (tonic::Code::DeadlineExceeded, Duration::from_millis(250)));
    }

    #[tokio::test(start_paused = true)]
    async fn the_handler_knows_its_deadline() {
        let expected = Instant::now() + Duration::from_secs(2);
        let handler = move |request: Request| async move {
            assert_eq!(request.extensions().get::<Deadline>(), Some(&Deadline(expected)));
        };
        assert_eq!(code(&call("2S", axum::routing::post(handler)).await), tonic::Code::Ok);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_has_the_whole_deadline_of_its_client() {
        let expected = Instant::now() + Duration::from_secs(36_000);
        let handler = move |request: Request| async move {
            assert_eq!(request.extensions().get::<StreamDeadline>(), Some(&StreamDeadline(Some(expected))));
        };
        assert_eq!(code(&call("10H", axum::routing::post(handler)).await), tonic::Code::Ok);
    }

    #[tokio::test]
    async fn a_malformed_timeout_is_refused() {
        assert_eq!(code(&call("soon", axum::routing::post(|| async {})).await), tonic::Code::InvalidArgument);
    }
}
