//! The part of a service's configuration that says what it hosts.

use std::time::Duration;

use chassis::{
    config::Mistakes, settings::ServerSettings, spiffe::SpiffeId, telemetry::LogSettings, tls::TlsSettings, units::Span,
};
use engine::{Compute, PoolSettings};
use serde::{Deserialize, Serialize};

/// Configuration of a model service, but for the limits of its inputs, which each service has of its own. It stands
/// flattened in theirs, so unknown keys are refused by [`chassis::config`], not by serde.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HostSettings {
    /// Folder of models and manifests. Default: `TAMIS_DATA_DIR`, else `tamis` in the user's data folder.
    pub data_dir: String,
    /// Names of the models to load, 1 to `models_max`; the first that serves a method answers calls that select none.
    pub models: Vec<String>,
    /// Most revisions of models that are loaded at once, 1 to 256. Default 16. Beyond: LoadModel is refused with
    /// RESOURCE_EXHAUSTED, reason QUEUE_FULL.
    pub models_max: usize,
    /// Most aliases, 1 to 4096. Default 64. Beyond: RESOURCE_EXHAUSTED, reason QUEUE_FULL.
    pub aliases_max: usize,
    /// File that what is loaded is written to after every change at run time, and read from at start instead of `models`:
    /// a process that is started again has what it had. One that makes no sense is passed over, with a warning. Empty:
    /// none, every start begins with `models`. Default: none.
    pub state_file: String,
    /// Most items of one call, 1 to 65536. Default 1024 texts, 64 images. Beyond: INVALID_ARGUMENT, reason
    /// TOO_MANY_ITEMS.
    pub batch_items_max: u32,
    /// Most batches of one stream that are read and not answered, 1 to 1024; what they carry and their answers are in
    /// memory. Default 8. Beyond: the stream is not read until one is answered.
    pub stream_batches_max: usize,
    /// Longest time in which a stream may send nothing while nothing of it is in flight, its config included, 1s to 1h:
    /// it holds one of `calls_max` and its model. Default 60s. Beyond: the stream ends with CANCELLED, reason CANCELLED.
    pub stream_idle_max: Span,
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
    /// What computes its models, and in which precision. Default: on the CPU, by the best that this one has.
    pub compute: Compute,
}

impl HostSettings {
    /// The defaults of a role with these models.
    #[must_use]
    pub fn defaults(role: &str, models: &[&str], batch_items_max: u32, pool: PoolSettings) -> Self {
        Self {
            data_dir: String::new(),
            models: models.iter().map(|name| (*name).to_owned()).collect(),
            models_max: 16,
            aliases_max: 64,
            state_file: String::new(),
            batch_items_max,
            stream_batches_max: 8,
            stream_idle_max: Span::seconds(60),
            allow: vec!["spiffe://tamis.local/gateway".to_owned()],
            server: ServerSettings::defaults(role),
            tls: TlsSettings::defaults(),
            log: LogSettings::defaults(),
            pool,
            compute: Compute::default(),
        }
    }

    /// Bounds of the values.
    pub fn check(&self, mistakes: &mut Mistakes) {
        mistakes.require(!self.data_dir.is_empty(), "data_dir", "names no folder");
        let models = (1..=self.models_max).contains(&self.models.len());
        mistakes.require(models, "models", "must name 1 to models_max models");
        mistakes.require((1..=256).contains(&self.models_max), "models_max", "must lie between 1 and 256");
        mistakes.require((1..=4096).contains(&self.aliases_max), "aliases_max", "must lie between 1 and 4096");
        let batch = (1..=65536).contains(&self.batch_items_max);
        mistakes.require(batch, "batch_items_max", "must lie between 1 and 65536");
        let stream = (1..=1024).contains(&self.stream_batches_max);
        mistakes.require(stream, "stream_batches_max", "must lie between 1 and 1024");
        let idle = (Duration::from_secs(1)..=Duration::from_secs(3600)).contains(&self.stream_idle_max.0);
        mistakes.require(idle, "stream_idle_max", "must lie between 1s and 1h");
        for id in &self.allow {
            if let Err(error) = id.parse::<SpiffeId>() {
                mistakes.add("allow", "effective value", error);
            }
        }
        mistakes.require(self.pool.workers <= 1024, "pool.workers", "must be at most 1024");
        mistakes.require(self.pool.queue_units_max >= 1, "pool.queue_units_max", "must be at least 1");
        mistakes.require(self.pool.chunk_units_max >= 1, "pool.chunk_units_max", "must be at least 1");
        let device = self.pool.device_chunk_units_max;
        mistakes.require(device >= 1, "pool.device_chunk_units_max", "must be at least 1");
        for (key, why) in self.compute.faults() {
            mistakes.add(&format!("compute.{key}"), "effective value", why);
        }
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
