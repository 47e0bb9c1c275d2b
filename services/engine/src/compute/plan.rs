//! What a [`Compute`] comes to for one model.

use std::fmt;

use kernels::{Precision, Tier};

use super::{Compute, DeviceChoice, PathChoice, PrecisionChoice};
use crate::{
    Error, Manifest, ModelFiles, Revision,
    encoder::{self, Config},
    image,
};

/// How one model is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Plan {
    /// Where its tensors live.
    pub device: DeviceChoice,
    /// What computes it.
    pub path: ComputePath,
    /// Number format of its products.
    pub precision: Precision,
}

/// What computes a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ComputePath {
    /// The kernels of this tier.
    Kernels(Tier),
    /// candle.
    Candle,
}

impl Plan {
    /// How these files are computed, which must be on this machine: only what is small is read.
    ///
    /// # Errors
    /// When they can not be computed so.
    pub fn new(files: &ModelFiles, compute: &Compute) -> Result<Self, Error> {
        if let Some(base) = &files.base {
            return Self::new(base, compute);
        }
        match &files.manifest.image {
            Some(recipe) => compute.plan(&files.manifest, image::kernel_precisions(recipe.architecture)),
            None => Self::of_text(&files.manifest, &Config::load(files)?, compute),
        }
    }

    /// How an encoder is computed.
    pub(crate) fn of_text(manifest: &Manifest, config: &Config, compute: &Compute) -> Result<Self, Error> {
        // Only to hear now that it does not fit.
        manifest.smoothing(config.num_hidden_layers, config.hidden_size)?;
        compute.plan(manifest, encoder::kernel_precisions(config))
    }

    /// The revision of what a manifest's model computes by this plan.
    #[must_use]
    pub fn revision(&self, manifest: &Manifest) -> Revision {
        manifest.revision().in_precision(self.precision)
    }
}

impl Compute {
    /// How a model is computed that has kernels for these precisions; without any it has no fast path.
    fn plan(&self, manifest: &Manifest, kernels: &[Precision]) -> Result<Plan, Error> {
        let path = match self.path {
            _ if kernels.is_empty() || self.device != DeviceChoice::Cpu => ComputePath::Candle,
            PathChoice::Candle => ComputePath::Candle,
            PathChoice::Auto => ComputePath::Kernels(Tier::detect()),
            PathChoice::Kernels(tier) => ComputePath::Kernels(tier),
        };
        let possible = if path == ComputePath::Candle { &[Precision::F32] } else { kernels };
        let chosen = if manifest.precision.is_auto() { self.precision } else { manifest.precision };
        let precision = match (chosen, path) {
            (PrecisionChoice::Only(precision), _) => precision,
            (PrecisionChoice::Auto, ComputePath::Kernels(tier))
                if tier.has_bf16() && possible.contains(&Precision::Bf16) =>
            {
                Precision::Bf16
            }
            (PrecisionChoice::Auto, _) => Precision::F32,
        };
        if possible.contains(&precision) {
            return Ok(Plan { device: self.device, path, precision });
        }
        // Never computed in another precision without a word: the numbers would not be those that were asked for.
        let by = if manifest.precision.is_auto() { "compute.precision" } else { "its manifest" };
        let names: Vec<_> = possible.iter().map(|precision| precision.as_str()).collect();
        let why = format!(
            "{by} wants {precision}, and on {} it is computed by {path}, which has {} for it",
            self.device,
            names.join(" and ")
        );
        Err(Error::load(format!("model {}", manifest.name), why))
    }
}

impl fmt::Display for ComputePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kernels(tier) => tier.fmt(f),
            Self::Candle => f.write_str("candle"),
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} by {} on {}", self.precision, self.path, self.device)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: &[Precision] = &Precision::ALL;
    const NONE: &[Precision] = &[];

    /// A manifest that names this precision; "auto" names none.
    fn manifest(precision: &str) -> Manifest {
        Manifest { precision: precision.parse().unwrap(), ..Manifest::builtin().remove(0) }
    }

    fn compute(device: &str, path: &str, precision: &str) -> Compute {
        Compute { device: device.parse().unwrap(), path: path.parse().unwrap(), precision: precision.parse().unwrap() }
    }

    #[track_caller]
    fn check(manifest_says: &str, service_says: [&str; 3], kernels: &[Precision], expected: &str) {
        let [device, path, precision] = service_says;
        let plan = compute(device, path, precision).plan(&manifest(manifest_says), kernels);
        assert_eq!(plan.unwrap().to_string(), expected);
    }

    #[track_caller]
    fn refuses(manifest_says: &str, service_says: [&str; 3], kernels: &[Precision], complaint: &str) {
        let [device, path, precision] = service_says;
        let plan = compute(device, path, precision).plan(&manifest(manifest_says), kernels);
        let error = plan.unwrap_err().to_string();
        assert!(error.contains(complaint) && error.contains("all-minilm-l6-v2"), "{error}");
    }

    #[test]
    fn auto_is_bf16_where_the_kernels_and_the_cpu_have_it() {
        check("auto", ["cpu", "avx512-dot", "auto"], ALL, "bf16 by avx512-dot on cpu");
        check("auto", ["cpu", "avx512", "auto"], ALL, "f32 by avx512 on cpu");
        check("auto", ["cpu", "portable", "auto"], ALL, "f32 by portable on cpu");
        check("auto", ["cpu", "avx512-dot", "auto"], &[Precision::F32], "f32 by avx512-dot on cpu");
        check("auto", ["cpu", "candle", "auto"], ALL, "f32 by candle on cpu");
        check("auto", ["cpu", "avx512-dot", "auto"], NONE, "f32 by candle on cpu");
        check("auto", ["cuda:0", "auto", "auto"], ALL, "f32 by candle on cuda:0");
        let best = Tier::detect();
        let precision = if best.has_bf16() { "bf16" } else { "f32" };
        check("auto", ["cpu", "auto", "auto"], ALL, &format!("{precision} by {best} on cpu"));
    }

    #[test]
    fn the_manifest_goes_before_the_service() {
        check("f32", ["cpu", "avx512-dot", "bf16"], ALL, "f32 by avx512-dot on cpu");
        check("bf16", ["cpu", "avx2", "f32"], ALL, "bf16 by avx2 on cpu");
        check("int8", ["cpu", "portable", "f32"], ALL, "int8 by portable on cpu");
        check("auto", ["cpu", "avx512-dot", "f32"], ALL, "f32 by avx512-dot on cpu");
        check("auto", ["cpu", "avx2", "bf16"], ALL, "bf16 by avx2 on cpu");
        check("f32", ["cpu", "auto", "bf16"], NONE, "f32 by candle on cpu");
    }

    #[test]
    fn nothing_is_computed_in_another_precision_than_was_asked_for() {
        let (f32_and_bf16, candle) = ([Precision::F32, Precision::Bf16], "computed by candle, which has f32");
        refuses("int8", ["cpu", "candle", "auto"], ALL, candle);
        refuses("int8", ["cpu", "auto", "auto"], NONE, "its manifest wants int8");
        refuses("int8", ["cpu", "avx2", "auto"], &f32_and_bf16, "avx2, which has f32 and bf16");
        refuses("bf16", ["metal:0", "auto", "auto"], ALL, "on metal:0");
        refuses("auto", ["cpu", "auto", "bf16"], NONE, "compute.precision wants bf16");
    }
}
