//! What is loaded at one moment, and what becomes of it with a change.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use chassis::refusal::Refusal;
use engine::ModelInfo;
use proto::common::v1::ErrorReason;
use serde::{Deserialize, Serialize};
use tonic::Code;

use crate::status::refusal;

/// The alias that stands for the model of calls that select none.
pub(crate) const DEFAULT: &str = "default";
/// Bytes of a name that are shown to whoever sent it.
const SHOWN_MAX: usize = 128;

/// What tells loaded models apart. Two models may be of the same revision under different names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Key {
    pub(crate) name: String,
    pub(crate) revision: String,
}

impl Key {
    /// The key of a loaded model.
    pub(crate) fn of(info: &ModelInfo) -> Self {
        Self { name: info.name.to_string(), revision: info.revision.to_string() }
    }
}

/// How much may be loaded.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Room {
    /// Revisions.
    pub(crate) models: usize,
    /// Aliases; the names of models by which they stand for themselves do not count.
    pub(crate) aliases: usize,
}

/// The models at one moment. A name or alias always stands for a loaded model.
pub(crate) struct Snapshot<M> {
    /// In the order in which they were loaded.
    models: Vec<(Key, Arc<M>)>,
    /// Names of models among them.
    aliases: BTreeMap<String, Key>,
    /// Names of the configuration, in its order.
    configured: Arc<[String]>,
}

// Derived, it would ask for models that can be cloned.
impl<M> Clone for Snapshot<M> {
    fn clone(&self) -> Self {
        let Self { models, aliases, configured } = self;
        Self { models: models.clone(), aliases: aliases.clone(), configured: Arc::clone(configured) }
    }
}

impl<M> Snapshot<M> {
    /// No models.
    pub(crate) fn new(configured: Vec<String>) -> Self {
        Self { models: Vec::new(), aliases: BTreeMap::new(), configured: configured.into() }
    }

    /// All models, in the order in which they were loaded.
    pub(crate) fn models(&self) -> impl Iterator<Item = (&Key, &Arc<M>)> {
        self.models.iter().map(|(key, model)| (key, model))
    }

    /// The model of this name and revision.
    pub(crate) fn get(&self, key: &Key) -> Option<&Arc<M>> {
        self.models.iter().find(|(other, _)| other == key).map(|(_, model)| model)
    }

    /// What a name or alias stands for.
    pub(crate) fn standing(&self, alias: &str) -> Option<(&Key, &Arc<M>)> {
        let key = self.aliases.get(alias)?;
        self.get(key).map(|model| (key, model))
    }

    /// The revision of a model that was loaded last.
    pub(crate) fn latest(&self, name: &str) -> Option<(&Key, &Arc<M>)> {
        self.models().filter(|(key, _)| key.name == name).last()
    }

    /// Whether something has this name or alias.
    pub(crate) fn knows(&self, name: &str) -> bool {
        self.aliases.contains_key(name) || self.latest(name).is_some()
    }

    /// The names that stand for a model, ordered.
    pub(crate) fn aliases_of(&self, key: &Key) -> Vec<String> {
        self.aliases.iter().filter(|(_, target)| *target == key).map(|(alias, _)| alias.clone()).collect()
    }

    /// Every name and alias, and what it stands for.
    pub(crate) fn aliases(&self) -> &BTreeMap<String, Key> {
        &self.aliases
    }

    /// The model of calls that select none: what `default` stands for, else the first name of the configuration, else the
    /// first that was loaded; of those that serve.
    pub(crate) fn default_model(&self, serves: impl Fn(&M) -> bool) -> Option<&Arc<M>> {
        let loaded = self.models.iter().map(|(key, _)| key.name.as_str());
        let names = [DEFAULT].into_iter().chain(self.configured.iter().map(String::as_str)).chain(loaded);
        names.filter_map(|name| self.standing(name)).map(|(_, model)| model).find(|model| serves(model))
    }

    /// Refuses a load that would exceed the bounds.
    pub(crate) fn check_room(&self, key: &Key, aliases: &[String], room: Room) -> Result<(), Refusal> {
        if self.get(key).is_none() && self.models.len() >= room.models {
            let message = format!("{} revisions are loaded, the bound (models_max); unload one first", room.models);
            return Err(full(message));
        }
        let mut after = self.aliases.clone();
        after.extend(self.names_of(key, aliases).into_iter().map(|alias| (alias, key.clone())));
        let count = count_aliases(&after);
        if count > room.aliases.max(count_aliases(&self.aliases)) {
            return Err(full(format!("{count} aliases would be set, at most {} may; drop one first", room.aliases)));
        }
        Ok(())
    }

