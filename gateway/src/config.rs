//! The configuration of a gateway, as it is written and as it is used.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::Duration,
};

use chassis::{
    config::{ANY, Mistakes, table_of},
    settings::ServerSettings,
    spiffe::SpiffeId,
    telemetry::LogSettings,
    tls::TlsSettings,
    units::{ByteSize, Span},
};
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use crate::authorize::Rule;

/// What a gateway is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Threads that carry calls, each with a runtime, a listener and connections of its own; 0: one per core. Default 0,
    /// at most 256.
    pub workers: usize,
    /// Files with encoded `google.protobuf.FileDescriptorSet`s, imports included: the contracts of services that are not
    /// Tamis' own. Default: none.
    pub descriptors: Vec<String>,
    /// Where the gateway listens and how much it takes. Default: gRPC 127.0.0.1:8443, admin 127.0.0.1:8081, health
    /// 127.0.0.1:8082, 8192 calls in flight.
    pub server: ServerSettings,
    /// Its certificate; replicas see it as their caller. No default.
    pub tls: TlsSettings,
    /// How it logs.
    pub log: LogSettings,
    /// How much it holds in memory so that calls can be tried again.
    pub hold: HoldSettings,
    /// What it keeps of uploads.
    pub content: ContentSettings,
    /// When calls are tried again.
    pub retry: RetrySettings,
    /// Its connections to replicas.
    pub connection: ConnectionSettings,
    /// How it asks replicas whether they serve.
    pub health: HealthSettings,
    /// Several calls in one.
    pub fanout: FanOutSettings,
    /// The services behind it, by a name for people, metrics and logs: `[services.embedding]`. Default: none.
    pub services: BTreeMap<String, ServiceSettings>,
    /// Who may call what: `[[allow]]` tables with an `identity` and its `methods`. What no rule allows is refused with
    /// PERMISSION_DENIED, health and reflection too. Default: none.
    pub allow: Vec<Rule>,
}

/// A service and its replicas.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceSettings {
    /// Full names of the gRPC services that its replicas serve: `["tamis.embedding.v1.EmbeddingService"]`. Each needs a
    /// contract, and no two entries may serve the same. `tamis.model.v1.ModelService`, health and reflection are the
    /// gateway's own.
    pub serves: Vec<String>,
    /// Addresses of its replicas, IP and port, for a set that does not change: `["127.0.0.1:7001"]`. Either these or
    /// `dns`; neither: no replicas, and every call is refused with NO_CAPACITY.
    pub endpoints: Vec<String>,
    /// Name and port whose addresses are its replicas: `"embedding.tamis.svc:7000"`. It must resolve to the replicas, in
    /// Kubernetes a headless service. Default: none.
    pub dns: String,
    /// How often `dns` is resolved. Default 5s, at least 100ms.
    pub resolve_interval: Span,
    /// The SPIFFE identity that every replica must prove. No default.
    pub spiffe_id: String,
    /// Most calls in flight to it; one that is split counts once. Default 4096. Beyond: RESOURCE_EXHAUSTED, reason
    /// QUEUE_FULL.
    pub in_flight_max: usize,
    /// Most items of a call that one replica gets at once, 1 to 65536; a larger batch is cut into pieces, which its
    /// replicas share. Not above the replicas' own `batch_items_max`. Default 64.
    pub split_items: usize,
    /// Most items of a call, 1 to 1048576. Default 8192. Beyond: INVALID_ARGUMENT, reason TOO_MANY_ITEMS.
    pub batch_items_max: usize,
}

/// How much is held in memory. Beyond these, calls are refused or no longer tried again; they are never cut.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HoldSettings {
    /// Bytes of all requests that are held at once, each until its reply begins to go to the client. Default 256MiB.
    /// Beyond: RESOURCE_EXHAUSTED, reason QUEUE_FULL.
    pub request_bytes_max: ByteSize,
    /// Bytes of one reply that are held until its status is known; a longer one passes through from there on, and is lost
    /// if its replica is. Default 1MiB.
    pub reply_bytes_max: ByteSize,
    /// Bytes of all replies that are gathered for one response at once, steps of a fan-out and pieces of a batch, each until
    /// its client has taken it. Default 256MiB. Beyond: RESOURCE_EXHAUSTED, reason QUEUE_FULL, for these calls only.
    pub gathered_bytes_max: ByteSize,
}

