//! `grpc.health.v1` for the whole mesh, with certificates on the gateway's port and without on its health port.

use hyper_util::rt::{TokioExecutor, TokioIo};
use tonic::Code;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

use crate::harness::{Connection, mesh};

const SERVICES: [&str; 4] = [
    "",
    "tamis.embedding.v1.EmbeddingService",
    "tamis.classification.v1.ClassificationService",
    "tamis.vision.v1.VisionService",
];

async fn check(mut client: HealthClient<Connection>) {
    for service in SERVICES {
        let response = client.check(HealthCheckRequest { service: service.into() }).await.unwrap().into_inner();
        assert_eq!(response.status(), ServingStatus::Serving, "`{service}`");
    }
    let unknown = client.check(HealthCheckRequest { service: "no.such.Service".into() }).await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);
}

#[tokio::test]
async fn the_mesh_and_each_service_are_serving() {
    let mesh = mesh();
    check(mesh.client().await.health()).await;
}

#[tokio::test]
async fn a_probe_without_a_certificate_learns_the_health_and_nothing_else() {
    let mesh = mesh();
    let stream = tokio::net::TcpStream::connect(mesh.gateway().health).await.unwrap();
    let builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
    let (sender, connection) = builder.handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let connection = Connection(sender);
    let origin = http::Uri::from_static("http://probe");
    check(HealthClient::with_origin(connection.clone(), origin.clone())).await;
    let mut models = proto::model::v1::model_service_client::ModelServiceClient::with_origin(connection, origin);
    let status = models.list_models(proto::model::v1::ListModelsRequest::default()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented);
}
