//! One pull at a time, across processes.

use std::{
    fs::{File, TryLockError},
    path::Path,
};

use crate::Error;

/// Held while a model is pulled; the system lets go of it when the process ends, however it ends.
pub(super) struct PullLock {
    _file: File,
}

impl PullLock {
    /// Takes the lock of a model's folder; calls `waiting` first if another process has it.
    pub(super) fn take(folder: &Path, waiting: impl FnOnce()) -> Result<Self, Error> {
        let path = folder.join(".lock");
        let file = File::create(&path).map_err(Error::io(&path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                waiting();
                file.lock().map_err(Error::io(&path))?;
            }
            Err(TryLockError::Error(error)) => return Err(Error::io(&path)(error)),
        }
        Ok(Self { _file: file })
    }
}
