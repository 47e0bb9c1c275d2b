//! Where calls go while all is well.

use std::sync::Arc;

use tokio::sync::Semaphore;
use tonic::Code;

use crate::{
    client::{EMBED, framed, request},
    front::Front,
    replica::{Do, Replica},
};

#[tokio::test]
async fn idle_replicas_take_turns() {
    let (mut first, mut second) = (Replica::start(Do::Echo).await, Replica::start(Do::Echo).await);
    let front = Front::before(&[first.address, second.address]).await;
    front.until_ready(2).await;
    for _ in 0..20 {
        front.client.embed(b"text").await;
    }
    assert_eq!((first.count(), second.count()), (10, 10));
}

#[tokio::test]
async fn a_replica_with_much_work_is_left_alone() {
    let permits = Arc::new(Semaphore::new(1));
    let act = Do::EchoAfter(Arc::clone(&permits));
    let (mut first, mut second) = (Replica::start(act.clone()).await, Replica::start(act).await);
    let front = Front::before(&[first.address, second.address]).await;
    front.until_ready(2).await;
    // The gateway learns from this reply what a unit costs.
    front.client.call(request(EMBED).header("tamis-units", "10"), framed(&[7; 1000])).await;
    first.count();
    second.count();
    let spawn = |units: &str| {
        let (client, call) = (front.client.clone(), request(EMBED).header("tamis-units", units));
        tokio::spawn(async move { client.call(call, framed(&[7; 1000])).await })
    };
    let large = spawn("500");
    let (busy, idle) = tokio::select! {
        _ = first.next() => (&mut first, &mut second),
        _ = second.next() => (&mut second, &mut first),
    };
    let small: Vec<_> = (0..40).map(|_| spawn("10")).collect();
    for _ in 0..40 {
        idle.next().await;
    }
    assert_eq!(busy.count(), 0, "40 small calls are less work than the large one");
    permits.add_permits(100);
    for call in small.into_iter().chain([large]) {
        assert_eq!(call.await.unwrap().status().code(), Code::Ok);
    }
}

#[tokio::test]
async fn a_draining_replica_finishes_its_calls_and_gets_no_new_ones() {
    let permits = Arc::new(Semaphore::new(0));
    let mut first = Replica::start(Do::EchoAfter(Arc::clone(&permits))).await;
    let mut second = Replica::start(Do::Echo).await;
    let front = Front::before(&[first.address, second.address]).await;
    front.until_ready(2).await;
    let (one, other) = (front.client.clone(), front.client.clone());
    let calls =
        [tokio::spawn(async move { one.embed(b"1").await }), tokio::spawn(async move { other.embed(b"2").await })];
    first.next().await;
    first.drain().await;
    while front.metric("gateway_endpoint_up").await.iter().filter(|(_, up)| *up == 1.0).count() > 1 {}
    second.count();
    for _ in 0..10 {
        assert_eq!(front.client.embed(b"text").await.status().code(), Code::Ok);
    }
    assert_eq!(first.count(), 0);
    permits.add_permits(1);
    for call in calls {
        assert_eq!(call.await.unwrap().status().code(), Code::Ok);
    }
}

#[tokio::test]
async fn more_connections_are_opened_only_when_one_is_full() {
    let permits = Arc::new(Semaphore::new(0));
    let mut replica = Replica::start(Do::EchoAfter(Arc::clone(&permits))).await;
    let front = Front::configured(&[replica.address], "[connection]\nstreams_max = 2\nconnections_max = 2").await;
    let calls: Vec<_> = (0..4)
        .map(|_| {
            let client = front.client.clone();
            tokio::spawn(async move { client.embed(b"text").await })
        })
        .collect();
    for _ in 0..4 {
        replica.next().await;
    }
    let refused = front.client.embed(b"text").await;
    assert_eq!(refused.refusal(), (Code::ResourceExhausted, "QUEUE_FULL".into()));
    permits.add_permits(5);
    for call in calls {
        assert_eq!(call.await.unwrap().status().code(), Code::Ok);
    }
    assert_eq!(front.client.embed(b"text").await.status().code(), Code::Ok);
}
