//! The layers between a text's pooled vector and what its caller gets.

use candle_core::Tensor;
use candle_nn::VarBuilder;

use crate::{
    Error,
    encoder::Config,
    head::Head,
    manifest::{Manifest, Pooling, Task},
    weights::Weights,
};

/// The dense layers after pooling; a model that embeds has none, or the pooler only.
pub(super) struct Last {
    /// Only under [`Pooling::Pooler`].
    pooler: Option<Linear>,
    classifier: Option<(Classifier, Head)>,
    /// Only of [`Task::Rerank`]: the one logit of a cross-encoder.
    scorer: Option<Classifier>,
}

/// The layers of a checkpoint `...ForSequenceClassification`, from a pooled vector to logits.
pub(super) struct Classifier {
    /// RoBERTa and DistilBERT have a dense layer of their own where BERT has its pooler.
    hidden: Option<(Linear, Activation)>,
    output: Linear,
}

type Activation = fn(f32) -> f32;

impl Last {
    pub(super) fn load(manifest: &Manifest, config: &Config, weights: &Weights, hidden: usize) -> Result<Self, Error> {
        let refuse = |error: candle_core::Error| Error::load(format!("model {}", manifest.name), error);
        let pooling = manifest.text.as_ref().map(|recipe| recipe.pooling);
        let pooler = (pooling == Some(Pooling::Pooler))
            .then(|| Linear::read(&config.family.root(&weights.builder).pp("pooler.dense"), hidden, hidden))
            .transpose()
            .map_err(refuse)?;
        let classifier = match &manifest.head {
            None => None,
            Some(recipe) => {
                let head = Head::new(recipe, config.labels())?;
                let layers = Classifier::read(&weights.builder, hidden, head.labels.len()).map_err(refuse)?;
                Some((layers, head))
            }
        };
        let scorer = (manifest.task == Task::Rerank).then(|| Classifier::read(&weights.builder, hidden, 1));
        Ok(Self { pooler, classifier, scorer: scorer.transpose().map_err(refuse)? })
    }

    /// What the logits mean; none if the model makes vectors.
    pub(super) fn head(&self) -> Option<&Head> {
        self.classifier.as_ref().map(|(_, head)| head)
    }

    /// It ends in a vector, and not in logits.
    pub(super) fn makes_vectors(&self) -> bool {
        self.classifier.is_none() && self.scorer.is_none()
    }

    pub(super) fn forward(&self, mut values: Vec<f32>) -> Vec<f32> {
        if let Some(pooler) = &self.pooler {
            values = pooler.forward(&values);
            values.iter_mut().for_each(|x| *x = x.tanh());
        }
        if let Some((layers, _)) = &self.classifier {
            values = layers.forward(values);
        }
        if let Some(layers) = &self.scorer {
            values = layers.forward(values);
        }
        values
    }
}

// === impl Classifier ===

impl Classifier {
    /// Reads the layers that the checkpoint has. They tell more than its family does: a classifier that was trained on
    /// another pooling has one layer in any family.
    pub(super) fn read(checkpoint: &VarBuilder<'_>, inputs: usize, labels: usize) -> candle_core::Result<Self> {
        let square = |name: &str| Linear::read(&checkpoint.pp(name), inputs, inputs);
        if checkpoint.contains_tensor("classifier.out_proj.weight") {
            let output = Linear::read(&checkpoint.pp("classifier.out_proj"), inputs, labels)?;
            return Ok(Self { hidden: Some((square("classifier.dense")?, f32::tanh)), output });
        }
        let output = Linear::read(&checkpoint.pp("classifier"), inputs, labels)?;
        let hidden = if checkpoint.contains_tensor("pre_classifier.weight") {
            Some((square("pre_classifier")?, (|x| x.max(0.0)) as Activation))
        } else {
            None
        };
        Ok(Self { hidden, output })
    }

    /// The logits.
    pub(super) fn forward(&self, mut values: Vec<f32>) -> Vec<f32> {
        if let Some((layer, activation)) = &self.hidden {
            values = layer.forward(&values);
            values.iter_mut().for_each(|x| *x = activation(*x));
        }
        self.output.forward(&values)
    }
}

/// A dense layer for one vector at a time: too small for candle's products to pay.
pub(super) struct Linear {
    /// Rows of weights, one per output.
    rows: Vec<Vec<f32>>,
    bias: Vec<f32>,
}

// === impl Linear ===

impl Linear {
    pub(super) fn read(root: &VarBuilder<'_>, inputs: usize, outputs: usize) -> candle_core::Result<Self> {
        let weight: Tensor = root.get((outputs, inputs), "weight")?;
        Ok(Self { rows: weight.to_vec2()?, bias: root.get(outputs, "bias")?.to_vec1()? })
    }

    pub(super) fn forward(&self, vector: &[f32]) -> Vec<f32> {
        let dot = |row: &Vec<f32>| row.iter().zip(vector).map(|(w, x)| w * x).sum::<f32>();
        self.rows.iter().zip(&self.bias).map(|(row, bias)| dot(row) + bias).collect()
    }
}
