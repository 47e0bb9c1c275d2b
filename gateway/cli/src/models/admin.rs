//! `tamis models load`, `unload`, `alias` and `loaded`: what the replicas of a running mesh have loaded.

use anyhow::bail;
use proto::model::v1 as pb;

use super::replica::{Open, Target};
use crate::{
    advice::{Advice, report},
    call::reply::computed,
    home::Home,
    output::{render, say, table},
};

/// Digits of a revision that are shown.
const REVISION_SHOWN: usize = 12;

/// Flags of `tamis models load`.
#[derive(Debug, clap::Args)]
pub(crate) struct LoadArgs {
    /// Name of a model that has a manifest and is on this machine.
    name: String,
    /// A name that is to stand for it at once; may be repeated [default: its own, if that stands for nothing yet].
    #[arg(long, value_name = "ALIAS")]
    alias: Vec<String>,
    /// The revision that the manifest must have.
    #[arg(long, value_name = "REVISION", default_value = "", hide_default_value = true)]
    expect: String,
    #[command(flatten)]
    target: Target,
}

/// Flags of `tamis models unload`.
#[derive(Debug, clap::Args)]
pub(crate) struct UnloadArgs {
    /// Name of a loaded model.
    name: String,
    /// Which of its revisions, or the beginning of its digits [default: the one that the name stands for].
    #[arg(long, value_name = "REVISION", default_value = "", hide_default_value = true)]
    revision: String,
    #[command(flatten)]
    target: Target,
}

/// Flags of `tamis models alias`.
#[derive(Debug, clap::Args)]
pub(crate) struct AliasArgs {
    /// The name that is to stand for a model; `default` is for calls that select none.
    alias: String,
    /// Name of a loaded model.
    #[arg(required_unless_present = "drop")]
    name: Option<String>,
    /// Which of its revisions, or the beginning of its digits [default: the one that was loaded last].
    #[arg(long, value_name = "REVISION", default_value = "", hide_default_value = true)]
    revision: String,
    /// Let the alias stand for nothing; needs --service.
    #[arg(long, requires = "service", conflicts_with_all = ["revision", "name"])]
    drop: bool,
    #[command(flatten)]
    target: Target,
}

/// Flags of `tamis models loaded`.
#[derive(Debug, clap::Args)]
pub(crate) struct LoadedArgs {
    #[command(flatten)]
    target: Target,
}

/// Loads a model in every replica.
pub(crate) fn load(args: &LoadArgs, home: &Home) -> anyhow::Result<()> {
    each(&args.target, Some(&args.name), home, async |open| {
        let (name, expected_revision) = (args.name.clone(), args.expect.clone());
        let request = open.request(pb::LoadModelRequest { name, expected_revision, aliases: args.alias.clone() });
        let response = open.admin().load_model(request).await.map_err(|status| open.failed(&status))?;
        let model = response.into_inner().model.unwrap_or_default();
        let names = if model.aliases.is_empty() { "nothing".to_owned() } else { model.aliases.join(", ") };
        let computed = computed(&model.dtype, &model.compute_path);
        Ok(format!("{} ({computed}) is loaded; {names} stands for it", short(&model.revision)))
    })
}

/// Unloads a model in every replica.
pub(crate) fn unload(args: &UnloadArgs, home: &Home) -> anyhow::Result<()> {
    each(&args.target, Some(&args.name), home, async |open| {
        let revision = open.revision(&args.name, &args.revision).await?;
        let request = open.request(pb::UnloadModelRequest { name: args.name.clone(), revision });
        open.admin().unload_model(request).await.map_err(|status| open.failed(&status))?;
        Ok("unloaded".to_owned())
    })
}

/// Sets or drops an alias in every replica.
pub(crate) fn alias(args: &AliasArgs, home: &Home) -> anyhow::Result<()> {
    let model = args.name.as_deref();
    each(&args.target, model, home, async |open| {
        let name = model.unwrap_or_default().to_owned();
        let revision = open.revision(&name, &args.revision).await?;
        let request = open.request(pb::SetAliasRequest { alias: args.alias.clone(), name, revision });
        let response = open.admin().set_alias(request).await.map_err(|status| open.failed(&status))?;
        let before = response.into_inner().previous_revision;
        let before = if before.is_empty() { "nothing".to_owned() } else { short(&before).to_owned() };
        let now = model.unwrap_or("nothing");
        Ok(format!("{} stands for {now}, before for {before}", args.alias))
    })
}

/// Shows what every replica has.
pub(crate) fn loaded(args: &LoadedArgs, home: &Home) -> anyhow::Result<()> {
    let replicas = args.target.replicas(None, home)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut table = table(&["REPLICA", "MODEL", "REVISION", "COMPUTED", "NAMES", "DEFAULT"]);
    let mut failures = Vec::new();
    for replica in &replicas {
        match runtime.block_on(async { replica.open().await?.models().await }) {
            Ok(models) => models.iter().for_each(|model| {
                let default = if model.is_default { "yes" } else { "" };
                let (revision, names) = (short(&model.revision), model.aliases.join(", "));
                let computed = computed(&model.dtype, &model.compute_path);
                table.add_row([replica.name.as_str(), &model.name, revision, &computed, &names, default]);
            }),
            Err(error) => failures.push((replica.name.clone(), error)),
        }
    }
    say(render(&table))?;
    told(failures, replicas.len())
}

/// Does something to every replica, one after the other, so that the others have the machine meanwhile; says what became
/// of it in each.
fn each(
    target: &Target,
    model: Option<&str>,
    home: &Home,
    act: impl AsyncFn(&Open<'_>) -> anyhow::Result<String>,
) -> anyhow::Result<()> {
    let replicas = target.replicas(model, home)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut table = table(&["REPLICA", "OUTCOME"]);
    let mut failures = Vec::new();
    for replica in &replicas {
        match runtime.block_on(async { act(&replica.open().await?).await }) {
            Ok(outcome) => {
                table.add_row([&replica.name, &outcome]);
            }
            Err(error) => {
                table.add_row([replica.name.as_str(), "FAILED"]);
                failures.push((replica.name.clone(), error));
            }
        }
    }
    say(render(&table))?;
    told(failures, replicas.len())
}

/// What went wrong where; nothing if all went well.
fn told(failures: Vec<(String, anyhow::Error)>, replicas: usize) -> anyhow::Result<()> {
    if failures.is_empty() {
        return Ok(());
    }
    let what = format!("{} of {replicas} replicas did not do it", failures.len());
    let each = failures.iter().map(|(name, error)| format!("{name}: {}", report(error)));
    bail!(Advice::new(what, each.collect::<Vec<_>>().join("\n")))
}

fn short(revision: &str) -> &str {
    let digits = revision.strip_prefix("sha256:").unwrap_or(revision);
    digits.get(..REVISION_SHOWN).unwrap_or(digits)
}
