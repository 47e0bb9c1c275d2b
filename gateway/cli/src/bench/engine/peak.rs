//! What one core of this processor can do at best.

use engine::{Cpu, Precision, Tier};

use super::rounds::Peak;

/// Measures it, in each number format; nothing on a processor that has not the tier.
pub(crate) fn measure(tier: Tier) -> Peak {
    let of = |precision| Cpu::with(tier).map(|cpu| engine::peak(cpu, precision));
    Peak { f32: of(Precision::F32), bf16: of(Precision::Bf16), int8: of(Precision::Int8) }
}
