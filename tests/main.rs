//! The mesh as its users meet it: real processes, loopback, real certificates, real models.
//!
//! Everything that a run needs is made or fetched by its own set-up, into `target/e2e`: the `tamis` binary by cargo, the
//! models by `tamis models pull`, photos and texts with known answers by pip, grpcurl by go. It is kept there, so that
//! later runs need no network.
//!
//! Tests that only ask share one mesh; those that break something start their own.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on has failed")]

mod accuracy;
mod bench_engine;
mod bench_load;
mod certificates;
mod classification;
mod classify_stream;
mod clients;
mod commands;
mod common;
mod count_tokens;
mod deadlines;
mod docs;
mod doctor;
mod embed_stream;
mod embedding;
mod embedding_options;
mod failures;
mod fanout;
mod grpcurl;
mod harness;
mod heads;
mod health;
mod hub;
mod identity;
mod images_bad;
mod lite2;
mod malformed;
mod memory;
mod model_admin;
mod models;
mod precision;
mod reference;
mod reflection;
mod rerank;
mod topology;
mod trace;
mod up;
mod uploads;
mod vision;
mod zero_shot;
