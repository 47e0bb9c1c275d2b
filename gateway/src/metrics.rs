//! What the gateway counts, and the record of one call.

use std::sync::{Arc, OnceLock};

use chassis::calls::{LATENCY_BUCKETS, code_name};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric},
    metrics::{
        MetricType,
        counter::Counter,
        family::Family,
        gauge::{ConstGauge, Gauge},
        histogram::Histogram,
    },
    registry::{Registry, Unit},
};
use tokio::time::Instant;
use tonic::Code;

use crate::{
    refuse::Refusal,
    route::Method,
    upstream::{Endpoint, InFlight, State, Upstream},
};

/// Metrics of all calls. `gateway_calls_total`, `gateway_call_duration_seconds`, `gateway_calls_in_flight`,
/// `gateway_retries_total`, `gateway_refusals_total`, `gateway_endpoint_up`, `gateway_outstanding_work_seconds`.
#[derive(Debug)]
pub(crate) struct Metrics {
    calls: Family<CallLabels, Counter>,
    seconds: Family<MethodLabels, Histogram>,
    in_flight: Gauge,
    retries: Family<ServiceLabel, Counter>,
    refusals: Family<ReasonLabel, Counter>,
}

/// The metrics of one method, found once: looking them up by labels for every call would take locks that all workers share.
#[derive(Debug)]
pub(crate) struct MethodMetrics {
    all: Arc<Metrics>,
    labels: MethodLabels,
    seconds: Histogram,
    codes: [OnceLock<Counter>; CODES],
}

