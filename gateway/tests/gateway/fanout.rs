//! Several calls in one: each answers or fails on its own, unless the policy says otherwise.

use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;
use proto::{
    classification::v1::{ClassifyRequest, ClassifyResponse},
    common::v1::{ErrorReason, ModelInfo},
    embedding::v1::{EmbedRequest, EmbedResponse},
    gateway::v1::{self as pb, gateway_service_client::GatewayServiceClient, step::Call, step_result::Outcome},
    vision::v1::{ClassifyImagesRequest, ClassifyImagesResponse},
};
use tonic::{Code, Request, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::{
    certificates::{CLIENT, REPLICA},
    client::{Client, framed, request},
    front::Front,
    replica::{Do, Replica, Seen},
};

const FAN_OUT: &str = "/tamis.gateway.v1.GatewayService/FanOut";
/// A field of no contract.
const UNKNOWN_FIELD: &[u8] = b"\xfa\x3e\x03abc";
const UNAVAILABLE: Do = Do::Refuse(&[("grpc-status", "14"), ("grpc-retry-pushback-ms", "-1")]);

/// One replica for each of three services.
pub(crate) struct Three {
    pub(crate) embedding: Replica,
    pub(crate) classification: Replica,
    pub(crate) vision: Replica,
    pub(crate) front: Front,
}

impl Three {
    pub(crate) async fn start(embed: Do, classify: Do, see: Do) -> Self {
        Self::configured(embed, classify, see, "").await
    }

    /// With more tables of configuration.
    pub(crate) async fn configured(embed: Do, classify: Do, see: Do, more: &str) -> Self {
        let embedding = Replica::start(embed).await;
        let (classification, vision) = (Replica::start(classify).await, Replica::start(see).await);
        let service = |name: &str, serves: &str, replica: &Replica| {
            let address = replica.address;
            format!("[services.{name}]\nserves = ['{serves}']\nspiffe_id = '{REPLICA}'\nendpoints = ['{address}']\n")
        };
        let others = service("classification", "tamis.classification.v1.ClassificationService", &classification)
            + &service("vision", "tamis.vision.v1.VisionService", &vision);
        let front = Front::configured(&[embedding.address], &format!("{others}{more}")).await;
        front.until_ready(3).await;
        Self { embedding, classification, vision, front }
    }

    pub(crate) async fn ask(&self, request: impl tonic::IntoRequest<pb::FanOutRequest>) -> Result<Answers, Status> {
        client(&self.front).fan_out(request).await.map(|response| Answers(response.into_inner()))
    }
}

/// What a fan-out has answered.
#[derive(Debug)]
pub(crate) struct Answers(pub(crate) pb::FanOutResponse);

impl Answers {
    /// The error of a step.
    pub(crate) fn error(&self, id: &str) -> &pb::StepError {
        match &self.result(id).outcome {
            Some(Outcome::Error(error)) => error,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn result(&self, id: &str) -> &pb::StepResult {
        self.0.results.iter().find(|result| result.id == id).unwrap()
    }

    pub(crate) fn is_ok(&self, id: &str) -> bool {
        !matches!(self.result(id).outcome, Some(Outcome::Error(_)) | None)
    }
}

pub(crate) fn client(front: &Front) -> GatewayServiceClient<Client> {
    GatewayServiceClient::with_origin(front.client.clone(), "https://localhost".parse().unwrap())
}

pub(crate) fn step(id: &str, call: Call) -> pb::Step {
    pb::Step { id: id.into(), call: Some(call), ..pb::Step::default() }
}

pub(crate) fn embed(id: &str) -> pb::Step {
    step(id, Call::Embed(EmbedRequest::default()))
}

pub(crate) fn classify(id: &str) -> pb::Step {
    step(id, Call::Classify(ClassifyRequest::default()))
}

pub(crate) fn see(id: &str) -> pb::Step {
    step(id, Call::ClassifyImages(ClassifyImagesRequest::default()))
}

/// One step for each of the three services.
pub(crate) fn all() -> pb::FanOutRequest {
    of([embed("e"), classify("c"), see("v")])
}

pub(crate) fn of(steps: impl IntoIterator<Item = pb::Step>) -> pb::FanOutRequest {
    pb::FanOutRequest { steps: steps.into_iter().collect(), ..pb::FanOutRequest::default() }
}

pub(crate) fn under(policy: pb::FailurePolicy, quorum: u32, request: pb::FanOutRequest) -> pb::FanOutRequest {
    pb::FanOutRequest { failure_policy: policy.into(), quorum, ..request }
}

pub(crate) fn info(model: &str) -> Option<ModelInfo> {
    Some(ModelInfo { model: model.into(), ..ModelInfo::default() })
}

/// Answers an Embed.
pub(crate) fn embedded() -> Do {
    Do::Reply(framed(&EmbedResponse { model: info("e"), ..EmbedResponse::default() }.encode_to_vec()))
}

/// Answers a Classify.
pub(crate) fn classified() -> Do {
    Do::Reply(framed(&ClassifyResponse { model: info("c"), ..ClassifyResponse::default() }.encode_to_vec()))
}

/// Answers a ClassifyImages.
pub(crate) fn seen() -> Do {
    Do::Reply(framed(&ClassifyImagesResponse { model: info("v"), ..ClassifyImagesResponse::default() }.encode_to_vec()))
}

/// The code and the reason of a status.
pub(crate) fn refusal(status: &Status) -> (Code, String) {
    (status.code(), status.get_error_details().error_info().map(|info| info.reason.clone()).unwrap_or_default())
}

fn lasting(millis: i32) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds: 0, nanos: millis * 1_000_000 })
}

