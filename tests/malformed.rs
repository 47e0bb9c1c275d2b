//! What is no call of the mesh is refused by the gateway, and no replica hears of it.

use http::{Method, Request, Response, Version};
use hyper::body::Incoming;
use proto::common::v1::ErrorReason;
use tonic::{Code, Status, body::Body, client::Grpc};
use tonic_prost::ProstCodec;

use crate::harness::{Connection, ORIGIN, embed, mesh, metric, metrics, refused};

fn request(path: &str) -> http::request::Builder {
    Request::post(format!("{ORIGIN}{path}")).version(Version::HTTP_2)
}

async fn send(connection: &Connection, request: http::request::Builder) -> Response<Incoming> {
    let mut connection = connection.clone();
    connection.0.ready().await.unwrap();
    connection.0.send_request(request.body(Body::empty()).unwrap()).await.unwrap()
}

#[tokio::test]
async fn an_unknown_method_is_unimplemented_and_touches_no_replica() {
    let mesh = mesh();
    let connection = mesh.client().await.0;
    let unknown = r#"tamis_calls_total{method="unknown",code="UNIMPLEMENTED"}"#;
    let mut before = Vec::new();
    for replica in mesh.replicas() {
        before.push(metric(&metrics(replica.admin).await, unknown));
    }
    for path in ["/tamis.embedding.v1.EmbeddingService/Nope", "/no.such.Service/Method", "/tamis.admin.v1.Kill/Now"] {
        let mut client = Grpc::with_origin(connection.clone(), http::Uri::from_static(ORIGIN));
        client.ready().await.unwrap();
        let codec = ProstCodec::<(), ()>::default();
        let path = http::uri::PathAndQuery::from_static(path);
        let status = client.unary(tonic::Request::new(()), path, codec).await.unwrap_err();
        refused(&status, Code::Unimplemented, ErrorReason::UnknownMethod);
    }
    for (replica, before) in mesh.replicas().iter().zip(before) {
        assert_eq!(metric(&metrics(replica.admin).await, unknown), before, "{}", replica.name);
    }
}

#[tokio::test]
async fn what_is_not_grpc_is_refused_and_the_connection_lives() {
    let mesh = mesh();
    let channels = mesh.client().await;
    let connection = &channels.0;
    let path = "/tamis.embedding.v1.EmbeddingService/Embed";
    let json =
        send(connection, request(path).header("content-type", "application/json").header("te", "trailers")).await;
    assert_eq!(json.status(), 415);

    let grpc = |path| request(path).header("content-type", "application/grpc").header("te", "trailers");
    let broken = [
        grpc(path).method(Method::GET),
        grpc("/"),
        grpc("/one"),
        grpc("/a/b/c"),
        request(path).header("content-type", "application/grpc"),
        grpc(path).header("grpc-timeout", "soon"),
        grpc("").method(Method::CONNECT).uri("mesh:443"), // the one method without a path
    ];
    for request in broken {
        let about = format!("{:?} {:?} {:?}", request.method_ref(), request.uri_ref(), request.headers_ref());
        let response = send(connection, request).await;
        let status = Status::from_header_map(response.headers()).unwrap_or_else(|| panic!("no status: {about}"));
        refused(&status, Code::InvalidArgument, ErrorReason::MalformedRequest);
    }
    channels.embedding().embed(embed(["still here"])).await.unwrap();
}

#[tokio::test]
async fn a_message_that_cannot_be_decoded_fails_its_call() {
    let mesh = mesh();
    let channels = mesh.client().await;
    let messages: [&'static [u8]; 2] = [
        // Not compressed, three bytes, and they announce a field that never comes.
        b"\0\0\0\0\x03\x12\xff\x01",
        // One input, whose text is not UTF-8.
        b"\0\0\0\0\x05\x12\x03\x0a\x01\xff",
    ];
    for message in messages {
        let request = request("/tamis.embedding.v1.EmbeddingService/Embed");
        let request = request.header("content-type", "application/grpc").header("te", "trailers");
        let body = Body::new(http_body_util::Full::new(tonic::codegen::Bytes::from_static(message)));
        let mut connection = channels.0.clone();
        connection.0.ready().await.unwrap();
        let response = connection.0.send_request(request.body(body).unwrap()).await.unwrap();
        let status = match Status::from_header_map(response.headers()) {
            Some(status) => status,
            None => {
                let body = http_body_util::BodyExt::collect(response.into_body()).await.unwrap();
                Status::from_header_map(body.trailers().unwrap()).unwrap()
            }
        };
        refused(&status, Code::InvalidArgument, ErrorReason::MalformedRequest);
    }
    channels.embedding().embed(embed(["still here"])).await.unwrap();
}
