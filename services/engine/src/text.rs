//! Texts to vectors or logits.

use std::sync::Arc;

use crate::{
    Error, ItemError, Model, ModelInfo, Parts, Reason, Watch,
    encoder::{self, Config, Encoder, Packed},
    head::Head,
    info::Measured,
    manifest::{ModelFiles, Pooling},
    parts,
    text::{last::Last, over::Over},
    tokenize::{Tokenized, Tokens, Truncation},
    weights::Weights,
};

mod last;
mod over;

/// English has a token per four to five bytes; a low guess is the safe side for a budget.
const BYTES_PER_TOKEN: usize = 4;

/// A text encoder with its tokenizer, pooling and, if it classifies, its last layer.
pub struct TextModel {
    info: ModelInfo,
    limits: TextLimits,
    tokens: Arc<Tokens>,
    encoder: Arc<dyn Encoder>,
    pooling: Pooling,
    last: Last,
    /// Only if the model is a head over another one; the parts above are that one's.
    over: Option<Over>,
}

/// Bounds that are checked before a text is tokenized.
#[derive(Clone, Copy, Debug)]
pub struct TextLimits {
    /// Most bytes of one text.
    pub bytes_max: usize,
}

/// One text.
#[derive(Clone, Debug)]
pub struct TextInput {
    /// What to read.
    pub text: String,
    /// What happens if it is too long.
    pub truncation: Truncation,
}

/// What became of one text.
#[derive(Clone, Debug)]
pub struct TextOutput {
    /// The pooled vector, not normalised; where the model has a head, the logits.
    pub values: Vec<f32>,
    /// Tokens that were computed, special tokens included.
    pub tokens: u32,
    /// The end of the text was cut off.
    pub truncated: bool,
}

/// Scales a vector to length 1. A vector of zeros stays one.
pub fn normalize(vector: &mut [f32]) {
    let norm = vector.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
    if norm > 0.0 {
        vector.iter_mut().for_each(|x| *x = (f64::from(*x) / norm) as f32);
    }
}

// === impl TextModel ===

impl TextModel {
    /// Loads a model for texts that shares nothing with others.
    pub fn load(files: &ModelFiles, limits: TextLimits) -> Result<Self, Error> {
        Self::load_sharing(files, limits, &Parts::default())
    }

    /// Loads a model for texts. What it has in common with models that were loaded with the same `parts` is in memory
    /// once.
    pub fn load_sharing(files: &ModelFiles, limits: TextLimits, parts: &Parts) -> Result<Self, Error> {
        let manifest = &files.manifest;
        if let Some(base) = &files.base {
            return Self::load_over(files, base, limits, parts);
        }
        let Some(recipe) = &manifest.text else {
            return Err(Error::load(
                format!("model {}", manifest.name),
                format!("its task is {}, which reads no texts", manifest.task),
            ));
        };
        let config = Config::load(files)?;
        let weights = Weights::map(&files.path("model.safetensors"))?;
        let network = || encoder::load(&config, &weights).map(Arc::from);
        let encoder = parts.encoders.share(parts::key(manifest, &["config.json", "model.safetensors"]), network)?;
        let tokenizer = format!("{} {}", parts::key(manifest, &["tokenizer.json"]), recipe.max_tokens);
        let tokens = || Tokens::load(&files.path("tokenizer.json"), recipe.max_tokens).map(Arc::new);
        let hidden = encoder.dimensions();
        let last = Last::load(manifest, &config, &weights, hidden)?;
        let measured = Measured {
            max_input_tokens: recipe.max_tokens,
            dimensions: if last.head().is_some() { 0 } else { hidden as u32 },
            labels: last.head().map(|head| head.labels.clone()).unwrap_or_default(),
            parameter_bytes: weights.bytes,
        };
        Ok(Self {
            info: ModelInfo::new(manifest, measured),
            limits,
            tokens: parts.tokens.share(tokenizer, tokens)?,
            encoder,
            pooling: recipe.pooling,
            last,
            over: None,
        })
    }

    /// Loads a head over an embedding model.
    fn load_over(files: &ModelFiles, base: &ModelFiles, limits: TextLimits, parts: &Parts) -> Result<Self, Error> {
        let manifest = &files.manifest;
        if base.base.is_some() || base.manifest.head.is_some() {
            let why = format!("its base {} makes labels, not vectors", base.manifest.name);
            return Err(Error::load(format!("model {}", manifest.name), why));
        }
        // Twice the same parts: one model that makes vectors, for whoever wants those, and one that goes on to labels.
        let twin = Self::load_sharing(base, limits, parts)?;
        let (over, bytes) = Over::load(files, Self::load_sharing(base, limits, parts)?)?;
        let measured = Measured {
            max_input_tokens: twin.info.max_input_tokens,
            dimensions: 0,
            labels: over.head.labels.clone(),
            parameter_bytes: twin.info.parameter_bytes + bytes,
        };
        let mut info = ModelInfo::new(manifest, measured);
        info.file_digests.extend(twin.info.file_digests.clone());
        info.sources.extend(twin.info.sources.clone());
        Ok(Self { info, over: Some(over), ..twin })
    }

