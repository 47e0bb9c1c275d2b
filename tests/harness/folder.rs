//! Where the tests keep their files: `target/e2e`, with a folder of its own for each mesh.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use tempfile::TempDir;

use super::{binary, process};

/// Cargo's target directory, as this executable lies in it: `TARGET/PROFILE/deps/e2e-HASH`.
pub(super) fn target() -> PathBuf {
    executable().ancestors().nth(3).unwrap().to_owned()
}

/// The name of the profile's folder.
pub(super) fn profile() -> &'static str {
    static PROFILE: OnceLock<String> = OnceLock::new();
    PROFILE.get_or_init(|| {
        let folder = executable();
        folder.ancestors().nth(2).and_then(Path::file_name).unwrap().to_str().unwrap().to_owned()
    })
}

/// What outlives a run.
pub(super) fn kept() -> PathBuf {
    let folder = target().join("e2e");
    fs::create_dir_all(&folder).unwrap();
    folder
}

fn executable() -> PathBuf {
    std::env::current_exe().unwrap()
}

/// A data directory of its own, with the models that all share; what a test adds is its own.
pub(crate) struct Folder(TempDir);

impl Folder {
    pub(crate) fn new() -> Self {
        let folder = Self::empty();
        let own = folder.path().join("models");
        fs::create_dir(&own).unwrap();
        for model in fs::read_dir(models()).unwrap().map(|entry| entry.unwrap()) {
            symlink(model.path(), own.join(model.file_name())).unwrap();
        }
        folder
    }

    /// One without any models.
    pub(crate) fn empty() -> Self {
        sweep();
        // The process in the name tells the next run whether the folder was left behind.
        let prefix = format!("mesh-{}-", std::process::id());
        Self(tempfile::Builder::new().prefix(&prefix).tempdir_in(kept()).unwrap())
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    pub(crate) fn certs(&self) -> PathBuf {
        self.path().join("certs")
    }
}

/// Pulls the models, as a user does. What is there already is not pulled again.
fn models() -> &'static Path {
    static MODELS: OnceLock<PathBuf> = OnceLock::new();
    MODELS.get_or_init(|| {
        let data = kept().join("data");
        let output =
            Command::new(binary::path()).args(["models", "pull"]).env("TAMIS_DATA_DIR", &data).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "`tamis models pull` failed; it needs pip and the network once:\n{said}");
        data.join("models")
    })
}

/// Removes the folders of runs that have ended: the mesh that all tests share is never dropped.
fn sweep() {
    static SWEPT: OnceLock<()> = OnceLock::new();
    SWEPT.get_or_init(|| {
        for entry in fs::read_dir(kept()).unwrap().flatten() {
            let name = entry.file_name().into_string().unwrap_or_default();
            let owner = name.strip_prefix("mesh-").and_then(|rest| rest.split('-').next()?.parse().ok());
            if owner.is_some_and(|pid: u32| !process::is_alive(pid)) {
                // Another run may have been faster.
                drop(fs::remove_dir_all(entry.path()));
            }
        }
    });
}
