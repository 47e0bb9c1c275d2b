//! Number formats of the matrix products.

use std::{fmt, str::FromStr};

/// What the factors of a matrix product are rounded to. Sums, normalisations and what encoders add up across layers are f32
/// (int8 products are summed exactly, in i32) in all of them; networks of images hand bf16 from block to block. Attention
/// is never computed in int8, but in bf16 where the CPU multiplies it faster than f32, else in f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Precision {
    /// As the weights were published.
    F32,
    /// 8 bits of significand.
    Bf16,
    /// 8-bit integers: weights with a scale per output, activations with a scale and a zero per token.
    Int8,
}

impl Precision {
    /// All, the most exact first.
    pub const ALL: [Self; 3] = [Self::F32, Self::Bf16, Self::Int8];

    /// As it is written in configurations and in what models say of themselves.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
        }
    }

    /// Values that one 32-bit word holds.
    #[must_use]
    pub fn values_per_word(self) -> usize {
        match self {
            Self::F32 => 1,
            Self::Bf16 => 2,
            Self::Int8 => 4,
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Precision {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|precision| precision.as_str() == text);
        found.ok_or_else(|| format!("{text:?} is no precision: f32, bf16 or int8"))
    }
}
