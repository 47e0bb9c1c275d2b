//! The classification service: `tamis.classification.v1.ClassificationService` over the models that it hosts.

mod config;
mod parse;
mod service;

use std::sync::Arc;

use engine::{Error as EngineError, ModelFiles, TextModel};
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
    let load = move |files: &ModelFiles| {
        let model = TextModel::load(files, limits)?;
        if model.head().is_some() {
            return Ok(model);
        }
        let (what, why) = (model.info().name.to_string(), "it has no head, so it gives no labels".to_owned());
        Err(EngineError::Load { what, why })
    };
    let service = Service {
        load: Box::new(load),
        services: &["tamis.classification.v1.ClassificationService"],
        methods: &[service::CLASSIFY],
        metrics: Vec::new(),
        routes: Box::new(routes),
    };
    host::serve(settings.host.clone(), &settings, service, shutdown).await
}

fn routes(host: Arc<Host<TextModel>>, limit: usize) -> Routes {
    let service = ClassificationServiceServer::new(Classification { host });
    Routes::new(service.max_decoding_message_size(limit).max_encoding_message_size(limit))
}
