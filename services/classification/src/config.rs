//! Configuration of the classification service.

use chassis::{
    config::{self, Mistakes},
    units::{ByteSize, bytes},
};
use engine::{PoolSettings, TextLimits};
use host::HostSettings;
use serde::{Deserialize, Serialize};

/// What the service hosts, and the limits of its texts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// Models, batch limit, callers, ports, certificates, logs, workers.
    #[serde(flatten)]
    pub host: HostSettings,
    /// Bounds of one text.
    pub limits: Limits,
}

/// Bounds of one text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Most bytes of one text in UTF-8, 1B to 256MiB. Default 1MiB. Beyond: the item fails with reason INPUT_TOO_LARGE.
    pub text_bytes_max: ByteSize,
}

impl config::Settings for Settings {
    fn defaults() -> Self {
        // Tokens: a thousand calls of 256 tokens wait at most; a chunk of 256 fills a core.
        let pool = PoolSettings { workers: 0, queue_units_max: 262_144, chunk_units_max: 256 };
        Self {
            host: HostSettings::defaults("classification", "prompt-injection-minilm-v5", 1024, pool),
            limits: Limits { text_bytes_max: ByteSize::mib(1) },
        }
    }

    fn check(&self, mistakes: &mut Mistakes) {
        self.host.check(mistakes);
        let text = (1..=256 << 20).contains(&self.limits.text_bytes_max.as_u64());
        mistakes.require(text, "limits.text_bytes_max", "must lie between 1B and 256MiB");
    }
}

impl Limits {
    /// As the engine takes them.
    pub(crate) fn engine(&self) -> TextLimits {
        TextLimits { bytes_max: bytes(self.text_bytes_max) }
    }
}
