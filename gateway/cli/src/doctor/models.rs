//! Models: their manifests parse, their files are here and whole.

use chassis::units::ByteSize;
use engine::{FileState, Manifest, Store};

use super::finding::Finding;

const CHECK: &str = "model";

/// How a model's files are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// As the records have it, or as every byte has it.
    Whole(ByteSize, Depth),
    /// Nothing of it is here.
    Absent,
    /// Some of it is not: why.
    Broken(String),
}

/// How thoroughly files are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Depth {
    /// By the records of the pull.
    Records,
    /// By the digest of every byte.
    Digests,
}

/// Looks at all models that have a manifest; those that the mesh loads must be here. Also says how large these are.
pub(crate) fn check(store: &Store, needed: &[String], depth: Depth) -> (Vec<Finding>, ByteSize) {
    let found = store.manifests().and_then(|manifests| Ok((manifests, store.broken_manifests()?)));
    let fail = |error: &engine::Error| {
        let help = "correct the file in `manifests` of the data directory, or remove it";
        Finding::fail(CHECK, "manifests", error.to_string()).help(help)
    };
    let (manifests, broken) = match found {
        Ok(found) => found,
        Err(error) => return (vec![fail(&error)], ByteSize(0)),
    };
    let mut findings: Vec<_> = broken.iter().map(|(_, error)| fail(error)).collect();
    let mut size = 0;
    for name in needed {
        if manifests.iter().all(|manifest| manifest.name.as_str() != name) {
            let help = "`tamis models list` shows those that are known; a role's `models` names what it loads";
            findings.push(Finding::fail(CHECK, name, "a service is to load it, and no manifest names it").help(help));
        }
    }
    for manifest in &manifests {
        let name = manifest.name.as_str();
        let needed = needed.iter().any(|needed| needed == name);
        let state = look(store, manifest, depth);
        if let (State::Whole(bytes, _), true) = (&state, needed) {
            size += bytes.as_u64();
        }
        findings.push(judge(name, &state, needed));
    }
    (findings, ByteSize(size))
}

/// What is to be said about a model.
pub(crate) fn judge(name: &str, state: &State, needed: bool) -> Finding {
    match state {
        State::Whole(size, Depth::Records) => Finding::ok(CHECK, name, format!("{size}, whole by its record")),
        State::Whole(size, Depth::Digests) => Finding::ok(CHECK, name, format!("{size}, every digest is right")),
        State::Absent if needed => Finding::warn(CHECK, name, "not on this machine, and a service loads it")
            .help(format!("`tamis up` pulls it, and so does `tamis models pull {name}`")),
        State::Absent => Finding::ok(CHECK, name, "not on this machine; no service loads it"),
        State::Broken(why) => Finding::fail(CHECK, name, why.clone()).help(format!("`tamis models pull {name}`")),
    }
}

fn look(store: &Store, manifest: &Manifest, depth: Depth) -> State {
    let files = match store.open(manifest) {
        Ok(files) => files,
        Err(error) => return why_not(store, manifest, &error.to_string()),
    };
    if depth == Depth::Digests {
        let base = files.base.as_ref().map(|base| &base.manifest);
        for manifest in base.into_iter().chain([manifest]) {
            if let Err(why) = read(store, manifest) {
                return State::Broken(why);
            }
        }
    }
    let size = |name: &str| std::fs::metadata(files.folder.join(name)).map_or(0, |metadata| metadata.len());
    State::Whole(ByteSize(manifest.files.iter().map(|file| size(&file.name)).sum()), depth)
}

/// Reads every byte of a model; what is wrong with them.
fn read(store: &Store, manifest: &Manifest) -> Result<(), String> {
    let checks = store.verify(manifest).map_err(|error| error.to_string())?;
    match checks.iter().find(|check| check.state != FileState::Whole) {
        None => Ok(()),
        Some(check) => {
            let why = "is damaged: its sha256 is not that of the published file";
            Err(format!("{} of {} {why}", check.name, manifest.name))
        }
    }
}

/// A model that was never pulled differs from one of which something is missing.
fn why_not(store: &Store, manifest: &Manifest, why: &str) -> State {
    let missing = |state: &FileState| *state == FileState::Missing;
    match store.verify(manifest) {
        Ok(checks) if checks.iter().all(|check| missing(&check.state)) => State::Absent,
        _ => State::Broken(why.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::finding::Mark;

    #[test]
    fn a_model_that_a_service_loads_must_be_here() {
        let place = tempfile::tempdir().unwrap();
        let needed = ["all-minilm-l6-v2".to_owned(), "nope".to_owned()];
        let (findings, size) = check(&Store::new(place.path()), &needed, Depth::Records);
        let mark = |name: &str| findings.iter().find(|finding| finding.subject == name).unwrap().mark;
        assert_eq!(
            (mark("all-minilm-l6-v2"), mark("nope"), mark("efficientnet-lite0")),
            (Mark::Warn, Mark::Fail, Mark::Ok)
        );
        assert_eq!(size, ByteSize(0));
    }

    #[test]
    fn a_manifest_that_does_not_parse_is_named() {
        let place = tempfile::tempdir().unwrap();
        std::fs::create_dir(place.path().join("manifests")).unwrap();
        std::fs::write(place.path().join("manifests/mine.toml"), "name = ").unwrap();
        let (findings, _) = check(&Store::new(place.path()), &[], Depth::Records);
        assert_eq!(findings[0].mark, Mark::Fail);
        assert!(findings[0].what.contains("mine.toml") && findings[0].help.is_some(), "{findings:?}");
        assert_eq!(findings.len(), 1 + Manifest::builtin().len(), "the others are looked at all the same");
    }

    #[test]
    fn a_broken_model_is_to_be_pulled_again() {
        let finding = judge("m", &State::Broken("x is not whole".into()), false);
        assert_eq!((finding.mark, finding.help.as_deref()), (Mark::Fail, Some("`tamis models pull m`")));
    }
}
