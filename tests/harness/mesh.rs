//! A mesh as `tamis up` starts it.

use std::{
    fs,
    net::SocketAddr,
    ops::Deref,
    process::ExitStatus,
    sync::{Mutex, OnceLock},
};

use serde_json::Value;

use super::{
    Channels, Folder, GATEWAY, connect, credentials,
    process::{EXACT, Process, show_logs},
};

/// A process of a mesh, by its record.
#[derive(Clone, Debug)]
pub(crate) struct Member {
    pub(crate) name: String,
    pub(crate) role: String,
    pub(crate) pid: Option<u32>,
    pub(crate) grpc: SocketAddr,
    pub(crate) admin: SocketAddr,
    pub(crate) health: SocketAddr,
}

/// A mesh with a data directory of its own.
pub(crate) struct Mesh {
    pub(crate) folder: Folder,
    /// What `tamis up` printed.
    pub(crate) printed: Vec<String>,
    process: Mutex<Process>,
}

impl Mesh {
    /// Starts a mesh with these numbers of replicas, and waits until it is ready.
    pub(crate) fn start(replicas: &str) -> Self {
        let folder = Folder::new();
        let log = folder.path().join("up.log");
        let process =
            Process::start(folder.path(), log, &["up", "--listen", "127.0.0.1:0", "--replicas", replicas], &EXACT);
        let printed = process.read_until("The mesh is ready.");
        Self { folder, printed, process: Mutex::new(process) }
    }

    /// The process of `tamis up`.
    pub(crate) fn pid(&self) -> u32 {
        self.process.lock().unwrap().pid
    }

    /// The gateway and the replicas, as they are now.
    pub(crate) fn members(&self) -> Vec<Member> {
        let record = fs::read(self.folder.path().join("run/mesh.json")).unwrap();
        let record: Value = serde_json::from_slice(&record).unwrap();
        record["processes"].as_array().unwrap().iter().map(Member::of).collect()
    }

    /// The gateway.
    pub(crate) fn gateway(&self) -> Member {
        self.members().into_iter().find(|member| member.role == "gateway").unwrap()
    }

    /// The replicas of all services.
    pub(crate) fn replicas(&self) -> Vec<Member> {
        self.members().into_iter().filter(|member| member.role != "gateway").collect()
    }

    /// A connection of the development client to the gateway.
    pub(crate) async fn client(&self) -> Channels {
        let credentials = credentials(&self.folder.certs(), "client-dev");
        connect(self.gateway().grpc, &credentials, GATEWAY).await.unwrap()
    }

    /// Ends the mesh with SIGTERM, if it still runs, and waits for it.
    pub(crate) fn end(&self) -> ExitStatus {
        self.process.lock().unwrap().end()
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        show_if_failed(self);
    }
}

impl Member {
    fn of(record: &Value) -> Self {
        let text = |key: &str| record[key].as_str().unwrap_or_else(|| panic!("no {key} in {record}")).to_owned();
        Self {
            name: text("name"),
            role: text("role"),
            pid: record["pid"].as_u64().map(|pid| pid.try_into().unwrap()),
            grpc: text("grpc").parse().unwrap(),
            admin: text("admin").parse().unwrap(),
            health: text("health").parse().unwrap(),
        }
    }
}

/// The mesh that all tests share; they may only ask it.
pub(crate) struct Shared(&'static Mesh);

/// Starts it for the first that asks. It ends with the test process.
pub(crate) fn mesh() -> Shared {
    static MESH: OnceLock<Mesh> = OnceLock::new();
    Shared(MESH.get_or_init(|| Mesh::start("embedding=2")))
}

impl Deref for Shared {
    type Target = Mesh;

    fn deref(&self) -> &Mesh {
        self.0
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        show_if_failed(self.0);
    }
}

fn show_if_failed(mesh: &Mesh) {
    if std::thread::panicking() {
        show_logs(mesh.folder.path());
        show_logs(&mesh.folder.path().join("run/logs"));
    }
}