/// Images that UploadImage took. The gateway puts them in the place of their digests, so that a digest works with every
/// replica.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContentSettings {
    /// Most memory of the images that are kept. Default 256MiB, at least 1MiB. Beyond: those unused the longest are
    /// dropped; their digests work as long as the replica that a call goes to has them.
    pub bytes_max: ByteSize,
    /// Most memory of all uploads under way. Default 128MiB, at least 1MiB. Beyond: RESOURCE_EXHAUSTED, reason QUEUE_FULL.
    pub uploads_bytes_max: ByteSize,
    /// Largest request with images in the place of their digests, and the largest image that is taken, but for 64KiB. No
    /// larger than hold.request_bytes_max, and no larger than the replicas' server.message_bytes_max should be. Default
    /// 64MiB, at least 1MiB. Beyond: reason MESSAGE_TOO_LARGE for a request, INPUT_TOO_LARGE for an upload.
    pub message_bytes_max: ByteSize,
}

/// When calls are tried again. Only calls that were not processed, or whose contract says that repeating does no harm.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RetrySettings {
    /// Most times that one call is sent, the first included. Default 3, 1 to 10; 1: calls are never repeated.
    pub attempts_max: u32,
    /// Retries that one call adds to its service's budget, 0 to 1. Default 0.2.
    pub budget_ratio: f64,
    /// Most retries that a budget holds; it starts full. It should cover the calls in flight on one replica, which all
    /// need a retry when it dies. Default 4096.
    pub budget_max: u32,
    /// How long a call waits while no replica is ready, inside its deadline. Default 2s. Beyond: UNAVAILABLE, reason
    /// NO_CAPACITY or REPLICA_LOST.
    pub ready_wait: Span,
}

impl Eq for RetrySettings {}

/// Connections to replicas.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConnectionSettings {
    /// Connecting takes at most this, TLS handshake included. Default 2s.
    pub connect_timeout: Span,
    /// A PING is sent after this much silence. Default 10s, at least 100ms.
    pub keepalive_interval: Span,
    /// A connection whose PING is not answered for this long is lost. Default 5s.
    pub keepalive_timeout: Span,
    /// Most calls on one connection, or fewer if the replica says so. Default 512.
    pub streams_max: usize,
    /// Most connections of one worker to one replica, for unary and for streaming calls each. Default 8. Beyond:
    /// RESOURCE_EXHAUSTED, reason QUEUE_FULL, if all replicas are that full.
    pub connections_max: usize,
}

/// Waits between attempts to reach a replica that is down: doubling, spread by up to half.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HealthSettings {
    /// The first wait. Default 50ms, at least 1ms.
    pub retry_min: Span,
    /// The longest. Default 500ms: how long a replica that is back may go unnoticed.
    pub retry_max: Span,
}

/// Fan-outs: several calls in one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FanOutSettings {
    /// Most steps of one fan-out. Default 32, 1 to 256. Beyond: INVALID_ARGUMENT, reason TOO_MANY_ITEMS.
    pub steps_max: usize,
}

/// How a service's replicas are found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Replicas {
    /// These.
    Static(Vec<SocketAddr>),
    /// Whatever the name resolves to.
    Dns { name: String, every: Duration },
}

// === impl Settings ===

impl chassis::config::Settings for Settings {
    fn defaults() -> Self {
        let mut server = ServerSettings::defaults("gateway");
        server.listen.set_port(8443);
        server.admin_listen.set_port(8081);
        server.health_listen.set_port(8082);
        server.calls_max = 8192;
        Self {
            workers: 0,
            descriptors: Vec::new(),
            server,
            tls: TlsSettings::defaults(),
            log: LogSettings::defaults(),
            hold: HoldSettings {
                request_bytes_max: ByteSize::mib(256),
                reply_bytes_max: ByteSize::mib(1),
                gathered_bytes_max: ByteSize::mib(256),
            },
            content: ContentSettings::defaults(),
            retry: RetrySettings::defaults(),
            connection: ConnectionSettings::defaults(),
            health: HealthSettings { retry_min: Span::millis(50), retry_max: Span::millis(500) },
            fanout: FanOutSettings { steps_max: 32 },
            services: BTreeMap::new(),
            allow: Vec::new(),
        }
    }

