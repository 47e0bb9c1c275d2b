//! Certificates: there, for the right holder, of this authority, valid for some time, and their keys private.

use std::time::{Duration, SystemTime};

use chassis::spiffe::SpiffeId;
use rustls::pki_types::CertificateDer;

use super::finding::Finding;
use crate::certs::{
    day,
    facts::{self, Facts, Key},
    folder::{AUTHORITY, Folder},
    leaf::Leaf,
};

const CHECK: &str = "certificate";
/// A certificate that ends within this time is to be renewed now.
const SOON: Duration = Duration::from_secs(7 * 86_400);
/// Clocks of machines may differ by this much.
const CLOCK_SKEW: Duration = Duration::from_secs(60);

/// A certificate as it was found.
#[derive(Debug)]
pub(crate) struct Seen {
    /// Name of its files, without extension.
    stem: String,
    /// Who it must be for; nothing if anybody will do.
    expected: Option<SpiffeId>,
    /// Its contents, or why they cannot be read.
    facts: Result<Facts, String>,
    key: Key,
    /// Whether the authority of the folder signed it.
    ours: bool,
    key_path: String,
}

/// Looks at all certificates of a folder, those that the mesh needs and others.
pub(crate) fn check(folder: &Folder, leaves: &[Leaf], now: SystemTime) -> Vec<Finding> {
    let mut stems: Vec<_> = leaves.iter().map(|leaf| (leaf.stem(), Some(leaf.id.clone()))).collect();
    for stem in others(folder) {
        if stem != AUTHORITY && stems.iter().all(|(known, _)| *known != stem) {
            stems.push((stem, None));
        }
    }
    if !folder.has(AUTHORITY) && stems.iter().all(|(stem, _)| !folder.has(stem)) {
        let what = format!("there are none in {} yet", folder.path().display());
        return vec![Finding::warn(CHECK, "all", what).help("`tamis up` and `tamis certs init` make them")];
    }
    let authority = folder.authority_certificate().ok();
    let mut findings = vec![judge_authority(&authority_facts(folder), now)];
    for (stem, expected) in stems {
        findings.push(judge(&look(folder, stem, expected, authority.as_ref()), now));
    }
    findings
}

/// What is to be said about a certificate: the worst of it.
pub(crate) fn judge(seen: &Seen, now: SystemTime) -> Finding {
    let fail = |what: String| Finding::fail(CHECK, &seen.stem, what);
    let again = renewal(seen);
    let facts = match &seen.facts {
        Ok(facts) => facts,
        Err(why) => return fail(why.clone()).help(again),
    };
    if !seen.ours {
        let help = format!("put the certificate of its authority there as ca.pem, or {again}");
        return fail(format!("the authority in ca.pem did not sign it; `{}` did", facts.issuer)).help(help);
    }
    let id = match &facts.id {
        Ok(id) => id,
        Err(error) => return fail(format!("it names no identity: {error}")).help(again),
    };
    if let Some(expected) = seen.expected.as_ref().filter(|expected| *expected != id) {
        return fail(format!("it is for {id}, not {expected}")).help(again);
    }
    if facts.not_before > now + CLOCK_SKEW {
        let help = "set the clock of this machine, or wait; others refuse it until then";
        return fail(format!("it is valid from {} on, which is in the future", day(facts.not_before))).help(help);
    }
    if facts.not_after <= now {
        return fail(format!("it expired on {}", day(facts.not_after))).help(again);
    }
    match judge_key(&seen.key, &seen.key_path) {
        Some((what, help)) => return fail(what).help(help.unwrap_or(again)),
        None if facts.not_after <= now + SOON => {
            return Finding::warn(CHECK, &seen.stem, format!("it ends on {}", day(facts.not_after))).help(again);
        }
        None => {}
    }
    let days = facts.days_left(now).unwrap_or(0);
    Finding::ok(CHECK, &seen.stem, format!("{id}, {days} days left"))
}

fn judge_key(key: &Key, path: &str) -> Option<(String, Option<String>)> {
    match key {
        Key::Matches(mode) if mode & 0o077 == 0 => None,
        Key::Matches(mode) => {
            Some((format!("others may read its key: mode {mode:04o}"), Some(format!("chmod 600 {path}"))))
        }
        Key::Differs => Some(("its key belongs to another certificate".to_owned(), None)),
        Key::Missing => Some(("its key is not here".to_owned(), None)),
        Key::Unreadable(why) => {
            Some((format!("its key cannot be read: {why}"), Some(format!("see that {path} is yours"))))
        }
    }
}

