//! Models of the Hub by name: a manifest from the repository's own files.
//!
//! What is decided here is written down where the user can read and change it. The manifest pins the commit and the
//! digests, and is written last: after the model has loaded and computed once.

use std::{
    fs,
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
};

use super::{
    Progress, Store,
    arrival::{self, Arrival, Broken, Landed},
    hub::{Fault, Hub},
    lock::PullLock,
};
use crate::{
    Content, Error, First, Manifest, Model as _, Role, Task, TextInput, TextLimits, TextModel, Truncation, Watch, Work,
    manifest::{ModelName, Source},
};

mod document;
mod recipe;

use self::{
    document::{Pinned, document},
    recipe::Recipe,
};

/// Most bytes of a repository's small files, such as config.json and README.md. Beyond, the model is refused.
const SMALL_BYTES_MAX: u64 = 4 << 20;

/// The files that make a model, as the manifest lists them.
const FILES: [&str; 3] = ["config.json", "tokenizer.json", "model.safetensors"];

/// What the user asks for.
#[derive(Clone, Debug)]
pub struct Addition {
    /// "OWNER/NAME".
    pub repository: String,
    /// Branch, tag or commit.
    pub revision: String,
    /// Name of the model here; none: the repository's own in lower case.
    pub name: Option<String>,
    /// What it shall do; none: what its architecture says.
    pub task: Option<TextTask>,
}

/// What a checkpoint for texts can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TextTask {
    /// Texts to vectors.
    Embedding,
    /// Texts to labels.
    Classification,
    /// Pairs of texts to scores.
    Rerank,
}

/// A model that was added.
#[derive(Clone, Debug)]
pub struct Added {
    /// Its manifest.
    pub manifest: Manifest,
    /// Where the manifest lies.
    pub path: PathBuf,
    /// What it does.
    pub task: TextTask,
    /// What its logits stand for; empty if it makes vectors.
    pub labels: Vec<String>,
    /// What was decided and why, a sentence each.
    pub decisions: Vec<String>,
}

/// Why a model could not be added, by what the user can do. A second error beside [`Error`], whose callers can do
/// nothing of the kind.
#[derive(Debug, thiserror::Error)]
pub enum AddError {
    /// Correct the name or the revision.
    #[error("there is no {repository} on the hub, or it has no revision {revision}")]
    NotFound {
        /// What was asked for.
        repository: String,
        /// At which revision.
        revision: String,
    },
    /// Ask for access, and set HF_TOKEN.
    #[error("the hub lets not everybody read {repository}")]
    Gated {
        /// What was asked for.
        repository: String,
    },
    /// Look at the network.
    #[error("{why}")]
    Unreachable {
        /// What happened.
        why: String,
    },
    /// Choose another model: this version does not run what the repository holds.
    #[error("{why}")]
    Unsupported {
        /// What is missing, or not run.
        why: String,
    },
    /// Pull it again: the bytes are not those that the hub announced.
    #[error("{file} came with the sha256 {got}, the hub announced {announced}")]
    Corrupt {
        /// Path of the file.
        file: String,
        /// Digest of the bytes that came.
        got: String,
        /// Digest that the hub announced.
        announced: String,
    },
    /// Choose another name.
    #[error("the name {name} is taken by {by}")]
    NameTaken {
        /// The name.
        name: String,
        /// Whose it is.
        by: String,
    },
    /// As the error within says.
    #[error(transparent)]
    Engine(#[from] Error),
}

// === impl Store ===

impl Store {
    /// Makes a manifest from a repository's own files, brings the files, and sees the model compute.
    pub fn add(&self, wanted: &Addition, progress: &dyn Progress) -> Result<Added, AddError> {
        let name = wanted.name()?;
        // Here so that nobody waits for a pull to hear it, and again once no other can take the name.
        self.check_free(&name, &wanted.repository)?;
        let folder = self.data.join("models").join(name.as_str());
        let _lock = PullLock::take(&folder, || progress.note(&format!("waiting for another pull of {name}")))?;
        arrival::sweep(&folder)?;
        let is_new = !arrival::holds_files(&folder)?;
        let added =
            self.check_free(&name, &wanted.repository).and_then(|()| self.add_into(&folder, &name, wanted, progress));
        if added.is_err() && is_new {
            // What is left is of no model that anybody knows; a folder that can not be removed does no harm.
            drop(fs::remove_dir_all(&folder));
        }
        added
    }

