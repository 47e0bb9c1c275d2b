//! A certificate authority of this test run.

use std::{fs, sync::OnceLock};

use chassis::tls::{Credentials, TlsSettings};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};
use tempfile::TempDir;

/// The identity of the gateway in these tests.
pub(crate) const GATEWAY: &str = "spiffe://tamis.local/gateway";
/// The identity of every replica in these tests.
pub(crate) const REPLICA: &str = "spiffe://tamis.local/service/embedding";
/// A client that may call everything.
pub(crate) const CLIENT: &str = "spiffe://tamis.local/client/dev";

fn authority() -> &'static CertifiedIssuer<'static, KeyPair> {
    static AUTHORITY: OnceLock<CertifiedIssuer<'static, KeyPair>> = OnceLock::new();
    AUTHORITY.get_or_init(|| {
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
    })
}

/// Files of a certificate with this URI among its names, or with none; they go with the folder.
pub(crate) fn files(uri: Option<&str>) -> (TempDir, TlsSettings) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(["localhost".to_owned()]).unwrap();
    params.subject_alt_names.extend(uri.map(|uri| SanType::URI(uri.try_into().unwrap())));
    let certificate = params.signed_by(&key, authority()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, pem: String| {
        let path = folder.path().join(name);
        fs::write(&path, pem).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let settings = TlsSettings {
        ca: write("ca.pem", authority().pem()),
        cert: write("own.pem", certificate.pem()),
        key: write("own.key", key.serialize_pem()),
    };
    (folder, settings)
}

/// Credentials with a SPIFFE identity.
pub(crate) fn credentials(identity: &str) -> Credentials {
    let (_folder, settings) = files(Some(identity));
    Credentials::load(&settings).unwrap()
}
