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
    /// Bounds of images.
    pub limits: Limits,
}

/// Bounds of images.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Most bytes of one encoded image, 1B to 256MiB. Default 15MiB. Beyond: the item fails with reason INPUT_TOO_LARGE.
    pub image_bytes_max: ByteSize,
    /// Most pixels of one image, 1 to 1 billion, checked before it is decoded. Default 50 million. Beyond: the item fails
    /// with reason INPUT_TOO_LARGE.
    pub image_pixels_max: u64,
    /// Most memory of the images that UploadImage took and that a digest finds, at least image_bytes_max and 256 bytes:
    /// what each counts beside its own. Default 256MiB. Beyond: those unused the longest are dropped, and their digests
    /// fail with reason CONTENT_NOT_FOUND.
    pub content_bytes_max: ByteSize,
    /// Most memory of all uploads under way, at least image_bytes_max. Default 128MiB. Beyond: RESOURCE_EXHAUSTED,
    /// reason QUEUE_FULL.
    pub uploads_bytes_max: ByteSize,
}

impl config::Settings for Settings {
    fn defaults() -> Self {
        // Images: each is a chunk of its own, on a device too, for the network looks at one at a time.
        let pool = PoolSettings { workers: 0, queue_units_max: 256, chunk_units_max: 1, device_chunk_units_max: 1 };
        let mut host = HostSettings::defaults("vision", &["efficientnet-lite0"], 64, pool);
        // The gateway puts images in the place of their digests, so that its requests are larger than its clients'.
        host.server.message_bytes_max = ByteSize::mib(64);
        let limits = Limits {
            image_bytes_max: ByteSize::mib(15),
            image_pixels_max: 50_000_000,
            content_bytes_max: ByteSize::mib(256),
            uploads_bytes_max: ByteSize::mib(128),
        };
        Self { host, limits }
    }

    fn check(&self, mistakes: &mut Mistakes) {
        self.host.check(mistakes);
        let image = self.limits.image_bytes_max.as_u64();
        let encoded = (1..=256 << 20).contains(&image);
        mistakes.require(encoded, "limits.image_bytes_max", "must lie between 1B and 256MiB");
        let pixels = (1..=1_000_000_000).contains(&self.limits.image_pixels_max);
        mistakes.require(pixels, "limits.image_pixels_max", "must lie between 1 and 1000000000");
        let content = self.limits.content_bytes_max.as_u64() >= image.saturating_add(256);
        mistakes.require(content, "limits.content_bytes_max", "must hold an image of image_bytes_max and 256 bytes");
        let uploads = self.limits.uploads_bytes_max.as_u64() >= image;
        mistakes.require(uploads, "limits.uploads_bytes_max", "must hold an image of image_bytes_max");
    }
}

impl Limits {
    /// As the engine takes them.
    pub(crate) fn engine(&self) -> ImageLimits {
        ImageLimits { bytes_max: bytes(self.image_bytes_max), pixels_max: self.image_pixels_max }
    }
}

#[cfg(test)]
mod tests {
    use chassis::config::{Layer, load};

    use super::*;

    #[test]
    fn an_upload_that_may_be_sent_has_room() {
        let tls = "tls = { ca = 'a', cert = 'b', key = 'c' }\ndata_dir = 'd'\n";
        let check = |limits: &str| {
            let text = format!("{tls}[limits]\n{limits}");
            load::<Settings>("vision", &[Layer::text("test.toml", &text)]).map_err(|mistakes| mistakes.to_string())
        };
        assert_eq!(check("").unwrap().limits, <Settings as config::Settings>::defaults().limits);
        for (limits, key) in [
            ("content_bytes_max = '15MiB'", "`limits.content_bytes_max`"),
            ("uploads_bytes_max = '14MiB'", "`limits.uploads_bytes_max`"),
            ("image_bytes_max = '0B'", "`limits.image_bytes_max`"),
        ] {
            let message = check(limits).unwrap_err();
            assert!(message.contains(key), "{key} is missing in\n{message}");
        }
    }
}
