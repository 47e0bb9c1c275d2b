//! A fan-out that tells how it goes on.

use std::sync::Arc;

use proto::{
    common::v1::ErrorReason,
    gateway::v1::{self as pb, FailurePolicy, StepState, fan_out_stream_response::Event, step_result::Outcome},
};
use tokio::sync::Semaphore;
use tonic::{Code, Request, Status, Streaming};
use tonic_health::pb::health_check_response::ServingStatus;

use crate::{
    fanout::{Three, all, classified, client, embed, embedded, of, refusal, seen, under},
    front::{Front, SERVICE},
    replica::{Do, Replica},
};

/// What came, in short.
#[derive(Debug, PartialEq, Eq)]
enum Told {
    Stage(String, StepState),
    Ok(String),
    Error(String, ErrorReason),
    Summary { degraded: bool },
}

struct Events(Streaming<pb::FanOutStreamResponse>);

impl Events {
    async fn of(front: &Front, request: pb::FanOutRequest) -> Self {
        let request = pb::FanOutStreamRequest { request: Some(request) };
        Self(client(front).fan_out_stream(request).await.unwrap().into_inner())
    }

    async fn next(&mut self) -> Result<Option<Told>, Status> {
        let Some(response) = self.0.message().await? else { return Ok(None) };
        Ok(Some(match response.event.unwrap() {
            Event::StepEvent(event) => Told::Stage(event.id.clone(), event.state()),
            Event::StepResult(pb::StepResult { id, outcome: Some(Outcome::Error(error)), .. }) => {
                Told::Error(id, error.reason())
            }
            Event::StepResult(result) => Told::Ok(result.id),
            Event::Summary(summary) => {
                assert!(summary.elapsed.is_some());
                Told::Summary { degraded: summary.degraded }
            }
        }))
    }

    async fn rest(&mut self) -> (Vec<Told>, Option<Status>) {
        let mut told = Vec::new();
        loop {
            match self.next().await {
                Ok(Some(event)) => told.push(event),
                Ok(None) => return (told, None),
                Err(status) => return (told, Some(status)),
            }
        }
    }
}

fn stage(id: &str, state: StepState) -> Told {
    Told::Stage(id.into(), state)
}

#[tokio::test]
async fn results_come_as_soon_as_they_are_there_and_a_summary_is_the_last() {
    let permits = Arc::new(Semaphore::new(0));
    let mesh = Three::start(embedded(), Do::EchoAfter(Arc::clone(&permits)), seen()).await;
    let mut events = Events::of(&mesh.front, all()).await;
    let mut before = Vec::new();
    while before.iter().filter(|told| matches!(told, Told::Ok(_))).count() < 2 {
        before.push(events.next().await.unwrap().unwrap());
    }
    assert!(before.contains(&stage("c", StepState::Running)) && before.contains(&Told::Ok("e".into())));
    permits.add_permits(1);
    let (rest, status) = events.rest().await;
    assert_eq!(rest, [Told::Ok("c".into()), Told::Summary { degraded: false }]);
    assert!(status.is_none());
}

#[tokio::test]
async fn a_step_that_waits_for_a_replica_says_so() {
    let replica = Replica::start(embedded()).await;
    let front = Front::configured(&[replica.address], "[retry]\nready_wait = '20s'").await;
    front.until_ready(1).await;
    replica.drain().await;
    front.until(SERVICE, ServingStatus::NotServing).await;
    let mut events = Events::of(&front, of([embed("e")])).await;
    assert_eq!(events.next().await.unwrap(), Some(stage("e", StepState::WaitingForCapacity)));
    replica.serve().await;
    assert_eq!(events.next().await.unwrap(), Some(stage("e", StepState::Running)));
    assert_eq!(events.next().await.unwrap(), Some(Told::Ok("e".into())));
}

#[tokio::test]
async fn a_step_that_is_tried_again_says_so() {
    let refuse = Do::Refuse(&[("grpc-status", "14")]);
    let (mut bad, good) = (Replica::start(refuse).await, Replica::start(embedded()).await);
    let front = Front::before(&[bad.address, good.address]).await;
    loop {
        front.until_ready(2).await;
        let (told, _) = Events::of(&front, of([embed("e")])).await.rest().await;
        if bad.count() == 1 {
            let stages = [StepState::Running, StepState::Retrying, StepState::Running].map(|state| stage("e", state));
            assert_eq!(told[..3], stages);
            assert_eq!(told[3..], [Told::Ok("e".into()), Told::Summary { degraded: false }]);
            return;
        }
    }
}

