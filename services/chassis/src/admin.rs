//! The admin port: plain HTTP for operators and Prometheus, on loopback unless the configuration says otherwise.
//!
//! `/livez` the process runs, `/readyz` traffic may come (else 503 and what is waited for), `/metrics` OpenMetrics,
//! `/config` the effective configuration.

use std::sync::Arc;

use axum::{
    Router, extract::State, http::StatusCode, http::header::CONTENT_TYPE, response::IntoResponse, routing::get,
};
use prometheus_client::{encoding::text::encode, registry::Registry};
use tokio::net::TcpListener;

use crate::readiness::Readiness;

/// What the admin port shows.
#[derive(Clone)]
pub struct Admin {
    /// All metrics of the process.
    pub registry: Arc<Registry>,
    /// Whether traffic may come.
    pub readiness: Readiness,
    /// The effective configuration as TOML. It holds paths of keys, never keys.
    pub config: Arc<str>,
}

/// Serves the admin port until the shutdown completes.
///
/// # Errors
/// When the listener fails.
pub async fn serve(
    admin: Admin,
    listener: TcpListener,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let router = Router::new()
        .route("/livez", get(|| async { "live\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .route("/config", get(config))
        .with_state(admin);
    axum::serve(listener, router).with_graceful_shutdown(shutdown).await
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
