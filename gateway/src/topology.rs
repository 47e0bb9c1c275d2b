//! What the mesh looks like from this gateway: `tamis.gateway.v1.TopologyService`, on the admin port.
//!
//! Nothing is kept for it but counters that calls write anyway: a picture is taken when somebody looks.

use std::{
    collections::BTreeSet,
    pin::Pin,
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures_util::{Stream, stream};
use proto::gateway::v1::{self as pb, topology_service_server::TopologyService};
use tokio::{
    sync::watch,
    time::{Instant, Interval, MissedTickBehavior, interval_at},
};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use crate::{
    config::ServiceSettings,
    refuse::Refusal,
    upstream::{Changes, Endpoint, State, Upstream},
};

/// How often figures are looked at.
const SECOND: Duration = Duration::from_secs(1);

/// Shows services and their replicas.
#[derive(Clone)]
pub(crate) struct Topology {
    /// By name, in order.
    services: Arc<[Service]>,
    changes: Changes,
    drain: CancellationToken,
}

struct Service {
    upstream: Arc<Upstream>,
    serves: Vec<String>,
    /// Of its replicas.
    identity: String,
}

/// One watch: which services, and what it has seen of them.
struct Watch {
    topology: Topology,
    chosen: BTreeSet<usize>,
    changed: watch::Receiver<()>,
    seconds: Interval,
    last: Option<Vec<pb::ServiceState>>,
    ended: bool,
}

type Pictures = Pin<Box<dyn Stream<Item = Result<pb::WatchTopologyResponse, Status>> + Send>>;

// === impl Topology ===

impl Topology {
    /// These services, ordered by name. `drain` ends all watches.
    pub(crate) fn new<'a>(
        services: impl Iterator<Item = (Arc<Upstream>, &'a ServiceSettings)>,
        changes: Changes,
        drain: CancellationToken,
    ) -> Self {
        let service = |(upstream, settings): (_, &ServiceSettings)| {
            let (serves, identity) = (settings.serves.clone(), settings.spiffe_id.clone());
            Service { upstream, serves, identity }
        };
        Self { services: services.map(service).collect(), changes, drain }
    }

    /// Moves the window of the latencies; never ends.
    pub(crate) async fn count_seconds(&self) {
        let mut seconds = seconds();
        loop {
            seconds.tick().await;
            self.services.iter().for_each(|service| service.upstream.figures.second());
        }
    }

    /// The places of these services; of all, if there are none.
    fn choose(&self, names: &[String]) -> Result<BTreeSet<usize>, Refusal> {
        if names.is_empty() {
            return Ok((0..self.services.len()).collect());
        }
        let place = |(index, name): (usize, &String)| {
            let found = self.services.iter().position(|service| *service.upstream.name == **name);
            found.ok_or_else(|| Refusal::UnknownService { field: format!("services[{index}]"), name: name.clone() })
        };
        names.iter().enumerate().map(place).collect()
    }

    fn picture(&self, chosen: &BTreeSet<usize>) -> Vec<pb::ServiceState> {
        let now = Instant::now();
        chosen.iter().filter_map(|place| self.services.get(*place)).map(|service| service.state(now)).collect()
    }
}

#[tonic::async_trait]
impl TopologyService for Topology {
    type WatchTopologyStream = Pictures;

    async fn get_topology(
        &self,
        request: Request<pb::GetTopologyRequest>,
    ) -> Result<Response<pb::GetTopologyResponse>, Status> {
        let chosen = self.choose(&request.get_ref().services).map_err(|refusal| refusal.status())?;
        let at = Some(SystemTime::now().into());
        Ok(Response::new(pb::GetTopologyResponse { services: self.picture(&chosen), at }))
    }

    async fn watch_topology(&self, request: Request<pb::WatchTopologyRequest>) -> Result<Response<Pictures>, Status> {
        let chosen = self.choose(&request.get_ref().services).map_err(|refusal| refusal.status())?;
        let (topology, changed) = (self.clone(), self.changes.subscribe());
        let watch = Watch { topology, chosen, changed, seconds: seconds(), last: None, ended: false };
        Ok(Response::new(Box::pin(stream::unfold(watch, Watch::next))))
    }
}

fn seconds() -> Interval {
    let mut seconds = interval_at(Instant::now() + SECOND, SECOND);
    // A client that has not read for a while gets one picture, not one for every second.
    seconds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    seconds
}

// === impl Watch ===

impl Watch {
    async fn next(mut self) -> Option<(Result<pb::WatchTopologyResponse, Status>, Self)> {
        while !self.ended {
            if self.last.is_some() {
                tokio::select! {
                    // Fails when all who could tell are gone, and then the gateway is.
                    _ = self.changed.changed() => {}
                    _ = self.seconds.tick() => {}
                    () = self.topology.drain.cancelled() => {
                        self.ended = true;
                        return Some((Err(Refusal::Draining.status()), self));
                    }
                }
            }
            // Before the picture, so that what changes meanwhile is seen in the next one.
            self.changed.mark_unchanged();
            let services = self.topology.picture(&self.chosen);
            if self.last.as_ref() != Some(&services) {
                self.last = Some(services.clone());
                let at = Some(SystemTime::now().into());
                return Some((Ok(pb::WatchTopologyResponse { services, at }), self));
            }
        }
        None
    }
}

// === impl Service ===

impl Service {
    fn state(&self, now: Instant) -> pb::ServiceState {
        let upstream = &self.upstream;
        let mut replicas: Vec<_> = upstream.endpoints.load().iter().cloned().collect();
        replicas.sort_unstable_by_key(|endpoint| endpoint.address);
        let (calls, failures) = upstream.figures.calls();
        let latency = upstream.figures.quantiles([0.5, 0.99]);
        pb::ServiceState {
            name: upstream.name.to_string(),
            serves: self.serves.clone(),
            replicas: replicas.iter().map(|endpoint| replica(endpoint, &self.identity, now)).collect(),
            waiting: count(upstream.waiting()),
            in_flight: count(upstream.in_flight()),
            calls,
            failures,
            latency_p50: latency.and_then(|[half, _]| half.try_into().ok()),
            latency_p99: latency.and_then(|[_, most]| most.try_into().ok()),
        }
    }
}

fn replica(endpoint: &Endpoint, identity: &str, now: Instant) -> pb::Replica {
    let (calls, failures) = endpoint.load.ended();
    let unit = endpoint.load.unit_us().and_then(|micros| Duration::try_from_secs_f64(micros / 1e6).ok());
    pb::Replica {
        address: endpoint.address.to_string(),
        spiffe_id: identity.to_owned(),
        state: state(endpoint.state()).into(),
        in_flight: u32::try_from(endpoint.load.in_flight()).unwrap_or(u32::MAX),
        backlog: Duration::from_micros(endpoint.load.backlog_us(now)).try_into().ok(),
        time_per_unit: unit.and_then(|unit| unit.try_into().ok()),
        since: Some(endpoint.since().into()),
        calls,
        failures,
    }
}

fn state(state: State) -> pb::ReplicaState {
    match state {
        State::Unknown => pb::ReplicaState::Starting,
        State::Ready => pb::ReplicaState::Ready,
        State::Draining => pb::ReplicaState::NotServing,
        // A retired one is out of the set in the next picture.
        State::Down | State::Retired => pb::ReplicaState::Unreachable,
    }
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
