//! The gateway in this process, with mutual TLS and scripted replicas on loopback.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on has failed")]

mod answers;
mod balancing;
mod batches;
mod certificates;
mod client;
mod deadlines;
mod fanout;
mod fanout_bad_input;
mod fanout_stream;
mod front;
mod metrics;
mod refusals;
mod replica;
mod retries;
mod shutdown;
mod streams;
mod topology;
