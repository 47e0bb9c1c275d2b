//! The models of a process, and how a call selects one.
//!
//! What is loaded, and which names stand for what, is one immutable snapshot. A call reads it once and keeps the model
//! that it found; a change puts another snapshot in its place. So readers never wait, and a change is seen whole.

mod snapshot;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use arc_swap::ArcSwap;
use chassis::refusal::Refusal;
use engine::{Head, ImageModel, Model, ModelInfo, Task, TextModel};
use proto::common::v1::{self as pb, ErrorReason};
use tokio::sync::watch;
use tonic::Code;

pub(crate) use self::snapshot::{Key, Room, Snapshot};
use crate::{self_test, status::refusal};

/// A model that a service can host.
pub trait Hosted: Model {
    /// What it says of itself.
    fn info(&self) -> &ModelInfo;
    /// What turns its outputs into labels; `None` if it gives none.
    fn head(&self) -> Option<&Head>;
    /// Whether it serves this method, by its full name `tamis.embedding.v1.EmbeddingService/Embed`. Default: it serves
    /// every method of its service.
    fn serves(&self, method: &str) -> bool {
        let _ = method;
        true
    }
    /// Computes a small fixed input, which also warms it up: twice the same finite numbers, as many as there should be.
    ///
    /// # Errors
    /// When it does not; in words.
    fn self_test(&self) -> Result<(), String>;
}

impl Hosted for TextModel {
    fn info(&self) -> &ModelInfo {
        self.info()
    }
    fn head(&self) -> Option<&Head> {
        self.head()
    }
    fn serves(&self, method: &str) -> bool {
        text_model_serves(self.info().task, self.base().is_some(), method)
    }
    fn self_test(&self) -> Result<(), String> {
        self_test::text(self)
    }
}

/// What a model for texts serves, by its task; `over_base`: it is a head over an embedding model.
fn text_model_serves(task: Task, over_base: bool, method: &str) -> bool {
    let name = method.rsplit_once('/').map_or(method, |(_, name)| name);
    match name {
        "Classify" | "ClassifyStream" => task == Task::Classification,
        // By the vectors of its base, if not by its own.
        "ClassifyZeroShot" => task == Task::Embedding || over_base,
        // A cross-encoder reads pairs, and makes nothing but their scores.
        "Rerank" => task == Task::Rerank,
        "Embed" | "EmbedStream" | "CountTokens" => task == Task::Embedding,
        _ => false,
    }
}

impl Hosted for ImageModel {
    fn info(&self) -> &ModelInfo {
        self.info()
    }
    fn head(&self) -> Option<&Head> {
        Some(self.head())
    }
    fn self_test(&self) -> Result<(), String> {
        self_test::image(self)
    }
}

/// The loaded models, which may change at any time.
pub struct Catalog<M> {
    current: ArcSwap<Snapshot<M>>,
    changes: watch::Sender<()>,
}

impl<M: Hosted> Catalog<M> {
    /// No models yet. The names of the configuration say, in their order, which of them is the default.
    #[must_use]
    pub(crate) fn new(configured: Vec<String>) -> Self {
        Self { current: ArcSwap::from_pointee(Snapshot::new(configured)), changes: watch::Sender::default() }
    }

    /// What is loaded now.
    #[must_use]
    pub(crate) fn snapshot(&self) -> Arc<Snapshot<M>> {
        self.current.load_full()
    }

    /// Puts a snapshot in the place of the one before, which comes back. Calls that begin from now on see it.
    pub(crate) fn publish(&self, snapshot: Arc<Snapshot<M>>) -> Arc<Snapshot<M>> {
        let before = self.current.swap(snapshot);
        self.changes.send_replace(());
        before
    }

