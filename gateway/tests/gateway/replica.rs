//! A replica that does what a test tells it to.

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http::{HeaderMap, Request, Response, request::Parts};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody, combinators::UnsyncBoxBody};
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc},
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tonic_health::{
    ServingStatus,
    pb::health_server::HealthServer,
    server::{HealthReporter, HealthService},
};
use tower::ServiceExt as _;

use crate::{
    certificates::{self, REPLICA},
    client::framed,
};

/// A call as the replica saw it.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) head: Parts,
    pub(crate) message: Bytes,
    /// Cancelled when the call is over for the replica, in whatever way.
    pub(crate) over: CancellationToken,
}

/// A status, as headers or trailers say it.
pub(crate) type Headers = &'static [(&'static str, &'static str)];

/// What a replica does with a call.
#[derive(Clone)]
pub(crate) enum Do {
    /// Answers with the request's own bytes, status OK and this load report.
    Echo,
    /// The same once there is a permit.
    EchoAfter(Arc<Semaphore>),
    /// Answers with this message.
    Reply(Bytes),
    /// Answers with what this makes of the request.
    Answer(fn(&[u8]) -> Vec<u8>),
    /// The same, or this status in the headers.
    Judge(fn(&[u8]) -> Result<Vec<u8>, Headers>),
    /// Answers with a status in trailers, after a message.
    Status(&'static [(&'static str, &'static str)]),
    /// Answers with a status in the headers.
    Refuse(&'static [(&'static str, &'static str)]),
    /// Breaks the connection without an answer.
    Cut,
    /// Answers with these bytes, then breaks the connection.
    CutAfter(Bytes),
    /// Sends every frame back as it comes.
    Stream,
    /// Never answers.
    Hang,
}

/// A replica of the embedding service.
pub(crate) struct Replica {
    pub(crate) address: SocketAddr,
    pub(crate) seen: mpsc::UnboundedReceiver<Seen>,
    reporter: HealthReporter,
    goaway: CancellationToken,
    task: AbortOnDropHandle<()>,
}

struct Script {
    act: Do,
    goaway: CancellationToken,
    seen: mpsc::UnboundedSender<Seen>,
    health: HealthServer<HealthService>,
}

type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// The load report of every answer: 10 units in 5 ms, an empty queue.
pub(crate) fn report() -> http::HeaderValue {
    let cost = chassis::load::Cost { units: 10, compute_ms: 5.0 };
    chassis::load::Report { cost: Some(cost), busy: chassis::load::Busy::default() }.to_header()
}

impl Replica {
    pub(crate) async fn start(act: Do) -> Self {
        Self::start_as(REPLICA, TcpListener::bind("127.0.0.1:0").await.unwrap(), act).await
    }

    pub(crate) async fn start_as(identity: &str, listener: TcpListener, act: Do) -> Self {
        let address = listener.local_addr().unwrap();
        let reporter = HealthReporter::new();
        let health = HealthServer::new(HealthService::from_health_reporter(reporter.clone()));
        let (sender, seen) = mpsc::unbounded_channel();
        let goaway = CancellationToken::new();
        let script = Arc::new(Script { act, goaway: goaway.clone(), seen: sender, health });
        let acceptor = certificates::credentials(identity).acceptor();
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (acceptor, script) = (acceptor.clone(), Arc::clone(&script));
                connections.spawn(async move {
                    if let Ok((stream, _)) = acceptor.accept(stream, Duration::from_secs(5)).await {
                        script.connection(stream).await;
                    }
                });
            }
        });
        Self { address, seen, reporter, goaway, task: AbortOnDropHandle::new(task) }
    }

    /// Says that it takes no more calls.
    pub(crate) async fn drain(&self) {
        self.reporter.set_service_status("", ServingStatus::NotServing).await;
    }

    /// Takes calls again.
    pub(crate) async fn serve(&self) {
        self.reporter.set_service_status("", ServingStatus::Serving).await;
    }

    /// Asks the peers of its connections to open others, as a server with a maximum connection age does.
    pub(crate) fn goaway(&self) {
        self.goaway.cancel();
    }

    /// Breaks all its connections at once, as a killed process does.
    pub(crate) fn kill(&self) {
        self.task.abort();
    }

    pub(crate) async fn next(&mut self) -> Seen {
        self.seen.recv().await.unwrap()
    }

    /// How many calls it has seen that nobody has asked for yet.
    pub(crate) fn count(&mut self) -> usize {
        std::iter::from_fn(|| self.seen.try_recv().ok()).count()
    }
}

