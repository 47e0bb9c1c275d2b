//! Deadlines and cancellation reach the replica.

use std::time::Duration;

use http_body_util::Full;
use tonic::{Code, body::Body};

use crate::{
    client::{EMBED, framed, request},
    front::Front,
    replica::{Do, Replica},
};

async fn check_upstream(timeout: Option<&str>, at_most: Duration) {
    let mut replica = Replica::start(Do::Echo).await;
    let front = Front::configured(&[replica.address], "[server]\ndeadline_default = '20s'\ndeadline_max = '40s'").await;
    let call = timeout.into_iter().fold(request(EMBED), |call, timeout| call.header("grpc-timeout", timeout));
    assert_eq!(front.client.call(call, framed(b"")).await.status().code(), Code::Ok);
    let seen = replica.next().await;
    let left = chassis::deadline::parse(seen.head.headers["grpc-timeout"].as_bytes()).unwrap();
    assert!(left < at_most && left > at_most / 2, "{left:?}");
    assert_eq!(seen.head.headers.get_all("grpc-timeout").iter().count(), 1);
}

#[tokio::test]
async fn a_replica_hears_what_is_left_of_the_deadline() {
    check_upstream(Some("10S"), Duration::from_secs(10)).await;
}

#[tokio::test]
async fn a_call_without_a_deadline_gets_the_default() {
    check_upstream(None, Duration::from_secs(20)).await;
}

#[tokio::test]
async fn a_long_deadline_is_cut_to_the_maximum() {
    check_upstream(Some("1H"), Duration::from_secs(40)).await;
}

#[tokio::test]
async fn a_late_call_ends_at_its_deadline_and_leaves_the_replica() {
    let mut replica = Replica::start(Do::Hang).await;
    let front = Front::before(&[replica.address]).await;
    front.until_ready(1).await;
    let answer = front.client.call(request(EMBED).header("grpc-timeout", "50m"), framed(b"")).await;
    assert_eq!(answer.refusal(), (Code::DeadlineExceeded, "DEADLINE".into()));
    replica.next().await.over.cancelled().await;
}

#[tokio::test]
async fn a_client_that_leaves_leaves_the_replica() {
    let mut replica = Replica::start(Do::Hang).await;
    let front = Front::before(&[replica.address]).await;
    let call = request(EMBED).body(Body::new(Full::new(framed(b"")))).unwrap();
    let client = front.client.clone();
    let call = tokio::spawn(async move { client.send(call).await });
    let seen = replica.next().await;
    call.abort();
    seen.over.cancelled().await;
    while front.metric("gateway_calls_in_flight").await[0].1 > 0.0 {}
    let work = front.metric("gateway_outstanding_work_seconds").await;
    assert!(work.iter().all(|(_, seconds)| *seconds == 0.0), "{work:?}");
    let calls = front.metric("gateway_calls_total").await;
    assert!(calls.iter().any(|(labels, _)| labels.contains("Embed") && labels.contains("CANCELLED")), "{calls:?}");
}
