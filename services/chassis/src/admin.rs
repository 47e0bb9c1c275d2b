//! The admin port, on loopback unless the configuration says otherwise: two protocols, told apart by their first byte.
//!
//! Plain HTTP for operators and Prometheus, which only reads: `/livez` the process runs, `/readyz` traffic may come (else
//! 503 and what is waited for), `/metrics` OpenMetrics, `/config` the effective configuration. gRPC over mutual TLS for
//! what changes a running process, and for a few identities only: [`Grpc`].

mod connection;
#[cfg(test)]
mod tests;

use std::{io, pin::pin, sync::Arc, time::Duration};

use axum::{
    Router,
    extract::State,
    http::StatusCode,
    http::header::CONTENT_TYPE,
    middleware::{from_fn, from_fn_with_state},
    response::IntoResponse,
    routing::get,
};
use prometheus_client::{encoding::text::encode, registry::Registry};
use tokio::{
    net::TcpListener,
    sync::{Semaphore, watch},
    task::JoinSet,
};
use tonic::service::Routes;

use self::connection::{Door, Secured};
use crate::{
    calls::{self, Admission, CallMetrics},
    deadline,
    readiness::Readiness,
    server::accept,
    spiffe::SpiffeId,
    tls::Acceptor,
};

/// At the end, connections have this long to finish what they do; an idle one is not waited for.
const STOP_MAX: Duration = Duration::from_secs(1);

/// What the admin port shows.
#[derive(Clone)]
pub struct Admin {
    /// All metrics of the process.
    pub registry: Arc<Registry>,
    /// Whether traffic may come.
    pub readiness: Readiness,
    /// The effective configuration as TOML. It holds paths of keys, never keys.
    pub config: Arc<str>,
    /// How much the port takes: [`crate::settings::ServerSettings::admin_bounds`].
    pub bounds: Bounds,
}

/// How much the admin port takes.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Most connections at once, and most gRPC calls in flight.
    pub connections_max: usize,
    /// Until the first byte has come, the handshake is done, and a plain request's head is whole: each at most this.
    pub handshake_timeout: Duration,
    /// Deadlines of gRPC calls.
    pub deadlines: deadline::Limits,
}

/// gRPC services on the admin port, over mutual TLS.
pub struct Grpc {
    /// The services.
    pub routes: Routes,
    /// Who this process is and whose certificates it trusts.
    pub acceptor: Acceptor,
    /// Identities that may call; everybody else is refused with PERMISSION_DENIED.
    pub admins: Vec<SpiffeId>,
    /// What is counted of the calls.
    pub metrics: CallMetrics,
}

/// Serves the admin port until the shutdown completes. Without [`Grpc`] it speaks plain HTTP only.
///
/// # Errors
/// None today: a connection that cannot be accepted is logged, and the next one is tried.
pub async fn serve(
    admin: Admin,
    listener: TcpListener,
    grpc: Option<Grpc>,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let bounds = admin.bounds;
    let permits = Arc::new(Semaphore::new(bounds.connections_max));
    let secured = grpc.map(|grpc| Secured { acceptor: grpc.acceptor.clone(), router: grpc.router(bounds) });
    let door = Arc::new(Door { plain: plain(admin), secured, patience: bounds.handshake_timeout });
    let (stop, stopped) = watch::channel(());
    let mut connections = JoinSet::new();
    let mut shutdown = pin!(shutdown);
    loop {
        let accepted = tokio::select! {
            () = &mut shutdown => break,
            Some(_) = connections.join_next() => continue,
            accepted = accept::next(&listener, &permits) => accepted,
        };
        match accepted {
            Ok((stream, address, permit)) => {
                let (door, stopped) = (Arc::clone(&door), stopped.clone());
                connections.spawn(async move {
                    let _permit = permit;
                    if let Err(error) = door.serve(stream, address, stopped).await {
                        tracing::debug!(%address, %error, "a connection to the admin port ended");
                    }
                });
            }
            Err(error) => accept::pause(&error).await,
        }
    }
    drop((listener, stop));
    let ended = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(STOP_MAX, ended).await.is_err() {
        tracing::info!("connections to the admin port are cut off");
    }
    Ok(())
}

fn plain(admin: Admin) -> Router {
    Router::new()
        .route("/livez", get(|| async { "live\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .route("/config", get(config))
        .with_state(admin)
}

impl Grpc {
    /// The stack, innermost first as axum adds layers: the same as that of a server's calls.
    fn router(self, bounds: Bounds) -> Router {
        let calls = Arc::new(Semaphore::new(bounds.connections_max));
        let admission = Admission { allow: self.admins.into(), calls, calls_max: bounds.connections_max };
        self.routes
            .prepare()
            .into_axum_router()
            .layer(from_fn(calls::explain))
            .layer(from_fn_with_state(self.metrics.clone(), calls::catch_panics))
            .layer(from_fn_with_state(bounds.deadlines, deadline::enforce))
            .layer(from_fn_with_state(admission, calls::admit))
            .layer(from_fn_with_state(self.metrics, calls::observe))
    }
}

async fn ready(State(admin): State<Admin>) -> impl IntoResponse {
    let state = admin.readiness.state();
    if state.is_ready() {
        (StatusCode::OK, "ready\n".to_owned())
    } else if state.draining {
        (StatusCode::SERVICE_UNAVAILABLE, "draining\n".to_owned())
    } else {
        let pending: Vec<_> = state.pending.into_iter().collect();
        (StatusCode::SERVICE_UNAVAILABLE, format!("waiting for: {}\n", pending.join(", ")))
    }
}

async fn metrics(State(admin): State<Admin>) -> impl IntoResponse {
    let mut text = String::new();
    match encode(&mut text, &admin.registry) {
        Ok(()) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            (StatusCode::OK, [(CONTENT_TYPE, kind)], text)
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, [(CONTENT_TYPE, "text/plain")], error.to_string()),
    }
}

async fn config(State(admin): State<Admin>) -> impl IntoResponse {
    ([(CONTENT_TYPE, "application/toml")], admin.config.to_string())
}
