//! A look into an encoder while it computes: what calibration for int8 is made from.

use candle_core::Result;

use super::{Config, Packed, bert::Bert};
use crate::{Error, manifest::Site, weights::Weights};

/// Sees every row that goes into the products of a site.
pub(crate) trait Observe {
    /// One token's row, as long as a vector.
    fn observe(&mut self, layer: usize, site: Site, row: &[f32]);
}

/// A network that can be looked into, in f32.
pub(crate) struct Reference(Bert);

impl Reference {
    pub(crate) fn load(config: &Config, weights: &Weights) -> std::result::Result<Self, Error> {
        Bert::load(config, weights).map(Self)
    }

    /// Computes one text.
    pub(crate) fn observe(&self, ids: &[u32], seen: &mut dyn Observe) -> std::result::Result<(), Error> {
        let text = Packed { ids, ends: &[ids.len()], types: None };
        self.0.observe(text, seen).map_err(|error| Error::load("the encoder", error))
    }
}

/// For each input of a site the greatest magnitude of the weights that it is multiplied with, as the checkpoint has them.
pub(crate) fn weight_maxima(
    config: &Config,
    weights: &Weights,
    layer: usize,
    site: Site,
) -> std::result::Result<Vec<f32>, Error> {
    let names = config.family.names();
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
