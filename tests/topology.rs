//! What operators see of the mesh, while it changes.

use std::time::{Duration, Instant};

use proto::{
    common::v1::ErrorReason,
    gateway::v1::{GetTopologyRequest, ReplicaState, ServiceState, WatchTopologyRequest, WatchTopologyResponse},
};
use tonic::{Code, Streaming};

use crate::harness::{Channels, GATEWAY, Mesh, connect, credentials, embed, refused, signal, tamis};

/// A connection of an administrator to the gateway's admin port.
async fn admin(mesh: &Mesh) -> Channels {
    let issued = tamis(mesh.folder.path(), &["certs", "issue", "client/admin", "--force"]).await;
    assert!(issued.success, "{}", issued.stderr);
    connect(mesh.gateway().admin, &credentials(&mesh.folder.certs(), "client-admin"), GATEWAY).await.unwrap()
}

/// Reads on until the embedding service is so.
async fn until(
    watch: &mut Streaming<WatchTopologyResponse>,
    holds: impl Fn(&ServiceState) -> bool,
) -> WatchTopologyResponse {
    loop {
        let response = watch.message().await.unwrap().expect("the watch has ended");
        if response.services.iter().any(|service| service.name == "embedding" && holds(service)) {
            return response;
        }
    }
}

#[tokio::test]
async fn a_killed_replica_is_seen_within_a_second_and_its_return_too() {
    let mesh = Mesh::start("embedding=2,classification=1,vision=0");
    let topology = admin(&mesh).await.topology();
    let mut watch = topology.clone().watch_topology(WatchTopologyRequest::default()).await.unwrap().into_inner();
    let victim = mesh.replicas().into_iter().find(|member| member.role == "embedding").unwrap();
    let address = victim.grpc.to_string();
    let is = |service: &ServiceState, state| {
        service.replicas.iter().any(|replica| replica.address == address && replica.state() == state)
    };
    until(&mut watch, |service| is(service, ReplicaState::Ready) && service.replicas.len() == 2).await;

    let killed = Instant::now();
    signal(victim.pid.unwrap(), "KILL");
    let response = until(&mut watch, |service| is(service, ReplicaState::Unreachable)).await;
    assert!(killed.elapsed() < Duration::from_secs(1), "it took {:?}", killed.elapsed());
    let names: Vec<_> = response.services.iter().map(|service| service.name.as_str()).collect();
    assert_eq!(names, ["classification", "embedding"], "all that was asked for, every time");
    until(&mut watch, |service| is(service, ReplicaState::Ready)).await;

    let client = mesh.client().await;
    for _ in 0..4 {
        client.embedding().embed(embed(["a text"])).await.unwrap();
    }
    let response = until(&mut watch, |service| service.calls >= 4 && service.in_flight == 0).await;
    let embedding = response.services.into_iter().find(|service| service.name == "embedding").unwrap();
    assert_eq!(embedding.serves, ["tamis.embedding.v1.EmbeddingService"]);
    assert!(embedding.latency_p99.is_some() && embedding.failures == 0, "{embedding:?}");
    assert!(embedding.replicas.iter().any(|replica| replica.calls > 0 && replica.time_per_unit.is_some()));
}

#[tokio::test]
async fn only_an_administrator_sees_the_topology() {
    let mesh = crate::harness::mesh();
    let issued = tamis(mesh.folder.path(), &["certs", "issue", "client/other", "--force"]).await;
    assert!(issued.success, "{}", issued.stderr);
    let other = credentials(&mesh.folder.certs(), "client-other");
    let client = connect(mesh.gateway().admin, &other, GATEWAY).await.unwrap();
    let status = client.topology().get_topology(GetTopologyRequest::default()).await.unwrap_err();
    refused(&status, Code::PermissionDenied, ErrorReason::NotAllowed);
}
