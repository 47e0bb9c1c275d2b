//! The replicas of one service: which there are, which are ready, and which takes the next call.

mod connect;
mod endpoint;
mod health;
mod resolve;

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use arc_swap::ArcSwap;
use tokio::{sync::watch, time::Instant};

pub(crate) use self::{
    connect::{Connect, Dialer, Lease, RequestBody},
    endpoint::{Endpoint, State},
    health::watch as watch_health,
    resolve::{Resolution, resolve},
};
use crate::{
    balance::{Outstanding, Speed, Work, least_work},
    config::ServiceSettings,
    figures::Figures,
    refuse::Refusal,
    retry::{Budget, Next},
};

/// One service and its replicas, shared by all workers.
pub(crate) struct Upstream {
    /// Its name in the configuration.
    pub(crate) name: Box<str>,
    /// The replicas that resolution found; replaced as a whole.
    pub(crate) endpoints: ArcSwap<Vec<Arc<Endpoint>>>,
    /// How many of them are ready.
    pub(crate) ready: Arc<watch::Sender<usize>>,
    /// Cost of work, averaged over the replicas.
    pub(crate) speed: Speed,
    /// Bounds the retries.
    pub(crate) retries: Budget,
    /// Opens connections to its replicas.
    pub(crate) dialer: Dialer,
    /// Tells of replicas that come, go or change their state.
    pub(crate) changes: Changes,
    /// Calls that have ended.
    pub(crate) figures: Figures,
    waiting: Arc<AtomicUsize>,
    in_flight: Arc<AtomicUsize>,
    in_flight_max: usize,
    rotation: AtomicUsize,
    /// Bounds of its batches.
    pub(crate) batches: BatchBounds,
}

/// How many items a call may have.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BatchBounds {
    /// For one replica at once.
    pub(crate) split_items: usize,
    /// In all.
    pub(crate) items_max: usize,
}

/// Tells whoever subscribes that something about any replica has changed; not what.
#[derive(Clone, Debug, Default)]
pub(crate) struct Changes(Arc<watch::Sender<()>>);

/// A call that the service has been charged with.
pub(crate) struct Picked {
    pub(crate) endpoint: Arc<Endpoint>,
    pub(crate) outstanding: Outstanding,
}

/// A call in flight, counted until this is dropped.
#[derive(Debug)]
pub(crate) struct InFlight(Arc<AtomicUsize>);

// === impl Upstream ===

impl Upstream {
    /// A service without replicas.
    pub(crate) fn new(
        name: &str,
        dialer: Dialer,
        retries: Budget,
        settings: &ServiceSettings,
        changes: &Changes,
    ) -> Self {
        let ServiceSettings { in_flight_max, split_items, batch_items_max, .. } = *settings;
        Self {
            name: name.into(),
            endpoints: ArcSwap::default(),
            ready: Arc::new(watch::Sender::new(0)),
            speed: Speed::default(),
            retries,
            dialer,
            changes: changes.clone(),
            figures: Figures::default(),
            waiting: Arc::default(),
            in_flight: Arc::default(),
            in_flight_max,
            rotation: AtomicUsize::new(0),
            batches: BatchBounds { split_items, items_max: batch_items_max },
        }
    }

    /// A place among the calls to the service.
    pub(crate) fn admit(&self) -> Result<InFlight, Refusal> {
        let max = self.in_flight_max;
        InFlight::count(&self.in_flight, max).ok_or(Refusal::Full { what: "calls in flight to this service", max })
    }

    /// The replica for the next attempt of a call that has been at `tried`, if one is ready now.
    pub(crate) fn pick(&self, work: Work, next: Next, tried: &[Arc<Endpoint>]) -> Option<Picked> {
        let untried = |endpoint: &Arc<Endpoint>| !tried.iter().any(|other| Arc::ptr_eq(endpoint, other));
        let now = Instant::now();
        match next {
            Next::Nowhere => None,
            Next::ToIdle => self.least(work, now, |endpoint| untried(endpoint) && endpoint.load.is_idle(now)),
            Next::Elsewhere => self.least(work, now, untried),
            Next::Anywhere => self.least(work, now, untried).or_else(|| self.least(work, now, |_| true)),
        }
    }

    fn least(&self, work: Work, now: Instant, eligible: impl Fn(&Arc<Endpoint>) -> bool) -> Option<Picked> {
        let endpoints = self.endpoints.load();
        let start = self.rotation.fetch_add(1, Relaxed) % endpoints.len().max(1);
        let (after, before) = endpoints.split_at(start);
        let candidates = before
            .iter()
            .chain(after)
            .filter(|endpoint| endpoint.state() == State::Ready && eligible(endpoint))
            .map(|endpoint| (endpoint, endpoint.load.candidate(work, &self.speed, now)))
            .map(|(endpoint, candidate)| ((endpoint, candidate.estimate_us), candidate));
        // A quarter of the call is the grain: an estimate is no better than that, and replicas of about equal load
        // must take turns for their speeds to stay known.
        let grain_us = self.speed.estimate_us(work, &self.speed) / 4;
        let (endpoint, estimate_us) = least_work(candidates, grain_us)?;
        Some(Picked { endpoint: Arc::clone(endpoint), outstanding: endpoint.load.start(estimate_us) })
    }

    /// A call waits for a ready replica until this is dropped.
    pub(crate) fn wait(&self) -> Option<InFlight> {
        InFlight::count(&self.waiting, usize::MAX)
    }

    /// Calls that wait for a ready replica.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.load(Relaxed)
    }

    /// Calls that have not ended.
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.load(Relaxed)
    }

    /// Waits until a replica is ready.
    pub(crate) async fn any_ready(&self) {
        // The sender lives as long as `self`, so the wait cannot fail.
        _ = self.ready.subscribe().wait_for(|ready| *ready > 0).await;
    }
}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upstream").field("name", &self.name).finish_non_exhaustive()
    }
}

// === impl Changes ===

impl Changes {
    /// Something has changed.
    pub(crate) fn tell(&self) {
        self.0.send_replace(());
    }

    /// Hears of every change from now on.
    pub(crate) fn subscribe(&self) -> watch::Receiver<()> {
        self.0.subscribe()
    }
}

// === impl InFlight ===

impl InFlight {
    /// Counts one more unless there are `max`.
    pub(crate) fn count(counter: &Arc<AtomicUsize>, max: usize) -> Option<Self> {
        let guard = Self(Arc::clone(counter));
        // Counted first and asked after, so that two callers never both take the last place.
        if counter.fetch_add(1, Relaxed) < max { Some(guard) } else { None }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}
