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
