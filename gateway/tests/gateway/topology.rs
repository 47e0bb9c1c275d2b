//! What the mesh looks like, and that it is told the moment it changes.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use proto::gateway::v1::{self as pb, ReplicaState, topology_service_client::TopologyServiceClient};
use tokio::{net::TcpListener, sync::Semaphore};
use tonic::{Code, Status, Streaming};
use tonic_types::StatusExt as _;

use crate::{
    certificates::{CLIENT, REPLICA},
    client::{Client, EMBED, framed, request},
    front::{Front, SERVICE},
    replica::{Do, Replica},
};

const ADMIN: &str = "spiffe://tamis.local/client/admin";
/// What the contract promises.
const PROMPTLY: Duration = Duration::from_secs(1);

async fn client(front: &Front, identity: &str) -> TopologyServiceClient<Client> {
    let client = Client::connect(front.addresses.admin, identity).await;
    TopologyServiceClient::with_origin(client, "https://localhost".parse().unwrap())
}

/// The only service as it is now.
async fn look(front: &Front) -> pb::ServiceState {
    let answer = client(front, ADMIN).await.get_topology(pb::GetTopologyRequest::default()).await.unwrap().into_inner();
    assert!(answer.at.is_some());
    answer.services.into_iter().next().unwrap()
}

struct Watch(Streaming<pb::WatchTopologyResponse>);

impl Watch {
    async fn of(front: &Front) -> Self {
        let watch = client(front, ADMIN).await.watch_topology(pb::WatchTopologyRequest::default()).await;
        Self(watch.unwrap().into_inner())
    }

    async fn next(&mut self) -> Result<pb::ServiceState, Status> {
        let response = self.0.message().await?.expect("the watch has ended");
        Ok(response.services.into_iter().next().unwrap())
    }

    async fn until(&mut self, holds: impl Fn(&pb::ServiceState) -> bool) -> pb::ServiceState {
        loop {
            let state = self.next().await.unwrap();
            if holds(&state) {
                return state;
            }
        }
    }

    /// Waits until the only replica is in this state.
    async fn until_state(&mut self, state: ReplicaState) -> pb::Replica {
        let service = self.until(|service| service.replicas[0].state() == state).await;
        service.replicas.into_iter().next().unwrap()
    }
}

fn refusal(status: &Status) -> (Code, String) {
    (status.code(), status.get_error_details().error_info().unwrap().reason.clone())
}

#[tokio::test]
async fn services_and_replicas_are_shown_as_they_are() {
    let replica = Replica::start(Do::Echo).await;
    let front = Front::before(&[replica.address, "127.0.0.1:1".parse().unwrap()]).await;
    front.until_ready(1).await;
    for _ in 0..2 {
        front.client.embed(b"text").await;
    }
    let service = look(&front).await;
    assert_eq!((service.name.as_str(), &service.serves[..]), ("embedding", &[SERVICE.to_owned()][..]));
    assert_eq!((service.waiting, service.in_flight, service.calls, service.failures), (0, 0, 2, 0));
    assert!(service.latency_p50.is_some() && service.latency_p99.is_some());
    let [down, ready] = &service.replicas[..] else { panic!("{service:?}") };
    assert_eq!((down.address.as_str(), down.calls, down.time_per_unit), ("127.0.0.1:1", 0, None));
    assert_eq!((ready.address.clone(), ready.spiffe_id.as_str()), (replica.address.to_string(), REPLICA));
    assert_eq!((ready.state(), ready.in_flight, ready.calls, ready.failures), (ReplicaState::Ready, 0, 2, 0));
    assert_eq!(ready.time_per_unit, Some(prost_types::Duration { seconds: 0, nanos: 500_000 }));
    assert_eq!(ready.backlog, Some(prost_types::Duration::default()));
    assert!(ready.since.is_some());
}

