//! The mesh that runs on this machine: the lock that keeps it single, and the record by which others find it.

use std::{
    fs::{File, TryLockError},
    io::{Read as _, Seek as _, Write as _},
    net::SocketAddr,
    path::PathBuf,
};

use anyhow::{Context as _, bail};
use chassis::server::Addresses;
use serde::{Deserialize, Serialize};

use crate::{advice::Advice, home::Home, role::Role};

/// A mesh that is ready, as RUN/mesh.json has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// Process of `tamis up`.
    pub(crate) pid: u32,
    /// Where clients call.
    pub(crate) address: SocketAddr,
    /// The gateway's admin port.
    pub(crate) admin: SocketAddr,
    /// What it consists of.
    pub(crate) processes: Vec<Member>,
}

/// A process of the mesh.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Member {
    pub(crate) name: String,
    pub(crate) role: Role,
    /// Nothing while it is down.
    pub(crate) pid: Option<u32>,
    #[serde(flatten)]
    pub(crate) addresses: Addresses,
    pub(crate) log: PathBuf,
}

impl Record {
    /// The record of the mesh that runs, or of one that was killed.
    pub(crate) fn read(home: &Home) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(path(home)).ok()?).ok()
    }

    /// Writes the record, whole or not at all.
    pub(crate) fn write(&self, home: &Home) -> anyhow::Result<()> {
        let path = path(home);
        let part = path.with_extension("json.part");
        let written =
            std::fs::write(&part, serde_json::to_vec_pretty(self)?).and_then(|()| std::fs::rename(part, &path));
        written.with_context(|| format!("cannot write {}", path.display()))
    }

    /// Notes under which process id a member runs, or that it is down.
    pub(crate) fn set_pid(&mut self, name: &str, pid: Option<u32>) {
        for member in self.processes.iter_mut().filter(|member| member.name == name) {
            member.pid = pid;
        }
    }

    /// Removes the record of a mesh that has ended.
    pub(crate) fn remove(home: &Home) {
        // It is not there if the mesh never was ready.
        let _ = std::fs::remove_file(path(home));
    }
}

fn path(home: &Home) -> PathBuf {
    home.run().join("mesh.json")
}

/// Held by `tamis up` for its life; the system releases it however the process ends.
#[derive(Debug)]
pub(crate) struct Lock(#[expect(dead_code, reason = "the open file is the lock")] File);

impl Lock {
    /// Takes the lock, or says who has it.
    pub(crate) fn take(home: &Home) -> anyhow::Result<Self> {
        let path = home.run().join("mesh.lock");
        let file = File::options().create(true).truncate(false).read(true).write(true).open(&path);
        let mut file = file.with_context(|| format!("cannot open {}", path.display()))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => bail!(occupied(home, &mut file)),
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("cannot lock {}", path.display()));
            }
        }
        file.set_len(0)?;
        write!(file, "{}", std::process::id())?;
        Ok(Self(file))
    }
}

fn occupied(home: &Home, file: &mut File) -> Advice {
    let mut text = String::new();
    let pid = file.rewind().and_then(|()| file.read_to_string(&mut text)).map(|_| text.trim().to_owned());
    let pid = pid.unwrap_or_default();
    let help =
        |stop: &str| format!("{stop}\nTAMIS_DATA_DIR or --data-dir with another folder starts a mesh of its own");
    match Record::read(home).filter(|record| record.pid.to_string() == pid) {
        Some(record) => {
            let what = format!("a mesh runs already, at {}, started by process {pid}", record.address);
            Advice::new(what, help(&format!("use it, or stop it with Ctrl-C where it was started, or `kill {pid}`")))
        }
        None => {
            let what = format!("a mesh is being started or stopped already, by process {pid}");
            Advice::new(what, help(&format!("wait for it, or stop it with `kill {pid}`")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{advice::report, home::Variables};

    fn home() -> (tempfile::TempDir, Home) {
        let place = tempfile::tempdir().unwrap();
        let home = Home::find(Some(place.path().to_owned()), &Variables::new()).unwrap();
        std::fs::create_dir_all(home.run()).unwrap();
        (place, home)
    }

    fn record() -> Record {
        let any = SocketAddr::from(([127, 0, 0, 1], 8443));
        let addresses = Addresses { grpc: any, admin: any, health: any };
        let member =
            Member { name: "gateway".into(), role: Role::Gateway, pid: Some(2), addresses, log: "gateway.log".into() };
        Record { pid: std::process::id(), address: any, admin: any, processes: vec![member] }
    }

    #[test]
    fn a_second_mesh_is_told_where_the_first_is() {
        let (_place, home) = home();
        let _lock = Lock::take(&home).unwrap();
        let message = report(&Lock::take(&home).unwrap_err());
        assert!(message.contains("being started"), "{message}");
        record().write(&home).unwrap();
        let message = report(&Lock::take(&home).unwrap_err());
        let pid = std::process::id().to_string();
        assert!(message.contains("127.0.0.1:8443") && message.contains(&pid), "{message}");
    }

    #[test]
    fn a_mesh_that_ended_is_in_nobodys_way() {
        let (_place, home) = home();
        drop(Lock::take(&home).unwrap());
        assert!(Lock::take(&home).is_ok());
    }

    #[test]
    fn a_record_reads_back() {
        let (_place, home) = home();
        record().write(&home).unwrap();
        assert_eq!(Record::read(&home), Some(record()));
        Record::remove(&home);
        assert_eq!(Record::read(&home), None);
    }
}
