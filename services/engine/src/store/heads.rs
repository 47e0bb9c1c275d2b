//! Models that were made on this machine: heads that were trained, encoders that were prepared for int8.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
};

use super::{Progress, PullLock, Record, Store, arrival};
use crate::{Error, Manifest, ModelFiles, ModelName};

impl Store {
    /// Whether the name is taken: by a manifest, built in or the user's, or by a file that would be overwritten.
    pub fn is_known(&self, name: &ModelName) -> Result<bool, Error> {
        let is_file = self.data.join("manifests").join(format!("{name}.toml")).exists();
        Ok(is_file || self.manifests()?.iter().any(|manifest| manifest.name == *name))
    }

    /// Puts a model of one file in its place: DATA/models/NAME/ and DATA/manifests/NAME.toml, each whole or not at all,
    /// and the manifest last. `remarks` go above the manifest, as comments.
    pub fn install(&self, manifest: &Manifest, remarks: &str, bytes: &[u8]) -> Result<ModelFiles, Error> {
        let [file] = manifest.files.as_slice() else {
            return Err(Error::manifest(&manifest.name, "a model of one file can be installed, and no other"));
        };
        let folder = self.folder(manifest);
        fs::create_dir_all(&folder).map_err(Error::io(&folder))?;
        {
            let _lock = PullLock::take(&folder, || ())?;
            let path = folder.join(&file.name);
            write(&folder, &path, bytes)?;
            let digest = arrival::digest(&path)?;
            if digest != file.sha256.as_str() {
                return Err(Error::manifest(&manifest.name, format!("its file has the digest {digest}")));
            }
            Record::read(&folder).add(&folder, file, digest)?;
        }
        self.write_manifest(manifest, remarks)?;
        self.open(manifest)
    }

    /// Puts a model in its place whose files other models of this machine have, or its sources; the manifest last, whose
    /// path is returned. `remarks` go above it, as comments.
    pub fn install_shared(
        &self,
        manifest: &Manifest,
        remarks: &str,
        progress: &dyn Progress,
    ) -> Result<PathBuf, Error> {
        self.pull(manifest, progress)?;
        self.write_manifest(manifest, remarks)
    }

    fn write_manifest(&self, manifest: &Manifest, remarks: &str) -> Result<PathBuf, Error> {
        let manifests = self.data.join("manifests");
        fs::create_dir_all(&manifests).map_err(Error::io(&manifests))?;
        let table = toml::to_string(manifest).map_err(|error| Error::manifest(&manifest.name, error))?;
        let remarks: String = remarks.lines().map(|line| format!("# {line}\n")).collect();
        let path = manifests.join(format!("{}.toml", manifest.name));
        write(&manifests, &path, format!("{remarks}{table}").as_bytes())?;
        Ok(path)
    }
}

fn write(folder: &Path, path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let mut part = arrival::part(folder)?;
    part.write_all(bytes).map_err(Error::io(path))?;
    arrival::publish(part, path)
}
