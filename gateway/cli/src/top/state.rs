//! What is known of the mesh, and how it is looked at: a value that messages and keys change.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    time::{Duration, SystemTime},
};

use proto::gateway::v1 as pb;

use crate::process::Usage;

/// What a process of this machine uses.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Local {
    /// Bytes.
    pub(crate) memory: u64,
    /// Processors, once it was seen twice.
    pub(crate) cpus: Option<f64>,
}

/// By what services are ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    Name,
    Rate,
    InFlight,
    Waiting,
    Latency,
    Failures,
}

/// The state of the view.
#[derive(Debug)]
pub(crate) struct State {
    /// Where it comes from.
    pub(crate) source: String,
    /// What is wrong with the source, if something is.
    pub(crate) trouble: Option<String>,
    pub(crate) services: Vec<pb::ServiceState>,
    pub(crate) order: Order,
    /// First replica that is shown.
    pub(crate) scroll: usize,
    pub(crate) help: bool,
    /// Calls a second, by service, and by service and address.
    rates: BTreeMap<String, f64>,
    local: BTreeMap<String, Local>,
    at: Option<SystemTime>,
    seen: BTreeMap<String, (SystemTime, Usage)>,
}

/// What a key asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Quit,
    Help,
    OrderNext,
    OrderBefore,
    Up,
    Down,
}

impl State {
    pub(crate) fn new(source: String) -> Self {
        Self {
            source,
            trouble: None,
            services: Vec::new(),
            order: Order::Name,
            scroll: 0,
            help: false,
            rates: BTreeMap::new(),
            local: BTreeMap::new(),
            at: None,
            seen: BTreeMap::new(),
        }
    }

    /// Takes in a message. Counters become rates by the gateway's own clock: messages may be late, its time is not.
    pub(crate) fn update(&mut self, services: Vec<pb::ServiceState>, at: Option<prost_types::Timestamp>) {
        let at = at.and_then(|at| SystemTime::try_from(at).ok());
        let passed = self.at.zip(at).and_then(|(before, at)| at.duration_since(before).ok());
        if let Some(passed) = passed.filter(|passed| *passed > Duration::from_millis(100)) {
            let before = counters(&self.services);
            self.rates = counters(&services)
                .into_iter()
                .filter_map(|(key, calls)| {
                    // A counter that went back belongs to a new process.
                    let more = calls.checked_sub(*before.get(&key)?)?;
                    Some((key, float(more) / passed.as_secs_f64()))
                })
                .collect();
            self.at = at;
        } else if self.at.is_none() {
            self.at = at;
        }
        self.services = services;
        self.trouble = None;
        self.sort();
    }

    /// Takes in what local processes use, by the address of their gRPC port.
    pub(crate) fn observe(&mut self, now: SystemTime, usage: impl IntoIterator<Item = (SocketAddr, Usage)>) {
        let mut seen = BTreeMap::new();
        self.local.clear();
        for (address, usage) in usage {
            let address = address.to_string();
            let cpus = self.seen.get(&address).and_then(|(then, before)| {
                let passed = now.duration_since(*then).ok().filter(|passed| !passed.is_zero())?;
                Some(usage.cpu.checked_sub(before.cpu)?.as_secs_f64() / passed.as_secs_f64())
            });
            self.local.insert(address.clone(), Local { memory: usage.memory, cpus });
            seen.insert(address, (now, usage));
        }
        self.seen = seen;
    }

    /// Does what a key asks for; false when the view is to end.
    pub(crate) fn act(&mut self, action: Action) -> bool {
        match action {
            Action::Quit if self.help => self.help = false,
            Action::Quit => return false,
            Action::Help => self.help = !self.help,
            Action::OrderNext => self.order = self.order.step(1),
            Action::OrderBefore => self.order = self.order.step(Order::ALL.len() - 1),
            Action::Up => self.scroll = self.scroll.saturating_sub(1),
            Action::Down => self.scroll = (self.scroll + 1).min(self.replicas().count().saturating_sub(1)),
        }
        self.sort();
        true
    }

    /// Calls a second to a service, once two messages have come.
    pub(crate) fn rate(&self, service: &str) -> Option<f64> {
        self.rates.get(service).copied()
    }

    /// Calls a second to a replica.
    pub(crate) fn replica_rate(&self, service: &str, address: &str) -> Option<f64> {
        self.rates.get(&key(service, address)).copied()
    }

    /// What the process at this address uses, if it runs on this machine.
    pub(crate) fn local(&self, address: &str) -> Option<Local> {
        self.local.get(address).copied()
    }

    /// All replicas with the names of their services.
    pub(crate) fn replicas(&self) -> impl Iterator<Item = (&str, &pb::Replica)> {
        self.services.iter().flat_map(|service| service.replicas.iter().map(|replica| (service.name.as_str(), replica)))
    }

    fn sort(&mut self) {
        let rates = &self.rates;
        let weight = |service: &pb::ServiceState| match self.order {
            Order::Name => 0.0,
            Order::Rate => rates.get(&service.name).copied().unwrap_or(0.0),
            Order::InFlight => f64::from(service.in_flight),
            Order::Waiting => f64::from(service.waiting),
            Order::Latency => seconds(service.latency_p99.as_ref()).unwrap_or(0.0),
            Order::Failures => float(service.failures),
        };
        // Most first; equal ones keep still, by name.
        self.services.sort_by(|a, b| weight(b).total_cmp(&weight(a)).then_with(|| a.name.cmp(&b.name)));
    }
}

