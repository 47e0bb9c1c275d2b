//! Certificates of every kind that a mesh must refuse, and one that it takes.

use std::{fs, io, net::SocketAddr, path::Path, sync::Arc};

use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
    date_time_ymd,
};
use rustls::{
    AlertDescription, ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
};
use tokio::{io::AsyncReadExt as _, net::TcpStream};
use tokio_rustls::{TlsConnector, client::TlsStream};

/// Signs certificates.
pub(crate) struct Authority(Issuer<'static, KeyPair>);

/// What a client shows in the handshake.
pub(crate) struct Shown {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl Authority {
    /// The mesh's own.
    pub(crate) fn of_mesh(certs: &Path) -> Self {
        let read = |name: &str| fs::read_to_string(certs.join(name)).unwrap();
        Self(Issuer::from_ca_cert_pem(&read("ca.pem"), KeyPair::from_pem(&read("ca.key")).unwrap()).unwrap())
    }

    /// One that nobody knows.
    pub(crate) fn unknown() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        Self(Issuer::new(params, KeyPair::generate().unwrap()))
    }

    /// A certificate for these SPIFFE identities.
    pub(crate) fn issue(&self, identities: &[&str]) -> Shown {
        self.sign(identities, |_| {})
    }

    /// One that was valid once.
    pub(crate) fn issue_expired(&self, identity: &str) -> Shown {
        self.sign(&[identity], |params| {
            (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2020, 2, 1));
        })
    }

    fn sign(&self, identities: &[&str], change: impl FnOnce(&mut CertificateParams)) -> Shown {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = identities.iter().map(|id| SanType::URI((*id).try_into().unwrap())).collect();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        change(&mut params);
        let certificate = params.signed_by(&key, &self.0).unwrap();
        Shown { chain: vec![certificate.der().clone()], key: PrivateKeyDer::try_from(key.serialize_der()).unwrap() }
    }
}

/// Shakes hands as any TLS client does, trusting the mesh's authority for the name `localhost`.
pub(crate) async fn shake_hands(
    address: SocketAddr,
    ca: &Path,
    shown: Option<Shown>,
) -> io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(ca).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots);
    let mut config = match shown {
        Some(shown) => config.with_client_auth_cert(shown.chain, shown.key).unwrap(),
        None => config.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    let stream = TcpStream::connect(address).await?;
    TlsConnector::from(Arc::new(config)).connect(ServerName::try_from("localhost").unwrap(), stream).await
}

/// How the server ends the handshake. In TLS 1.3 a client is done before its certificate is judged, so the verdict comes
/// when it reads.
pub(crate) async fn verdict(address: SocketAddr, ca: &Path, shown: Option<Shown>) -> Option<AlertDescription> {
    let mut stream = shake_hands(address, ca, shown).await.unwrap();
    let error = stream.read_u8().await.err()?;
    match error.downcast::<rustls::Error>() {
        Ok(rustls::Error::AlertReceived(alert)) => Some(alert),
        other => panic!("no alert: {other:?}"),
    }
}
