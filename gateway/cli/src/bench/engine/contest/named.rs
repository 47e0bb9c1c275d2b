//! What the command line names, looked at before anything takes long.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use engine::{Store, Task};

use super::super::{Args, Group, corpus, own};
use crate::advice::Advice;

/// Files that were named.
pub(super) struct Named {
    /// Where texts are from, and the texts.
    pub(super) texts: Option<(String, Vec<String>)>,
    /// Where a photo is, and its bytes.
    pub(super) image: Option<(PathBuf, Vec<u8>)>,
}

impl Named {
    /// Reads them, and sees that the model is one for texts.
    pub(super) fn read(args: &Args, store: &Store) -> anyhow::Result<Self> {
        if args.wants_texts() {
            let manifest = store.manifest(&args.model)?;
            if manifest.task != Task::Embedding {
                let what = format!("{} is for {}, and embedding models are measured", manifest.name, manifest.task);
                bail!(Advice::new(what, "name another with --model; `tamis models list` shows the tasks"));
            }
        }
        let texts = args.texts.as_ref().filter(|_| args.wants_texts()).map(|path| texts(path));
        let image = args.image.as_ref().filter(|_| args.wants(Group::Image)).map(|path| image(path));
        Ok(Self { texts: texts.transpose()?, image: image.transpose()? })
    }
}

fn texts(path: &Path) -> anyhow::Result<(String, Vec<String>)> {
    let texts = corpus::read(path)?;
    if texts.is_empty() {
        bail!(Advice::new(format!("{} has no texts", path.display()), "name a file with one text a line"));
    }
    Ok((path.display().to_string(), texts))
}

fn image(path: &Path) -> anyhow::Result<(PathBuf, Vec<u8>)> {
    let path = std::path::absolute(path)?;
    let file = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    own::dimensions(&file).with_context(|| format!("cannot use {}", path.display()))?;
    Ok((path, file))
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn read(words: &[&str]) -> Result<Named, String> {
        let data = tempfile::tempdir().unwrap();
        let args = Line::try_parse_from([&["engine"], words].concat()).unwrap().args;
        Named::read(&args, &Store::new(data.path())).map_err(|error| crate::advice::report(&error))
    }

    #[test]
    fn what_is_named_wrongly_is_said_before_anything_is_set_up() {
        let empty = tempfile::NamedTempFile::new().unwrap();
        let empty = empty.path().to_str().unwrap();
        for (words, part) in [
            (["--model", "nope"], "nope"),
            (["--model", "efficientnet-lite0"], "is for vision"),
            (["--texts", "/nowhere.txt"], "cannot read /nowhere.txt"),
            (["--texts", empty], "has no texts"),
            (["--image", "/nowhere.jpg"], "cannot read /nowhere.jpg"),
            (["--image", empty], "cannot use"),
        ] {
            let said = read(&words).err().unwrap_or_default();
            assert!(said.contains(part), "{words:?}: {said}");
        }
    }

    #[test]
    fn what_is_not_measured_is_not_looked_at() {
        assert!(read(&["--only", "image", "--model", "nope", "--texts", "/nowhere.txt"]).is_ok());
        assert!(read(&["--only", "single", "--image", "/nowhere.jpg"]).is_ok());
    }
}
