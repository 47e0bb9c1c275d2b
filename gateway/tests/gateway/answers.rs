//! What passes through, and what the gateway answers for the whole mesh.

use bytes::Bytes;
use prost::Message as _;
use proto::model::v1::{self as pb, model_service_client::ModelServiceClient};
use tokio_stream::StreamExt as _;
use tonic::Code;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};
use tonic_reflection::pb::{v1, v1alpha};

use crate::{
    certificates::CLIENT,
    client::{Client, EMBED, framed, request},
    front::{Front, SERVICE},
    replica::{Do, Replica},
};

fn origin() -> http::Uri {
    "https://localhost".parse().unwrap()
}

#[tokio::test]
async fn bytes_and_headers_pass_through_and_the_gateway_speaks_for_the_caller() {
    let mut replica = Replica::start(Do::Echo).await;
    let front = Front::before(&[replica.address]).await;
    let message = b"\xfa\x3e\x03abc, a field of no contract";
    let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let call = request(EMBED)
        .header("tamis-caller", "spiffe://tamis.local/forged")
        .header("traceparent", parent)
        .header("x-tenant", "a");
    let answer = front.client.call(call, framed(message)).await;
    assert_eq!((answer.status().code(), answer.data), (Code::Ok, framed(message)));
    assert_eq!(answer.headers["x-replica"], "yes");
    let seen = replica.next().await;
    assert_eq!((seen.head.uri.path(), seen.message), (EMBED, framed(message)));
    let header = |name: &str| seen.head.headers.get_all(name).iter().map(|v| v.to_str().unwrap()).collect::<Vec<_>>();
    assert_eq!(header("tamis-caller"), [CLIENT]);
    assert_eq!(header("x-tenant"), ["a"]);
    let trace = header("traceparent")[0];
    assert_eq!((&trace[..36], &trace[52..]), (&parent[..36], &parent[52..]));
    assert_ne!(&trace[36..52], &parent[36..52], "the gateway is a span of its own");
}

#[tokio::test]
async fn load_reports_stay_between_replica_and_gateway() {
    for act in [Do::Echo, Do::Refuse(&[("grpc-status", "3")]), Do::Status(&[("grpc-status", "3")])] {
        let replica = Replica::start(act).await;
        let front = Front::before(&[replica.address]).await;
        let answer = front.client.embed(b"text").await;
        assert!(
            !answer.headers.contains_key(chassis::load::TRAILER)
                && !answer.trailers.contains_key(chassis::load::TRAILER)
        );
    }
}

#[tokio::test]
async fn replies_longer_than_what_is_held_pass_through_whole() {
    let long = framed(&vec![7; 300_000]);
    let replica = Replica::start(Do::Reply(long.clone())).await;
    let front = Front::configured(&[replica.address], "[hold]\nreply_bytes_max = '1KiB'").await;
    let answer = front.client.embed(b"text").await;
    assert_eq!((answer.status().code(), answer.data), (Code::Ok, long));
    assert!(!answer.trailers.contains_key(chassis::load::TRAILER));
}

#[tokio::test]
async fn large_requests_pass_through_whole() {
    let replica = Replica::start(Do::Echo).await;
    let front = Front::before(&[replica.address]).await;
    let message: Vec<_> = (0..4_000_000u32).map(|n| (n % 251) as u8).collect();
    assert_eq!(front.client.embed(&message).await.data, framed(&message));
}

#[tokio::test]
async fn health_is_that_of_the_mesh() {
    let replica = Replica::start(Do::Echo).await;
    let front = Front::before(&[replica.address]).await;
    front.until_ready(1).await;
    let mut client = HealthClient::with_origin(front.client.clone(), origin());
    let mut check = async |service: &str| client.check(HealthCheckRequest { service: service.into() }).await;
    assert_eq!(check("").await.unwrap().into_inner().status(), ServingStatus::Serving);
    assert_eq!(check(SERVICE).await.unwrap().into_inner().status(), ServingStatus::Serving);
    assert_eq!(check("no.such.Service").await.unwrap_err().code(), Code::NotFound);
    replica.drain().await;
    front.until(SERVICE, ServingStatus::NotServing).await;
    assert_eq!(check("").await.unwrap().into_inner().status(), ServingStatus::Serving);
}

#[tokio::test]
async fn probes_need_no_certificate() {
    let front = Front::before(&[]).await;
    let channel = tonic::transport::Endpoint::from_shared(format!("http://{}", front.addresses.health)).unwrap();
    let mut client = HealthClient::new(channel.connect().await.unwrap());
    let answer = client.check(HealthCheckRequest::default()).await.unwrap();
    assert_eq!(answer.into_inner().status(), ServingStatus::Serving);
}

