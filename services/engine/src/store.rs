//! The models on this machine: DATA/models/NAME/, one folder per model.
//!
//! A file gets its name only when its digest was right and it was written in full, and the record beside it says so;
//! whatever was interrupted has another name and is removed by the next pull. One pull of a model runs at a time.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::{
    Error, Manifest,
    manifest::{ModelFiles, ModelName, Source, Task},
};

mod add;
mod arrival;
mod fetch;
mod heads;
mod hub;
mod local;
mod lock;
mod pip;
mod record;
mod twin;

pub use self::add::{AddError, Added, Addition, TextTask};
use self::{arrival::Arrival, fetch::Fetch, lock::PullLock, record::Record};

/// Models under a data directory, and the manifests that name them.
#[derive(Clone, Debug)]
pub struct Store {
    data: PathBuf,
}

/// Hears how a pull goes.
pub trait Progress: Sync {
    /// A file begins to come; `bytes` is its length, if it is known.
    fn started(&self, file: &str, bytes: Option<u64>);
    /// So many more bytes of it have come.
    fn advanced(&self, bytes: u64);
    /// The file is whole and in its place.
    fn finished(&self, file: &str);
    /// Something a person may want to know, in a sentence.
    fn note(&self, text: &str);
}

/// What [`Store::verify`] found of one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileCheck {
    /// Name of the file.
    pub name: String,
    /// How it is.
    pub state: FileState,
}

/// How a file is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FileState {
    /// Its digest is right.
    Whole,
    /// It was never pulled, was pulled for another digest or by another converter, or has gone.
    Missing,
    /// Its bytes are not those that were pulled.
    Damaged,
}

// === impl Store ===

impl Store {
    /// Models and manifests under this directory, which need not exist yet.
    #[must_use]
    pub fn new(data_dir: &Path) -> Self {
        Self { data: data_dir.to_owned() }
    }

    /// All models that have a manifest, ordered by name: the built-in ones and those in DATA/manifests/*.toml. A file
    /// that names a built-in model takes its place; one that can not be used is passed over with a warning.
    pub fn manifests(&self) -> Result<Vec<Manifest>, Error> {
        let found = self.user_manifests()?;
        for (path, error) in &found.broken {
            tracing::warn!(path = %path.display(), %error, "a manifest is passed over");
        }
        Ok(found.all())
    }

    /// What is wrong with each file of DATA/manifests that can not be used.
    pub fn broken_manifests(&self) -> Result<Vec<(PathBuf, Error)>, Error> {
        Ok(self.user_manifests()?.broken)
    }

    /// The manifest of one model. Another model's broken file is no hindrance, its own is one: what it says is not known.
    pub fn manifest(&self, name: &str) -> Result<Manifest, Error> {
        let found = self.user_manifests()?;
        let is_own = |path: &Path| path.file_stem().is_some_and(|stem| stem == name);
        let mut names: Vec<String> = Vec::new();
        for manifest in found.all() {
            if manifest.name.as_str() == name && !found.broken.iter().any(|(path, _)| is_own(path)) {
                return Ok(manifest);
            }
            names.push(manifest.name.to_string());
        }
        if let Some((_, error)) = found.broken.into_iter().find(|(path, _)| is_own(path)) {
            return Err(error);
        }
        let folder = self.data.join("manifests");
        let why = format!("no such model; there are {}, and {}/*.toml adds more", names.join(", "), folder.display());
        Err(Error::manifest(format!("model {name}"), why))
    }

    /// Whether every file of the model is here, as the records have it.
    #[must_use]
    pub fn is_present(&self, manifest: &Manifest) -> bool {
        self.open(manifest).is_ok()
    }

    /// The files of a model that is here; never touches the network.
    pub fn open(&self, manifest: &Manifest) -> Result<ModelFiles, Error> {
        let base = self.base(manifest)?.map(|base| self.open(&base).map(Box::new)).transpose()?;
        let folder = self.folder(manifest);
        let record = Record::read(&folder);
        for file in &manifest.files {
            if !record.vouches_for(&folder, file) {
                let why = format!("{} is not on this machine, or not whole", folder.join(&file.name).display());
                return Err(Error::Absent { model: manifest.name.to_string(), why });
            }
        }
        Ok(ModelFiles { manifest: manifest.clone(), folder, base })
    }

    /// Reads every byte of the model and says how each file is. A damaged file is not taken for whole any more, and the
    /// next pull brings it again.
    pub fn verify(&self, manifest: &Manifest) -> Result<Vec<FileCheck>, Error> {
        let folder = self.folder(manifest);
        let mut record = Record::read(&folder);
        let mut checks = Vec::with_capacity(manifest.files.len());
        for file in &manifest.files {
            let state = record.verify(&folder, file)?;
            if state == FileState::Damaged {
                let _lock = PullLock::take(&folder, || ())?;
                record.forget(&folder, file)?;
            }
            checks.push(FileCheck { name: file.name.clone(), state });
        }
        Ok(checks)
    }

