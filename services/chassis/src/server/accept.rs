//! Accepts connections and shakes hands, so that the server sees only peers with a trusted certificate.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    task::JoinSet,
};
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

use crate::{peer::Peer, settings::ServerSettings, tls::Acceptor};

/// A connection whose peer is known.
pub(super) struct Connection {
    stream: TlsStream<TcpStream>,
    peer: Peer,
    /// Counts against `connections_max` as long as the connection lives.
    _permit: OwnedSemaphorePermit,
}

/// The accepted connections. Handshakes run beside each other, so that a slow one delays nobody; their number is bounded
/// by the connections'.
pub(super) fn incoming(
    listener: TcpListener,
    acceptor: Acceptor,
    settings: &ServerSettings,
) -> ReceiverStream<io::Result<Connection>> {
    let (sender, receiver) = mpsc::channel(64);
    let permits = Arc::new(Semaphore::new(settings.connections_max));
    let timeout = settings.handshake_timeout.0;
    tokio::spawn(async move {
        let mut handshakes = JoinSet::new();
        loop {
            // The listener closes with the server: the receiver is gone then.
            let accepted = tokio::select! {
                accepted = next(&listener, &permits) => accepted,
                Some(_) = handshakes.join_next() => continue,
                () = sender.closed() => return,
            };
            let (stream, address, permit) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    pause(&error).await;
                    continue;
                }
            };
            let (acceptor, sender) = (acceptor.clone(), sender.clone());
            handshakes.spawn(async move {
                match acceptor.accept(stream, timeout).await {
                    Ok((stream, id)) => {
                        let connection = Connection { stream, peer: Peer { address, id }, _permit: permit };
                        drop(sender.send(Ok(connection)).await);
                    }
                    Err(error) => tracing::info!(%address, %error, "handshake refused"),
                }
            });
        }
    });
    ReceiverStream::new(receiver)
}

/// Lets time pass after a connection that could not be accepted: out of file descriptors, say; it passes when others end.
pub(crate) async fn pause(error: &io::Error) {
    tracing::warn!(%error, "cannot accept a connection");
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
}

/// The next connection, once there is room for it.
pub(crate) async fn next(
    listener: &TcpListener,
    permits: &Arc<Semaphore>,
) -> io::Result<(TcpStream, std::net::SocketAddr, OwnedSemaphorePermit)> {
    let permit = Arc::clone(permits).acquire_owned().await.map_err(io::Error::other)?;
    let (stream, address) = listener.accept().await?;
    Ok((stream, address, permit))
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
