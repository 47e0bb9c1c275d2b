//! A look into an encoder while it computes: what calibration for int8 is made from.

use candle_core::Result;

use kernels::{Cpu, Precision};

use super::{Config, fused::Fused};
use crate::{Error, manifest::Site, weights::Weights};

/// Sees every row that goes into the products of a site.
pub(crate) trait Observe {
    /// One token's row, as long as a vector.
    fn observe(&mut self, layer: usize, site: Site, row: &[f32]);
}

/// A network that can be looked into, in f32.
pub(crate) struct Reference(Fused);

impl Reference {
    /// Of a checkpoint that has kernels: only those have int8.
    pub(crate) fn load(config: &Config, weights: &Weights) -> std::result::Result<Self, Error> {
        Fused::load(config, weights, (Cpu::best(), Precision::F32), None).map(Self)
    }

    /// Computes one text.
    pub(crate) fn observe(&self, ids: &[u32], seen: &mut dyn Observe) {
        self.0.observe(ids, seen);
    }
}

/// For each input of a site the greatest magnitude of the weights that it is multiplied with, as the checkpoint has them.
pub(crate) fn weight_maxima(
    config: &Config,
    weights: &Weights,
    layer: usize,
    site: Site,
) -> std::result::Result<Vec<f32>, Error> {
    let Some(names) = config.family.names() else {
        return Err(Error::load("config.json", format!("the family {:?} has no int8", config.family)));
    };
    let (products, outputs) = match site {
        Site::Attention => (&[names.query, names.key, names.value][..], config.hidden_size),
        Site::FeedForward => (&[names.up][..], config.intermediate_size),
    };
    let root = config.family.root(&weights.builder).pp(names.layers).pp(layer);
    let read = |name: &&str| -> Result<Vec<Vec<f32>>> {
        root.pp(*name).get((outputs, config.hidden_size), "weight")?.to_vec2()
    };
    let mut maxima = vec![0.0_f32; config.hidden_size];
    for name in products {
        for row in read(name).map_err(|error| Error::load("model.safetensors", error))? {
            maxima.iter_mut().zip(row).for_each(|(max, weight)| *max = max.max(weight.abs()));
        }
    }
    Ok(maxima)
}
