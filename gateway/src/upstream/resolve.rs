//! Finds the replicas of a service: a list that never changes, or a DNS name that is asked again and again.
//!
//! The name must stand for the replicas, in Kubernetes a headless service: a service's virtual address would pin every
//! HTTP/2 connection to whichever replica took it first.

use std::{collections::BTreeSet, convert::Infallible, net::SocketAddr, sync::Arc};

use tokio::net::lookup_host;
use tokio_util::task::AbortOnDropHandle;

use super::{Endpoint, State, Upstream, watch_health};
use crate::config::{HealthSettings, Replicas};

/// How a service's replicas are found and watched.
pub(crate) struct Resolution {
    pub(crate) upstream: Arc<Upstream>,
    pub(crate) replicas: Replicas,
    pub(crate) health: HealthSettings,
    /// Workers that will each have connections.
    pub(crate) workers: usize,
}

/// Keeps the set of replicas and their health watches up to date; never ends. Whoever drops it ends the watches.
pub(crate) async fn resolve(resolution: Resolution) -> Infallible {
    let mut watches = Watches { resolution, running: Vec::new() };
    match watches.resolution.replicas.clone() {
        Replicas::Static(addresses) => {
            watches.apply(&addresses.into_iter().collect());
            std::future::pending().await
        }
        Replicas::Dns { name, every } => loop {
            match lookup_host(&name).await {
                Ok(addresses) => watches.apply(&addresses.collect()),
                // The last good answer stands: replicas do not die of a name server that does.
                Err(error) => tracing::warn!(name, %error, "cannot resolve; the replicas known so far stay"),
            }
            tokio::time::sleep(every).await;
        },
    }
}

struct Watches {
    resolution: Resolution,
    running: Vec<(Arc<Endpoint>, AbortOnDropHandle<()>)>,
}

impl Watches {
    fn apply(&mut self, found: &BTreeSet<SocketAddr>) {
        let upstream = &self.resolution.upstream;
        self.running.retain(|(endpoint, _)| {
            let stays = found.contains(&endpoint.address);
            if !stays {
                endpoint.set(State::Retired);
            }
            stays
        });
        for address in found {
            if self.running.iter().any(|(endpoint, _)| endpoint.address == *address) {
                continue;
            }
            let Ok(authority) = address.to_string().parse() else {
                tracing::warn!(%address, "no address that a request can name; left out");
                continue;
            };
            let (ready, changes) = (&upstream.ready, &upstream.changes);
            let endpoint = Arc::new(Endpoint::new(*address, authority, ready, changes, self.resolution.workers));
            let watch = watch_health(Arc::clone(&endpoint), upstream.dialer.clone(), self.resolution.health.clone());
            self.running.push((endpoint, AbortOnDropHandle::new(tokio::spawn(watch))));
        }
        upstream.endpoints.store(Arc::new(self.running.iter().map(|(endpoint, _)| Arc::clone(endpoint)).collect()));
        upstream.changes.tell();
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use chassis::{
        config::Settings as _,
        tls::{Credentials, TlsSettings},
    };
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};

    use super::*;
    use crate::config::ServiceSettings;
    use crate::{
        config::Settings,
        retry::Budget,
        upstream::{Changes, Dialer},
    };

    fn dialer() -> Dialer {
        let id = "spiffe://tamis.local/gateway";
        let mut authority = CertificateParams::new([]).unwrap();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap();
        let (mut own, key) = (CertificateParams::new([]).unwrap(), KeyPair::generate().unwrap());
        own.subject_alt_names.push(SanType::URI(id.try_into().unwrap()));
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, pem: String| {
            let path = folder.path().join(name);
            fs::write(&path, pem).unwrap();
            path.to_str().unwrap().to_owned()
        };
        let settings = TlsSettings {
            cert: write("own.pem", own.signed_by(&key, &authority).unwrap().pem()),
            key: write("own.key", key.serialize_pem()),
            ca: write("ca.pem", authority.pem()),
        };
        let connector = Credentials::load(&settings).unwrap().connector(&id.parse().unwrap()).unwrap();
        Dialer::new(connector, &Settings::defaults().connection)
    }

    #[tokio::test]
    async fn replicas_that_come_and_go_are_told() {
        let changes = Changes::default();
        let upstream =
            Arc::new(Upstream::new("embedding", dialer(), Budget::new(1, 0.0), &ServiceSettings::defaults(), &changes));
        let mut heard = changes.subscribe();
        let (health, replicas) = (Settings::defaults().health, Replicas::Static(Vec::new()));
        let resolution = Resolution { upstream: Arc::clone(&upstream), replicas, health, workers: 1 };
        let mut watches = Watches { resolution, running: Vec::new() };
        let [first, second]: [SocketAddr; 2] = ["127.0.0.1:1", "127.0.0.1:2"].map(|address| address.parse().unwrap());
        let mut check = |found: &[SocketAddr]| {
            heard.mark_unchanged();
            watches.apply(&found.iter().copied().collect());
            assert!(heard.has_changed().unwrap());
            let known: Vec<_> = upstream.endpoints.load().iter().map(|endpoint| endpoint.address).collect();
            assert_eq!(known, found);
        };
        check(&[first]);
        let stays = Arc::clone(&upstream.endpoints.load()[0]);
        check(&[first, second]);
        assert!(Arc::ptr_eq(&stays, &upstream.endpoints.load()[0]), "what is known of a replica stays");
        check(&[second]);
        assert_eq!(stays.state(), State::Retired);
        check(&[]);
    }
}
