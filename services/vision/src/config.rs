//! Configuration of the vision service.

use chassis::{
    config::{self, Mistakes},
    units::{ByteSize, bytes},
};
use engine::{ImageLimits, PoolSettings};
use host::HostSettings;
use serde::{Deserialize, Serialize};

/// What the service hosts, and the limits of its images.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// Models, batch limit, callers, ports, certificates, logs, workers.
    #[serde(flatten)]
    pub host: HostSettings,
    /// Bounds of one image.
    pub limits: Limits,
}

/// Bounds of one image.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Most bytes of one encoded image, 1B to 256MiB. Default 15MiB. Beyond: the item fails with reason INPUT_TOO_LARGE.
    pub image_bytes_max: ByteSize,
    /// Most pixels of one image, 1 to 1 billion, checked before it is decoded. Default 50 million. Beyond: the item fails
    /// with reason INPUT_TOO_LARGE.
    pub image_pixels_max: u64,
}

impl config::Settings for Settings {
    fn defaults() -> Self {
        // Images: each is a chunk of its own.
        let pool = PoolSettings { workers: 0, queue_units_max: 256, chunk_units_max: 1 };
        Self {
            host: HostSettings::defaults("vision", "efficientnet-lite0", 64, pool),
            limits: Limits { image_bytes_max: ByteSize::mib(15), image_pixels_max: 50_000_000 },
        }
    }

    fn check(&self, mistakes: &mut Mistakes) {
        self.host.check(mistakes);
        let encoded = (1..=256 << 20).contains(&self.limits.image_bytes_max.as_u64());
        mistakes.require(encoded, "limits.image_bytes_max", "must lie between 1B and 256MiB");
        let pixels = (1..=1_000_000_000).contains(&self.limits.image_pixels_max);
        mistakes.require(pixels, "limits.image_pixels_max", "must lie between 1 and 1000000000");
    }
}

impl Limits {
    /// As the engine takes them.
    pub(crate) fn engine(&self) -> ImageLimits {
        ImageLimits { bytes_max: bytes(self.image_bytes_max), pixels_max: self.image_pixels_max }
    }
}
