//! The way of a file from its source to its place: written under another name, checked, converted, renamed.

use std::{
    fs::{self, File, Permissions},
    io::{self, Read, Write},
    path::Path,
};

use sha2::{Digest, Sha256};
use tempfile::NamedTempFile;

use super::{Progress, Record, lock::LOCK, twin::Twin};
use crate::{Error, Manifest, convert, manifest::FileSpec, revision::hex};

/// Names of what is not whole yet begin so.
const PART: &str = ".part-";

/// A pull in progress.
pub(super) struct Arrival<'a> {
    folder: &'a Path,
    manifest: &'a Manifest,
    progress: &'a dyn Progress,
    record: Record,
}

impl<'a> Arrival<'a> {
    pub(super) fn new(folder: &'a Path, manifest: &'a Manifest, progress: &'a dyn Progress) -> Self {
        Self { folder, manifest, progress, record: Record::read(folder) }
    }

    /// Files that are not here.
    pub(super) fn missing(&self) -> Vec<FileSpec> {
        let missing = |file: &&FileSpec| !self.record.vouches_for(self.folder, file);
        self.manifest.files.iter().filter(missing).cloned().collect()
    }

    /// The model's own folder.
    pub(super) fn folder(&self) -> &'a Path {
        self.folder
    }

    /// Where downloads may lie while they come: on the same disk, and swept away with what is left of a pull.
    pub(super) fn workspace(&self) -> Result<tempfile::TempDir, Error> {
        workspace(self.folder)
    }

    /// Tells the user.
    pub(super) fn progress(&self) -> &'a dyn Progress {
        self.progress
    }

    /// Takes in files that somebody put here by hand, as one does for a machine without a network.
    pub(super) fn adopt(&mut self) -> Result<(), Error> {
        for file in self.missing() {
            let path = self.folder.join(&file.name);
            if file.convert.is_none() && path.is_file() && digest(&path)? == file.sha256.as_str() {
                self.record.add(self.folder, &file, file.sha256.to_string())?;
                self.progress.note(&format!("{} was here already", file.name));
            }
        }
        Ok(())
    }

    /// Takes in files that another model of this machine has.
    pub(super) fn share(&mut self) -> Result<(), Error> {
        for file in self.missing() {
            let Some(twin) = Twin::find(self.folder, &file) else { continue };
            // It may go while it is looked at. The sources have it too.
            if let Err(error) = twin.share(self.folder, &file.name) {
                self.progress.note(&format!("{} of {} can not be shared: {error}", file.name, twin.model));
                continue;
            }
            self.record.add(self.folder, &file, twin.stored)?;
            self.progress.note(&format!("{} is on this machine already, for {}", file.name, twin.model));
        }
        Ok(())
    }

    /// Writes a file from its source. Wrong bytes are refused with what their digest is and should be.
    pub(super) fn receive(&mut self, file: &FileSpec, bytes: Option<u64>, from: &mut dyn Read) -> Result<(), Error> {
        self.progress.started(&file.name, bytes);
        let mut part = part(self.folder)?;
        let digest = self.copy(from, part.as_file_mut(), file)?;
        self.settle(file, part, &digest)
    }

    /// Takes in a file that came before its digest was to be checked.
    pub(super) fn receive_landed(&mut self, file: &FileSpec, landed: Landed) -> Result<(), Error> {
        self.settle(file, landed.part, &landed.sha256)
    }

    fn copy(&self, from: &mut dyn Read, to: &mut File, file: &FileSpec) -> Result<String, Error> {
        hashed_copy(from, to, |bytes| self.progress.advanced(bytes)).map_err(|broken| match broken {
            // What can not be read is the source's fault, and another may have it whole.
            Broken::Read(error) => self.refused(format!("{} broke off: {error}", file.name)),
            Broken::Write(error) => Error::io(self.folder.join(&file.name))(error),
        })
    }

    fn refused(&self, why: String) -> Error {
        Error::Fetch { model: self.manifest.name.to_string(), why }
    }

    /// Checks, converts and renames.
    fn settle(&mut self, file: &FileSpec, part: NamedTempFile, digest: &str) -> Result<(), Error> {
        if digest != file.sha256.as_str() {
            let why = format!("{} has the sha256 {digest}, the manifest says {}", file.name, file.sha256);
            return Err(self.refused(why));
        }
        let (part, stored) = match file.convert {
            None => (part, digest.to_owned()),
            Some(kind) => {
                self.progress.note(&format!("converting {} ({kind})", file.name));
                let converted = self::part(self.folder)?;
                convert::run(kind, part.path(), converted.path())?;
                let stored = self::digest(converted.path())?;
                (converted, stored)
            }
        };
        publish(part, &self.folder.join(&file.name))?;
        self.record.add(self.folder, file, stored)?;
        self.progress.finished(&file.name);
        Ok(())
    }
}

