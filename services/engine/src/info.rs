//! What a loaded model says of itself.

use std::{collections::BTreeMap, time::SystemTime};

use crate::{Manifest, ModelName, Plan, Revision, Space, Task};

/// Facts about a loaded model, as services report them.
#[derive(Clone, Debug)]
pub struct ModelInfo {
    /// Its name.
    pub name: ModelName,
    /// Digest of what it computes, precision included: [`Manifest::revision`] is without.
    pub revision: Revision,
    /// Device, code path and number format that it is computed with.
    pub plan: Plan,
    /// Most tokens of one text, special tokens included; 0: it takes no texts.
    pub max_input_tokens: u32,
    /// Components of its vectors; 0: it makes none.
    pub dimensions: u32,
    /// What it does.
    pub task: Task,
    /// Names of its labels, in the order of its logits; empty: it has no head.
    pub labels: Vec<String>,
    /// "sha256:" and 64 hexadecimal digits of the published bytes, by file name.
    pub file_digests: BTreeMap<String, String>,
    /// Where its files come from, first choice first: "hf:OWNER/NAME@REVISION", "pip:PACKAGE==VERSION".
    pub sources: Vec<String>,
    /// SPDX identifier of its licence.
    pub licence: String,
    /// Bytes of its parameters as they are computed with.
    pub parameter_bytes: u64,
    /// When it was loaded.
    pub loaded_at: SystemTime,
    /// Whether its vectors are scaled to length 1 unless the caller says otherwise.
    pub normalize_default: bool,
    /// The space of its vectors, without the normalisation, which callers choose.
    pub space: Space,
}

/// What loading a model measures, and no manifest says.
pub(crate) struct Measured {
    pub(crate) max_input_tokens: u32,
    pub(crate) dimensions: u32,
    pub(crate) labels: Vec<String>,
    pub(crate) parameter_bytes: u64,
}

impl ModelInfo {
    /// The facts of a model that has just been loaded.
    pub(crate) fn new(manifest: &Manifest, plan: Plan, measured: Measured) -> Self {
        Self {
            name: manifest.name.clone(),
            revision: plan.revision(manifest),
            plan,
            max_input_tokens: measured.max_input_tokens,
            dimensions: measured.dimensions,
            task: manifest.task,
            labels: measured.labels,
            file_digests: manifest.files.iter().map(|f| (f.name.clone(), format!("sha256:{}", f.sha256))).collect(),
            sources: manifest.sources.iter().map(ToString::to_string).collect(),
            licence: manifest.licence.clone(),
            parameter_bytes: measured.parameter_bytes,
            loaded_at: SystemTime::now(),
            normalize_default: manifest.normalize_default(),
            space: manifest.space(measured.dimensions).in_precision(plan.precision),
        }
    }

    /// Names the space of vectors made with this normalisation and so many components, `None` for all: vectors may be
    /// compared if and only if their space ids are equal.
    #[must_use]
    pub fn space_id(&self, normalize: bool, dimensions: Option<u32>) -> String {
        self.space.id(normalize, dimensions.filter(|kept| *kept != self.dimensions))
    }
}
