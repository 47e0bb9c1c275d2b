//! The arithmetic of small networks on a CPU: matrix products with packed weights, attention, normalisation.
//!
//! Every kernel is written once, over a vector width and a dot product, and compiled for each [`Tier`] of CPU; which one
//! runs is decided when the process starts. Results depend on the tier and the [`Precision`], and on nothing else: not on
//! what is computed beside them, nor on how many threads there are.

mod activation;
mod attention;
mod math;
mod matrix;
mod memory;
#[cfg(test)]
mod naive;
mod norm;
mod peak;
mod precision;
mod product;
mod simd;
mod tier;
mod tile;
mod weights;

pub use activation::{Activation, activate};
pub use attention::{Heads, Scratch, attend};
pub use matrix::Matrix;
pub use memory::Reserve;
pub use norm::{Copied, Norm, round};
pub use peak::peak;
pub use precision::Precision;
pub use product::{Epilogue, multiply};
pub use simd::Cpu;
pub use tier::Tier;
pub use weights::{Dense, Weights};
