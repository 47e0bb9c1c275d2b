//! Inference: models from manifests, and a pool of workers that runs them.
//!
//! The only crate that names candle. It has never heard of gRPC: services translate between the wire and this crate.
//!
//! A [`Manifest`] says what a model is, a [`Store`] brings its files to this machine, [`TextModel`] and [`ImageModel`]
//! load them, and a [`Pool`] runs a loaded [`Model`] for many callers at once.

mod compute;
pub mod convert;
mod efficientnet;
mod encoder;
mod error;
pub mod head;
pub mod image;
mod info;
pub mod manifest;
pub mod model;
mod parts;
pub mod pool;
pub mod quantize;
mod revision;
#[cfg(test)]
mod seeded;
pub mod store;
pub mod text;
mod tokenize;
pub mod train;
mod weights;

pub use self::image::{
    Crop, Dimensions, ImageInput, ImageLimits, ImageModel, ImageOutput, ImageOutputKind, ImageSource, PixelFormat,
    RawImage,
};
pub use compute::{Compute, ComputePath, DeviceChoice, PathChoice, Plan, PrecisionChoice};
pub use error::Error;
pub use head::{Head, ScoreMode};
pub use info::ModelInfo;
pub use kernels::{Cpu, Precision, Tier, peak};
pub use manifest::{Manifest, ModelFiles, ModelName, Task};
pub use model::{ItemError, Model, Reason, Step, Watch};
pub use parts::Parts;
pub use pool::{Call, Done, Lane, Load, Pool, PoolSettings, Timing};
pub use revision::{Revision, Space};
pub use store::{AddError, Added, Addition, FileCheck, FileState, Progress, Store, TextTask};
pub use text::{Content, Role, TextInput, TextLimits, TextModel, TextOutput, Windows, Work, normalize};
pub use tokenize::{First, Truncation};
