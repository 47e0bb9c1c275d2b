//! Files that are on this machine already, or inside this program.

use std::{fs::File, path::Path};

use super::{Arrival, refused};
use crate::{
    Error,
    manifest::{FileSource, FileSpec, Source},
};

/// Files of built-in heads, by their paths in the manifests: a few kilobytes each.
const BUILTIN: [(&str, &[u8]); 1] =
    [("sentiment-minilm-v1.safetensors", include_bytes!("../../models/sentiment-minilm-v1.safetensors"))];

pub(super) fn fetch(
    source: &Source,
    local: &FileSource,
    files: &[FileSpec],
    arrival: &mut Arrival<'_>,
) -> Result<(), Error> {
    // Joining an absolute path gives that path.
    let root = arrival.folder().join(&local.file);
    each(files, source, |file| {
        let path = if root.is_dir() { root.join(file.path_in("")) } else { root.clone() };
        let (bytes, mut from) = open(&path).map_err(|error| refused(source, format!("{}: {error}", path.display())))?;
        arrival.receive(file, Some(bytes), &mut from)
    })
}

pub(super) fn fetch_builtin(source: &Source, files: &[FileSpec], arrival: &mut Arrival<'_>) -> Result<(), Error> {
    each(files, source, |file| {
        let path = file.path_in("");
        let bytes = BUILTIN.iter().find(|(name, _)| *name == path).map(|(_, bytes)| *bytes);
        let mut bytes = bytes.ok_or_else(|| refused(source, format!("this program has no file {path:?} inside")))?;
        arrival.receive(file, Some(bytes.len() as u64), &mut bytes)
    })
}

/// Tries every file, so that one that is missing keeps no other away.
fn each(
    files: &[FileSpec],
    source: &Source,
    mut receive: impl FnMut(&FileSpec) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut refusals = Vec::new();
    for file in files {
        match receive(file) {
            Ok(()) => {}
            Err(Error::Fetch { why, .. }) => refusals.push(why),
            Err(other) => return Err(other),
        }
    }
    if refusals.is_empty() { Ok(()) } else { Err(refused(source, refusals.join("; "))) }
}

fn open(path: &Path) -> std::io::Result<(u64, File)> {
    let file = File::open(path)?;
    Ok((file.metadata()?.len(), file))
}