impl Script {
    async fn connection(self: Arc<Self>, stream: tokio_rustls::server::TlsStream<TcpStream>) {
        let cut = CancellationToken::new();
        let script = Arc::clone(&self);
        let service = {
            let cut = cut.clone();
            service_fn(move |request| {
                let (script, cut) = (Arc::clone(&self), cut.clone());
                async move { Ok::<_, Infallible>(script.answer(request, cut).await) }
            })
        };
        let fresh = !script.goaway.is_cancelled();
        let serving = http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service);
        let mut serving = std::pin::pin!(serving);
        tokio::select! {
            _ = serving.as_mut() => return,
            () = cut.cancelled() => return,
            () = script.goaway.cancelled(), if fresh => serving.as_mut().graceful_shutdown(),
        }
        _ = serving.await;
    }

    async fn answer(&self, request: Request<Incoming>, cut: CancellationToken) -> Response<Body> {
        if request.uri().path().starts_with("/grpc.health.v1.Health/") {
            let response = self.health.clone().oneshot(request).await.unwrap();
            return response.map(|body| body.map_err(std::io::Error::other).boxed_unsync());
        }
        let (head, body) = request.into_parts();
        let over = CancellationToken::new();
        let guard = over.clone().drop_guard();
        if let Do::Stream = self.act {
            self.seen.send(Seen { head, message: Bytes::new(), over }).unwrap();
            let frames = body.into_data_stream().map(|data| data.map(Frame::data).map_err(std::io::Error::other));
            let end = stream::once(async move { Ok(Frame::trailers(trailers(&[("grpc-status", "0")]))) });
            return head_with(&[]).map(|()| StreamBody::new(frames.chain(end)).boxed_unsync());
        }
        let message = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        self.seen.send(Seen { head, message: message.clone(), over }).unwrap();
        let act = match self.act.clone() {
            Do::Judge(judge) => match judge(message.get(5..).unwrap_or_default()) {
                Ok(reply) => Do::Reply(framed(&reply)),
                Err(status) => Do::Refuse(status),
            },
            act => act,
        };
        let (headers, data, end): (&[_], _, _) = match act {
            Do::Echo | Do::Stream | Do::Judge(_) => (&[], message, Some(&[("grpc-status", "0")][..])),
            Do::EchoAfter(permits) => {
                permits.acquire().await.unwrap().forget();
                (&[], message, Some(&[("grpc-status", "0")][..]))
            }
            Do::Reply(message) => (&[], message, Some(&[("grpc-status", "0")][..])),
            Do::Answer(answer) => {
                let reply = answer(message.get(5..).unwrap_or_default());
                (&[], framed(&reply), Some(&[("grpc-status", "0")][..]))
            }
            Do::Status(status) => (&[], Bytes::from_static(b"\0\0\0\0\0"), Some(status)),
            Do::Refuse(status) => {
                drop(guard);
                let mut response = head_with(status).map(|()| StreamBody::new(stream::empty()).boxed_unsync());
                response.headers_mut().insert(chassis::load::TRAILER, report());
                return response;
            }
            Do::Cut => {
                cut.cancel();
                std::future::pending().await
            }
            Do::CutAfter(data) => (&[], data, None),
            Do::Hang => std::future::pending().await,
        };
        let end = async move {
            let _guard = guard;
            let Some(end) = end else {
                // The frame before this has been polled, not sent; hyper sends it when this one is not there yet.
                tokio::task::yield_now().await;
                cut.cancel();
                return std::future::pending().await;
            };
            Ok(Frame::trailers(trailers(end)))
        };
        let frames = stream::once(async move { Ok(Frame::data(data)) }).chain(stream::once(end));
        head_with(headers).map(|()| StreamBody::new(frames).boxed_unsync())
    }
}

fn head_with(headers: &[(&'static str, &'static str)]) -> Response<()> {
    let mut response = Response::new(());
    for (name, value) in [("content-type", "application/grpc"), ("x-replica", "yes")].iter().chain(headers) {
        response.headers_mut().insert(*name, value.parse().unwrap());
    }
    response
}

fn trailers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
    let pairs = pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
    pairs.chain([(chassis::load::TRAILER.parse().unwrap(), report())]).collect()
}
