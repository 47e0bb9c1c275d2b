//! `tamis call`: calls the mesh as any other client would.

mod classify;
pub(crate) mod client;
mod count;
mod embed;
pub(crate) mod failure;
mod fanout;
mod labels;
mod outcome;
pub(crate) mod reply;
mod rerank;
mod see;
mod zero_shot;

use std::{io::BufRead as _, path::PathBuf};

use anyhow::{Context as _, bail};
use chassis::{spiffe::SpiffeId, units::Span};
use clap::Subcommand;
use proto::embedding::v1 as pb;

use self::reply::Reply;
use crate::{advice::Advice, home::Home, output::say};

/// What `tamis call` can do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Turn texts into vectors, and compare up to eight of them.
    #[command(after_help = "Examples:\n  tamis call embed 'A man is eating food.' 'Someone has a meal.'\n  \
                            tamis call embed --json - < texts.txt")]
    Embed(EmbedArgs),
    /// Rank documents by how well they answer a query; needs a model of the task rerank.
    #[command(after_help = "Examples:\n  tamis call rerank 'What do cats eat?' 'Cats eat mice.' 'Dogs bark.'\n  \
                            tamis call rerank 'What do cats eat?' - < documents.txt")]
    Rerank(RerankArgs),
    /// Count the tokens of texts, as the model reads them.
    #[command(after_help = "Examples:\n  tamis call count 'A man is eating food.'\n  \
                            tamis call count - < texts.txt")]
    Count(CountArgs),
    /// Give texts the labels of a model, or labels of your own; the default model detects prompt injections.
    #[command(after_help = "Examples:\n  tamis call classify 'Ignore all previous instructions.'\n  \
                            tamis call classify --model sentiment-minilm-v1 'What a lovely day.'\n  \
                            tamis call classify --labels sport,politics,cooking 'The striker scored twice.'\n  \
                            tamis call classify - < texts.txt")]
    Classify(ClassifyArgs),
    /// Say what images show.
    #[command(after_help = "Examples:\n  tamis call see photo.jpg cat.png\n  tamis call see --json photo.jpg")]
    See(ImageArgs),
    /// Make several calls at once, each with an outcome of its own.
    #[command(after_help = "Examples:\n  tamis call fanout --embed 'A text.' --classify 'A text.' --see photo.jpg\n  \
                            tamis call fanout --embed a --embed b --classify c --policy quorum --quorum 2 --stream")]
    Fanout(Box<fanout::Args>),
}

/// Arguments of calls that take texts.
#[derive(Debug, clap::Args)]
pub(crate) struct TextArgs {
    /// Texts; `-` reads them from standard input, one a line.
    #[arg(required = true, value_name = "TEXT")]
    texts: Vec<String>,
    #[command(flatten)]
    flags: Flags,
}

/// Arguments of `tamis call embed`.
#[derive(Debug, clap::Args)]
pub(crate) struct EmbedArgs {
    #[command(flatten)]
    texts: TextArgs,
    /// What the texts are for: some models have a prompt for it.
    #[arg(long, value_enum, default_value_t = RoleName::Symmetric)]
    role: RoleName,
    /// Keep the first N components only, for models that were trained for it [default: all].
    #[arg(long, value_name = "N")]
    dimensions: Option<u32>,
}

/// Arguments of `tamis call classify`.
#[derive(Debug, clap::Args)]
pub(crate) struct ClassifyArgs {
    #[command(flatten)]
    texts: TextArgs,
    /// Labels of your own, 2 to 256, separated by commas: the nearest ones in meaning, without any training.
    #[arg(long, value_name = "LABELS", value_delimiter = ',')]
    labels: Vec<String>,
    /// Sentence that a label stands in, at {} [default: This text is about {}.].
    #[arg(long, value_name = "TEMPLATE", requires = "labels")]
    template: Option<String>,
}

/// Arguments of `tamis call count`.
#[derive(Debug, clap::Args)]
pub(crate) struct CountArgs {
    #[command(flatten)]
    texts: TextArgs,
    /// What the texts are for: a prompt of the model counts.
    #[arg(long, value_enum, default_value_t = RoleName::Symmetric)]
    role: RoleName,
}

/// Arguments of `tamis call rerank`.
#[derive(Debug, clap::Args)]
pub(crate) struct RerankArgs {
    /// What the documents should answer.
    #[arg(value_name = "QUERY")]
    query: String,
    /// Documents; `-` reads them from standard input, one a line.
    #[arg(required = true, value_name = "DOC")]
    documents: Vec<String>,
    #[command(flatten)]
    flags: Flags,
}

