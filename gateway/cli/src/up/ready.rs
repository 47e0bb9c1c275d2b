//! Waits for processes to say where they are and that they serve.

use std::{net::SocketAddr, path::Path, time::Duration};

use chassis::server::Addresses;
use tokio::time::sleep;
use tonic::transport::Endpoint;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

/// How often an announcement is looked for, and a health port that does not answer is asked again.
const INTERVAL: Duration = Duration::from_millis(20);

/// Waits for the announcement of a process.
pub(crate) async fn announced(path: &Path) -> Addresses {
    loop {
        let read = std::fs::read(path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        match read {
            Some(addresses) => return addresses,
            None => sleep(INTERVAL).await,
        }
    }
}

/// Waits until the plain-text health port says that the service serves; the empty name means the whole process.
pub(crate) async fn serving(health: SocketAddr, service: &str) {
    loop {
        if watch(health, service).await.unwrap_or(false) {
            return;
        }
        sleep(INTERVAL).await;
    }
}

async fn watch(health: SocketAddr, service: &str) -> anyhow::Result<bool> {
    let channel = Endpoint::try_from(format!("http://{health}"))?.connect().await?;
    let request = HealthCheckRequest { service: service.to_owned() };
    let mut states = HealthClient::new(channel).watch(request).await?.into_inner();
    while let Some(state) = states.message().await? {
        if state.status() == ServingStatus::Serving {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_server_is_waited_for_until_it_serves() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (reporter, service) = tonic_health::server::health_reporter();
        reporter.set_service_status("", tonic_health::ServingStatus::NotServing).await;
        let incoming = tonic::transport::server::TcpIncoming::from(listener);
        let server =
            tokio::spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming));
        let wait = serving(address, "");
        tokio::pin!(wait);
        tokio::select! {
            biased;
            () = &mut wait => panic!("it does not serve yet"),
            () = async { reporter.set_service_status("", tonic_health::ServingStatus::Serving).await } => {}
        }
        wait.await;
        server.abort();
    }
}
