//! The arithmetic of small networks on a CPU: matrix products with packed weights, attention, normalisation,
//! convolutions.
//!
//! Every kernel is written once, over a vector width and a dot product, and compiled for each [`Tier`] of CPU; which one
//! runs is decided when weights are packed. Results depend on the tier and the [`Precision`], and on nothing else: not on
//! what is computed beside them, nor on how many threads there are.

#![warn(clippy::missing_safety_doc, clippy::undocumented_unsafe_blocks)]

mod activation;
mod attention;
mod depthwise;
mod math;
mod matrix;
mod memory;
#[cfg(test)]
mod naive;
mod norm;
mod peak;
mod pool;
mod precision;
mod product;
mod ring;
mod simd;
mod stem;
mod tier;
mod tile;
mod weights;

pub use activation::{Activation, activate};
pub use attention::{Heads, Scratch, attend};
pub use depthwise::{Depthwise, Window};
pub use matrix::Matrix;
pub use memory::Reserve;
pub use norm::{Copied, Norm, round};
pub use peak::{Speed, peak};
pub use pool::average;
pub use precision::Precision;
pub use product::{Epilogue, multiply};
pub use ring::{Ring, Size};
pub use simd::Cpu;
pub use stem::{Patches, Stem};
pub use tier::Tier;
pub use weights::{Dense, Weights};
