//! How models are computed on this machine.

use std::{fmt, str::FromStr};

use candle_core::Device;
use kernels::{Precision, Tier};
use serde::{Deserialize, Serialize};

mod plan;
pub(crate) mod written;

pub use plan::{ComputePath, Plan};

use crate::Error;

/// Device, code path and number format, as a service's configuration has them. Each model makes of it what it can, and
/// says in [`crate::ModelInfo`] what it did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Compute {
    /// Where tensors live: "cpu", "cuda:0", "metal:0". Default "cpu". One that this program was built without is refused at
    /// start.
    #[serde(with = "written")]
    pub device: DeviceChoice,
    /// What computes on a CPU: "auto", the kernels of one tier ("avx512-dot", "avx512", "avx2", "portable"), or "candle",
    /// the reference. Default "auto": the best tier of this CPU. A tier that the CPU has not is refused at start. A model
    /// without kernels runs through candle in any case.
    #[serde(with = "written")]
    pub path: PathChoice,
    /// Number format of models whose manifests name none: "auto", "f32" or "bf16". Default "auto": bf16 where the kernels
    /// run and the CPU multiplies it faster, f32 elsewhere. A model that can not be computed so is not loaded.
    #[serde(with = "written")]
    pub precision: PrecisionChoice,
}

/// Where tensors live.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum DeviceChoice {
    /// This machine's cores.
    #[default]
    Cpu,
    /// A CUDA device, by its number. Only in a build with the feature `cuda`.
    Cuda(usize),
    /// A Metal device, by its number. Only in a build with the feature `metal`.
    Metal(usize),
}

/// What computes on a CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PathChoice {
    /// The kernels of the best tier that the CPU has where a model has a fast path, candle where it has none.
    #[default]
    Auto,
    /// The kernels of this tier where a model has a fast path, candle where it has none.
    Kernels(Tier),
    /// candle, always: the reference.
    Candle,
}

/// Number format of a model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PrecisionChoice {
    /// bf16 where the CPU multiplies it faster than f32, f32 elsewhere.
    #[default]
    Auto,
    /// This one.
    Only(Precision),
}

// === impl Compute ===

impl Compute {
    /// What this machine can not do, or a setting for all models can not mean: the key and why.
    #[must_use]
    pub fn faults(&self) -> Vec<(&'static str, String)> {
        self.faults_on(Tier::detect())
    }

    /// The same on a CPU whose best tier is this one.
    fn faults_on(&self, best: Tier) -> Vec<(&'static str, String)> {
        let mut faults = Vec::new();
        if !self.device.is_built() {
            faults.push(("device", format!("{}: this program was built for CPUs only", self.device)));
        }
        if let PathChoice::Kernels(tier) = self.path
            && tier < best
        {
            faults.push(("path", format!("this CPU has not what {tier} needs; its best tier is {best}")));
        }
        if self.precision == PrecisionChoice::Only(Precision::Int8) {
            let why = "int8 belongs to models that were calibrated for it: `tamis models quantize NAME` makes one";
            faults.push(("precision", why.to_owned()));
        }
        faults
    }
}

// === impl DeviceChoice ===

impl DeviceChoice {
    /// Whether this program can use it, if the machine has it.
    #[must_use]
    pub fn is_built(self) -> bool {
        match self {
            Self::Cpu => true,
            Self::Cuda(_) => cfg!(feature = "cuda"),
            Self::Metal(_) => cfg!(feature = "metal"),
        }
    }

    /// The device itself, if this build has what runs it and the machine has it.
    pub(crate) fn open(self) -> Result<Device, Error> {
        let refuse = |why: String| Error::load(format!("device {self}"), why);
        let lacks = |feature: &str| refuse(format!("this build can not run it: build with `--features {feature}`"));
        match self {
            Self::Cpu => Ok(Device::Cpu),
            Self::Cuda(_) if !self.is_built() => Err(lacks("cuda")),
            Self::Metal(_) if !self.is_built() => Err(lacks("metal")),
            Self::Cuda(index) => Device::new_cuda(index).map_err(|error| refuse(error.to_string())),
            Self::Metal(index) => Device::new_metal(index).map_err(|error| refuse(error.to_string())),
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(number) => write!(f, "cuda:{number}"),
            Self::Metal(number) => write!(f, "metal:{number}"),
        }
    }
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let refuse = || format!("{text:?} is no device: cpu, cuda:0 or metal:0");
        if text == "cpu" {
            return Ok(Self::Cpu);
        }
        let (kind, number) = text.split_once(':').ok_or_else(refuse)?;
        let number = number.parse().map_err(|_| refuse())?;
        match kind {
            "cuda" => Ok(Self::Cuda(number)),
            "metal" => Ok(Self::Metal(number)),
            _ => Err(refuse()),
        }
    }
}

