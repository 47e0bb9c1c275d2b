//! What the gateway refuses, and that no replica hears of it.

use bytes::Bytes;
use http::Request;
use http_body_util::BodyExt as _;
use tonic::{Code, body::Body};

use crate::{
    certificates::CLIENT,
    client::{Answer, Client, EMBED, framed, request},
    front::Front,
    replica::{Do, Replica},
};

async fn refused(call: impl AsyncFn(&Client) -> Answer) -> Answer {
    let mut replica = Replica::start(Do::Echo).await;
    let front = Front::configured(&[replica.address], "[server]\nmessage_bytes_max = '64KiB'").await;
    front.until_ready(1).await;
    let answer = call(&front.client).await;
    assert_eq!(replica.count(), 0);
    answer
}

async fn check(path: &str, body: Bytes, code: Code, reason: &str) {
    let answer = refused(async |client| client.call(request(path), body.clone()).await).await;
    assert_eq!(answer.refusal(), (code, reason.to_owned()), "{path}");
    assert_eq!(answer.http_status, 200);
    assert!(answer.trailers.is_empty(), "a refusal is its headers");
}

#[tokio::test]
async fn unknown_methods() {
    check("/tamis.embedding.v1.EmbeddingService/Embedd", framed(b""), Code::Unimplemented, "UNKNOWN_METHOD").await;
    check("/no.such.Service/Method", framed(b""), Code::Unimplemented, "UNKNOWN_METHOD").await;
    // In the contracts, but nothing serves it in this mesh.
    check("/tamis.vision.v1.VisionService/EmbedImages", framed(b""), Code::Unimplemented, "UNKNOWN_METHOD").await;
}

#[tokio::test]
async fn malformed_requests() {
    check("/", framed(b""), Code::InvalidArgument, "MALFORMED_REQUEST").await;
    check(EMBED, Bytes::new(), Code::InvalidArgument, "MALFORMED_REQUEST").await;
    check(
        EMBED,
        framed(b"two").into_iter().chain(framed(b"of them")).collect(),
        Code::InvalidArgument,
        "MALFORMED_REQUEST",
    )
    .await;
    check(EMBED, framed(b"cut short").slice(..9), Code::InvalidArgument, "MALFORMED_REQUEST").await;
}

#[tokio::test]
async fn a_malformed_timeout() {
    let answer =
        refused(async |client| client.call(request(EMBED).header("grpc-timeout", "soon"), framed(b"")).await).await;
    assert_eq!(answer.refusal(), (Code::InvalidArgument, "MALFORMED_REQUEST".into()));
}

#[tokio::test]
async fn what_is_not_grpc() {
    let json = || Request::post(format!("https://localhost{EMBED}")).header("content-type", "application/json");
    let answer = refused(async |client| client.call(json(), Bytes::from_static(b"{}")).await).await;
    assert_eq!(answer.http_status, 415);
    assert_eq!(answer.refusal(), (Code::InvalidArgument, "MALFORMED_REQUEST".into()));
}

#[tokio::test]
async fn messages_that_are_too_large() {
    check(EMBED, framed(&vec![0; 65 * 1024]), Code::ResourceExhausted, "MESSAGE_TOO_LARGE").await;
}

#[tokio::test]
async fn a_message_that_will_be_too_large_is_refused_before_it_comes() {
    let replica = Replica::start(Do::Echo).await;
    let front = Front::before(&[replica.address]).await;
    // The prefix announces 2 GiB; the body does not end.
    let (mut sender, body) = tokio::io::duplex(64);
    tokio::io::AsyncWriteExt::write_all(&mut sender, b"\0\x7f\xff\xff\xff").await.unwrap();
    let body = http_body_util::StreamBody::new(futures_util::StreamExt::map(
        tokio_util::io::ReaderStream::new(body),
        |chunk| chunk.map(http_body::Frame::data),
    ));
    let response = front.client.send(request(EMBED).body(Body::new(body)).unwrap()).await.unwrap();
    assert_eq!(response.headers()["grpc-status"], "8");
    drop(response.into_body().collect().await);
    drop(sender);
}

#[tokio::test]
async fn a_replica_gets_nothing_from_clients_without_permission_or_identity() {
    let mut replica = Replica::start(Do::Echo).await;
    let front = Front::before(&[replica.address]).await;
    front.until_ready(1).await;
    let stranger = Client::connect(front.addresses.grpc, "spiffe://tamis.local/client/stranger").await;
    for path in [EMBED, "/no.such.Service/Method", "/grpc.health.v1.Health/Check"] {
        let answer = stranger.call(request(path), framed(b"")).await;
        assert_eq!(answer.refusal(), (Code::PermissionDenied, "NOT_ALLOWED".into()), "{path}");
    }
    let nobody = Client::connect_without_identity(front.addresses.grpc).await;
    assert_eq!(nobody.embed(b"text").await.refusal(), (Code::Unauthenticated, "NO_IDENTITY".into()));
    assert_eq!(replica.count(), 0);
}

#[tokio::test]
async fn calls_beyond_the_services_bound() {
    let mut replica = Replica::start(Do::Hang).await;
    let front = Front::configured(&[replica.address], "in_flight_max = 1").await;
    let client = front.client.clone();
    let first = tokio::spawn(async move { client.embed(b"first").await });
    replica.next().await;
    let answer = front.client.embed(b"second").await;
    assert_eq!(answer.refusal(), (Code::ResourceExhausted, "QUEUE_FULL".into()));
    assert_eq!(answer.headers["grpc-retry-pushback-ms"], "1000");
    first.abort();
}

#[tokio::test]
async fn calls_for_which_there_is_no_replica() {
    let front = Front::configured(&[], "[retry]\nready_wait = '20ms'").await;
    let answer = front.client.embed(b"text").await;
    assert_eq!(answer.refusal(), (Code::Unavailable, "NO_CAPACITY".into()));
    assert_eq!(answer.headers["grpc-retry-pushback-ms"], "1000");
}

#[tokio::test]
async fn a_replica_with_another_identity_is_no_replica() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut imposter = Replica::start_as("spiffe://tamis.local/service/vision", listener, Do::Echo).await;
    let front = Front::configured(&[imposter.address], "[retry]\nready_wait = '100ms'").await;
    assert_eq!(front.client.embed(b"text").await.refusal(), (Code::Unavailable, "NO_CAPACITY".into()));
    assert_eq!(imposter.count(), 0);
}

#[tokio::test]
async fn services_that_cannot_be_served_are_refused_at_the_start() {
    for (serves, why) in [("no.such.Service", "no contract"), ("tamis.model.v1.ModelService", "the gateway answers it")]
    {
        let text = format!("[services.x]\nserves = ['{serves}']\nspiffe_id = '{CLIENT}'");
        let error = tokio::spawn(async move { Front::start(&text).await }).await.err().unwrap().into_panic();
        let message = error.downcast::<String>().unwrap();
        assert!(message.contains(why), "{message}");
    }
}
