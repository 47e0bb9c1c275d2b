//! The layers between a text's pooled vector and what its caller gets.

use candle_core::Tensor;
use candle_nn::VarBuilder;

use crate::{
    Error,
    encoder::{self, Config},
    head::Head,
    manifest::{Manifest, Pooling},
    weights::Weights,
};

/// The dense layers after pooling; a model that embeds has none, or the pooler only.
pub(super) struct Last {
    /// Only under [`Pooling::Pooler`].
    pooler: Option<Linear>,
    classifier: Option<(Linear, Head)>,
}

impl Last {
    pub(super) fn load(manifest: &Manifest, config: &Config, weights: &Weights, hidden: usize) -> Result<Self, Error> {
        let refuse = |error: candle_core::Error| Error::load(format!("model {}", manifest.name), error);
        let pooling = manifest.text.as_ref().map(|recipe| recipe.pooling);
        let pooler = (pooling == Some(Pooling::Pooler))
            .then(|| Linear::read(&encoder::root(&weights.builder).pp("pooler.dense"), hidden, hidden))
            .transpose()
            .map_err(refuse)?;
        let classifier = match &manifest.head {
            None => None,
            Some(recipe) => {
                let head = Head::new(recipe, config.labels())?;
                let layer = Linear::read(&weights.builder.pp("classifier"), hidden, head.labels.len());
                Some((layer.map_err(refuse)?, head))
            }
        };
        Ok(Self { pooler, classifier })
    }

    /// What the logits mean; none if the model makes vectors.
    pub(super) fn head(&self) -> Option<&Head> {
        self.classifier.as_ref().map(|(_, head)| head)
    }

    pub(super) fn forward(&self, mut values: Vec<f32>) -> Vec<f32> {
        if let Some(pooler) = &self.pooler {
            values = pooler.forward(&values);
            values.iter_mut().for_each(|x| *x = x.tanh());
        }
        if let Some((layer, _)) = &self.classifier {
            values = layer.forward(&values);
        }
        values
    }
}

/// A dense layer for one vector at a time: too small for candle's products to pay.
struct Linear {
    /// Rows of weights, one per output.
    rows: Vec<Vec<f32>>,
    bias: Vec<f32>,
}

impl Linear {
    fn read(root: &VarBuilder<'_>, inputs: usize, outputs: usize) -> candle_core::Result<Self> {
        let weight: Tensor = root.get((outputs, inputs), "weight")?;
        Ok(Self { rows: weight.to_vec2()?, bias: root.get(outputs, "bias")?.to_vec1()? })
    }

    fn forward(&self, vector: &[f32]) -> Vec<f32> {
        let dot = |row: &Vec<f32>| row.iter().zip(vector).map(|(w, x)| w * x).sum::<f32>();
        self.rows.iter().zip(&self.bias).map(|(row, bias)| dot(row) + bias).collect()
    }
}
