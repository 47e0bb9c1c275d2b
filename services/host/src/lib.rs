//! Hosts models behind a typed contract: what the three services share.
//!
//! The one crate that knows contracts, chassis and engine together. A service adds its own contract: it parses a request
//! into inputs, [`Host::compute`]s them, and writes the reply. Loading, selection, scheduling, accounting, `ModelService`
//! and the translation of errors are here.

mod admin;
mod call;
mod catalog;
mod labels;
mod limits;
mod model_metrics;
mod models;
mod pool_metrics;
mod run;
mod self_test;
mod settings;
mod status;
pub mod stream;
mod vector;

pub use self::{
    call::{Call, Computed, Spent, check_options, model_info},
    catalog::{Catalog, Hosted, labelling, refuse_space, require_space},
    labels::{LabelChoice, Scored, results as label_results},
    limits::TextSettings,
    run::{Error, Loader, Service, serve},
    settings::HostSettings,
    status::{bad_parameter, of_item, refusal, refuse_item},
    vector::{Vector, encoding, matrix, results as vector_results},
};

use std::{sync::Arc, time::Duration};

use chassis::readiness::Readiness;
use engine::Pool;

/// Loaded models and the workers that run them.
pub struct Host<M: Hosted> {
    /// The loaded models.
    pub catalog: Catalog<M>,
    /// The workers.
    pub pool: Arc<Pool<M>>,
    /// Name of this replica.
    pub replica: Arc<str>,
    /// Most items of one call.
    pub batch_items_max: u32,
    /// Most batches of one stream that are read and not answered.
    pub stream_batches_max: usize,
    /// Longest time in which a stream may wait for its client.
    pub stream_idle_max: Duration,
    /// Says when the process drains.
    pub readiness: Readiness,
}
