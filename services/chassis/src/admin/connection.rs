//! One connection to the admin port, from its first byte on.

use std::{error::Error, io, net::SocketAddr, pin::pin, time::Duration};

use axum::{Router, body::Body, extract::Request};
use hyper::{
    body::Incoming,
    server::conn::{http1, http2},
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{net::TcpStream, sync::watch};
use tower::ServiceExt as _;

use crate::{peer::Peer, tls::Acceptor};

/// The first byte of every TLS connection: a record of type handshake, which no request line begins with.
const TLS: u8 = 0x16;
/// Most calls at once on one connection.
const STREAMS_MAX: u32 = 64;
/// Largest head of a gRPC call.
const HEADER_BYTES_MAX: u32 = 16 << 10;
/// How often an idle peer must show that it lives.
const KEEPALIVE: Duration = Duration::from_secs(30);

type Ended = Result<(), Box<dyn Error + Send + Sync>>;

/// What the port serves.
pub(super) struct Door {
    pub(super) plain: Router,
    pub(super) secured: Option<Secured>,
    /// For each step until there is a request.
    pub(super) patience: Duration,
}

/// What it serves over mutual TLS.
pub(super) struct Secured {
    pub(super) acceptor: Acceptor,
    pub(super) router: Router,
}

impl Door {
    /// Serves a connection until it ends; once `stopped` closes, until its calls are done.
    pub(super) async fn serve(
        &self,
        stream: TcpStream,
        address: SocketAddr,
        mut stopped: watch::Receiver<()>,
    ) -> Ended {
        let first = tokio::select! {
            first = first_byte(&stream, self.patience) => first?,
            _ = stopped.changed() => return Ok(()),
        };
        match (&self.secured, first) {
            (_, None) => Ok(()),
            (Some(secured), Some(TLS)) => secured.serve((stream, address), self.patience, stopped).await,
            (_, Some(_)) => self.serve_plain(stream, stopped).await,
        }
    }

    async fn serve_plain(&self, stream: TcpStream, mut stopped: watch::Receiver<()>) -> Ended {
        let service = self.plain.clone().map_request(|request: http::Request<Incoming>| request.map(Body::new));
        // The timeout also ends idle connections: whoever scrapes seldom connects anew.
        let mut connection = pin!(
            http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(self.patience)
                .serve_connection(TokioIo::new(stream), TowerToHyperService::new(service))
        );
        tokio::select! {
            ended = connection.as_mut() => return Ok(ended?),
            _ = stopped.changed() => connection.as_mut().graceful_shutdown(),
        }
        Ok(connection.await?)
    }
}

impl Secured {
    async fn serve(
        &self,
        (stream, address): (TcpStream, SocketAddr),
        patience: Duration,
        mut stopped: watch::Receiver<()>,
    ) -> Ended {
        let (stream, id) = tokio::select! {
            accepted = self.acceptor.accept(stream, patience) => {
                accepted.inspect_err(|error| tracing::info!(%address, %error, "handshake refused on the admin port"))?
            }
            _ = stopped.changed() => return Ok(()),
        };
        let peer = Peer { address, id };
        let service = self.router.clone().map_request(move |request: http::Request<Incoming>| -> Request {
            let mut request = request.map(Body::new);
            request.extensions_mut().insert(peer.clone());
            request
        });
        let mut connection = pin!(
            http2::Builder::new(TokioExecutor::new())
                .timer(TokioTimer::new())
                .keep_alive_interval(KEEPALIVE)
                .max_concurrent_streams(STREAMS_MAX)
                .max_header_list_size(HEADER_BYTES_MAX)
                .serve_connection(TokioIo::new(stream), TowerToHyperService::new(service))
        );
        tokio::select! {
            ended = connection.as_mut() => return Ok(ended?),
            _ = stopped.changed() => connection.as_mut().graceful_shutdown(),
        }
        Ok(connection.await?)
    }
}

/// The first byte, which stays where it is; `None` if the peer has closed without one.
async fn first_byte(stream: &TcpStream, patience: Duration) -> io::Result<Option<u8>> {
    let mut first = [0];
    let count = tokio::time::timeout(patience, stream.peek(&mut first)).await??;
    Ok((count > 0).then_some(first[0]))
}
