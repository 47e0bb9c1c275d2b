//! The layers between a text's pooled vector and what its caller gets.

use candle_core::{Tensor, cpu::erf::erf_f32};
use candle_nn::VarBuilder;

use crate::{
    Error,
    encoder::{Activation, Config},
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
    /// None after BERT's pooler.
    hidden: Option<Hidden>,
    output: Linear,
}

/// The dense layer of a classifier that the other families have where BERT has its pooler.
struct Hidden {
    layer: Linear,
    activation: fn(f32) -> f32,
    /// Only of ModernBERT.
    norm: Option<Norm>,
}

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
                let layers = Classifier::read(config, &weights.builder, head.labels.len()).map_err(refuse)?;
                Some((layers, head))
            }
        };
        let scorer = (manifest.task == Task::Rerank).then(|| Classifier::read(config, &weights.builder, 1));
        Ok(Self { pooler, classifier, scorer: scorer.transpose().map_err(refuse)? })
    }

    /// Memory that the layers take.
    pub(super) fn parameter_bytes(&self) -> u64 {
        let classifiers = self.classifier.iter().map(|(layers, _)| layers).chain(&self.scorer);
        let numbers = self.pooler.iter().map(Linear::parameters).chain(classifiers.map(Classifier::parameters));
        (numbers.sum::<usize>() * size_of::<f32>()) as u64
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
    pub(super) fn read(config: &Config, checkpoint: &VarBuilder<'_>, labels: usize) -> candle_core::Result<Self> {
        let inputs = config.hidden_size;
        let plain = |name: &str, activation| {
            let layer = Linear::read(&checkpoint.pp(name), inputs, inputs)?;
            candle_core::Result::Ok(Hidden { layer, activation, norm: None })
        };
        if checkpoint.contains_tensor("classifier.out_proj.weight") {
            let output = Linear::read(&checkpoint.pp("classifier.out_proj"), inputs, labels)?;
            return Ok(Self { hidden: Some(plain("classifier.dense", f32::tanh)?), output });
        }
        let output = Linear::read(&checkpoint.pp("classifier"), inputs, labels)?;
        let hidden = if let Some(modern) = &config.modern {
            Some(Hidden {
                layer: Linear::read_maybe_biased(&checkpoint.pp("head.dense"), inputs, inputs)?,
                activation: function(modern.classifier_activation),
                norm: Some(Norm::read(&checkpoint.pp("head.norm"), inputs, config.layer_norm_eps)?),
            })
        } else if checkpoint.contains_tensor("pre_classifier.weight") {
            Some(plain("pre_classifier", function(Activation::Relu))?)
        } else {
            None
        };
        Ok(Self { hidden, output })
    }

    fn parameters(&self) -> usize {
        let hidden = self.hidden.iter().map(|hidden| {
            let norm = hidden.norm.iter().map(|norm| norm.scale.len() + norm.shift.len()).sum::<usize>();
            hidden.layer.parameters() + norm
        });
        self.output.parameters() + hidden.sum::<usize>()
    }

    /// The logits.
    pub(super) fn forward(&self, mut values: Vec<f32>) -> Vec<f32> {
        if let Some(Hidden { layer, activation, norm }) = &self.hidden {
            values = layer.forward(&values);
            values.iter_mut().for_each(|x| *x = activation(*x));
            if let Some(norm) = norm {
                norm.forward(&mut values);
            }
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

    /// The same where a checkpoint may leave out the bias.
    fn read_maybe_biased(root: &VarBuilder<'_>, inputs: usize, outputs: usize) -> candle_core::Result<Self> {
        let weight: Tensor = root.get((outputs, inputs), "weight")?;
        Ok(Self { rows: weight.to_vec2()?, bias: read_or_zeros(root, outputs, "bias")? })
    }

    fn parameters(&self) -> usize {
        self.rows.iter().map(Vec::len).sum::<usize>() + self.bias.len()
    }

    pub(super) fn forward(&self, vector: &[f32]) -> Vec<f32> {
        let dot = |row: &Vec<f32>| row.iter().zip(vector).map(|(w, x)| w * x).sum::<f32>();
        self.rows.iter().zip(&self.bias).map(|(row, bias)| dot(row) + bias).collect()
    }
}

/// Gives a vector mean 0 and variance 1, then a scale and a shift per component.
struct Norm {
    scale: Vec<f32>,
    shift: Vec<f32>,
    epsilon: f32,
}

// === impl Norm ===

impl Norm {
    fn read(root: &VarBuilder<'_>, width: usize, epsilon: f64) -> candle_core::Result<Self> {
        let scale = root.get(width, "weight")?.to_vec1()?;
        Ok(Self { scale, shift: read_or_zeros(root, width, "bias")?, epsilon: epsilon as f32 })
    }

    fn forward(&self, vector: &mut [f32]) {
        let count = vector.len() as f32;
        let mean = vector.iter().sum::<f32>() / count;
        let variance = vector.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / count;
        let inverse = (variance + self.epsilon).sqrt().recip();
        for ((x, scale), shift) in vector.iter_mut().zip(&self.scale).zip(&self.shift) {
            *x = (*x - mean) * inverse * scale + shift;
        }
    }
}

fn read_or_zeros(root: &VarBuilder<'_>, width: usize, name: &str) -> candle_core::Result<Vec<f32>> {
    if root.contains_tensor(name) { root.get(width, name)?.to_vec1() } else { Ok(vec![0.0; width]) }
}

fn function(activation: Activation) -> fn(f32) -> f32 {
    match activation {
        // x times the normal distribution's area below x (Hendrycks and Gimpel, 2016).
        Activation::Gelu => |x| 0.5 * x * (1.0 + erf_f32(x * std::f32::consts::FRAC_1_SQRT_2)),
        Activation::GeluTanh => |x| {
            const ROOT_2_OVER_PI: f32 = 0.797_884_6;
            0.5 * x * (1.0 + (ROOT_2_OVER_PI * (x + 0.044_715 * x * x * x)).tanh())
        },
        Activation::Relu => |x| x.max(0.0),
    }
}
