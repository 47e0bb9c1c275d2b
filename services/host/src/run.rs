//! The life of a model service: load, listen, serve, drain.

use std::sync::Arc;

use chassis::{
    config,
    load::Busy,
    readiness::Readiness,
    server::{Ports, Server, message_bytes},
    tls::{Credentials, TlsError},
};
use engine::{ModelFiles, Pool, Store};
use prometheus_client::{collector::Collector, registry::Registry};
use proto::model::v1::model_service_server::ModelServiceServer;
use serde::Serialize;
use tonic::service::Routes;

use crate::{Catalog, Host, HostSettings, Hosted, models::Models, pool_metrics::PoolMetrics};

/// Loads a model from its files.
pub type Loader<M> = Box<dyn Fn(&ModelFiles) -> Result<M, engine::Error> + Send>;

/// What a service adds to a host: its contract.
pub struct Service<M: Hosted> {
    /// Loads one of its models.
    pub load: Loader<M>,
    /// Full names of its gRPC services, `tamis.model.v1.ModelService` excluded.
    pub services: &'static [&'static str],
    /// Full names of its methods, for ModelService.
    pub methods: &'static [&'static str],
    /// What it measures itself.
    pub metrics: Vec<Box<dyn Collector>>,
    /// Its gRPC services over the loaded host. The number is the message limit for decoding and encoding.
    pub routes: Box<dyn FnOnce(Arc<Host<M>>, usize) -> Routes + Send>,
}

/// Why a service does not start, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Certificates.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// Models.
    #[error(transparent)]
    Model(#[from] engine::Error),
    /// Ports and files.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

/// Runs a service until `shutdown` completes, then drains it.
///
/// # Errors
/// When certificates, models or ports cannot be used.
pub async fn serve<M: Hosted>(
    settings: HostSettings,
    effective: &impl Serialize,
    service: Service<M>,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), Error> {
    let credentials = Credentials::load(&settings.tls)?;
    let ports = Ports::bind(&settings.server).await?;
    let addresses = ports.addresses()?;
    addresses.announce(&settings.server.announce)?;
    tracing::info!(grpc = %addresses.grpc, admin = %addresses.admin, health = %addresses.health, "listening");
    let pool = Arc::new(Pool::start(settings.pool, &settings.server.name)?);
    let mut registry = Registry::with_prefix("tamis");
    registry.register_collector(Box::new(PoolMetrics(Arc::clone(&pool))));
    service.metrics.into_iter().for_each(|collector| registry.register_collector(collector));
    let readiness = Readiness::default();
    let models = readiness.guard("models");
    let drains = readiness.clone();
    let busy = Arc::clone(&pool);
    let server = Server {
        services: service.services,
        allow: settings.allowed(),
        readiness,
        probe: Arc::new(move || {
            let load = busy.load();
            Busy { queue_ms: load.queue_ms, ms_per_unit: load.ms_per_unit }
        }),
        config: config::print(effective),
        admin: None,
        credentials,
        settings: settings.server.clone(),
    };
    let routes = async {
        let catalog = load(&settings, service.load).await?;
        models.ready();
        let replica = settings.server.name.as_str().into();
        let host = Arc::new(Host {
            catalog,
            pool,
            replica,
            batch_items_max: settings.batch_items_max,
            stream_batches_max: settings.stream_batches_max,
            readiness: drains,
        });
        let limit = message_bytes(&settings.server);
        let models = ModelServiceServer::new(Models { host: Arc::clone(&host), methods: service.methods });
        Ok((service.routes)(host, limit).add_service(models.max_encoding_message_size(limit)))
    };
    server.serve(ports, registry, routes, shutdown).await
}

/// Loads the models, off the threads that answer probes.
async fn load<M: Hosted>(settings: &HostSettings, load: Loader<M>) -> Result<Catalog<M>, Error> {
    let (store, names) = (Store::new(settings.data_dir.as_ref()), settings.models.clone());
    let models = move || {
        let load = |name: &String| {
            let model = load(&store.open(&store.manifest(name)?)?)?;
            tracing::info!(model = %model.info().name, revision = %model.info().revision, "loaded");
            Ok(model)
        };
        names.iter().map(load).collect::<Result<Vec<M>, engine::Error>>()
    };
    let models = tokio::task::spawn_blocking(models).await.map_err(std::io::Error::other)??;
    Ok(Catalog::new(models))
}
