//! The development authority: a P-256 key that signs the certificates of the mesh.

use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, SanType,
};

use super::leaf::Leaf;
use crate::role::TRUST_DOMAIN;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// How long the authority lasts.
const AUTHORITY_DAYS: u32 = 3650;
/// Certificates begin this long ago, for machines whose clocks are behind.
const CLOCK_SKEW: Duration = Duration::from_secs(5 * 60);

/// A certificate and its private key as PEM.
pub(crate) struct Pair {
    pub(crate) certificate: String,
    pub(crate) key: String,
}

/// Signs certificates.
pub(crate) struct Authority(Issuer<'static, KeyPair>);

impl Authority {
    /// Makes a new authority.
    pub(crate) fn create(now: SystemTime) -> anyhow::Result<(Self, Pair)> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::default();
        // Part of the key, so that people can tell one development authority from another.
        let mark: String = key.public_key_raw().iter().rev().take(3).map(|byte| format!("{byte:02x}")).collect();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, format!("Tamis development CA {mark}"));
        params.subject_alt_names = vec![SanType::URI(format!("spiffe://{TRUST_DOMAIN}").try_into()?)];
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        valid(&mut params, now, AUTHORITY_DAYS);
        let certificate = params.self_signed(&key)?;
        let pair = Pair { certificate: certificate.pem(), key: key.serialize_pem() };
        Ok((Self(Issuer::new(params, key)), pair))
    }

    /// An authority that was made before.
    pub(crate) fn parse(pair: &Pair) -> anyhow::Result<Self> {
        let key = KeyPair::from_pem(&pair.key).context("its key cannot be read")?;
        Ok(Self(Issuer::from_ca_cert_pem(&pair.certificate, key).context("its certificate cannot be read")?))
    }

    /// Makes a key and a certificate for it.
    pub(crate) fn issue(&self, leaf: &Leaf, now: SystemTime, days: u32) -> anyhow::Result<Pair> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::new(leaf.names.clone()).context("a name is no DNS name")?;
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, leaf.common_name());
        params.subject_alt_names.insert(0, SanType::URI(leaf.id.as_str().try_into()?));
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        // Everybody is a server to some and a client to others; who may call whom is decided by identity.
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        valid(&mut params, now, days);
        let certificate = params.signed_by(&key, &self.0)?;
        Ok(Pair { certificate: certificate.pem(), key: key.serialize_pem() })
    }
}

fn valid(params: &mut CertificateParams, now: SystemTime, days: u32) {
    params.not_before = (now - CLOCK_SKEW).into();
    params.not_after = (now + DAY * days).into();
}

#[cfg(test)]
mod tests {
    use rustls::pki_types::{CertificateDer, pem::PemObject as _};
    use x509_parser::prelude::{FromDer as _, X509Certificate};

    use super::*;
    use crate::certs::facts::{Facts, signed_by};

    fn der(pair: &Pair) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(pair.certificate.as_bytes()).unwrap()
    }

    #[test]
    fn a_leaf_carries_its_identity_names_and_purposes() {
        let now = SystemTime::now();
        let (authority, _) = Authority::create(now).unwrap();
        let leaf = Leaf::parse("service/embedding", &["mesh.example".into()]).unwrap();
        let der = der(&authority.issue(&leaf, now, 90).unwrap());
        let (_, certificate) = X509Certificate::from_der(&der).unwrap();
        let usage = certificate.key_usage().unwrap().unwrap();
        assert!(usage.critical && usage.value.digital_signature() && !usage.value.key_cert_sign());
        let purposes = certificate.extended_key_usage().unwrap().unwrap().value;
        assert!(purposes.server_auth && purposes.client_auth && !purposes.any);
        assert!(!certificate.is_ca());
        let facts = Facts::of(&der).unwrap();
        assert_eq!(facts.id.as_ref().unwrap(), &leaf.id);
        assert_eq!(facts.names, ["localhost", "127.0.0.1", "::1", "mesh.example"]);
        assert_eq!(facts.days_left(now - DAY / 2), Some(90));
    }

    #[test]
    fn an_authority_signs_certificates_and_nothing_below_other_authorities() {
        let now = SystemTime::now();
        let (_, pair) = Authority::create(now).unwrap();
        let der = der(&pair);
        let (_, certificate) = X509Certificate::from_der(&der).unwrap();
        let constraints = certificate.basic_constraints().unwrap().unwrap();
        assert!(constraints.critical && constraints.value.ca);
        assert_eq!(constraints.value.path_len_constraint, Some(0));
        assert!(certificate.key_usage().unwrap().unwrap().value.key_cert_sign());
        assert_eq!(Facts::of(&der).unwrap().days_left(now - DAY / 2), Some(3650));
    }

    #[test]
    fn an_authority_signs_the_same_after_it_was_stored() {
        let now = SystemTime::now();
        let (_, stored) = Authority::create(now).unwrap();
        let (_, other) = Authority::create(now).unwrap();
        let leaf = Leaf::parse("client/dev", &[]).unwrap();
        let signed = der(&Authority::parse(&stored).unwrap().issue(&leaf, now, 1).unwrap());
        assert!(signed_by(&signed, &der(&stored)));
        assert!(!signed_by(&signed, &der(&other)));
    }

    #[test]
    fn an_expired_certificate_is_still_known_by_its_signature() {
        let long_ago = SystemTime::now() - DAY * 100;
        let (authority, pair) = Authority::create(long_ago).unwrap();
        let leaf = Leaf::parse("client/dev", &[]).unwrap();
        let expired = der(&authority.issue(&leaf, long_ago, 90).unwrap());
        assert!(signed_by(&expired, &der(&pair)));
        assert_eq!(Facts::of(&expired).unwrap().days_left(SystemTime::now()), None);
    }
}
