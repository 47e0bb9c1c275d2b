//! `tamis certs`: the certificates of a mesh.

pub(crate) mod authority;
pub(crate) mod ensure;
pub(crate) mod facts;
pub(crate) mod folder;
pub(crate) mod leaf;
mod show;

use std::{path::PathBuf, time::SystemTime};

use anyhow::bail;
use clap::Subcommand;

use self::{
    folder::{AUTHORITY, Folder},
    leaf::Leaf,
};
use crate::{advice::Advice, home::Home, output::say};

/// How long a certificate of a member of the mesh lasts.
pub(crate) const LEAF_DAYS: u32 = 90;

/// What `tamis certs` can do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make a development authority and the certificates of a mesh.
    ///
    /// Makes an authority (ca.pem, ca.key: ECDSA P-256, 10 years) and certificates of 90 days for the gateway, every
    /// service and the client `dev`. Keys have mode 0600. `tamis up` does this by itself and renews what ends soon.
    #[command(after_help = "Example:\n  tamis certs init --dir ./certs")]
    Init(InitArgs),
    /// Issue a certificate for one identity.
    ///
    /// The identity is the path of a SPIFFE id: `client/alice` becomes spiffe://tamis.local/client/alice, in the files
    /// client-alice.pem and client-alice.key. The development mesh lets every `client/...` call everything.
    #[command(after_help = "Examples:\n  tamis certs issue client/alice\n  \
                            tamis certs issue gateway --dns mesh.example.com --force")]
    Issue(IssueArgs),
    /// Show what certificates say: identity, names, validity, and whether their keys fit.
    #[command(after_help = "Examples:\n  tamis certs show\n  tamis certs show ./certs/gateway.pem")]
    Show(ShowArgs),
}

/// Flags of `tamis certs init`.
#[derive(Debug, clap::Args)]
pub(crate) struct InitArgs {
    /// Folder for the files [default: `certs` in the data directory].
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Replace what is there: everything signed by the old authority stops working.
    #[arg(long)]
    force: bool,
}

/// Flags of `tamis certs issue`.
#[derive(Debug, clap::Args)]
pub(crate) struct IssueArgs {
    /// Who it is for: `client/alice`, `service/embedding`, `gateway`, or a full spiffe:// id.
    identity: String,
    /// A DNS name or IP address by which clients reach the holder; may be repeated. Everybody but clients has
    /// localhost, 127.0.0.1 and ::1 anyway.
    #[arg(long, value_name = "NAME")]
    dns: Vec<String>,
    /// How many days it lasts.
    #[arg(long, default_value_t = LEAF_DAYS, value_parser = clap::value_parser!(u32).range(1..=3650))]
    days: u32,
    /// Folder with the authority, and for the new files [default: `certs` in the data directory].
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Replace the identity's certificate and key.
    #[arg(long)]
    force: bool,
}

/// Flags of `tamis certs show`.
#[derive(Debug, clap::Args)]
pub(crate) struct ShowArgs {
    /// Certificates, as PEM [default: all in the folder].
    files: Vec<PathBuf>,
    /// Folder to look in [default: `certs` in the data directory].
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// Runs `tamis certs`.
pub(crate) fn run(command: Command, home: &Home) -> anyhow::Result<()> {
    let folder = |dir: Option<PathBuf>| Folder::new(dir.unwrap_or_else(|| home.certs()));
    match command {
        Command::Init(args) => init(&folder(args.dir), args.force),
        Command::Issue(args) => issue(&folder(args.dir.clone()), &args),
        Command::Show(args) => show::run(&folder(args.dir), args.files),
    }
}

fn init(folder: &Folder, force: bool) -> anyhow::Result<()> {
    let leaves = Leaf::of_the_mesh()?;
    let there = [AUTHORITY.to_owned()].into_iter().chain(leaves.iter().map(Leaf::stem)).find(|stem| folder.has(stem));
    if let (Some(stem), false) = (there, force) {
        let what = format!("{}.pem or {stem}.key is in {} already", stem, folder.path().display());
        let help = "--force replaces the authority and its certificates: what the old one signed stops working\n\
                    --dir DIR puts new ones elsewhere";
        bail!(Advice::new(what, help));
    }
    folder.init(&leaves, SystemTime::now())?;
    say(format!("Made an authority and {} certificates in {}", leaves.len(), folder.path().display()))?;
    show::run(folder, Vec::new())
}

fn issue(folder: &Folder, args: &IssueArgs) -> anyhow::Result<()> {
    let leaf = Leaf::parse(&args.identity, &args.dns)?;
    let stem = leaf.stem();
    if stem == AUTHORITY {
        bail!(Advice::new(
            "an identity named `ca` would take the place of the authority's files",
            "choose another name"
        ));
    }
    if folder.has(&stem) && !args.force {
        let what = format!("{stem}.pem or {stem}.key is in {} already", folder.path().display());
        bail!(Advice::new(what, "--force replaces both"));
    }
    let pair = folder.authority()?.issue(&leaf, SystemTime::now(), args.days)?;
    folder.store(&stem, &pair)?;
    say(format!("Issued {} for {} days:", leaf.id, args.days))?;
    say(format!("  certificate  {}", folder.certificate(&stem).display()))?;
    say(format!("  private key  {}", folder.key(&stem).display()))?;
    say(format!("  authority    {}", folder.certificate(AUTHORITY).display()))?;
    Ok(())
}

/// A day as people write it, `2027-02-21`.
pub(crate) fn day(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(time).to_string().chars().take(10).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::advice::report;

    #[test]
    fn nothing_is_overwritten_without_force() {
        let place = tempfile::tempdir().unwrap();
        let folder = Folder::new(place.path().join("certs"));
        init(&folder, false).unwrap();
        let before = std::fs::read(folder.certificate("ca")).unwrap();
        assert!(report(&init(&folder, false).unwrap_err()).contains("--force"));
        let args =
            |identity: &str, force| IssueArgs { identity: identity.into(), dns: Vec::new(), days: 1, dir: None, force };
        assert!(report(&issue(&folder, &args("client/dev", false)).unwrap_err()).contains("--force"));
        issue(&folder, &args("client/dev", true)).unwrap();
        issue(&folder, &args("client/alice", false)).unwrap();
        assert!(issue(&folder, &args("service/ca", true)).is_err());
        assert_eq!(std::fs::read(folder.certificate("ca")).unwrap(), before);
        init(&folder, true).unwrap();
        assert_ne!(std::fs::read(folder.certificate("ca")).unwrap(), before);
    }
}
