//! Which identity may call which method. Nothing is allowed that no rule allows.

use std::{fmt, str::FromStr};

use chassis::spiffe::{NotSpiffe, SpiffeId};
use serde::{Deserialize, Serialize};

/// Whom a rule is about: one identity, or all below a path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Identities {
    /// This one: `"spiffe://tamis.local/client/dev"`.
    One(SpiffeId),
    /// Every identity below this one: `"spiffe://tamis.local/client/*"`.
    Below(SpiffeId),
}

/// What a rule is about: one method, all of a service, or all.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Methods {
    /// `"*"`.
    All,
    /// `"/tamis.embedding.v1.EmbeddingService/*"`, kept with its last slash.
    Service(Box<str>),
    /// `"/tamis.embedding.v1.EmbeddingService/Embed"`.
    One(Box<str>),
}

/// Allows identities to call methods.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Who: a SPIFFE identity, or one that ends in `/*` for all below it.
    pub identity: Identities,
    /// What: `"/pkg.Service/Method"`, `"/pkg.Service/*"` or `"*"`.
    pub methods: Vec<Methods>,
}

/// What one caller may call. Found once for a connection, asked for every call.
#[derive(Clone, Debug, Default)]
pub(crate) struct Grants(Vec<Methods>);

impl Grants {
    /// What the rules allow this identity.
    pub(crate) fn of(identity: &SpiffeId, rules: &[Rule]) -> Self {
        let rules = rules.iter().filter(|rule| rule.identity.includes(identity));
        Self(rules.flat_map(|rule| rule.methods.iter().cloned()).collect())
    }

    /// Whether the method at this path may be called.
    pub(crate) fn allow(&self, path: &str) -> bool {
        self.0.iter().any(|methods| methods.includes(path))
    }
}

// === impl Identities ===

impl Identities {
    fn includes(&self, identity: &SpiffeId) -> bool {
        match self {
            Self::One(one) => one == identity,
            Self::Below(root) => {
                identity.as_str().strip_prefix(root.as_str()).is_some_and(|rest| rest.starts_with('/'))
            }
        }
    }
}

impl FromStr for Identities {
    type Err = NotSpiffe;

    fn from_str(text: &str) -> Result<Self, NotSpiffe> {
        match text.strip_suffix("/*") {
            Some(root) => root.parse().map(Self::Below),
            None => text.parse().map(Self::One),
        }
    }
}

impl fmt::Display for Identities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::One(one) => one.fmt(f),
            Self::Below(root) => write!(f, "{root}/*"),
        }
    }
}

impl From<Identities> for String {
    fn from(identities: Identities) -> Self {
        identities.to_string()
    }
}

impl TryFrom<String> for Identities {
    type Error = NotSpiffe;

    fn try_from(text: String) -> Result<Self, NotSpiffe> {
        text.parse()
    }
}

// === impl Methods ===

impl Methods {
    fn includes(&self, path: &str) -> bool {
        match self {
            Self::All => true,
            Self::Service(prefix) => path.starts_with(&**prefix),
            Self::One(one) => **one == *path,
        }
    }
}

impl FromStr for Methods {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "*" {
            return Ok(Self::All);
        }
        let parts = text.strip_prefix('/').and_then(|rest| rest.split_once('/'));
        match parts {
            Some((service, "*")) if !service.is_empty() => Ok(Self::Service(format!("/{service}/").into())),
            Some((service, method)) if !service.is_empty() && !method.is_empty() && !method.contains(['/', '*']) => {
                Ok(Self::One(text.into()))
            }
            _ => Err(format!("`{text}` is not \"/pkg.Service/Method\", \"/pkg.Service/*\" or \"*\"")),
        }
    }
}

impl fmt::Display for Methods {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("*"),
            Self::Service(prefix) => write!(f, "{prefix}*"),
            Self::One(path) => f.write_str(path),
        }
    }
}

impl From<Methods> for String {
    fn from(methods: Methods) -> Self {
        methods.to_string()
    }
}

impl TryFrom<String> for Methods {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMBED: &str = "/tamis.embedding.v1.EmbeddingService/Embed";

    fn check(identity: &str, methods: &str, caller: &str, path: &str) -> bool {
        let rule = Rule { identity: identity.parse().unwrap(), methods: vec![methods.parse().unwrap()] };
        Grants::of(&caller.parse().unwrap(), &[rule]).allow(path)
    }

    #[test]
    fn without_a_rule_nothing_is_allowed() {
        assert!(!Grants::of(&"spiffe://tamis.local/client/dev".parse().unwrap(), &[]).allow(EMBED));
    }

    #[test]
    fn a_rule_allows_its_identity_only() {
        assert!(check("spiffe://tamis.local/client/dev", "*", "spiffe://tamis.local/client/dev", EMBED));
        assert!(!check("spiffe://tamis.local/client/dev", "*", "spiffe://tamis.local/client/dev2", EMBED));
        assert!(!check("spiffe://tamis.local/client/dev", "*", "spiffe://other.local/client/dev", EMBED));
    }

    #[test]
    fn a_star_stands_for_whole_segments() {
        assert!(check("spiffe://tamis.local/client/*", "*", "spiffe://tamis.local/client/a/b", EMBED));
        assert!(!check("spiffe://tamis.local/client/*", "*", "spiffe://tamis.local/clients", EMBED));
        assert!(!check("spiffe://tamis.local/client/*", "*", "spiffe://tamis.local/client", EMBED));
        assert!(check("spiffe://tamis.local/*", "*", "spiffe://tamis.local/gateway", EMBED));
    }

    #[test]
    fn a_rule_allows_its_methods_only() {
        let check = |methods: &str, path| check("spiffe://t/a", methods, "spiffe://t/a", path);
        assert!(check(EMBED, EMBED));
        assert!(!check(EMBED, "/tamis.embedding.v1.EmbeddingService/Embedd"));
        assert!(check("/tamis.embedding.v1.EmbeddingService/*", EMBED));
        assert!(!check("/tamis.embedding.v1.EmbeddingService/*", "/tamis.embedding.v1.EmbeddingServiceX/Embed"));
    }

    #[test]
    fn patterns_read_what_they_write_and_refuse_the_rest() {
        for text in ["*", "/a.B/*", "/a.B/C"] {
            assert_eq!(text.parse::<Methods>().unwrap().to_string(), text);
        }
        for text in ["", "/", "/a.B", "a.B/C", "//C", "/a.B/", "/a.B/C*", "/*/C/D"] {
            assert!(text.parse::<Methods>().is_err(), "{text}");
        }
        for text in ["spiffe://t/a", "spiffe://t/a/*", "spiffe://t/*"] {
            assert_eq!(text.parse::<Identities>().unwrap().to_string(), text);
        }
        assert!("*".parse::<Identities>().is_err());
    }
}
