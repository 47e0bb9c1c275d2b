//! A gRPC server of the mesh: three ports, one stack of layers, and a drain.

pub(crate) mod accept;
mod health;

use std::{
    io,
    net::SocketAddr,
    path::Path,
    pin::{Pin, pin},
    sync::Arc,
    time::Duration,
};

use axum::middleware::{from_fn, from_fn_with_state};
use prometheus_client::registry::Registry;
use tokio::{
    net::TcpListener,
    sync::{Semaphore, oneshot},
    task::{JoinHandle, JoinSet},
};
use tonic::service::Routes;

use self::health::Health;
use crate::{
    admin::{self, Admin},
    calls::{self, Admission, CallMetrics},
    deadline, load,
    readiness::Readiness,
    settings::ServerSettings,
    spiffe::SpiffeId,
    tls::Credentials,
    units::bytes,
};

/// Bytes in flight of one stream: a batch of vectors or an image without a round trip.
const STREAM_WINDOW: u32 = 1 << 20;
/// Bytes in flight of one connection. A small one lets a few slow readers starve a shared connection.
const CONNECTION_WINDOW: u32 = 64 << 20;
/// How often an idle peer must show that it lives.
const KEEPALIVE: Duration = Duration::from_secs(30);
/// A connection to the ports beside the gRPC port may hold the shutdown no longer than this.
const SIDES_STOP_MAX: Duration = Duration::from_secs(2);

/// The three bound ports of a server.
#[derive(Debug)]
pub struct Ports {
    /// gRPC, mutual TLS.
    pub grpc: TcpListener,
    /// Plain HTTP for operators, gRPC over mutual TLS for admins.
    pub admin: TcpListener,
    /// Plain-text gRPC health.
    pub health: TcpListener,
}

/// Addresses of a server's ports, as the announcement file has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Addresses {
    /// gRPC, mutual TLS.
    pub grpc: SocketAddr,
    /// Plain HTTP for operators, gRPC over mutual TLS for admins.
    pub admin: SocketAddr,
    /// Plain-text gRPC health.
    pub health: SocketAddr,
}

impl Ports {
    /// Binds the ports.
    ///
    /// # Errors
    /// When one cannot be bound; the message names the address and the key.
    pub async fn bind(settings: &ServerSettings) -> io::Result<Self> {
        let bind = async |address: SocketAddr, key: &str| {
            TcpListener::bind(address).await.map_err(|error| {
                let message = format!("cannot listen on {address} (server.{key}): {error}");
                io::Error::new(error.kind(), message)
            })
        };
        Ok(Self {
            grpc: bind(settings.listen, "listen").await?,
            admin: bind(settings.admin_listen, "admin_listen").await?,
            health: bind(settings.health_listen, "health_listen").await?,
        })
    }

    /// Where they are.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn addresses(&self) -> io::Result<Addresses> {
        Ok(Addresses {
            grpc: self.grpc.local_addr()?,
            admin: self.admin.local_addr()?,
            health: self.health.local_addr()?,
        })
    }
}

impl Addresses {
    /// Writes the announcement, whole or not at all, for whoever started this process.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn announce(&self, path: &str) -> io::Result<()> {
        if path.is_empty() {
            return Ok(());
        }
        let part = format!("{path}.part");
        std::fs::write(&part, serde_json::to_vec(self)?)?;
        std::fs::rename(&part, Path::new(path))
    }
}

/// A server that is ready to serve.
pub struct Server {
    /// Where it listens and how much it takes.
    pub settings: ServerSettings,
    /// Who it is and whom it trusts.
    pub credentials: Credentials,
    /// Full names of its gRPC services, for health.
    pub services: &'static [&'static str],
    /// Who may call it.
    pub allow: Vec<SpiffeId>,
    /// Whether it should get traffic.
    pub readiness: Readiness,
    /// How busy it is.
    pub probe: load::Probe,
    /// The effective configuration, for the admin port.
    pub config: String,
    /// gRPC services of the admin port, for the identities in `settings.admins`. They answer before this server is ready.
    pub admin: Option<Routes>,
}

impl Server {
    /// Serves until `shutdown` completes, then drains: not ready, a pause in which callers look elsewhere, GOAWAY, calls in
    /// flight finish or their time runs out.
    ///
    /// The admin and health ports answer at once, while `routes` still loads what it serves: a probe can tell a slow start
    /// from a dead process.
    ///
    /// # Errors
    /// When `routes` fails, or a port.
    pub async fn serve<E: From<io::Error>>(
        mut self,
        ports: Ports,
        mut registry: Registry,
        routes: impl Future<Output = Result<Routes, E>>,
        shutdown: impl Future<Output = ()> + Send,
    ) -> Result<(), E> {
        let metrics = CallMetrics::new(&mut registry);
        let config = self.config.as_str().into();
        let (readiness, bounds) = (self.readiness.clone(), self.settings.admin_bounds());
        let admin = Admin { registry: Arc::new(registry), readiness, config, bounds };
        let grpc = self.admin.take().map(|routes| admin::Grpc {
            routes,
            acceptor: self.credentials.acceptor(),
            admins: self.settings.admin_ids(),
            metrics: metrics.clone(),
        });
        let health = Health::new(self.readiness.clone(), self.services).await;
        let mut sides = Sides::start((admin, grpc), health, ports.admin, ports.health);
        let mut shutdown = pin!(shutdown);
        let served = tokio::select! {
            routes = routes => match routes {
                Ok(routes) => self.serve_calls(ports.grpc, (routes, metrics), &mut sides, shutdown).await.map_err(E::from),
                Err(error) => Err(error),
            },
            () = &mut shutdown => Ok(()),
        };
        sides.stop().await?;
        served
    }