    /// Takes away the manifest of a model that the user added, and its files; says which manifest it was. Of a built-in
    /// model of the same name the files stay, and it has its place again.
    pub fn remove(&self, name: &str) -> Result<PathBuf, Error> {
        let manifest = self.manifest(name)?;
        let Some(path) = self.user_manifests()?.of(&manifest.name).map(Path::to_owned) else {
            return Err(Error::manifest(format!("model {name}"), "it is built in, and can not be removed"));
        };
        fs::remove_file(&path).map_err(Error::io(&path))?;
        let folder = self.folder(&manifest);
        if folder.exists() && Manifest::builtin().iter().all(|ours| ours.name != manifest.name) {
            let _lock = PullLock::take(&folder, || ())?;
            fs::remove_dir_all(&folder).map_err(Error::io(&folder))?;
        }
        Ok(path)
    }

    /// A name is free if nobody has it. A built-in model gives its name to its own repository: both are the same model.
    fn check_free(&self, name: &ModelName, repository: &str) -> Result<(), AddError> {
        let taken = |by: String| Err(AddError::NameTaken { name: name.to_string(), by });
        let path = self.manifest_path(name);
        if let Some(path) = self.user_manifests()?.of(name) {
            return taken(path.display().to_string());
        }
        if path.exists() {
            return taken(path.display().to_string());
        }
        let Some(builtin) = Manifest::builtin().into_iter().find(|manifest| manifest.name == *name) else {
            return Ok(());
        };
        let is_same = |source: &Source| matches!(source, Source::Hub(hub) if hub.hub.eq_ignore_ascii_case(repository));
        if builtin.sources.iter().any(is_same) { Ok(()) } else { taken("a built-in model".to_owned()) }
    }

    fn add_into(
        &self,
        folder: &Path,
        name: &ModelName,
        wanted: &Addition,
        progress: &dyn Progress,
    ) -> Result<Added, AddError> {
        let checkout = Checkout::open(wanted, folder, progress)?;
        let recipe = Recipe::of(wanted.task, &|path| checkout.read(path))?;
        let (mut pinned, mut landed) = (Vec::new(), Vec::new());
        for name in FILES {
            let file = checkout.bring(name, &recipe.folder)?;
            pinned.push(Pinned { name, sha256: file.sha256.clone() });
            landed.push(file);
        }
        let text = document(name, wanted, &checkout.commit, &recipe, &pinned);
        let manifest = Manifest::parse(&text)?;
        let mut arrival = Arrival::new(folder, &manifest, progress);
        for (file, landed) in manifest.files.iter().zip(landed) {
            arrival.receive_landed(file, landed)?;
        }
        let labels = self.try_out(&manifest)?;
        let path = self.manifest_path(name);
        write(&path, &text)?;
        Ok(Added { manifest, path, task: recipe.task, labels, decisions: recipe.decisions })
    }

    /// Computes one text: tensors that are missing, or labels that are too few, show here and not when it shall serve.
    /// Says what the logits stand for.
    fn try_out(&self, manifest: &Manifest) -> Result<Vec<String>, AddError> {
        let refuse = |why: String| AddError::Unsupported { why };
        let files = self.open(manifest)?;
        let limits = TextLimits { bytes_max: 64, windows_max: 1 };
        let model = TextModel::load(&files, limits).map_err(|error| refuse(error.to_string()))?;
        let text = "A man is eating food.";
        let content = match manifest.task {
            Task::Rerank => Content::Pair(First::text(text), text.to_owned()),
            _ => Content::Text(text.to_owned(), Role::default()),
        };
        let input = TextInput { content, work: Work::Compute(Truncation::End) };
        let outputs = model.run(&[&input], &mut Watch::start(&|| true));
        match outputs.into_iter().next() {
            Some(Err(error)) => Err(refuse(format!("the model does not compute: {}", error.message))),
            _ => Ok(model.info().labels.clone()),
        }
    }

    fn manifest_path(&self, name: &ModelName) -> PathBuf {
        self.data.join("manifests").join(format!("{name}.toml"))
    }
}

// === impl Addition ===

impl Addition {
    fn name(&self) -> Result<ModelName, AddError> {
        let own = || {
            let base = self.repository.rsplit('/').next().unwrap_or_default().to_ascii_lowercase();
            let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '_' | '-');
            base.chars().map(|c| if allowed(c) { c } else { '-' }).collect::<String>()
        };
        let name = self.name.clone().unwrap_or_else(own);
        // The source's own check of the repository's name comes with the manifest, which is too late to ask a hub for it.
        let plain = |part: &str| {
            !part.starts_with(['.', '-'])
                && !part.is_empty()
                && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))
        };
        if self.repository.split('/').count() != 2 || !self.repository.split('/').all(plain) {
            let why = "no repository of the hub: OWNER/NAME";
            return Err(Error::manifest(format!("{:?}", self.repository), why).into());
        }
        if self.revision.is_empty() || self.revision.chars().any(|c| c.is_whitespace() || c.is_control()) {
            return Err(Error::manifest(format!("{:?}", self.revision), "no revision: a branch, tag or commit").into());
        }
        Ok(ModelName::try_from(name).map_err(|why| Error::manifest("name", why))?)
    }
}

