//! The seam between texts and the networks that read them.

use kernels::{Cpu, Precision};

use crate::{
    Error, ItemError,
    compute::{ComputePath, Plan},
    manifest::Smoothing,
    weights::Weights,
};

mod config;
mod family;
mod fused;
pub(crate) mod observe;
mod stock;

pub(crate) use config::{Activation, ClassifierPooling, Config};
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

/// Sees the vectors of a text's tokens, of which there is at least one.
pub(crate) type Reader<'a> = dyn FnMut(&[&[f32]]) + 'a;

/// A network that gives every token a vector.
///
/// Texts do not see each other. On a CPU a text's vectors have the same bits in any company; on a GPU, where texts are
/// computed together and padded, sums may be rounded in another order.
pub(crate) trait Encoder: Send + Sync {
    /// Components of a vector.
    fn dimensions(&self) -> usize;

    /// Memory that the encoder's parameters take, mapped tables included.
    fn parameter_bytes(&self) -> u64;

    /// Lends `read` the vectors of each text's tokens, text by text in their order.
    ///
    /// `wanted` is asked between layers; once it says no the rest is not computed, and the error is
    /// [`crate::Reason::Abandoned`].
    fn encode(&self, batch: Packed<'_>, wanted: &dyn Fn() -> bool, read: &mut Reader<'_>) -> Result<(), ItemError>;
}

/// The precisions that there are kernels for; none: the checkpoint has no fast path.
pub(crate) fn kernel_precisions(config: &Config) -> &'static [Precision] {
    if fused::fits(config) { &Precision::ALL } else { &[] }
}

/// The network of the checkpoint, computed as the plan says. `smoothing` goes with int8.
pub(crate) fn load(
    config: &Config,
    weights: &Weights,
    plan: Plan,
    smoothing: Option<&Smoothing>,
) -> Result<Box<dyn Encoder>, Error> {
    match plan.path {
        ComputePath::Candle => Ok(Box::new(stock::Stock::load(config, &weights.on(&plan.device.open()?))?)),
        ComputePath::Kernels(tier) => {
            let Some(cpu) = Cpu::with(tier) else {
                return Err(Error::load("compute.path", format!("this CPU has not the instructions of {tier}")));
            };
            Ok(Box::new(fused::Fused::load(config, weights, (cpu, plan.precision), smoothing)?))
        }
    }
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