#[tokio::test]
async fn every_step_is_a_call_of_its_own() {
    let mut mesh = Three::start(embedded(), classified(), seen()).await;
    let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let mut request = Request::new(all());
    let metadata = request.metadata_mut();
    for (name, value) in [("traceparent", parent), ("tamis-units", "9"), ("x-tenant", "a"), ("grpc-timeout", "9S")] {
        metadata.insert(name, value.parse().unwrap());
    }
    let Answers(answer) = mesh.ask(request).await.unwrap();
    assert!(!answer.degraded);
    let models = answer.results.iter().map(|result| match &result.outcome {
        Some(Outcome::Embed(response)) => (&*result.id, response.model.clone()),
        Some(Outcome::Classify(response)) => (&*result.id, response.model.clone()),
        Some(Outcome::ClassifyImages(response)) => (&*result.id, response.model.clone()),
        other => panic!("{other:?}"),
    });
    assert_eq!(models.collect::<Vec<_>>(), [("e", info("e")), ("c", info("c")), ("v", info("v"))]);
    assert!(answer.results.iter().all(|result| result.attempts == 1 && result.elapsed.is_some()));

    let legs = [mesh.embedding.next().await, mesh.classification.next().await, mesh.vision.next().await];
    let header = |leg: &Seen, name: &str| leg.head.headers[name].to_str().unwrap().to_owned();
    let traces: Vec<_> = legs.iter().map(|leg| header(leg, "traceparent")).collect();
    assert!(traces.iter().all(|trace| trace[..36] == parent[..36]), "{traces:?}");
    let spans: std::collections::HashSet<_> = traces.iter().map(|trace| &trace[36..52]).collect();
    assert_eq!(spans.len(), 3, "each is a span of its own");
    for leg in &legs {
        assert_eq!((header(leg, "tamis-caller"), header(leg, "x-tenant")), (CLIENT.to_owned(), "a".to_owned()));
        assert!(!leg.head.headers.contains_key("tamis-units"));
        let left = chassis::deadline::parse(leg.head.headers["grpc-timeout"].as_bytes()).unwrap();
        assert!(left < Duration::from_secs(9) && left > Duration::from_secs(4), "{left:?}");
    }
    let calls = mesh.front.metric("gateway_calls_total").await;
    for method in ["Embed", "Classify", "ClassifyImages", "FanOut"] {
        let label = format!("method=\"{method}\"");
        assert!(calls.iter().any(|(labels, value)| labels.contains(&label) && *value == 1.0), "{method}: {calls:?}");
    }
}

