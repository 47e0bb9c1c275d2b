//! Where the numbers come from: the gateway's admin port, and /proc for processes of this machine.

use std::{net::SocketAddr, time::Duration, time::SystemTime};

use proto::gateway::v1::{self as pb, topology_service_client::TopologyServiceClient};
use tonic::Streaming;

use super::{Args, rows, state::State};
use crate::{
    call::{
        Target,
        client::{self, Connection, Life},
    },
    home::Home,
    mesh::Record,
    output::say,
    process::{self, Usage},
    up::{ADMIN_LISTEN, reachable},
};

/// How long a connection may take.
const WAIT_MAX: Duration = Duration::from_secs(5);
/// Between the two looks of a snapshot: a rate needs two.
const LOOK: Duration = Duration::from_secs(1);

/// The source of what is shown.
pub(crate) struct Feed<'a> {
    home: &'a Home,
    target: &'a Target,
    services: &'a [String],
    pub(crate) address: String,
}

impl<'a> Feed<'a> {
    pub(crate) fn new(args: &'a Args, home: &'a Home) -> Self {
        let running = || Record::read(home).map_or(ADMIN_LISTEN, |record| record.admin);
        let address = args.admin.clone().unwrap_or_else(|| reachable(running()).to_string());
        Self { home, target: &args.target, services: &args.service, address }
    }

    /// Prints one snapshot.
    pub(crate) async fn once(&self) -> anyhow::Result<()> {
        let mut state = State::new(self.address.clone());
        let connection = self.connect().await?;
        for look in 0..2 {
            if look > 0 {
                tokio::time::sleep(LOOK).await;
            }
            let mut request = tonic::Request::new(pb::GetTopologyRequest { services: self.services.to_vec() });
            request.set_timeout(WAIT_MAX);
            let reply = TopologyServiceClient::new(connection.channel.clone()).get_topology(request).await;
            match reply.map(tonic::Response::into_inner) {
                Ok(reply) => state.update(reply.services, reply.at),
                Err(status) => return Err(connection.explain(&status).await),
            }
            state.observe(SystemTime::now(), self.local());
        }
        Ok(say(rows::text(&state))?)
    }

    /// Messages as they come, until the connection is lost.
    pub(crate) async fn watch(&self) -> anyhow::Result<(Connection, Streaming<pb::WatchTopologyResponse>)> {
        let connection = self.connect().await?;
        let request = pb::WatchTopologyRequest { services: self.services.to_vec() };
        match TopologyServiceClient::new(connection.channel.clone()).watch_topology(request).await {
            Ok(reply) => Ok((connection, reply.into_inner())),
            Err(status) => Err(connection.explain(&status).await),
        }
    }

    /// What the processes of the mesh on this machine use; read anew, since they may have been started again.
    pub(crate) fn local(&self) -> Vec<(SocketAddr, Usage)> {
        let members = Record::read(self.home).map(|record| record.processes).unwrap_or_default();
        let usage = |member: crate::mesh::Member| Some((member.addresses.grpc, process::usage(member.pid?)?));
        members.into_iter().filter_map(usage).collect()
    }

    async fn connect(&self) -> anyhow::Result<Connection> {
        client::open(self.target, self.home, &self.address, WAIT_MAX, Life::OneConnection).await
    }
}
