//! Digests of what a model computes.
//!
//! Both digests are taken over canonical JSON of the parts that matter, so that neither the spelling of a manifest nor
//! the place where its files came from changes them.

use std::fmt;

use kernels::Precision;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::manifest::{FileSpec, HeadRecipe, ImageRecipe, Labels, Manifest, Pooling, Task, TextRecipe};

/// "sha256:" and 64 hexadecimal digits over files and recipe: equal revisions compute the same function.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Revision(String);

/// The space in which a model's vectors lie, but for their normalisation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Space(String);

impl Revision {
    /// The digest as it is written on the wire.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The revision of the same function computed in this precision. In f32 it is the function's own.
    #[must_use]
    pub fn in_precision(&self, precision: Precision) -> Self {
        Self(in_precision(&self.0, precision))
    }
}

impl TryFrom<String> for Revision {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let digits = text.strip_prefix("sha256:").unwrap_or_default();
        if digits.len() == 64 && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Ok(Self(text));
        }
        Err(format!("{text:?} is no revision: \"sha256:\" and 64 lower-case hexadecimal digits"))
    }
}

impl From<Revision> for String {
    fn from(revision: Revision) -> Self {
        revision.0
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Space {
    /// The space of the same vectors computed in this precision: near the one of f32, and another.
    #[must_use]
    pub(crate) fn in_precision(&self, precision: Precision) -> Self {
        Self(in_precision(&self.0, precision))
    }

    /// The space of vectors that are, or are not, scaled to length 1, and of which so many first components are kept;
    /// `None`: all.
    #[must_use]
    pub fn id(&self, normalize: bool, kept: Option<u32>) -> String {
        match kept {
            None => digest(&(&self.0, normalize)),
            Some(kept) => digest(&(&self.0, normalize, kept)),
        }
    }
}

// === impl Manifest ===

impl Manifest {
    /// Digest of what this model computes, whatever the precision: heads are trained on a model, and read its vectors in
    /// each. Name, licence and sources have no part in it, nor has what was measured. What is loaded says its precision,
    /// too: [`Revision::in_precision`].
    #[must_use]
    pub fn revision(&self) -> Revision {
        #[derive(Serialize)]
        struct Function<'a> {
            task: Task,
            files: Vec<File<'a>>,
            text: Option<&'a TextRecipe>,
            image: Option<&'a ImageRecipe>,
            head: Option<&'a HeadRecipe>,
            labels: Option<Vec<String>>,
            // Left out where there is none, so that models without a base keep the revisions that they have.
            #[serde(skip_serializing_if = "Option::is_none")]
            base: Option<&'a Revision>,
            /// Digest of the factors; left out where there are none, for the same reason.
            #[serde(skip_serializing_if = "Option::is_none")]
            smoothing: Option<String>,
        }
        Revision(digest(&Function {
            task: self.task,
            files: self.digested(),
            text: self.text.as_ref(),
            image: self.image.as_ref(),
            head: self.head.as_ref(),
            labels: self.head.as_ref().and_then(|head| head.labels.as_ref()).map(Labels::names),
            base: self.base.as_ref().map(|base| &base.revision),
            smoothing: self.smoothing_digest(),
        }))
    }

    /// The space of this model's vectors: files, and the parts of the recipe that move them. A head reads vectors but
    /// does not move them, and neither does the limit of tokens.
    #[must_use]
    pub fn space(&self, dimensions: u32) -> Space {
        #[derive(Serialize)]
        struct Place<'a> {
            files: Vec<File<'a>>,
            pooling: Option<Pooling>,
            image: Option<ImageRecipe>,
            dimensions: u32,
            #[serde(skip_serializing_if = "Option::is_none")]
            smoothing: Option<String>,
        }
        // How images are normalised by default is not where their vectors lie: the caller's choice is hashed in `id`.
        let image = self.image.clone().map(|recipe| ImageRecipe { normalize: false, ..recipe });
        let pooling = self.text.as_ref().map(|recipe| recipe.pooling);
        let smoothing = self.smoothing_digest();
        Space(digest(&Place { files: self.digested(), pooling, image, dimensions, smoothing }))
    }

    /// Digest of the factors by which an encoder was prepared for int8.
    pub(crate) fn smoothing_digest(&self) -> Option<String> {
        self.quantization.as_ref().map(|quantization| quantization.smoothing.digest())
    }

    fn digested(&self) -> Vec<File<'_>> {
        let mut files: Vec<_> = self.files.iter().map(File::from).collect();
        files.sort_by_key(|file| file.name);
        files
    }
}

/// A file as the digests see it: what was published, and what was made of it.
#[derive(Serialize)]
struct File<'a> {
    name: &'a str,
    sha256: &'a str,
    converter: Option<String>,
}

impl<'a> From<&'a FileSpec> for File<'a> {
    fn from(file: &'a FileSpec) -> Self {
        Self { name: &file.name, sha256: file.sha256.as_str(), converter: file.convert.map(|kind| kind.versioned()) }
    }
}

/// A digest for what is computed in this precision. Ids of f32 are those from before there was a choice.
fn in_precision(id: &str, precision: Precision) -> String {
    match precision {
        Precision::F32 => id.to_owned(),
        other => digest(&(id, other.as_str())),
    }
}

fn digest(value: &impl Serialize) -> String {
    #[expect(
        clippy::expect_used,
        reason = "the values are structs of strings, numbers and lists: they have no map keys to refuse"
    )]
    let json = serde_json::to_vec(value).expect("plain data serialises");
    format!("sha256:{}", hex(&Sha256::digest(json)))
}

/// Lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