#[tokio::test]
async fn reflection_v1_lists_and_describes_the_mesh() {
    let front = Front::before(&[]).await;
    let mut client = v1::server_reflection_client::ServerReflectionClient::with_origin(front.client.clone(), origin());
    let asks = ["*", SERVICE].map(|name| match name {
        "*" => v1::server_reflection_request::MessageRequest::ListServices(String::new()),
        name => v1::server_reflection_request::MessageRequest::FileContainingSymbol(name.into()),
    });
    let asks = asks.map(|ask| v1::ServerReflectionRequest { host: String::new(), message_request: Some(ask) });
    let answers = client.server_reflection_info(tokio_stream::iter(asks)).await.unwrap().into_inner();
    let answers: Vec<_> = answers.map(|answer| answer.unwrap().message_response.unwrap()).collect().await;
    let v1::server_reflection_response::MessageResponse::ListServicesResponse(list) = &answers[0] else {
        panic!("{answers:?}")
    };
    let names: Vec<_> = list.service.iter().map(|service| service.name.as_str()).collect();
    assert_eq!(
        names,
        [
            "grpc.health.v1.Health",
            "grpc.reflection.v1.ServerReflection",
            "grpc.reflection.v1alpha.ServerReflection",
            "tamis.embedding.v1.EmbeddingService",
            "tamis.gateway.v1.GatewayService",
            "tamis.model.v1.ModelService",
        ]
    );
    let v1::server_reflection_response::MessageResponse::FileDescriptorResponse(file) = &answers[1] else {
        panic!("{answers:?}")
    };
    let file = prost_types::FileDescriptorProto::decode(file.file_descriptor_proto[0].as_slice()).unwrap();
    assert_eq!(file.package(), "tamis.embedding.v1");
}

#[tokio::test]
async fn reflection_v1alpha_answers_older_clients() {
    let front = Front::before(&[]).await;
    let mut client =
        v1alpha::server_reflection_client::ServerReflectionClient::with_origin(front.client.clone(), origin());
    let list = v1alpha::server_reflection_request::MessageRequest::ListServices(String::new());
    let ask = v1alpha::ServerReflectionRequest { host: String::new(), message_request: Some(list) };
    let mut answers = client.server_reflection_info(tokio_stream::once(ask)).await.unwrap().into_inner();
    let answer = answers.message().await.unwrap().unwrap().message_response.unwrap();
    let v1alpha::server_reflection_response::MessageResponse::ListServicesResponse(list) = answer else { panic!() };
    assert!(list.service.iter().any(|service| service.name == SERVICE));
}

fn models(names: &[&str]) -> Bytes {
    let models = names.iter().map(|name| pb::Model { name: (*name).into(), ..pb::Model::default() }).collect();
    framed(&pb::ListModelsResponse { models, next_page_token: String::new() }.encode_to_vec())
}

/// A mesh of two services, each with its models.
async fn two_services(first: &Replica, second: &Replica) -> Front {
    let more = format!(
        "[services.vision]\nserves = ['tamis.vision.v1.VisionService']\nspiffe_id = '{}'\nendpoints = ['{}']",
        crate::certificates::REPLICA,
        second.address
    );
    let front = Front::configured(&[first.address], &more).await;
    front.until_ready(2).await;
    front
}

#[tokio::test]
async fn models_of_all_services_are_listed_in_pages() {
    let (first, second) =
        (Replica::start(Do::Reply(models(&["m", "z"]))).await, Replica::start(Do::Reply(models(&["a"]))).await);
    let front = two_services(&first, &second).await;
    let mut client = ModelServiceClient::with_origin(front.client.clone(), origin());
    let mut page = async |page_token: String| {
        let answer = client.list_models(pb::ListModelsRequest { page_size: 2, page_token }).await.unwrap().into_inner();
        (answer.models.into_iter().map(|model| model.name).collect::<Vec<_>>(), answer.next_page_token)
    };
    let (names, token) = page(String::new()).await;
    assert_eq!(names, ["a", "m"]);
    assert_eq!(page(token).await, (vec!["z".to_owned()], String::new()));
}

#[tokio::test]
async fn a_service_that_is_down_hides_its_own_models_only() {
    let (first, second) = (Replica::start(Do::Reply(models(&["m"]))).await, Replica::start(Do::Echo).await);
    let front = two_services(&first, &second).await;
    second.drain().await;
    front.until("tamis.vision.v1.VisionService", ServingStatus::NotServing).await;
    let mut client = ModelServiceClient::with_origin(front.client.clone(), origin());
    let answer = client.list_models(pb::ListModelsRequest::default()).await.unwrap().into_inner();
    assert_eq!(answer.models.into_iter().map(|model| model.name).collect::<Vec<_>>(), ["m"]);
}

#[tokio::test]
async fn a_model_is_found_wherever_it_is() {
    let model = pb::Model { name: "m".into(), ..pb::Model::default() };
    let found = framed(&pb::GetModelResponse { model: Some(model.clone()) }.encode_to_vec());
    let (first, second) =
        (Replica::start(Do::Refuse(&[("grpc-status", "5")])).await, Replica::start(Do::Reply(found)).await);
    let front = two_services(&first, &second).await;
    let mut client = ModelServiceClient::with_origin(front.client.clone(), origin());
    let answer = client.get_model(pb::GetModelRequest { name: "m".into() }).await.unwrap();
    assert_eq!(answer.into_inner().model, Some(model));
    second.drain().await;
    front.until("tamis.vision.v1.VisionService", ServingStatus::NotServing).await;
    // Only the one that is down could know.
    assert_eq!(client.get_model(pb::GetModelRequest { name: "m".into() }).await.unwrap_err().code(), Code::Unavailable);
    assert_eq!(client.get_model(pb::GetModelRequest::default()).await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn a_replica_found_by_name_is_called() {
    let mut replica = Replica::start(Do::Echo).await;
    let front = Front::configured(&[], &format!("dns = 'localhost:{}'", replica.address.port())).await;
    let answer = Client::connect(front.addresses.grpc, CLIENT).await.embed(b"text").await;
    assert_eq!(answer.status().code(), Code::Ok);
    replica.next().await;
}
