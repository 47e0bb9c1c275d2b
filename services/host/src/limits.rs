//! Bounds of one text, as the services that read texts are configured with.

use chassis::{
    config::Mistakes,
    units::{ByteSize, bytes},
};
use engine::{PoolSettings, TextLimits};
use serde::{Deserialize, Serialize};

/// Bounds of one text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextSettings {
    /// Most bytes of one text in UTF-8, 1B to 256MiB. Default 1MiB. Beyond: the item fails with reason INPUT_TOO_LARGE.
    pub text_bytes_max: ByteSize,
    /// Most windows of a text that is computed in windows, 1 to 1024. Default 32. Beyond: the item fails with reason
    /// INPUT_TOO_LONG. Services that cut texts at their ends only never reach it.
    pub windows_max: usize,
}

impl TextSettings {
    /// The defaults.
    #[must_use]
    pub fn defaults() -> Self {
        Self { text_bytes_max: ByteSize::mib(1), windows_max: 32 }
    }

    /// The workers that texts want: a chunk of 256 tokens fills a core and 16,384 a device, and a thousand calls of 256
    /// tokens may wait.
    #[must_use]
    pub fn pool() -> PoolSettings {
        PoolSettings { workers: 0, queue_units_max: 262_144, chunk_units_max: 256, device_chunk_units_max: 16_384 }
    }

    /// Bounds of the values.
    pub fn check(&self, mistakes: &mut Mistakes) {
        let text = (1..=256 << 20).contains(&self.text_bytes_max.as_u64());
        mistakes.require(text, "limits.text_bytes_max", "must lie between 1B and 256MiB");
        let windows = (1..=1024).contains(&self.windows_max);
        mistakes.require(windows, "limits.windows_max", "must lie between 1 and 1024");
    }

    /// As the engine takes them.
    #[must_use]
    pub fn engine(&self) -> TextLimits {
        TextLimits { bytes_max: bytes(self.text_bytes_max), windows_max: self.windows_max }
    }
}
