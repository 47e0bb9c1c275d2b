//! Mutual TLS 1.3 with SPIFFE identities instead of host names.
//!
//! Both sides present a certificate of the mesh's CA. A server learns who calls from the client's SPIFFE identity; a
//! client insists on the server's, so that addresses may change freely. Without a certificate the handshake fails.

#[cfg(test)]
pub(crate) mod tests;
mod verify;

use std::{path::Path, sync::Arc, time::Duration};

use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
    server::WebPkiClientVerifier,
};
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

use crate::{
    config::Mistakes,
    spiffe::{NotSpiffe, SpiffeId},
};

/// Where the certificates are. PEM files; no defaults: a server without an identity does not start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsSettings {
    /// Certificates of the authorities whose peers are trusted.
    pub ca: String,
    /// This process's certificate chain, its own certificate first, with exactly one SPIFFE URI.
    pub cert: String,
    /// Private key of the first certificate; PKCS#8, SEC1 or PKCS#1.
    pub key: String,
}

impl TlsSettings {
    /// No files.
    #[must_use]
    pub fn defaults() -> Self {
        Self { ca: String::new(), cert: String::new(), key: String::new() }
    }

    /// All three files must be named.
    pub fn check(&self, mistakes: &mut Mistakes) {
        for (key, path) in [("tls.ca", &self.ca), ("tls.cert", &self.cert), ("tls.key", &self.key)] {
            mistakes.require(!path.is_empty(), key, "names no file; `tamis certs init` makes certificates");
        }
    }
}

/// What a process proves its identity with, and whom it trusts.
#[derive(Clone)]
pub struct Credentials {
    /// Who this process is.
    pub id: SpiffeId,
    roots: Arc<RootCertStore>,
    provider: Arc<CryptoProvider>,
    chain: Vec<CertificateDer<'static>>,
    key: Arc<PrivateKeyDer<'static>>,
    server: Arc<ServerConfig>,
}

impl Credentials {
    /// Reads and checks the files.
    ///
    /// # Errors
    /// When a file cannot be read, holds no PEM, or the certificate has no SPIFFE identity or another key.
    pub fn load(settings: &TlsSettings) -> Result<Self, TlsError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&settings.ca)? {
            roots.add(certificate).map_err(|error| TlsError::Unusable(settings.ca.clone(), error.to_string()))?;
        }
        let roots = Arc::new(roots);
        let chain = certificates(&settings.cert)?;
        let key = PrivateKeyDer::from_pem_file(Path::new(&settings.key))
            .map_err(|error| TlsError::Unreadable(settings.key.clone(), error.to_string()))?;
        let first =
            chain.first().ok_or_else(|| TlsError::Unusable(settings.cert.clone(), "holds no certificate".into()))?;
        let id = SpiffeId::of_certificate(first).map_err(|error| TlsError::Identity(settings.cert.clone(), error))?;
        let unusable = |error: String| TlsError::Unusable(settings.cert.clone(), error);
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider))
            .build()
            .map_err(|error| TlsError::Unusable(settings.ca.clone(), error.to_string()))?;
        let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|error| unusable(error.to_string()))?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain.clone(), key.clone_key())
            .map_err(|error| unusable(error.to_string()))?;
        server.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Self { id, roots, provider, chain, key: Arc::new(key), server: Arc::new(server) })
    }

    /// For accepting connections.
    #[must_use]
    pub fn acceptor(&self) -> Acceptor {
        Acceptor(TlsAcceptor::from(Arc::clone(&self.server)))
    }

    /// For connecting to a server that must prove to be `peer`.
    ///
    /// # Errors
    /// When rustls refuses the own certificate; `load` has then accepted it already, so it is not expected.
    pub fn connector(&self, peer: &SpiffeId) -> Result<Connector, TlsError> {
        let unusable = |error: rustls::Error| TlsError::Unusable(self.id.to_string(), error.to_string());
        let verifier = verify::SpiffeServer::new(Arc::clone(&self.roots), peer.clone(), &self.provider);
        let mut config = ClientConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(unusable)?
            .dangerous() // "dangerous" in general; here it replaces the host name by a stricter check, see verify.rs
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_auth_cert(self.chain.clone(), self.key.clone_key())
            .map_err(unusable)?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Connector(TlsConnector::from(Arc::new(config))))
    }
}

/// Accepts TLS connections of peers with a certificate of the mesh.
#[derive(Clone)]
pub struct Acceptor(TlsAcceptor);

impl Acceptor {
    /// Shakes hands. The identity is an error where a trusted certificate names none: that caller is refused call by call,
    /// so that it learns why.
    ///
    /// # Errors
    /// When the handshake fails or takes longer than `timeout`.
    pub async fn accept(
        &self,
        stream: TcpStream,
        timeout: Duration,
    ) -> std::io::Result<(server::TlsStream<TcpStream>, Result<SpiffeId, NotSpiffe>)> {
        stream.set_nodelay(true)?;
        let stream = tokio::time::timeout(timeout, self.0.accept(stream)).await??;
        let (_, connection) = stream.get_ref();
        let id = match connection.peer_certificates().and_then(<[_]>::first) {
            Some(certificate) => SpiffeId::of_certificate(certificate),
            None => Err(NotSpiffe::Missing),
        };
        Ok((stream, id))
    }
}

/// Opens TLS connections to one peer.
#[derive(Clone)]
pub struct Connector(TlsConnector);

impl Connector {
    /// Connects and shakes hands with the server at `address` (`host:port`).
    ///
    /// # Errors
    /// When the connection or the handshake fails.
    pub async fn connect(&self, address: &str) -> std::io::Result<client::TlsStream<TcpStream>> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let ip = stream.peer_addr()?.ip();
        // The identity is checked, not the name; an IP address also keeps the name out of the clear-text SNI.
        self.0.connect(ServerName::IpAddress(ip.into()), stream).await
    }
}

/// Why credentials cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// File, and why it cannot be read.
    #[error("cannot read {0}: {1}; `tamis certs init` makes certificates")]
    Unreadable(String, String),
    /// File, and what is wrong with it.
    #[error("cannot use {0}: {1}")]
    Unusable(String, String),
    /// Certificate file, and why it gives no identity.
    #[error("{0}: {1}")]
    Identity(String, NotSpiffe),
}

fn certificates(path: &str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    CertificateDer::pem_file_iter(Path::new(path))
        .and_then(Iterator::collect)
        .map_err(|error| TlsError::Unreadable(path.to_owned(), error.to_string()))
}
