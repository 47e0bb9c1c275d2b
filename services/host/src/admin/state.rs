//! What is loaded, in a file: a process that starts again has what it had.

use std::{collections::BTreeMap, io, path::Path, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::catalog::{Key, Snapshot};

/// The loaded models and what stands for them.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct State {
    /// In the order in which they were loaded.
    models: Vec<Key>,
    aliases: BTreeMap<String, Key>,
}

impl State {
    /// The state of a snapshot.
    pub(crate) fn of<M>(snapshot: &Snapshot<M>) -> Self {
        Self { models: snapshot.models().map(|(key, _)| key.clone()).collect(), aliases: snapshot.aliases().clone() }
    }

    /// Reads a file; `None` if it is not there, or says nothing that can be used.
    pub(crate) fn read(file: &Path) -> Option<Self> {
        let unusable = |why: String| {
            tracing::warn!(file = %file.display(), why, "the state_file cannot be used; loading `models` instead");
        };
        let text = match std::fs::read(file) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                unusable(error.to_string());
                return None;
            }
        };
        match serde_json::from_slice::<Self>(&text) {
            Ok(state) if state.models.is_empty() => unusable("it names no model".to_owned()),
            Ok(state) => match state.aliases.values().find(|key| !state.models.contains(key)) {
                Some(key) => unusable(format!("a name stands for {}, which it does not list", key.name)),
                None => return Some(state),
            },
            Err(error) => unusable(error.to_string()),
        }
        None
    }

    /// Writes a file, whole or not at all.
    pub(crate) fn write(&self, file: &Path) -> io::Result<()> {
        let part = file.with_extension("part");
        std::fs::write(&part, serde_json::to_vec_pretty(self)?)?;
        std::fs::rename(part, file)
    }

    /// Loads what was loaded. A manifest may have changed since: then the revision that it has now takes the place of the
    /// one that cannot be had any more. `None` if a model cannot be loaded at all.
    pub(crate) fn restore<M, E: std::fmt::Display>(
        &self,
        empty: &Snapshot<M>,
        bring: impl Fn(&str) -> Result<(Key, Arc<M>), E>,
    ) -> Option<Snapshot<M>> {
        let mut found = BTreeMap::<&str, (Key, Arc<M>)>::new();
        let mut snapshot = empty.clone();
        for key in &self.models {
            if !found.contains_key(key.name.as_str()) {
                match bring(&key.name) {
                    Ok(loaded) => drop(found.insert(&key.name, loaded)),
                    Err(error) => {
                        let name = &key.name;
                        tracing::warn!(model = name, %error, "cannot load what was loaded; loading `models` instead");
                        return None;
                    }
                }
            }
            let (now, model) = found.get(key.name.as_str())?;
            if now != key {
                tracing::warn!(
                    model = key.name,
                    was = key.revision,
                    now = now.revision,
                    "the model has another revision now, which takes the place of the one that was loaded"
                );
            }
            let aliases: Vec<_> =
                self.aliases.iter().filter(|(_, target)| *target == key).map(|(alias, _)| alias.clone()).collect();
            snapshot = snapshot.restored(now.clone(), Arc::clone(model), aliases);
        }
        Some(snapshot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str, revision: &str) -> Key {
        Key { name: name.into(), revision: revision.into() }
    }

    fn bring(name: &str) -> Result<(Key, Arc<()>), String> {
        if name == "gone" { Err("not here".to_owned()) } else { Ok((key(name, "2"), Arc::new(()))) }
    }

    fn state(models: &[(&str, &str)], aliases: &[(&str, usize)]) -> State {
        let models: Vec<_> = models.iter().map(|(name, revision)| key(name, revision)).collect();
        let aliases = aliases.iter().map(|(alias, index)| ((*alias).to_owned(), models[*index].clone())).collect();
        State { models, aliases }
    }

    #[test]
    fn what_is_written_is_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("state.json");
        assert_eq!(State::read(&file), None);
        let written = state(&[("a", "2"), ("b", "2")], &[("a", 0), ("canary", 1)]);
        written.write(&file).unwrap();
        assert_eq!(State::read(&file), Some(written));
    }

    #[test]
    fn a_file_that_makes_no_sense_is_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("state.json");
        let stray = r#"{"models":[{"name":"a","revision":"1"}],"aliases":{"a":{"name":"b","revision":"1"}}}"#;
        for text in ["", "{", "{\"models\":[],\"aliases\":{}}", "{\"models\":[1],\"aliases\":{}}", stray] {
            std::fs::write(&file, text).unwrap();
            assert_eq!(State::read(&file), None, "{text}");
        }
    }

    #[test]
    fn everything_stands_for_what_it_stood_for() {
        let before = state(&[("a", "2"), ("b", "2")], &[("a", 1), ("canary", 0)]);
        let restored = before.restore(&Snapshot::new(vec!["a".into()]), bring).unwrap();
        assert_eq!(State::of(&restored), before);
    }

    #[test]
    fn a_revision_that_is_gone_gives_its_names_to_the_one_that_is_there() {
        let before = state(&[("a", "1"), ("a", "2")], &[("a", 1), ("old", 0)]);
        let restored = before.restore(&Snapshot::new(Vec::new()), bring).unwrap();
        assert_eq!(State::of(&restored), state(&[("a", "2")], &[("a", 0), ("old", 0)]));
    }

    #[test]
    fn a_model_that_cannot_be_loaded_means_the_configuration() {
        let before = state(&[("a", "2"), ("gone", "2")], &[]);
        assert!(before.restore(&Snapshot::new(Vec::new()), bring).is_none());
    }
}
