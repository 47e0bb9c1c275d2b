//! A gateway in front of replicas, for one test.

use std::net::SocketAddr;

use chassis::{
    config::{Layer, load},
    readiness::Readiness,
    server::Addresses,
};
use prometheus_client::registry::Registry;
use tokio::{sync::oneshot, task::JoinHandle};
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

use crate::{
    certificates::{self, CLIENT, GATEWAY, REPLICA},
    client::Client,
};

/// The service of most tests.
pub(crate) const SERVICE: &str = "tamis.embedding.v1.EmbeddingService";

/// A running gateway.
pub(crate) struct Front {
    pub(crate) addresses: Addresses,
    pub(crate) client: Client,
    pub(crate) task: JoinHandle<Result<(), gateway::Error>>,
    pub(crate) stop: oneshot::Sender<()>,
}

impl Front {
    /// A gateway before these replicas of the embedding service.
    pub(crate) async fn before(replicas: &[SocketAddr]) -> Self {
        Self::configured(replicas, "").await
    }

    /// The same with more configuration: keys of the service first, tables after them.
    pub(crate) async fn configured(replicas: &[SocketAddr], more: &str) -> Self {
        Self::start(&Self::text(replicas, more)).await
    }

    /// The configuration of such a gateway.
    pub(crate) fn text(replicas: &[SocketAddr], more: &str) -> String {
        let endpoints: Vec<_> = replicas.iter().map(ToString::to_string).collect();
        format!(
            "workers = 2\n\
             [[allow]]\nidentity = '{CLIENT}'\nmethods = ['*']\n\
             [services.embedding]\nserves = ['{SERVICE}']\nspiffe_id = '{REPLICA}'\nendpoints = {endpoints:?}\n{more}\n"
        )
    }

    pub(crate) async fn start(text: &str) -> Self {
        let (_folder, files) = certificates::files(Some(GATEWAY));
        let free = || "127.0.0.1:0".to_owned();
        let fixed = [
            ("tls.ca", files.ca),
            ("tls.cert", files.cert),
            ("tls.key", files.key),
            ("server.listen", free()),
            ("server.admin_listen", free()),
            ("server.health_listen", free()),
            ("server.drain_delay", "0s".to_owned()),
        ];
        let fixed = Layer::pairs("test", fixed.map(|(key, value)| (key.to_owned(), value)));
        let settings: gateway::Settings = load("gateway", &[Layer::text("test.toml", text), fixed]).unwrap();
        let credentials = chassis::tls::Credentials::load(&settings.tls).unwrap();
        let bound = gateway::bind(settings, credentials, Registry::default(), Readiness::default()).await.unwrap();
        let addresses = bound.addresses();
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(bound.serve(async move { drop(stopped.await) }));
        let client = Client::connect(addresses.grpc, CLIENT).await;
        Self { addresses, client, task, stop }
    }

    /// Waits until the gateway says this about a service.
    pub(crate) async fn until(&self, service: &str, status: ServingStatus) {
        let mut client = HealthClient::with_origin(self.client.clone(), "https://localhost".parse().unwrap());
        let request = HealthCheckRequest { service: service.into() };
        let mut statuses = client.watch(request).await.unwrap().into_inner();
        while statuses.message().await.unwrap().expect("the watch has ended").status() != status {}
    }

    /// Waits until as many replicas are ready.
    pub(crate) async fn until_ready(&self, replicas: usize) {
        self.until(SERVICE, ServingStatus::Serving).await;
        while self.metric("gateway_endpoint_up").await.iter().filter(|(_, value)| *value == 1.0).count() < replicas {
            tokio::task::yield_now().await;
        }
    }

    /// The values of a metric with their labels, from the admin port.
    pub(crate) async fn metric(&self, name: &str) -> Vec<(String, f64)> {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let mut stream = tokio::net::TcpStream::connect(self.addresses.admin).await.unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        let value = |line: &str| {
            let (labels, value) = line.strip_prefix(name)?.rsplit_once(' ')?;
            labels.starts_with(['{', ' ']).then_some(()).or(labels.is_empty().then_some(()))?;
            Some((labels.to_owned(), value.parse().ok()?))
        };
        text.lines().filter_map(value).collect()
    }
}
