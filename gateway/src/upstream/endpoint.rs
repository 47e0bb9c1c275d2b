//! One replica: its state, its load, and the connections to it.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use http::uri::Authority;
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};

use super::{Changes, connect::Pool};
use crate::{balance::Load, route::Shape};

/// Whether a replica gets calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum State {
    /// Nobody has asked it yet.
    Unknown,
    /// It says that it serves.
    Ready,
    /// It says that it does not serve, but it is there: calls in flight finish, new ones go elsewhere.
    Draining,
    /// It cannot be reached.
    Down,
    /// Resolution no longer finds it; it never comes back under this object.
    Retired,
}

/// A replica of a service, shared by all workers.
pub(crate) struct Endpoint {
    pub(crate) address: SocketAddr,
    /// The address as `:authority`.
    pub(crate) authority: Authority,
    pub(crate) load: Arc<Load>,
    /// Wakes its health watch: somebody has reason to doubt its state.
    pub(crate) doubt: Notify,
    state: AtomicU8,
    /// When it came to this state, in microseconds after 1970.
    since_us: AtomicU64,
    changes: Changes,
    ready: Arc<watch::Sender<usize>>,
    pools: Box<[Lanes]>,
}

/// One worker's connections to a replica. A streaming call may send frames for hours, as small and as slow as its client
/// likes; it must not share a connection with calls that somebody waits for.
struct Lanes {
    unary: Pool,
    streaming: Pool,
}

impl Endpoint {
    /// A replica that nobody has asked yet. `ready` counts it while it is ready, `changes` hears of its states.
    pub(crate) fn new(
        address: SocketAddr,
        authority: Authority,
        ready: &Arc<watch::Sender<usize>>,
        changes: &Changes,
        workers: usize,
    ) -> Self {
        let lanes = || Lanes { unary: Pool::default(), streaming: Pool::default() };
        Self {
            address,
            authority,
            load: Arc::new(Load::new(Instant::now())),
            doubt: Notify::new(),
            state: AtomicU8::new(State::Unknown as u8),
            since_us: AtomicU64::new(micros(SystemTime::now())),
            changes: changes.clone(),
            ready: Arc::clone(ready),
            pools: std::iter::repeat_with(lanes).take(workers).collect(),
        }
    }

    /// The state now.
    pub(crate) fn state(&self) -> State {
        State::of(self.state.load(Ordering::Acquire))
    }

    /// When it came to this state.
    pub(crate) fn since(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_micros(self.since_us.load(Ordering::Relaxed))
    }

    /// Sets what the health watch found out.
    pub(crate) fn set(&self, next: State) {
        let keep_retired = |old| (State::of(old) != State::Retired).then_some(next as u8);
        if let Ok(old) = self.state.fetch_update(Ordering::AcqRel, Ordering::Acquire, keep_retired) {
            self.count(State::of(old), next);
        }
    }

    /// Takes it out of rotation at once because a call found it unreachable, and has its health watch look.
    pub(crate) fn suspect(&self) {
        let (ready, down) = (State::Ready as u8, State::Down as u8);
        if self.state.compare_exchange(ready, down, Ordering::AcqRel, Ordering::Acquire).is_ok() {
            self.count(State::Ready, State::Down);
        }
        self.doubt.notify_one();
    }

    /// The connections of a worker for calls of a shape.
    pub(crate) fn pool(&self, worker: usize, shape: Shape) -> Option<&Pool> {
        let lanes = self.pools.get(worker)?;
        Some(match shape {
            Shape::Unary => &lanes.unary,
            Shape::Streaming => &lanes.streaming,
        })
    }

    fn count(&self, old: State, new: State) {
        if old == new {
            return;
        }
        tracing::info!(endpoint = %self.address, ?old, ?new, "replica");
        self.since_us.store(micros(SystemTime::now()), Ordering::Relaxed);
        match (old, new) {
            (_, State::Ready) => self.ready.send_modify(|ready| *ready += 1),
            (State::Ready, _) => self.ready.send_modify(|ready| *ready -= 1),
            _ => {}
        }
        self.changes.tell();
    }
}

fn micros(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
}

impl State {
    fn of(number: u8) -> Self {
        match number {
            0 => Self::Unknown,
            1 => Self::Ready,
            2 => Self::Draining,
            3 => Self::Down,
            _ => Self::Retired,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint() -> (Endpoint, watch::Receiver<usize>) {
        let ready = Arc::new(watch::Sender::new(0));
        let receiver = ready.subscribe();
        let authority = Authority::from_static("127.0.0.1:7001");
        (Endpoint::new(([127, 0, 0, 1], 7001).into(), authority, &ready, &Changes::default(), 1), receiver)
    }

    #[test]
    fn every_state_survives_its_number() {
        for state in [State::Unknown, State::Ready, State::Draining, State::Down, State::Retired] {
            assert_eq!(State::of(state as u8), state);
        }
    }

    #[test]
    fn the_count_follows_the_state() {
        let (endpoint, ready) = endpoint();
        for (next, count) in [
            (State::Ready, 1),
            (State::Ready, 1),
            (State::Draining, 0),
            (State::Ready, 1),
            (State::Down, 0),
            (State::Down, 0),
        ] {
            endpoint.set(next);
            assert_eq!(*ready.borrow(), count, "{next:?}");
        }
    }

    #[tokio::test]
    async fn a_suspect_is_out_of_rotation_at_once_and_looked_at() {
        let (endpoint, ready) = endpoint();
        endpoint.set(State::Ready);
        endpoint.suspect();
        endpoint.suspect();
        assert_eq!((endpoint.state(), *ready.borrow()), (State::Down, 0));
        endpoint.doubt.notified().await;
    }

    #[test]
    fn a_change_of_state_is_told_and_dated_and_the_same_state_is_not() {
        let (endpoint, _) = endpoint();
        let mut changes = endpoint.changes.subscribe();
        let born = endpoint.since();
        endpoint.set(State::Ready);
        assert!(changes.has_changed().unwrap() && endpoint.since() >= born);
        changes.mark_unchanged();
        let since = endpoint.since();
        endpoint.set(State::Ready);
        assert!(!changes.has_changed().unwrap() && endpoint.since() == since);
        endpoint.suspect();
        assert!(changes.has_changed().unwrap());
    }

    #[test]
    fn what_is_retired_stays_retired() {
        let (endpoint, ready) = endpoint();
        endpoint.set(State::Ready);
        endpoint.set(State::Retired);
        endpoint.set(State::Ready);
        endpoint.suspect();
        assert_eq!((endpoint.state(), *ready.borrow()), (State::Retired, 0));
    }
}
