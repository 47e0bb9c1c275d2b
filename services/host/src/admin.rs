//! Changes of what is loaded: one at a time, and whatever fails, nothing has changed.

mod adapter;
mod state;

use std::{path::PathBuf, sync::Arc, time::Duration};

use chassis::refusal::Refusal;
use engine::{Compute, FileState, Manifest, ModelInfo, ModelName, Plan, Store};
use proto::{common::v1::ErrorReason, model::v1 as pb};
use tokio::sync::{Mutex, OwnedMutexGuard};
use tonic::Code;

pub(crate) use self::adapter::Admin;
use self::state::State;
use crate::{
    Error, Host, Hosted, Loader, bad_parameter,
    catalog::{Catalog, Key, Room, Snapshot},
    status::refusal,
};

/// Most aliases that a load may set.
const LOAD_ALIASES_MAX: usize = 16;
/// How often a model that is to be freed is looked at: nobody announces that the last call has let go of it.
const UNUSED_INTERVAL: Duration = Duration::from_millis(10);

/// What changes the models of a host.
pub(crate) struct Changes<M: Hosted> {
    pub(crate) host: Arc<Host<M>>,
    pub(crate) store: Store,
    pub(crate) load: Arc<Loader<M>>,
    /// Full names of the service's methods: a model must serve one at least.
    pub(crate) methods: &'static [&'static str],
    /// What computes the models: it is part of their revisions.
    pub(crate) compute: Compute,
    pub(crate) room: Room,
    /// Where what is loaded is written down, if anywhere.
    pub(crate) state_file: Option<PathBuf>,
    /// Held by the one change that is under way.
    pub(crate) turn: Arc<Mutex<()>>,
}

/// The right to change what is loaded.
pub(crate) type Turn = OwnedMutexGuard<()>;

impl<M: Hosted> Changes<M> {
    /// Waits for the changes before.
    pub(crate) async fn turn(&self) -> Turn {
        Arc::clone(&self.turn).lock_owned().await
    }

    /// Loads what the state file says, else these models.
    pub(crate) async fn start(&self, names: &[String], turn: Turn) -> Result<(), Error> {
        let store = self.store.clone();
        let (load, methods, names) = (Arc::clone(&self.load), self.methods, names.to_vec());
        let (empty, file) = (self.host.catalog.snapshot(), self.state_file.clone());
        let starting = move || {
            let bring = |name: &str| {
                let model = bring(&store, &store.manifest(name)?, &load, methods)?;
                log_loaded(model.info());
                Ok::<_, engine::Error>((Key::of(model.info()), Arc::new(model)))
            };
            let restored = file.and_then(|file| State::read(&file)).and_then(|state| state.restore(&empty, bring));
            let snapshot = restored.map_or_else(|| configured(&empty, &names, bring), Ok);
            (snapshot, turn)
        };
        // Off the threads that answer probes.
        let (snapshot, _turn) = tokio::task::spawn_blocking(starting).await.map_err(std::io::Error::other)?;
        self.host.catalog.publish(Arc::new(snapshot?));
        Ok(())
    }

    /// Loads a model, tests it, and lets names stand for it.
    async fn load(&self, request: &pb::LoadModelRequest) -> Result<(Key, Arc<M>), Refusal> {
        let aliases = &request.aliases;
        if aliases.len() > LOAD_ALIASES_MAX {
            let message = format!("{} aliases, at most {LOAD_ALIASES_MAX} are taken", aliases.len());
            return Err(bad_parameter("aliases", message));
        }
        for (index, alias) in aliases.iter().enumerate() {
            check_alias(&format!("aliases[{index}]"), alias)?;
        }
        let turn = self.turn().await;
        let manifest = self.manifest(&request.name).await?;
        let key = self.key(&manifest).await?;
        let fits = |expected: &str| expected == key.revision || expected == manifest.revision().as_str();
        if !request.expected_revision.is_empty() && !fits(&request.expected_revision) {
            let message =
                format!("{} would be loaded in revision {}, which is not the one expected", key.name, key.revision);
            let refused = refusal(Code::FailedPrecondition, ErrorReason::RevisionMismatch, message);
            return Err(refused.field("expected_revision"));
        }
        let before = self.host.catalog.snapshot();
        before.check_room(&key, aliases, self.room)?;
        let (model, _turn) = match before.get(&key) {
            Some(model) => (Arc::clone(model), turn),
            None => {
                let (model, turn) = self.bring(manifest, turn).await?;
                (Arc::new(model), turn)
            }
        };
        self.commit(before.with_model(key.clone(), Arc::clone(&model), aliases))?;
        Ok((key, model))
    }

