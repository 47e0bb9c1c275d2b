//! Texts to vectors or logits.

use std::sync::Arc;

use crate::{
    Error, ItemError, Model, ModelInfo, Parts, Plan, Reason, Step, Watch,
    encoder::{self, Config, Encoder},
    head::Head,
    info::Measured,
    manifest::{ModelFiles, Pooling, Prompts},
    parts,
    text::{last::Last, over::Over, windows::Joined},
    tokenize::{First, Tokens, Truncation, guess},
    weights::Weights,
};

mod ids;
mod last;
mod over;
mod windows;

pub use windows::Windows;

/// Special tokens of a text, as most models have them.
const SPECIALS: usize = 2;

/// Tokens that are counted in the time in which one is computed, about.
const COUNTED_PER_COMPUTED: usize = 64;

/// A text encoder with its tokenizer, pooling and, if it classifies, its last layer.
pub struct TextModel {
    info: ModelInfo,
    limits: TextLimits,
    prompts: Prompts,
    tokens: Arc<Tokens>,
    encoder: Arc<dyn Encoder>,
    pooling: Pooling,
    last: Last,
    /// Only if the model is a head over another one; the parts above are that one's.
    over: Option<Over>,
}

/// Bounds of one text.
#[derive(Clone, Copy, Debug)]
pub struct TextLimits {
    /// Most bytes of one text.
    pub bytes_max: usize,
    /// Most windows of a text under [`Truncation::ChunkMean`].
    pub windows_max: usize,
}

/// One input.
#[derive(Clone, Debug)]
pub struct TextInput {
    /// What to read.
    pub content: Content,
    /// What to do with it.
    pub work: Work,
}

/// What an input is.
#[derive(Clone, Debug)]
pub enum Content {
    /// A text, and what it is for.
    Text(String, Role),
    /// Two texts that are read together.
    Pair(Arc<First>, String),
    /// A text as its tokens, special tokens included.
    Tokens(Vec<u32>),
    /// What is left of a text: from [`Model::step`], and for it.
    Rest(Windows),
}

/// What a text is for: the model's prompt of this role stands before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Role {
    /// A question.
    Query,
    /// A document that is to be found.
    Document,
    /// A text that is compared with its like.
    #[default]
    Symmetric,
}

/// What is done with an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// It is computed, cut so if it is too long.
    Compute(Truncation),
    /// Its tokens are counted and nothing else: [`TextOutput::values`] is empty.
    Count,
}

