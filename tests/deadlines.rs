//! Calls whose answer nobody wants any more cost nothing from then on.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use proto::{
    common::v1::{self as common, ErrorReason},
    embedding::v1::EmbedRequest,
};
use tonic::{Code, Request};

use crate::harness::{Mesh, embed, eventually, long_text, metric, metrics, refused};

/// Far less than the big calls below would take, and far more than a small call needs on a busy machine.
const SOON: Duration = Duration::from_secs(3);

/// More work than any machine of this kind does in a few seconds.
fn big() -> EmbedRequest {
    embed(vec![long_text(250); 256])
}

/// Waits until nothing waits for a worker and no worker works.
async fn idle(mesh: &Mesh) {
    let admin = mesh.replicas()[0].admin;
    eventually("the queue empties", async || {
        let text = metrics(admin).await;
        let units = metric(&text, "tamis_pool_queued_units") + metric(&text, "tamis_pool_running_units");
        (units == 0.0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_late_call_fails_at_its_deadline_and_leaves_the_queue() {
    let mesh = Mesh::start("classification=0,vision=0");
    let mut client = mesh.client().await.embedding();
    client.embed(embed(["warm up"])).await.unwrap();
    for timeout in ["1m", "300m"] {
        let mut request = Request::new(big());
        // The header alone: a client's own timer would hide the mesh's answer.
        request.metadata_mut().insert("grpc-timeout", timeout.parse().unwrap());
        let started = Instant::now();
        let status = client.embed(request).await.unwrap_err();
        assert!(started.elapsed() < SOON, "{timeout}: the refusal took {:?}", started.elapsed());
        refused(&status, Code::DeadlineExceeded, ErrorReason::Deadline);
        let started = Instant::now();
        client.embed(embed(["next"])).await.unwrap();
        assert!(started.elapsed() < SOON, "{timeout}: the next call took {:?}", started.elapsed());
    }
    let started = Instant::now();
    idle(&mesh).await;
    assert!(started.elapsed() < SOON, "the late calls' work went on for {:?}", started.elapsed());
}

#[tokio::test]
async fn cancelled_calls_leave_the_queue() {
    let mesh = Mesh::start("classification=0,vision=0");
    let client = mesh.client().await;
    client.embedding().embed(embed(["warm up"])).await.unwrap();
    let options = Some(common::RequestOptions { priority: common::Priority::Batch.into(), include_timing: false });
    let calls = (0..6).map(|_| {
        let (mut client, request) = (client.embedding(), EmbedRequest { options, ..embed(vec![long_text(250); 32]) });
        tokio::spawn(async move { client.embed(request).await })
    });
    let calls: Vec<_> = calls.collect();
    let admin = mesh.replicas()[0].admin;
    eventually("the calls wait", async || {
        (metric(&metrics(admin).await, "tamis_pool_queued_units") > 20_000.0).then_some(())
    })
    .await;
    calls.iter().for_each(tokio::task::JoinHandle::abort);
    assert!(join_all(calls).await.iter().all(|ended| ended.as_ref().is_err_and(|error| error.is_cancelled())));
    let cancelled = Instant::now();
    idle(&mesh).await;
    assert!(cancelled.elapsed() < SOON, "the cancelled calls' work went on for {:?}", cancelled.elapsed());
    client.embedding().embed(embed(["next"])).await.unwrap();
}
