//! What every call of a server goes through: admission by identity and number, a span, metrics, and a net under panics.

use std::{
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::{
    body::Body,
    extract::{Request, State},
    middleware::Next,
    response::Response,
};
use bytes::Bytes;
use futures_util::FutureExt as _;
use http::HeaderMap;
use http_body::Frame;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};
use tonic::{Code, Status};
use tracing::Instrument as _;

use crate::{
    peer::Peer,
    refusal::Refusal,
    spiffe::SpiffeId,
    trace::{self, TraceContext},
};

/// Upper bounds of the latency histogram's buckets, in seconds.
pub const LATENCY_BUCKETS: [f64; 14] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

/// The metrics of a server's calls.
#[derive(Clone, Debug)]
pub struct CallMetrics {
    handled: Family<CallLabels, Counter>,
    seconds: Family<MethodLabel, Histogram>,
    in_flight: Gauge,
    panics: Counter,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CallLabels {
    method: String,
    code: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct MethodLabel {
    method: String,
}

impl CallMetrics {
    /// Registers the metrics.
    pub fn new(registry: &mut Registry) -> Self {
        let histogram: fn() -> Histogram = || Histogram::new(LATENCY_BUCKETS);
        let metrics = Self {
            handled: Family::default(),
            seconds: Family::new_with_constructor(histogram),
            in_flight: Gauge::default(),
            panics: Counter::default(),
        };
        registry.register("calls", "Finished calls by method and gRPC code", metrics.handled.clone());
        registry.register_with_unit(
            "call_duration",
            "Time from a call's headers to its last trailer",
            Unit::Seconds,
            metrics.seconds.clone(),
        );
        registry.register("calls_in_flight", "Calls that are not finished", metrics.in_flight.clone());
        registry.register("panics", "Calls that ended in a panic of their handler", metrics.panics.clone());
        metrics
    }
}

/// Who may call, and how many at once.
#[derive(Clone)]
pub struct Admission {
    /// Identities that may call; nobody else may.
    pub allow: Arc<[SpiffeId]>,
    /// Bound of the calls in flight.
    pub calls: Arc<Semaphore>,
    /// The same bound, for messages.
    pub calls_max: usize,
}

/// Refuses callers without permission, and calls beyond the bound.
pub async fn admit(State(admission): State<Admission>, request: Request, next: Next) -> Response {
    let path = request.uri().path();
    match request.extensions().get::<Peer>().map(|peer| &peer.id) {
        Some(Ok(id)) if admission.allow.contains(id) => {}
        Some(Ok(id)) => {
            let message = format!("{id} may not call {path} here; the server's `allow` names who may");
            return Refusal::new(Code::PermissionDenied, "NOT_ALLOWED", message).into_response();
        }
        Some(Err(error)) => {
            return Refusal::new(Code::Unauthenticated, "NO_IDENTITY", error.to_string()).into_response();
        }
        None => {
            return Refusal::new(Code::Unauthenticated, "NO_IDENTITY", "the connection has no peer").into_response();
        }
    }
    let Ok(permit) = Arc::clone(&admission.calls).try_acquire_owned() else {
        let message = format!("{} calls are in flight, the bound of this server", admission.calls_max);
        return Refusal::full(message, Duration::from_millis(100)).into_response();
    };
    // Held until the last byte of the reply has gone: a slow reader counts as long as it reads.
    next.run(request).await.map(|inner| Body::new(Holding { inner, _permit: permit }))
}

/// Turns a panic of a handler into INTERNAL for its call; the process lives.
pub async fn catch_panics(State(metrics): State<CallMetrics>, request: Request, next: Next) -> Response {
    match AssertUnwindSafe(next.run(request)).catch_unwind().await {
        Ok(response) => response,
        Err(_) => {
            metrics.panics.inc();
            tracing::error!("a handler panicked; its call fails with INTERNAL");
            Refusal::engine("the server failed on this call; its log has the cause").into_response()
        }
    }
}

/// Gives a request that cannot be decoded a reason of the contracts. tonic refuses it before any handler sees it, with a
/// bare status: for a message that is too large, the code that says that a stream has ended; for one that is malformed,
/// the code of a server's own fault.
///
/// Innermost: here every other status is a handler's, and has its `google.rpc` details.
pub async fn explain(request: Request, next: Next) -> Response {
    let response = next.run(request).await;
    match Status::from_header_map(response.headers()) {
        Some(status) if is_unreadable(&status) => Refusal::unreadable(&status).into_response(),
        _ => response,
    }
}

fn is_unreadable(status: &Status) -> bool {
    status.details().is_empty() && matches!(status.code(), Code::OutOfRange | Code::ResourceExhausted | Code::Internal)
}

/// Opens the call's span, hands the trace on, and counts the call when its trailers have gone.
pub async fn observe(State(metrics): State<CallMetrics>, mut request: Request, next: Next) -> Response {
    let context = TraceContext::of(request.headers());
    request.headers_mut().insert(trace::HEADER, context.to_header());
    let method = request.uri().path().to_owned();
    let span = tracing::info_span!("call", method, trace_id = context.trace_id());
    let watch = Watch { metrics, method, started: Instant::now(), code: None, span: span.clone() };
    watch.metrics.in_flight.inc();
    let response = next.run(request).instrument(span).await;
    let mut body = Watching { inner: Body::empty(), watch };
    body.watch.read(response.headers());
    response.map(|inner| Body::new(Watching { inner, ..body }))
}

/// The end of a call, counted when it is dropped: at the last frame, or when the caller has gone.
struct Watch {
    metrics: CallMetrics,
    method: String,
    started: Instant,
    code: Option<Code>,
    span: tracing::Span,
}

impl Watch {
    fn read(&mut self, headers: &HeaderMap) {
        if let Some(code) = headers.get("grpc-status") {
            self.code = Some(Code::from_bytes(code.as_bytes()));
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let code = self.code.unwrap_or(Code::Cancelled);
        let seconds = self.started.elapsed().as_secs_f64();
        // Paths that no service has are the callers' text; as labels they would grow without bound.
        let method = if code == Code::Unimplemented { "unknown".to_owned() } else { std::mem::take(&mut self.method) };
        self.metrics.in_flight.dec();
        self.metrics.seconds.get_or_create(&MethodLabel { method: method.clone() }).observe(seconds);
        self.metrics.handled.get_or_create(&CallLabels { method, code: code_name(code) }).inc();
        tracing::debug!(parent: &self.span, code = code_name(code), seconds, "call ended");
    }
}

struct Watching {
    inner: Body,
    watch: Watch,
}

impl http_body::Body for Watching {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = ready!(Pin::new(&mut self.inner).poll_frame(cx));
        if let Some(Ok(frame)) = &frame
            && let Some(trailers) = frame.trailers_ref()
        {
            self.watch.read(trailers);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.inner.size_hint()
    }
}

struct Holding {
    inner: Body,
    _permit: OwnedSemaphorePermit,
}

impl http_body::Body for Holding {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.inner).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.inner.size_hint()
    }
}

/// The name of a code as the gRPC specification spells it.
#[must_use]
pub fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
mod tests {
    use axum::{Router, middleware::from_fn_with_state, routing::post};
    use prometheus_client::encoding::text::encode;
    use tower::ServiceExt as _;

