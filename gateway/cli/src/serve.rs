//! `tamis gateway`, `tamis embedding`, `tamis classification`, `tamis vision`: one role as this process.

use std::{
    io::Read as _,
    path::{Path, PathBuf},
    pin::Pin,
};

use anyhow::bail;
use chassis::{
    config::{self, Layer, Settings},
    telemetry::{self, LogSettings},
};
use engine::Compute;
use tokio::{
    runtime::{Builder, Runtime},
    sync::oneshot,
};

use crate::{
    home::{Home, Variables},
    output::say,
    role::Role,
    signals::Signals,
};

/// Threads that serve a service's calls; the engine computes on threads of its own.
const SERVICE_THREADS: usize = 2;

/// Flags of a role.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Configuration, as TOML.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Set one key, over file and environment; may be repeated.
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
    set: Vec<(String, String)>,
    /// Print the effective configuration as TOML, every key of it, and exit.
    #[arg(long)]
    print_config: bool,
    /// Drain when standard input ends: whoever holds its other end is gone.
    #[arg(long, hide = true)]
    exit_with_parent: bool,
}

/// Completes when the process is to drain.
type Shutdown = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Runs a role until SIGTERM or SIGINT, then drains; a second signal ends it at once.
pub(crate) fn run(role: Role, args: Args, home: Option<&Home>, variables: &Variables) -> anyhow::Result<()> {
    let mut layers = layers(role, home, args.config.as_deref(), variables);
    layers.push(Layer::flags(args.set));
    let launch = Launch { role, layers, print_config: args.print_config, exit_with_parent: args.exit_with_parent };
    match role {
        Role::Gateway => launch.run(
            |settings: &gateway::Settings| &settings.log,
            async |settings, shutdown| Ok(gateway::serve(settings, shutdown).await?),
        ),
        Role::Embedding => launch.run(
            |settings: &embedding::Settings| &settings.host.log,
            async |settings, shutdown| Ok(embedding::serve(settings, shutdown).await?),
        ),
        Role::Classification => launch.run(
            |settings: &classification::Settings| &settings.host.log,
            async |settings, shutdown| Ok(classification::serve(settings, shutdown).await?),
        ),
        Role::Vision => launch.run(
            |settings: &vision::Settings| &settings.host.log,
            async |settings, shutdown| Ok(vision::serve(settings, shutdown).await?),
        ),
    }
}

/// What a process of a role would host without a file of its own.
pub(crate) struct Hosting {
    /// Names of the models that it would load.
    pub(crate) models: Vec<String>,
    /// What would compute them; `None`: the role computes nothing.
    pub(crate) compute: Option<Compute>,
}

/// Reads the configuration of a role.
pub(crate) fn hosting(role: Role, home: &Home, variables: &Variables) -> anyhow::Result<Hosting> {
    let layers = layers(role, Some(home), None, variables);
    let host = match role {
        Role::Gateway => {
            config::load::<gateway::Settings>(role.name(), &layers)?;
            return Ok(Hosting { models: Vec::new(), compute: None });
        }
        Role::Embedding => config::load::<embedding::Settings>(role.name(), &layers)?.host,
        Role::Classification => config::load::<classification::Settings>(role.name(), &layers)?.host,
        Role::Vision => config::load::<vision::Settings>(role.name(), &layers)?.host,
    };
    Ok(Hosting { models: host.models, compute: Some(host.compute) })
}

/// What the data directory says: where models and certificates are. It goes below the file.
pub(crate) fn base(role: Role, home: &Home) -> Layer {
    let certs = home.certs();
    let path = |name: &str| certs.join(name).display().to_string();
    let mut pairs = vec![
        ("tls.ca".to_owned(), path("ca.pem")),
        ("tls.cert".to_owned(), path(&format!("{role}.pem"))),
        ("tls.key".to_owned(), path(&format!("{role}.key"))),
    ];
    if role != Role::Gateway {
        pairs.push(("data_dir".to_owned(), home.data().display().to_string()));
    }
    Layer::pairs("data directory", pairs)
}

