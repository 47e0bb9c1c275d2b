//! Sets of CPU instructions that the kernels are compiled for.

use std::{fmt, str::FromStr};

/// A set of CPU instructions, the most capable first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Tier {
    /// AVX-512 F, BW, DQ and VL with the dot products of BF16 and VNNI: AMD since Zen 4, Intel since Sapphire Rapids.
    Avx512Dot,
    /// AVX-512 F, BW, DQ and VL: Intel since Skylake-SP. bf16 and int8 are summed in the same precision here, bf16 at the
    /// speed of f32 and int8 about a third faster.
    Avx512,
    /// AVX2 and FMA: any x86-64 server since 2015.
    Avx2,
    /// What the compiler makes of plain Rust, on any CPU.
    Portable,
}

impl Tier {
    /// All, the most capable first.
    pub const ALL: [Self; 4] = [Self::Avx512Dot, Self::Avx512, Self::Avx2, Self::Portable];

    /// The most capable that this CPU has.
    #[must_use]
    pub fn detect() -> Self {
        Self::ALL.into_iter().find(|tier| tier.is_available()).unwrap_or(Self::Portable)
    }

    /// Whether this CPU has it.
    #[must_use]
    pub fn is_available(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::is_x86_feature_detected as has;
            let avx2 = || has!("avx2") && has!("fma");
            let avx512 = || avx2() && has!("avx512f") && has!("avx512bw") && has!("avx512dq") && has!("avx512vl");
            match self {
                Self::Avx512Dot => avx512() && has!("avx512bf16") && has!("avx512vnni"),
                Self::Avx512 => avx512(),
                Self::Avx2 => avx2(),
                Self::Portable => true,
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            self == Self::Portable
        }
    }

    /// Whether the CPU multiplies bf16 faster than f32.
    #[must_use]
    pub fn has_bf16(self) -> bool {
        self == Self::Avx512Dot
    }

    /// As it is written in configurations and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Avx512Dot => "avx512-dot",
            Self::Avx512 => "avx512",
            Self::Avx2 => "avx2",
            Self::Portable => "portable",
        }
    }
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Tier {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|tier| tier.as_str() == text);
        found.ok_or_else(|| format!("{text:?} is no tier: avx512-dot, avx512, avx2 or portable"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tier_is_read_as_it_is_written() {
        for tier in Tier::ALL {
            assert_eq!(tier.as_str().parse(), Ok(tier));
        }
        assert!("sse".parse::<Tier>().is_err());
    }

    #[test]
    fn the_best_tier_that_is_there_is_found() {
        let best = Tier::detect();
        assert!(best.is_available() && Tier::ALL.iter().all(|tier| *tier >= best || !tier.is_available()));
    }
}
