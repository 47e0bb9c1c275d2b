//! Configuration of the classification service.

use chassis::config::{self, Mistakes};
use host::{HostSettings, TextSettings};
use serde::{Deserialize, Serialize};

/// Of calls that select none the first answers Classify, the second ClassifyZeroShot. The third is a head over the second,
/// and has it in memory in any case.
const MODELS: [&str; 3] = ["prompt-injection-minilm-v5", "all-minilm-l6-v2", "sentiment-minilm-v1"];

/// What the service hosts, and the limits of its texts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// Models, batch limit, callers, ports, certificates, logs, workers.
    #[serde(flatten)]
    pub host: HostSettings,
    /// Bounds of one text.
    pub limits: TextSettings,
}

impl config::Settings for Settings {
    fn defaults() -> Self {
        let host = HostSettings::defaults("classification", &MODELS, 1024, TextSettings::pool());
        Self { host, limits: TextSettings::defaults() }
    }

    fn check(&self, mistakes: &mut Mistakes) {
        self.host.check(mistakes);
        self.limits.check(mistakes);
    }
}