    /// The same with this model loaded and these aliases for it; without any, its own name if that stands for nothing yet.
    pub(crate) fn with_model(&self, key: Key, model: Arc<M>, aliases: &[String]) -> Self {
        let aliases = self.names_of(&key, aliases);
        self.restored(key, model, aliases)
    }

    /// The same with a model and exactly these aliases for it.
    pub(crate) fn restored(&self, key: Key, model: Arc<M>, aliases: Vec<String>) -> Self {
        let mut after = self.clone();
        after.aliases.extend(aliases.into_iter().map(|alias| (alias, key.clone())));
        if after.get(&key).is_none() {
            after.models.push((key, model));
        }
        after
    }

    fn names_of(&self, key: &Key, aliases: &[String]) -> Vec<String> {
        match aliases {
            [] if self.aliases.contains_key(&key.name) => Vec::new(),
            [] => vec![key.name.clone()],
            aliases => aliases.to_vec(),
        }
    }

    /// The revision of a loaded model that an alias is to stand for.
    pub(crate) fn find(&self, name: &str, revision: &str) -> Result<&Key, Refusal> {
        let (latest, _) = self.latest(name).ok_or_else(|| self.unknown(name).field("name"))?;
        if revision.is_empty() {
            return Ok(latest);
        }
        let found = self.models().find(|(key, _)| key.name == name && key.revision == revision);
        found.map(|(key, _)| key).ok_or_else(|| not_this_revision(latest))
    }

    /// The same with an alias that stands for this model, which is loaded; or for none.
    pub(crate) fn with_alias(&self, alias: &str, target: Option<&Key>, room: Room) -> Result<Self, Refusal> {
        let mut after = self.clone();
        match target {
            Some(key) => {
                self.check_room(key, &[alias.to_owned()], room)?;
                after.aliases.insert(alias.to_owned(), key.clone());
            }
            None => {
                after.aliases.remove(alias);
            }
        }
        Ok(after)
    }

    /// The model that an unload is about, and the same without it.
    pub(crate) fn without_model(&self, name: &str, revision: &str) -> Result<(Key, Self), Refusal> {
        let key = if revision.is_empty() { self.stands_for_itself(name)? } else { self.find(name, revision)? }.clone();
        let aliases = self.aliases_of(&key);
        if !revision.is_empty() && !aliases.is_empty() {
            let message = format!("{} stands for this revision of {name}; move or drop it first", aliases.join(", "));
            return Err(in_use(message));
        }
        let mut after = self.clone();
        after.models.retain(|(other, _)| *other != key);
        after.aliases.retain(|_, target| *target != key);
        Ok((key, after))
    }

    /// The revision that a model's name stands for. Where it stands for another model, taking that one out of service
    /// would not be what was asked for.
    fn stands_for_itself(&self, name: &str) -> Result<&Key, Refusal> {
        let (latest, _) = self.latest(name).ok_or_else(|| self.unknown(name).field("name"))?;
        match self.aliases.get(name) {
            Some(key) if key.name == name => Ok(key),
            Some(key) => {
                let message = format!("`{name}` stands for {} now; say which revision of {name} is meant", key.name);
                Err(in_use(message))
            }
            None if self.models().filter(|(key, _)| key.name == name).count() == 1 => Ok(latest),
            None => Err(not_this_revision(latest)),
        }
    }

    /// The refusal of a name that nothing has.
    pub(crate) fn unknown(&self, name: &str) -> Refusal {
        let names: Vec<_> = self.aliases.keys().map(String::as_str).collect();
        let shown: String = name.chars().take(SHOWN_MAX).collect();
        let message = format!("no loaded model is named `{shown}`; there are: {}", names.join(", "));
        refusal(Code::NotFound, ErrorReason::ModelNotFound, message).field("model.model")
    }
}

fn count_aliases(aliases: &BTreeMap<String, Key>) -> usize {
    aliases.iter().filter(|(alias, key)| **alias != key.name).count()
}

fn not_this_revision(latest: &Key) -> Refusal {
    let message = format!("{} is loaded in revision {}; say which one is meant", latest.name, latest.revision);
    refusal(Code::FailedPrecondition, ErrorReason::RevisionMismatch, message).field("revision")
}

fn in_use(message: String) -> Refusal {
    refusal(Code::FailedPrecondition, ErrorReason::ModelInUse, message)
}

/// As the closed list has it, with a time to try again: somebody may have made room by then.
fn full(message: String) -> Refusal {
    Refusal::full(message, Duration::from_secs(1))
}
