//! The models of a process, and how a call selects one.

use std::{collections::BTreeMap, sync::Arc};

use chassis::refusal::Refusal;
use engine::{Head, ImageModel, Model, ModelInfo, TextModel};
use proto::common::v1::{self as pb, ErrorReason};
use tonic::Code;

use crate::status::refusal;

/// A model that a service can host.
pub trait Hosted: Model {
    /// What it says of itself.
    fn info(&self) -> &ModelInfo;
    /// What turns its outputs into labels; `None` if it gives none.
    fn head(&self) -> Option<&Head>;
}

impl Hosted for TextModel {
    fn info(&self) -> &ModelInfo {
        self.info()
    }
    fn head(&self) -> Option<&Head> {
        self.head()
    }
}

impl Hosted for ImageModel {
    fn info(&self) -> &ModelInfo {
        self.info()
    }
    fn head(&self) -> Option<&Head> {
        Some(self.head())
    }
}

/// The loaded models by name.
pub struct Catalog<M> {
    models: BTreeMap<String, Arc<M>>,
    default: String,
}

impl<M: Hosted> Catalog<M> {
    /// The models in the order of the configuration: the first is the default.
    #[must_use]
    pub fn new(models: Vec<M>) -> Self {
        let default = models.first().map(|model| model.info().name.to_string()).unwrap_or_default();
        let named = |model: M| (model.info().name.to_string(), Arc::new(model));
        Self { models: models.into_iter().map(named).collect(), default }
    }

    /// All models, ordered by name.
    pub fn models(&self) -> impl Iterator<Item = &M> {
        self.models.values().map(AsRef::as_ref)
    }

    /// The model of this name.
    ///
    /// # Errors
    /// NOT_FOUND when no loaded model has it.
    pub fn find(&self, name: &str) -> Result<&Arc<M>, Refusal> {
        self.models.get(name).ok_or_else(|| {
            let names: Vec<_> = self.models.keys().map(String::as_str).collect();
            let shown: String = name.chars().take(128).collect();
            let message = format!("no loaded model is named `{shown}`; there are: {}", names.join(", "));
            refusal(Code::NotFound, ErrorReason::ModelNotFound, message).field("model.model")
        })
    }

    /// Whether it answers calls that select no model.
    #[must_use]
    pub fn is_default(&self, name: &str) -> bool {
        self.default == name
    }

    /// The model that a call selects, in the revision that it insists on.
    ///
    /// # Errors
    /// MODEL_NOT_FOUND or REVISION_MISMATCH.
    pub fn select(&self, selector: Option<&pb::ModelSelector>) -> Result<&Arc<M>, Refusal> {
        let (name, revision) = selector.map_or(("", ""), |s| (s.model.as_str(), s.revision.as_str()));
        let model = self.find(if name.is_empty() { &self.default } else { name })?;
        let loaded = model.info().revision.to_string();
        if revision.is_empty() || revision == loaded {
            return Ok(model);
        }
        let message = format!("{} is loaded in revision {loaded}, which is not the one asked for", model.info().name);
        Err(refusal(Code::FailedPrecondition, ErrorReason::RevisionMismatch, message).field("model.revision"))
    }
}

impl<M: Hosted> Catalog<M> {
    /// The model that a call selects, and its head.
    ///
    /// # Errors
    /// As [`Catalog::select`]; also MODEL_NOT_FOUND where the model gives no labels.
    pub fn select_labelling(&self, selector: Option<&pb::ModelSelector>) -> Result<(&Arc<M>, &Head), Refusal> {
        let model = self.select(selector)?;
        let head = model.head().ok_or_else(|| {
            let message = format!("{} gives no labels", model.info().name);
            refusal(Code::NotFound, ErrorReason::ModelNotFound, message).field("model.model")
        })?;
        Ok((model, head))
    }
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