    /// Brings every file that is not here, those of the base first: from another model of this machine, else from the first
    /// source that has the right bytes.
    pub fn pull(&self, manifest: &Manifest, progress: &dyn Progress) -> Result<ModelFiles, Error> {
        self.pull_through(manifest, progress, &fetch::Network)
    }

    fn pull_through(
        &self,
        manifest: &Manifest,
        progress: &dyn Progress,
        network: &dyn Fetch,
    ) -> Result<ModelFiles, Error> {
        if let Ok(files) = self.open(manifest) {
            return Ok(files);
        }
        if let Some(base) = self.base(manifest)? {
            self.pull_through(&base, progress, network)?;
        }
        let folder = self.folder(manifest);
        fs::create_dir_all(&folder).map_err(Error::io(&folder))?;
        let _lock =
            PullLock::take(&folder, || progress.note(&format!("waiting for another pull of {}", manifest.name)))?;
        arrival::sweep(&folder)?;
        let mut arrival = Arrival::new(&folder, manifest, progress);
        arrival.adopt()?;
        arrival.share()?;
        let mut answers = Vec::new();
        for source in &manifest.sources {
            let missing = arrival.missing();
            if missing.is_empty() {
                break;
            }
            let answer = network.fetch(source, &missing, &mut arrival);
            if let Err(why) = answer {
                let fatal = matches!(why, Error::Io { .. } | Error::Load { .. });
                if fatal {
                    return Err(why);
                }
                progress.note(&format!("{source}: {}", reason(&why)));
                answers.push(format!("{source}: {}", reason(&why)));
            }
        }
        let missing = arrival.missing();
        if missing.is_empty() {
            return self.open(manifest);
        }
        let names: Vec<_> = missing.iter().map(|file| file.name.as_str()).collect();
        let why = format!("no source gave {} ({})", names.join(", "), answers.join("; "));
        Err(Error::Fetch { model: manifest.name.to_string(), why })
    }

    /// The manifest of a model's base, if it has one, in the revision that the model reads.
    pub fn base(&self, manifest: &Manifest) -> Result<Option<Manifest>, Error> {
        let Some(wanted) = &manifest.base else { return Ok(None) };
        let refuse = |why: String| Error::manifest(format!("model {}", manifest.name), why);
        let base = self.manifest(wanted.model.as_str()).map_err(|error| refuse(format!("its base: {error}")))?;
        if base.task != Task::Embedding {
            return Err(refuse(format!("its base {} is for {}, not for embedding", base.name, base.task)));
        }
        let found = base.revision();
        if found != wanted.revision {
            let here = format!("its base {} is {found} on this machine", base.name);
            return Err(refuse(format!("{here}, and its head was trained on {}: train it again", wanted.revision)));
        }
        Ok(Some(base))
    }

    fn folder(&self, manifest: &Manifest) -> PathBuf {
        self.data.join("models").join(manifest.name.as_str())
    }

    /// What lies in DATA/manifests.
    fn user_manifests(&self) -> Result<UserManifests, Error> {
        let mut found = UserManifests::default();
        let folder = self.data.join("manifests");
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
            Err(error) => return Err(Error::io(&folder)(error)),
        };
        let mut paths = Vec::new();
        for entry in entries {
            let path = entry.map_err(Error::io(&folder))?.path();
            if path.extension().is_some_and(|extension| extension == "toml") {
                paths.push(path);
            }
        }
        paths.sort();
        for path in paths {
            match found.read(&path) {
                Ok(manifest) => found.good.push((path, manifest)),
                Err(error) => found.broken.push((path, error)),
            }
        }
        Ok(found)
    }
}

/// The manifests in DATA/manifests, each with its path.
#[derive(Default)]
struct UserManifests {
    good: Vec<(PathBuf, Manifest)>,
    /// Files that can not be used, and why.
    broken: Vec<(PathBuf, Error)>,
}

impl UserManifests {
    /// These and the built-in ones whose place none takes, ordered by name.
    fn all(&self) -> Vec<Manifest> {
        let mut all: Vec<_> = self.good.iter().map(|(_, manifest)| manifest.clone()).collect();
        all.extend(Manifest::builtin().into_iter().filter(|ours| self.of(&ours.name).is_none()));
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    /// The file that names this model.
    fn of(&self, name: &ModelName) -> Option<&Path> {
        self.good.iter().find(|(_, manifest)| manifest.name == *name).map(|(path, _)| path.as_path())
    }

    fn read(&self, path: &Path) -> Result<Manifest, Error> {
        let text = fs::read_to_string(path).map_err(Error::io(path))?;
        let manifest = Manifest::parse(&text).map_err(|error| Error::manifest(path.display(), error))?;
        match self.of(&manifest.name) {
            None => Ok(manifest),
            Some(_) => Err(Error::manifest(path.display(), format!("a second manifest of {}", manifest.name))),
        }
    }
}

/// What an error says, without the model's name, which is said already.
fn reason(error: &Error) -> String {
    match error {
        Error::Fetch { why, .. } => why.clone(),
        other => other.to_string(),
    }
}

/// A source's refusal.
fn refused(source: &Source, why: impl ToString) -> Error {
    Error::Fetch { model: source.to_string(), why: why.to_string() }
}

#[cfg(test)]
mod tests;
