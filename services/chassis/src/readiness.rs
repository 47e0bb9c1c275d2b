//! Whether this process should get traffic: everything that must be there first holds a guard.

use std::{collections::BTreeSet, sync::Arc};

use tokio::sync::watch;

/// Ready once every guard has said so, and until the process drains.
#[derive(Clone, Debug)]
pub struct Readiness(Arc<watch::Sender<State>>);

/// What stands between this process and traffic.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// What is still waited for.
    pub pending: BTreeSet<String>,
    /// The process is shutting down; it never becomes ready again.
    pub draining: bool,
}

impl State {
    /// Traffic may come.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        !self.draining && self.pending.is_empty()
    }
}

impl Default for Readiness {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(State::default())))
    }
}

impl Readiness {
    /// Holds readiness back until [`Guard::ready`]. A guard that is dropped without it holds readiness back for good:
    /// what failed to start is not ready.
    #[must_use]
    pub fn guard(&self, what: impl Into<String>) -> Guard {
        let what = what.into();
        self.0.send_modify(|state| {
            state.pending.insert(what.clone());
        });
        Guard { readiness: self.clone(), what }
    }

    /// Takes the process out of traffic for good.
    pub fn drain(&self) {
        self.0.send_modify(|state| state.draining = true);
    }

    /// The state now.
    #[must_use]
    pub fn state(&self) -> State {
        self.0.borrow().clone()
    }

    /// Every change from now on.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<State> {
        self.0.subscribe()
    }
}

/// Something that must be there before traffic comes.
#[derive(Debug)]
pub struct Guard {
    readiness: Readiness,
    what: String,
}

impl Guard {
    /// It is there.
    pub fn ready(self) {
        self.readiness.0.send_modify(|state| {
            state.pending.remove(&self.what);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_means_that_every_guard_said_so() {
        let readiness = Readiness::default();
        let (model, gateway) = (readiness.guard("model"), readiness.guard("listener"));
        model.ready();
        assert_eq!(readiness.state().pending.into_iter().collect::<Vec<_>>(), ["listener"]);
        gateway.ready();
        assert!(readiness.state().is_ready());
    }

    #[test]
    fn a_guard_that_was_dropped_never_becomes_ready() {
        let readiness = Readiness::default();
        drop(readiness.guard("model"));
        assert!(!readiness.state().is_ready());
    }

    #[test]
    fn a_draining_process_is_not_ready() {
        let readiness = Readiness::default();
        readiness.drain();
        assert!(!readiness.state().is_ready());
    }
}
