//! `tamis bench load`: its flags, and the run.

use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context as _, bail};
use chassis::units::Span;
use tokio::{
    runtime::{Builder, Runtime},
    time::Instant,
};
use tonic::transport::Channel;

use super::{
    conditions::Conditions,
    drive::{self, Open},
    mixed,
    pacer::Pacer,
    report::{Loop, Report},
    schedule::Schedule,
    tally::Tally,
    traffic::{Lane, Method, Traffic},
};
use crate::{
    advice::Advice,
    call::{
        Target,
        client::{self, Life},
    },
    home::Home,
    output::{say, warn},
    process,
    signals::Signals,
};

/// Most threads that send: more than these take from a mesh on the same machine what they measure.
const THREADS_MAX: usize = 4;
/// How long to wait for a connection.
const CONNECT_MAX: Duration = Duration::from_secs(10);

/// Flags of `tamis bench load`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Calls a second; they arrive evenly.
    #[arg(long, value_name = "CALLS", default_value = "50", value_parser = rate)]
    rate: f64,
    /// How long to measure.
    #[arg(long, value_name = "TIME", default_value = "10s")]
    duration: Span,
    /// How long to send before that, uncounted.
    #[arg(long, value_name = "TIME", default_value = "2s")]
    warmup: Span,
    /// Connections to the gateway, used in turn.
    #[arg(long, value_name = "NUMBER", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=1024))]
    connections: u16,
    /// Calls that may be under way; an arrival beyond them is dropped and counted.
    #[arg(long, value_name = "NUMBER", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    in_flight_max: u32,
    /// Closed loop instead: so many callers, each sending when its last call was answered. It hides how long calls wait
    /// when the server is slow; for comparison only.
    #[arg(long, value_name = "CALLERS", conflicts_with = "rate", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    closed: Option<u32>,
    /// What to call.
    #[arg(long, value_enum, default_value_t = Method::Embed)]
    method: Method,
    /// A text to send; may be repeated, they are taken in turn.
    #[arg(long, value_name = "TEXT", conflicts_with_all = ["texts", "mixed"])]
    text: Vec<String>,
    /// A file of texts to send, one a line, taken in turn.
    #[arg(long, value_name = "FILE", conflicts_with = "mixed")]
    texts: Option<PathBuf>,
    /// Send built-in texts of 5 to 250 words, the same in every run; the default where nothing else is named.
    #[arg(long)]
    mixed: bool,
    /// An image file to send; may be repeated.
    #[arg(long, value_name = "FILE")]
    image: Vec<PathBuf>,
    /// Texts or images of a call.
    #[arg(long, value_name = "ITEMS", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    batch: u32,
    /// Model to use [default: the service's default model].
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// Deadline of each call.
    #[arg(long, value_name = "TIME", default_value = "10s")]
    deadline: Span,
    /// Lane of the services' queues.
    #[arg(long, value_enum, default_value_t = Lane::Interactive)]
    lane: Lane,
    /// Print the results as JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    target: Target,
}

/// Sends the calls, and prints what came of them.
pub(crate) fn run(args: &Args, home: &Home) -> anyhow::Result<()> {
    let traffic = traffic(args)?;
    let schedule = schedule(args)?;
    let report = runtime()?.block_on(measure(args, home, traffic, schedule))?;
    if args.json {
        say(serde_json::to_string_pretty(&report.json())?)?;
    } else {
        say(report.text())?;
    }
    report.warnings().iter().for_each(|warning| warn(format!("warning: {warning}")));
    match report.only_failures() {
        Some(advice) => bail!(advice),
        None => Ok(()),
    }
}

async fn measure(args: &Args, home: &Home, traffic: Traffic, schedule: Schedule) -> anyhow::Result<Report> {
    let address = client::address(&args.target, home);
    let channels = connect(args, home, &address).await?;
    let conditions = Conditions::now(address);
    let how = match args.closed {
        Some(callers) => Loop::Closed { callers: usize::try_from(callers)? },
        None => Loop::Open { in_flight_max: usize::try_from(args.in_flight_max)? },
    };
    let mut signals = Signals::new()?;
    let cpu = || process::usage(std::process::id()).map(|usage| usage.cpu);
    let (cpu_before, began) = (cpu(), Instant::now());
    let method = traffic.method;
    let tally = send(how, schedule, traffic, channels, signals.next()).await?;
    let cpu = cpu().zip(cpu_before).map(|(after, before)| after.saturating_sub(before));
    Ok(Report { conditions, how, method, batch: args.batch, tally, cpu, elapsed: began.elapsed() })
}

/// Sends on a thread of the runtime, where waking a call costs less than from the outside.
async fn send(
    how: Loop,
    schedule: Schedule,
    traffic: Traffic,
    channels: Vec<Channel>,
    stop: impl Future<Output = ()>,
) -> anyhow::Result<Tally> {
    let traffic = Arc::new(traffic);
    let mut turn = 0;
    let mut call = move |number: u64| {
        turn = (turn + 1) % channels.len();
        let (traffic, channel) = (Arc::clone(&traffic), channels[turn].clone());
        async move { traffic.call(channel, number).await }
    };
    match how {
        Loop::Closed { callers } => Ok(drive::closed(schedule, callers, &mut call, stop).await),
        Loop::Open { in_flight_max } => {
            let start = Instant::now();
            let (_pacer, arrivals) = Pacer::start(schedule, start.into_std()).context("cannot start a thread")?;
            Ok(Open { schedule, start, in_flight_max }.run(arrivals, &mut call, stop).await)
        }
    }
}

