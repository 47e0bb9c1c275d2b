//! `tamis models add` and `tamis models remove`.

use clap::ValueEnum;
use engine::{AddError, Added, Addition, Manifest, Store, TextTask};

use super::progress;
use crate::{advice::Advice, output::say};

/// More labels than these are counted and not named.
const LABELS_SHOWN_MAX: usize = 8;

/// Which model of the hub.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Repository of the hub.
    #[arg(value_name = "OWNER/NAME")]
    repository: String,
    /// What the model shall do [default: what its architecture says].
    #[arg(long, value_enum)]
    task: Option<Task>,
    /// Name of the model here [default: the repository's, in lower case].
    #[arg(long)]
    name: Option<String>,
    /// Branch, tag or commit; the manifest pins the commit.
    #[arg(long, default_value = "main")]
    revision: String,
}

/// What a checkpoint for texts can do.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Task {
    /// Texts to vectors.
    Embedding,
    /// Texts to labels.
    Classification,
    /// A query and a document to a score.
    Rerank,
}

impl From<Task> for TextTask {
    fn from(task: Task) -> Self {
        match task {
            Task::Embedding => Self::Embedding,
            Task::Classification => Self::Classification,
            Task::Rerank => Self::Rerank,
        }
    }
}

/// Runs `tamis models add`.
pub(super) fn add(store: &Store, args: Args) -> anyhow::Result<()> {
    let Args { repository, task, name, revision } = args;
    let wanted = Addition { repository, revision, name, task: task.map(TextTask::from) };
    let progress = progress::Terminal::new();
    let added = store.add(&wanted, &progress);
    drop(progress);
    match added {
        Ok(added) => Ok(say(summary(&added, &wanted))?),
        Err(error) => Err(advise(error)),
    }
}

/// Runs `tamis models remove`.
pub(super) fn remove(store: &Store, name: &str) -> anyhow::Result<()> {
    let path = store.remove(name)?;
    say(format!("removed {name}: {} and its files", path.display()))?;
    Ok(())
}

/// What was decided, and what to do next.
fn summary(added: &Added, wanted: &Addition) -> String {
    let Added { manifest, path, task, labels, decisions } = added;
    let mut text = format!("added {} from {}\n", manifest.name, wanted.repository);
    let mut line = |key: &str, value: &str| text.push_str(&format!("  {key:9} {value}\n"));
    line("task", task.name());
    line("licence", &manifest.licence);
    for source in &manifest.sources {
        line("source", &source.to_string());
    }
    if let Some(reading) = reading(manifest) {
        line("text", &reading);
    }
    if let Some(head) = &manifest.head {
        let shown = labels.iter().take(LABELS_SHOWN_MAX).cloned().collect::<Vec<_>>().join(", ");
        let more = labels.len().saturating_sub(LABELS_SHOWN_MAX);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        line("labels", &format!("{shown}{more} ({})", format!("{:?}", head.activation).to_lowercase()));
    }
    line("revision", &format!("{} (in f32; each precision has its own)", manifest.revision()));
    line("manifest", &path.display().to_string());
    for decision in decisions {
        line("note", decision);
    }
    text.push_str(&usage(*task, manifest.name.as_str()));
    text
}

/// How texts are read.
fn reading(manifest: &Manifest) -> Option<String> {
    let recipe = manifest.text.as_ref()?;
    let pooling = format!("{:?}", recipe.pooling).to_lowercase();
    let normalized = if manifest.head.is_none() && recipe.normalize { ", scaled to length 1" } else { "" };
    Some(format!("{pooling} pooling{normalized}, at most {} tokens", recipe.max_tokens))
}

fn usage(task: TextTask, name: &str) -> String {
    let (service, call) = match task {
        TextTask::Embedding => ("embedding", format!("tamis call embed --model {name} 'A man is eating food.'")),
        TextTask::Classification => ("classification", format!("tamis call classify --model {name} 'What a day!'")),
        TextTask::Rerank => ("embedding", format!("tamis call rerank --model {name} 'a query' 'a document' 'another'")),
    };
    format!("\nLet the {service} service of a running mesh load it, and call it:\n  tamis models load {name}\n  {call}")
}

fn advise(error: AddError) -> anyhow::Error {
    let help = match &error {
        AddError::NotFound { .. } => "look at its spelling, and at --revision: a branch, a tag or a commit".to_owned(),
        AddError::Gated { repository } => {
            format!("ask its owner for access on the page of {repository}, and set HF_TOKEN to a token of your account")
        }
        AddError::Unreachable { .. } => {
            "see that the hub can be reached; HF_ENDPOINT names a mirror, HTTPS_PROXY a proxy".to_owned()
        }
        AddError::Unsupported { .. } => {
            "choose another model: an encoder of the families BERT, DistilBERT and RoBERTa with model.safetensors and \
             tokenizer.json"
                .to_owned()
        }
        AddError::Corrupt { .. } => "try again; if it stays so, the hub or what is between has a fault".to_owned(),
        AddError::NameTaken { name, .. } => {
            format!("choose another with --name, or `tamis models remove {name}` first")
        }
        AddError::Engine(_) => return error.into(),
    };
    Advice::new(error.to_string(), help).into()
}
