//! How a gateway ends.

use std::sync::Arc;

use tokio::{net::TcpStream, sync::Semaphore};
use tonic::Code;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

use crate::{
    front::Front,
    replica::{Do, Replica},
};

#[tokio::test]
async fn calls_in_flight_finish_and_open_watches_do_not_hold_it_up() {
    let permits = Arc::new(Semaphore::new(0));
    let mut replica = Replica::start(Do::EchoAfter(Arc::clone(&permits))).await;
    let front = Front::before(&[replica.address]).await;
    let mut health = HealthClient::with_origin(front.client.clone(), "https://localhost".parse().unwrap());
    let mut watch = health.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::Serving);
    let client = front.client.clone();
    let call = tokio::spawn(async move { client.embed(b"text").await });
    replica.next().await;
    front.stop.send(()).unwrap();
    assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::NotServing);
    while watch.message().await.is_ok_and(|message| message.is_some()) {}
    assert!(!front.task.is_finished());
    permits.add_permits(1);
    assert_eq!(call.await.unwrap().status().code(), Code::Ok);
    front.task.await.unwrap().unwrap();
    assert!(TcpStream::connect(front.addresses.grpc).await.is_err(), "nobody listens any more");
}

#[tokio::test]
async fn what_does_not_finish_in_time_is_cut_off() {
    let mut replica = Replica::start(Do::Hang).await;
    let front = Front::configured(&[replica.address], "[server]\ndrain_timeout = '20ms'").await;
    let client = front.client.clone();
    let call = tokio::spawn(async move {
        let call = crate::client::request(crate::client::EMBED);
        let body = tonic::body::Body::new(http_body_util::Full::new(crate::client::framed(b"")));
        client.send(call.body(body).unwrap()).await.is_err()
    });
    let seen = replica.next().await;
    front.stop.send(()).unwrap();
    front.task.await.unwrap().unwrap();
    assert!(call.await.unwrap());
    seen.over.cancelled().await;
}
