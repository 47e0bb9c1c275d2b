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
use proto::model::v1::{model_admin_service_server::ModelAdminServiceServer, model_service_server::ModelServiceServer};
use serde::Serialize;
use tonic::service::Routes;

use crate::{
    Catalog, Host, HostSettings, Hosted,
    admin::{Admin, Changes},
    catalog::Room,
    model_metrics::ModelMetrics,
    models::Models,
    pool_metrics::PoolMetrics,
};

/// Loads a model from its files.
pub type Loader<M> = Box<dyn Fn(&ModelFiles) -> Result<M, engine::Error> + Send + Sync>;

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
    let pool = Arc::new(Pool::start(settings.pool, settings.compute.device, &settings.server.name)?);
    let readiness = Readiness::default();
    let host = Arc::new(Host {
        catalog: Catalog::new(settings.models.clone()),
        pool: Arc::clone(&pool),
        replica: settings.server.name.as_str().into(),
        batch_items_max: settings.batch_items_max,
        stream_batches_max: settings.stream_batches_max,
        stream_idle_max: settings.stream_idle_max.0,
        readiness: readiness.clone(),
    });
    let mut registry = Registry::with_prefix("tamis");
    registry.register_collector(Box::new(PoolMetrics(Arc::clone(&pool))));
    registry.register_collector(Box::new(ModelMetrics(Arc::clone(&host))));
    service.metrics.into_iter().for_each(|collector| registry.register_collector(collector));
    let models = readiness.guard("models");
    let limit = message_bytes(&settings.server);
    let described = Models { host: Arc::clone(&host), methods: service.methods };
    let described = ModelServiceServer::new(described).max_encoding_message_size(limit);
    let changes = Arc::new(changes(&settings, Arc::clone(&host), service.load, service.methods));
    // Taken before the admin port opens: what is asked there waits for the models of the start.
    let turn = changes.turn().await;
    let admin = Admin { changes: Arc::clone(&changes), readiness: readiness.clone() };
    let admin = admin_routes(admin, described.clone()).map_err(std::io::Error::other)?;
    let server = Server {
        services: service.services,
        allow: settings.allowed(),
        readiness,
        probe: Arc::new(move || {
            let load = pool.load();
            Busy { queue_ms: load.queue_ms, ms_per_unit: load.ms_per_unit }
        }),
        config: config::print(effective),
        admin: Some(admin),
        credentials,
        settings: settings.server.clone(),
    };
    let routes = async {
        changes.start(&settings.models, turn).await?;
        models.ready();
        Ok((service.routes)(host, limit).add_service(described))
    };
    server.serve(ports, registry, routes, shutdown).await
}

fn changes<M: Hosted>(
    settings: &HostSettings,
    host: Arc<Host<M>>,
    load: Loader<M>,
    methods: &'static [&'static str],
) -> Changes<M> {
    Changes {
        host,
        store: Store::new(settings.data_dir.as_ref()),
        load: Arc::new(load),
        methods,
        compute: settings.compute,
        room: Room { models: settings.models_max, aliases: settings.aliases_max },
        state_file: (!settings.state_file.is_empty()).then(|| settings.state_file.clone().into()),
        turn: Arc::default(),
    }
}

/// What the admin port serves: changes, what is loaded, and reflection for both.
fn admin_routes<M: Hosted>(
    admin: Admin<M>,
    described: ModelServiceServer<Models<M>>,
) -> Result<Routes, tonic_reflection::server::Error> {
    let reflection = || {
        let builder = tonic_reflection::server::Builder::configure();
        // Details of errors travel as Any: with their types here, grpcurl prints them readable.
        let sets = [proto::DESCRIPTORS, tonic_types::pb::FILE_DESCRIPTOR_SET];
        let builder = sets.into_iter().fold(builder, |builder, set| builder.register_encoded_file_descriptor_set(set));
        let served = ["tamis.model.v1.ModelAdminService", "tamis.model.v1.ModelService"];
        served.into_iter().fold(builder, |builder, name| builder.with_service_name(name))
    };
    let routes = Routes::new(ModelAdminServiceServer::new(admin)).add_service(described);
    Ok(routes.add_service(reflection().build_v1()?).add_service(reflection().build_v1alpha()?))
}
