//! What one core of this processor can do at best.

use engine::{Precision, Tier};

use super::rounds::Peak;

/// Measures it, in each number format.
pub(crate) fn measure(tier: Tier) -> Peak {
    let of = |precision| operations_per_second(tier, precision);
    Peak { f32: of(Precision::F32), bf16: of(Precision::Bf16), int8: of(Precision::Int8) }
}

/// PLACEHOLDER: to become `kernels::peak`, which times multiplications of registers only.
fn operations_per_second(_tier: Tier, _precision: Precision) -> Option<f64> {
    None
}
