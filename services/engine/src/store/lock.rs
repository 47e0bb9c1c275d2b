//! One pull at a time, across processes.

use std::{
    fs::{self, File, TryLockError},
    io,
    path::Path,
};

use crate::Error;

/// Name of the file that is locked.
pub(super) const LOCK: &str = ".lock";

/// Held while a model is pulled; the system lets go of it when the process ends, however it ends.
pub(super) struct PullLock {
    _file: File,
}

impl PullLock {
    /// Takes the lock of a model's folder, which is made if it is not there; calls `waiting` first if another process has
    /// it.
    pub(super) fn take(folder: &Path, mut waiting: impl FnMut()) -> Result<Self, Error> {
        let path = folder.join(LOCK);
        loop {
            fs::create_dir_all(folder).map_err(Error::io(folder))?;
            let file = match File::create(&path) {
                // Who had the lock has just removed the folder.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                file => file.map_err(Error::io(&path))?,
            };
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    waiting();
                    file.lock().map_err(Error::io(&path))?;
                }
                Err(TryLockError::Error(error)) => return Err(Error::io(&path)(error)),
            }
            if is_at(&file, &path) {
                return Ok(Self { _file: file });
            }
        }
    }
}

/// Whether the file still has its name. Whoever had the lock may have removed it, and then the next one would make and
/// lock another.
#[cfg(unix)]
fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    let identity = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
    file.metadata().ok().map(identity) == fs::metadata(path).ok().map(identity)
}

/// Elsewhere an open file can not be removed.
#[cfg(not(unix))]
fn is_at(_file: &File, _path: &Path) -> bool {
    true
}
