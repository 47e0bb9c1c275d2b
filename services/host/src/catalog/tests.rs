//! Which model answers which call, and that every change leaves a catalog that makes sense.

use engine::{ComputePath, DeviceChoice, ItemError, Manifest, Plan, Precision, Watch};
use proptest::prelude::*;

use super::*;

const ONE: &str = "s/One";
const TWO: &str = "s/Two";
const ROOM: Room = Room { models: 3, aliases: 2 };

/// A model that is nothing but its name, its revision and what it serves.
struct Fake(ModelInfo, &'static [&'static str]);

impl Model for Fake {
    type Input = ();
    type Output = ();
    fn units(&self, (): &()) -> u32 {
        1
    }
    fn run(&self, inputs: &[&()], _: &mut Watch<'_>) -> Vec<Result<(), ItemError>> {
        inputs.iter().map(|()| Ok(())).collect()
    }
}

impl Hosted for Fake {
    fn info(&self) -> &ModelInfo {
        &self.0
    }
    fn head(&self) -> Option<&Head> {
        None
    }
    fn serves(&self, method: &str) -> bool {
        self.1.contains(&method)
    }
    fn self_test(&self) -> Result<(), String> {
        Ok(())
    }
}

/// The model of a name and a version, and its key.
fn fake(name: &str, version: u32, serves: &'static [&'static str]) -> (Key, Arc<Fake>) {
    let mut manifest = Manifest::builtin().remove(0);
    manifest.text.as_mut().unwrap().max_tokens = version;
    let revision = manifest.revision();
    let key = Key { name: name.to_owned(), revision: revision.to_string() };
    let info = ModelInfo {
        task: engine::Task::Embedding,
        name: name.to_owned().try_into().unwrap(),
        revision,
        plan: Plan { device: DeviceChoice::Cpu, path: ComputePath::Candle, precision: Precision::F32 },
        max_input_tokens: version,
        dimensions: 1,
        labels: Vec::new(),
        file_digests: Default::default(),
        sources: Vec::new(),
        licence: String::new(),
        parameter_bytes: 0,
        loaded_at: std::time::SystemTime::now(),
        normalize_default: true,
        space: manifest.space(1),
    };
    (key, Arc::new(Fake(info, serves)))
}

fn revision(version: u32) -> String {
    fake("x", version, &[]).0.revision
}

/// `a` of versions 1 and 2, where the name stands for 1 and `canary` for 2; `b`, which serves another method too.
fn catalog() -> Catalog<Fake> {
    let catalog = Catalog::new(vec!["a".to_owned(), "b".to_owned()]);
    let mut snapshot = (*catalog.snapshot()).clone();
    for ((key, model), aliases) in [
        (fake("a", 1, &[ONE]), &[][..]),
        (fake("a", 2, &[ONE]), &["canary".to_owned()]),
        (fake("b", 3, &[ONE, TWO]), &[]),
    ] {
        snapshot.check_room(&key, aliases, ROOM).unwrap();
        snapshot = snapshot.with_model(key, model, aliases);
    }
    catalog.publish(Arc::new(snapshot));
    catalog
}

/// Selects; the version of the model that answers, or the reason of the refusal.
fn select(catalog: &Catalog<Fake>, model: &str, revision: &str, method: &str) -> Result<u32, &'static str> {
    let selector = pb::ModelSelector { model: model.into(), revision: revision.into(), ..Default::default() };
    let selected = catalog.select(Some(&selector), method);
    selected.map(|model| model.info().max_input_tokens).map_err(|refused| refused.reason)
}

/// Applies a change.
fn change(catalog: &Catalog<Fake>, change: impl FnOnce(&Snapshot<Fake>) -> Result<Snapshot<Fake>, Refusal>) {
    catalog.publish(Arc::new(change(&catalog.snapshot()).unwrap()));
}