/// A repository at the commit that the revision stood for when it was asked.
struct Checkout<'a> {
    hub: Hub,
    commit: String,
    paths: Vec<String>,
    repository: &'a str,
    /// Where the model's files go.
    folder: &'a Path,
    progress: &'a dyn Progress,
}

impl<'a> Checkout<'a> {
    fn open(wanted: &'a Addition, folder: &'a Path, progress: &'a dyn Progress) -> Result<Self, AddError> {
        let Addition { repository, revision, .. } = wanted;
        let refuse = |fault: Fault| match fault {
            Fault::Missing => AddError::NotFound { repository: repository.clone(), revision: revision.clone() },
            other => from_fault(repository, other),
        };
        progress.note(&format!("asking for {repository} at {revision}"));
        let info = Hub::open(repository, revision).and_then(|hub| hub.info()).map_err(refuse)?;
        if info.sha.is_empty() || !info.sha.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(AddError::Unreachable { why: format!("the hub names no commit of {repository}") });
        }
        // From here on the commit: a branch may move between two files.
        let hub = Hub::open(repository, &info.sha).map_err(refuse)?;
        let paths = info.siblings.into_iter().map(|file| file.rfilename).collect();
        Ok(Self { hub, commit: info.sha, paths, repository, folder, progress })
    }

    /// The bytes of a small file; nothing if the repository has none of this path.
    fn read(&self, path: &str) -> Result<Option<Vec<u8>>, AddError> {
        if !self.has(path) {
            return Ok(None);
        }
        let refuse = |fault: Fault| match fault {
            Fault::TooLong { .. } => AddError::Unsupported { why: format!("{path} can not be read: {fault}") },
            other => from_fault(self.repository, other),
        };
        let mut content = self.hub.content(path, Some(SMALL_BYTES_MAX)).map_err(refuse)?;
        let mut bytes = Vec::new();
        content.read_to_end(&mut bytes).map_err(|error| self.broke_off(path, &error))?;
        Ok(Some(bytes))
    }

    /// Brings a file of the model and takes its digest.
    fn bring(&self, name: &'static str, folder: &str) -> Result<Landed, AddError> {
        let path = if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") };
        if !self.has(&path) {
            return Err(AddError::Unsupported { why: self.lacks(&path) });
        }
        let mut content = self.hub.content(&path, None).map_err(|fault| from_fault(self.repository, fault))?;
        self.progress.started(name, content.bytes);
        let landed = Landed::write(self.folder, &mut content, |bytes| self.progress.advanced(bytes));
        let landed = landed.map_err(|broken| match broken {
            Broken::Read(error) => self.broke_off(&path, &error),
            Broken::Write(error) => Error::io(self.folder.join(name))(error).into(),
        })?;
        match content.sha256 {
            Some(announced) if announced != landed.sha256 => {
                Err(AddError::Corrupt { file: path, got: landed.sha256, announced })
            }
            _ => Ok(landed),
        }
    }

    fn broke_off(&self, path: &str, error: &io::Error) -> AddError {
        AddError::Unreachable { why: format!("{}: {path} broke off: {error}", self.repository) }
    }

    /// A path that leads out of its folder is no file of a repository, whatever the hub lists.
    fn has(&self, path: &str) -> bool {
        let is_inside = !path.contains('\\') && path.split('/').all(|part| !matches!(part, "" | "." | ".."));
        is_inside && self.paths.iter().any(|other| other == path)
    }

    /// What is said of a file that the repository does not have.
    fn lacks(&self, path: &str) -> String {
        let others = |end: &str| self.paths.iter().filter(|other| other.ends_with(end)).cloned().collect::<Vec<_>>();
        let repository = self.repository;
        if !path.ends_with("model.safetensors") {
            return format!("{repository} has no {path}, which this version reads");
        }
        let instead = [".safetensors", ".bin", ".onnx", ".h5", ".msgpack"].map(others).concat();
        let instead = if instead.is_empty() { "no weights at all".to_owned() } else { instead.join(", ") };
        format!(
            "{repository} has no {path}: this version reads weights in one file of safetensors, and there is {instead}"
        )
    }
}

fn from_fault(repository: &str, fault: Fault) -> AddError {
    match fault {
        Fault::Forbidden => AddError::Gated { repository: repository.to_owned() },
        other => AddError::Unreachable { why: format!("{repository}: {other}") },
    }
}

/// A manifest is there whole or not at all.
fn write(path: &Path, text: &str) -> Result<(), Error> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder).map_err(Error::io(folder))?;
    let mut part = arrival::part(folder)?;
    part.write_all(text.as_bytes()).map_err(Error::io(path))?;
    arrival::publish(part, path)
}

#[cfg(test)]
mod tests;
