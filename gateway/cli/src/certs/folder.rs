//! A folder of certificates: `NAME.pem` and `NAME.key`, with the authority as `ca`.

use std::{
    fs::Permissions,
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::SystemTime,
};

use anyhow::Context as _;
use rustls::pki_types::CertificateDer;

use super::{
    authority::{Authority, Pair},
    facts,
    leaf::Leaf,
};
use crate::{advice::Advice, home::private_folder};

/// Name of the authority's files.
pub(crate) const AUTHORITY: &str = "ca";

/// A folder of certificates.
#[derive(Clone, Debug)]
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    pub(crate) fn certificate(&self, stem: &str) -> PathBuf {
        self.0.join(format!("{stem}.pem"))
    }

    pub(crate) fn key(&self, stem: &str) -> PathBuf {
        self.0.join(format!("{stem}.key"))
    }

    /// Whether any of the two files is there.
    pub(crate) fn has(&self, stem: &str) -> bool {
        self.certificate(stem).exists() || self.key(stem).exists()
    }

    /// Makes the folder, for its owner only.
    pub(crate) fn create(&self) -> anyhow::Result<()> {
        private_folder(&self.0)
    }

    /// Stores a key and its certificate, replacing what was there; each file whole or not at all.
    pub(crate) fn store(&self, stem: &str, pair: &Pair) -> anyhow::Result<()> {
        self.write(&self.key(stem), &pair.key, 0o600)?;
        self.write(&self.certificate(stem), &pair.certificate, 0o644)
    }

    /// The authority, if its key is here.
    pub(crate) fn authority(&self) -> anyhow::Result<Authority> {
        let read = |path: PathBuf| {
            let help =
                "`tamis certs init` makes an authority; with one of your own, issue certificates where its key is";
            let advice = Advice::new(format!("cannot sign certificates without {}", path.display()), help);
            std::fs::read_to_string(&path).context(advice)
        };
        let pair = Pair { certificate: read(self.certificate(AUTHORITY))?, key: read(self.key(AUTHORITY))? };
        Authority::parse(&pair).with_context(|| format!("cannot use the authority in {}", self.0.display()))
    }

    /// The authority's certificate.
    pub(crate) fn authority_certificate(&self) -> anyhow::Result<CertificateDer<'static>> {
        facts::read(&self.certificate(AUTHORITY))
    }

    /// Makes a new authority and certificates for these holders.
    pub(crate) fn init(&self, leaves: &[Leaf], now: SystemTime) -> anyhow::Result<()> {
        self.create()?;
        let (authority, pair) = Authority::create(now)?;
        self.store(AUTHORITY, &pair)?;
        leaves.iter().try_for_each(|leaf| self.store(&leaf.stem(), &authority.issue(leaf, now, super::LEAF_DAYS)?))
    }

    fn write(&self, path: &Path, text: &str, mode: u32) -> anyhow::Result<()> {
        let write = || {
            // The mode holds from the first byte on: nobody reads a key while it is written.
            let permissions = Permissions::from_mode(mode);
            let mut file = tempfile::Builder::new().prefix(".").permissions(permissions).tempfile_in(&self.0)?;
            file.write_all(text.as_bytes())?;
            file.persist(path).map_err(|error| error.error)
        };
        write().map(drop).with_context(|| format!("cannot write {}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_their_folder_are_for_their_owner_only() {
        let place = tempfile::tempdir().unwrap();
        let folder = Folder::new(place.path().join("certs"));
        folder.init(&[Leaf::parse("client/dev", &[]).unwrap()], SystemTime::now()).unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(folder.path()), 0o700);
        assert_eq!(mode(&folder.key("client-dev")), 0o600);
        assert_eq!(mode(&folder.key("ca")), 0o600);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 4);
    }

    #[test]
    fn the_mesh_can_use_what_init_makes() {
        let place = tempfile::tempdir().unwrap();
        let folder = Folder::new(place.path().to_owned());
        folder.init(&Leaf::of_the_mesh().unwrap(), SystemTime::now()).unwrap();
        for leaf in Leaf::of_the_mesh().unwrap() {
            let [ca, cert, key] =
                [folder.certificate("ca"), folder.certificate(&leaf.stem()), folder.key(&leaf.stem())]
                    .map(|path| path.display().to_string());
            let credentials = chassis::tls::Credentials::load(&chassis::tls::TlsSettings { ca, cert, key }).unwrap();
            assert_eq!(credentials.id, leaf.id);
        }
    }

    #[test]
    fn without_the_key_of_the_authority_nothing_is_signed() {
        let place = tempfile::tempdir().unwrap();
        let error = Folder::new(place.path().to_owned()).authority().err().unwrap();
        assert!(crate::advice::report(&error).contains("tamis certs init"));
    }
}
