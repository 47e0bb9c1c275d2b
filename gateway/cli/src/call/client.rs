//! One connection to the gateway, for one call.

use std::{error::Error as _, io, path::PathBuf, time::Duration};

use anyhow::Context as _;
use chassis::tls::{Connector, Credentials, TlsSettings};
use http::Uri;
use hyper_util::rt::TokioIo;
use proto::common::v1 as pb;
use tokio::io::AsyncReadExt as _;
use tonic::{
    Request, Status,
    transport::{Channel, Endpoint},
};

use super::{Flags, failure};
use crate::{advice::Advice, home::Home, mesh::Record, up::LISTEN};

/// Largest reply: a thousand long vectors fit many times over.
pub(crate) const REPLY_BYTES_MAX: usize = 256 << 20;

/// How long a server may take to say why it dropped a connection.
const REFUSAL_WAIT: Duration = Duration::from_secs(1);

/// A connection to the gateway.
pub(crate) struct Connection {
    /// For one call.
    pub(crate) channel: Channel,
    address: String,
    connector: Connector,
}

impl Connection {
    /// Says why a call failed.
    pub(crate) async fn explain(&self, status: &Status) -> anyhow::Error {
        // Only errors of this side have a source.
        if status.source().is_some()
            && let Some(refusal) = self.refusal().await
        {
            return failure::connection(refusal, &self.address);
        }
        failure::status(status, &self.address)
    }

    /// Why the server drops connections of this client, if it does. With TLS 1.3 a client learns that its certificate was
    /// refused only when it reads, and the channel has lost the error by then: so it is asked for once more.
    async fn refusal(&self) -> Option<io::Error> {
        let read = async { self.connector.connect(&self.address).await?.read(&mut [0]).await };
        tokio::time::timeout(REFUSAL_WAIT, read).await.ok()?.err()
    }
}

/// Connects to the gateway and proves both identities.
pub(crate) async fn connect(flags: &Flags, home: &Home) -> anyhow::Result<Connection> {
    let address = address(flags, home);
    let settings = files(flags, home);
    let unusable = || {
        let help = "`tamis up` and `tamis certs init` make some; --cert, --key and --ca name others";
        Advice::new("cannot use the certificates", help)
    };
    let credentials = Credentials::load(&settings).with_context(unusable)?;
    let connector = credentials.connector(&flags.server_id).with_context(unusable)?;
    // Connected here and not inside the channel, whose errors hide what went wrong.
    let connected = tokio::time::timeout(flags.timeout.0, connector.connect(&address)).await;
    let stream = match connected {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Err(failure::connection(error, &address)),
        Err(_) => {
            let what = format!("no answer from {address} within {}", flags.timeout);
            return Err(Advice::new(what, "see that the address is the gateway's; --timeout allows more time").into());
        }
    };
    let mut stream = Some(TokioIo::new(stream));
    let once = tower::service_fn(move |_| {
        let stream = stream.take().ok_or_else(|| io::Error::other("the connection was lost"));
        std::future::ready(stream)
    });
    let uri = |scheme: &str| format!("{scheme}://{address}").parse::<Uri>();
    let advice = || Advice::new(format!("`{address}` is no address"), "write host:port, as in 127.0.0.1:8443");
    // The scheme of the connection says that tonic adds no TLS of its own; callers are told the one that holds.
    let endpoint = Endpoint::from(uri("http").with_context(advice)?).origin(uri("https").with_context(advice)?);
    match endpoint.connect_with_connector(once).await {
        Ok(channel) => Ok(Connection { channel, address, connector }),
        Err(error) => Err(failure::transport(&error, &address)),
    }
}

/// A request with its deadline.
pub(crate) fn request<T>(message: T, flags: &Flags) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(flags.timeout.0);
    request
}

/// The model that the flags choose.
pub(crate) fn selector(flags: &Flags) -> Option<pb::ModelSelector> {
    let model = flags.model.clone()?;
    Some(pb::ModelSelector { model, ..Default::default() })
}

fn address(flags: &Flags, home: &Home) -> String {
    let running = || Record::read(home).map_or(LISTEN, |record| record.address);
    flags.address.clone().unwrap_or_else(|| crate::up::reachable(running()).to_string())
}

fn files(flags: &Flags, home: &Home) -> TlsSettings {
    let default = |name: &str| home.certs().join(name);
    let beside = flags.cert.as_ref().map(|cert| cert.with_extension("key"));
    let text = |path: PathBuf| path.display().to_string();
    TlsSettings {
        ca: text(flags.ca.clone().unwrap_or_else(|| default("ca.pem"))),
        cert: text(flags.cert.clone().unwrap_or_else(|| default("client-dev.pem"))),
        key: text(flags.key.clone().or(beside).unwrap_or_else(|| default("client-dev.key"))),
    }
}
