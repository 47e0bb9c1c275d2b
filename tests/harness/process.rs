//! Processes that do not outlive the tests, however these end.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader, Write as _},
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    sync::{
        Mutex,
        mpsc::{self, Receiver},
    },
    thread,
};

use super::{PATIENCE, binary, eventually};

/// Starts a command, tells its process id, and terminates it when the standard input closes: a test process that is killed
/// runs no destructors, but its pipes close.
const LEASH: &str = r#""$@" & echo $!; exec >&-; read -r _; kill -TERM $!; wait $!"#;

/// Log filter.
const CALLS: &str = "info,gateway=debug,chassis=debug";

/// Lets all services compute in f32: reference values and documented answers are to hold on every CPU.
pub(super) const EXACT: [(&str, &str); 3] = [
    ("TAMIS_EMBEDDING__COMPUTE__PRECISION", "f32"),
    ("TAMIS_CLASSIFICATION__COMPUTE__PRECISION", "f32"),
    ("TAMIS_VISION__COMPUTE__PRECISION", "f32"),
];

/// A `tamis` process.
pub(crate) struct Process {
    pub(crate) pid: u32,
    /// What it wrote on standard error.
    pub(crate) log: PathBuf,
    leash: Child,
    hold: Option<ChildStdin>,
    lines: Mutex<Receiver<String>>,
}

impl Process {
    /// Starts `tamis` with these arguments and environment variables; its standard error goes to `log`.
    ///
    /// It finds no program and no network: once the models are there, a mesh needs neither.
    pub(crate) fn start(data: &Path, log: PathBuf, arguments: &[&str], variables: &[(&str, &str)]) -> Self {
        let mut leash = Command::new("/bin/sh")
            .args(["-c", LEASH, "sh"])
            .arg(binary::path())
            .args(arguments)
            .envs(variables.iter().copied())
            .env("TAMIS_DATA_DIR", data)
            .env("PATH", "")
            .env("HTTPS_PROXY", "http://127.0.0.1:9")
            // Every call is logged, so that a failed test shows what happened to its own.
            .env("TAMIS_GATEWAY__LOG__FILTER", CALLS)
            .env("TAMIS_EMBEDDING__LOG__FILTER", CALLS)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let (sender, lines) = mpsc::channel();
        let stdout = BufReader::new(leash.stdout.take().unwrap());
        // Reads to the end even when nobody listens any more: a full pipe would stop the process.
        thread::spawn(move || stdout.lines().map_while(Result::ok).for_each(|line| drop(sender.send(line))));
        let hold = leash.stdin.take();
        let pid = lines.recv_timeout(PATIENCE).unwrap().parse().unwrap();
        Self { pid, log, leash, hold, lines: Mutex::new(lines) }
    }

    /// The lines on standard output up to the first that contains `text`.
    pub(crate) fn read_until(&self, text: &str) -> Vec<String> {
        let (lines, mut seen) = (self.lines.lock().unwrap(), Vec::new());
        loop {
            let Ok(line) = lines.recv_timeout(PATIENCE) else {
                panic!("`{text}` never came. It wrote:\n{}\nand logged:\n{}", seen.join("\n"), tail(&self.log));
            };
            let found = line.contains(text);
            seen.push(line);
            if found {
                return seen;
            }
        }
    }

    /// Waits until it ends by itself: a second signal would cut its draining short.
    pub(crate) async fn ended(&mut self) -> ExitStatus {
        eventually("the process ends", async || (!is_alive(self.pid)).then_some(())).await;
        self.end()
    }

    /// Ends it with SIGTERM, if it still runs, and waits for it.
    pub(crate) fn end(&mut self) -> ExitStatus {
        // The shell's `read` ends.
        drop(self.hold.take());
        let status = self.leash.wait().unwrap();
        // The shell's way of saying that a signal ended its child.
        status.code().filter(|code| *code > 128).map_or(status, |code| ExitStatus::from_raw(code - 128))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}

/// Sends a signal, by its name without SIG.
pub(crate) fn signal(pid: u32, name: &str) {
    let kill = format!("kill -{name} {pid}");
    assert!(Command::new("/bin/sh").args(["-c", &kill]).status().unwrap().success(), "{kill}");
}

/// Whether the process runs. One that has ended and that nobody has waited for does not.
pub(crate) fn is_alive(pid: u32) -> bool {
    stat(pid).is_some_and(|(state, _)| state != "Z" && state != "X")
}

/// The running processes that this one started.
pub(crate) fn children(parent: u32) -> Vec<u32> {
    let pids = fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|&pid| is_alive(pid) && stat(pid).is_some_and(|(_, of)| of == parent)).collect()
}

/// Bytes of a process that are in memory.
pub(crate) fn resident(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    bytes(line)
}

/// Bytes of a process that are in memory, but for its code, which in a build for tests is half as large again as in a
/// release.
pub(crate) fn resident_without_code(pid: u32) -> u64 {
    let program = fs::read_link(format!("/proc/{pid}/exe")).unwrap().display().to_string();
    let maps = fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap();
    let mut is_code = false;
    let mut resident = 0;
    for line in maps.lines() {
        // A map's first line begins with its range of addresses, the others with a name and a colon.
        if !line.split_whitespace().next().unwrap().ends_with(':') {
            is_code = line.ends_with(&program);
        } else if let Some(size) = line.strip_prefix("Rss:").filter(|_| !is_code) {
            resident += bytes(size);
        }
    }
    resident
}

/// Of a size as /proc has it.
fn bytes(kilobytes: &str) -> u64 {
    kilobytes.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

/// State and parent.
fn stat(pid: u32) -> Option<(String, u32)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // After the command's name, which stands in brackets and may hold anything.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    Some((fields.next()?.to_owned(), fields.next()?.parse().ok()?))
}

/// The last lines of a log.
fn tail(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}

/// Shows the ends of all logs in a folder, for a test that fails.
pub(super) fn show_logs(folder: &Path) {
    let mut err = std::io::stderr().lock();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.path().extension().is_some_and(|extension| extension == "log") {
            drop(writeln!(err, "--- {}\n{}", entry.path().display(), tail(&entry.path())));
        }
    }
}
