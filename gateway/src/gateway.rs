//! A gateway from its settings to its end.

use std::{io, net::SocketAddr, sync::Arc};

use chassis::{
    admin::{self, Admin},
    calls::CallMetrics,
    readiness::Readiness,
    server::Addresses,
    tls::{Credentials, TlsError},
};
use futures_util::future::try_join_all;
use prometheus_client::registry::Registry;
use proto::gateway::v1::topology_service_server::TopologyServiceServer;
use tokio::{net::TcpListener, sync::Semaphore};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tonic::service::Routes;

use crate::{
    config::Settings,
    mesh::{Mesh, Upkeep},
    upstream::resolve,
    worker::{Worker, listeners},
};

/// A gateway whose ports are bound.
pub struct Bound {
    addresses: Addresses,
    grpc: Vec<std::net::TcpListener>,
    admin: TcpListener,
    health: TcpListener,
    mesh: Arc<Mesh>,
    upkeep: Upkeep,
    credentials: Credentials,
    registry: Registry,
    readiness: Readiness,
}

/// Why there is no gateway.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The settings contradict one another or the contracts: mend the configuration.
    #[error("{0}")]
    Settings(String),
    /// A descriptor set cannot be used: its file, and why.
    #[error("cannot use the contracts in {0}: {1}")]
    Contract(String, String),
    /// The certificate cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// A port cannot be bound: address, key, and why.
    #[error("cannot listen on {0} (server.{1}): {2}")]
    Listen(SocketAddr, &'static str, #[source] io::Error),
    /// The system failed the running gateway.
    #[error("the gateway failed: {0}")]
    Failed(#[from] io::Error),
}

/// Runs a gateway until `shutdown` completes, then drains it.
///
/// # Errors
/// When certificates, contracts or ports cannot be used, or the system fails the running gateway.
pub async fn serve(settings: Settings, shutdown: impl Future<Output = ()>) -> Result<(), Error> {
    let credentials = Credentials::load(&settings.tls)?;
    let announce = settings.server.announce.clone();
    let bound = bind(settings, credentials, Registry::with_prefix("tamis"), Readiness::default()).await?;
    bound.addresses.announce(&announce)?;
    let Addresses { grpc, admin, health } = bound.addresses;
    tracing::info!(%grpc, %admin, %health, identity = %bound.credentials.id, "listening");
    bound.serve(shutdown).await
}

/// Builds a gateway and binds its ports. Metrics go into the registry; the readiness waits for the workers.
///
/// # Errors
/// When the settings cannot be carried out or a port is taken.
pub async fn bind(
    settings: Settings,
    credentials: Credentials,
    mut registry: Registry,
    readiness: Readiness,
) -> Result<Bound, Error> {
    let server = &settings.server;
    let grpc = listeners(server.listen, settings.worker_count());
    let grpc = grpc.map_err(|error| Error::Listen(server.listen, "listen", error))?;
    let bind = async |address: SocketAddr, key| {
        TcpListener::bind(address).await.map_err(|error| Error::Listen(address, key, error))
    };
    let admin = bind(server.admin_listen, "admin_listen").await?;
    let health = bind(server.health_listen, "health_listen").await?;
    let first = grpc.first().map_or(Ok(server.listen), std::net::TcpListener::local_addr)?;
    let addresses = Addresses { grpc: first, admin: admin.local_addr()?, health: health.local_addr()? };
    let (mesh, upkeep) = Mesh::new(settings, &credentials, &mut registry, &readiness)?;
    Ok(Bound { addresses, grpc, admin, health, mesh: Arc::new(mesh), upkeep, credentials, registry, readiness })
}

impl Bound {
    /// Where it listens.
    #[must_use]
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// Serves until `shutdown` completes, then drains: not ready, a pause in which clients look elsewhere, GOAWAY, calls in
    /// flight finish or their time runs out.
    ///
    /// Calls run on threads of the gateway's own; discovery, health, metrics and the admin port run here, so that a scrape
    /// never delays a call.
    ///
    /// # Errors
    /// When a worker or a port fails.
    pub async fn serve(self, shutdown: impl Future<Output = ()>) -> Result<(), Error> {
        let Self { grpc, admin, health, mesh, upkeep, credentials, mut registry, readiness, .. } = self;
        let starting = readiness.guard("workers");
        let config = chassis::config::print(&mesh.settings).into();
        let stop = CancellationToken::new();
        let stopped = stop.clone().cancelled_owned();
        let Upkeep { resolutions, health: reporter, topology } = upkeep;
        let bounds = mesh.settings.server.admin_bounds();
        let grpc_admin = admin::Grpc {
            routes: Routes::new(TopologyServiceServer::new(topology.clone())),
            acceptor: credentials.acceptor(),
            admins: mesh.settings.server.admin_ids(),
            metrics: CallMetrics::new(registry.sub_registry_with_prefix("gateway_admin")),
        };
        let _topology = own(async move { topology.count_seconds().await });
        let admin_state = Admin { registry: Arc::new(registry), readiness: readiness.clone(), config, bounds };
        let admin = own(admin::serve(admin_state, admin, Some(grpc_admin), stopped));
        let (plain, stopped) = (reporter.clone(), stop.clone().cancelled_owned());
        let plain = own(async move { plain.serve_plain(health, stopped).await });
        let follower = reporter.clone();
        let follower = own(async move { follower.follow().await });
        let _resolutions: Vec<_> = resolutions.into_iter().map(|resolution| own(resolve(resolution))).collect();

        let connections = Arc::new(Semaphore::new(mesh.settings.server.connections_max));
        let mut workers = Vec::with_capacity(grpc.len());
        // However this ends, the workers end with it.
        let _drain = mesh.drain.clone().drop_guard();
        for (index, listener) in grpc.into_iter().enumerate() {
            let (mesh, connections) = (Arc::clone(&mesh), Arc::clone(&connections));
            workers.push(Worker { index, mesh, acceptor: credentials.acceptor(), connections }.start(listener)?);
        }
        starting.ready();
        let ended = async {
            let ends = try_join_all(workers).await.map_err(|_| io::Error::other("a worker panicked"))?;
            ends.into_iter().collect::<io::Result<()>>()
        };
        tokio::pin!(ended);
        tokio::select! {
            early = &mut ended => early?,
            () = shutdown => {
                tracing::info!("draining");
                readiness.drain();
                tokio::time::sleep(mesh.settings.server.drain_delay.0).await;
                follower.abort();
                _ = follower.await;
                reporter.close().await;
                mesh.drain.cancel();
                ended.await?;
            }
        }
        stop.cancel();
        for side in [admin, plain] {
            side.await.map_err(io::Error::other)??;
        }
        Ok(())
    }
}

/// Runs beside the workers for as long as the handle lives.
fn own<T: Send + 'static>(task: impl Future<Output = T> + Send + 'static) -> AbortOnDropHandle<T> {
    AbortOnDropHandle::new(tokio::spawn(task))
}
