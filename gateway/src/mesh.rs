//! What all workers share: the routes, the services behind them, and the bounds of the whole gateway.

use std::{
    collections::HashMap,
    convert::Infallible,
    sync::{Arc, atomic::AtomicUsize},
};

use chassis::{content::ContentMetrics, readiness::Readiness, tls::Credentials, units::bytes};
use http::{Request, Response};
use prometheus_client::registry::Registry;
use proto::model::v1::model_service_server::ModelServiceServer;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tower::util::BoxCloneSyncService;

use crate::{
    Error,
    call::Patience,
    config::{ServiceSettings, Settings},
    content::Library,
    contracts::{Contracts, REFLECTION},
    fanout::{self, GATEWAY},
    health::{HEALTH, Health},
    metrics::{MethodMetrics, Metrics},
    models::{MODELS, Models},
    refuse::Refusal,
    replay::ByteBudget,
    retry::Budget,
    route::{Method, Routes},
    topology::Topology,
    upstream::{Changes, Dialer, InFlight, Resolution, Upstream},
};

/// The mesh as the workers see it.
pub(crate) struct Mesh {
    pub(crate) settings: Settings,
    pub(crate) metrics: Arc<Metrics>,
    /// For calls of methods that nobody has.
    pub(crate) unknown: Arc<MethodMetrics>,
    /// Memory for held requests.
    pub(crate) held: Arc<ByteBudget>,
    /// Memory for replies that are gathered for one response.
    pub(crate) gathered: Arc<ByteBudget>,
    /// Uploaded contents, for the digests that name them.
    pub(crate) library: Library,
    /// Cancelled when the gateway begins to close connections.
    pub(crate) drain: CancellationToken,
    routes: Routes<Route>,
    calls: Arc<AtomicUsize>,
}

/// Where a method's calls go.
pub(crate) struct Route {
    pub(crate) method: Arc<Method>,
    pub(crate) target: Target,
    pub(crate) metrics: Arc<MethodMetrics>,
}

/// Who answers.
#[derive(Clone)]
pub(crate) enum Target {
    /// The replicas of a service.
    Upstream(Arc<Upstream>),
    /// The gateway.
    Local(LocalService),
    /// The gateway, by calls to services.
    FanOut,
}

/// A tonic service with its type erased.
pub(crate) type LocalService = BoxCloneSyncService<Request<Body>, Response<Body>, Infallible>;

/// What keeps the mesh up to date beside the workers.
pub(crate) struct Upkeep {
    pub(crate) resolutions: Vec<Resolution>,
    pub(crate) health: Health,
    pub(crate) topology: Topology,
}

impl Mesh {
    /// Reads the contracts and builds the routes.
    ///
    /// # Errors
    /// When the settings cannot be carried out.
    pub(crate) fn new(
        settings: Settings,
        credentials: &Credentials,
        registry: &mut Registry,
        readiness: &Readiness,
    ) -> Result<(Self, Upkeep), Error> {
        let contracts = Contracts::read(&settings.descriptors)?;
        fanout::check(proto::DESCRIPTORS).map_err(|why| Error::Contract("built in".into(), why))?;
        let mut resolutions = Vec::new();
        let changes = Changes::default();
        for (name, service) in &settings.services {
            resolutions.push(resolution((name, service), &settings, credentials, &changes)?);
        }
        let upstreams: Vec<_> = resolutions.iter().map(|resolution| Arc::clone(&resolution.upstream)).collect();
        let metrics = Arc::new(Metrics::new(registry, &upstreams));
        let served: HashMap<&str, &Arc<Upstream>> = settings
            .services
            .values()
            .zip(&upstreams)
            .flat_map(|(service, upstream)| service.serves.iter().map(move |name| (name.as_str(), upstream)))
            .collect();
        let health = Health::new(readiness, &served);
        let mut targets = local(&contracts, &served, &health)?;
        let reply_bytes_max = bytes(settings.server.message_bytes_max);
        let patience = Patience::of(&settings.retry);
        if let Some(models) = Models::new(&upstreams, &contracts, &metrics, patience, reply_bytes_max) {
            targets.insert(MODELS.into(), Target::Local(LocalService::new(ModelServiceServer::new(models))));
        }
        targets.insert(GATEWAY.into(), Target::FanOut);
        for (name, upstream) in served {
            if targets.insert(name.to_owned(), Target::Upstream(Arc::clone(upstream))).is_some() {
                let message =
                    format!("`{name}` cannot be served by replicas: the gateway answers it for the whole mesh");
                return Err(Error::Settings(message));
            }
        }
        let library = Library::new(&settings);
        let content_metrics = Box::new(ContentMetrics(Arc::clone(library.contents())));
        registry.sub_registry_with_prefix("gateway").register_collector(content_metrics);
        let drain = CancellationToken::new();
        let topology = Topology::new(upstreams.into_iter().zip(settings.services.values()), changes, drain.clone());
        let mesh = Self {
            library,
            routes: contracts.routes(&targets, &metrics)?,
            unknown: Arc::new(MethodMetrics::unknown(&metrics)),
            metrics,
            held: Arc::new(ByteBudget::new(bytes(settings.hold.request_bytes_max))),
            gathered: Arc::new(ByteBudget::new(bytes(settings.hold.gathered_bytes_max))),
            drain,
            calls: Arc::default(),
            settings,
        };
        Ok((mesh, Upkeep { resolutions, health, topology }))
    }

    /// The route of a path.
    pub(crate) fn route(&self, path: &str) -> Option<&Route> {
        self.routes.find(path)
    }

    /// A place among the calls of the whole gateway.
    pub(crate) fn admit(&self) -> Result<InFlight, Refusal> {
        let max = self.settings.server.calls_max;
        InFlight::count(&self.calls, max).ok_or(Refusal::Full { what: "calls in flight", max })
    }
}

/// Health and reflection.
fn local(
    contracts: &Contracts,
    served: &HashMap<&str, &Arc<Upstream>>,
    health: &Health,
) -> Result<HashMap<String, Target>, Error> {
    let mut names: Vec<_> = served.keys().copied().chain(REFLECTION).chain([HEALTH, MODELS, GATEWAY]).collect();
    names.sort_unstable();
    let services =
        contracts.reflection(&names)?.into_iter().chain([(HEALTH.into(), LocalService::new(health.service()))]);
    Ok(services.map(|(name, service)| (name, Target::Local(service))).collect())
}

fn resolution(
    (name, service): (&str, &ServiceSettings),
    settings: &Settings,
    credentials: &Credentials,
    changes: &Changes,
) -> Result<Resolution, Error> {
    let broken = |error: String| Error::Settings(format!("services.{name}: {error}"));
    let connector = credentials.connector(&service.identity().map_err(broken)?)?;
    let dialer = Dialer::new(connector, &settings.connection);
    let retries = Budget::new(settings.retry.budget_max, settings.retry.budget_ratio);
    Ok(Resolution {
        upstream: Arc::new(Upstream::new(name, dialer, retries, service, changes)),
        replicas: service.replicas().map_err(broken)?,
        health: settings.health.clone(),
        workers: settings.worker_count(),
    })
}
