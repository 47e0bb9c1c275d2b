//! What the store knows of the files in a model's folder.

use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};

use super::{FileState, arrival};
use crate::{Error, manifest::FileSpec};

const NAME: &str = ".record.json";

/// The files that were pulled, by name.
#[derive(Default, Serialize, Deserialize)]
pub(super) struct Record {
    files: BTreeMap<String, Entry>,
}

/// One file as it was when it was put in its place.
#[derive(Serialize, Deserialize)]
struct Entry {
    /// Digest of what was published.
    published: String,
    /// Converter and version that made the file of it, if one did.
    converter: Option<String>,
    /// Digest of the file.
    stored: String,
    bytes: u64,
    /// Time of its last change.
    modified: Duration,
}

impl Record {
    /// The record of a folder. An unreadable one knows nothing: what it would vouch for is checked again.
    pub(super) fn read(folder: &Path) -> Self {
        fs::read(folder.join(NAME)).ok().and_then(|json| serde_json::from_slice(&json).ok()).unwrap_or_default()
    }

    /// Adds a file that has just been put in its place.
    pub(super) fn add(&mut self, folder: &Path, file: &FileSpec, stored: String) -> Result<(), Error> {
        let path = folder.join(&file.name);
        let (bytes, modified) = stamp(&path).map_err(Error::io(&path))?;
        let converter = file.convert.map(|kind| kind.versioned());
        let entry = Entry { published: file.sha256.to_string(), converter, stored, bytes, modified };
        self.files.insert(file.name.clone(), entry);
        self.write(folder)
    }

    /// Takes a file out.
    pub(super) fn forget(&mut self, folder: &Path, file: &FileSpec) -> Result<(), Error> {
        self.files.remove(&file.name);
        self.write(folder)
    }

    /// Whether the file is the one that the manifest names. Length and time of change stand for its bytes; where only
    /// the time differs, as after a copy of the folder, the bytes are read.
    pub(super) fn vouches_for(&self, folder: &Path, file: &FileSpec) -> bool {
        self.entry(file).is_some_and(|entry| entry.vouches_for(&folder.join(&file.name)))
    }

    /// A file with these bytes under any name, and the digest of what is stored.
    pub(super) fn whole(&self, folder: &Path, file: &FileSpec) -> Option<(PathBuf, String)> {
        let same = self.files.iter().filter(|(_, entry)| entry.is_of(file));
        let mut paths = same.map(|(name, entry)| (folder.join(name), entry));
        let (path, entry) = paths.find(|(path, entry)| entry.vouches_for(path))?;
        Some((path, entry.stored.clone()))
    }

    /// Reads the whole file.
    pub(super) fn verify(&self, folder: &Path, file: &FileSpec) -> Result<FileState, Error> {
        let path = folder.join(&file.name);
        let Some(entry) = self.entry(file) else { return Ok(FileState::Missing) };
        if !path.exists() {
            return Ok(FileState::Missing);
        }
        let whole = arrival::digest(&path)? == entry.stored;
        Ok(if whole { FileState::Whole } else { FileState::Damaged })
    }

    fn entry(&self, file: &FileSpec) -> Option<&Entry> {
        self.files.get(&file.name).filter(|entry| entry.is_of(file))
    }

    fn write(&self, folder: &Path) -> Result<(), Error> {
        let path = folder.join(NAME);
        let json = serde_json::to_vec_pretty(self).map_err(|error| Error::load(path.display(), error))?;
        let mut file = arrival::part(folder)?;
        file.write_all(&json).map_err(Error::io(&path))?;
        arrival::publish(file, &path)
    }
}

impl Entry {
    /// Whether it was made of these published bytes in this way.
    fn is_of(&self, file: &FileSpec) -> bool {
        self.published == file.sha256.as_str() && self.converter == file.convert.map(|kind| kind.versioned())
    }

    fn vouches_for(&self, path: &Path) -> bool {
        match stamp(path) {
            Ok((bytes, modified)) if bytes == self.bytes => {
                modified == self.modified || arrival::digest(path).is_ok_and(|digest| digest == self.stored)
            }
            _ => false,
        }
    }
}

/// Length and time of the last change.
fn stamp(path: &Path) -> std::io::Result<(u64, Duration)> {
    let metadata = fs::metadata(path)?;
    let modified = metadata.modified()?.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Ok((metadata.len(), modified))
}
