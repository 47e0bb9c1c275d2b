//! The front door of the mesh: takes gRPC calls over mutual TLS and carries them to the replica with the least work.
//!
//! It knows contracts and never a tensor. Messages pass through as bytes; only what the gateway answers itself is decoded.
//! A call goes `worker` -> `stack` (well-formed, identified, authorised, routed, admitted) -> `call` (which replica, how
//! often) -> `flight` (one attempt) -> `reply`, and every refusal on that way is made in `refuse`.
//!
//! ```no_run
//! use chassis::config::{Layer, load};
//! # async fn example(shutdown: impl Future<Output = ()>) -> Result<(), Box<dyn std::error::Error>> {
//! let settings: gateway::Settings = load("gateway", &[Layer::file("gateway.toml".as_ref())])?;
//! gateway::serve(settings, shutdown).await?;
//! # Ok(())
//! # }
//! ```

mod authorize;
mod balance;
mod batch;
mod call;
mod config;
mod content;
mod contracts;
mod cutoff;
mod fanout;
mod figures;
mod flight;
mod gateway;
mod health;
mod identify;
mod mesh;
mod metrics;
mod models;
mod progress;
mod refuse;
mod replay;
mod reply;
mod request;
mod retry;
mod route;
mod split;
mod stack;
mod topology;
mod unary;
mod upstream;
mod wire;
mod worker;

pub use self::{
    authorize::{Identities, Methods, Rule},
    config::{
        ConnectionSettings, ContentSettings, FanOutSettings, HealthSettings, HoldSettings, RetrySettings,
        ServiceSettings, Settings,
    },
    gateway::{Bound, Error, bind, serve},
};
