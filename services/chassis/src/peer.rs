//! Who is at the other end of a connection.

use std::net::SocketAddr;

use crate::spiffe::{NotSpiffe, SpiffeId};

/// The other end of a connection. An extension of every request.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Its address.
    pub address: SocketAddr,
    /// Its identity, or why its certificate names none.
    pub id: Result<SpiffeId, NotSpiffe>,
}
