//! Fan-outs that ask for what cannot be done: refused whole, by the field at fault, and no replica hears of them.

use prost::Message as _;
use proto::gateway::v1 as pb;
use tonic::Code;
use tonic_types::StatusExt as _;

use crate::{
    client::{framed, request},
    fanout::{Three, all, classified, client, embed, embedded, of, refusal, seen, under},
    front::Front,
};

async fn check(request: pb::FanOutRequest, reason: &str, field: &str) {
    let mut mesh = Three::start(embedded(), classified(), seen()).await;
    let status = mesh.ask(request.clone()).await.unwrap_err();
    assert_eq!(refusal(&status), (Code::InvalidArgument, reason.to_owned()));
    assert_eq!(status.get_error_details().bad_request().unwrap().field_violations[0].field, field);
    let request = pb::FanOutStreamRequest { request: Some(request) };
    let status = client(&mesh.front).fan_out_stream(request).await.unwrap_err();
    assert_eq!(refusal(&status), (Code::InvalidArgument, reason.to_owned()));
    let expected = format!("request.{field}");
    assert_eq!(status.get_error_details().bad_request().unwrap().field_violations[0].field, expected);
    assert_eq!(mesh.embedding.count() + mesh.classification.count() + mesh.vision.count(), 0);
}

fn with(change: impl FnOnce(&mut pb::Step)) -> pb::FanOutRequest {
    let mut request = all();
    change(&mut request.steps[2]);
    request
}

#[tokio::test]
async fn no_steps() {
    check(of([]), "EMPTY_INPUT", "steps").await;
}

#[tokio::test]
async fn too_many_steps() {
    check(of((0..33).map(|index| embed(&index.to_string()))), "TOO_MANY_ITEMS", "steps").await;
}

#[tokio::test]
async fn an_id_that_stands_twice() {
    check(with(|step| step.id = "e".into()), "BAD_PARAMETER", "steps[2].id").await;
}

#[tokio::test]
async fn an_empty_id_and_a_long_one() {
    check(with(|step| step.id.clear()), "BAD_PARAMETER", "steps[2].id").await;
    check(with(|step| step.id = "x".repeat(65)), "BAD_PARAMETER", "steps[2].id").await;
}

#[tokio::test]
async fn a_step_without_a_call() {
    check(with(|step| step.call = None), "BAD_PARAMETER", "steps[2].call").await;
}

#[tokio::test]
async fn a_timeout_that_is_not_above_zero() {
    for nanos in [0, -1] {
        let timeout = Some(prost_types::Duration { seconds: 0, nanos });
        check(with(|step| step.timeout = timeout), "BAD_PARAMETER", "steps[2].timeout").await;
    }
}

#[tokio::test]
async fn a_quorum_that_cannot_be() {
    for quorum in [0, 4] {
        check(under(pb::FailurePolicy::Quorum, quorum, all()), "BAD_PARAMETER", "quorum").await;
    }
    check(under(pb::FailurePolicy::FailFast, 1, all()), "BAD_PARAMETER", "quorum").await;
}

#[tokio::test]
async fn an_unknown_policy() {
    check(pb::FanOutRequest { failure_policy: 9, ..all() }, "BAD_PARAMETER", "failure_policy").await;
}

#[tokio::test]
async fn what_is_no_message_or_a_compressed_one_is_malformed() {
    let front = Front::before(&[]).await;
    let mut compressed = framed(&all().encode_to_vec()).to_vec();
    compressed[0] = 1;
    for message in [framed(b"\x0a\x7f"), framed(b"\x0a\x04\x0a\x02\xff\xfe"), compressed.into()] {
        let answer = front.client.call(request("/tamis.gateway.v1.GatewayService/FanOut"), message).await;
        assert_eq!(answer.refusal(), (Code::InvalidArgument, "MALFORMED_REQUEST".into()));
    }
}

#[tokio::test]
async fn more_steps_where_the_configuration_takes_more() {
    let mesh = Three::configured(embedded(), classified(), seen(), "[fanout]\nsteps_max = 40").await;
    let answers = mesh.ask(of((0..40).map(|index| embed(&index.to_string())))).await.unwrap();
    assert!((0..40).all(|index| answers.is_ok(&index.to_string())));
    assert!(mesh.ask(of((0..41).map(|index| embed(&index.to_string())))).await.is_err());
}
