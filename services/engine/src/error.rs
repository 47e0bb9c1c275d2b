//! What can go wrong with a call or a model, named by what the caller can do about it.

use std::{
    io,
    path::{Path, PathBuf},
};

/// Errors of this crate. Failures of one input among others are [`crate::ItemError`]s.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Back off: the queue holds as much as it may. Nothing of the call was computed.
    #[error("the queue is full: {queued} units wait, the call has {units}, the bound is {max}")]
    Full {
        /// Units that wait.
        queued: u64,
        /// Units of the refused call.
        units: u64,
        /// Bound of the queue.
        max: u64,
    },
    /// Give up: the deadline passed before every input was computed.
    #[error("the deadline passed before the call was computed")]
    Late,
    /// Go elsewhere: the pool is shutting down.
    #[error("the worker pool is shutting down")]
    Closed,
    /// Pull the model: its files are not on this machine, or not whole.
    #[error("model {model}: {why}; run `tamis models pull {model}`")]
    Absent {
        /// Name of the model.
        model: String,
        /// What is missing.
        why: String,
    },
    /// Correct the manifest, or the name that asked for one.
    #[error("{what}: {why}")]
    Manifest {
        /// File or name of the manifest.
        what: String,
        /// What is wrong with it.
        why: String,
    },
    /// Look at the network: no source had a file with the right digest.
    #[error("model {model}: {why}")]
    Fetch {
        /// Name of the model.
        model: String,
        /// What each source answered.
        why: String,
    },
    /// Look at the model: its files are here, but they make no model that this crate runs.
    #[error("{what}: {why}")]
    Load {
        /// Name of the model, or path of the file.
        what: String,
        /// What is wrong with it.
        why: String,
    },
    /// Look at the disk.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// File or folder.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

impl Error {
    /// A [`Error::Load`] from anything that prints.
    pub(crate) fn load(what: impl ToString, why: impl ToString) -> Self {
        Self::Load { what: what.to_string(), why: why.to_string() }
    }

    /// A [`Error::Manifest`] from anything that prints.
    pub(crate) fn manifest(what: impl ToString, why: impl ToString) -> Self {
        Self::Manifest { what: what.to_string(), why: why.to_string() }
    }

    /// Names the path in a system error: `fs::read(path).map_err(Error::io(path))`.
    pub(crate) fn io(path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Self {
        let path = path.as_ref().to_owned();
        |source| Self::Io { path, source }
    }
}
