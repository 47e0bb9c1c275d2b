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
    fn what_computes_is_chosen_by_three_keys_and_what_can_not_be_is_refused() {
        let compute = |text: &str| {
            let layers = [Layer::text("file", PLACE), Layer::text("more", &format!("[compute]\n{text}"))];
            load::<Settings>("embedding", &layers).map(|settings| settings.host.compute).map_err(|all| all.to_string())
        };
        assert_eq!(compute("").unwrap(), engine::Compute::default());
        let chosen = compute("path = 'portable'\nprecision = 'f32'").unwrap();
        assert_eq!((chosen.path.to_string(), chosen.precision.to_string()), ("portable".into(), "f32".into()));
        for (text, key, complaint) in [
            ("precision = 'int8'", "`compute.precision`", "tamis models quantize"),
            ("precision = 'f16'", "`compute.precision`", "auto, f32, bf16 or int8"),
            ("path = 'sse'", "`compute.path`", "avx512-dot"),
            ("device = 'cuda:0'", "`compute.device`", "built for CPUs only"),
            ("device = 'gpu'", "`compute.device`", "cpu, cuda:0 or metal:0"),
            ("tier = 'avx2'", "`compute.tier`", ""),
        ] {
            let message = compute(text).unwrap_err();
            assert!(message.contains(key) && message.contains(complaint), "{text}: {message}");
        }
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