    fn check(&self, mistakes: &mut Mistakes) {
        self.server.check(mistakes);
        self.tls.check(mistakes);
        self.log.check(mistakes);
        self.content.check(mistakes);
        self.retry.check(mistakes);
        self.connection.check(mistakes);
        mistakes.require(self.workers <= 256, "workers", "must be at most 256");
        let steps = (1..=256).contains(&self.fanout.steps_max);
        mistakes.require(steps, "fanout.steps_max", "must lie between 1 and 256");
        let health = &self.health;
        mistakes.require(health.retry_min >= Span::millis(1), "health.retry_min", "must be at least 1ms");
        mistakes.require(health.retry_min <= health.retry_max, "health.retry_max", "must not be below retry_min");
        let fits = self.hold.request_bytes_max >= self.server.message_bytes_max;
        mistakes.require(fits, "hold.request_bytes_max", "must hold at least one message of server.message_bytes_max");
        let fits = self.hold.gathered_bytes_max >= self.server.message_bytes_max;
        mistakes.require(fits, "hold.gathered_bytes_max", "must hold at least one message of server.message_bytes_max");
        let mut served = BTreeSet::new();
        for (name, service) in &self.services {
            service.check(name, mistakes);
            for full_name in &service.serves {
                let key = format!("services.{name}.serves");
                mistakes.require(served.insert(full_name), &key, format!("`{full_name}` is served twice"));
            }
        }
    }

    fn template() -> Table {
        let mut template = table_of(&Self::defaults());
        let services = Table::from_iter([(ANY.to_owned(), Value::Table(table_of(&ServiceSettings::defaults())))]);
        template.insert("services".into(), Value::Table(services));
        template
    }
}

impl Settings {
    /// How many workers there will be.
    pub(crate) fn worker_count(&self) -> usize {
        match self.workers {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            workers => workers,
        }
    }
}

// === impl ServiceSettings ===

impl ServiceSettings {
    /// A service that serves nothing yet.
    #[must_use]
    pub fn defaults() -> Self {
        Self {
            serves: Vec::new(),
            endpoints: Vec::new(),
            dns: String::new(),
            resolve_interval: Span::seconds(5),
            spiffe_id: String::new(),
            in_flight_max: 4096,
            split_items: 64,
            batch_items_max: 8192,
        }
    }

    /// The identity of its replicas.
    pub(crate) fn identity(&self) -> Result<SpiffeId, String> {
        self.spiffe_id.parse().map_err(|error: chassis::spiffe::NotSpiffe| error.to_string())
    }

    /// Where its replicas are.
    pub(crate) fn replicas(&self) -> Result<Replicas, String> {
        if self.dns.is_empty() {
            let address =
                |text: &String| text.parse().map_err(|_| format!("`{text}` is not an address such as 127.0.0.1:7001"));
            return self.endpoints.iter().map(address).collect::<Result<_, _>>().map(Replicas::Static);
        }
        let port = self.dns.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
        if port.is_none() {
            return Err(format!("`{}` is not a name and a port such as embedding.tamis.svc:7000", self.dns));
        }
        Ok(Replicas::Dns { name: self.dns.clone(), every: self.resolve_interval.0 })
    }

    fn check(&self, name: &str, mistakes: &mut Mistakes) {
        let key = |field: &str| format!("services.{name}.{field}");
        mistakes.require(!self.serves.is_empty(), &key("serves"), "names no gRPC service");
        let both = !self.endpoints.is_empty() && !self.dns.is_empty();
        mistakes.require(!both, &key("dns"), "cannot stand beside endpoints: replicas come from one of them");
        if let Err(error) = self.replicas() {
            mistakes.require(false, &key(if self.dns.is_empty() { "endpoints" } else { "dns" }), error);
        }
        if let Err(error) = self.identity() {
            mistakes.require(false, &key("spiffe_id"), error);
        }
        mistakes.require(self.in_flight_max >= 1, &key("in_flight_max"), "must be at least 1");
        let split = (1..=65_536).contains(&self.split_items);
        mistakes.require(split, &key("split_items"), "must lie between 1 and 65536");
        let batch = (1..=1 << 20).contains(&self.batch_items_max);
        mistakes.require(batch, &key("batch_items_max"), "must lie between 1 and 1048576");
        let often = self.resolve_interval >= Span::millis(100);
        mistakes.require(often, &key("resolve_interval"), "must be at least 100ms");
    }
}

// === impl ContentSettings ===

impl ContentSettings {
    fn defaults() -> Self {
        let [bytes_max, uploads_bytes_max, message_bytes_max] = [256, 128, 64].map(ByteSize::mib);
        Self { bytes_max, uploads_bytes_max, message_bytes_max }
    }

    fn check(&self, mistakes: &mut Mistakes) {
        for (size, key) in [
            (self.bytes_max, "content.bytes_max"),
            (self.uploads_bytes_max, "content.uploads_bytes_max"),
            (self.message_bytes_max, "content.message_bytes_max"),
        ] {
            mistakes.require(size >= ByteSize::mib(1), key, "must be at least 1MiB");
        }
    }
}

// === impl RetrySettings ===

impl RetrySettings {
    fn defaults() -> Self {
        Self { attempts_max: 3, budget_ratio: 0.2, budget_max: 4096, ready_wait: Span::seconds(2) }
    }

