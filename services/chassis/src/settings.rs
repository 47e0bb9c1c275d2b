//! The configuration that every server shares.

use std::net::{Ipv4Addr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::{
    admin::Bounds,
    config::Mistakes,
    deadline,
    spiffe::SpiffeId,
    units::{ByteSize, Span},
};

/// Where a server listens and how much it takes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServerSettings {
    /// Name of this replica in logs, in timing blocks and for people; default: the role.
    pub name: String,
    /// Address of the gRPC port, mutual TLS; port 0 takes a free one. Default 127.0.0.1:0, the gateway 127.0.0.1:8443.
    pub listen: SocketAddr,
    /// Address of the admin port: plain HTTP for metrics, readiness and configuration, gRPC over mutual TLS for what
    /// changes a running process. Default 127.0.0.1:0, the gateway 127.0.0.1:8081.
    pub admin_listen: SocketAddr,
    /// SPIFFE identities that may call gRPC on the admin port; nobody else may. Default:
    /// `spiffe://tamis.local/client/admin`. Others: PERMISSION_DENIED, reason NOT_ALLOWED.
    pub admins: Vec<String>,
    /// Most connections to the admin port at once, and most gRPC calls in flight on it. Default 256. Further connections
    /// wait in the listener's backlog; further calls: RESOURCE_EXHAUSTED, reason QUEUE_FULL.
    pub admin_connections_max: usize,
    /// Address of the health port, plain-text gRPC with nothing but `grpc.health.v1`, for probes that have no
    /// certificate. Default 127.0.0.1:0, the gateway 127.0.0.1:8082.
    pub health_listen: SocketAddr,
    /// File that is written once the ports are bound: their addresses as JSON. Empty: none. Default: none.
    pub announce: String,
    /// Largest message, request or reply. Default 16MiB and 64KiB for what surrounds the payload; at most 256MiB.
    /// Beyond: RESOURCE_EXHAUSTED, reason MESSAGE_TOO_LARGE.
    pub message_bytes_max: ByteSize,
    /// Most connections at once; further ones wait in the listener's backlog. Default 4096.
    pub connections_max: usize,
    /// Most calls in flight in this process. Default 1024. Beyond: RESOURCE_EXHAUSTED, reason QUEUE_FULL.
    pub calls_max: usize,
    /// Most streams on one connection; clients wait for a free one. Default 1024.
    pub streams_max: u32,
    /// Most bytes of one call's headers. Default 16KiB.
    pub header_bytes_max: ByteSize,
    /// A TLS handshake takes at most this, and on the admin port a request's head too. Default 10s.
    pub handshake_timeout: Span,
    /// Deadline of calls that bring none. Default 30s.
    pub deadline_default: Span,
    /// Longest deadline; longer ones are cut to it. Default 5m.
    pub deadline_max: Span,
    /// At shutdown: time between saying not ready and closing connections, in which callers look elsewhere. Default 500ms.
    pub drain_delay: Span,
    /// At shutdown: time for calls in flight to finish, after drain_delay; what remains is cut off. Default 30s.
    pub drain_timeout: Span,
}

impl ServerSettings {
    /// The defaults of a role.
    #[must_use]
    pub fn defaults(role: &str) -> Self {
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        Self {
            name: role.to_owned(),
            listen: any,
            admin_listen: any,
            admins: vec!["spiffe://tamis.local/client/admin".to_owned()],
            admin_connections_max: 256,
            health_listen: any,
            announce: String::new(),
            message_bytes_max: ByteSize::kib(16 * 1024 + 64),
            connections_max: 4096,
            calls_max: 1024,
            streams_max: 1024,
            header_bytes_max: ByteSize::kib(16),
            handshake_timeout: Span::seconds(10),
            deadline_default: Span::seconds(30),
            deadline_max: Span::seconds(300),
            drain_delay: Span::millis(500),
            drain_timeout: Span::seconds(30),
        }
    }

    /// Bounds of the values.
    pub fn check(&self, mistakes: &mut Mistakes) {
        let mut require = |holds, key: &str, what| mistakes.require(holds, &format!("server.{key}"), what);
        require(!self.name.is_empty() && self.name.len() <= 128, "name", "must have 1 to 128 bytes");
        let message = self.message_bytes_max.as_u64();
        require((1024..=256 << 20).contains(&message), "message_bytes_max", "must lie between 1KiB and 256MiB");
        require(self.connections_max >= 1, "connections_max", "must be at least 1");
        require(self.admin_connections_max >= 1, "admin_connections_max", "must be at least 1");
        require(self.calls_max >= 1, "calls_max", "must be at least 1");
        require(self.streams_max >= 1, "streams_max", "must be at least 1");
        let header = self.header_bytes_max.as_u64();
        require((1024..=1 << 20).contains(&header), "header_bytes_max", "must lie between 1KiB and 1MiB");
        require(self.deadline_default <= self.deadline_max, "deadline_default", "must not be longer than deadline_max");
        require(!self.deadline_default.0.is_zero(), "deadline_default", "must be longer than zero");
        for id in &self.admins {
            if let Err(error) = id.parse::<SpiffeId>() {
                mistakes.add("server.admins", "effective value", error);
            }
        }
    }

    /// The identities that may call gRPC on the admin port; those that do not parse were refused by `check`.
    #[must_use]
    pub fn admin_ids(&self) -> Vec<SpiffeId> {
        self.admins.iter().filter_map(|id| id.parse().ok()).collect()
    }

    /// How much the admin port takes.
    #[must_use]
    pub fn admin_bounds(&self) -> Bounds {
        Bounds {
            connections_max: self.admin_connections_max,
            handshake_timeout: self.handshake_timeout.0,
            deadlines: self.deadlines(),
        }
    }

    /// The bounds of deadlines.
    #[must_use]
    pub fn deadlines(&self) -> deadline::Limits {
        deadline::Limits { default: self.deadline_default.0, max: self.deadline_max.0 }
    }
}
