//! The embedding service: `tamis.embedding.v1.EmbeddingService` over the models that it hosts.

mod config;
mod count;
mod parse;
mod plan;
mod rerank;
mod service;
mod stream;

use std::sync::Arc;

use engine::{Compute, Error as EngineError, ModelFiles, Parts, Task, TextLimits, TextModel};
use host::{Error, Host, Service};
use proto::embedding::v1::embedding_service_server::EmbeddingServiceServer;
use tonic::service::Routes;

pub use config::Settings;

use crate::service::Embedding;

/// Runs the service until `shutdown` completes, then drains it.
///
/// # Errors
/// When certificates, models or ports cannot be used.
pub async fn serve(settings: Settings, shutdown: impl Future<Output = ()> + Send) -> Result<(), Error> {
    let limits = settings.limits.engine();
    let compute = settings.host.compute;
    let service = Service {
        load: Box::new(move |files| load(files, limits, compute)),
        services: &["tamis.embedding.v1.EmbeddingService"],
        methods: &[service::EMBED, service::EMBED_STREAM, count::METHOD, rerank::METHOD],
        metrics: Vec::new(),
        routes: Box::new(routes),
    };
    host::serve(settings.host.clone(), &settings, service, shutdown).await
}

fn load(files: &ModelFiles, limits: TextLimits, compute: Compute) -> Result<TextModel, EngineError> {
    let manifest = &files.manifest;
    match manifest.task {
        Task::Embedding | Task::Rerank => TextModel::load_sharing(files, limits, &Parts::new(compute)),
        other => {
            let why = format!("its task is {other}; this service embeds and ranks");
            Err(EngineError::Load { what: format!("model {}", manifest.name), why })
        }
    }
}

fn routes(host: Arc<Host<TextModel>>, limit: usize) -> Routes {
    let service = EmbeddingServiceServer::new(Embedding { host });
    Routes::new(service.max_decoding_message_size(limit).max_encoding_message_size(limit))
}
