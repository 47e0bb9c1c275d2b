//! The vision service: `tamis.vision.v1.VisionService` over the models that it hosts.

mod config;
mod parse;
mod service;
mod upload;

use std::sync::Arc;

use chassis::{
    content::{ContentMetrics, Contents},
    units::bytes,
};
use engine::ImageModel;
use host::{Error, Service};
use proto::vision::v1::vision_service_server::VisionServiceServer;
use tonic::service::Routes;

pub use config::Settings;

use crate::service::Vision;

/// Runs the service until `shutdown` completes, then drains it.
///
/// # Errors
/// When certificates, models or ports cannot be used.
pub async fn serve(settings: Settings, shutdown: impl Future<Output = ()> + Send) -> Result<(), Error> {
    let limits = settings.limits.engine();
    let compute = settings.host.compute;
    let contents = Contents::new(bytes(settings.limits.content_bytes_max), bytes(settings.limits.uploads_bytes_max));
    let contents = Arc::new(contents);
    let service = Service {
        metrics: vec![Box::new(ContentMetrics(Arc::clone(&contents)))],
        load: Box::new(move |files| ImageModel::load(files, limits, &compute)),
        services: &["tamis.vision.v1.VisionService"],
        methods: &[service::CLASSIFY_IMAGES, service::EMBED_IMAGES],
        routes: Box::new(move |host, message_bytes_max| routes(Vision { host, contents, limits }, message_bytes_max)),
    };
    host::serve(settings.host.clone(), &settings, service, shutdown).await
}

fn routes(vision: Vision, limit: usize) -> Routes {
    let service = VisionServiceServer::new(vision);
    Routes::new(service.max_decoding_message_size(limit).max_encoding_message_size(limit))
}
