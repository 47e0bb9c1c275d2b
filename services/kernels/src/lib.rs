//! The arithmetic of small networks on a CPU: matrix products with packed weights, attention, normalisation.
//!
//! Every kernel is written once, over a vector width and a dot product, and compiled for each [`Tier`] of CPU; which one
//! runs is decided when the process starts. Results depend on the tier and the [`Precision`], and on nothing else: not on
//! what is computed beside them, nor on how many threads there are.

mod precision;
mod tier;

pub use precision::Precision;
pub use tier::Tier;
