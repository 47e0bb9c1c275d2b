//! What every server of the mesh shares: configuration, certificates and identity, health, draining, deadlines, traces,
//! logs and metrics.
//!
//! It has never heard of a model or of a contract. A server is `Server::bind(..)`, then `serve(.., shutdown)`; nothing
//! here reads a signal or the environment by itself.

pub mod admin;
pub mod calls;
pub mod config;
pub mod content;
pub mod deadline;
pub mod load;
pub mod peer;
pub mod readiness;
pub mod refusal;
pub mod server;
pub mod settings;
pub mod spiffe;
pub mod telemetry;
pub mod tls;
pub mod trace;
pub mod units;
