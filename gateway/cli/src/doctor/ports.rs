//! Ports: free for a mesh to start, or held by the mesh that runs.

use std::{
    net::{IpAddr, SocketAddr, TcpListener},
    path::Path,
};

use super::finding::Finding;

const CHECK: &str = "port";
/// State of a listening socket in /proc/net/tcp.
const LISTENING: &str = "0A";

/// Who holds a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    Free,
    /// The process and its command's name.
    Process(u32, String),
    /// Somebody of whom this user may know no more.
    Unknown,
}

/// A port that a mesh which is to start wants.
pub(crate) fn judge_wanted(address: SocketAddr, held: &Use, flag: &str, needed: bool) -> Finding {
    let subject = address.to_string();
    let who = match held {
        Use::Free => return Finding::ok(CHECK, subject, "free"),
        Use::Process(pid, command) => format!("process {pid} ({command}) uses it"),
        Use::Unknown => "a process of another user uses it".to_owned(),
    };
    let help = format!("stop that process, or start the mesh with {flag} and another address");
    if needed {
        Finding::fail(CHECK, subject, who).help(help)
    } else {
        let help = format!("nothing need be done: `tamis up` takes a free port; {flag} names one");
        Finding::warn(CHECK, subject, who).help(help)
    }
}

/// A port that a process of the running mesh should hold.
pub(crate) fn judge_held(name: &str, address: SocketAddr, held: &Use, pid: Option<u32>) -> Finding {
    let subject = address.to_string();
    match held {
        Use::Process(holder, _) if Some(*holder) == pid => {
            Finding::ok(CHECK, subject, format!("{name}, process {holder}"))
        }
        // The user is another, or the system tells nobody: whether it answers is checked by itself.
        Use::Unknown => Finding::ok(CHECK, subject, format!("in use, by {name} as far as can be told")),
        Use::Process(holder, command) => {
            let what = format!("process {holder} ({command}) uses it, not {name}");
            Finding::fail(CHECK, subject, what).help("stop that process, then `tamis up` again")
        }
        Use::Free => {
            let what = format!("{name} should listen there, and nobody does");
            Finding::fail(CHECK, subject, what).help("its log in the data directory, run/logs, says why")
        }
    }
}

/// Finds out who holds a port.
pub(crate) fn held(address: SocketAddr) -> Use {
    if TcpListener::bind(address).is_ok() {
        return Use::Free;
    }
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(|path| std::fs::read_to_string(path).unwrap_or_default());
    let inode = tables.iter().find_map(|table| listening_inode(table, address.port(), address.ip()));
    inode.and_then(holder).map_or(Use::Unknown, |(pid, command)| Use::Process(pid, command))
}

/// The socket that listens at a port, for this address or for all.
fn listening_inode(table: &str, port: u16, ip: IpAddr) -> Option<u64> {
    let wanted = match ip {
        // The kernel prints the address as a number in its own byte order.
        IpAddr::V4(ip) => format!("{:08X}", u32::from_ne_bytes(ip.octets())),
        IpAddr::V6(ip) => ip.octets().chunks_exact(4).map(hex_word).collect(),
    };
    table.lines().skip(1).find_map(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let (address, number) = fields.get(1)?.split_once(':')?;
        let all = address.bytes().all(|byte| byte == b'0');
        let this = u16::from_str_radix(number, 16) == Ok(port) && (all || address == wanted);
        (this && *fields.get(3)? == LISTENING).then(|| fields.get(9)?.parse().ok()).flatten()
    })
}

fn hex_word(bytes: &[u8]) -> String {
    <[u8; 4]>::try_from(bytes).map_or_else(|_| String::new(), |bytes| format!("{:08X}", u32::from_ne_bytes(bytes)))
}

/// The process that has a socket open.
fn holder(inode: u64) -> Option<(u32, String)> {
    let socket = format!("socket:[{inode}]");
    let has = |process: &Path| {
        let open = std::fs::read_dir(process.join("fd")).ok()?.flatten();
        open.into_iter().find(|file| std::fs::read_link(file.path()).is_ok_and(|to| to.as_os_str() == socket.as_str()))
    };
    std::fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        has(&entry.path())?;
        let command = std::fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        Some((pid, command.trim().to_owned()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::finding::Mark;

    const TABLE: &str = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:20FB 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 4711 1 0 100 0 0 10 0
   1: 00000000:1F91 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 4712 1 0 100 0 0 10 0
   2: 0100007F:9C40 0100007F:20FB 01 00000000:00000000 00:00000000 00000000  1000        0 4713 1 0 100 0 0 10 0
";

    #[test]
    #[cfg(target_endian = "little")]
    fn a_listening_socket_is_found_by_its_address_and_port() {
        let at = |text: &str| {
            let address: SocketAddr = text.parse().unwrap();
            listening_inode(TABLE, address.port(), address.ip())
        };
        assert_eq!(at("127.0.0.1:8443"), Some(4711));
        assert_eq!(at("127.0.0.2:8443"), None);
        assert_eq!(at("127.0.0.1:8081"), Some(4712));
        // It is connected, and listens nowhere.
        assert_eq!(at("127.0.0.1:40000"), None);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_port_of_this_process_is_found_to_be_its_own() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        assert!(matches!(held(address), Use::Process(pid, _) if pid == std::process::id()));
        assert_eq!(judge_held("gateway", address, &held(address), Some(std::process::id())).mark, Mark::Ok);
    }

    #[test]
    fn a_port_that_is_taken_is_told_with_its_holder() {
        let address = "127.0.0.1:8443".parse().unwrap();
        let other = Use::Process(7, "nginx".into());
        let finding = judge_wanted(address, &other, "--listen", true);
        assert_eq!(finding.mark, Mark::Fail);
        assert!(finding.what.contains("process 7 (nginx)") && finding.help.unwrap().contains("--listen"));
        assert_eq!(judge_wanted(address, &Use::Unknown, "--admin-listen", false).mark, Mark::Warn);
        assert_eq!(judge_wanted(address, &Use::Free, "--listen", true).mark, Mark::Ok);
        assert_eq!(judge_held("gateway", address, &other, Some(8)).mark, Mark::Fail);
        assert_eq!(judge_held("gateway", address, &Use::Free, Some(8)).mark, Mark::Fail);
    }
}