fn judge_authority(authority: &Result<(Facts, Key, String), String>, now: SystemTime) -> Finding {
    let again = "`tamis certs init --force` makes a new authority and new certificates for the whole mesh";
    let fail = |what: String| Finding::fail(CHECK, AUTHORITY, what);
    let (facts, key, key_path) = match authority {
        Ok(authority) => authority,
        Err(why) => {
            let help = format!("put the certificate of the authority that signed the others there, or\n{again}");
            return fail(why.clone()).help(help);
        }
    };
    if !facts.is_ca {
        return fail("it is no certificate of an authority".to_owned()).help(again);
    }
    if facts.not_before > now + CLOCK_SKEW {
        let what = format!("it is valid from {} on, which is in the future", day(facts.not_before));
        return fail(what).help("set the clock of this machine");
    }
    if facts.not_after <= now {
        return fail(format!("it expired on {}", day(facts.not_after))).help(again);
    }
    match key {
        // The key of an authority is best kept elsewhere.
        Key::Missing => {}
        key => {
            if let Some((what, help)) = judge_key(key, key_path) {
                return fail(what).help(help.unwrap_or_else(|| again.to_owned()));
            }
        }
    }
    let days = facts.days_left(now).unwrap_or(0);
    if facts.not_after <= now + SOON {
        return Finding::warn(CHECK, AUTHORITY, format!("it ends on {}", day(facts.not_after))).help(again);
    }
    Finding::ok(CHECK, AUTHORITY, format!("{}, {days} days left", facts.subject))
}

/// The command that makes a new one.
fn renewal(seen: &Seen) -> String {
    let id = seen.expected.as_ref().or_else(|| seen.facts.as_ref().ok().and_then(|facts| facts.id.as_ref().ok()));
    let id = id.map_or_else(|| seen.stem.replacen('-', "/", 1), ToString::to_string);
    let path = id.strip_prefix("spiffe://tamis.local/").unwrap_or(&id);
    format!("`tamis certs issue {path} --force` makes a new one; processes that run take it when they start again")
}

fn look(folder: &Folder, stem: String, expected: Option<SpiffeId>, authority: Option<&CertificateDer<'_>>) -> Seen {
    let (certificate, key_path) = (folder.certificate(&stem), folder.key(&stem));
    let der = if certificate.exists() {
        facts::read(&certificate).map_err(|error| format!("{error:#}"))
    } else {
        Err(format!("{} is not here", certificate.display()))
    };
    let facts = der.as_ref().map_err(Clone::clone).and_then(|der| Facts::of(der).map_err(|error| format!("{error:#}")));
    let ours = matches!((&der, authority), (Ok(der), Some(authority)) if facts::signed_by(der, authority));
    let key = facts.as_ref().map_or(Key::Missing, |facts| facts.key(&key_path));
    Seen { stem, expected, facts, key, ours, key_path: key_path.display().to_string() }
}

fn authority_facts(folder: &Folder) -> Result<(Facts, Key, String), String> {
    let der = folder.authority_certificate().map_err(|error| format!("{error:#}"))?;
    let facts = Facts::of(&der).map_err(|error| format!("{error:#}"))?;
    let path = folder.key(AUTHORITY);
    let key = facts.key(&path);
    Ok((facts, key, path.display().to_string()))
}

fn others(folder: &Folder) -> Vec<String> {
    let entries = std::fs::read_dir(folder.path()).into_iter().flatten().flatten().map(|entry| entry.path());
    let stems = entries.filter(|path| path.extension().is_some_and(|extension| extension == "pem"));
    let mut stems: Vec<_> = stems.filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned())).collect();
    stems.sort();
    stems
}

#[cfg(test)]
mod tests {
    use std::{fs::Permissions, os::unix::fs::PermissionsExt as _};

    use super::*;
    use crate::doctor::finding::Mark;

    const DAY: Duration = Duration::from_secs(86_400);

    fn folder(made: SystemTime) -> (tempfile::TempDir, Folder) {
        let place = tempfile::tempdir().unwrap();
        let folder = Folder::new(place.path().join("certs"));
        folder.init(&Leaf::of_the_mesh().unwrap(), made).unwrap();
        (place, folder)
    }

