//! Who a certificate is for.

use std::net::{Ipv4Addr, Ipv6Addr};

use anyhow::Context as _;
use chassis::spiffe::SpiffeId;

use crate::{
    advice::Advice,
    role::{Role, TRUST_DOMAIN},
};

/// The holder of a certificate: an identity, and the names by which clients that check names reach it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Leaf {
    pub(crate) id: SpiffeId,
    /// DNS names and IP addresses.
    pub(crate) names: Vec<String>,
}

impl Leaf {
    /// An identity as people write it: `client/alice`, or in full `spiffe://tamis.local/client/alice`. Everything but a
    /// client also gets the names of this machine, for grpcurl and others that check names.
    pub(crate) fn parse(identity: &str, names: &[String]) -> anyhow::Result<Self> {
        let full = match identity.contains("://") {
            true => identity.to_owned(),
            false => format!("spiffe://{TRUST_DOMAIN}/{identity}"),
        };
        let help = "write a path such as `client/alice`, or in full `spiffe://tamis.local/client/alice`";
        let advice = || Advice::new(format!("`{identity}` cannot be an identity"), help);
        let id: SpiffeId = full.parse().with_context(advice)?;
        if path(&id).is_empty() {
            return Err(anyhow::anyhow!("a trust domain alone is the authority's identity").context(advice()));
        }
        let mut all = Vec::new();
        if !path(&id).starts_with("client/") {
            all.extend(["localhost".to_owned(), Ipv4Addr::LOCALHOST.to_string(), Ipv6Addr::LOCALHOST.to_string()]);
        }
        all.extend(names.iter().filter(|name| !all.contains(name)).cloned().collect::<Vec<_>>());
        Ok(Self { id, names: all })
    }

    /// Everybody in a development mesh.
    pub(crate) fn of_the_mesh() -> anyhow::Result<Vec<Self>> {
        let servers = [Role::Gateway].into_iter().chain(Role::SERVICES).map(Role::identity);
        servers.chain(["client/dev".to_owned()]).map(|identity| Self::parse(&identity, &[])).collect()
    }

    /// The name of its files without extension: `gateway`, `embedding` for `service/embedding`, `client-alice`.
    pub(crate) fn stem(&self) -> String {
        let path = path(&self.id);
        path.strip_prefix("service/").unwrap_or(path).replace('/', "-")
    }

    /// What stands as its common name, for people only.
    pub(crate) fn common_name(&self) -> String {
        // X.520 bounds a common name to 64 characters.
        path(&self.id).chars().take(64).collect()
    }
}

fn path(id: &SpiffeId) -> &str {
    id.as_str().strip_prefix("spiffe://").and_then(|rest| rest.split_once('/')).map_or("", |(_, path)| path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(identity: &str, id: &str, stem: &str) {
        let leaf = Leaf::parse(identity, &[]).unwrap();
        assert_eq!((leaf.id.as_str(), leaf.stem().as_str()), (id, stem));
    }

    #[test]
    fn identities_name_their_files() {
        check("gateway", "spiffe://tamis.local/gateway", "gateway");
        check("service/embedding", "spiffe://tamis.local/service/embedding", "embedding");
        check("client/alice", "spiffe://tamis.local/client/alice", "client-alice");
        check("spiffe://acme.test/client/bob", "spiffe://acme.test/client/bob", "client-bob");
    }

    #[test]
    fn only_servers_have_the_names_of_this_machine() {
        let server = Leaf::parse("gateway", &["mesh.example".into(), "localhost".into()]).unwrap();
        assert_eq!(server.names, ["localhost", "127.0.0.1", "::1", "mesh.example"]);
        assert!(Leaf::parse("client/dev", &[]).unwrap().names.is_empty());
    }

    #[test]
    fn what_is_no_identity_is_refused_with_an_example() {
        for identity in ["", "a b", "/x", "https://a/b", "spiffe://tamis.local", "client/../x"] {
            let error = Leaf::parse(identity, &[]).unwrap_err();
            assert!(crate::advice::report(&error).contains("client/alice"), "{identity}");
        }
    }
}
