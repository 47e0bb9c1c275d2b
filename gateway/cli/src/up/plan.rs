//! The processes of a mesh on this machine, and the configuration that each is given.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use chassis::server::Addresses;
use serde::Serialize;

use super::keeper::Process;
use crate::{
    home::Home,
    role::{Role, TRUST_DOMAIN},
};

/// Calls in flight have this long when the mesh stops: somebody waits at the terminal.
const DRAIN_TIMEOUT: &str = "10s";

/// One process and its files.
#[derive(Clone, Debug)]
pub(crate) struct Planned {
    pub(crate) role: Role,
    pub(crate) config: PathBuf,
    pub(crate) announce: PathBuf,
    /// What a service has loaded, for its next process; a mesh that is started anew begins with its configuration.
    pub(crate) state: PathBuf,
    pub(crate) process: Process,
}

impl Planned {
    /// A process of this role; `name` is unique in the mesh.
    pub(crate) fn new(role: Role, name: &str, home: &Home, program: &Path) -> Self {
        let config = home.run().join(format!("{name}.toml"));
        let arguments = vec![
            role.name().into(),
            "--config".into(),
            config.clone().into(),
            "--data-dir".into(),
            home.data().into(),
            "--exit-with-parent".into(),
        ];
        let log = home.logs().join(format!("{name}.log"));
        let process = Process { name: name.to_owned(), program: program.to_owned(), arguments, log };
        let file = |what: &str| home.run().join(format!("{name}.{what}.json"));
        Self { role, config, announce: file("announce"), state: file("models"), process }
    }

    /// Removes what a mesh before this one left: its log, the announcement that would be taken for the new one's, and the
    /// models that were loaded at its run time.
    pub(crate) fn clear(&self) -> anyhow::Result<()> {
        for path in [&self.announce, &self.state, &self.process.log] {
            match std::fs::remove_file(path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("cannot remove {}", path.display()));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Writes a service's configuration: free ports at first, and those that it took once they are known, so that it comes
    /// back at the same place.
    pub(crate) fn write_service(&self, at: Option<Addresses>) -> anyhow::Result<()> {
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let at = at.unwrap_or(Addresses { grpc: any, admin: any, health: any });
        let state_file = Some(self.state.as_path());
        self.write(&Config { state_file, server: self.server(at), services: BTreeMap::new(), allow: Vec::new() })
    }

    /// Writes the gateway's configuration.
    pub(crate) fn write_gateway(&self, at: Addresses, replicas: &[(Role, SocketAddr)]) -> anyhow::Result<()> {
        let mut services = BTreeMap::new();
        for (role, address) in replicas {
            let service = services.entry(role.name()).or_insert_with(|| Service {
                serves: role.grpc_service().into_iter().collect(),
                endpoints: Vec::new(),
                spiffe_id: role.spiffe_id(),
            });
            service.endpoints.push(*address);
        }
        let allow = vec![Allow { identity: format!("spiffe://{TRUST_DOMAIN}/client/*"), methods: vec!["*"] }];
        self.write(&Config { state_file: None, server: self.server(at), services, allow })
    }

    fn server(&self, at: Addresses) -> Server<'_> {
        Server {
            name: &self.process.name,
            listen: at.grpc,
            admin_listen: at.admin,
            health_listen: at.health,
            admins: ["admin", "dev"].map(|client| format!("spiffe://{TRUST_DOMAIN}/client/{client}")),
            announce: &self.announce,
            drain_timeout: DRAIN_TIMEOUT,
        }
    }

    fn write(&self, config: &Config<'_>) -> anyhow::Result<()> {
        let head = "# Written by `tamis up`, anew each time. Variables TAMIS_<ROLE>__<KEY> go before it.\n";
        let text = toml::to_string(config)?;
        std::fs::write(&self.config, format!("{head}{text}"))
            .with_context(|| format!("cannot write {}", self.config.display()))
    }
}

/// What differs from the defaults.
#[derive(Serialize)]
struct Config<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    state_file: Option<&'a Path>,
    server: Server<'a>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    services: BTreeMap<&'static str, Service>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    allow: Vec<Allow>,
}

#[derive(Serialize)]
struct Server<'a> {
    name: &'a str,
    listen: SocketAddr,
    admin_listen: SocketAddr,
    health_listen: SocketAddr,
    admins: [String; 2],
    announce: &'a Path,
    drain_timeout: &'static str,
}

#[derive(Serialize)]
struct Service {
    serves: Vec<&'static str>,
    endpoints: Vec<SocketAddr>,
    spiffe_id: String,
}

#[derive(Serialize)]
struct Allow {
    identity: String,
    methods: Vec<&'static str>,
}

#[cfg(test)]
mod tests {
    use chassis::config::{Layer, load};

    use super::*;
    use crate::{home::Variables, serve};

    fn stage() -> (tempfile::TempDir, Home) {
        let place = tempfile::tempdir().unwrap();
        let home = Home::find(Some(place.path().to_owned()), &Variables::new()).unwrap();
        std::fs::create_dir_all(home.run()).unwrap();
        (place, home)
    }

    fn addresses(port: u16) -> Addresses {
        let [grpc, admin, health] = [port, port + 1, port + 2].map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
        Addresses { grpc, admin, health }
    }

    #[test]
    fn the_gateway_understands_its_configuration() {
        let (_place, home) = stage();
        let planned = Planned::new(Role::Gateway, "gateway", &home, Path::new("tamis"));
        let replicas = [(Role::Embedding, addresses(1).grpc), (Role::Embedding, addresses(4).grpc)];
        planned.write_gateway(addresses(7), &replicas).unwrap();
        let layers = [serve::base(Role::Gateway, &home), Layer::file(&planned.config)];
        let settings: gateway::Settings = load("gateway", &layers).unwrap();
        assert_eq!(settings.server.listen, addresses(7).grpc);
        assert_eq!(settings.services["embedding"].endpoints, ["127.0.0.1:1", "127.0.0.1:4"]);
        assert_eq!(settings.services["embedding"].serves, ["tamis.embedding.v1.EmbeddingService"]);
        assert_eq!(settings.allow.len(), 1);
    }

    #[test]
    fn a_service_understands_its_configuration_and_comes_back_at_the_same_place() {
        let (_place, home) = stage();
        let planned = Planned::new(Role::Embedding, "embedding-0", &home, Path::new("tamis"));
        for at in [None, Some(addresses(1))] {
            planned.write_service(at).unwrap();
            let layers = [serve::base(Role::Embedding, &home), Layer::file(&planned.config)];
            let settings: embedding::Settings = load("embedding", &layers).unwrap();
            assert_eq!(settings.host.server.name, "embedding-0");
            assert_eq!(settings.host.server.listen.port(), at.map_or(0, |at| at.grpc.port()));
        }
    }
}