impl Order {
    pub(crate) const ALL: [Self; 6] =
        [Self::Name, Self::Rate, Self::InFlight, Self::Waiting, Self::Latency, Self::Failures];

    /// The column that it is about.
    pub(crate) fn column(self) -> &'static str {
        match self {
            Self::Name => "SERVICE",
            Self::Rate => "CALLS/S",
            Self::InFlight => "IN FLIGHT",
            Self::Waiting => "WAITING",
            Self::Latency => "P99",
            Self::Failures => "FAILED",
        }
    }

    fn step(self, by: usize) -> Self {
        let place = Self::ALL.iter().position(|order| *order == self).unwrap_or(0);
        Self::ALL[(place + by) % Self::ALL.len()]
    }
}

/// A time of the contract in seconds.
pub(crate) fn seconds(time: Option<&prost_types::Duration>) -> Option<f64> {
    Some(Duration::try_from(*time?).ok()?.as_secs_f64())
}

fn counters(services: &[pb::ServiceState]) -> BTreeMap<String, u64> {
    let replicas = services.iter().flat_map(|service| {
        service.replicas.iter().map(|replica| (key(&service.name, &replica.address), replica.calls))
    });
    services.iter().map(|service| (service.name.clone(), service.calls)).chain(replicas).collect()
}

/// No name of a service has a blank in it.
fn key(service: &str, address: &str) -> String {
    format!("{service} {address}")
}

#[expect(clippy::cast_precision_loss, reason = "for people, who read a few digits")]
fn float(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn service(name: &str, calls: u64, p99_ms: i32) -> pb::ServiceState {
        let time = |nanos| Some(prost_types::Duration { seconds: 0, nanos });
        let replica = |port: u16, state: pb::ReplicaState| pb::Replica {
            address: format!("127.0.0.1:{port}"),
            state: state.into(),
            in_flight: 2,
            backlog: time(4_000_000),
            time_per_unit: time(50_000),
            calls: calls / 2,
            failures: 1,
            ..Default::default()
        };
        pb::ServiceState {
            name: name.into(),
            replicas: vec![replica(7001, pb::ReplicaState::Ready), replica(7002, pb::ReplicaState::Unreachable)],
            waiting: 3,
            in_flight: 4,
            calls,
            failures: 5,
            latency_p50: time(p99_ms * 500_000),
            latency_p99: time(p99_ms * 1_000_000),
            ..Default::default()
        }
    }

    fn at(seconds: i64) -> Option<prost_types::Timestamp> {
        Some(prost_types::Timestamp { seconds, nanos: 0 })
    }

    /// Two messages, two seconds apart.
    pub(crate) fn state() -> State {
        let mut state = State::new("127.0.0.1:8081".into());
        state.update(vec![service("embedding", 100, 20), service("vision", 10, 90)], at(1000));
        state.update(vec![service("embedding", 300, 20), service("vision", 12, 90)], at(1002));
        state
    }

    #[test]
    fn counters_become_rates_by_the_gateways_clock() {
        let state = state();
        assert_eq!(state.rate("embedding"), Some(100.0));
        assert_eq!(state.rate("vision"), Some(1.0));
        assert_eq!(state.replica_rate("embedding", "127.0.0.1:7001"), Some(50.0));
    }

    #[test]
    fn a_gateway_that_started_again_has_no_negative_rate() {
        let mut state = state();
        state.update(vec![service("embedding", 4, 20)], at(1004));
        assert_eq!(state.rate("embedding"), None);
    }

    #[test]
    fn services_are_ordered_as_asked() {
        let mut state = state();
        let first = |state: &State| state.services[0].name.clone();
        assert_eq!(first(&state), "embedding");
        for order in Order::ALL.into_iter().skip(1) {
            state.act(Action::OrderNext);
            assert_eq!(state.order, order);
        }
        state.act(Action::OrderBefore);
        assert_eq!((state.order, first(&state).as_str()), (Order::Latency, "vision"));
        state.act(Action::OrderNext);
        state.act(Action::OrderNext);
        assert_eq!(state.order, Order::Name);
    }

    #[test]
    fn scrolling_stays_within_the_replicas() {
        let mut state = state();
        for _ in 0..9 {
            state.act(Action::Down);
        }
        assert_eq!(state.scroll, 3);
        for _ in 0..9 {
            state.act(Action::Up);
        }
        assert_eq!(state.scroll, 0);
    }

    #[test]
    fn quitting_closes_the_help_first() {
        let mut state = state();
        assert!(state.act(Action::Help) && state.help);
        assert!(state.act(Action::Quit) && !state.help);
        assert!(!state.act(Action::Quit));
    }

    #[test]
    fn processors_are_known_from_the_second_look_on() {
        let mut state = state();
        let address: SocketAddr = "127.0.0.1:7001".parse().unwrap();
        let usage = |ms| [(address, Usage { cpu: Duration::from_millis(ms), memory: 1 << 20 })];
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        state.observe(now, usage(100));
        assert_eq!(state.local("127.0.0.1:7001"), Some(Local { memory: 1 << 20, cpus: None }));
        state.observe(now + Duration::from_secs(2), usage(1100));
        assert_eq!(state.local("127.0.0.1:7001").unwrap().cpus, Some(0.5));
        state.observe(now, []);
        assert_eq!(state.local("127.0.0.1:7001"), None);
    }
}
