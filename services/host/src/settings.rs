//! The part of a service's configuration that says what it hosts.

use chassis::{config::Mistakes, settings::ServerSettings, spiffe::SpiffeId, telemetry::LogSettings, tls::TlsSettings};
use engine::PoolSettings;
use serde::{Deserialize, Serialize};

/// Configuration of a model service, but for the limits of its inputs, which each service has of its own. It stands
/// flattened in theirs, so unknown keys are refused by [`chassis::config`], not by serde.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HostSettings {
    /// Folder of models and manifests. Default: `TAMIS_DATA_DIR`, else `tamis` in the user's data folder.
    pub data_dir: String,
    /// Names of the models to load, 1 to 64; the first answers calls that select none.
    pub models: Vec<String>,
    /// Most items of one call, 1 to 65536. Default 1024 texts, 64 images. Beyond: INVALID_ARGUMENT, reason
    /// TOO_MANY_ITEMS.
    pub batch_items_max: u32,
    /// Most batches of one stream that are read and not answered, 1 to 1024; what they carry and their answers are in
    /// memory. Default 8. Beyond: the stream is not read until one is answered.
    pub stream_batches_max: usize,
    /// SPIFFE identities that may call; nobody else may. Default: `spiffe://tamis.local/gateway`.
    pub allow: Vec<String>,
    /// Where the server listens and how much it takes.
    pub server: ServerSettings,
    /// Its certificates.
    pub tls: TlsSettings,
    /// Its logs.
    pub log: LogSettings,
    /// Its workers and their queue.
    pub pool: PoolSettings,
}

impl HostSettings {
    /// The defaults of a role with this default model.
    #[must_use]
    pub fn defaults(role: &str, model: &str, batch_items_max: u32, pool: PoolSettings) -> Self {
        Self {
            data_dir: String::new(),
            models: vec![model.to_owned()],
            batch_items_max,
            stream_batches_max: 8,
            allow: vec!["spiffe://tamis.local/gateway".to_owned()],
            server: ServerSettings::defaults(role),
            tls: TlsSettings::defaults(),
            log: LogSettings::defaults(),
            pool,
        }
    }

    /// Bounds of the values.
    pub fn check(&self, mistakes: &mut Mistakes) {
        mistakes.require(!self.data_dir.is_empty(), "data_dir", "names no folder");
        let models = (1..=64).contains(&self.models.len());
        mistakes.require(models, "models", "must name 1 to 64 models");
        let batch = (1..=65536).contains(&self.batch_items_max);
        mistakes.require(batch, "batch_items_max", "must lie between 1 and 65536");
        let stream = (1..=1024).contains(&self.stream_batches_max);
        mistakes.require(stream, "stream_batches_max", "must lie between 1 and 1024");
        for id in &self.allow {
            if let Err(error) = id.parse::<SpiffeId>() {
                mistakes.add("allow", "effective value", error);
            }
        }
        mistakes.require(self.pool.workers <= 1024, "pool.workers", "must be at most 1024");
        mistakes.require(self.pool.queue_units_max >= 1, "pool.queue_units_max", "must be at least 1");
        mistakes.require(self.pool.chunk_units_max >= 1, "pool.chunk_units_max", "must be at least 1");
        self.server.check(mistakes);
        self.tls.check(mistakes);
        self.log.check(mistakes);
    }

    /// The identities that may call; those that do not parse were refused by `check`.
    #[must_use]
    pub fn allowed(&self) -> Vec<SpiffeId> {
        self.allow.iter().filter_map(|id| id.parse().ok()).collect()
    }
}
