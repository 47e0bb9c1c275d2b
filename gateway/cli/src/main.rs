//! `tamis`: every role of the mesh in one executable, and the commands around it.

mod advice;
mod bench;
mod call;
mod certs;
mod doctor;
mod home;
mod mesh;
mod models;
mod output;
mod process;
mod role;
mod serve;
mod signals;
mod top;
mod train;
mod up;

use std::{io, path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};

use crate::{
    home::{Home, Variables},
    role::Role,
};

const EXAMPLES: &str = "\
Start here:
  tamis up                                   the whole mesh on this machine
  tamis call embed 'A man is eating food.'   from another terminal

One role by itself:
  tamis embedding --print-config
  tamis embedding --config embedding.toml --set server.listen=0.0.0.0:7001

Configuration: defaults < data directory < --config FILE < TAMIS_<ROLE>__<KEY> < --set KEY=VALUE,
as in TAMIS_EMBEDDING__POOL__WORKERS=2.";

/// Typed AI microservices behind one gateway: embeddings, classification and vision over gRPC with mutual TLS.
#[derive(Debug, Parser)]
#[command(name = "tamis", bin_name = "tamis", version, after_help = EXAMPLES)]
struct Cli {
    /// Folder of models, certificates and the running mesh [default: TAMIS_DATA_DIR, else ~/.local/share/tamis].
    #[arg(long, global = true, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start the whole mesh on this machine, one process per replica.
    ///
    /// Pulls the default models if they are not here, makes a development authority and certificates if there are none,
    /// starts the services and the gateway, waits until they are ready, and prints how to call them. Ctrl-C drains and
    /// stops every process.
    #[command(after_help = "Examples:\n  tamis up\n  tamis up --replicas embedding=2,vision=0\n  \
                            tamis up --listen 127.0.0.1:9443 --data-dir ./mesh")]
    Up(up::Args),
    /// Call the mesh: embed or classify texts, look at images.
    #[command(subcommand, after_help = "Example:\n  tamis call embed 'A man is eating food.' 'Someone has a meal.'")]
    Call(call::Command),
    /// List, pull, add, remove and verify models.
    /// Look at everything that a mesh on this machine needs, and say what to do.
    ///
    /// Ports, certificates and their expiry, models, processor, memory, disk, clock, and every process of the mesh if one
    /// runs. Fails if a check does.
    #[command(after_help = "Examples:\n  tamis doctor\n  tamis doctor --deep --json")]
    Doctor(doctor::Args),
    /// Measure a mesh: a load generator.
    #[command(subcommand, after_help = "Example:\n  tamis bench load --rate 100 --duration 30s")]
    Bench(bench::Command),
    /// Watch the mesh: calls, queues, latency and replicas, live.
    ///
    /// Keys: left and right order the services, up and down scroll the replicas, ? helps, q quits.
    #[command(after_help = "Examples:\n  tamis top\n  tamis top --once")]
    Top(top::Args),
    /// List, pull and verify models.
    #[command(subcommand, after_help = "Example:\n  tamis models list")]
    Models(models::Command),
    /// Train a classifier of your own from a table of texts and labels.
    ///
    /// Embeds the texts, trains a linear head on the vectors, says by cross-validation what it will do on texts that it
    /// has not seen, and writes a model that the classification service loads.
    #[command(after_help = "Examples:\n  tamis train-head tickets.csv --name tickets\n  \
                            tamis train-head spam.tsv --name spam --text-column body --label-column kind --precision 0.98")]
    TrainHead(train::Args),
    /// Make, issue and show certificates.
    #[command(subcommand, after_help = "Example:\n  tamis certs issue client/alice")]
    Certs(certs::Command),
    /// Run the gateway: the front door, which carries calls to the services.
    #[command(after_help = "Examples:\n  tamis gateway --config gateway.toml\n  tamis gateway --print-config")]
    Gateway(serve::Args),
    /// Run an embedding service: texts to vectors.
    #[command(after_help = "Examples:\n  tamis embedding --set server.listen=0.0.0.0:7001\n  \
                            tamis embedding --print-config")]
    Embedding(serve::Args),
    /// Run a classification service: texts to labels.
    #[command(after_help = "Examples:\n  tamis classification --set server.listen=0.0.0.0:7002\n  \
                            tamis classification --print-config")]
    Classification(serve::Args),
    /// Run a vision service: images to labels and vectors.
    #[command(after_help = "Examples:\n  tamis vision --set server.listen=0.0.0.0:7003\n  tamis vision --print-config")]
    Vision(serve::Args),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli, &variables()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            output::warn(advice::report(&error));
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli, variables: &Variables) -> anyhow::Result<()> {
    let home = Home::find(cli.data_dir, variables);
    let role = |role, args| serve::run(role, args, home.as_ref().ok(), variables);
    match cli.command {
        Command::Gateway(args) => role(Role::Gateway, args),
        Command::Embedding(args) => role(Role::Embedding, args),
        Command::Classification(args) => role(Role::Classification, args),
        Command::Vision(args) => role(Role::Vision, args),
        Command::Up(args) => up::run(&args, &home?, variables),
        Command::Call(command) => call::run(command, &home?),
        Command::Doctor(args) => doctor::run(&args, &home?, variables),
        Command::Top(args) => top::run(&args, &home?),
        Command::Bench(command) => bench::run(command, &home?),
        Command::Models(command) => models::run(command, &home?),
        Command::TrainHead(args) => train::run(&args, &home?),
        Command::Certs(command) => certs::run(command, &home?),
    }
}

/// The environment, read once. What is no text is nobody's configuration.
fn variables() -> Variables {
    let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
        Some((name.into_string().ok()?, value.into_string().ok()?))
    };
    std::env::vars_os().filter_map(text).collect()
}

/// Whoever read the output has seen enough, as in `tamis models list | head -1`.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_teaches_with_an_example() {
        fn check(command: &clap::Command) {
            assert!(command.get_about().is_some(), "{} says nothing", command.get_name());
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains("tamis "), "{} has no example", command.get_name());
            command.get_subcommands().for_each(check);
        }
        check(&Cli::command());
    }

    #[test]
    fn the_data_directory_can_be_named_after_the_command() {
        let cli = Cli::try_parse_from(["tamis", "models", "list", "--data-dir", "/x"]).unwrap();
        assert_eq!(cli.data_dir, Some("/x".into()));
    }
}
