//! The vision service: `tamis.vision.v1.VisionService` over the models that it hosts.

mod config;
mod parse;
mod service;

use std::sync::Arc;

use engine::ImageModel;
use host::{Error, Host, Service};
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
    let service = Service {
        load: Box::new(move |files| ImageModel::load(files, limits)),
        services: &["tamis.vision.v1.VisionService"],
        methods: &["tamis.vision.v1.VisionService/ClassifyImages", "tamis.vision.v1.VisionService/EmbedImages"],
        routes,
    };
    host::serve(settings.host.clone(), &settings, service, shutdown).await
}

fn routes(host: Arc<Host<ImageModel>>, limit: usize) -> Routes {
    let service = VisionServiceServer::new(Vision { host });
    Routes::new(service.max_decoding_message_size(limit).max_encoding_message_size(limit))
}
