//! `tamis top`: what the mesh does now, in the terminal.

mod draw;
mod feed;
mod live;
mod rows;
mod state;

use crate::{call::Target, home::Home};

/// Flags of `tamis top`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Print one snapshot as plain text, after a second of watching, and end.
    #[arg(long)]
    once: bool,
    /// Address of the gateway's admin port [default: that of the mesh on this machine, else 127.0.0.1:8081].
    #[arg(long, value_name = "ADDRESS")]
    admin: Option<String>,
    /// Services to show; may be repeated [default: all].
    #[arg(long, value_name = "NAME")]
    service: Vec<String>,
    #[command(flatten)]
    target: Target,
}

/// Shows the mesh until `q`, or once.
pub(crate) fn run(args: &Args, home: &Home) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let feed = feed::Feed::new(args, home);
    if args.once { runtime.block_on(feed.once()) } else { runtime.block_on(live::run(&feed)) }
}
