//! The `tamis` binary under test.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
};

use super::{PATIENCE, folder};

/// What a command did.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) success: bool,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Where the binary is. Built once a run, for cargo alone knows whether the one that is there is older than its sources.
///
/// Cargo passes no path to the tests of another package. Building it together with this test target gives the
/// dependencies the features that `cargo test` gave them, so that nothing but the binary itself is compiled.
pub(super) fn path() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| {
        let profile = match folder::profile() {
            "debug" => "dev",
            other => other,
        };
        let status = Command::new(env!("CARGO"))
            .args(["build", "--quiet", "--bin", "tamis", "--test", "e2e", "--profile", profile, "--target-dir"])
            .arg(folder::target())
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .stdin(Stdio::null())
            .status()
            .expect("cargo runs");
        assert!(status.success(), "`tamis` does not build");
        folder::target().join(folder::profile()).join("tamis")
    })
}

/// The folder that holds it and nothing else of interest to a shell.
pub(super) fn folder() -> PathBuf {
    path().parent().map(Path::to_owned).unwrap_or_default()
}

/// Runs a command of `tamis` to its end.
pub(crate) async fn tamis(data: &Path, arguments: &[&str]) -> Finished {
    tamis_with(data, arguments, &[]).await
}

/// Runs a command of `tamis` to its end, with these environment variables beside its own.
pub(crate) async fn tamis_with(data: &Path, arguments: &[&str], variables: &[(&str, &str)]) -> Finished {
    let mut command = tokio::process::Command::new(path());
    command
        .args(arguments)
        .envs(variables.iter().copied())
        .env("TAMIS_DATA_DIR", data)
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output = tokio::time::timeout(PATIENCE, command.output()).await.expect("it ends").unwrap();
    Finished {
        success: output.status.success(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// What a command printed, which must have succeeded.
#[track_caller]
pub(crate) fn succeeded(finished: &Finished) -> &str {
    assert!(finished.success, "{}", finished.stderr);
    &finished.stdout
}

/// What a command complained about, which must have failed and said all of these.
#[track_caller]
pub(crate) fn failed<'a>(finished: &'a Finished, parts: &[&str]) -> &'a str {
    assert!(!finished.success, "{}", finished.stdout);
    for part in parts {
        assert!(finished.stderr.contains(part), "{part} is missing in:\n{}", finished.stderr);
    }
    &finished.stderr
}