/// Data directory < file < environment. Without a data directory, as in a container, a file names everything.
fn layers(role: Role, home: Option<&Home>, file: Option<&Path>, variables: &Variables) -> Vec<Layer> {
    let base = home.map(|home| base(role, home));
    base.into_iter().chain(file.map(Layer::file)).chain([Layer::environment(role.name(), variables.clone())]).collect()
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or_else(|| "write KEY=VALUE, as in log.format=json".to_owned())?;
    Ok((key.trim().to_owned(), value.to_owned()))
}

/// A role that is about to start.
struct Launch {
    role: Role,
    layers: Vec<Layer>,
    print_config: bool,
    exit_with_parent: bool,
}

impl Launch {
    fn run<S: Settings>(
        self,
        log: fn(&S) -> &LogSettings,
        serve: impl AsyncFnOnce(S, Shutdown) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let settings: S = config::load(self.role.name(), &self.layers)?;
        if self.print_config {
            return Ok(say(config::print(&settings).trim_end())?);
        }
        tracing::subscriber::set_global_default(telemetry::subscriber(log(&settings), std::io::stderr))?;
        let runtime = self.runtime()?;
        let ended = runtime.block_on(async {
            let (stop, stopped) = oneshot::channel::<()>();
            let mut signals = Signals::new()?;
            let twice = async {
                tokio::select! {
                    () = signals.next() => {}
                    () = parent_gone(self.exit_with_parent) => {}
                }
                drop(stop);
                signals.next().await;
            };
            tokio::select! {
                served = serve(settings, Box::pin(async { drop(stopped.await) })) => served,
                () = twice => bail!("a second signal came before draining was over; calls in flight were cut off"),
            }
        });
        // A model that is still being loaded would hold the process for nothing.
        runtime.shutdown_background();
        ended
    }

    fn runtime(&self) -> std::io::Result<Runtime> {
        match self.role {
            // The gateway's calls have threads of its own; what is left is one thread's work.
            Role::Gateway => Builder::new_current_thread().enable_all().build(),
            _ => Builder::new_multi_thread().worker_threads(SERVICE_THREADS).enable_all().build(),
        }
    }
}

/// Completes when the process at the other end of standard input is gone, or lets go of it.
async fn parent_gone(exit_with_parent: bool) {
    if !exit_with_parent {
        return std::future::pending().await;
    }
    let (gone, noticed) = oneshot::channel::<()>();
    // Reading blocks, so it has a thread of its own, which ends with the process.
    std::thread::spawn(move || {
        let mut stdin = std::io::stdin().lock();
        while stdin.read(&mut [0; 64]).is_ok_and(|length| length > 0) {}
        drop(gone);
    });
    drop(noticed.await);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn home() -> Home {
        Home::find(Some("/data".into()), &Variables::new()).unwrap()
    }

    #[test]
    fn models_and_certificates_are_found_in_the_data_directory() {
        let settings: embedding::Settings = config::load("embedding", &[base(Role::Embedding, &home())]).unwrap();
        assert_eq!(settings.host.data_dir, "/data");
        assert_eq!(settings.host.tls.cert, "/data/certs/embedding.pem");
        let settings: gateway::Settings = config::load("gateway", &[base(Role::Gateway, &home())]).unwrap();
        assert_eq!(settings.tls.key, "/data/certs/gateway.key");
    }

    #[test]
    fn the_environment_chooses_models() {
        let variables = Variables::from([("TAMIS_VISION__MODELS".to_owned(), "['a', 'b']".to_owned())]);
        assert_eq!(hosting(Role::Vision, &home(), &variables).unwrap().models, ["a", "b"]);
        assert_eq!(hosting(Role::Embedding, &home(), &variables).unwrap().models, ["all-minilm-l6-v2"]);
    }

    #[test]
    fn a_flag_is_a_key_and_a_value() {
        assert_eq!(pair("a.b=c=d"), Ok(("a.b".to_owned(), "c=d".to_owned())));
        assert!(pair("a.b").unwrap_err().contains("KEY=VALUE"));
    }
}
