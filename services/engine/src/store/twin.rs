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
        // A link to what is itself a link would hang on the folder of the other model.
        let path = self.path.canonicalize()?;
        if fs::hard_link(&path, &part).is_err() {
            fs::copy(&path, &part)?;
            fs::File::open(&part)?.sync_all()?;
            if arrival::digest(&part).map_err(io::Error::other)? != self.stored {
                return Err(io::Error::other("it changed while it was copied"));
            }
        }
        fs::rename(part, folder.join(name))
    }
}
