//! What dies or drains takes nothing with it.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use futures_util::{StreamExt as _, stream};
use proto::common::v1::ErrorReason;
use tokio::sync::oneshot;
use tonic::{Code, Status};
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus};

use crate::harness::{
    Channels, Mesh, Roles, classify, embed, eventually, image, is_alive, metric, metrics, photos, refused, see, signal,
};

/// Sends calls, 32 at a time; announces on the way that `at` of them are answered. Returns those that failed.
async fn load(clients: &[Channels], calls: usize, (at, reached): (usize, oneshot::Sender<()>)) -> Vec<Status> {
    let answered = AtomicUsize::new(0);
    let reached = std::cell::Cell::new(Some(reached));
    let call = |n: usize| {
        let (mut client, answered, reached) = (clients[n % clients.len()].embedding(), &answered, &reached);
        async move {
            let result = client.embed(embed([format!("call number {n}")])).await;
            if answered.fetch_add(1, Relaxed) + 1 == at
                && let Some(reached) = reached.take()
            {
                reached.send(()).unwrap();
            }
            result.err()
        }
    };
    stream::iter((0..calls).map(call)).buffer_unordered(32).filter_map(|failed| async { failed }).collect().await
}

#[tokio::test]
async fn no_call_fails_when_a_replica_is_killed_under_load_and_it_comes_back() {
    let mesh = Mesh::start("embedding=2,classification=0,vision=0");
    let mut clients = Vec::new();
    for _ in 0..4 {
        clients.push(mesh.client().await);
    }
    let victim = mesh.replicas().remove(0);
    let pid = victim.pid.unwrap();
    let (reached, at) = oneshot::channel();
    let kill = async {
        at.await.unwrap();
        signal(pid, "KILL");
    };
    let (failed, ()) = tokio::join!(load(&clients, 2000, (500, reached)), kill);
    assert!(failed.is_empty(), "{} of 2000 calls failed, the first with {:?}", failed.len(), failed[0]);
    assert!(!is_alive(pid));

    let up = format!("tamis_gateway_endpoint_up{{service=\"embedding\",endpoint=\"{}\"}}", victim.grpc);
    let admin = mesh.gateway().admin;
    eventually("the replica comes back", async || (metric(&metrics(admin).await, &up) == 1.0).then_some(())).await;
    let again = mesh.replicas().remove(0);
    assert!(again.pid.is_some_and(|again| again != pid && is_alive(again)) && again.grpc == victim.grpc, "{again:?}");
}

#[tokio::test]
async fn no_call_fails_when_a_replica_drains_under_load() {
    let mut roles = Roles::start(&["embedding", "embedding"]).await;
    let clients = [roles.client().await, roles.client().await];
    let (reached, at) = oneshot::channel();
    let pid = roles.services[0].process.pid;
    let drain = async {
        at.await.unwrap();
        signal(pid, "TERM");
    };
    let (failed, ()) = tokio::join!(load(&clients, 1000, (200, reached)), drain);
    assert!(failed.is_empty(), "{} of 1000 calls failed, the first with {:?}", failed.len(), failed[0]);
    assert!(roles.services[0].process.ended().await.success());
}

#[tokio::test]
async fn calls_in_flight_are_answered_when_the_gateway_drains() {
    let mut roles = Roles::start(&["embedding"]).await;
    let client = roles.client().await;
    let slow = || {
        let mut client = client.embedding();
        async move { client.embed(embed(vec![crate::harness::long_text(200); 16])).await }
    };
    let calls: Vec<_> = (0..4).map(|_| tokio::spawn(slow())).collect();
    let admin = roles.gateway.at.admin;
    eventually("the calls are in flight", async || {
        (metric(&metrics(admin).await, "tamis_gateway_calls_in_flight") >= 4.0).then_some(())
    })
    .await;
    signal(roles.gateway.process.pid, "TERM");
    for call in calls {
        call.await.unwrap().unwrap();
    }
    drop(client);
    assert!(roles.gateway.process.ended().await.success());
}

#[tokio::test]
async fn a_stopped_service_fails_alone() {
    let roles = Roles::start(&["embedding", "classification", "vision"]).await;
    let client = roles.client().await;
    let photo = || see([image(photos().remove(0).file)]);
    client.vision().classify_images(photo()).await.unwrap();

    let mut health = client.health();
    let service = "tamis.vision.v1.VisionService".to_owned();
    let mut watch = health.watch(HealthCheckRequest { service }).await.unwrap().into_inner();
    assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::Serving);
    signal(roles.services[2].process.pid, "KILL");
    assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::NotServing);

    let status = client.vision().classify_images(photo()).await.unwrap_err();
    refused(&status, Code::Unavailable, ErrorReason::NoCapacity);
    assert!(status.metadata().contains_key("grpc-retry-pushback-ms"), "{status:?}");
    client.embedding().embed(embed(["still here"])).await.unwrap();
    client.classification().classify(classify(["still here"])).await.unwrap();
    let models =
        client.models().list_models(proto::model::v1::ListModelsRequest::default()).await.unwrap().into_inner();
    let names: Vec<_> = models.models.into_iter().map(|model| model.name).collect();
    assert_eq!(names, ["all-minilm-l6-v2", "prompt-injection-minilm-v5", "sentiment-minilm-v1"]);
    let gateway = health.check(HealthCheckRequest::default()).await.unwrap().into_inner();
    assert_eq!(gateway.status(), ServingStatus::Serving, "the gateway itself serves");
}