    /// Lets an alias stand for another model, or for none; what it stood for.
    async fn set_alias(&self, request: &pb::SetAliasRequest) -> Result<Option<Key>, Refusal> {
        check_alias("alias", &request.alias)?;
        if request.name.is_empty() && !request.revision.is_empty() {
            return Err(bad_parameter("revision", "a revision without the name of its model"));
        }
        let _turn = self.turn().await;
        let before = self.host.catalog.snapshot();
        let target = match request.name.as_str() {
            "" => None,
            name => Some(before.find(name, &request.revision)?),
        };
        let after = before.with_alias(&request.alias, target, self.room)?;
        self.commit(after)?;
        Ok(before.aliases().get(&request.alias).cloned())
    }

    /// Takes a model out of service, waits until no call uses it any more, and frees it.
    async fn unload(&self, request: &pb::UnloadModelRequest) -> Result<Key, Refusal> {
        let _turn = self.turn().await;
        let (key, after) = self.host.catalog.snapshot().without_model(&request.name, &request.revision)?;
        let after = Arc::new(after);
        let mut hidden = Hidden::publish(&self.host.catalog, Arc::clone(&after));
        hidden.unused(&key).await;
        self.write(&after)?;
        let freed = hidden.keep();
        drop(after);
        // Off the threads that answer: giving back memory takes its time.
        drop(tokio::task::spawn_blocking(move || drop(freed)).await);
        Ok(key)
    }

    async fn manifest(&self, name: &str) -> Result<Manifest, Refusal> {
        let (store, wanted) = (self.store.clone(), name.to_owned());
        let read = move || (store.manifest(&wanted), store.manifests());
        let (found, all) =
            tokio::task::spawn_blocking(read).await.map_err(|error| Refusal::engine(error.to_string()))?;
        let error = match found {
            Ok(manifest) => return Ok(manifest),
            Err(error) => error,
        };
        let known: Vec<_> = all.map_err(not_loadable)?.iter().map(|manifest| manifest.name.to_string()).collect();
        // Its own file is there and says nothing that can be used.
        let own = ModelName::try_from(name.to_owned()).is_ok_and(|name| self.store.is_known(&name).unwrap_or(true));
        if own {
            return Err(not_loadable(error));
        }
        let shown: String = name.chars().take(128).collect();
        let message = format!("no manifest names a model `{shown}`; there are: {}", known.join(", "));
        Err(refusal(Code::NotFound, ErrorReason::ModelNotFound, message).field("name"))
    }

    /// The key that a model will have once it is loaded.
    async fn key(&self, manifest: &Manifest) -> Result<Key, Refusal> {
        let (store, compute, manifest) = (self.store.clone(), self.compute, manifest.clone());
        let plan = move || {
            let revision = Plan::new(&store.open(&manifest)?, &compute)?.revision(&manifest);
            Ok::<_, engine::Error>(Key { name: manifest.name.to_string(), revision: revision.to_string() })
        };
        let planned = tokio::task::spawn_blocking(plan).await.map_err(|error| Refusal::engine(error.to_string()))?;
        planned.map_err(not_loadable)
    }

    /// The model, read and tested. The turn goes with the work and comes back with it: a caller that gives up leaves it
    /// with the work, so that no other load begins beside it.
    async fn bring(&self, manifest: Manifest, turn: Turn) -> Result<(M, Turn), Refusal> {
        let (store, load, methods) = (self.store.clone(), Arc::clone(&self.load), self.methods);
        let work = move || {
            let checked = check_files(&store, &manifest);
            (checked.and_then(|()| bring(&store, &manifest, &load, methods)), turn)
        };
        match tokio::task::spawn_blocking(work).await {
            Ok((Ok(model), turn)) => Ok((model, turn)),
            Ok((Err(error), _)) => Err(not_loadable(error)),
            Err(panic) => {
                tracing::error!(%panic, "a model panicked while it was loaded");
                Err(not_loadable("the model panicked while it was loaded and tested; the log has the cause"))
            }
        }
    }

    /// Writes the state down, then lets calls see it: a state that cannot be kept is none.
    fn commit(&self, after: Snapshot<M>) -> Result<(), Refusal> {
        self.write(&after)?;
        self.host.catalog.publish(Arc::new(after));
        Ok(())
    }