#[tokio::test]
async fn only_admins_see_it() {
    let front = Front::before(&[]).await;
    let status = client(&front, CLIENT).await.get_topology(pb::GetTopologyRequest::default()).await.unwrap_err();
    assert_eq!(refusal(&status), (Code::PermissionDenied, "NOT_ALLOWED".into()));
    let others = Front::configured(&[], &format!("[server]\nadmins = ['{CLIENT}']")).await;
    client(&others, CLIENT).await.get_topology(pb::GetTopologyRequest::default()).await.unwrap();
    // It is not a service of the front door.
    let path = "/tamis.gateway.v1.TopologyService/GetTopology";
    let answer = front.client.call(request(path), framed(b"")).await;
    assert_eq!(answer.refusal(), (Code::Unimplemented, "UNKNOWN_METHOD".into()));
}

#[tokio::test]
async fn services_are_chosen_by_name() {
    let more = format!("[services.another]\nserves = ['tamis.vision.v1.VisionService']\nspiffe_id = '{REPLICA}'");
    let front = Front::configured(&[], &more).await;
    let mut client = client(&front, ADMIN).await;
    let mut ask = async |services: &[&str]| {
        let services = services.iter().map(|name| (*name).to_owned()).collect();
        let answer = client.get_topology(pb::GetTopologyRequest { services }).await?.into_inner();
        Ok::<_, Status>(answer.services.into_iter().map(|service| service.name).collect::<Vec<_>>())
    };
    assert_eq!(ask(&[]).await.unwrap(), ["another", "embedding"]);
    assert_eq!(ask(&["embedding"]).await.unwrap(), ["embedding"]);
    assert_eq!(ask(&["embedding", "another", "embedding"]).await.unwrap(), ["another", "embedding"]);
    let status = ask(&["embedding", "missing"]).await.unwrap_err();
    assert_eq!(refusal(&status), (Code::NotFound, "BAD_PARAMETER".into()));
    assert_eq!(status.get_error_details().bad_request().unwrap().field_violations[0].field, "services[1]");
    let services = vec!["missing".to_owned()];
    let status = client.watch_topology(pb::WatchTopologyRequest { services }).await.unwrap_err();
    assert_eq!(refusal(&status), (Code::NotFound, "BAD_PARAMETER".into()));
}

#[tokio::test]
async fn every_change_of_a_replica_is_told_within_a_second() {
    let replica = Replica::start(Do::Echo).await;
    let front = Front::before(&[replica.address]).await;
    let mut watch = Watch::of(&front).await;
    let first = watch.until_state(ReplicaState::Ready).await;
    let mut since = first.since.unwrap();
    let mut check = async |changed: Instant, state| {
        let seen = watch.until_state(state).await.since.unwrap();
        assert!(changed.elapsed() < PROMPTLY, "{state:?} took {:?}", changed.elapsed());
        assert!((seen.seconds, seen.nanos) > (since.seconds, since.nanos), "{state:?}");
        since = seen;
    };
    let changed = Instant::now();
    replica.drain().await;
    check(changed, ReplicaState::NotServing).await;
    let changed = Instant::now();
    replica.serve().await;
    check(changed, ReplicaState::Ready).await;
    let changed = Instant::now();
    replica.kill();
    check(changed, ReplicaState::Unreachable).await;
}

#[tokio::test]
async fn a_replica_that_has_not_answered_yet_is_starting() {
    // It is connected to, and does not shake hands.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let more = "[connection]\nconnect_timeout = '60s'";
    let front = Front::configured(&[silent.local_addr().unwrap()], more).await;
    assert_eq!(Watch::of(&front).await.next().await.unwrap().replicas[0].state(), ReplicaState::Starting);
}

#[tokio::test]
async fn an_imposter_is_unreachable() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let imposter = Replica::start_as("spiffe://tamis.local/service/vision", listener, Do::Echo).await;
    let front = Front::before(&[imposter.address]).await;
    Watch::of(&front).await.until_state(ReplicaState::Unreachable).await;
}

