//! The classification service: `tamis.classification.v1.ClassificationService` over the models that it hosts.

mod config;
mod labels;
mod parse;
mod plan;
mod service;
mod stream;
mod zero_shot;

use std::sync::Arc;

use engine::{Error as EngineError, ModelFiles, Parts, Task, TextLimits, TextModel};
use host::{Error, Host, Service};
use proto::classification::v1::classification_service_server::ClassificationServiceServer;
use tonic::service::Routes;

pub use config::Settings;

use crate::service::Classification;

/// Runs the service until `shutdown` completes, then drains it.
///
/// # Errors
/// When certificates, models or ports cannot be used.
pub async fn serve(settings: Settings, shutdown: impl Future<Output = ()> + Send) -> Result<(), Error> {
    let limits = settings.limits.engine();
    let parts = Parts::new(settings.host.compute);
    let service = Service {
        load: Box::new(move |files| load(files, limits, &parts)),
        services: &["tamis.classification.v1.ClassificationService"],
        methods: &[service::CLASSIFY, service::CLASSIFY_STREAM, zero_shot::METHOD],
        metrics: Vec::new(),
        routes: Box::new(routes),
    };
    host::serve(settings.host.clone(), &settings, service, shutdown).await
}

/// Loads a model; heads over one embedding model have it in common, and with the model itself.
fn load(files: &ModelFiles, limits: TextLimits, parts: &Parts) -> Result<TextModel, EngineError> {
    let manifest = &files.manifest;
    match manifest.task {
        Task::Classification | Task::Embedding => TextModel::load_sharing(files, limits, parts),
        other => {
            let why = format!("its task is {other}; this service gives labels");
            Err(EngineError::Load { what: format!("model {}", manifest.name), why })
        }
    }
}

fn routes(host: Arc<Host<TextModel>>, limit: usize) -> Routes {
    let service = ClassificationServiceServer::new(Classification { host });
    Routes::new(service.max_decoding_message_size(limit).max_encoding_message_size(limit))
}
