//! Handshakes on loopback, with certificates that the tests make.

use std::path::Path;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};
use tempfile::TempDir;
use tokio::{io::AsyncReadExt as _, net::TcpListener};

use super::*;

pub(crate) type Ca = CertifiedIssuer<'static, KeyPair>;

pub(crate) fn ca() -> Ca {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// Writes a certificate for `uris` and loads it; it trusts `trusted`.
pub(crate) fn credentials(dir: &Path, issuer: &Ca, trusted: &Ca, uris: &[&str]) -> Result<Credentials, TlsError> {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.subject_alt_names = uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap())).collect();
    let certificate = params.signed_by(&key, issuer).unwrap();
    let path = |name: &str| dir.join(name).display().to_string();
    let settings = TlsSettings { ca: path("ca.pem"), cert: path("cert.pem"), key: path("key.pem") };
    std::fs::write(&settings.ca, trusted.pem()).unwrap();
    std::fs::write(&settings.cert, certificate.pem()).unwrap();
    std::fs::write(&settings.key, key.serialize_pem()).unwrap();
    Credentials::load(&settings)
}

const SERVER: &str = "spiffe://tamis.local/gateway";
const CLIENT: &str = "spiffe://tamis.local/client/dev";

/// A handshake; what the server learnt of the client, or either side's error.
async fn shake(server: &Credentials, client: &Credentials, expected: &str) -> Result<SpiffeId, String> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let acceptor = server.acceptor();
    let accepted = async {
        let (stream, _) = listener.accept().await.unwrap();
        acceptor.accept(stream, Duration::from_secs(10)).await.map_err(|e| e.to_string())?.1.map_err(|e| e.to_string())
    };
    let connector = client.connector(&expected.parse().unwrap()).unwrap();
    let connected = async {
        let mut stream = connector.connect(&address).await.map_err(|e| e.to_string())?;
        // In TLS 1.3 a client learns of its own refusal with the first read.
        stream.read(&mut [0]).await.map_err(|e| e.to_string())
    };
    let (accepted, connected) = tokio::join!(accepted, connected);
    match (accepted, connected) {
        (Ok(id), _) => Ok(id),
        (Err(server), Err(client)) => Err(format!("{server}; {client}")),
        (Err(server), Ok(_)) => Err(server),
    }
}

#[tokio::test]
async fn both_sides_learn_who_the_other_is() {
    let (ca, a, b) = (ca(), TempDir::new().unwrap(), TempDir::new().unwrap());
    let server = credentials(a.path(), &ca, &ca, &[SERVER]).unwrap();
    let client = credentials(b.path(), &ca, &ca, &[CLIENT]).unwrap();
    assert_eq!(shake(&server, &client, SERVER).await.unwrap().as_str(), CLIENT);
}

#[tokio::test]
async fn a_server_with_another_identity_is_refused() {
    let (ca, a, b) = (ca(), TempDir::new().unwrap(), TempDir::new().unwrap());
    let server = credentials(a.path(), &ca, &ca, &["spiffe://tamis.local/service/vision"]).unwrap();
    let client = credentials(b.path(), &ca, &ca, &[CLIENT]).unwrap();
    let error = shake(&server, &client, SERVER).await.unwrap_err();
    assert!(error.contains("the server is spiffe://tamis.local/service/vision"), "{error}");
}

#[tokio::test]
async fn a_client_of_another_authority_is_refused() {
    let (ours, theirs, a, b) = (ca(), ca(), TempDir::new().unwrap(), TempDir::new().unwrap());
    let server = credentials(a.path(), &ours, &ours, &[SERVER]).unwrap();
    let client = credentials(b.path(), &theirs, &ours, &[CLIENT]).unwrap();
    assert!(shake(&server, &client, SERVER).await.is_err());
}

#[test]
fn a_certificate_needs_exactly_one_identity() {
    let (ca, dir) = (ca(), TempDir::new().unwrap());
    for uris in [&[][..], &[SERVER, CLIENT][..], &["https://tamis.local/"][..]] {
        assert!(matches!(credentials(dir.path(), &ca, &ca, uris), Err(TlsError::Identity(..))), "{uris:?}");
    }
}

#[test]
fn a_missing_file_is_named() {
    let settings = TlsSettings { ca: "/nowhere/ca.pem".into(), cert: String::new(), key: String::new() };
    let message = Credentials::load(&settings).err().unwrap().to_string();
    assert!(message.contains("/nowhere/ca.pem") && message.contains("tamis certs init"), "{message}");
}
