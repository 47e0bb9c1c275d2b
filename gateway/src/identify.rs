//! Who is at the other end of a connection, and what it may call: found once for a connection.

use chassis::spiffe::{NotSpiffe, SpiffeId};
use http::HeaderValue;

use crate::{
    authorize::{Grants, Rule},
    refuse::Refusal,
};

/// A client with an identity.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    pub(crate) identity: SpiffeId,
    /// The identity as replicas are told.
    pub(crate) header: HeaderValue,
    grants: Grants,
}

impl Caller {
    /// The client behind a certificate, under the rules.
    ///
    /// # Errors
    /// When the certificate names nobody.
    pub(crate) fn new(identity: Result<SpiffeId, NotSpiffe>, rules: &[Rule]) -> Result<Self, NotSpiffe> {
        let identity = identity?;
        // An identity has only characters that a header may have; the error is for the type.
        let header = HeaderValue::from_str(identity.as_str()).map_err(|_| NotSpiffe::Unreadable)?;
        Ok(Self { header, grants: Grants::of(&identity, rules), identity })
    }

    /// Passes a call that the rules allow.
    ///
    /// # Errors
    /// Refuses every other.
    pub(crate) fn authorize(&self, path: &str) -> Result<(), Refusal> {
        if self.grants.allow(path) {
            return Ok(());
        }
        let path = path.chars().take(256).collect();
        Err(Refusal::NotAllowed { identity: self.identity.clone(), path })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_is_told_what_it_may_not_do() {
        let rule = Rule { identity: "spiffe://t/a".parse().unwrap(), methods: vec!["/a.B/C".parse().unwrap()] };
        let caller = Caller::new("spiffe://t/a".parse(), &[rule]).unwrap();
        assert_eq!(caller.authorize("/a.B/C"), Ok(()));
        let expected = Refusal::NotAllowed { identity: "spiffe://t/a".parse().unwrap(), path: "/a.B/D".into() };
        assert_eq!(caller.authorize("/a.B/D"), Err(expected));
        assert_eq!(Caller::new(Err(NotSpiffe::Missing), &[]).unwrap_err(), NotSpiffe::Missing);
    }
}