    /// Ticks whenever another snapshot has been published.
    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }

    /// Whether calls can still select this very model.
    #[must_use]
    pub fn holds(&self, model: &Arc<M>) -> bool {
        self.current.load().models().any(|(_, other)| Arc::ptr_eq(other, model))
    }

    /// The model that a call of this method selects, in the revision that it insists on. It stays loaded for as long as
    /// the call holds it.
    ///
    /// # Errors
    /// MODEL_NOT_FOUND or REVISION_MISMATCH.
    pub fn select(&self, selector: Option<&pb::ModelSelector>, method: &str) -> Result<Arc<M>, Refusal> {
        let (name, revision) = selector.map_or(("", ""), |s| (s.model.as_str(), s.revision.as_str()));
        let snapshot = self.current.load();
        let serves = |model: &&Arc<M>| model.serves(method);
        if !revision.is_empty() {
            return snapshot.pinned(name, revision, method).cloned();
        }
        if name.is_empty() {
            let model = snapshot.default_model(|model| model.serves(method));
            return model.cloned().ok_or_else(|| {
                let message = format!("no loaded model serves {method} by default; name one of those that are loaded");
                not_found(message)
            });
        }
        let (_, model) = snapshot.standing(name).ok_or_else(|| snapshot.unknown(name))?;
        Some(model).filter(serves).cloned().ok_or_else(|| not_found(does_not_serve(&**model, method)))
    }
}

impl<M: Hosted> Snapshot<M> {
    /// The loaded model of exactly this revision. Equal revisions compute the same function, so any that has it will do,
    /// whatever the name stands for by now.
    fn pinned(&self, name: &str, revision: &str, method: &str) -> Result<&Arc<M>, Refusal> {
        if !name.is_empty() && !self.knows(name) {
            return Err(self.unknown(name));
        }
        let of_revision = || self.models().filter(|(key, _)| key.revision == revision);
        let mut candidates: Vec<_> = of_revision().collect();
        candidates.sort_by_key(|(key, _)| key.name != name);
        if let Some((_, model)) = candidates.iter().find(|(_, model)| model.serves(method)) {
            return Ok(model);
        }
        if let Some((_, model)) = candidates.first() {
            return Err(not_found(does_not_serve(&***model, method)));
        }
        let standing = match name {
            "" => self.default_model(|model| model.serves(method)),
            name => self.standing(name).map(|(_, model)| model),
        };
        let message = match standing.map(|model| model.info()) {
            Some(info) => {
                format!("{} is loaded in revision {}, which is not the one asked for", info.name, info.revision)
            }
            None => "the revision asked for is not loaded".to_owned(),
        };
        Err(refusal(Code::FailedPrecondition, ErrorReason::RevisionMismatch, message).field("model.revision"))
    }

    /// Whether a model answers calls that select none, of one of these methods at least.
    pub(crate) fn is_default(&self, model: &Arc<M>, methods: &[&str]) -> bool {
        let default = |method: &&str| self.default_model(|model| model.serves(method));
        methods.iter().filter_map(default).any(|default| Arc::ptr_eq(default, model))
    }
}

fn not_found(message: String) -> Refusal {
    refusal(Code::NotFound, ErrorReason::ModelNotFound, message).field("model.model")
}

fn does_not_serve<M: Hosted>(model: &M, method: &str) -> String {
    format!("{} does not serve {method}", model.info().name)
}

/// What turns a model's outputs into labels.
///
/// # Errors
/// MODEL_NOT_FOUND where it gives none.
pub fn labelling<M: Hosted>(model: &M) -> Result<&Head, Refusal> {
    model.head().ok_or_else(|| not_found(format!("{} gives no labels", model.info().name)))
}

/// Refuses a call whose vectors would lie in another space than the one that it insists on.
///
/// # Errors
/// SPACE_MISMATCH.
pub fn require_space(selector: Option<&pb::ModelSelector>, space_id: &str) -> Result<(), Refusal> {
    let required = selector.map_or("", |selector| selector.require_space_id.as_str());
    if required.is_empty() || required == space_id {
        return Ok(());
    }
    let message = format!("the vectors would lie in the space {space_id}, which is not the one asked for");
    let refused = refusal(Code::FailedPrecondition, ErrorReason::SpaceMismatch, message);
    Err(refused.field("model.require_space_id"))
}

/// Refuses a space on a call that returns no vectors.
///
/// # Errors
/// BAD_PARAMETER.
pub fn refuse_space(selector: Option<&pb::ModelSelector>) -> Result<(), Refusal> {
    let required = selector.is_some_and(|selector| !selector.require_space_id.is_empty());
    if required {
        return Err(crate::bad_parameter("model.require_space_id", "this call returns no vectors, so it has no space"));
    }
    Ok(())
}
