//! Both protocols on one port, with certificates that the tests make.

use std::net::SocketAddr;

use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::oneshot,
    task::JoinHandle,
    time::Instant,
};
use tonic::Code;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use super::*;
use crate::tls::{
    Credentials,
    tests::{Ca, ca, credentials},
};

const SERVER: &str = "spiffe://tamis.local/service/embedding";
const ADMIN: &str = "spiffe://tamis.local/client/admin";
const PATIENCE: Duration = Duration::from_secs(10);

struct Port {
    address: SocketAddr,
    ca: Ca,
    registry: Arc<Registry>,
    stop: oneshot::Sender<()>,
    serving: JoinHandle<io::Result<()>>,
}

/// A port with `grpc.health.v1` as its gRPC service.
async fn port(connections_max: usize) -> Port {
    let (ca, folder, mut registry) = (ca(), TempDir::new().unwrap(), Registry::default());
    let metrics = CallMetrics::new(&mut registry);
    let (_, health) = tonic_health::server::health_reporter();
    let acceptor = credentials(folder.path(), &ca, &ca, &[SERVER]).unwrap().acceptor();
    let grpc = Grpc { routes: Routes::new(health), acceptor, admins: vec![ADMIN.parse().unwrap()], metrics };
    let deadlines = deadline::Limits { default: PATIENCE, max: PATIENCE };
    let bounds = Bounds { connections_max, handshake_timeout: PATIENCE, deadlines };
    let registry = Arc::new(registry);
    let (readiness, config) = (Readiness::default(), "name = 'x'".into());
    let admin = Admin { registry: Arc::clone(&registry), readiness, config, bounds };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel();
    let serving = tokio::spawn(serve(admin, listener, Some(grpc), async { drop(stopped.await) }));
    Port { address, ca, registry, stop, serving }
}

impl Port {
    fn client(&self, id: &str) -> Credentials {
        let folder = TempDir::new().unwrap();
        credentials(folder.path(), &self.ca, &self.ca, &[id]).unwrap()
    }

    /// Asks for health over mutual TLS.
    async fn check(&self, id: &str) -> Result<(), Code> {
        let connector = self.client(id).connector(&SERVER.parse().unwrap()).unwrap();
        let stream = connector.connect(&self.address.to_string()).await.unwrap();
        let (sender, connection) =
            http2::Builder::new(TokioExecutor::new()).handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let service = tower::service_fn(move |request: http::Request<tonic::body::Body>| {
            let mut sender = sender.clone();
            async move { sender.send_request(request).await }
        });
        let mut client = HealthClient::with_origin(service, http::Uri::from_static("https://mesh"));
        client.check(HealthCheckRequest::default()).await.map(drop).map_err(|status| status.code())
    }

    /// Asks in plain text; the whole reply.
    async fn get(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).await.unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).await.unwrap();
        reply
    }
}

#[tokio::test]
async fn one_port_speaks_plain_http_and_grpc_over_mutual_tls() {
    let port = port(8).await;
    let live = port.get("/livez").await;
    assert!(live.starts_with("HTTP/1.0 200") && live.ends_with("live\n"), "{live}");
    assert_eq!(port.check(ADMIN).await, Ok(()));
    assert!(port.get("/config").await.ends_with("name = 'x'"));
}

#[tokio::test]
async fn a_client_that_is_no_admin_is_refused_and_counted() {
    let port = port(8).await;
    assert_eq!(port.check("spiffe://tamis.local/gateway").await, Err(Code::PermissionDenied));
    let mut text = String::new();
    encode(&mut text, &port.registry).unwrap();
    let series = r#"calls_total{method="/grpc.health.v1.Health/Check",code="PERMISSION_DENIED"} 1"#;
    assert!(text.contains(series), "{text}");
}

#[tokio::test]
async fn a_client_of_another_authority_gets_nowhere() {
    let port = port(8).await;
    let (other, folder) = (ca(), TempDir::new().unwrap());
    let client = credentials(folder.path(), &other, &port.ca, &[ADMIN]).unwrap();
    let connector = client.connector(&SERVER.parse().unwrap()).unwrap();
    // In TLS 1.3 a client learns of its own refusal with the first read.
    let mut stream = connector.connect(&port.address.to_string()).await.unwrap();
    assert!(stream.read(&mut [0]).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn whoever_says_nothing_or_half_a_request_is_cut_off() {
    for said in [&b""[..], b"\x16", b"GET /livez HTT"] {
        let port = port(1).await;
        let began = Instant::now();
        let mut stream = TcpStream::connect(port.address).await.unwrap();
        stream.write_all(said).await.unwrap();
        // The one connection that there may be is taken, until its time is up.
        assert!(port.get("/livez").await.ends_with("live\n"));
        assert!(began.elapsed() >= PATIENCE && began.elapsed() < 3 * PATIENCE, "{:?}", began.elapsed());
    }
}

#[tokio::test]
async fn an_idle_connection_does_not_hold_the_end() {
    let port = port(8).await;
    let mut idle = TcpStream::connect(port.address).await.unwrap();
    assert!(port.get("/readyz").await.contains("200"));
    port.stop.send(()).unwrap();
    port.serving.await.unwrap().unwrap();
    assert_eq!(idle.read(&mut [0]).await.unwrap_or(0), 0);
    assert!(TcpStream::connect(port.address).await.is_err());
}
