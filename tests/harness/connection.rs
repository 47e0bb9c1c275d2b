//! A client without comforts: one connection, no retries, no deadline of its own. What the mesh does, the test sees.

use std::{
    net::SocketAddr,
    path::Path,
    task::{Context, Poll},
};

use chassis::{
    spiffe::SpiffeId,
    tls::{Credentials, TlsSettings},
};
use http::{Request, Response, Uri};
use hyper::{
    body::Incoming,
    client::conn::http2::{Builder, SendRequest},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use proto::{
    classification::v1::classification_service_client::ClassificationServiceClient,
    common::v1::ErrorReason,
    embedding::v1::embedding_service_client::EmbeddingServiceClient,
    gateway::v1::{gateway_service_client::GatewayServiceClient, topology_service_client::TopologyServiceClient},
    model::v1::model_service_client::ModelServiceClient,
    vision::v1::vision_service_client::VisionServiceClient,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tonic::{Code, Status, body::Body};
use tonic_health::pb::health_client::HealthClient;
use tonic_types::StatusExt as _;

/// Identity of the gateway.
pub(crate) const GATEWAY: &str = "spiffe://tamis.local/gateway";

/// An HTTP/2 connection.
#[derive(Clone)]
pub(crate) struct Connection(pub(crate) SendRequest<Body>);

impl Connection {
    /// Speaks HTTP/2 over an open stream.
    pub(crate) async fn over(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> hyper::Result<Self> {
        let (sender, connection) = Builder::new(TokioExecutor::new()).handshake(TokioIo::new(stream)).await?;
        // Ends with its last user; how it ends, every call on it is told.
        tokio::spawn(connection);
        Ok(Self(sender))
    }
}

impl tower::Service<Request<Body>> for Connection {
    type Response = Response<Incoming>;
    type Error = hyper::Error;
    type Future = std::pin::Pin<Box<dyn Future<Output = hyper::Result<Response<Incoming>>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<hyper::Result<()>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}

/// The clients of one connection.
#[derive(Clone)]
pub(crate) struct Channels(pub(crate) Connection);

impl Channels {
    pub(crate) fn embedding(&self) -> EmbeddingServiceClient<Connection> {
        EmbeddingServiceClient::with_origin(self.0.clone(), origin())
    }

    pub(crate) fn classification(&self) -> ClassificationServiceClient<Connection> {
        ClassificationServiceClient::with_origin(self.0.clone(), origin())
    }

    pub(crate) fn vision(&self) -> VisionServiceClient<Connection> {
        VisionServiceClient::with_origin(self.0.clone(), origin())
    }

    pub(crate) fn models(&self) -> ModelServiceClient<Connection> {
        ModelServiceClient::with_origin(self.0.clone(), origin())
    }

    pub(crate) fn gateway(&self) -> GatewayServiceClient<Connection> {
        GatewayServiceClient::with_origin(self.0.clone(), origin())
    }

    pub(crate) fn topology(&self) -> TopologyServiceClient<Connection> {
        TopologyServiceClient::with_origin(self.0.clone(), origin())
    }

    pub(crate) fn health(&self) -> HealthClient<Connection> {
        HealthClient::with_origin(self.0.clone(), origin())
    }
}

/// The origin of requests. Any would do: servers are told by their identity.
pub(crate) const ORIGIN: &str = "https://mesh";

fn origin() -> Uri {
    Uri::from_static(ORIGIN)
}

/// The credentials that lie in a folder under this name.
pub(crate) fn credentials(certs: &Path, name: &str) -> Credentials {
    let file = |name: String| certs.join(name).to_str().unwrap().to_owned();
    let settings =
        TlsSettings { ca: file("ca.pem".into()), cert: file(format!("{name}.pem")), key: file(format!("{name}.key")) };
    Credentials::load(&settings).unwrap()
}

/// Connects to a server that must have this identity.
pub(crate) async fn connect(address: SocketAddr, credentials: &Credentials, server: &str) -> std::io::Result<Channels> {
    let server: SpiffeId = server.parse().unwrap();
    let stream = credentials.connector(&server).unwrap().connect(&address.to_string()).await?;
    Ok(Channels(Connection::over(stream).await.map_err(std::io::Error::other)?))
}

/// Checks how a call failed.
#[track_caller]
pub(crate) fn refused(status: &Status, code: Code, reason: ErrorReason) {
    let details = status.get_error_details();
    let info = details.error_info().map(|info| (info.domain.as_str(), info.reason.as_str()));
    assert_eq!((status.code(), info), (code, Some(("tamis", reason.as_error_info()))), "{status:?}");
    let temporary = matches!(reason, ErrorReason::QueueFull | ErrorReason::NoCapacity | ErrorReason::Draining);
    assert_eq!(details.retry_info().is_some(), temporary || reason == ErrorReason::ReplicaLost, "{status:?}");
}

/// Checks that a call failed for this field.
#[track_caller]
pub(crate) fn refused_field(status: &Status, reason: ErrorReason, field: &str) {
    let violations =
        status.get_error_details().bad_request().map(|bad| bad.field_violations.clone()).unwrap_or_default();
    let fields: Vec<_> = violations.iter().map(|violation| violation.field.as_str()).collect();
    assert_eq!(
        (reason_of(status).as_deref(), fields.as_slice()),
        (Some(reason.as_error_info()), [field].as_slice()),
        "{status:?}"
    );
}

fn reason_of(status: &Status) -> Option<String> {
    status.get_error_details().error_info().map(|info| info.reason.clone())
}
