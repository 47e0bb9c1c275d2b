//! Who may talk to whom.

use proto::common::v1::ErrorReason;
use rustls::AlertDescription;
use tonic::Code;

use crate::{
    certificates::{Authority, Shown, shake_hands, verdict},
    harness::{Channels, Connection, GATEWAY, connect, credentials, embed, mesh, refused},
};

const DEV: &str = "spiffe://tamis.local/client/dev";

/// A connection with a certificate that the mesh's own authority signed.
async fn client(identities: &[&str]) -> Channels {
    let mesh = mesh();
    let shown = Authority::of_mesh(&mesh.folder.certs()).issue(identities);
    let stream = shake_hands(mesh.gateway().grpc, &mesh.folder.certs().join("ca.pem"), Some(shown)).await.unwrap();
    Channels(Connection::over(stream).await.unwrap())
}

async fn refused_in_the_handshake(shown: Option<Shown>, expected: AlertDescription) {
    let mesh = mesh();
    let alert = verdict(mesh.gateway().grpc, &mesh.folder.certs().join("ca.pem"), shown).await;
    assert_eq!(alert, Some(expected));
}

#[tokio::test]
async fn a_client_without_a_certificate_is_refused_in_the_handshake() {
    refused_in_the_handshake(None, AlertDescription::CertificateRequired).await;
}

#[tokio::test]
async fn a_certificate_of_another_authority_is_refused_in_the_handshake() {
    refused_in_the_handshake(Some(Authority::unknown().issue(&[DEV])), AlertDescription::UnknownCA).await;
}

#[tokio::test]
async fn an_expired_certificate_is_refused_in_the_handshake() {
    let expired = Authority::of_mesh(&mesh().folder.certs()).issue_expired(DEV);
    refused_in_the_handshake(Some(expired), AlertDescription::CertificateExpired).await;
}

#[tokio::test]
async fn services_refuse_strangers_in_the_handshake_too() {
    let mesh = mesh();
    let ca = mesh.folder.certs().join("ca.pem");
    let address = mesh.replicas()[0].grpc;
    assert_eq!(verdict(address, &ca, None).await, Some(AlertDescription::CertificateRequired));
    let unknown = Authority::unknown().issue(&[GATEWAY]);
    assert_eq!(verdict(address, &ca, Some(unknown)).await, Some(AlertDescription::UnknownCA));
}

#[tokio::test]
async fn a_client_refuses_a_gateway_of_another_authority_or_identity() {
    let mesh = mesh();
    let credentials = credentials(&mesh.folder.certs(), "client-dev");
    let wrong =
        connect(mesh.gateway().grpc, &credentials, "spiffe://tamis.local/service/embedding").await.err().unwrap();
    assert!(wrong.to_string().contains(GATEWAY), "{wrong}");
    assert!(connect(mesh.gateway().grpc, &credentials, GATEWAY).await.is_ok());
}

#[tokio::test]
async fn the_development_client_may_call() {
    client(&[DEV]).await.embedding().embed(embed(["a"])).await.unwrap();
}

#[tokio::test]
async fn an_identity_without_permission_is_denied() {
    for identity in
        ["spiffe://tamis.local/visitor", "spiffe://other.domain/client/dev", "spiffe://tamis.local/clientele"]
    {
        let status = client(&[identity]).await.embedding().embed(embed(["a"])).await.unwrap_err();
        refused(&status, Code::PermissionDenied, ErrorReason::NotAllowed);
        assert!(status.message().contains(identity), "{status:?}");
    }
}

#[tokio::test]
async fn a_certificate_without_exactly_one_identity_is_unauthenticated() {
    for identities in [&[][..], &[DEV, "spiffe://tamis.local/client/other"], &["https://tamis.local/client/dev"]] {
        let status = client(identities).await.embedding().embed(embed(["a"])).await.unwrap_err();
        refused(&status, Code::Unauthenticated, ErrorReason::NoIdentity);
    }
}

#[tokio::test]
async fn a_client_may_not_go_round_the_gateway() {
    let mesh = mesh();
    let replica = mesh.replicas().into_iter().find(|replica| replica.role == "embedding").unwrap();
    let credentials = credentials(&mesh.folder.certs(), "client-dev");
    let direct = connect(replica.grpc, &credentials, "spiffe://tamis.local/service/embedding").await.unwrap();
    let status = direct.embedding().embed(embed(["a"])).await.unwrap_err();
    refused(&status, Code::PermissionDenied, ErrorReason::NotAllowed);
}
