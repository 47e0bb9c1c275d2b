//! Certificates for a mesh that is about to start: made where there are none, renewed where they end soon, and never put
//! in the place of somebody else's.

use std::time::{Duration, SystemTime};

use anyhow::{Context as _, bail};
use rustls::pki_types::CertificateDer;

use super::{
    LEAF_DAYS,
    facts::{self, Facts, Key},
    folder::{AUTHORITY, Folder},
    leaf::Leaf,
};
use crate::advice::Advice;

/// A certificate that ends within this time is renewed: a mesh may run for days.
const RENEW_WITHIN: Duration = Duration::from_secs(10 * 24 * 60 * 60);

/// What a holder's certificate needs.
#[derive(Debug, PartialEq, Eq)]
enum State {
    Good,
    /// To be made, and why.
    Wanting(String),
    /// Not made by this authority, or for somebody else: only its owner may decide.
    Foreign(String),
}

/// Sees to it that every holder has a certificate; says what was done.
pub(crate) fn ensure(folder: &Folder, leaves: &[Leaf], now: SystemTime) -> anyhow::Result<Vec<String>> {
    if !folder.has(AUTHORITY) && !leaves.iter().any(|leaf| folder.has(&leaf.stem())) {
        folder.init(leaves, now)?;
        return Ok(vec![format!("made a development CA and {} certificates", leaves.len())]);
    }
    let certificate = folder.authority_certificate().with_context(|| {
        let help = "put the certificate of the authority that signed the others there as ca.pem, or start over with \
                    `tamis certs init --force`";
        Advice::new(format!("the certificates in {} have no authority", folder.path().display()), help)
    })?;
    let facts = Facts::of(&certificate)?;
    if facts.not_after <= now {
        let ended = super::day(facts.not_after);
        let help = "`tamis certs init --force` makes a new authority and new certificates for the whole mesh";
        bail!(Advice::new(format!("the authority in {} ended on {ended}", folder.path().display()), help));
    }
    let mut done = Vec::new();
    for leaf in leaves {
        match state(folder, leaf, &certificate, now) {
            State::Good => {}
            State::Wanting(why) => {
                folder.store(&leaf.stem(), &folder.authority()?.issue(leaf, now, LEAF_DAYS)?)?;
                done.push(format!("issued {}.pem: {why}", leaf.stem()));
            }
            State::Foreign(why) => {
                let path = folder.certificate(&leaf.stem());
                let help = "move it away and a new one is issued, or start over with `tamis certs init --force`";
                bail!(Advice::new(format!("cannot use {}: {why}", path.display()), help));
            }
        }
    }
    Ok(done)
}