    fn check(&self, mistakes: &mut Mistakes) {
        mistakes.require((1..=10).contains(&self.attempts_max), "retry.attempts_max", "must lie between 1 and 10");
        mistakes.require((0.0..=1.0).contains(&self.budget_ratio), "retry.budget_ratio", "must lie between 0 and 1");
    }
}

// === impl ConnectionSettings ===

impl ConnectionSettings {
    fn defaults() -> Self {
        Self {
            connect_timeout: Span::seconds(2),
            keepalive_interval: Span::seconds(10),
            keepalive_timeout: Span::seconds(5),
            streams_max: 512,
            connections_max: 8,
        }
    }

    fn check(&self, mistakes: &mut Mistakes) {
        let mut require = |holds, key, what| mistakes.require(holds, key, what);
        require(!self.connect_timeout.0.is_zero(), "connection.connect_timeout", "must be longer than zero");
        require(
            self.keepalive_interval >= Span::millis(100),
            "connection.keepalive_interval",
            "must be at least 100ms",
        );
        require(!self.keepalive_timeout.0.is_zero(), "connection.keepalive_timeout", "must be longer than zero");
        require(self.streams_max >= 1, "connection.streams_max", "must be at least 1");
        require(self.connections_max >= 1, "connection.connections_max", "must be at least 1");
    }
}

#[cfg(test)]
mod tests {
    use chassis::config::{Layer, load};

    use super::*;

    const MINIMAL: &str = r#"
        tls = { ca = "ca.pem", cert = "gateway.pem", key = "gateway.key" }
        [services.embedding]
        serves = ["tamis.embedding.v1.EmbeddingService"]
        endpoints = ["127.0.0.1:7001", "[::1]:7002"]
        spiffe_id = "spiffe://tamis.local/service/embedding"
        [[allow]]
        identity = "spiffe://tamis.local/client/*"
        methods = ["*"]
    "#;

    fn check(text: &str) -> Result<Settings, String> {
        load("gateway", &[Layer::text("test.toml", text)]).map_err(|mistakes: Mistakes| mistakes.to_string())
    }

    fn refused(more: &str, expected: &str) {
        let message = check(&format!("{MINIMAL}\n{more}")).unwrap_err();
        assert!(message.contains(expected), "{expected} is missing in\n{message}");
    }

    #[test]
    fn a_minimal_configuration_stands_on_defaults() {
        let settings = check(MINIMAL).unwrap();
        assert_eq!(settings.server.listen, "127.0.0.1:8443".parse().unwrap());
        let embedding = &settings.services["embedding"];
        assert_eq!(embedding.in_flight_max, 4096);
        let expected = ["127.0.0.1:7001", "[::1]:7002"].map(|address| address.parse().unwrap());
        assert_eq!(embedding.replicas().unwrap(), Replicas::Static(expected.into()));
    }

    #[test]
    fn the_effective_configuration_reads_back() {
        let settings = check(MINIMAL).unwrap();
        assert_eq!(check(&chassis::config::print(&settings)).unwrap(), settings);
    }

    #[test]
    fn mistakes_are_told_with_their_key() {
        refused("[services.b]\nendpoints = ['here']", "`services.b.serves`");
        refused("[services.b]\nendpoints = ['here']", "`here` is not an address");
        refused("[services.b]\nserves = ['x.Y']", "`services.b.spiffe_id`");
        refused("[services.b]\ndns = 'name'", "`name` is not a name and a port");
        refused("[services.b]\ndns = 'name:1'\nendpoints = ['127.0.0.1:1']", "from one of them");
        refused("[services.b]\nserves = ['tamis.embedding.v1.EmbeddingService']", "is served twice");
        refused("[retry]\nattempts_max = 0", "`retry.attempts_max`");
        refused("[fanout]\nsteps_max = 0", "`fanout.steps_max`");
        refused("[hold]\nrequest_bytes_max = '1MiB'", "`hold.request_bytes_max`");
        refused("[content]\nbytes_max = '1B'", "`content.bytes_max`");
        refused("[[allow]]\nidentity = '*'\nmethods = []", "allow");
        refused("[services.b]\nserves = ['x.Y']\nsplit_items = 0", "`services.b.split_items`");
        refused("[services.b]\nserves = ['x.Y']\nbatch_items_max = 0", "`services.b.batch_items_max`");
    }

    #[test]
    fn a_name_is_resolved_again_and_again() {
        let service = ServiceSettings { dns: "embedding:7000".into(), ..ServiceSettings::defaults() };
        let every = Duration::from_secs(5);
        assert_eq!(service.replicas(), Ok(Replicas::Dns { name: "embedding:7000".into(), every }));
    }
}
