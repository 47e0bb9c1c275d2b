//! `tamis up`: the whole mesh on this machine, one process per replica.

mod greeting;
mod keeper;
mod log;
mod plan;
mod ready;
mod replicas;
mod restarts;
mod run;

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener},
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, bail};
use chassis::server::Addresses;
use engine::Store;

pub(crate) use self::greeting::reachable;
use self::{plan::Planned, replicas::Replicas, run::Mesh};
use crate::{
    advice::Advice,
    certs::{ensure::ensure, folder::Folder, leaf::Leaf},
    home::{Home, Variables, private_folder},
    mesh::{Lock, Record},
    models::pull,
    output::tell,
    role::Role,
    serve,
};

/// Where the gateway listens if nobody says otherwise.
pub(crate) const LISTEN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 8443);
/// Where its admin port is, if that is free.
pub(crate) const ADMIN_LISTEN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 8081);
/// How long the remains of a mesh that was killed may hold its port while they drain.
const REMAINS_MAX: Duration = Duration::from_secs(30);
/// How often the port is tried meanwhile.
const REMAINS_INTERVAL: Duration = Duration::from_millis(100);

/// Flags of `tamis up`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Processes of each service; one for each that is not named, none for SERVICE=0.
    #[arg(long, value_name = "SERVICE=NUMBER,...")]
    replicas: Option<Replicas>,
    /// Address of the gateway; port 0 takes a free one.
    #[arg(long, value_name = "ADDRESS", default_value_t = LISTEN)]
    listen: SocketAddr,
    /// Address of the gateway's admin port, with metrics [default: 127.0.0.1:8081, or a free port if that is taken].
    #[arg(long, value_name = "ADDRESS")]
    admin_listen: Option<SocketAddr>,
}

/// Brings the mesh up, keeps it, and takes it down again.
pub(crate) fn run(args: &Args, home: &Home, variables: &Variables) -> anyhow::Result<()> {
    let replicas = args.replicas.unwrap_or(Replicas::ONE);
    private_folder(&home.run())?;
    private_folder(&home.logs())?;
    let _lock = Lock::take(home)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let at = runtime.block_on(addresses(args, home))?;

    tell(format!("Data          {}", home.data().display()));
    certificates(home)?;
    models(replicas, home, variables)?;

    let current = std::env::current_exe().context("cannot find this program's own file")?;
    let planned = |(role, count): (Role, u16)| {
        let planned = |index| Planned::new(role, &format!("{role}-{index}"), home, &current);
        (0..count).map(planned).collect::<Vec<_>>()
    };
    let services: Vec<_> = replicas.services().flat_map(planned).collect();
    let gateway = Planned::new(Role::Gateway, Role::Gateway.name(), home, &current);
    for planned in services.iter().chain([&gateway]) {
        planned.clear()?;
    }
    let program = greeting::program(&current, variables.get("PATH").map(String::as_str));
    let names: Vec<_> = services.iter().map(|planned| planned.process.name.as_str()).collect();
    tell(format!("Starting      {} and the gateway", names.join(", ")));
    runtime.block_on(run::run(&Mesh { home, services, gateway, at, program }))
}

fn certificates(home: &Home) -> anyhow::Result<()> {
    let folder = Folder::new(home.certs());
    let done = ensure(&folder, &Leaf::of_the_mesh()?, SystemTime::now())?;
    tell(format!("Certificates  {}", folder.path().display()));
    for line in done {
        tell(format!("              {line}"));
    }
    Ok(())
}

fn models(replicas: Replicas, home: &Home, variables: &Variables) -> anyhow::Result<()> {
    let store = Store::new(home.data());
    // The gateway has no models, but its configuration is checked here too, before anything is pulled.
    for role in [Role::Gateway].into_iter().chain(replicas.services().map(|(role, _)| role)) {
        for name in serve::hosting(role, home, variables)?.models {
            let manifest = store.manifest(&name)?;
            let how = if store.is_present(&manifest) { "on this machine" } else { "to be pulled" };
            tell(format!("Model         {name}, {how}"));
            pull(&store, &manifest)?;
        }
    }
    Ok(())
}

/// Finds out whether the ports can be had before anything is pulled or started.
async fn addresses(args: &Args, home: &Home) -> anyhow::Result<Addresses> {
    let began = Instant::now();
    let mut told = false;
    while let Err(error) = TcpListener::bind(args.listen) {
        // The lock is ours, so a record is that of a mesh which was killed: its processes notice and drain.
        let remains = Record::read(home).is_some_and(|record| record.address == args.listen);
        if !remains || began.elapsed() >= REMAINS_MAX {
            bail!(taken(args.listen, "--listen", &error));
        }
        if !std::mem::replace(&mut told, true) {
            tell("The mesh before this one was killed; waiting until its processes have drained.");
        }
        tokio::time::sleep(REMAINS_INTERVAL).await;
    }
    Record::remove(home);
    let admin = match args.admin_listen {
        Some(admin) => match TcpListener::bind(admin) {
            Ok(_) => admin,
            Err(error) => bail!(taken(admin, "--admin-listen", &error)),
        },
        None if args.listen.port() != 0 && TcpListener::bind(ADMIN_LISTEN).is_ok() => ADMIN_LISTEN,
        None => SocketAddr::new(ADMIN_LISTEN.ip(), 0),
    };
    Ok(Addresses { grpc: args.listen, admin, health: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)) })
}

fn taken(address: SocketAddr, flag: &str, error: &std::io::Error) -> Advice {
    let what = format!("cannot listen on {address}: {error}");
    Advice::new(what, format!("choose another address with {flag}, for example {flag} 127.0.0.1:0 for a free port"))
}
