//! Logs, as text for people or as JSON for machines, on standard error.

use serde::{Deserialize, Serialize};
use tracing_subscriber::{EnvFilter, fmt::MakeWriter};

use crate::config::Mistakes;

/// How this process logs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogSettings {
    /// `text` or `json`; default `text`.
    pub format: LogFormat,
    /// Which events: a level (`error`, `warn`, `info`, `debug`, `trace`) or directives such as
    /// `info,gateway=debug`; default `info`.
    pub filter: String,
}

/// Form of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

impl LogSettings {
    /// Text at level info.
    #[must_use]
    pub fn defaults() -> Self {
        Self { format: LogFormat::Text, filter: "info".into() }
    }

    /// The filter must parse.
    pub fn check(&self, mistakes: &mut Mistakes) {
        if let Err(error) = EnvFilter::builder().parse(&self.filter) {
            mistakes.add("log.filter", "effective value", error);
        }
    }
}

/// A subscriber for the process to install, or for a test to listen with.
pub fn subscriber<W>(settings: &LogSettings, writer: W) -> Box<dyn tracing::Subscriber + Send + Sync>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let filter = EnvFilter::builder().parse_lossy(&settings.filter);
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer);
    match settings.format {
        LogFormat::Text => Box::new(builder.with_ansi(false).finish()),
        LogFormat::Json => Box::new(builder.json().flatten_event(true).finish()),
    }
}
