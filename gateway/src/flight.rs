//! One attempt of a call on one replica.

use std::{error::Error, sync::Arc};

use chassis::{deadline, load::Report};
use http::{HeaderMap, HeaderValue, Request, Uri};
use tokio::time::Instant;
use tonic::Code;

use crate::{
    balance::{Outstanding, Sent, Work},
    cutoff::Deadline,
    reply::{NoReply, Reply, receive},
    retry::Failure,
    route::Method,
    upstream::{Connect, Endpoint, Lease, Picked, RequestBody, Upstream},
};

/// A closed connection is noticed when it is used; as many are passed over before the replica is given up.
const STALE_CONNECTIONS_MAX: usize = 2;

/// What is the same in every attempt of a call.
pub(crate) struct Plan<'a> {
    pub(crate) method: &'a Method,
    pub(crate) upstream: &'a Arc<Upstream>,
    /// Already those for a replica.
    pub(crate) headers: &'a HeaderMap,
    pub(crate) deadline: Option<Deadline>,
    pub(crate) work: Work,
    /// Whose connections are used.
    pub(crate) worker: usize,
    /// Bytes of the reply that are held until its status is known.
    pub(crate) held_bytes_max: usize,
}

/// What a call holds on a replica: a stream and a share of its load. Dropping it cancels.
pub(crate) struct Flight {
    upstream: Arc<Upstream>,
    outstanding: Outstanding,
    work: Work,
    _lease: Lease,
}

/// How an attempt failed, and the request body if it never left.
pub(crate) struct Failed {
    pub(crate) failure: Failure,
    pub(crate) body: Option<RequestBody>,
}

impl Plan<'_> {
    /// Sends the call to the replica and reads its reply. The flight goes on as long as the reply does.
    pub(crate) async fn attempt(&self, picked: Picked, body: RequestBody) -> Result<(Reply, Option<Flight>), Failed> {
        let Picked { endpoint, mut outstanding } = picked;
        let (response, lease) = self.send(&endpoint, &mut outstanding, body).await?;
        let flight = Flight { upstream: Arc::clone(self.upstream), outstanding, work: self.work, _lease: lease };
        match receive(response, self.method.reply, self.held_bytes_max).await {
            Ok(mut reply) if reply.is_whole() => {
                flight.land(reply.code(), reply.take_report());
                Ok((reply, None))
            }
            Ok(reply) => Ok((reply, Some(flight))),
            Err(no_reply) => {
                tracing::debug!(endpoint = %endpoint.address, error = &no_reply as &dyn Error, "attempt failed");
                let failure = match no_reply {
                    NoReply::Lost(error) => judge(&error, &endpoint),
                    NoReply::NotGrpc | NoReply::CutShort => Failure::Lost,
                };
                if failure == Failure::Lost {
                    flight.lose();
                }
                Err(Failed { failure, body: None })
            }
        }
    }

    async fn send(
        &self,
        endpoint: &Arc<Endpoint>,
        outstanding: &mut Outstanding,
        mut body: RequestBody,
    ) -> Result<(http::Response<hyper::body::Incoming>, Lease), Failed> {
        for _ in 0..=STALE_CONNECTIONS_MAX {
            let Some(pool) = endpoint.pool(self.worker, self.method.shape) else { break };
            let lease = match pool.lease(endpoint, &self.upstream.dialer).await {
                Ok(lease) => lease,
                Err(Connect::Full(_)) => return Err(Failed { failure: Failure::Full, body: Some(body) }),
                Err(error @ Connect::Failed(_)) => {
                    tracing::debug!(endpoint = %endpoint.address, %error, "attempt failed");
                    endpoint.suspect();
                    break;
                }
            };
            outstanding.mark(Sent::Yes);
            let mut error = match lease.send(self.request(endpoint, body)).await {
                Ok(response) => return Ok((response, lease)),
                Err(error) => error,
            };
            match error.take_message() {
                // The connection had closed; the next lease is on another.
                Some(request) => {
                    outstanding.mark(Sent::NotYet);
                    body = request.into_body();
                }
                None => {
                    let error = error.into_error();
                    tracing::debug!(endpoint = %endpoint.address, error = &error as &dyn Error, "attempt failed");
                    let failure = judge(&error, endpoint);
                    if failure == Failure::Lost {
                        outstanding.mark(Sent::InVain);
                    }
                    return Err(Failed { failure, body: None });
                }
            }
        }
        Err(Failed { failure: Failure::Unsent, body: Some(body) })
    }

    fn request(&self, endpoint: &Endpoint, body: RequestBody) -> Request<RequestBody> {
        let mut request = Request::new(body);
        *request.method_mut() = http::Method::POST;
        *request.headers_mut() = self.headers.clone();
        if let Some(deadline) = self.deadline {
            let left = deadline.at.saturating_duration_since(Instant::now());
            if let Ok(left) = HeaderValue::try_from(deadline::format(left)) {
                request.headers_mut().insert(deadline::HEADER, left);
            }
        }
        let mut uri = http::uri::Parts::default();
        uri.scheme = Some(http::uri::Scheme::HTTPS);
        uri.authority = Some(endpoint.authority.clone());
        uri.path_and_query = Some(self.method.path.clone());
        *request.uri_mut() = Uri::from_parts(uri).unwrap_or_default();
        request
    }
}

impl Flight {
    /// The replica has answered with this status.
    pub(crate) fn land(mut self, code: Code, report: Option<Report>) {
        if matches!(code, Code::Unavailable | Code::Internal | Code::Unknown) {
            self.outstanding.mark(Sent::InVain);
        }
        let Some(report) = report else { return };
        if let Some(cost) = &report.cost {
            self.upstream.speed.learn(self.work, cost);
        }
        self.outstanding.finish(self.work, &report, Instant::now());
    }

    /// The replica was lost before its answer was whole.
    pub(crate) fn lose(mut self) {
        self.outstanding.mark(Sent::InVain);
    }
}

/// What an error of hyper says about the call; what it says about the replica, the replica is told.
fn judge(error: &hyper::Error, endpoint: &Endpoint) -> Failure {
    let h2 = error.source().and_then(|source| source.downcast_ref::<h2::Error>());
    match h2 {
        Some(h2) if h2.is_remote() && h2.is_reset() && h2.reason() == Some(h2::Reason::REFUSED_STREAM) => {
            Failure::Refused
        }
        // The last stream that the replica will process came before this one.
        Some(h2) if h2.is_remote() && h2.is_go_away() && h2.reason() == Some(h2::Reason::NO_ERROR) => Failure::Refused,
        Some(h2) if h2.is_reset() => Failure::Lost,
        _ => {
            endpoint.suspect();
            Failure::Lost
        }
    }
}
