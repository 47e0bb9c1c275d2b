//! Configuration of the embedding service.

use chassis::config::{self, Mistakes};
use host::{HostSettings, TextSettings};
use serde::{Deserialize, Serialize};

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
        let host = HostSettings::defaults("embedding", &["all-minilm-l6-v2"], 1024, TextSettings::pool());
        Self { host, limits: TextSettings::defaults() }
    }

    fn check(&self, mistakes: &mut Mistakes) {
        self.host.check(mistakes);
        self.limits.check(mistakes);
    }
}

#[cfg(test)]
mod tests {
    use chassis::config::{Layer, load, print};

    use super::*;

    const PLACE: &str = "data_dir = '/data'\n[tls]\nca = 'ca.pem'\ncert = 'c.pem'\nkey = 'k.pem'\n";

    #[test]
    fn the_defaults_hold_once_the_files_are_named_and_read_back() {
        let settings: Settings = load("embedding", &[Layer::text("file", PLACE)]).unwrap();
        assert_eq!(settings.host.models, ["all-minilm-l6-v2"]);
        assert_eq!(load::<Settings>("embedding", &[Layer::text("file", &print(&settings))]).unwrap(), settings);
    }

    #[test]
    fn every_mistake_is_in_the_message() {
        let text = "models = []\nallow = ['nobody']\n[limits]\ntext_bytes_max = '0B'\n[server]\nlisten = 'here'\n";
        let message = load::<Settings>("embedding", &[Layer::text("file", text)]).unwrap_err().to_string();
        for part in
            ["`data_dir`", "`models`", "`allow`", "`limits.text_bytes_max`", "`server.listen` (file)", "`tls.key`"]
        {
            assert!(message.contains(part), "{part} is missing in\n{message}");
        }
    }
}
