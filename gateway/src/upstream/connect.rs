//! Connections to a replica: opened when needed, shared by the calls of one worker, replaced when they end.
//!
//! One HTTP/2 connection carries all calls until its streams run out: a second one costs the batching of writes, almost
//! doubling the cost of a small call. So connections are filled in order, and another is opened only when all are full.

use std::{
    future::poll_fn,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use chassis::tls::Connector;
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use hyper::{
    body::Incoming,
    client::conn::{
        TrySendError,
        http2::{self, SendRequest},
    },
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::{net::TcpStream, sync::watch, time::timeout};
use tokio_rustls::client::TlsStream;
use tokio_util::task::AbortOnDropHandle;

use super::Endpoint;
use crate::{config::ConnectionSettings, content::Copying, replay::ReplayBody};

/// Memory for what peers send: the connection's window is the sum of its streams', so that a few replies that nobody
/// reads cannot starve the others on a shared connection.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 64 << 20;
const HEADER_BYTES_MAX: u32 = 16 << 10;

/// Opens connections to the replicas of one service, which all prove the same identity.
#[derive(Clone)]
pub(crate) struct Dialer {
    connector: Connector,
    settings: ConnectionSettings,
}

/// One worker's connections to one replica.
#[derive(Default)]
pub(crate) struct Pool(Arc<Mutex<Connections>>);

/// The right to one stream of a connection; given back when dropped.
pub(crate) struct Lease {
    connection: Arc<Connection>,
}

/// Why there is no connection.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum Connect {
    /// All connections are open and full.
    #[error("all {0} connections are full")]
    Full(usize),
    /// It cannot be opened.
    #[error("cannot connect: {0}")]
    Failed(Arc<io::Error>),
}

/// What is sent to a replica.
pub(crate) enum RequestBody {
    /// A held message.
    Replay(ReplayBody),
    /// Whatever the client sends, as it comes.
    Pass(Incoming),
    /// The same, copied as it passes.
    Copy(Copying),
}

/// The task of a connection.
type Http2<B> = http2::Connection<TokioIo<TlsStream<TcpStream>>, B, TokioExecutor>;

/// One open connection.
struct Connection {
    sender: SendRequest<RequestBody>,
    streams: AtomicUsize,
    /// What the replica allows now; it may change at any time.
    streams_max: Arc<AtomicUsize>,
}

#[derive(Default)]
struct Connections {
    open: Vec<Arc<Connection>>,
    dialing: Option<Dialing>,
}

/// A connection on its way: whoever needs one waits for the same. When the pool goes, so does the attempt.
struct Dialing {
    outcome: Outcome,
    _task: AbortOnDropHandle<()>,
}

/// `None` until it is known.
type Outcome = watch::Receiver<Option<Result<(), Connect>>>;

enum Step {
    Leased(Lease),
    Wait(Outcome),
}

// === impl Dialer ===

impl Dialer {
    pub(crate) fn new(connector: Connector, settings: &ConnectionSettings) -> Self {
        Self { connector, settings: settings.clone() }
    }

    /// Opens a connection. Its task is to be spawned, and ends by itself once the sender is dropped and its streams are
    /// done.
    pub(crate) async fn dial<B>(&self, address: SocketAddr) -> io::Result<(SendRequest<B>, Http2<B>)>
    where
        B: Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let address = address.to_string();
        let stream = self.within(self.connector.connect(&address)).await??;
        let handshake = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_header_list_size(HEADER_BYTES_MAX)
            .keep_alive_interval(self.settings.keepalive_interval.0)
            .keep_alive_timeout(self.settings.keepalive_timeout.0)
            .keep_alive_while_idle(true)
            .handshake(TokioIo::new(stream));
        self.within(handshake).await?.map_err(io::Error::other)
    }

    /// Most connections of a worker to a replica.
    pub(crate) fn connections_max(&self) -> usize {
        self.settings.connections_max
    }

    async fn within<F: Future>(&self, step: F) -> io::Result<F::Output> {
        let limit: Duration = self.settings.connect_timeout.0;
        timeout(limit, step).await.map_err(|_| io::Error::new(io::ErrorKind::TimedOut, format!("not within {limit:?}")))
    }
}

// === impl Pool ===

impl Pool {
    /// A stream on an open connection, or on a new one.
    pub(crate) async fn lease(&self, endpoint: &Arc<Endpoint>, dialer: &Dialer) -> Result<Lease, Connect> {
        loop {
            let mut outcome = match self.lease_or_dial(endpoint, dialer)? {
                Step::Leased(lease) => return Ok(lease),
                Step::Wait(outcome) => outcome,
            };
            match outcome.wait_for(Option::is_some).await.as_deref() {
                Ok(Some(Err(error))) => return Err(error.clone()),
                Ok(_) => {}
                // The task ends without an outcome only with its runtime.
                Err(_) => return Err(Connect::Failed(Arc::new(io::Error::other("the gateway stops")))),
            }
        }
    }

