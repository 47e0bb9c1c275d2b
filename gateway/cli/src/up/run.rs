//! The life of a mesh: its processes start, are kept, and stop.

use std::{path::PathBuf, time::Duration};

use anyhow::bail;
use chassis::server::Addresses;
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, timeout},
};

use super::{
    greeting::Greeting,
    keeper::{Death, Event, Group, Next, Order, What},
    plan::Planned,
    ready,
    restarts::{RESTARTS_MAX, WINDOW},
};
use crate::{
    advice::Advice,
    home::Home,
    mesh::{Member, Record},
    output::{tell, warn},
    signals::Signals,
};

/// How long a mesh may take from the first process to the last one's readiness; large models on slow disks take minutes.
const START_MAX: Duration = Duration::from_secs(300);
/// Happenings that wait to be reported; processes that die faster than that wait for the reporter.
const EVENTS_MAX: usize = 64;

/// A mesh on this machine.
pub(crate) struct Mesh<'a> {
    pub(crate) home: &'a Home,
    pub(crate) services: Vec<Planned>,
    pub(crate) gateway: Planned,
    /// Where the gateway is to listen.
    pub(crate) at: Addresses,
    /// How the reader calls this program.
    pub(crate) program: String,
}

/// The processes that run, in the two groups that stop one after the other.
struct Running {
    services: Group,
    gateway: Group,
    events: mpsc::Receiver<Event>,
}

/// Runs the mesh until a signal, or until it cannot go on; stops every process in either case.
pub(crate) async fn run(mesh: &Mesh<'_>) -> anyhow::Result<()> {
    let mut signals = Signals::new()?;
    let (sender, events) = mpsc::channel(EVENTS_MAX);
    let mut running = Running { services: Group::new(sender.clone()), gateway: Group::new(sender), events };
    let outcome = tokio::select! {
        outcome = live(mesh, &mut running) => outcome,
        () = signals.next() => Ok(()),
    };
    Record::remove(mesh.home);
    tell(match outcome {
        Ok(()) => "\nStopping: the gateway finishes its calls, then the services end. Ctrl-C again kills them at once.",
        Err(_) => "\nStopping the other processes.",
    });
    stop(running, &mut signals).await;
    outcome
}

/// Starts the mesh and keeps it; returns only if it cannot go on.
async fn live(mesh: &Mesh<'_>, running: &mut Running) -> anyhow::Result<()> {
    let mut record = start(mesh, running).await?;
    running.services.order(Order::Keep);
    running.gateway.order(Order::Keep);
    record.write(mesh.home)?;
    let mut roles: Vec<_> = mesh.services.iter().map(|planned| planned.role).collect();
    roles.dedup();
    let (address, admin) = (record.address, record.admin);
    tell(Greeting { home: mesh.home, address, admin, roles: &roles, program: &mesh.program }.text());
    tell("\nThe mesh is ready.");
    let mut given_up = 0;
    while let Some(Event { name, what }) = running.events.recv().await {
        match what {
            What::Started(pid) => {
                record.set_pid(&name, pid);
                tell(format!("{name} runs again, as process {}", pid.unwrap_or_default()));
            }
            What::Died(death) => {
                record.set_pid(&name, None);
                warn(mourn(&name, &death, &log(&record, &name)));
                given_up += usize::from(death.next == Next::Stay);
                let gateway = name == mesh.gateway.process.name;
                if death.next == Next::Stay && (gateway || given_up == mesh.services.len()) {
                    let log = log(&record, &name).display().to_string();
                    bail!(Advice::new(format!("the mesh cannot go on without {name}"), format!("read {log}")));
                }
            }
        }
        if let Err(error) = record.write(mesh.home) {
            warn(format!("warning: {error:#}; the mesh goes on"));
        }
    }
    Ok(())
}

/// Starts every process; ends when all are ready, or with the first that dies.
async fn start(mesh: &Mesh<'_>, running: &mut Running) -> anyhow::Result<Record> {
    let Running { services, gateway, events } = running;
    let mut record =
        Record { pid: std::process::id(), address: mesh.at.grpc, admin: mesh.at.admin, processes: Vec::new() };
    let mut pids = Vec::new();
    {
        let starting = timeout(START_MAX, start_all(mesh, services, gateway));
        tokio::pin!(starting);
        record.processes = loop {
            tokio::select! {
                started = &mut starting => match started {
                    Ok(members) => break members?,
                    Err(_) => bail!(too_slow(mesh)),
                },
                Some(Event { name, what }) = events.recv() => match what {
                    What::Started(pid) => pids.push((name, pid)),
                    What::Died(death) => bail!(died_early(mesh, &name, &death)),
                },
            }
        };
    }
    for (name, pid) in pids {
        record.set_pid(&name, pid);
    }
    if let Some(gateway) = record.processes.last() {
        (record.address, record.admin) = (gateway.addresses.grpc, gateway.addresses.admin);
    }
    Ok(record)
}