#[test]
fn names_aliases_and_pinned_revisions_select() {
    let catalog = catalog();
    let pin = revision;
    for (model, revision, method, expected) in [
        ("", String::new(), ONE, Ok(1)),
        ("", String::new(), TWO, Ok(3)),
        ("", String::new(), "s/Three", Err("MODEL_NOT_FOUND")),
        ("a", String::new(), ONE, Ok(1)),
        ("a", String::new(), TWO, Err("MODEL_NOT_FOUND")),
        ("canary", String::new(), ONE, Ok(2)),
        ("a", pin(1), ONE, Ok(1)),
        // Loaded, though the name stands for another.
        ("a", pin(2), ONE, Ok(2)),
        ("canary", pin(1), ONE, Ok(1)),
        ("", pin(2), ONE, Ok(2)),
        ("a", pin(4), ONE, Err("REVISION_MISMATCH")),
        ("", pin(4), ONE, Err("REVISION_MISMATCH")),
        ("a", pin(2), TWO, Err("MODEL_NOT_FOUND")),
        ("nobody", String::new(), ONE, Err("MODEL_NOT_FOUND")),
        ("nobody", pin(1), ONE, Err("MODEL_NOT_FOUND")),
    ] {
        assert_eq!(select(&catalog, model, &revision, method), expected, "{model} {revision} {method}");
    }
}

#[test]
fn a_name_moves_in_one_step_and_its_old_revision_still_answers_those_that_pin_it() {
    let catalog = catalog();
    let held = catalog.select(None, ONE).unwrap();
    change(&catalog, |now| now.with_alias("a", Some(now.find("a", &revision(2))?), ROOM));
    assert_eq!(held.info().max_input_tokens, 1, "a call keeps its model");
    assert_eq!((select(&catalog, "a", "", ONE), select(&catalog, "", "", ONE)), (Ok(2), Ok(2)));
    assert_eq!(select(&catalog, "a", &revision(1), ONE), Ok(1));
}

#[test]
fn default_is_an_alias_where_it_serves_the_method() {
    let catalog = catalog();
    change(&catalog, |now| now.with_alias("default", Some(now.find("a", &revision(2))?), ROOM));
    assert_eq!((select(&catalog, "", "", ONE), select(&catalog, "", "", TWO)), (Ok(2), Ok(3)));
    let snapshot = catalog.snapshot();
    let defaults = snapshot.models().filter(|(_, model)| snapshot.is_default(model, &[ONE, TWO]));
    assert_eq!(defaults.map(|(_, model)| model.info().max_input_tokens).collect::<Vec<_>>(), [2, 3]);
}

#[test]
fn an_alias_without_a_revision_stands_for_the_one_that_was_loaded_last() {
    let catalog = catalog();
    change(&catalog, |now| now.with_alias("newest", Some(now.find("a", "")?), ROOM));
    assert_eq!(select(&catalog, "newest", "", ONE), Ok(2));
    change(&catalog, |now| now.with_alias("newest", None, ROOM));
    assert_eq!(select(&catalog, "newest", "", ONE), Err("MODEL_NOT_FOUND"));
}

#[test]
fn what_can_not_be_changed_is_refused_with_its_reason() {
    let catalog = catalog();
    let now = catalog.snapshot();
    let reason = |refused: Option<Refusal>| refused.map_or("", |refused| refused.reason);
    let unload = |name: &str, revision: &str| reason(now.without_model(name, revision).err());
    assert_eq!(unload("nobody", ""), "MODEL_NOT_FOUND");
    assert_eq!(unload("canary", ""), "MODEL_NOT_FOUND", "an alias is no model's name");
    assert_eq!(unload("a", &revision(9)), "REVISION_MISMATCH");
    assert_eq!(unload("a", &revision(1)), "MODEL_IN_USE");
    assert_eq!(unload("a", &revision(2)), "MODEL_IN_USE");
    let alias = |name: &str, revision: &str| reason(now.find(name, revision).err());
    assert_eq!(alias("nobody", ""), "MODEL_NOT_FOUND");
    assert_eq!(alias("a", &revision(9)), "REVISION_MISMATCH");
    let (fourth, _) = fake("c", 4, &[]);
    assert_eq!(reason(now.check_room(&fourth, &[], ROOM).err()), "QUEUE_FULL");
    let (loaded, _) = fake("a", 1, &[]);
    let aliases = ["x", "y"].map(str::to_owned);
    assert_eq!(reason(now.check_room(&loaded, &aliases[..1], ROOM).err()), "");
    assert_eq!(reason(now.check_room(&loaded, &aliases, ROOM).err()), "QUEUE_FULL");
}

#[test]
fn a_model_whose_name_stands_for_another_is_unloaded_by_its_revision_only() {
    let catalog = catalog();
    change(&catalog, |now| now.with_alias("a", Some(now.find("b", "")?), ROOM));
    let now = catalog.snapshot();
    assert_eq!(now.without_model("a", "").err().unwrap().reason, "MODEL_IN_USE");
    let (key, after) = now.without_model("a", &revision(1)).unwrap();
    assert_eq!((key.name.as_str(), after.models().count()), ("a", 2));
}

