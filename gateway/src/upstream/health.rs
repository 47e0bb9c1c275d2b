//! Asks one replica whether it serves, for as long as it is in the set.
//!
//! `grpc.health.v1` Watch on a connection of its own, in the gateway's control runtime: the replica tells of its draining
//! the moment it begins, and a connection that breaks tells of its death. What calls find out (`Endpoint::suspect`) makes
//! the watch start over on a new connection, which is the proof that the replica is there.

use std::{
    hash::{BuildHasher as _, RandomState},
    io,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::FutureExt as _;
use http::{Request, Response, Uri};
use hyper::{body::Incoming, client::conn::http2::SendRequest};
use tokio_util::task::AbortOnDropHandle;
use tonic::{Code, body::Body};
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

use super::{Dialer, Endpoint, State};
use crate::config::HealthSettings;

/// Keeps the endpoint's state up to date; never ends by itself.
pub(crate) async fn watch(endpoint: Arc<Endpoint>, dialer: Dialer, settings: HealthSettings) {
    let mut backoff = Backoff::new(&settings);
    loop {
        // What was doubted until now, the new connection answers.
        _ = endpoint.doubt.notified().now_or_never();
        let outcome = session(&endpoint, &dialer, &mut backoff).await;
        endpoint.set(State::Down);
        match outcome {
            // A call doubts it: look again at once.
            Ok(()) => continue,
            Err(error) => tracing::debug!(endpoint = %endpoint.address, %error, "replica not reachable"),
        }
        tokio::select! {
            () = tokio::time::sleep(backoff.next(spread())) => {}
            () = endpoint.doubt.notified() => {}
        }
    }
}

/// One connection's worth of watching. Ends well when somebody doubts the replica.
async fn session(endpoint: &Endpoint, dialer: &Dialer, backoff: &mut Backoff) -> io::Result<()> {
    let (sender, connection) = dialer.dial(endpoint.address).await?;
    let connection = AbortOnDropHandle::new(tokio::spawn(connection));
    let origin = Uri::builder().scheme("https").authority(endpoint.authority.clone()).path_and_query("/").build();
    let mut client = HealthClient::with_origin(Replica(sender), origin.map_err(io::Error::other)?);
    let watching = async {
        let mut statuses = match client.watch(HealthCheckRequest::default()).await {
            Ok(statuses) => statuses.into_inner(),
            // A server without health: as gRPC clients do, take the connection for the answer.
            Err(status) if status.code() == Code::Unimplemented => {
                endpoint.set(State::Ready);
                backoff.reset();
                _ = connection.await;
                return Err(io::Error::other("the connection ended"));
            }
            Err(status) => return Err(io::Error::other(status)),
        };
        while let Some(response) = statuses.message().await.map_err(io::Error::other)? {
            let serving = response.status() == ServingStatus::Serving;
            endpoint.set(if serving { State::Ready } else { State::Draining });
            backoff.reset();
        }
        Err(io::Error::other("the watch ended"))
    };
    tokio::select! {
        ended = watching => ended,
        () = endpoint.doubt.notified() => Ok(()),
    }
}

/// A connection as tonic's clients want it.
struct Replica(SendRequest<Body>);

impl tower::Service<Request<Body>> for Replica {
    type Response = Response<Incoming>;
    type Error = hyper::Error;
    type Future = std::pin::Pin<Box<dyn Future<Output = hyper::Result<Response<Incoming>>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<hyper::Result<()>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}

/// Waits between attempts: doubling, bounded, and spread so that many gateways do not come at once.
struct Backoff {
    next: Duration,
    min: Duration,
    max: Duration,
}

impl Backoff {
    fn new(settings: &HealthSettings) -> Self {
        let (min, max) = (settings.retry_min.0, settings.retry_max.0);
        Self { next: min, min, max }
    }

    /// The next wait, shortened by up to half as `spread` (0 to 1) says.
    fn next(&mut self, spread: f64) -> Duration {
        let wait = self.next.mul_f64(1.0 - spread / 2.0);
        self.next = (self.next * 2).min(self.max);
        wait
    }

    fn reset(&mut self) {
        self.next = self.min;
    }
}

/// 0 to 1 at random, from the hash keys that the system seeds: good enough for spreading.
fn spread() -> f64 {
    RandomState::new().hash_one(0) as f64 / u64::MAX as f64
}

#[cfg(test)]
mod tests {
    use chassis::units::Span;

    use super::*;

    #[test]
    fn waits_double_up_to_their_bound_and_start_over() {
        let mut backoff = Backoff::new(&HealthSettings { retry_min: Span::millis(50), retry_max: Span::millis(150) });
        let waits: Vec<_> = [0.0, 0.0, 0.0, 1.0].map(|spread| backoff.next(spread).as_millis()).into();
        assert_eq!(waits, [50, 100, 150, 75]);
        backoff.reset();
        assert_eq!(backoff.next(0.0).as_millis(), 50);
    }
}
