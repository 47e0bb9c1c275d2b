//! A mesh whose processes a test starts one by one, as an orchestrator does: nobody starts them again.

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use chassis::server::Addresses;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus};

use super::{
    Channels, Folder, GATEWAY, connect, credentials, eventually,
    process::{Process, is_alive, show_logs, signal},
    tamis,
};

/// A process and where it listens.
pub(crate) struct Running {
    pub(crate) process: Process,
    pub(crate) at: Addresses,
}

/// A mesh of single processes.
pub(crate) struct Roles {
    pub(crate) services: Vec<Running>,
    pub(crate) gateway: Running,
    // Last: the processes end before their folder goes.
    pub(crate) folder: Folder,
}

impl Roles {
    /// One replica for every entry, `["embedding", "embedding", "vision"]`, and a gateway; waits until all serve.
    pub(crate) async fn start(services: &[&str]) -> Self {
        Self::start_with(services, "").await
    }

    /// The same, with more configuration for each service, as TOML.
    pub(crate) async fn start_with(services: &[&str], more: &str) -> Self {
        let services: Vec<_> = services.iter().map(|role| (*role, more)).collect();
        Self::start_in(Folder::new(), &services).await
    }

    /// The same over a data directory of the test's, with lines of configuration for each service.
    pub(crate) async fn start_in(folder: Folder, services: &[(&str, &str)]) -> Self {
        Self::begin(folder, services, "").await
    }

    /// The same, with more in the configurations of some roles, the gateway among them.
    pub(crate) async fn configured(services: &[&str], more: impl Fn(&str) -> &'static str) -> Self {
        let services: Vec<_> = services.iter().map(|role| (*role, more(role))).collect();
        Self::begin(Folder::new(), &services, more("gateway")).await
    }

    async fn begin(folder: Folder, services: &[(&str, &str)], gateway: &str) -> Self {
        let made = tamis(folder.path(), &["certs", "init"]).await;
        assert!(made.success, "{}", made.stderr);
        let mut running = Vec::new();
        for (index, (role, config)) in services.iter().enumerate() {
            running.push(run(&folder, role, &format!("{role}-{index}"), (config, "")).await);
        }
        let services: Vec<_> = services.iter().map(|(role, _)| *role).collect();
        let config = gateway_config(&services, &running);
        let gateway = run(&folder, "gateway", "gateway", (gateway, &config)).await;
        let roles = Self { services: running, gateway, folder };
        roles.serving(&services).await;
        roles
    }

    /// The data directory.
    pub(crate) fn data(&self) -> &Path {
        self.folder.path()
    }

    /// A connection of the development client to the gateway.
    pub(crate) async fn client(&self) -> Channels {
        let credentials = credentials(&self.folder.certs(), "client-dev");
        connect(self.gateway.at.grpc, &credentials, GATEWAY).await.unwrap()
    }

    async fn serving(&self, services: &[&str]) {
        let mut health = self.client().await.health();
        for role in services {
            eventually(role, async || {
                let response = health.check(HealthCheckRequest { service: grpc_service(role) }).await.ok()?;
                (response.into_inner().status() == ServingStatus::Serving).then_some(())
            })
            .await;
        }
    }
}

impl Drop for Roles {
    fn drop(&mut self) {
        if std::thread::panicking() {
            show_logs(self.folder.path());
        }
        // It would wait until clients close their connections, and those of the test cannot while the test waits for it.
        if is_alive(self.gateway.process.pid) {
            signal(self.gateway.process.pid, "KILL");
        }
    }
}

async fn run(folder: &Folder, role: &str, name: &str, (before, after): (&str, &str)) -> Running {
    let file = |extension: &str| folder.path().join(format!("{name}.{extension}"));
    let (config, announce): (PathBuf, PathBuf) = (file("toml"), file("json"));
    let any = "127.0.0.1:0";
    let server = format!(
        "[server]\nname = {name:?}\nlisten = {any:?}\nadmin_listen = {any:?}\nhealth_listen = {any:?}\nannounce = {announce:?}\n"
    );
    // As a mesh of `tamis up` has it, unless the test is about it.
    let computes = role != "gateway" && !before.contains("[compute]");
    let compute = if computes { "[compute]\nprecision = \"f32\"\n" } else { "" };
    // What stands in no table comes first.
    fs::write(&config, format!("{before}\n{server}{compute}{after}")).unwrap();
    let process = Process::start(folder.path(), file("log"), &[role, "--config", config.to_str().unwrap()], &[]);
    let at = eventually(name, async || serde_json::from_slice(&fs::read(&announce).ok()?).ok()).await;
    Running { process, at }
}

fn gateway_config(services: &[&str], running: &[Running]) -> String {
    let mut endpoints = BTreeMap::<&str, Vec<SocketAddr>>::new();
    for (role, running) in services.iter().zip(running) {
        endpoints.entry(role).or_default().push(running.at.grpc);
    }
    let service = |(role, addresses): (&str, Vec<SocketAddr>)| {
        let addresses: Vec<_> = addresses.iter().map(ToString::to_string).collect();
        let (serves, id) = (grpc_service(role), format!("spiffe://tamis.local/service/{role}"));
        format!("[services.{role}]\nserves = [{serves:?}]\nendpoints = {addresses:?}\nspiffe_id = {id:?}\n")
    };
    let services: String = endpoints.into_iter().map(service).collect();
    format!("{services}[[allow]]\nidentity = \"spiffe://tamis.local/client/*\"\nmethods = [\"*\"]\n")
}

fn grpc_service(role: &str) -> String {
    let mut name = role.to_owned();
    name[..1].make_ascii_uppercase();
    format!("tamis.{role}.v1.{name}Service")
}