#[tokio::test]
async fn calls_in_flight_and_calls_that_wait_are_counted() {
    let permits = Arc::new(Semaphore::new(0));
    let mut replica = Replica::start(Do::EchoAfter(Arc::clone(&permits))).await;
    let front = Front::configured(&[replica.address], "[retry]\nready_wait = '20s'").await;
    front.until_ready(1).await;
    let call = || {
        tokio::spawn({
            let client = front.client.clone();
            async move { client.embed(b"text").await }
        })
    };
    let first = call();
    replica.next().await;
    let mut watch = Watch::of(&front).await;
    let service = watch.until(|service| service.in_flight == 1).await;
    assert_eq!((service.replicas[0].in_flight, service.calls), (1, 0));
    assert!(service.replicas[0].backlog.unwrap().nanos > 0, "its work waits there");
    replica.drain().await;
    watch.until_state(ReplicaState::NotServing).await;
    let second = call();
    watch.until(|service| service.waiting == 1 && service.in_flight == 2).await;
    permits.add_permits(2);
    assert_eq!(first.await.unwrap().status().code(), Code::Ok);
    replica.serve().await;
    assert_eq!(second.await.unwrap().status().code(), Code::Ok);
    let service = watch.until(|service| service.calls == 2).await;
    assert_eq!((service.waiting, service.in_flight, service.replicas[0].calls), (0, 0, 2));
}

#[tokio::test]
async fn failures_of_a_replica_are_its_own_and_those_of_a_service_are_the_callers() {
    let check = async |act: Do, failed: (u64, u64)| {
        let replica = Replica::start(act).await;
        let front = Front::configured(&[replica.address], "[retry]\nattempts_max = 1").await;
        front.until_ready(1).await;
        front.client.embed(b"text").await;
        let service = look(&front).await;
        assert_eq!((service.calls, service.replicas[0].calls), (1, 1));
        assert_eq!((service.replicas[0].failures, service.failures), failed);
    };
    check(Do::Echo, (0, 0)).await;
    check(Do::Refuse(&[("grpc-status", "14")]), (1, 1)).await;
    check(Do::Status(&[("grpc-status", "13")]), (1, 1)).await;
    check(Do::Cut, (1, 1)).await;
    check(Do::CutAfter(Bytes::from_static(b"\0\0")), (1, 1)).await;
    check(Do::Refuse(&[("grpc-status", "3")]), (0, 1)).await;
}

#[tokio::test]
async fn a_call_that_its_client_gave_up_has_ended_and_is_no_failure_of_the_replica() {
    let mut replica = Replica::start(Do::Hang).await;
    let front = Front::before(&[replica.address]).await;
    front.until_ready(1).await;
    let answer = front.client.call(request(EMBED).header("grpc-timeout", "900m"), framed(b"")).await;
    assert_eq!(answer.status().code(), Code::DeadlineExceeded);
    replica.next().await;
    let service = look(&front).await;
    let of_replica = &service.replicas[0];
    assert_eq!((of_replica.in_flight, of_replica.calls, of_replica.failures), (0, 1, 0));
    assert_eq!((service.calls, service.failures), (1, 1));
    assert!(service.latency_p50.unwrap().nanos >= 900_000_000 || service.latency_p50.unwrap().seconds > 0);
}

#[tokio::test]
async fn figures_are_told_once_a_second_at_most() {
    let replica = Replica::start(Do::Echo).await;
    let front = Front::before(&[replica.address]).await;
    let mut watch = Watch::of(&front).await;
    watch.until_state(ReplicaState::Ready).await;
    let started = Instant::now();
    let load = async {
        while started.elapsed() < Duration::from_millis(2500) {
            front.client.embed(b"text").await;
        }
    };
    let count = async {
        let mut told = 0;
        loop {
            watch.next().await.unwrap();
            told += 1;
            if started.elapsed() > Duration::from_millis(2500) {
                return told;
            }
        }
    };
    let ((), told) = tokio::join!(load, count);
    let seconds = started.elapsed().as_secs() + 1;
    assert!((2..=seconds).contains(&told), "{told} pictures in {seconds} seconds");
}

#[tokio::test]
async fn a_watch_ends_with_the_gateway() {
    let front = Front::before(&[]).await;
    let mut watch = Watch::of(&front).await;
    watch.next().await.unwrap();
    front.stop.send(()).unwrap();
    assert_eq!(refusal(&watch.next().await.unwrap_err()), (Code::Unavailable, "DRAINING".into()));
    drop((watch, front.client));
    front.task.await.unwrap().unwrap();
}