// === impl PathChoice ===

impl fmt::Display for PathChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Kernels(tier) => tier.as_str(),
            Self::Candle => "candle",
        })
    }
}

impl FromStr for PathChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "candle" => Ok(Self::Candle),
            tier => {
                let refuse = |_| format!("{tier:?} is no path: auto, avx512-dot, avx512, avx2, portable or candle");
                tier.parse().map(Self::Kernels).map_err(refuse)
            }
        }
    }
}

// === impl PrecisionChoice ===

impl PrecisionChoice {
    /// Whether it leaves the choice to others.
    #[must_use]
    pub fn is_auto(&self) -> bool {
        *self == Self::Auto
    }
}

impl fmt::Display for PrecisionChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Only(precision) => precision.fmt(f),
        }
    }
}

impl FromStr for PrecisionChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "auto" {
            return Ok(Self::Auto);
        }
        text.parse().map(Self::Only).map_err(|_| format!("{text:?} is no precision: auto, f32, bf16 or int8"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_the_build_lacks_is_refused_with_the_feature() {
        assert!(DeviceChoice::Cpu.open().unwrap().is_cpu());
        for (device, feature) in [(DeviceChoice::Cuda(0), "cuda"), (DeviceChoice::Metal(1), "metal")] {
            if !device.is_built() {
                let error = device.open().unwrap_err().to_string();
                let complaint =
                    format!("device {device}: this build can not run it: build with `--features {feature}`");
                assert!(error.contains(&complaint), "{error}");
            }
        }
    }

    #[test]
    fn choices_are_read_as_they_are_written() {
        for text in ["cpu", "cuda:0", "cuda:12", "metal:1"] {
            assert_eq!(text.parse::<DeviceChoice>().unwrap().to_string(), text);
        }
        for text in ["auto", "candle", "avx512-dot", "avx512", "avx2", "portable"] {
            assert_eq!(text.parse::<PathChoice>().unwrap().to_string(), text);
        }
        for text in ["auto", "f32", "bf16", "int8"] {
            assert_eq!(text.parse::<PrecisionChoice>().unwrap().to_string(), text);
        }
        for text in ["", "gpu", "cuda", "cuda:", "cuda:-1", "tpu:0"] {
            assert!(text.parse::<DeviceChoice>().unwrap_err().contains("cuda:0"), "{text}");
        }
        assert!("sse".parse::<PathChoice>().unwrap_err().contains("avx512-dot"));
        assert!("f16".parse::<PrecisionChoice>().unwrap_err().contains("bf16"));
    }

    #[test]
    fn a_configuration_is_three_texts() {
        let text = "device = \"cpu\"\npath = \"avx2\"\nprecision = \"bf16\"\n";
        let compute: Compute = toml::from_str(text).unwrap();
        assert_eq!(compute.path, PathChoice::Kernels(Tier::Avx2));
        assert_eq!(toml::to_string(&compute).unwrap(), text);
        let error = toml::from_str::<Compute>(&text.replace("bf16", "f16")).unwrap_err().to_string();
        assert!(error.contains("is no precision"), "{error}");
    }

    #[test]
    fn what_the_machine_has_not_is_named_with_its_key() {
        let faults = |text: [&str; 3], best| {
            let [device, path, precision] = text;
            let compute = Compute {
                device: device.parse().unwrap(),
                path: path.parse().unwrap(),
                precision: precision.parse().unwrap(),
            };
            compute.faults_on(best)
        };
        assert_eq!(faults(["cpu", "auto", "auto"], Tier::Portable), []);
        assert_eq!(faults(["cpu", "avx2", "bf16"], Tier::Avx2), []);
        assert_eq!(faults(["cpu", "portable", "f32"], Tier::Avx512Dot), []);
        assert_eq!(faults(["cpu", "candle", "f32"], Tier::Portable), []);
        let all = faults(["cuda:0", "avx512", "int8"], Tier::Avx2);
        let keys: Vec<_> = all.iter().map(|(key, _)| *key).collect();
        assert_eq!(keys, ["device", "path", "precision"]);
        assert!(all[1].1.contains("its best tier is avx2"), "{all:?}");
        assert!(all[2].1.contains("tamis models quantize"), "{all:?}");
    }
}
