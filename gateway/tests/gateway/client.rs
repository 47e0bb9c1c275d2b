//! Clients of the gateway: raw HTTP/2, so that tests see bytes and trailers, and the same connection for tonic's clients.

use std::{
    net::SocketAddr,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::{BufMut as _, Bytes, BytesMut};
use futures_util::future::BoxFuture;
use http::{HeaderMap, Request, Response, request::Builder};
use http_body_util::{BodyExt as _, Full};
use hyper::{
    body::Incoming,
    client::conn::http2::{self, SendRequest},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use tokio::net::TcpStream;
use tonic::{Code, Status, body::Body};
use tonic_types::StatusExt as _;

use crate::certificates::{self, GATEWAY};

/// The method of most tests.
pub(crate) const EMBED: &str = "/tamis.embedding.v1.EmbeddingService/Embed";
/// Nothing here takes that long; a test that does has failed.
const PATIENCE: Duration = Duration::from_secs(10);

/// A connection to the gateway.
#[derive(Clone)]
pub(crate) struct Client(SendRequest<Body>);

/// A reply as it came.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) headers: HeaderMap,
    pub(crate) http_status: u16,
    pub(crate) data: Bytes,
    pub(crate) trailers: HeaderMap,
}

/// A gRPC message with its prefix.
pub(crate) fn framed(message: &[u8]) -> Bytes {
    let mut framed = BytesMut::new();
    framed.put_u8(0);
    framed.put_u32(u32::try_from(message.len()).unwrap());
    framed.put_slice(message);
    framed.freeze()
}

/// A well-formed request without a body.
pub(crate) fn request(path: &str) -> Builder {
    let uri = format!("https://localhost{path}");
    Request::post(uri).header("content-type", "application/grpc").header("te", "trailers")
}

impl Client {
    /// A connection with this identity.
    pub(crate) async fn connect(address: SocketAddr, identity: &str) -> Self {
        let connector = certificates::credentials(identity).connector(&GATEWAY.parse().unwrap()).unwrap();
        Self::over(connector.connect(&address.to_string()).await.unwrap()).await
    }

    /// A connection with a trusted certificate that names no SPIFFE identity.
    pub(crate) async fn connect_without_identity(address: SocketAddr) -> Self {
        let (_folder, files) = certificates::files(None);
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(files.ca).unwrap()).unwrap();
        let chain = vec![CertificateDer::from_pem_file(files.cert).unwrap()];
        let key = PrivateKeyDer::from_pem_file(files.key).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config =
            rustls::ClientConfig::builder_with_provider(provider).with_protocol_versions(&[&rustls::version::TLS13]);
        let mut config = config.unwrap().with_root_certificates(roots).with_client_auth_cert(chain, key).unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let stream = TcpStream::connect(address).await.unwrap();
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        Self::over(connector.connect("localhost".try_into().unwrap(), stream).await.unwrap()).await
    }

    async fn over(stream: tokio_rustls::client::TlsStream<TcpStream>) -> Self {
        let builder = http2::Builder::new(TokioExecutor::new());
        let (sender, connection) = builder.handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        Self(sender)
    }

    /// Sends a request as it is; the reply's headers.
    pub(crate) async fn send(&self, request: Request<Body>) -> hyper::Result<Response<Incoming>> {
        self.0.clone().send_request(request).await
    }

    /// Sends a request with a body; the whole reply.
    pub(crate) async fn call(&self, request: Builder, body: Bytes) -> Answer {
        let request = request.body(Body::new(Full::new(body))).unwrap();
        let answer = async {
            let (head, body) = self.send(request).await.unwrap().into_parts();
            let body = body.collect().await.unwrap();
            let trailers = body.trailers().cloned().unwrap_or_default();
            Answer { http_status: head.status.as_u16(), headers: head.headers, data: body.to_bytes(), trailers }
        };
        tokio::time::timeout(PATIENCE, answer).await.expect("no answer in time")
    }

    /// Sends a message to Embed.
    pub(crate) async fn embed(&self, message: &[u8]) -> Answer {
        self.call(request(EMBED), framed(message)).await
    }
}

impl Answer {
    pub(crate) fn status(&self) -> Status {
        Status::from_header_map(&self.trailers).or_else(|| Status::from_header_map(&self.headers)).unwrap()
    }

    /// The code and the reason of the error.
    pub(crate) fn refusal(&self) -> (Code, String) {
        let status = self.status();
        let details = status.get_error_details();
        (status.code(), details.error_info().map(|info| info.reason.clone()).unwrap_or_default())
    }
}

/// For tonic's generated clients.
impl tower::Service<Request<Body>> for Client {
    type Response = Response<Incoming>;
    type Error = hyper::Error;
    type Future = BoxFuture<'static, hyper::Result<Response<Incoming>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<hyper::Result<()>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}