    use super::*;
    use crate::spiffe::NotSpiffe;

    const GATEWAY: &str = "spiffe://tamis.local/gateway";

    fn admission(calls_max: usize) -> Admission {
        let allow = Arc::new([GATEWAY.parse().unwrap()]);
        Admission { allow, calls: Arc::new(Semaphore::new(calls_max)), calls_max }
    }

    fn app(admission: Admission) -> (Router, Registry) {
        let mut registry = Registry::default();
        let metrics = CallMetrics::new(&mut registry);
        async fn panics() -> String {
            panic!("a test's panic")
        }
        let router = Router::new()
            .route("/s/echo", post(|body: String| async { body }))
            .route("/s/panic", post(panics))
            .layer(from_fn_with_state(metrics.clone(), catch_panics))
            .layer(from_fn_with_state(admission, admit))
            .layer(from_fn_with_state(metrics, observe));
        (router, registry)
    }

    fn request(path: &str, id: Result<&str, NotSpiffe>) -> Request {
        let peer = Peer { address: ([127, 0, 0, 1], 1).into(), id: id.map(|id| id.parse().unwrap()) };
        Request::post(path).extension(peer).body(Body::from("text")).unwrap()
    }

    fn code(response: &Response) -> &str {
        response.headers().get("grpc-status").map_or("0", |code| code.to_str().unwrap())
    }

