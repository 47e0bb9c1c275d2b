//! `tamis doctor`: looks at everything that a mesh on this machine needs, and says what to do.

mod certificates;
mod compute;
mod finding;
mod machine;
mod models;
mod ports;
mod services;

use std::{num::NonZero, path::Path, time::SystemTime};

use anyhow::bail;
use chassis::units::ByteSize;
use engine::{Compute, Store, Tier};

use self::{
    finding::{Finding, Mark},
    machine::Memory,
    models::Depth,
};
use crate::{
    advice::Advice,
    call::Target,
    certs::{folder::Folder, leaf::Leaf},
    home::{Home, Variables},
    mesh::Record,
    output::say,
    role::Role,
    serve,
    up::{ADMIN_LISTEN, LISTEN},
};

/// Flags of `tamis doctor`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Read every byte of the models and compare its sha256.
    #[arg(long)]
    deep: bool,
    /// Print the findings as JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    target: Target,
}

/// Looks at everything; it is a failure if something does not work.
pub(crate) fn run(args: &Args, home: &Home, variables: &Variables) -> anyhow::Result<()> {
    let findings = examine(args, home, variables)?;
    if args.json {
        say(serde_json::to_string_pretty(&finding::json(&findings))?)?;
    } else {
        say(finding::text(&findings))?;
    }
    match finding::count(&findings, Mark::Fail) {
        0 => Ok(()),
        1 => bail!(Advice::new("1 check failed", "what to do stands beside it")),
        count => bail!(Advice::new(format!("{count} checks failed"), "what to do stands beside them")),
    }
}

fn examine(args: &Args, home: &Home, variables: &Variables) -> anyhow::Result<Vec<Finding>> {
    let record = Record::read(home).filter(|record| services::is_alive(record.pid));
    let depth = if args.deep { Depth::Digests } else { Depth::Records };
    let (needed, computes, mut findings) = needed(home, variables);
    let folder = Folder::new(home.certs());
    findings.extend(certificates::check(&folder, &Leaf::of_the_mesh()?, SystemTime::now()));
    let (models, size) = models::check(&Store::new(home.data()), &needed, depth);
    findings.extend(models);
    findings.extend(machine(home, size, record.is_some()));
    findings.extend(computes.iter().map(|(role, compute)| compute::judge(role.name(), *compute, Tier::detect())));
    findings.extend(ports(record.as_ref()));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match &record {
        Some(record) => findings.extend(runtime.block_on(services::check(record, &args.target, home))),
        None if args.target.address.is_some() => {
            findings.push(runtime.block_on(services::check_gateway(&args.target, home)));
        }
        None => findings.push(Finding::ok("mesh", "-", "none runs in this data directory; `tamis up` starts one")),
    }
    Ok(findings)
}

/// The models that the services load, what computes them, and configurations that cannot be used.
fn needed(home: &Home, variables: &Variables) -> (Vec<String>, Vec<(Role, Compute)>, Vec<Finding>) {
    let (mut names, mut computes, mut findings) = (Vec::new(), Vec::new(), Vec::new());
    for role in [Role::Gateway].into_iter().chain(Role::SERVICES) {
        match serve::hosting(role, home, variables) {
            Ok(hosting) => {
                names.extend(hosting.models);
                computes.extend(hosting.compute.map(|compute| (role, compute)));
            }
            Err(error) => {
                let prefix = role.name().to_uppercase();
                let help = format!("correct the variables TAMIS_{prefix}__... of the environment");
                findings.push(Finding::fail("configuration", role.name(), format!("{error:#}")).help(help));
            }
        }
    }
    (names, computes, findings)
}

fn machine(home: &Home, models: ByteSize, runs: bool) -> Vec<Finding> {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let text = |path: &str| read(path).unwrap_or_default();
    let cgroup = |file: &str| read(&format!("/sys/fs/cgroup/{file}"));
    let memory =
        Memory::parse(&text("/proc/meminfo"), cgroup("memory.max").as_deref(), cgroup("memory.current").as_deref());
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    let data = home.data();
    vec![
        machine::judge_cpu(&text("/proc/cpuinfo")),
        compute::judge_kernels(Tier::detect()),
        compute::judge_pages(read("/sys/kernel/mm/transparent_hugepage/enabled").as_deref()),
        machine::judge_cores(cores, cgroup("cpu.max").as_deref()),
        machine::judge_memory(memory, models, runs),
        machine::judge_disk(&data.display().to_string(), free(data)),
        machine::judge_open_files(&text("/proc/self/limits")),
        machine::judge_clock(SystemTime::now(), newest(&home.certs())),
    ]
}

fn ports(record: Option<&Record>) -> Vec<Finding> {
    let Some(record) = record else {
        return vec![
            ports::judge_wanted(LISTEN, &ports::held(LISTEN), "--listen", true),
            ports::judge_wanted(ADMIN_LISTEN, &ports::held(ADMIN_LISTEN), "--admin-listen", false),
        ];
    };
    let held = |member: &crate::mesh::Member| {
        let address = member.addresses.grpc;
        ports::judge_held(&member.name, address, &ports::held(address), member.pid)
    };
    record.processes.iter().map(held).collect()
}

/// Free space where the data directory is, or will be.
fn free(data: &Path) -> Option<ByteSize> {
    let there = data.ancestors().find(|folder| folder.exists())?;
    let disk = rustix::fs::statvfs(there).ok()?;
    Some(ByteSize(disk.f_bavail.saturating_mul(disk.f_frsize)))
}

/// When the last file of a folder was written.
fn newest(folder: &Path) -> Option<SystemTime> {
    let times = std::fs::read_dir(folder).ok()?.flatten().filter_map(|entry| entry.metadata().ok()?.modified().ok());
    times.max()
}