#[test]
fn the_last_names_go_with_their_model() {
    let catalog = catalog();
    let (key, after) = catalog.snapshot().without_model("a", "").unwrap();
    assert_eq!(key.revision, revision(1));
    assert!(after.standing("a").is_none() && after.standing("canary").is_some());
    // The one that is left has no name of its own, and needs none to be meant.
    assert_eq!(after.without_model("a", "").unwrap().0.revision, revision(2));
}

/// A change, whether or not it can be made.
#[derive(Clone, Debug)]
enum Change {
    Load(usize, usize, Vec<usize>),
    Alias(usize, Option<(usize, usize)>),
    Unload(usize, Option<usize>),
}

const NAMES: [&str; 5] = ["a", "b", "c", "default", "canary"];

fn changes() -> impl Strategy<Value = Vec<Change>> {
    let one = prop_oneof![
        (0..3usize, 0..3usize, prop::collection::vec(0..5usize, 0..3)).prop_map(|(n, r, a)| Change::Load(n, r, a)),
        (0..5usize, prop::option::of((0..3usize, 0..3usize))).prop_map(|(alias, to)| Change::Alias(alias, to)),
        (0..3usize, prop::option::of(0..3usize)).prop_map(|(name, revision)| Change::Unload(name, revision)),
    ];
    prop::collection::vec(one, 0..40)
}

fn apply(now: &Snapshot<()>, change: &Change) -> Result<Snapshot<()>, Refusal> {
    match change {
        Change::Load(name, revision, aliases) => {
            let key = Key { name: NAMES[*name].to_owned(), revision: revision.to_string() };
            let aliases: Vec<_> = aliases.iter().map(|alias| NAMES[*alias].to_owned()).collect();
            now.check_room(&key, &aliases, ROOM)?;
            Ok(now.with_model(key, Arc::new(()), &aliases))
        }
        Change::Alias(alias, None) => now.with_alias(NAMES[*alias], None, ROOM),
        Change::Alias(alias, Some((name, revision))) => {
            now.with_alias(NAMES[*alias], Some(now.find(NAMES[*name], &revision.to_string())?), ROOM)
        }
        Change::Unload(name, revision) => {
            let revision = revision.map(|revision| revision.to_string()).unwrap_or_default();
            now.without_model(NAMES[*name], &revision).map(|(_, after)| after)
        }
    }
}

proptest! {
    #[test]
    fn names_always_stand_for_loaded_models_and_the_bounds_hold(changes in changes()) {
        let mut now = Snapshot::new(vec!["a".to_owned()]);
        for change in &changes {
            now = apply(&now, change).unwrap_or(now);
            let keys: Vec<_> = now.models().map(|(key, _)| key.clone()).collect();
            prop_assert!(keys.len() <= ROOM.models);
            prop_assert!(keys.iter().all(|key| keys.iter().filter(|other| *other == key).count() == 1));
            for (alias, key) in now.aliases() {
                prop_assert!(keys.contains(key), "{} stands for {:?}, which is not loaded", alias, key);
            }
            let aliases = now.aliases().iter().filter(|(alias, key)| **alias != key.name).count();
            // A name that came to stand for another model counts as an alias from then on.
            prop_assert!(aliases <= ROOM.aliases);
            prop_assert_eq!(now.default_model(|()| true).is_some(), keys.iter().any(|key| {
                now.standing(&key.name).is_some()
            }) || now.standing("a").is_some() || now.standing("default").is_some());
        }
    }
}

#[test]
fn models_for_texts_serve_what_their_task_is_for() {
    let served = |task, over_base| {
        let all = ["Embed", "EmbedStream", "CountTokens", "Rerank", "Classify", "ClassifyStream", "ClassifyZeroShot"];
        let serves = |name: &&str| text_model_serves(task, over_base, &format!("a.v1.AService/{name}"));
        all.into_iter().filter(serves).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(served(Task::Embedding, false), "Embed EmbedStream CountTokens ClassifyZeroShot");
    assert_eq!(served(Task::Classification, false), "Classify ClassifyStream");
    assert_eq!(served(Task::Classification, true), "Classify ClassifyStream ClassifyZeroShot");
    assert_eq!(served(Task::Rerank, false), "Rerank");
}
