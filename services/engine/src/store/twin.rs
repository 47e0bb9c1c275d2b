//! Files that another model of this machine has: a model for int8 has those of the model that it was made of.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::{Record, arrival};
use crate::manifest::FileSpec;

/// A whole file with the bytes that are wanted, in another model's folder.
pub(super) struct Twin {
    path: PathBuf,
    /// Name of the other model.
    pub(super) model: String,
    /// Digest of the file.
    pub(super) stored: String,
}

impl Twin {
    /// The first in the order of the models' names whose record vouches for it.
    pub(super) fn find(folder: &Path, file: &FileSpec) -> Option<Self> {
        let entries = fs::read_dir(folder.parent()?).ok()?.flatten();
        let mut folders: Vec<_> = entries.map(|entry| entry.path()).filter(|other| other != folder).collect();
        folders.sort();
        folders.into_iter().find_map(|other| {
            let (path, stored) = Record::read(&other).whole(&other, file)?;
            Some(Self { path, model: other.file_name()?.to_string_lossy().into_owned(), stored })
        })
    }

    /// Gives the file a second name, so that it is on the disk once; where that can not be, a copy. Nothing writes into a
    /// file of the store, so that neither model can spoil the other.
    pub(super) fn share(&self, folder: &Path, name: &str) -> io::Result<()> {
        let workspace = arrival::workspace(folder).map_err(io::Error::other)?;
        let part = workspace.path().join(name);
        // What a link leads to is somebody's own file, which may be written into.
        let is_own = fs::symlink_metadata(&self.path)?.is_file();
        if !is_own || fs::hard_link(&self.path, &part).is_err() {
            fs::copy(&self.path, &part)?;
            fs::File::open(&part)?.sync_all()?;
        }
        // The record goes by length and time, which damage may leave as they were.
        if arrival::digest(&part).map_err(io::Error::other)? != self.stored {
            return Err(io::Error::other("its bytes have changed"));
        }
        fs::rename(part, folder.join(name))
    }
}