#[tokio::test]
async fn fields_of_no_contract_pass_both_ways() {
    let mut reply = EmbedResponse { space_id: "s".repeat(5000), ..EmbedResponse::default() }.encode_to_vec();
    reply.extend_from_slice(UNKNOWN_FIELD);
    let mut replica = Replica::start(Do::Reply(framed(&reply))).await;
    let front = Front::before(&[replica.address]).await;
    // FanOutRequest { steps: [Step { id: "a", embed: the field }] }
    let mut message = b"\x0a\x0b\x0a\x01a\x12\x06".to_vec();
    message.extend_from_slice(UNKNOWN_FIELD);
    let answer = front.client.call(request(FAN_OUT), framed(&message)).await;
    assert_eq!(answer.status().code(), Code::Ok);
    assert_eq!(replica.next().await.message, framed(UNKNOWN_FIELD));
    assert!(answer.data.windows(reply.len()).any(|window| window == reply), "the reply is not what came");
    let response = pb::FanOutResponse::decode(answer.data.slice(5..)).unwrap();
    assert!(matches!(response.results[0].outcome, Some(Outcome::Embed(_))));
}

#[tokio::test]
async fn a_step_that_fails_fails_alone() {
    let mut details = ErrorDetails::with_error_info("BAD_PARAMETER", proto::ERROR_DOMAIN, []);
    details.add_bad_request_violation("params.top_k", "top_k is 0");
    let mut headers = http::HeaderMap::new();
    let status = Status::with_error_details(Code::InvalidArgument, "top_k is 0", details);
    status.add_header(&mut headers).unwrap();
    let pairs = headers.iter().map(|(name, value)| {
        let text = |text: &str| -> &'static str { text.to_owned().leak() };
        (text(name.as_str()), text(value.to_str().unwrap()))
    });
    let refuse = Do::Refuse(pairs.collect::<Vec<_>>().leak());
    let mesh = Three::start(embedded(), refuse, seen()).await;
    let answers = mesh.ask(all()).await.unwrap();
    assert!(answers.0.degraded && answers.is_ok("e") && answers.is_ok("v"));
    let expected = pb::StepError {
        code: 3,
        reason: ErrorReason::BadParameter.into(),
        message: "top_k is 0".into(),
        retry_delay: None,
        fields: vec!["params.top_k".into()],
    };
    assert_eq!(*answers.error("c"), expected);
    assert_eq!(answers.result("c").attempts, 1);
}

#[tokio::test]
async fn an_optional_step_that_fails_degrades_nothing_and_ends_nothing() {
    let mesh = Three::start(embedded(), UNAVAILABLE, seen()).await;
    let optional = pb::Step { optional: true, ..classify("c") };
    let request = || of([embed("e"), optional.clone(), see("v")]);
    for (policy, quorum) in
        [(pb::FailurePolicy::Partial, 0), (pb::FailurePolicy::FailFast, 0), (pb::FailurePolicy::Quorum, 2)]
    {
        let answers = mesh.ask(under(policy, quorum, request())).await.unwrap();
        assert!(!answers.0.degraded && answers.is_ok("e") && answers.is_ok("v"), "{answers:?}");
    }
}

#[tokio::test]
async fn a_step_that_its_caller_may_not_call_fails_alone() {
    let mut replica = Replica::start(embedded()).await;
    let text = Front::text(&[replica.address], "");
    let allowed = format!("methods = ['{FAN_OUT}', '/tamis.embedding.v1.EmbeddingService/Embed']");
    let front = Front::start(&text.replace("methods = ['*']", &allowed)).await;
    let rerank = step("r", Call::Rerank(proto::embedding::v1::RerankRequest::default()));
    let answers = Answers(client(&front).fan_out(of([embed("e"), rerank, see("v")])).await.unwrap().into_inner());
    assert!(answers.is_ok("e"));
    for id in ["r", "v"] {
        let error = answers.error(id);
        assert_eq!((error.code, error.reason()), (Code::PermissionDenied as i32, ErrorReason::NotAllowed));
    }
    assert_eq!(replica.count(), 1);
}

