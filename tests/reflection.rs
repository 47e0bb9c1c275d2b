//! Server reflection for the whole mesh, in both versions.

use std::collections::BTreeSet;

use http::uri::PathAndQuery;
use prost::Message as _;
use prost_types::FileDescriptorProto;
use tonic::{Code, Request, Status, client::Grpc};
use tonic_prost::ProstCodec;
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, ServerReflectionResponse, server_reflection_request::MessageRequest,
    server_reflection_response::MessageResponse,
};

use crate::harness::{Connection, ORIGIN, mesh};

const SERVED: [&str; 8] = [
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
    "tamis.classification.v1.ClassificationService",
    "tamis.embedding.v1.EmbeddingService",
    "tamis.gateway.v1.GatewayService",
    "tamis.model.v1.ModelService",
    "tamis.vision.v1.VisionService",
];

/// Asks one version; their messages are the same on the wire.
async fn ask(connection: Connection, version: &str, question: MessageRequest) -> Result<MessageResponse, Status> {
    let path = format!("/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo");
    let request = ServerReflectionRequest { message_request: Some(question), ..Default::default() };
    let mut client = Grpc::with_origin(connection, http::Uri::from_static(ORIGIN));
    client.ready().await.unwrap();
    let codec = ProstCodec::<ServerReflectionRequest, ServerReflectionResponse>::default();
    let requests = Request::new(futures_util::stream::iter([request]));
    let replies = client.streaming(requests, PathAndQuery::try_from(path).unwrap(), codec).await?;
    Ok(replies.into_inner().message().await?.unwrap().message_response.unwrap())
}

async fn check(version: &str) {
    let mesh = mesh();
    let connection = mesh.client().await.0;
    let list = ask(connection.clone(), version, MessageRequest::ListServices(String::new())).await.unwrap();
    let MessageResponse::ListServicesResponse(list) = list else { panic!("{list:?}") };
    let names: BTreeSet<_> = list.service.into_iter().map(|service| service.name).collect();
    assert_eq!(names, SERVED.map(str::to_owned).into());

    let symbol = MessageRequest::FileContainingSymbol("tamis.vision.v1.VisionService".into());
    let files = ask(connection.clone(), version, symbol).await.unwrap();
    let MessageResponse::FileDescriptorResponse(files) = files else { panic!("{files:?}") };
    let mut files =
        files.file_descriptor_proto.iter().map(|file| FileDescriptorProto::decode(file.as_slice()).unwrap());
    let vision = files.find(|file| file.package() == "tamis.vision.v1").unwrap();
    let methods: Vec<_> = vision.service[0].method.iter().map(|method| method.name()).collect();
    assert_eq!(methods, ["ClassifyImages", "EmbedImages", "UploadImage"]);
    assert!(vision.source_code_info.is_some(), "the comments, which are the manual, are missing");

    let unknown = MessageRequest::FileContainingSymbol("no.such.Service".into());
    // Both are in use: tonic ends the stream, others answer in it.
    match ask(connection, version, unknown).await {
        Err(status) => assert_eq!(status.code(), Code::NotFound),
        Ok(answer) => assert!(matches!(answer, MessageResponse::ErrorResponse(_)), "{answer:?}"),
    }
}

#[tokio::test]
async fn version_1_lists_and_describes_the_mesh() {
    check("v1").await;
}

#[tokio::test]
async fn version_1_alpha_lists_and_describes_the_mesh() {
    check("v1alpha").await;
}
