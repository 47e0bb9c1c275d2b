//! `grpc.health.v1` for the whole mesh.
//!
//! `""` is the gateway itself: SERVING until it drains. Each service by its full name is SERVING while a replica is ready.

use std::{collections::HashMap, sync::Arc};

use chassis::readiness::Readiness;
use futures_util::future::join_all;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic_health::{
    ServingStatus,
    pb::health_server::HealthServer,
    server::{HealthReporter, HealthService},
};

use crate::upstream::Upstream;

/// Name of the service.
pub(crate) const HEALTH: &str = "grpc.health.v1.Health";

/// Reports the mesh's health.
#[derive(Clone)]
pub(crate) struct Health {
    reporter: HealthReporter,
    readiness: Readiness,
    served: Vec<(String, Arc<Upstream>)>,
}

impl Health {
    /// The health of these services.
    pub(crate) fn new(readiness: &Readiness, served: &HashMap<&str, &Arc<Upstream>>) -> Self {
        let served = served.iter().map(|(name, upstream)| ((*name).to_owned(), Arc::clone(upstream))).collect();
        Self { reporter: HealthReporter::new(), readiness: readiness.clone(), served }
    }

    /// The tonic service that answers.
    pub(crate) fn service(&self) -> HealthServer<HealthService> {
        HealthServer::new(HealthService::from_health_reporter(self.reporter.clone()))
    }

    /// Follows readiness and replicas; ends when both are gone.
    pub(crate) async fn follow(&self) {
        let gateway = async {
            let mut readiness = self.readiness.subscribe();
            loop {
                let ready = readiness.borrow_and_update().is_ready();
                self.set("", ready).await;
                if readiness.changed().await.is_err() {
                    return;
                }
            }
        };
        let services = self.served.iter().map(async |(name, upstream)| {
            let (mut replicas, mut readiness) = (upstream.ready.subscribe(), self.readiness.subscribe());
            loop {
                let ready = *replicas.borrow_and_update() > 0 && !readiness.borrow_and_update().draining;
                self.set(name, ready).await;
                let changed = tokio::select! {
                    changed = replicas.changed() => changed,
                    changed = readiness.changed() => changed,
                };
                if changed.is_err() {
                    return;
                }
            }
        });
        tokio::join!(gateway, join_all(services));
    }

    /// Says NOT_SERVING and ends all watches: open ones would hold their connections, and with them the shutdown. Nobody
    /// may follow any more.
    pub(crate) async fn close(&self) {
        for name in self.served.iter().map(|(name, _)| name.as_str()).chain([""]) {
            self.set(name, false).await;
            self.reporter.clone().clear_service_status(name).await;
        }
    }

    /// Serves health and nothing else, without TLS: probes have no certificate.
    pub(crate) async fn serve_plain(
        &self,
        listener: TcpListener,
        shutdown: impl Future<Output = ()> + Send + 'static,
    ) -> std::io::Result<()> {
        tonic::transport::Server::builder()
            .add_service(self.service())
            .serve_with_incoming_shutdown(TcpListenerStream::new(listener), shutdown)
            .await
            .map_err(std::io::Error::other)
    }

    async fn set(&self, name: &str, ready: bool) {
        let status = if ready { ServingStatus::Serving } else { ServingStatus::NotServing };
        self.reporter.set_service_status(name, status).await;
    }
}
