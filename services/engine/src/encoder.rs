//! The seam between texts and the networks that read them.

use kernels::Precision;

use crate::{Error, ItemError, weights::Weights};

mod bert;
mod config;
mod family;
pub(crate) mod observe;

pub(crate) use config::Config;
pub(crate) use family::Family;

/// Several texts' tokens, one after the other, without padding.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Packed<'a> {
    /// Token ids of all texts.
    pub(crate) ids: &'a [u32],
    /// Where each text ends in `ids`, in rising order: as many as there are texts.
    pub(crate) ends: &'a [usize],
    /// Which text of a pair each token belongs to, 0 or 1; `None`: there are no pairs.
    pub(crate) types: Option<&'a [u32]>,
}

/// A network that gives every token a vector.
///
/// Texts do not see each other: a text's vectors are the same in any company, up to the rounding of f32 sums.
pub(crate) trait Encoder: Send + Sync {
    /// Components of a vector.
    fn dimensions(&self) -> usize;

    /// Writes the vectors of all tokens, in their order, to `out`, whose length is tokens x dimensions.
    ///
    /// `wanted` is asked between layers; once it says no the rest is not computed, and the error is
    /// [`crate::Reason::Abandoned`].
    fn encode(&self, batch: Packed<'_>, wanted: &dyn Fn() -> bool, out: &mut [f32]) -> Result<(), ItemError>;
}

/// The precisions that there are kernels for; none: the checkpoint has no fast path.
pub(crate) fn kernel_precisions(_: &Config) -> &'static [Precision] {
    &[]
}

/// The network of the checkpoint.
pub(crate) fn load(config: &Config, weights: &Weights) -> Result<Box<dyn Encoder>, Error> {
    Ok(Box::new(bert::Bert::load(config, weights)?))
}

// === impl Packed ===

impl Packed<'_> {
    /// Start and length of each text.
    pub(crate) fn texts(&self) -> impl Iterator<Item = (usize, usize)> {
        let mut start = 0;
        self.ends.iter().map(move |&end| {
            let text = (start, end - start);
            start = end;
            text
        })
    }
}