#[tokio::test]
async fn a_step_that_nothing_serves_fails_alone() {
    let replica = Replica::start(embedded()).await;
    let front = Front::before(&[replica.address]).await;
    let answers = Answers(client(&front).fan_out(of([embed("e"), see("v")])).await.unwrap().into_inner());
    assert!(answers.is_ok("e"));
    assert_eq!(answers.error("v").reason(), ErrorReason::UnknownMethod);
    assert_eq!(answers.result("v").attempts, 0);
}

#[tokio::test]
async fn a_step_beyond_its_services_bound_fails_alone() {
    let mut replica = Replica::start(Do::Hang).await;
    let front = Front::configured(&[replica.address], "in_flight_max = 1").await;
    front.until_ready(1).await;
    let short = pb::Step { timeout: lasting(900), ..embed("a") };
    let answers = Answers(client(&front).fan_out(of([short, embed("b")])).await.unwrap().into_inner());
    assert_eq!(answers.error("a").reason(), ErrorReason::Deadline);
    let full = answers.error("b");
    assert_eq!(
        (full.reason(), full.retry_delay),
        (ErrorReason::QueueFull, Some(prost_types::Duration { seconds: 1, nanos: 0 }))
    );
    assert_eq!(replica.count(), 1);
}

#[tokio::test]
async fn a_step_beyond_its_own_timeout_leaves_its_replica_and_fails_alone() {
    let mut mesh = Three::start(embedded(), Do::Hang, seen()).await;
    let slow = pb::Step { timeout: lasting(900), ..classify("c") };
    let answers = mesh.ask(of([embed("e"), slow, see("v")])).await.unwrap();
    assert!(answers.0.degraded && answers.is_ok("e") && answers.is_ok("v"));
    let error = answers.error("c");
    assert_eq!((error.code, error.reason()), (Code::DeadlineExceeded as i32, ErrorReason::Deadline));
    let seen = mesh.classification.next().await;
    let left = chassis::deadline::parse(seen.head.headers["grpc-timeout"].as_bytes()).unwrap();
    assert!(left <= Duration::from_millis(900), "{left:?}");
    seen.over.cancelled().await;
}

#[tokio::test]
async fn fail_fast_ends_with_the_first_failure_and_cancels_the_others() {
    let mut mesh = Three::start(Do::Hang, UNAVAILABLE, Do::Hang).await;
    let status = mesh.ask(under(pb::FailurePolicy::FailFast, 0, all())).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().starts_with("c: "), "{status:?}");
    // A step that had not left yet never does.
    for replica in [&mut mesh.embedding, &mut mesh.vision] {
        while let Ok(seen) = replica.seen.try_recv() {
            seen.over.cancelled().await;
        }
    }
    assert_eq!(mesh.front.metric("gateway_calls_in_flight").await[0].1, 0.0);
}

#[tokio::test]
async fn a_quorum_that_is_reached_cancels_the_others() {
    let mut mesh = Three::start(embedded(), Do::Hang, seen()).await;
    let answers = mesh.ask(under(pb::FailurePolicy::Quorum, 2, all())).await.unwrap();
    assert!(answers.is_ok("e") && answers.is_ok("v") && answers.0.degraded);
    let error = answers.error("c");
    assert_eq!((error.code, error.reason()), (Code::Cancelled as i32, ErrorReason::Cancelled));
    while let Ok(seen) = mesh.classification.seen.try_recv() {
        seen.over.cancelled().await;
    }
}

#[tokio::test]
async fn a_quorum_out_of_reach_fails_the_call() {
    let mesh = Three::start(UNAVAILABLE, Do::Hang, UNAVAILABLE).await;
    let status = mesh.ask(under(pb::FailurePolicy::Quorum, 2, all())).await.unwrap_err();
    assert_eq!(refusal(&status), (Code::Aborted, "QUORUM_NOT_REACHED".into()));
}

