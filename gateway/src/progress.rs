//! What becomes of a call on its way, for whoever wants to know.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// Where a call stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// No replica is ready; it waits for one.
    Waiting,
    /// A replica has it.
    Running,
    /// A replica was lost or refused it; another is tried.
    Retrying,
}

/// Counts a call's attempts, and tells of its stages if somebody listens.
#[derive(Default)]
pub(crate) struct Progress {
    attempts: AtomicU32,
    tell: Option<Box<dyn Fn(Stage) + Send + Sync>>,
}

impl Progress {
    /// The progress of a call to whose stages `tell` listens.
    pub(crate) fn told(tell: impl Fn(Stage) + Send + Sync + 'static) -> Self {
        Self { attempts: AtomicU32::new(0), tell: Some(Box::new(tell)) }
    }

    /// It is at this stage now.
    pub(crate) fn stage(&self, stage: Stage) {
        if let Some(tell) = &self.tell {
            tell(stage);
        }
    }

    /// A replica is tried.
    pub(crate) fn attempt(&self) {
        self.attempts.fetch_add(1, Relaxed);
        self.stage(Stage::Running);
    }

    /// It did not reach that replica.
    pub(crate) fn unsent(&self) {
        self.attempts.fetch_sub(1, Relaxed);
    }

    /// It has reached as many replicas, in the part that needed the most.
    pub(crate) fn at_least(&self, attempts: u32) {
        self.attempts.fetch_max(attempts, Relaxed);
    }

    /// Replicas that it has reached.
    pub(crate) fn attempts(&self) -> u32 {
        self.attempts.load(Relaxed)
    }
}