    #[tokio::test]
    async fn only_allowed_identities_get_in() {
        let (app, _) = app(admission(8));
        for (id, expected) in [
            (Ok(GATEWAY), "0"),
            (Ok("spiffe://tamis.local/client/dev"), "7"),
            (Ok("spiffe://tamis.local/gateway2"), "7"),
            (Err(NotSpiffe::Missing), "16"),
        ] {
            let response = app.clone().oneshot(request("/s/echo", id.clone())).await.unwrap();
            assert_eq!(code(&response), expected, "{id:?}");
        }
    }

    #[tokio::test]
    async fn a_call_beyond_the_bound_is_refused_until_a_reply_has_gone() {
        let (app, _) = app(admission(1));
        let first = app.clone().oneshot(request("/s/echo", Ok(GATEWAY))).await.unwrap();
        let second = app.clone().oneshot(request("/s/echo", Ok(GATEWAY))).await.unwrap();
        assert_eq!(code(&second), "8");
        assert_eq!(second.headers()[crate::refusal::PUSHBACK], "100");
        drop(first);
        let third = app.oneshot(request("/s/echo", Ok(GATEWAY))).await.unwrap();
        assert_eq!(code(&third), "0");
    }

    #[tokio::test]
    async fn only_a_bare_status_of_a_request_that_cannot_be_read_is_explained() {
        let own = || Refusal::full("16 MiB wait", Duration::from_millis(100)).into_status();
        for (status, code, reason) in [
            (Status::internal("buffer underflow"), "3", "MALFORMED_REQUEST"),
            (Status::out_of_range("decoded message length too large"), "8", "MESSAGE_TOO_LARGE"),
            (Refusal::engine("not finite").into_status(), "13", "ENGINE"),
            (own(), "8", "QUEUE_FULL"),
            (Status::unimplemented("compressed"), "12", ""),
        ] {
            let answer = move || async move { status.into_http::<Body>() };
            let app = Router::new().route("/s/m", post(answer)).layer(axum::middleware::from_fn(explain));
            let response = app.oneshot(request("/s/m", Ok(GATEWAY))).await.unwrap();
            assert_eq!(self::code(&response), code);
            let status = Status::from_header_map(response.headers()).unwrap();
            let details = tonic_types::StatusExt::get_error_details(&status);
            assert_eq!(details.error_info().map_or("", |info| &info.reason), reason);
        }
    }

    #[tokio::test]
    async fn a_panic_fails_its_call_alone_and_is_counted() {
        let (app, registry) = app(admission(8));
        let response = app.clone().oneshot(request("/s/panic", Ok(GATEWAY))).await.unwrap();
        assert_eq!(code(&response), "13");
        drop(response);
        let after = app.oneshot(request("/s/echo", Ok(GATEWAY))).await.unwrap();
        assert_eq!(code(&after), "0");
        drop(after);
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        assert!(text.contains("panics_total 1"), "{text}");
        assert!(text.contains(r#"calls_total{method="/s/panic",code="INTERNAL"} 1"#), "{text}");
        assert!(text.contains("calls_in_flight 0"), "{text}");
        assert!(text.contains(r#"call_duration_seconds_count{method="/s/echo"} 1"#), "{text}");
    }
}