#[tokio::test]
async fn a_step_is_tried_again_like_any_call() {
    let refuse = Do::Refuse(&[("grpc-status", "14")]);
    let (mut bad, mut good) = (Replica::start(refuse).await, Replica::start(embedded()).await);
    let front = Front::before(&[bad.address, good.address]).await;
    let mut hit = 0;
    while hit == 0 {
        front.until_ready(2).await;
        let answers = Answers(client(&front).fan_out(of([embed("e")])).await.unwrap().into_inner());
        hit = bad.count();
        assert!(answers.is_ok("e"));
        assert_eq!((answers.result("e").attempts as usize, good.count()), (1 + hit, 1));
    }
}

#[tokio::test]
async fn a_service_without_replicas_was_never_reached() {
    let front = Front::configured(&[], "[retry]\nready_wait = '20ms'").await;
    let answers = Answers(client(&front).fan_out(of([embed("e")])).await.unwrap().into_inner());
    assert_eq!(answers.error("e").reason(), ErrorReason::NoCapacity);
    assert_eq!(answers.result("e").attempts, 0);
}

#[tokio::test]
async fn a_client_that_leaves_leaves_every_replica() {
    let mut mesh = Three::start(Do::Hang, Do::Hang, Do::Hang).await;
    let mut asking = client(&mesh.front);
    let call = tokio::spawn(async move { asking.fan_out(all()).await });
    let legs = [mesh.embedding.next().await, mesh.classification.next().await, mesh.vision.next().await];
    call.abort();
    for leg in legs {
        leg.over.cancelled().await;
    }
    while mesh.front.metric("gateway_calls_in_flight").await[0].1 > 0.0 {}
}

#[tokio::test]
async fn a_late_call_fails_under_every_policy_and_leaves_every_replica() {
    let mut mesh = Three::start(Do::Hang, Do::Hang, Do::Hang).await;
    for (policy, quorum) in
        [(pb::FailurePolicy::Partial, 0), (pb::FailurePolicy::FailFast, 0), (pb::FailurePolicy::Quorum, 1)]
    {
        let mut request = Request::new(under(policy, quorum, all()));
        request.metadata_mut().insert("grpc-timeout", "1S".parse().unwrap());
        let status = mesh.ask(request).await.unwrap_err();
        assert_eq!(refusal(&status), (Code::DeadlineExceeded, "DEADLINE".into()), "{policy:?}");
        for replica in [&mut mesh.embedding, &mut mesh.classification, &mut mesh.vision] {
            replica.next().await.over.cancelled().await;
        }
    }
}

#[tokio::test]
async fn replies_that_do_not_fit_into_one_response_fail_their_steps() {
    let large = |bytes: usize| {
        let response = EmbedResponse { space_id: "x".repeat(bytes), ..EmbedResponse::default() };
        Do::Reply(framed(&response.encode_to_vec()))
    };
    let more = "[server]\nmessage_bytes_max = '64KiB'\n[hold]\nreply_bytes_max = '1KiB'";
    let mesh = Three::configured(large(40_000), large(40_000), seen(), more).await;
    let answers = mesh.ask(all()).await.unwrap();
    assert!(answers.is_ok("v") && (answers.is_ok("e") ^ answers.is_ok("c")), "{answers:?}");
    let error = answers.error(if answers.is_ok("e") { "c" } else { "e" });
    assert_eq!((error.code, error.reason()), (Code::ResourceExhausted as i32, ErrorReason::MessageTooLarge));
    assert!(error.retry_delay.is_none());
    assert!(answers.0.encoded_len() <= 64 * 1024);
}

#[tokio::test]
async fn what_is_not_a_message_is_the_replicas_fault() {
    let mesh = Three::start(Do::Reply(Bytes::from_static(b"\0\0\0\0\x09cut")), classified(), seen()).await;
    let answers = mesh.ask(all()).await.unwrap();
    assert_eq!(answers.error("e").reason(), ErrorReason::Engine);
    assert!(answers.is_ok("c"));
}