    #[track_caller]
    fn check_one(folder: &Folder, now: SystemTime, stem: &str, mark: Mark, parts: &[&str]) {
        let findings = check(folder, &Leaf::of_the_mesh().unwrap(), now);
        let finding = findings.iter().find(|finding| finding.subject == stem).unwrap();
        let text = format!("{} {}", finding.what, finding.help.clone().unwrap_or_default());
        assert_eq!(finding.mark, mark, "{text}");
        assert!(mark == Mark::Ok || finding.help.is_some(), "{text}");
        for part in parts {
            assert!(text.contains(part), "{part} is missing in: {text}");
        }
    }

    #[test]
    fn fresh_certificates_are_all_right() {
        let now = SystemTime::now();
        let (_place, folder) = folder(now);
        let findings = check(&folder, &Leaf::of_the_mesh().unwrap(), now);
        assert!(findings.iter().all(|finding| finding.mark == Mark::Ok), "{findings:#?}");
        assert_eq!(findings.len(), 6);
    }

    #[test]
    fn expiry_is_seen_a_week_before() {
        let now = SystemTime::now();
        let (_place, folder) = folder(now);
        check_one(&folder, now + DAY * 82, "gateway", Mark::Ok, &["7 days left"]);
        check_one(&folder, now + DAY * 84, "gateway", Mark::Warn, &["it ends on", "certs issue gateway --force"]);
        check_one(&folder, now + DAY * 91, "embedding", Mark::Fail, &["expired", "certs issue service/embedding"]);
        check_one(&folder, now + DAY * 3700, "ca", Mark::Fail, &["expired", "certs init --force"]);
    }

    #[test]
    fn a_clock_that_is_behind_is_named() {
        let now = SystemTime::now();
        let (_place, folder) = folder(now);
        check_one(&folder, now - DAY, "client-dev", Mark::Fail, &["in the future", "clock"]);
        check_one(&folder, now - DAY, "ca", Mark::Fail, &["in the future", "clock"]);
    }

    #[test]
    fn a_key_that_others_may_read_is_named_with_its_remedy() {
        let now = SystemTime::now();
        let (_place, folder) = folder(now);
        std::fs::set_permissions(folder.key("gateway"), Permissions::from_mode(0o644)).unwrap();
        check_one(&folder, now, "gateway", Mark::Fail, &["0644", "chmod 600"]);
        check_one(&folder, now, "ca", Mark::Ok, &[]);
    }

    #[test]
    fn what_does_not_belong_together_is_named() {
        let now = SystemTime::now();
        let (_place, folder) = folder(now);
        std::fs::copy(folder.key("embedding"), folder.key("vision")).unwrap();
        check_one(&folder, now, "vision", Mark::Fail, &["belongs to another certificate"]);
        std::fs::remove_file(folder.key("embedding")).unwrap();
        check_one(&folder, now, "embedding", Mark::Fail, &["its key is not here"]);
        std::fs::copy(folder.certificate("gateway"), folder.certificate("client-dev")).unwrap();
        check_one(&folder, now, "client-dev", Mark::Fail, &["it is for spiffe://tamis.local/gateway, not"]);
        std::fs::remove_file(folder.certificate("classification")).unwrap();
        check_one(&folder, now, "classification", Mark::Fail, &["is not here", "certs issue service/classification"]);
        std::fs::write(folder.certificate("gateway"), "no PEM").unwrap();
        check_one(&folder, now, "gateway", Mark::Fail, &["cannot read"]);
    }

    #[test]
    fn a_certificate_of_another_authority_is_named() {
        let now = SystemTime::now();
        let ((_place, ours), (_other_place, other)) = (folder(now), folder(now));
        std::fs::copy(other.certificate("gateway"), ours.certificate("gateway")).unwrap();
        check_one(&ours, now, "gateway", Mark::Fail, &["did not sign it"]);
        std::fs::remove_file(ours.certificate("ca")).unwrap();
        check_one(&ours, now, "ca", Mark::Fail, &["ca.pem"]);
    }

    #[test]
    fn none_at_all_is_where_everybody_begins() {
        let place = tempfile::tempdir().unwrap();
        let folder = Folder::new(place.path().to_owned());
        check_one(&folder, SystemTime::now(), "all", Mark::Warn, &["tamis up"]);
    }
}