    async fn serve_calls(
        &self,
        listener: TcpListener,
        (routes, metrics): (Routes, CallMetrics),
        sides: &mut Sides,
        shutdown: Pin<&mut impl Future<Output = ()>>,
    ) -> io::Result<()> {
        let settings = &self.settings;
        let serving_calls = self.readiness.guard("listener");
        let incoming = accept::incoming(listener, self.credentials.acceptor(), settings);
        let routes = self.stack(routes.add_service(sides.health.service()), metrics);
        let (stop, stopped) = oneshot::channel::<()>();
        let mut serving = pin!(
            tonic::transport::Server::builder()
                .max_concurrent_streams(settings.streams_max)
                .http2_max_header_list_size(u32::try_from(settings.header_bytes_max.as_u64()).unwrap_or(u32::MAX))
                .initial_stream_window_size(STREAM_WINDOW)
                .initial_connection_window_size(CONNECTION_WINDOW)
                .http2_keepalive_interval(Some(KEEPALIVE))
                .serve_with_incoming_shutdown(routes.prepare(), incoming, async { drop(stopped.await) })
        );
        serving_calls.ready();
        tokio::select! {
            ended = &mut serving => return ended.map_err(io::Error::other),
            () = shutdown => {}
        }
        tracing::info!("draining");
        self.readiness.drain();
        tokio::time::sleep(settings.drain_delay.0).await;
        sides.end_watches().await;
        drop(stop);
        match tokio::time::timeout(settings.drain_timeout.0, serving).await {
            Ok(ended) => ended.map_err(io::Error::other),
            Err(_) => {
                tracing::warn!(timeout = %settings.drain_timeout, "calls still in flight are cut off");
                Ok(())
            }
        }
    }

    /// The stack, innermost first as axum adds layers.
    fn stack(&self, routes: Routes, metrics: CallMetrics) -> Routes {
        let admission = Admission {
            allow: self.allow.clone().into(),
            calls: Arc::new(Semaphore::new(self.settings.calls_max)),
            calls_max: self.settings.calls_max,
        };
        let router = routes
            .into_axum_router()
            // Innermost: what comes without details is tonic's own.
            .layer(from_fn(calls::explain))
            // Next to it: the handler's panic is its call's failure, and the deadline still holds for what it answers.
            .layer(from_fn_with_state(metrics.clone(), calls::catch_panics))
            // Inside admission: a refused call costs no timer.
            .layer(from_fn_with_state(self.settings.deadlines(), deadline::enforce))
            .layer(from_fn_with_state(admission, calls::admit))
            // Outside admission: refusals report the load as well.
            .layer(from_fn_with_state(Arc::clone(&self.probe), load::report))
            // Outermost: every call is seen, whoever refused it.
            .layer(from_fn_with_state(metrics, calls::observe));
        Routes::from(router)
    }
}

/// The ports beside the gRPC port, served by tasks of their own.
struct Sides {
    stop: Vec<oneshot::Sender<()>>,
    tasks: JoinSet<io::Result<()>>,
    health: Health,
    /// Follows the readiness until watches are to end.
    follow: Option<JoinHandle<()>>,
}

impl Sides {
    fn start(
        (admin, grpc): (Admin, Option<admin::Grpc>),
        health: Health,
        admin_port: TcpListener,
        health_port: TcpListener,
    ) -> Self {
        let ((stop_admin, admin_stopped), (stop_health, health_stopped)) = (oneshot::channel(), oneshot::channel());
        let mut tasks = JoinSet::new();
        tasks.spawn(admin::serve(admin, admin_port, grpc, async { drop(admin_stopped.await) }));
        tasks.spawn(health.serve(health_port, async { drop(health_stopped.await) }));
        let follow = Some(tokio::spawn(health.clone().follow()));
        Self { stop: vec![stop_admin, stop_health], tasks, health, follow }
    }

    /// Ends all health watches. They never end by themselves, and an open one would hold its connection until the
    /// timeout. Whoever watches has heard NOT_SERVING before.
    async fn end_watches(&mut self) {
        // The follower first: it would bring back what is closed here.
        let Some(follow) = self.follow.take() else { return };
        follow.abort();
        drop(follow.await);
        self.health.report().await;
        self.health.close().await;
    }

    async fn stop(mut self) -> io::Result<()> {
        self.end_watches().await;
        self.stop.clear();
        while let Ok(Some(ended)) = tokio::time::timeout(SIDES_STOP_MAX, self.tasks.join_next()).await {
            ended.map_err(io::Error::other)??;
        }
        Ok(())
    }
}

/// The limit that a tonic service must be given for decoding and encoding.
#[must_use]
pub fn message_bytes(settings: &ServerSettings) -> usize {
    bytes(settings.message_bytes_max)
}