/// gRPC has codes 0 to 16.
const CODES: usize = 17;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CallLabels {
    service: Arc<str>,
    method: Arc<str>,
    code: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct MethodLabels {
    service: Arc<str>,
    method: Arc<str>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ServiceLabel {
    service: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

/// One call from its headers to its last trailer. Counted and logged when it is dropped, however it ended.
#[derive(Debug)]
pub(crate) struct Record {
    metrics: Arc<MethodMetrics>,
    started: Instant,
    span: tracing::Span,
    /// Its status, once it is known; a call that ends without has lost its client.
    code: Option<Code>,
    /// Why the gateway answered it itself.
    refusal: Option<&'static str>,
    /// Its places among the calls in flight: a client that reads slowly takes them as long as it reads.
    places: Vec<InFlight>,
    /// The service that it is a call to.
    upstream: Option<Arc<Upstream>>,
}

// === impl Metrics ===

impl Metrics {
    /// Registers the metrics; those of replicas are read when they are scraped.
    pub(crate) fn new(registry: &mut Registry, upstreams: &[Arc<Upstream>]) -> Self {
        let registry = registry.sub_registry_with_prefix("gateway");
        let histogram: fn() -> Histogram = || Histogram::new(LATENCY_BUCKETS);
        let metrics = Self {
            calls: Family::default(),
            seconds: Family::new_with_constructor(histogram),
            in_flight: Gauge::default(),
            retries: Family::default(),
            refusals: Family::default(),
        };
        registry.register("calls", "Finished calls by method and gRPC code", metrics.calls.clone());
        let help = "Time from a call's headers to its last trailer";
        registry.register_with_unit("call_duration", help, Unit::Seconds, metrics.seconds.clone());
        registry.register("calls_in_flight", "Calls that are not finished", metrics.in_flight.clone());
        registry.register("retries", "Attempts after the first, by service", metrics.retries.clone());
        registry.register("refusals", "Calls that the gateway answered itself, by reason", metrics.refusals.clone());
        registry.register_collector(Box::new(Replicas(upstreams.to_vec())));
        metrics
    }

    /// A call of this service is sent again.
    pub(crate) fn retry(&self, upstream: &Upstream) {
        self.retries.get_or_create(&ServiceLabel { service: upstream.name.to_string() }).inc();
    }
}

// === impl MethodMetrics ===

impl MethodMetrics {
    /// The metrics of a method.
    pub(crate) fn of(all: &Arc<Metrics>, method: &Method) -> Self {
        Self::new(all, Arc::clone(&method.service), (&*method.name).into())
    }

    /// The metrics of calls that have no known method: their paths are the callers' text and would grow without bound.
    pub(crate) fn unknown(all: &Arc<Metrics>) -> Self {
        Self::new(all, "unknown".into(), "unknown".into())
    }

    fn new(all: &Arc<Metrics>, service: Arc<str>, method: Arc<str>) -> Self {
        let labels = MethodLabels { service, method };
        let seconds = all.seconds.get_or_create_owned(&labels);
        Self { all: Arc::clone(all), labels, seconds, codes: [const { OnceLock::new() }; CODES] }
    }

    fn ended(&self, code: Code, seconds: f64) {
        self.seconds.observe(seconds);
        let counter = || {
            let MethodLabels { service, method } = self.labels.clone();
            self.all.calls.get_or_create_owned(&CallLabels { service, method, code: code_name(code) })
        };
        if let Some(cell) = self.codes.get(code as usize) {
            cell.get_or_init(counter).inc();
        }
    }
}

// === impl Record ===

impl Record {
    /// A call begins.
    pub(crate) fn begin(metrics: &Arc<MethodMetrics>, span: tracing::Span) -> Self {
        metrics.all.in_flight.inc();
        Self {
            metrics: Arc::clone(metrics),
            started: Instant::now(),
            span,
            code: None,
            refusal: None,
            places: Vec::new(),
            upstream: None,
        }
    }

    /// It is a call to this service, and counts among its figures; it takes a place there, if there is one.
    pub(crate) fn is_to(&mut self, upstream: &Arc<Upstream>) -> Result<(), Refusal> {
        self.upstream = Some(Arc::clone(upstream));
        self.takes(upstream.admit()?);
        Ok(())
    }

    /// It takes a place until it ends.
    pub(crate) fn takes(&mut self, place: InFlight) {
        self.places.push(place);
    }

    /// Its status is known.
    pub(crate) fn status(&mut self, code: Code) {
        self.code = Some(code);
    }

    /// The gateway answers it itself.
    pub(crate) fn refused(&mut self, refusal: &Refusal) {
        self.code = Some(refusal.status().code());
        self.refusal = Some(refusal.reason());
        self.metrics.all.refusals.get_or_create(&ReasonLabel { reason: refusal.reason() }).inc();
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let code = self.code.unwrap_or(Code::Cancelled);
        let took = self.started.elapsed();
        let seconds = took.as_secs_f64();
        if let Some(upstream) = &self.upstream {
            upstream.figures.ended(code == Code::Ok, took);
        }
        self.metrics.all.in_flight.dec();
        self.metrics.ended(code, seconds);
        tracing::debug!(parent: &self.span, code = code_name(code), refusal = self.refusal, seconds, "call ended");
    }
}

/// Reads the replicas' state at the moment of a scrape, so that the data path writes no gauges.
#[derive(Debug)]
struct Replicas(Vec<Arc<Upstream>>);

impl Collector for Replicas {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> std::fmt::Result {
        let help = "1 if the replica is ready, else 0";
        let mut up = encoder.encode_descriptor("endpoint_up", help, None, MetricType::Gauge)?;
        for (labels, endpoint) in self.endpoints() {
            ConstGauge::new(u64::from(endpoint.state() == State::Ready)).encode(up.encode_family(&labels)?)?;
        }
        let help = "Estimated worker time of the calls in flight to the replica";
        let unit = Some(&Unit::Seconds);
        let mut work = encoder.encode_descriptor("outstanding_work", help, unit, MetricType::Gauge)?;
        for (labels, endpoint) in self.endpoints() {
            let seconds = endpoint.load.outstanding_us() as f64 / 1e6;
            ConstGauge::new(seconds).encode(work.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

impl Replicas {
    fn endpoints(&self) -> impl Iterator<Item = ([(&'static str, String); 2], Arc<Endpoint>)> {
        self.0.iter().flat_map(|upstream| {
            let endpoints = upstream.endpoints.load_full();
            let labels = |endpoint: &Endpoint| {
                [("service", upstream.name.to_string()), ("endpoint", endpoint.address.to_string())]
            };
            endpoints.iter().map(|endpoint| (labels(endpoint), Arc::clone(endpoint))).collect::<Vec<_>>()
        })
    }
}