fn state(folder: &Folder, leaf: &Leaf, authority: &CertificateDer<'_>, now: SystemTime) -> State {
    let stem = leaf.stem();
    let path = folder.certificate(&stem);
    if !path.exists() {
        return State::Wanting("it was missing".into());
    }
    let read = facts::read(&path).and_then(|der| Ok((Facts::of(&der)?, der)));
    let (facts, der) = match read {
        Ok(read) => read,
        Err(error) => return State::Foreign(format!("{:#}", error)),
    };
    if !facts::signed_by(&der, authority) {
        return State::Foreign("it was not signed by ca.pem beside it".into());
    }
    match &facts.id {
        Ok(id) if *id == leaf.id => {}
        Ok(id) => return State::Foreign(format!("it is for {id}, not for {}", leaf.id)),
        Err(error) => return State::Foreign(error.to_string()),
    }
    match facts.key(&folder.key(&stem)) {
        _ if facts.not_after <= now => State::Wanting("it had expired".into()),
        _ if facts.not_after <= now + RENEW_WITHIN => State::Wanting("it was about to expire".into()),
        Key::Matches(_) => State::Good,
        Key::Missing => State::Wanting("its key was missing".into()),
        key @ (Key::Differs | Key::Unreadable(_)) => State::Foreign(format!("its key {key}")),
    }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;
    use crate::{advice::report, certs::authority::Authority};

    const DAY: Duration = Duration::from_secs(86_400);

    fn mesh() -> (TempDir, Folder, Vec<Leaf>) {
        let place = tempfile::tempdir().unwrap();
        let folder = Folder::new(place.path().join("certs"));
        let leaves = ["gateway", "client/dev"].map(|identity| Leaf::parse(identity, &[]).unwrap());
        (place, folder, leaves.into())
    }

    fn bytes(folder: &Folder, stem: &str) -> Vec<u8> {
        std::fs::read(folder.certificate(stem)).unwrap()
    }

    #[test]
    fn an_empty_folder_gets_everything_once() {
        let (_place, folder, leaves) = mesh();
        let now = SystemTime::now();
        assert_eq!(ensure(&folder, &leaves, now).unwrap().len(), 1);
        let before = bytes(&folder, "gateway");
        assert!(ensure(&folder, &leaves, now).unwrap().is_empty());
        assert_eq!(bytes(&folder, "gateway"), before);
    }

    #[test]
    fn what_ends_soon_is_renewed_under_the_same_authority() {
        let (_place, folder, leaves) = mesh();
        let now = SystemTime::now();
        ensure(&folder, &leaves, now).unwrap();
        let authority = bytes(&folder, "ca");
        for (later, reason) in [(85, "about to expire"), (200, "had expired")] {
            let done = ensure(&folder, &leaves, now + DAY * later).unwrap();
            assert!(done.len() == 2 && done[0].contains(reason), "{done:?}");
        }
        assert_eq!(bytes(&folder, "ca"), authority);
    }

    #[test]
    fn a_missing_leaf_is_issued_alone() {
        let (_place, folder, leaves) = mesh();
        ensure(&folder, &leaves, SystemTime::now()).unwrap();
        std::fs::remove_file(folder.key("client-dev")).unwrap();
        let done = ensure(&folder, &leaves, SystemTime::now()).unwrap();
        assert_eq!(done, ["issued client-dev.pem: its key was missing"]);
    }

    #[test]
    fn certificates_of_another_authority_are_left_alone() {
        let (_place, folder, leaves) = mesh();
        let now = SystemTime::now();
        ensure(&folder, &leaves, now).unwrap();
        let (other, _) = Authority::create(now).unwrap();
        folder.store("gateway", &other.issue(&leaves[0], now, 90).unwrap()).unwrap();
        let before = bytes(&folder, "gateway");
        let error = report(&ensure(&folder, &leaves, now).unwrap_err());
        assert!(error.contains("not signed by ca.pem"), "{error}");
        assert_eq!(bytes(&folder, "gateway"), before);
    }

    #[test]
    fn an_authority_without_its_key_is_used_and_never_replaced() {
        let (_place, folder, leaves) = mesh();
        let now = SystemTime::now();
        ensure(&folder, &leaves, now).unwrap();
        std::fs::remove_file(folder.key("ca")).unwrap();
        assert!(ensure(&folder, &leaves, now).unwrap().is_empty());
        std::fs::remove_file(folder.certificate("gateway")).unwrap();
        let before = bytes(&folder, "ca");
        assert!(report(&ensure(&folder, &leaves, now).unwrap_err()).contains("ca.key"));
        assert_eq!(bytes(&folder, "ca"), before);
    }

    #[test]
    fn certificates_without_their_authority_are_left_alone() {
        let (_place, folder, leaves) = mesh();
        ensure(&folder, &leaves, SystemTime::now()).unwrap();
        std::fs::remove_file(folder.certificate("ca")).unwrap();
        std::fs::remove_file(folder.key("ca")).unwrap();
        let error = report(&ensure(&folder, &leaves, SystemTime::now()).unwrap_err());
        assert!(error.contains("have no authority"), "{error}");
        assert!(!folder.has("ca"));
    }

    #[test]
    fn an_authority_that_ended_is_said() {
        let (_place, folder, leaves) = mesh();
        ensure(&folder, &leaves, SystemTime::now()).unwrap();
        let error = report(&ensure(&folder, &leaves, SystemTime::now() + DAY * 4000).unwrap_err());
        assert!(error.contains("init --force"), "{error}");
    }
}