async fn connect(args: &Args, home: &Home, address: &str) -> anyhow::Result<Vec<Channel>> {
    let mut channels = Vec::new();
    for _ in 0..args.connections {
        let connection = client::open(&args.target, home, address, CONNECT_MAX, Life::Reconnecting).await?;
        channels.push(connection.channel);
    }
    Ok(channels)
}

fn runtime() -> std::io::Result<Runtime> {
    let threads = std::thread::available_parallelism().map_or(1, |cpus| cpus.get().min(THREADS_MAX));
    Builder::new_multi_thread().worker_threads(threads).enable_all().build()
}

fn schedule(args: &Args) -> anyhow::Result<Schedule> {
    if args.duration.0.is_zero() {
        bail!(Advice::new("--duration is zero", "measure for some time, as in --duration 10s"));
    }
    if args.deadline.0.is_zero() {
        bail!(Advice::new("--deadline is zero", "give calls some time, as in --deadline 10s"));
    }
    let schedule = Schedule { rate: args.rate, warmup: args.warmup.0, duration: args.duration.0 };
    if args.closed.is_none() && schedule.due(1) >= schedule.duration {
        let what = format!("{} calls a second make less than two calls in {}", args.rate, args.duration);
        bail!(Advice::new(what, "measure longer with --duration, or send more with --rate"));
    }
    Ok(schedule)
}

fn traffic(args: &Args) -> anyhow::Result<Traffic> {
    let takes_texts = args.method != Method::See;
    let names_texts = !args.text.is_empty() || args.texts.is_some() || args.mixed;
    if !takes_texts && names_texts {
        bail!(Advice::new("`see` takes no texts", "name images with --image, or another --method"));
    }
    if !takes_texts && args.image.is_empty() {
        bail!(Advice::new("`see` needs an image", "name one with --image photo.jpg"));
    }
    if !args.image.is_empty() && !matches!(args.method, Method::See | Method::Fanout) {
        bail!(Advice::new("this method takes no images", "use --method see or --method fanout"));
    }
    let images = args.image.iter().map(|path| {
        let advice = || Advice::new(format!("cannot read {}", path.display()), "name image files with --image");
        Ok(std::fs::read(path).with_context(advice)?.into())
    });
    Ok(Traffic {
        method: args.method,
        texts: if takes_texts { texts(args)? } else { Vec::new() },
        images: images.collect::<anyhow::Result<_>>()?,
        batch: usize::try_from(args.batch)?,
        model: args.model.clone(),
        lane: args.lane,
        deadline: args.deadline.0,
    })
}

fn texts(args: &Args) -> anyhow::Result<Vec<String>> {
    let Some(path) = &args.texts else {
        return Ok(if args.text.is_empty() { mixed::texts() } else { args.text.clone() });
    };
    let advice = || Advice::new(format!("cannot read {}", path.display()), "name a file with one text a line");
    let text = std::fs::read_to_string(path).with_context(advice)?;
    let texts: Vec<_> = text.lines().filter(|line| !line.trim().is_empty()).map(str::to_owned).collect();
    if texts.is_empty() {
        bail!(Advice::new(format!("{} has no texts", path.display()), "write one text a line"));
    }
    Ok(texts)
}

fn rate(text: &str) -> Result<f64, String> {
    let rate: f64 = text.parse().map_err(|_| "write calls a second, as in 50 or 0.5".to_owned())?;
    if rate.is_finite() && (0.001..=1_000_000.0).contains(&rate) {
        Ok(rate)
    } else {
        Err("0.001 to 1000000 calls a second can be sent".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::advice::report;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn args(line: &str) -> Args {
        Line::try_parse_from(std::iter::once("x").chain(line.split_whitespace())).map(|line| line.args).unwrap()
    }

    #[track_caller]
    fn check_refused(line: &str, part: &str) {
        let args = args(line);
        let error = traffic(&args).err().or_else(|| schedule(&args).err()).unwrap();
        assert!(report(&error).contains(part), "{}", report(&error));
    }

    #[test]
    fn contradictions_are_told_with_what_to_do() {
        check_refused("--method see", "--image");
        check_refused("--method see --image a.jpg --mixed", "takes no texts");
        check_refused("--method embed --image a.jpg", "--method see");
        check_refused("--method see --image /nowhere.jpg", "cannot read /nowhere.jpg");
        check_refused("--texts /nowhere.txt", "one text a line");
        check_refused("--duration 0s", "--duration 10s");
        check_refused("--deadline 0s", "--deadline 10s");
        check_refused("--rate 0.1 --duration 10s", "less than two calls");
    }

    #[test]
    fn a_rate_is_a_number_above_zero() {
        assert_eq!(rate("0.5"), Ok(0.5));
        for text in ["0", "-1", "NaN", "inf", "1e9", "many"] {
            assert!(rate(text).is_err(), "{text}");
        }
    }

    #[test]
    fn texts_are_the_built_in_ones_unless_others_are_named() {
        assert_eq!(texts(&args("")).unwrap(), mixed::texts());
        assert_eq!(texts(&args("--text a --text b")).unwrap(), ["a", "b"]);
        let place = tempfile::tempdir().unwrap();
        let file = place.path().join("texts.txt");
        std::fs::write(&file, "one\n\ntwo\n").unwrap();
        assert_eq!(texts(&args(&format!("--texts {}", file.display()))).unwrap(), ["one", "two"]);
        std::fs::write(&file, "\n").unwrap();
        check_refused(&format!("--texts {}", file.display()), "has no texts");
    }
}
