//! What a certificate says, for people and for decisions.

use std::{
    fmt,
    net::IpAddr,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::Context as _;
use chassis::spiffe::{NotSpiffe, SpiffeId};
use rcgen::{KeyPair, PublicKeyData as _};
use rustls::{
    CertificateError, Error, RootCertStore,
    client::verify_server_cert_signed_by_trust_anchor,
    pki_types::{CertificateDer, UnixTime, pem::PemObject as _},
    server::ParsedCertificate,
};
use x509_parser::{extensions::GeneralName, prelude::FromDer as _, prelude::X509Certificate, time::ASN1Time};

/// The contents of a certificate.
#[derive(Debug)]
pub(crate) struct Facts {
    pub(crate) id: Result<SpiffeId, NotSpiffe>,
    pub(crate) subject: String,
    /// DNS names and IP addresses.
    pub(crate) names: Vec<String>,
    pub(crate) issuer: String,
    pub(crate) not_before: SystemTime,
    pub(crate) not_after: SystemTime,
    pub(crate) is_ca: bool,
    /// SubjectPublicKeyInfo as DER.
    public_key: Vec<u8>,
}

/// The private key beside a certificate.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Key {
    /// It is the certificate's; its file mode.
    Matches(u32),
    /// It belongs to another certificate.
    Differs,
    Missing,
    Unreadable(String),
}

/// Reads the first certificate of a PEM file.
pub(crate) fn read(path: &Path) -> anyhow::Result<CertificateDer<'static>> {
    CertificateDer::from_pem_file(path).with_context(|| format!("cannot read a certificate from {}", path.display()))
}

/// Whether the certificate was signed by this authority, no matter whether it is valid now.
pub(crate) fn signed_by(certificate: &CertificateDer<'_>, authority: &CertificateDer<'_>) -> bool {
    let begin = |der| Facts::of(der).map(|facts| facts.not_before);
    let (Ok(begin), Ok(authority_begin)) = (begin(certificate), begin(authority)) else { return false };
    let then = begin.max(authority_begin).duration_since(UNIX_EPOCH).unwrap_or_default() + Duration::from_secs(1);
    let mut roots = RootCertStore::empty();
    let Ok(parsed) = ParsedCertificate::try_from(certificate) else { return false };
    if roots.add(authority.clone().into_owned()).is_err() {
        return false;
    }
    let algorithms = rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms.all;
    let now = UnixTime::since_unix_epoch(then);
    let verdict = verify_server_cert_signed_by_trust_anchor(&parsed, &Arc::new(roots), &[], now, algorithms);
    !matches!(verdict, Err(Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature)))
}

// === impl Facts ===

impl Facts {
    /// Reads a certificate.
    pub(crate) fn of(der: &CertificateDer<'_>) -> anyhow::Result<Self> {
        let (_, certificate) = X509Certificate::from_der(der).context("not a certificate")?;
        let alternative = certificate.subject_alternative_name().context("its names cannot be read")?;
        let names = alternative.iter().flat_map(|extension| &extension.value.general_names).filter_map(name).collect();
        Ok(Self {
            id: SpiffeId::of_certificate(der),
            subject: common_name(certificate.subject()),
            names,
            issuer: common_name(certificate.issuer()),
            not_before: time(certificate.validity().not_before),
            not_after: time(certificate.validity().not_after),
            is_ca: certificate.is_ca(),
            public_key: certificate.public_key().raw.to_vec(),
        })
    }

    /// Whole days until it ends; nothing once it has.
    pub(crate) fn days_left(&self, now: SystemTime) -> Option<u64> {
        self.not_after.duration_since(now).ok().filter(|left| !left.is_zero()).map(|left| left.as_secs() / 86_400)
    }

    /// Looks at the key in a file.
    pub(crate) fn key(&self, path: &Path) -> Key {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Key::Missing,
            Err(error) => return Key::Unreadable(error.to_string()),
        };
        match KeyPair::from_pem(&text) {
            Ok(pair) if pair.subject_public_key_info() == self.public_key => Key::Matches(mode(path)),
            Ok(_) => Key::Differs,
            Err(error) => Key::Unreadable(error.to_string()),
        }
    }
}

// === impl Key ===

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Matches(mode) if mode & 0o077 == 0 => write!(f, "matches, {mode:04o}"),
            Self::Matches(mode) => write!(f, "matches, {mode:04o}: others may read it"),
            Self::Differs => f.write_str("belongs to another certificate"),
            Self::Missing => f.write_str("not here"),
            Self::Unreadable(why) => write!(f, "unreadable: {why}"),
        }
    }
}

fn name(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => {
            let four = <[u8; 4]>::try_from(*bytes).map(IpAddr::from);
            let six = || <[u8; 16]>::try_from(*bytes).map(IpAddr::from);
            four.or_else(|_| six()).ok().map(|address| address.to_string())
        }
        _ => None,
    }
}

fn common_name(name: &x509_parser::x509::X509Name<'_>) -> String {
    let common = name.iter_common_name().next().and_then(|attribute| attribute.as_str().ok());
    common.map_or_else(|| name.to_string(), str::to_owned)
}

fn time(time: ASN1Time) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(u64::try_from(time.timestamp()).unwrap_or(0))
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).map_or(0, |metadata| metadata.permissions().mode() & 0o777)
}
