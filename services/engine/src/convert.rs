//! Turns weights from the formats in which they are published into safetensors, once, when a model is pulled.

use std::{fmt, path::Path};

use serde::{Deserialize, Serialize};

use crate::Error;

mod onnx;
mod pth;

/// A published format that is converted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// An ONNX export of a BERT encoder with dynamically quantised int8 weights: they become f32 safetensors with the
    /// names of the original checkpoint.
    OnnxInt8Bert,
    /// A PyTorch file in the format of before version 1.6, which is a stream of pickles and not a zip.
    LegacyPth,
}

impl Kind {
    /// The converter and its version. The version rises when the same input would give other bytes, so that what an
    /// older one made is made again.
    #[must_use]
    pub fn versioned(self) -> String {
        let version = match self {
            Self::OnnxInt8Bert => 1,
            Self::LegacyPth => 1,
        };
        format!("{self}/{version}")
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OnnxInt8Bert => "onnx-int8-bert",
            Self::LegacyPth => "legacy-pth",
        })
    }
}

/// Reads `input`, which its publisher wrote, and writes `output`, a safetensors file. What stands at `output` after an
/// error is not whole.
pub fn run(kind: Kind, input: &Path, output: &Path) -> Result<(), Error> {
    match kind {
        Kind::OnnxInt8Bert => onnx::convert(input, output),
        Kind::LegacyPth => pth::convert(input, output),
    }
}
