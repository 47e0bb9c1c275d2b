//! Load reports: what a call cost and how much work waits, in the trailers of every reply.
//!
//! The form is gRPC's own, ORCA (gRFC A51): an `xds.data.orca.v3.OrcaLoadReport` in `endpoint-load-metrics-bin`.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
};

use axum::{
    body::Body,
    extract::{Request, State},
    middleware::Next,
    response::Response,
};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use http_body::Frame;
use prost::Message as _;
use tonic::metadata::{BinaryMetadataValue, MetadataMap};

/// Name of the trailer.
pub const TRAILER: &str = "endpoint-load-metrics-bin";

/// What one call cost. A response extension, set by a handler.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    /// Work in the units of the service: tokens, images.
    pub units: u64,
    /// Milliseconds of workers spent on the call.
    pub compute_ms: f64,
}

/// What a call that streams has cost so far. A response extension, set by a handler that goes on computing; shared with
/// its clones.
#[derive(Clone, Debug, Default)]
pub struct Meter(Arc<Mutex<Cost>>);

impl Meter {
    /// Adds the cost of a part.
    pub fn add(&self, part: Cost) {
        let mut total = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        total.units += part.units;
        total.compute_ms += part.compute_ms;
    }

    /// The cost so far.
    #[must_use]
    pub fn total(&self) -> Cost {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How busy a replica is.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Busy {
    /// Milliseconds that a new call would wait: estimated work that is admitted and unfinished, divided by workers.
    pub queue_ms: f64,
    /// Recent milliseconds of a worker per unit.
    pub ms_per_unit: f64,
}

/// A load report as it travels.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Report {
    /// What the call cost, if it was computed.
    pub cost: Option<Cost>,
    /// How busy the replica is after it.
    pub busy: Busy,
}

/// The fields of `xds.data.orca.v3.OrcaLoadReport` that are used here, under their numbers.
#[derive(Clone, PartialEq, prost::Message)]
struct OrcaLoadReport {
    #[prost(map = "string, double", tag = "4")]
    request_cost: HashMap<String, f64>,
    #[prost(map = "string, double", tag = "8")]
    named_metrics: HashMap<String, f64>,
}

impl Report {
    /// As the trailer's value.
    #[must_use]
    pub fn to_header(&self) -> HeaderValue {
        let mut orca = OrcaLoadReport::default();
        if let Some(cost) = self.cost {
            // Exact up to 2^53 units.
            #[expect(clippy::cast_precision_loss, reason = "a report needs no more than 53 bits")]
            orca.request_cost.insert("units".into(), cost.units as f64);
            orca.request_cost.insert("compute_ms".into(), cost.compute_ms);
        }
        orca.named_metrics.insert("queue_ms".into(), self.busy.queue_ms);
        orca.named_metrics.insert("ms_per_unit".into(), self.busy.ms_per_unit);
        let mut map = MetadataMap::new();
        map.insert_bin(TRAILER, BinaryMetadataValue::from_bytes(&orca.encode_to_vec()));
        map.into_headers().remove(TRAILER).unwrap_or_else(|| HeaderValue::from_static(""))
    }

    /// Reads and removes the report of a reply's trailers. A malformed one counts as none: it is advice.
    pub fn take(trailers: &mut HeaderMap) -> Option<Self> {
        let header = trailers.remove(TRAILER)?;
        let map = MetadataMap::from_headers(HeaderMap::from_iter([(HeaderName::from_static(TRAILER), header)]));
        let bytes = map.get_bin(TRAILER)?.to_bytes().ok()?;
        let orca = OrcaLoadReport::decode(bytes).ok()?;
        let number =
            |map: &HashMap<String, f64>, key: &str| map.get(key).copied().filter(|n| n.is_finite() && *n >= 0.0);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "finite and not negative; saturates"
        )]
        let cost = number(&orca.request_cost, "compute_ms")
            .map(|compute_ms| Cost { units: number(&orca.request_cost, "units").unwrap_or(0.0) as u64, compute_ms });
        let named = |key| number(&orca.named_metrics, key).unwrap_or(0.0);
        Some(Self { cost, busy: Busy { queue_ms: named("queue_ms"), ms_per_unit: named("ms_per_unit") } })
    }
}

/// Asks how busy this replica is.
pub type Probe = Arc<dyn Fn() -> Busy + Send + Sync>;

/// Adds a report to the trailers of every reply.
pub async fn report(State(probe): State<Probe>, request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let cost = response.extensions_mut().remove::<Cost>();
    let meter = response.extensions_mut().remove::<Meter>();
    if response.headers().contains_key("grpc-status") {
        // Trailers-only: the headers are the trailers.
        let header = Report { cost, busy: probe() }.to_header();
        response.headers_mut().insert(TRAILER, header);
        return response;
    }
    response.map(|inner| Body::new(Reporting { inner, probe, cost, meter }))
}

/// A reply's body that reports in its trailers.
struct Reporting {
    inner: Body,
    probe: Probe,
    cost: Option<Cost>,
    /// Of a call that streams.
    meter: Option<Meter>,
}

impl http_body::Body for Reporting {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let mut frame = ready!(Pin::new(&mut self.inner).poll_frame(cx));
        if let Some(trailers) = frame.as_mut().and_then(|frame| frame.as_mut().ok()).and_then(Frame::trailers_mut) {
            let cost = self.cost.or_else(|| self.meter.as_ref().map(Meter::total));
            trailers.insert(TRAILER, Report { cost, busy: (self.probe)() }.to_header());
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_survives_its_trailer() {
        let report = Report {
            cost: Some(Cost { units: 77, compute_ms: 12.5 }),
            busy: Busy { queue_ms: 3.25, ms_per_unit: 0.125 },
        };
        let mut trailers = HeaderMap::from_iter([(HeaderName::from_static(TRAILER), report.to_header())]);
        assert_eq!(Report::take(&mut trailers), Some(report));
        assert!(trailers.is_empty());
    }

    #[test]
    fn a_malformed_report_is_no_report() {
        for value in ["!", "AAAA", ""] {
            let value = HeaderValue::from_static(value);
            let mut trailers = HeaderMap::from_iter([(HeaderName::from_static(TRAILER), value)]);
            assert!(Report::take(&mut trailers).is_none_or(|report| report.cost.is_none()));
        }
    }
}
