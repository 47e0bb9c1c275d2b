//! A connection to the gateway.

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

use super::{Flags, Target, failure};
use crate::{advice::Advice, home::Home, mesh::Record, up::LISTEN};

/// Largest reply: a thousand long vectors fit many times over.
pub(crate) const REPLY_BYTES_MAX: usize = 256 << 20;

/// How long a server may take to say why it dropped a connection.
const REFUSAL_WAIT: Duration = Duration::from_secs(1);

/// A connection to the gateway.
pub(crate) struct Connection {
    /// What calls go through.
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

/// What becomes of a channel whose connection is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Life {
    /// It ends: a call that failed is for its caller to repeat.
    OneConnection,
    /// The next call connects again.
    Reconnecting,
}

/// Connects to the gateway and proves both identities, for one call.
pub(crate) async fn connect(flags: &Flags, home: &Home) -> anyhow::Result<Connection> {
    let address = address(&flags.target, home);
    open(&flags.target, home, &address, flags.timeout.0, Life::OneConnection).await
}

/// Connects to a port of the gateway and proves both identities.
pub(crate) async fn open(
    target: &Target,
    home: &Home,
    address: &str,
    wait_max: Duration,
    life: Life,
) -> anyhow::Result<Connection> {
    let address = address.to_owned();
    let settings = files(target, home);
    let unusable = || {
        let help = "`tamis up` and `tamis certs init` make some; --cert, --key and --ca name others";
        Advice::new("cannot use the certificates", help)
    };
    let credentials = Credentials::load(&settings).with_context(unusable)?;
    let connector = credentials.connector(&target.server_id).with_context(unusable)?;
    // Connected here and not inside the channel, whose errors hide what went wrong.
    let connected = tokio::time::timeout(wait_max, connector.connect(&address)).await;
    let stream = match connected {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Err(failure::connection(error, &address)),
        Err(_) => {
            let wait_max = humantime::format_duration(wait_max);
            let what = format!("no answer from {address} within {wait_max}");
            return Err(Advice::new(what, "see that the address is the gateway's; --timeout allows more time").into());
        }
    };
    let (mut first, again, place) = (Some(TokioIo::new(stream)), connector.clone(), address.clone());
    let connect = tower::service_fn(move |_| {
        let (first, again, place) = (first.take(), again.clone(), place.clone());
        async move {
            match first {
                Some(stream) => Ok(stream),
                None if life == Life::Reconnecting => again.connect(&place).await.map(TokioIo::new),
                None => Err(io::Error::other("the connection was lost")),
            }
        }
    });
    let uri = |scheme: &str| format!("{scheme}://{address}").parse::<Uri>();
    let advice = || Advice::new(format!("`{address}` is no address"), "write host:port, as in 127.0.0.1:8443");
    // The scheme of the connection says that tonic adds no TLS of its own; callers are told the one that holds.
    let endpoint = Endpoint::from(uri("http").with_context(advice)?).origin(uri("https").with_context(advice)?);
    match endpoint.connect_with_connector(connect).await {
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

/// Where the gateway takes calls.
pub(crate) fn address(target: &Target, home: &Home) -> String {
    let running = || Record::read(home).map_or(LISTEN, |record| record.address);
    target.address.clone().unwrap_or_else(|| crate::up::reachable(running()).to_string())
}

fn files(target: &Target, home: &Home) -> TlsSettings {
    let default = |name: &str| home.certs().join(name);
    let beside = target.cert.as_ref().map(|cert| cert.with_extension("key"));
    let text = |path: PathBuf| path.display().to_string();
    TlsSettings {
        ca: text(target.ca.clone().unwrap_or_else(|| default("ca.pem"))),
        cert: text(target.cert.clone().unwrap_or_else(|| default("client-dev.pem"))),
        key: text(target.key.clone().or(beside).unwrap_or_else(|| default("client-dev.key"))),
    }
}
