//! SPIFFE identities: who a certificate says that its holder is.
//!
//! Source: the SPIFFE-ID and X509-SVID specifications of the SPIFFE project.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};
use x509_parser::{extensions::GeneralName, prelude::FromDer as _};

/// The longest identity that the specification allows, in bytes.
const BYTES_MAX: usize = 2048;

/// A SPIFFE identity such as `spiffe://tamis.local/gateway`: a trust domain and a path.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct SpiffeId(Arc<str>);

impl SpiffeId {
    /// The identity as it stands in certificates.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The identity in the first certificate of a verified chain.
    ///
    /// # Errors
    /// When the certificate carries no URI, more than one, or one that is no SPIFFE identity: an X509-SVID has exactly one.
    pub fn of_certificate(der: &[u8]) -> Result<Self, NotSpiffe> {
        let (_, certificate) =
            x509_parser::certificate::X509Certificate::from_der(der).map_err(|_| NotSpiffe::Unreadable)?;
        let names = certificate.subject_alternative_name().map_err(|_| NotSpiffe::Unreadable)?;
        let mut uris = names
            .iter()
            .flat_map(|extension| &extension.value.general_names)
            .filter_map(|name| if let GeneralName::URI(uri) = name { Some(*uri) } else { None });
        match (uris.next(), uris.next()) {
            (Some(uri), None) => uri.parse(),
            (None, _) => Err(NotSpiffe::Missing),
            (Some(_), Some(_)) => Err(NotSpiffe::Several),
        }
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for SpiffeId {
    type Err = NotSpiffe;

    fn from_str(text: &str) -> Result<Self, NotSpiffe> {
        let malformed = || NotSpiffe::Malformed(text.chars().take(100).collect());
        let rest = text.strip_prefix("spiffe://").ok_or_else(malformed)?;
        let (domain, path) = rest.split_once('/').unwrap_or((rest, "-"));
        let in_domain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-._".contains(c);
        let in_segment = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
        let segment_ok =
            |segment: &str| !segment.is_empty() && segment != "." && segment != ".." && segment.chars().all(in_segment);
        let ok = text.len() <= BYTES_MAX
            && !domain.is_empty()
            && domain.chars().all(in_domain)
            && path.split('/').all(segment_ok);
        if ok { Ok(Self(text.into())) } else { Err(malformed()) }
    }
}

impl From<SpiffeId> for String {
    fn from(id: SpiffeId) -> Self {
        id.0.as_ref().to_owned()
    }
}

impl TryFrom<String> for SpiffeId {
    type Error = NotSpiffe;

    fn try_from(text: String) -> Result<Self, NotSpiffe> {
        text.parse()
    }
}

/// Why there is no SPIFFE identity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotSpiffe {
    /// The certificate or its extensions cannot be parsed.
    #[error("the certificate cannot be read")]
    Unreadable,
    /// No URI among the certificate's names.
    #[error("the certificate names no SPIFFE identity: it has no URI among its subject alternative names")]
    Missing,
    /// More than one URI; an X509-SVID has exactly one.
    #[error("the certificate names more than one URI; a SPIFFE certificate has exactly one")]
    Several,
    /// Not of the form `spiffe://trust-domain/path`.
    #[error("`{0}` is not a SPIFFE identity such as spiffe://tamis.local/gateway")]
    Malformed(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_of_the_specification_parse() {
        for text in ["spiffe://tamis.local/gateway", "spiffe://a.b-c_d/service/embedding", "spiffe://domain"] {
            assert_eq!(text.parse::<SpiffeId>().unwrap().as_str(), text);
        }
    }

    #[test]
    fn what_the_specification_forbids_is_refused() {
        for text in [
            "",
            "https://tamis.local/gateway",
            "spiffe:///gateway",
            "spiffe://Tamis.local/gateway",
            "spiffe://tamis.local/",
            "spiffe://tamis.local/a//b",
            "spiffe://tamis.local/../b",
            "spiffe://tamis.local/a?b",
            "spiffe://tamis.local/%41",
        ] {
            assert!(text.parse::<SpiffeId>().is_err(), "{text}");
        }
    }
}
