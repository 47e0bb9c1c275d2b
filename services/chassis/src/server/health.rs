//! `grpc.health.v1`, on the gRPC port for the mesh and alone on a plain-text port for probes.

use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic_health::{
    ServingStatus,
    pb::health_server::HealthServer,
    server::{HealthReporter, HealthService},
};

use crate::readiness::Readiness;

/// Health of the whole process (`""`) and of each of its services, all following the readiness.
#[derive(Clone)]
pub(super) struct Health {
    reporter: HealthReporter,
    readiness: Readiness,
    services: &'static [&'static str],
}

impl Health {
    pub(super) async fn new(readiness: Readiness, services: &'static [&'static str]) -> Self {
        let health = Self { reporter: HealthReporter::new(), readiness, services };
        health.report().await;
        health
    }

    pub(super) fn service(&self) -> HealthServer<HealthService> {
        HealthServer::new(HealthService::from_health_reporter(self.reporter.clone()))
    }

    /// Follows the readiness for ever.
    pub(super) async fn follow(self) {
        let mut changes = self.readiness.subscribe();
        loop {
            self.report().await;
            if changes.changed().await.is_err() {
                return;
            }
        }
    }

    /// Ends all watches: a service without a status is one that nobody can watch.
    pub(super) async fn close(&self) {
        for service in self.services.iter().copied().chain([""]) {
            self.reporter.clone().clear_service_status(service).await;
        }
    }

    /// Serves health and nothing else, without TLS.
    pub(super) fn serve(
        &self,
        listener: TcpListener,
        shutdown: impl Future<Output = ()> + Send + 'static,
    ) -> impl Future<Output = std::io::Result<()>> + Send + 'static {
        let server = tonic::transport::Server::builder().add_service(self.service());
        let incoming = TcpListenerStream::new(listener);
        async move { server.serve_with_incoming_shutdown(incoming, shutdown).await.map_err(std::io::Error::other) }
    }

    /// Says what the readiness is now.
    pub(super) async fn report(&self) {
        let ready = self.readiness.state().is_ready();
        let status = if ready { ServingStatus::Serving } else { ServingStatus::NotServing };
        for service in self.services.iter().copied().chain([""]) {
            self.reporter.clone().set_service_status(service, status).await;
        }
    }
}