/// What became of one text.
#[derive(Clone, Debug)]
pub struct TextOutput {
    /// The pooled vector, not normalised; where the model has a head or ranks, the logits.
    pub values: Vec<f32>,
    /// Tokens that were computed, special tokens included.
    pub tokens: u32,
    /// A part of the text was cut off.
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
        let plan = Plan::of_text(manifest, &config, &parts.compute)?;
        let weights = Weights::map(&files.path("model.safetensors"))?;
        let smoothing = manifest.smoothing(config.num_hidden_layers, config.hidden_size)?;
        let network = || encoder::load(&config, &weights, plan, smoothing.as_ref()).map(Arc::from);
        let key = parts::key(manifest, &["config.json", "model.safetensors"]);
        let key = format!("{key} {plan} {}", manifest.smoothing_digest().unwrap_or_default());
        let encoder = parts.encoders.share(key, network)?;
        let tokenizer = parts::key(manifest, &["config.json", "tokenizer.json"]);
        let tokenizer = format!("{tokenizer} {} {limits:?}", recipe.max_tokens);
        let load = || Tokens::load(&files.path("tokenizer.json"), limits, recipe.max_tokens, config.vocab_size);
        let tokens = || load().map(Arc::new);
        let hidden = encoder.dimensions();
        let last = Last::load(manifest, &config, &weights, hidden)?;
        let measured = Measured {
            max_input_tokens: recipe.max_tokens,
            dimensions: if last.makes_vectors() { hidden as u32 } else { 0 },
            labels: last.head().map(|head| head.labels.clone()).unwrap_or_default(),
            parameter_bytes: encoder.parameter_bytes() + last.parameter_bytes(),
        };
        Ok(Self {
            info: ModelInfo::new(manifest, plan, measured),
            limits,
            prompts: recipe.prompts.clone().unwrap_or_default(),
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
        // The head itself is one product in f32.
        let mut info = ModelInfo::new(manifest, twin.info.plan, measured);
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

    /// Tokenizes an input, unless that was done before.
    fn windows(&self, input: &TextInput) -> Result<Windows, ItemError> {
        let tokenized = match (&input.content, input.work) {
            (Content::Rest(windows), _) => return Ok(windows.clone()),
            (Content::Text(text, role), Work::Compute(cut)) => self.tokens.text(self.prompt(*role), text, cut),
            (Content::Text(text, role), Work::Count) => self.tokens.count(self.prompt(*role), text),
            (Content::Tokens(ids), Work::Compute(cut)) => self.tokens.ids(ids, cut),
            (Content::Pair(first, second), Work::Compute(cut)) => self.tokens.pair(first, second, cut),
            (Content::Tokens(_) | Content::Pair(..), Work::Count) => {
                Err(ItemError::new(Reason::BadParameter, "only the tokens of a text are counted"))
            }
        };
        tokenized.map(Windows::new)
    }

    fn prompt(&self, role: Role) -> &str {
        match role {
            Role::Query => &self.prompts.query,
            Role::Document => &self.prompts.document,
            Role::Symmetric => &self.prompts.symmetric,
        }
    }

    /// Computes windows of the texts, at most so many tokens unless it is one window, and says of how many each is further.
    fn advance(
        &self,
        inputs: &[&TextInput],
        most: usize,
        watch: &mut Watch<'_>,
    ) -> Vec<Result<(Windows, usize), ItemError>> {
        let mut joined = Joined::default();
        let mut begin = |input: &TextInput| -> Result<(Windows, usize), ItemError> {
            let text = self.windows(input)?;
            let next = text.next(joined.tokens(), most);
            let count = next.len();
            next.iter().for_each(|window| joined.push(window));
            Ok((text, count))
        };
        let begun: Vec<_> = inputs.iter().map(|input| begin(input)).collect();
        watch.prepared();
        let mut finished = Vec::with_capacity(joined.len());
        let mut read = |rows: &[&[f32]]| finished.push(self.finish(rows));
        // A text that could not be tokenized fails alone; when none is left there is nothing to encode.
        let encoded = match joined.len() {
            0 => Ok(()),
            _ => self.encoder.encode(joined.packed(), &|| watch.wanted(), &mut read),
        };
        let broken = finished.iter().filter(|values| values.is_err()).count();
        if broken > 0 {
            tracing::error!(model = %self.info.name, broken, of = finished.len(), "output is not finite");
        }
        let mut finished = finished.into_iter();
        let advanced = begun.into_iter().map(|text| {
            let (mut text, count) = text?;
            if count > 0 {
                encoded.clone()?;
            }
            text.add(finished.by_ref().take(count).collect())?;
            Ok((text, count))
        });
        let advanced = advanced.collect();
        watch.computed();
        advanced
    }

    /// A text's answer from the vectors of its tokens.
    fn finish(&self, rows: &[&[f32]]) -> Result<Vec<f32>, ItemError> {
        let mut values = self.last.forward(pool(self.pooling, rows));
        if let Some(over) = &self.over {
            values = over.forward(values);
        }
        if values.iter().all(|x| x.is_finite()) {
            return Ok(values);
        }
        Err(ItemError::new(Reason::Engine, "the model's output is not finite"))
    }
}

impl Model for TextModel {
    type Input = TextInput;
    type Output = TextOutput;

    fn units(&self, input: &TextInput) -> u32 {
        let tokens = match &input.content {
            Content::Text(text, role) => guess(self.prompt(*role)) + guess(text) + SPECIALS,
            Content::Pair(first, second) => first.guessed() + guess(second) + SPECIALS,
            Content::Tokens(ids) => ids.len(),
            Content::Rest(text) => return text.units(),
        };
        let max = self.info.max_input_tokens as usize;
        let computed = match input.work {
            Work::Compute(Truncation::ChunkMean) => tokens.min(max.saturating_mul(self.limits.windows_max)),
            Work::Compute(_) => tokens.min(max),
            Work::Count => 0,
        };
        // Whatever is cut off later, the whole text is tokenized.
        let units = computed + tokens / COUNTED_PER_COMPUTED;
        u32::try_from(units).unwrap_or(u32::MAX).max(1)
    }

    fn run(&self, inputs: &[&TextInput], watch: &mut Watch<'_>) -> Vec<Result<TextOutput, ItemError>> {
        let advanced = self.advance(inputs, usize::MAX, watch);
        advanced.into_iter().map(|text| text.map(|(text, _)| text.output())).collect()
    }

    fn step(&self, inputs: &[&TextInput], units_max: u32, watch: &mut Watch<'_>) -> Vec<Result<Step<Self>, ItemError>> {
        let end = |text: Windows, count, work| -> Step<Self> {
            if text.left().is_empty() {
                return Step::Done(text.output());
            }
            let rest = TextInput { content: Content::Rest(text), work };
            if count > 0 { Step::Rest(rest) } else { Step::Later(rest) }
        };
        // Guesses are near enough as a rule: a few tokens more than they said are not worth another turn.
        let most = units_max as usize + units_max as usize / 2;
        let advanced = self.advance(inputs, most, watch).into_iter().zip(inputs);
        advanced.map(|(text, input)| text.map(|(text, count)| end(text, count, input.work))).collect()
    }
}

/// One vector from the vectors of a text's tokens, of which there is at least one.
fn pool(pooling: Pooling, rows: &[&[f32]]) -> Vec<f32> {
    let (first, rest) = (rows[0], &rows[1..]);
    let mut pooled = first.to_vec();
    match pooling {
        Pooling::Cls | Pooling::Pooler => {}
        Pooling::Mean => {
            for row in rest {
                pooled.iter_mut().zip(*row).for_each(|(sum, x)| *sum += x);
            }
            let count = rows.len() as f32;
            pooled.iter_mut().for_each(|sum| *sum /= count);
        }
        Pooling::Max => {
            // What is not a number stays: it must not be lost in a comparison.
            let greater = |most: &mut f32, x: &f32| {
                if *x > *most || x.is_nan() {
                    *most = *x;
                }
            };
            for row in rest {
                pooled.iter_mut().zip(*row).for_each(|(most, x)| greater(most, x));
            }
        }
    }
    pooled
}

#[cfg(test)]
mod tests;
