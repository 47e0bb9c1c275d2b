//! A worker: one thread with a runtime, a listener and connections of its own.
//!
//! The system spreads connections over the workers' listeners (SO_REUSEPORT). Workers share load and health as atomics,
//! and nothing else that a call writes to often: a runtime with several threads costs almost twice the CPU per call.

use std::{io, net::SocketAddr, pin::pin, sync::Arc, time::Duration};

use chassis::tls::Acceptor;
use hyper::{server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, oneshot},
};
use tokio_util::task::TaskTracker;

use crate::{identify::Caller, mesh::Mesh, stack::Stack};

/// Connections that wait to be accepted, for each listener.
const BACKLOG: i32 = 1024;
/// A client may send this much before the gateway has read it: one large message per stream, and several streams.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
/// After an error of the listener, which is most often a lack of file descriptors that others must give back.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What a worker needs.
pub(crate) struct Worker {
    pub(crate) index: usize,
    pub(crate) mesh: Arc<Mesh>,
    pub(crate) acceptor: Acceptor,
    /// Places for connections, of all workers.
    pub(crate) connections: Arc<Semaphore>,
}

/// Binds one listener for each worker to the same address; port 0 takes a free one.
///
/// # Errors
/// When the address is taken, by another gateway as well.
pub(crate) fn listeners(address: SocketAddr, workers: usize) -> io::Result<Vec<std::net::TcpListener>> {
    let socket = |address: SocketAddr| {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        Ok::<_, io::Error>(socket)
    };
    // Without SO_REUSEPORT first: with it, a second gateway would start and take half of the first one's connections.
    socket(address)?.bind(&address.into())?;
    let mut listeners = Vec::with_capacity(workers);
    let mut address = address;
    for _ in 0..workers.max(1) {
        let socket = socket(address)?;
        socket.set_reuse_port(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        let listener = std::net::TcpListener::from(socket);
        address = listener.local_addr()?;
        listeners.push(listener);
    }
    Ok(listeners)
}

impl Worker {
    /// Starts the thread, which ends with the drain. The receiver hears how, or an error if it panicked.
    pub(crate) fn start(self, listener: std::net::TcpListener) -> io::Result<oneshot::Receiver<io::Result<()>>> {
        let (ended, end) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        std::thread::Builder::new().name(format!("gateway-{}", self.index)).spawn(move || {
            let outcome = runtime.block_on(self.run(listener));
            // Whatever is still there belongs to calls whose time is up.
            drop(runtime);
            _ = ended.send(outcome);
        })?;
        Ok(end)
    }

    async fn run(self, listener: std::net::TcpListener) -> io::Result<()> {
        let listener = TcpListener::from_std(listener)?;
        let tasks = TaskTracker::new();
        let worker = Arc::new(self);
        loop {
            tokio::select! {
                () = worker.mesh.drain.cancelled() => break,
                connected = worker.connected(&listener) => {
                    if let Some((stream, place)) = connected {
                        tasks.spawn(Arc::clone(&worker).serve(stream, place));
                    }
                }
            }
        }
        // Refused here, a client finds another gateway; in the backlog it would wait for nobody.
        drop(listener);
        tasks.close();
        let drain_timeout = worker.mesh.settings.server.drain_timeout;
        if tokio::time::timeout(drain_timeout.0, tasks.wait()).await.is_err() {
            tracing::warn!(
                worker = worker.index,
                connections = tasks.len(),
                "connections are cut off: drain_timeout has passed"
            );
        }
        Ok(())
    }

    /// A connection that has a place. At the bound they wait, one here and the others in the backlog.
    async fn connected(&self, listener: &TcpListener) -> Option<(TcpStream, OwnedSemaphorePermit)> {
        match listener.accept().await {
            Ok((stream, _)) => Some((stream, Arc::clone(&self.connections).acquire_owned().await.ok()?)),
            Err(error) => {
                tracing::warn!(%error, "cannot accept");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                None
            }
        }
    }

    async fn serve(self: Arc<Self>, stream: TcpStream, _place: OwnedSemaphorePermit) {
        let peer = stream.peer_addr().ok();
        let server = &self.mesh.settings.server;
        let (stream, identity) = match self.acceptor.accept(stream, server.handshake_timeout.0).await {
            Ok(accepted) => accepted,
            Err(error) => return tracing::debug!(?peer, %error, "handshake failed"),
        };
        let caller = Caller::new(identity, &self.mesh.settings.allow);
        let stack = Arc::new(Stack { mesh: Arc::clone(&self.mesh), worker: self.index, caller });
        let service = service_fn(move |request| {
            let answer = Arc::clone(&stack).answer(request);
            async { Ok::<_, std::convert::Infallible>(answer.await) }
        });
        let connection = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .max_header_list_size(u32::try_from(server.header_bytes_max.as_u64()).unwrap_or(u32::MAX))
            .max_concurrent_streams(server.streams_max)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .keep_alive_interval(KEEPALIVE_INTERVAL)
            .serve_connection(TokioIo::new(stream), service);
        let mut connection = pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = self.mesh.drain.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(?peer, error = &error as &dyn std::error::Error, "connection ended");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_share_a_port_that_nobody_else_gets() {
        let ours = listeners("127.0.0.1:0".parse().unwrap(), 3).unwrap();
        let addresses: Vec<_> = ours.iter().map(|listener| listener.local_addr().unwrap()).collect();
        assert!(addresses.iter().all(|address| *address == addresses[0]), "{addresses:?}");
        assert_eq!(listeners(addresses[0], 1).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    }
}