#[tokio::test]
async fn a_failed_step_degrades_the_summary() {
    let refuse = Do::Refuse(&[("grpc-status", "14"), ("grpc-retry-pushback-ms", "-1")]);
    let mesh = Three::start(embedded(), refuse, seen()).await;
    let (told, status) = Events::of(&mesh.front, all()).await.rest().await;
    assert!(told.contains(&Told::Error("c".into(), ErrorReason::Unspecified)), "{told:?}");
    assert_eq!(told.last(), Some(&Told::Summary { degraded: true }));
    assert!(status.is_none());
}

#[tokio::test]
async fn fail_fast_tells_of_every_step_and_ends_with_the_status_of_the_failed_one() {
    let refuse = Do::Refuse(&[("grpc-status", "14"), ("grpc-retry-pushback-ms", "-1")]);
    let mesh = Three::start(Do::Hang, refuse, Do::Hang).await;
    let (told, status) = Events::of(&mesh.front, under(FailurePolicy::FailFast, 0, all())).await.rest().await;
    let status = status.unwrap();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().starts_with("c: "), "{status:?}");
    for id in ["e", "v"] {
        assert!(told.contains(&Told::Error(id.into(), ErrorReason::Cancelled)), "{told:?}");
    }
    assert!(!told.iter().any(|told| matches!(told, Told::Summary { .. })));
}

#[tokio::test]
async fn a_quorum_ends_the_stream() {
    let mesh = Three::start(embedded(), Do::Hang, seen()).await;
    let (told, status) = Events::of(&mesh.front, under(FailurePolicy::Quorum, 2, all())).await.rest().await;
    assert!(status.is_none());
    assert_eq!(told.last(), Some(&Told::Summary { degraded: true }));
    let mesh = Three::start(Do::Refuse(&[("grpc-status", "3")]), Do::Hang, Do::Refuse(&[("grpc-status", "3")])).await;
    let (_, status) = Events::of(&mesh.front, under(FailurePolicy::Quorum, 2, all())).await.rest().await;
    assert_eq!(refusal(&status.unwrap()), (Code::Aborted, "QUORUM_NOT_REACHED".into()));
}

#[tokio::test]
async fn a_client_that_leaves_the_stream_leaves_every_replica() {
    let mut mesh = Three::start(Do::Hang, Do::Hang, Do::Hang).await;
    let events = Events::of(&mesh.front, all()).await;
    let legs = [mesh.embedding.next().await, mesh.classification.next().await, mesh.vision.next().await];
    drop(events);
    for leg in legs {
        leg.over.cancelled().await;
    }
    while mesh.front.metric("gateway_calls_in_flight").await[0].1 > 0.0 {}
}

#[tokio::test]
async fn a_late_stream_ends_at_its_deadline_and_leaves_every_replica() {
    let mut mesh = Three::start(Do::Hang, Do::Hang, embedded()).await;
    let mut request = Request::new(pb::FanOutStreamRequest { request: Some(all()) });
    request.metadata_mut().insert("grpc-timeout", "1S".parse().unwrap());
    let mut events = Events(client(&mesh.front).fan_out_stream(request).await.unwrap().into_inner());
    let (told, status) = events.rest().await;
    assert_eq!(refusal(&status.unwrap()), (Code::DeadlineExceeded, "DEADLINE".into()));
    assert!(told.contains(&Told::Ok("v".into())), "{told:?}");
    for replica in [&mut mesh.embedding, &mut mesh.classification] {
        replica.next().await.over.cancelled().await;
    }
}

#[tokio::test]
async fn a_stream_without_a_deadline_has_that_of_any_call() {
    let more = "[server]\ndeadline_default = '20s'\ndeadline_max = '40s'";
    let mut mesh = Three::configured(embedded(), classified(), seen(), more).await;
    Events::of(&mesh.front, all()).await.rest().await;
    let header = mesh.embedding.next().await.head.headers["grpc-timeout"].clone();
    let left = chassis::deadline::parse(header.as_bytes()).unwrap();
    assert!(left.as_secs() < 20 && left.as_secs() >= 10, "{left:?}");
}