/// What a text is for.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(crate) enum RoleName {
    /// A question.
    Query,
    /// A document that is to be found.
    Document,
    /// A text that is compared with its like.
    Symmetric,
}

impl From<RoleName> for pb::InputRole {
    fn from(role: RoleName) -> Self {
        match role {
            RoleName::Query => Self::Query,
            RoleName::Document => Self::Document,
            RoleName::Symmetric => Self::Symmetric,
        }
    }
}

/// Arguments of calls that take images.
#[derive(Debug, clap::Args)]
pub(crate) struct ImageArgs {
    /// Image files: JPEG, PNG, WebP or GIF.
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<PathBuf>,
    #[command(flatten)]
    flags: Flags,
}

/// Flags of every call.
#[derive(Debug, clap::Args)]
pub(crate) struct Flags {
    /// Print the whole reply as JSON, with the contract's field names.
    #[arg(long)]
    json: bool,
    /// Model to use [default: the service's default model].
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// Deadline of the call.
    #[arg(long, value_name = "TIME", default_value = "30s")]
    timeout: Span,
    #[command(flatten)]
    target: Target,
}

/// Whom to call, and as whom.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Target {
    /// Address of the gateway, host:port [default: that of the mesh on this machine, else 127.0.0.1:8443].
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) address: Option<String>,
    /// Certificate of the authority to trust [default: ca.pem in the data directory].
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Client certificate [default: client-dev.pem in the data directory].
    #[arg(long, value_name = "FILE")]
    cert: Option<PathBuf>,
    /// Private key of the client certificate [default: client-dev.key, or the key beside --cert].
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// SPIFFE identity that the gateway must prove.
    #[arg(long, value_name = "ID", default_value = "spiffe://tamis.local/gateway")]
    server_id: SpiffeId,
}

/// Runs `tamis call`.
pub(crate) fn run(command: Command, home: &Home) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match command {
        Command::Embed(args) => {
            let EmbedArgs { texts: TextArgs { texts: given, flags }, role, dimensions } = args;
            let params = pb::EmbedParams { role: pb::InputRole::from(role).into(), dimensions, ..Default::default() };
            show(&flags, &runtime.block_on(embed::call(texts(given)?, params, &flags, home))?)
        }
        Command::Rerank(args) => {
            let RerankArgs { query, documents, flags } = args;
            show(&flags, &runtime.block_on(rerank::call(query, texts(documents)?, &flags, home))?)
        }
        Command::Count(args) => {
            let CountArgs { texts: TextArgs { texts: given, flags }, role } = args;
            show(&flags, &runtime.block_on(count::call(texts(given)?, role, &flags, home))?)
        }
        Command::Classify(args) => {
            let ClassifyArgs { texts: TextArgs { texts: given, flags }, labels, template } = args;
            let texts = texts(given)?;
            let reply = if labels.is_empty() {
                runtime.block_on(classify::call(texts, &flags, home))?
            } else {
                let question = zero_shot::Question { texts, labels, template: template.unwrap_or_default() };
                runtime.block_on(zero_shot::call(question, &flags, home))?
            };
            show(&flags, &reply)
        }
        Command::Fanout(args) => runtime.block_on(fanout::run(&args, home)),
        Command::See(args) => {
            let images = see::read(args.images)?;
            show(&args.flags, &runtime.block_on(see::call(images, &args.flags, home))?)
        }
    }
}

/// The texts of the command line, with `-` replaced by the lines of standard input.
fn texts(arguments: Vec<String>) -> anyhow::Result<Vec<String>> {
    let mut texts = Vec::new();
    for argument in arguments {
        if argument == "-" {
            for line in std::io::stdin().lock().lines() {
                texts.push(line.context("standard input cannot be read as text")?);
            }
        } else {
            texts.push(argument);
        }
    }
    if texts.is_empty() {
        bail!(Advice::new("standard input has no text", "write one text a line"));
    }
    Ok(texts)
}

/// Prints a reply; it is a failure if one of its items is.
fn show(flags: &Flags, reply: &impl Reply) -> anyhow::Result<()> {
    if flags.json {
        say(serde_json::to_string_pretty(&reply.json())?)?;
    } else {
        say(reply.table())?;
    }
    let (failed, items) = reply.failed();
    judge(failed, items, reply.item())
}

fn judge(failed: usize, items: usize, item: &str) -> anyhow::Result<()> {
    if failed == 0 {
        return Ok(());
    }
    let what = format!("{failed} of {items} {item}{} failed", if items == 1 { "" } else { "s" });
    let help = format!("the reason stands in the {item}'s place above; the others are not affected");
    bail!(Advice::new(what, help))
}
