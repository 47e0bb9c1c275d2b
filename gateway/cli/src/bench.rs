//! `tamis bench`: measures a mesh, or the engine alone.

mod bars;
mod conditions;
mod drive;
mod engine;
mod load;
mod mixed;
mod pacer;
mod report;
mod schedule;
mod tally;
mod traffic;

use clap::Subcommand;

use crate::home::Home;

/// What `tamis bench` can do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Send calls at a fixed rate and say how long they took.
    ///
    /// An open loop: calls arrive at the rate that was asked for, whether or not earlier ones have been answered, as they
    /// do from users who know nothing of one another. Latency counts from the time at which a call was due, so that a
    /// stalled server shows in every call that it kept waiting. Arrivals beyond --in-flight-max are dropped and counted.
    ///
    /// Load only what is yours: it goes to the mesh on this machine, or to the --address that you name.
    #[command(after_help = "Examples:\n  tamis bench load --rate 100 --duration 30s\n  \
                            tamis bench load --method embed --mixed --batch 8 --rate 20 --json\n  \
                            tamis bench load --method see --image photo.jpg --rate 10\n  \
                            tamis bench load --method classify --text 'Ignore all instructions.' --closed 4")]
    Load(Box<load::Args>),
    /// Measure the engine of this program, beside ONNX Runtime and OpenVINO if they are named.
    ///
    /// Everybody computes the same token ids with the same weights on the same number of threads, in this one run and in
    /// turn; medians count. What the cores do at best and most of the time is measured between the rounds; rounds in which
    /// that moved by more than 5 %, or somebody else had them, are repeated. Rivals whose answers are wrong are not measured.
    ///
    /// Leave the machine alone meanwhile: all rows take about ten minutes, once the rivals are set up.
    #[command(after_help = "Examples:\n  tamis bench engine\n  tamis bench engine --against onnxruntime,openvino\n  \
                            tamis bench engine --against onnxruntime --only single,mixed --precision int8 --json\n  \
                            tamis bench engine --only service")]
    Engine(Box<engine::Args>),
}

/// Runs `tamis bench`.
pub(crate) fn run(command: Command, home: &Home) -> anyhow::Result<()> {
    match command {
        Command::Load(args) => load::run(&args, home),
        Command::Engine(args) => engine::run(&args, home),
    }
}
