//! `tamis certs show`.

use std::{
    path::{Path, PathBuf},
    time::SystemTime,
};

use anyhow::{Context as _, bail};

use super::{
    day,
    facts::{self, Facts},
    folder::Folder,
};
use crate::{
    advice::Advice,
    output::{render, right, say, table},
};

const HEADER: [&str; 8] = ["FILE", "IDENTITY", "NAMES", "FROM", "UNTIL", "DAYS LEFT", "ISSUER", "KEY"];

/// Shows the files, or all certificates of the folder.
pub(crate) fn run(folder: &Folder, files: Vec<PathBuf>) -> anyhow::Result<()> {
    let files = if files.is_empty() { all(folder)? } else { files };
    let now = SystemTime::now();
    let rows = files.iter().map(|file| row(file, now)).collect::<anyhow::Result<Vec<_>>>()?;
    say(show(rows))?;
    Ok(())
}

fn all(folder: &Folder) -> anyhow::Result<Vec<PathBuf>> {
    let advice = || {
        let what = format!("there are no certificates in {}", folder.path().display());
        Advice::new(what, "make some with `tamis certs init`, or name a folder with --dir")
    };
    let entries = std::fs::read_dir(folder.path()).with_context(advice)?;
    let paths = entries.filter_map(Result::ok).map(|entry| entry.path());
    let mut files: Vec<_> = paths.filter(|path| path.extension().is_some_and(|kind| kind == "pem")).collect();
    files.sort();
    if files.is_empty() {
        bail!(advice());
    }
    Ok(files)
}

fn row(file: &Path, now: SystemTime) -> anyhow::Result<[String; 8]> {
    let facts = Facts::of(&facts::read(file)?).with_context(|| file.display().to_string())?;
    let name = file.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    let identity = facts.id.as_ref().map_or_else(|_| facts.subject.clone(), ToString::to_string);
    let left = facts.days_left(now).map_or_else(|| "EXPIRED".to_owned(), |days| days.to_string());
    let issuer = if facts.is_ca && facts.issuer == facts.subject { "itself".to_owned() } else { facts.issuer.clone() };
    let key = facts.key(&file.with_extension("key")).to_string();
    Ok([name, identity, facts.names.join("\n"), day(facts.not_before), day(facts.not_after), left, issuer, key])
}

fn show(rows: Vec<[String; 8]>) -> String {
    let mut table = table(&HEADER);
    right(&mut table, &[5]);
    table.add_rows(rows);
    render(&table)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certs::leaf::Leaf;

    #[test]
    fn a_row_says_who_how_long_and_whether_the_key_fits() {
        let place = tempfile::tempdir().unwrap();
        let folder = Folder::new(place.path().to_owned());
        let now = SystemTime::now();
        folder.init(&[Leaf::parse("gateway", &[]).unwrap()], now).unwrap();
        std::fs::copy(folder.key("ca"), folder.key("gateway")).unwrap();
        let text = show(all(&folder).unwrap().iter().map(|file| row(file, now).unwrap()).collect());
        for part in ["spiffe://tamis.local/gateway", "127.0.0.1", "itself", "3649", "89", "matches, 0600"] {
            assert!(text.contains(part), "{part} is missing in\n{text}");
        }
        assert!(text.contains("belongs to another certificate"), "{text}");
    }

    #[test]
    fn an_expired_certificate_cannot_be_overlooked() {
        let place = tempfile::tempdir().unwrap();
        let folder = Folder::new(place.path().to_owned());
        let long_ago = SystemTime::now() - std::time::Duration::from_secs(100 * 86_400);
        folder.init(&[Leaf::parse("client/dev", &[]).unwrap()], long_ago).unwrap();
        let row = row(&folder.certificate("client-dev"), SystemTime::now()).unwrap();
        assert_eq!(row[5], "EXPIRED");
    }

    #[test]
    fn an_empty_folder_is_said() {
        let place = tempfile::tempdir().unwrap();
        let error = all(&Folder::new(place.path().to_owned())).unwrap_err();
        assert!(crate::advice::report(&error).contains("tamis certs init"));
    }
}