    /// What the model says of itself.
    #[must_use]
    pub fn info(&self) -> &ModelInfo {
        &self.info
    }

    /// What its logits mean; none if it makes vectors.
    #[must_use]
    pub fn head(&self) -> Option<&Head> {
        self.over.as_ref().map_or_else(|| self.last.head(), |over| Some(&over.head))
    }

    /// The embedding model whose vectors the head reads, if the model is a head over one.
    #[must_use]
    pub fn base(&self) -> Option<&Arc<Self>> {
        self.over.as_ref().map(|over| &over.base)
    }

    fn tokenize(&self, input: &TextInput) -> Result<Tokenized, ItemError> {
        let TextInput { text, truncation } = input;
        if text.len() > self.limits.bytes_max {
            let message = format!("the text has {} bytes, the bound is {}", text.len(), self.limits.bytes_max);
            return Err(ItemError::new(Reason::TooLarge, message));
        }
        if text.chars().all(char::is_whitespace) {
            return Err(ItemError::new(Reason::Empty, "the text has no character that is not white space"));
        }
        self.tokens.encode(text, *truncation)
    }

    /// A text's answer from the vectors of its tokens.
    fn finish(&self, rows: &[f32]) -> Result<Vec<f32>, ItemError> {
        let mut values = self.last.forward(pool(self.pooling, rows, self.encoder.dimensions()));
        if let Some(over) = &self.over {
            values = over.forward(values);
        }
        if values.iter().all(|x| x.is_finite()) {
            return Ok(values);
        }
        tracing::error!(model = %self.info.name, tokens = rows.len() / self.encoder.dimensions(), "output is not finite");
        Err(ItemError::new(Reason::Engine, "the model's output is not finite"))
    }
}

impl Model for TextModel {
    type Input = TextInput;
    type Output = TextOutput;

    fn units(&self, input: &TextInput) -> u32 {
        let guess = u32::try_from(input.text.len() / BYTES_PER_TOKEN + 2).unwrap_or(u32::MAX);
        guess.min(self.info.max_input_tokens).max(1)
    }

    fn run(&self, inputs: Vec<TextInput>, watch: &mut Watch<'_>) -> Vec<Result<TextOutput, ItemError>> {
        let tokenized: Vec<_> = inputs.iter().map(|input| self.tokenize(input)).collect();
        let (mut ids, mut ends) = (Vec::new(), Vec::new());
        for text in tokenized.iter().flatten() {
            ids.extend_from_slice(&text.ids);
            ends.push(ids.len());
        }
        watch.prepared();
        let batch = Packed { ids: &ids, ends: &ends };
        let width = self.encoder.dimensions();
        let mut rows = vec![0.0; ids.len() * width];
        // A text that could not be tokenized fails alone; when none is left there is nothing to encode.
        let encoded = if ends.is_empty() { Ok(()) } else { self.encoder.encode(batch, &|| watch.wanted(), &mut rows) };
        let mut texts = batch.texts();
        let outputs = tokenized.into_iter().map(|text| {
            let Tokenized { ids, truncated } = text?;
            let (start, length) = texts.next().unwrap_or((0, 0));
            encoded.clone()?;
            let values = self.finish(&rows[start * width..(start + length) * width])?;
            Ok(TextOutput { values, tokens: ids.len() as u32, truncated })
        });
        let outputs = outputs.collect();
        watch.computed();
        outputs
    }
}

/// One vector from the vectors of a text's tokens, of which there is at least one.
fn pool(pooling: Pooling, rows: &[f32], width: usize) -> Vec<f32> {
    let mut pooled = rows[..width].to_vec();
    let rest = rows.chunks_exact(width).skip(1);
    match pooling {
        Pooling::Cls | Pooling::Pooler => {}
        Pooling::Mean => {
            for row in rest {
                pooled.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
            }
            let count = (rows.len() / width) as f32;
            pooled.iter_mut().for_each(|sum| *sum /= count);
        }
        Pooling::Max => {
            for row in rest {
                pooled.iter_mut().zip(row).for_each(|(most, x)| *most = most.max(*x));
            }
        }
    }
    pooled
}

#[cfg(test)]
mod tests;