    fn write(&self, after: &Snapshot<M>) -> Result<(), Refusal> {
        let Some(file) = &self.state_file else { return Ok(()) };
        State::of(after).write(file).map_err(|error| {
            tracing::error!(file = %file.display(), %error, "the state cannot be written; nothing is changed");
            Refusal::engine("the state_file cannot be written, so nothing was changed; the log has the cause")
        })
    }
}

/// Loads the models of the configuration.
fn configured<M, E>(
    empty: &Snapshot<M>,
    names: &[String],
    bring: impl Fn(&str) -> Result<(Key, Arc<M>), E>,
) -> Result<Snapshot<M>, E> {
    names.iter().try_fold(empty.clone(), |snapshot, name| {
        if snapshot.knows(name) {
            return Ok(snapshot);
        }
        let (key, model) = bring(name)?;
        Ok(snapshot.with_model(key, model, &[]))
    })
}

/// Loads a model and tests it.
fn bring<M: Hosted>(
    store: &Store,
    manifest: &Manifest,
    load: &Loader<M>,
    methods: &[&str],
) -> Result<M, engine::Error> {
    let unfit = |why: String| engine::Error::Load { what: format!("model {}", manifest.name), why };
    let model = load(&store.open(manifest)?)?;
    if !methods.iter().any(|method| model.serves(method)) {
        return Err(unfit(format!("it serves none of {}", methods.join(", "))));
    }
    model.self_test().map_err(unfit)?;
    Ok(model)
}

/// Says what was loaded, and how it is computed: that is never to be a surprise.
fn log_loaded(info: &ModelInfo) {
    let Plan { device, path, precision } = info.plan;
    tracing::info!(model = %info.name, revision = %info.revision, %precision, %path, %device, "loaded");
}

/// Reads every byte of a model: whoever replaces one that serves wants to know.
fn check_files(store: &Store, manifest: &Manifest) -> Result<(), engine::Error> {
    // First what a look at the files says, for it says what to do.
    store.open(manifest)?;
    if let Some(base) = store.base(manifest)? {
        check_files(store, &base)?;
    }
    let checks = store.verify(manifest)?;
    let bad: Vec<_> =
        checks.into_iter().filter(|check| check.state != FileState::Whole).map(|check| check.name).collect();
    if bad.is_empty() {
        return Ok(());
    }
    let why = format!("{} is not as it was pulled", bad.join(", "));
    Err(engine::Error::Absent { model: manifest.name.to_string(), why })
}

fn check_alias(field: &str, alias: &str) -> Result<(), Refusal> {
    // An alias stands where a name does, so it has a name's form.
    ModelName::try_from(alias.to_owned()).map(drop).map_err(|_| {
        let form = "1 to 128 lower-case letters, digits, `.`, `_` and `-`, a letter or digit first";
        bad_parameter(field, format!("this cannot be an alias: {form}"))
    })
}

fn not_loadable(why: impl ToString) -> Refusal {
    refusal(Code::FailedPrecondition, ErrorReason::ModelNotLoadable, why.to_string()).field("name")
}

/// A model that calls do not find any more, and find again unless it is kept from them: the caller may give up waiting.
struct Hidden<'a, M: Hosted> {
    catalog: &'a Catalog<M>,
    before: Option<Arc<Snapshot<M>>>,
}

impl<'a, M: Hosted> Hidden<'a, M> {
    fn publish(catalog: &'a Catalog<M>, after: Arc<Snapshot<M>>) -> Self {
        Self { catalog, before: Some(catalog.publish(after)) }
    }

    /// Waits until nothing but the snapshot before holds the model, and nobody reads that any more.
    async fn unused(&mut self, key: &Key) {
        let mut often = tokio::time::interval(UNUSED_INTERVAL);
        loop {
            often.tick().await;
            let Some(before) = &self.before else { return };
            let held = before.get(key).is_some_and(|model| Arc::strong_count(model) > 1);
            if !held && Arc::strong_count(before) == 1 {
                return;
            }
        }
    }

    /// It stays hidden: what held it comes back.
    fn keep(mut self) -> Option<Arc<Snapshot<M>>> {
        self.before.take()
    }
}

impl<M: Hosted> Drop for Hidden<'_, M> {
    fn drop(&mut self) {
        if let Some(before) = self.before.take() {
            self.catalog.publish(before);
        }
    }
}