/// Removes what interrupted pulls left. The caller holds the lock, so nothing of it is in use.
pub(super) fn sweep(folder: &Path) -> Result<(), Error> {
    for entry in fs::read_dir(folder).map_err(Error::io(folder))? {
        let entry = entry.map_err(Error::io(folder))?;
        if !entry.file_name().to_string_lossy().starts_with(PART) {
            continue;
        }
        let path = entry.path();
        let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed.map_err(Error::io(&path))?;
    }
    Ok(())
}

/// Whether there is anything but the lock.
pub(super) fn holds_files(folder: &Path) -> Result<bool, Error> {
    let mut entries = fs::read_dir(folder).map_err(Error::io(folder))?;
    Ok(entries.any(|entry| entry.is_ok_and(|entry| entry.file_name() != LOCK)))
}

/// A folder that removes itself, and is swept away if it could not.
pub(super) fn workspace(folder: &Path) -> Result<tempfile::TempDir, Error> {
    tempfile::Builder::new().prefix(PART).tempdir_in(folder).map_err(Error::io(folder))
}

/// A file that removes itself unless it is published.
pub(super) fn part(folder: &Path) -> Result<NamedTempFile, Error> {
    let mut builder = tempfile::Builder::new();
    // Models are no secret, and other users' services read them: not the 0600 of temporary files.
    #[cfg(unix)]
    builder.permissions(<Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o644));
    builder.prefix(PART).tempfile_in(folder).map_err(Error::io(folder))
}

/// Gives a file its name once its bytes are on the disk: after a power cut a name never stands for half a file.
pub(super) fn publish(part: NamedTempFile, path: &Path) -> Result<(), Error> {
    // Converters write through the path, so the handle may be of another file: sync what the path names.
    File::open(part.path()).and_then(|file| file.sync_all()).map_err(Error::io(path))?;
    part.persist(path).map_err(|error| Error::io(path)(error.error))?;
    Ok(())
}

/// sha256 of a file.
pub(super) fn digest(path: &Path) -> Result<String, Error> {
    let mut file = File::open(path).map_err(Error::io(path))?;
    hashed_copy(&mut file, &mut io::sink(), |_| {}).map_err(|broken| Error::io(path)(broken.cause()))
}

/// A file that has come and has no name yet. It removes itself unless it is received.
pub(super) struct Landed {
    part: NamedTempFile,
    pub(super) sha256: String,
}

impl Landed {
    /// Writes a file into a model's folder, whatever it is.
    pub(super) fn write(folder: &Path, from: &mut dyn Read, advanced: impl Fn(u64)) -> Result<Self, Broken> {
        let mut part = part(folder).map_err(|error| Broken::Write(io::Error::other(error)))?;
        let sha256 = hashed_copy(from, part.as_file_mut(), advanced)?;
        Ok(Self { part, sha256 })
    }
}

/// Which side of a copy failed.
pub(super) enum Broken {
    Read(io::Error),
    Write(io::Error),
}

impl Broken {
    fn cause(self) -> io::Error {
        match self {
            Self::Read(error) | Self::Write(error) => error,
        }
    }
}

/// Copies to the end and returns the digest of what passed.
fn hashed_copy(from: &mut dyn Read, to: &mut dyn Write, advanced: impl Fn(u64)) -> Result<String, Broken> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 18];
    loop {
        let count = match from.read(&mut buffer) {
            Ok(0) => return Ok(hex(&hash.finalize())),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(Broken::Read(error)),
        };
        hash.update(&buffer[..count]);
        to.write_all(&buffer[..count]).map_err(Broken::Write)?;
        advanced(count as u64);
    }
}