/// Services first, since the gateway must be told where they are; then everybody's readiness, and the gateway's view of it.
async fn start_all(mesh: &Mesh<'_>, services: &mut Group, gateway: &mut Group) -> anyhow::Result<Vec<Member>> {
    let began = Instant::now();
    for planned in &mesh.services {
        planned.write_service(None)?;
        services.keep(planned.process.clone());
    }
    let mut members = Vec::new();
    for planned in &mesh.services {
        let addresses = ready::announced(&planned.announce).await;
        planned.write_service(Some(addresses))?;
        members.push(member(planned, addresses));
    }
    let replicas: Vec<_> = members.iter().map(|member| (member.role, member.addresses.grpc)).collect();
    mesh.gateway.write_gateway(mesh.at, &replicas)?;
    gateway.keep(mesh.gateway.process.clone());
    let addresses = ready::announced(&mesh.gateway.announce).await;
    mesh.gateway.write_gateway(addresses, &replicas)?;
    members.push(member(&mesh.gateway, addresses));

    let mut waiting = JoinSet::new();
    for (name, health) in members.iter().map(|member| (member.name.clone(), member.addresses.health)) {
        waiting.spawn(async move {
            ready::serving(health, "").await;
            name
        });
    }
    while let Some(name) = waiting.join_next().await {
        tell(format!("  {:<20} ready after {:.1} s", name?, began.elapsed().as_secs_f64()));
    }
    for service in members.iter().filter_map(|member| member.role.grpc_service()) {
        ready::serving(addresses.health, service).await;
    }
    Ok(members)
}

/// Stops the gateway first, so that no call meets a service that has gone; a second signal kills what is left.
async fn stop(running: Running, signals: &mut Signals) {
    let Running { mut services, mut gateway, events } = running;
    // Nobody reports any more, and keepers must not wait for a listener.
    drop(events);
    let (kill_services, kill_gateway) = (services.orders(), gateway.orders());
    let drain = async {
        for group in [&mut gateway, &mut services] {
            group.order(Order::Drain);
            for (name, end) in group.ended().await {
                tell(format!("  {name:<20} {end}"));
            }
        }
        tell("The mesh has stopped.");
    };
    tokio::pin!(drain);
    tokio::select! {
        () = &mut drain => return,
        () = signals.next() => {}
    }
    kill_gateway.give(Order::Kill);
    kill_services.give(Order::Kill);
    drain.await;
}

fn member(planned: &Planned, addresses: Addresses) -> Member {
    let (name, log) = (planned.process.name.clone(), planned.process.log.clone());
    Member { name, role: planned.role, pid: None, addresses, log }
}

fn log(record: &Record, name: &str) -> PathBuf {
    record.processes.iter().find(|member| member.name == name).map(|member| member.log.clone()).unwrap_or_default()
}

/// The report of a death in a mesh that runs.
fn mourn(name: &str, death: &Death, log: &std::path::Path) -> String {
    let next = match death.next {
        Next::Restart(pause) => format!("it is started again in {}", humantime::format_duration(pause)),
        Next::Stay => {
            let window = humantime::format_duration(WINDOW);
            format!("it was started again {RESTARTS_MAX} times within {window} and stays down; the others go on")
        }
    };
    let what = format!("warning: {name} {}; {next}", death.how);
    if death.tail.is_empty() { what } else { format!("{what}\n  the end of {}:\n{}", log.display(), death.tail) }
}

fn died_early(mesh: &Mesh<'_>, name: &str, death: &Death) -> Advice {
    let all = mesh.services.iter().chain([&mesh.gateway]);
    let log = all.into_iter().find(|planned| planned.process.name == name).map(|planned| planned.process.log.clone());
    let what = format!("{name} {} before it was ready", death.how);
    let what = if death.tail.is_empty() { what } else { format!("{what}; the end of its log:\n{}", death.tail) };
    Advice::new(what, format!("the whole log is {}", log.unwrap_or_default().display()))
}

fn too_slow(mesh: &Mesh<'_>) -> Advice {
    let what = format!("the mesh was not ready within {}", humantime::format_duration(START_MAX));
    Advice::new(what, format!("the logs in {} say what it waits for", mesh.home.logs().display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn death(next: Next, tail: &str) -> Death {
        Death { how: "was killed by signal 9".into(), tail: tail.into(), next }
    }

    #[test]
    fn a_death_is_told_with_what_follows_and_the_end_of_the_log() {
        let text =
            mourn("embedding-0", &death(Next::Restart(Duration::from_millis(200)), "    last words"), "a.log".as_ref());
        assert_eq!(
            text,
            "warning: embedding-0 was killed by signal 9; it is started again in 200ms\n  the end of a.log:\n    last words"
        );
    }

    #[test]
    fn a_process_that_stays_down_is_told() {
        let text = mourn("vision-0", &death(Next::Stay, ""), "a.log".as_ref());
        assert!(text.contains("5 times within 1m and stays down; the others go on"), "{text}");
    }
}