    fn lease_or_dial(&self, endpoint: &Arc<Endpoint>, dialer: &Dialer) -> Result<Step, Connect> {
        let mut connections = lock(&self.0);
        connections.open.retain(|connection| !connection.sender.is_closed());
        if let Some(lease) = connections.open.iter().find_map(|open| open.lease(dialer.settings.streams_max)) {
            return Ok(Step::Leased(lease));
        }
        if connections.open.len() >= dialer.settings.connections_max {
            return Err(Connect::Full(connections.open.len()));
        }
        if connections.dialing.as_ref().is_some_and(|dialing| dialing.outcome.borrow().is_some()) {
            connections.dialing = None;
        }
        let dialing = connections.dialing.get_or_insert_with(|| Dialing::start(&self.0, endpoint, dialer));
        Ok(Step::Wait(dialing.outcome.clone()))
    }
}

fn lock(connections: &Mutex<Connections>) -> MutexGuard<'_, Connections> {
    // Nothing that runs under the lock can leave it half done.
    connections.lock().unwrap_or_else(PoisonError::into_inner)
}

// === impl Dialing ===

impl Dialing {
    fn start(pool: &Arc<Mutex<Connections>>, endpoint: &Arc<Endpoint>, dialer: &Dialer) -> Self {
        let (announce, outcome) = watch::channel(None);
        let (pool, address, weak, dialer) =
            (Arc::downgrade(pool), endpoint.address, Arc::downgrade(endpoint), dialer.clone());
        let task = tokio::spawn(async move {
            let outcome = dialer.dial(address).await;
            let outcome = outcome.map_err(|error| Connect::Failed(Arc::new(error))).map(|(sender, connection)| {
                let streams_max = Arc::new(AtomicUsize::new(connection.current_max_send_streams()));
                // The worker's runtime owns it; it ends when the pool has dropped the sender and the last stream is done.
                tokio::spawn(run(connection, Arc::clone(&streams_max), weak));
                if let Some(pool) = pool.upgrade() {
                    lock(&pool).open.push(Arc::new(Connection { sender, streams: AtomicUsize::new(0), streams_max }));
                }
            });
            _ = announce.send(Some(outcome));
        });
        Self { outcome, _task: AbortOnDropHandle::new(task) }
    }
}

/// Runs a connection; its failure is a reason to doubt the replica before the next call finds out.
async fn run(mut connection: Http2<RequestBody>, streams_max: Arc<AtomicUsize>, endpoint: Weak<Endpoint>) {
    let ended = poll_fn(|cx| {
        let ended = Pin::new(&mut connection).poll(cx);
        streams_max.store(connection.current_max_send_streams(), Relaxed);
        ended
    });
    let Err(error) = ended.await else { return };
    if let Some(endpoint) = endpoint.upgrade() {
        tracing::debug!(endpoint = %endpoint.address, error = &error as &dyn std::error::Error, "connection lost");
        endpoint.suspect();
    }
}

// === impl Connection ===

impl Connection {
    fn lease(self: &Arc<Self>, streams_max: usize) -> Option<Lease> {
        let streams_max = streams_max.min(self.streams_max.load(Relaxed));
        // Only one worker takes streams here, so that what was counted is still free.
        if self.streams.load(Relaxed) >= streams_max {
            return None;
        }
        self.streams.fetch_add(1, Relaxed);
        Some(Lease { connection: Arc::clone(self) })
    }
}

// === impl Lease ===

impl Lease {
    /// Sends a request on the stream.
    pub(crate) fn send(
        &self,
        request: Request<RequestBody>,
    ) -> impl Future<Output = Result<Response<Incoming>, TrySendError<Request<RequestBody>>>> + use<> {
        self.connection.sender.clone().try_send_request(request)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.connection.streams.fetch_sub(1, Relaxed);
    }
}

// === impl RequestBody ===

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match self.get_mut() {
            Self::Replay(body) => Pin::new(body).poll_frame(cx).map_err(|never| match never {}),
            Self::Pass(body) => Pin::new(body).poll_frame(cx),
            Self::Copy(body) => Pin::new(body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Replay(body) => body.is_end_stream(),
            Self::Pass(body) => body.is_end_stream(),
            Self::Copy(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Replay(body) => body.size_hint(),
            Self::Pass(body) => body.size_hint(),
            Self::Copy(body) => body.size_hint(),
        }
    }
}
