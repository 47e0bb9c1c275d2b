//! Preparing an encoder for int8: calibration on texts, and how near it comes to f32.
//!
//! Activations of a few components are many times larger than the rest, and one scale for a row leaves the rest few of the
//! 8 bits. Dividing each component by the root of its greatest magnitude, and multiplying the weights by it, makes both
//! sides about equally hard to round: SmoothQuant (Xiao et al., 2022) with alpha 0.5.

use std::{panic, thread};

use kernels::Precision;

pub use crate::manifest::{Exponents, Measured, Quantization, Site, Smoothing};
use crate::{
    ComputePath, Content, Error, Manifest, Model as _, ModelFiles, ModelName, Parts, PrecisionChoice, Role, Task,
    TextInput, TextLimits, TextModel, Truncation, Watch, Work,
    compute::{Compute, Plan},
    encoder::{
        Config,
        observe::{Observe, Reference, weight_maxima},
    },
    tokenize::Tokens,
    weights::Weights,
};

/// Most texts of a calibration. More change nothing: it is greatest magnitudes that are looked for.
pub const TEXTS_MAX: usize = 4096;
/// Most tokens of a text that are looked at; the rest is cut off.
pub const TOKENS_MAX: u32 = 256;
/// Parts of the texts of which each in turn is held out of a calibration, to measure it by.
const FOLDS: usize = 4;
/// Bounds of a factor: beyond them a component hardly counts, or nothing else does.
const FACTORS: [f32; 2] = [1.0 / 256.0, 256.0];
/// Bytes of a text; it is cut by its tokens.
const LIMITS: TextLimits = TextLimits { bytes_max: 1 << 20, windows_max: 1 };

/// What a calibration on no texts of one's own is made from: English sentences of many subjects and lengths.
#[must_use]
pub fn builtin_texts() -> Vec<String> {
    include_str!("quantize/texts.txt").lines().map(str::to_owned).collect()
}

/// What a calibration found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Calibration {
    /// The factors for all texts.
    pub smoothing: Exponents,
    /// The same without those texts that are held out, fold by fold.
    without: Vec<Exponents>,
}

/// A model for int8 beside the same in f32.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Comparison {
    /// How near the vectors are.
    pub measured: Measured,
    /// Bytes of the parameters in f32, without a head.
    pub exact_bytes: u64,
    /// Bytes of the parameters in int8.
    pub rounded_bytes: u64,
}

/// Whether a model can be prepared for int8 and computed so here.
///
/// # Errors
/// When it can not; in words.
pub fn check(files: &ModelFiles, compute: &Compute) -> Result<(), Error> {
    let manifest = &files.manifest;
    let refuse = |why: &str| Err(Error::load(format!("model {}", manifest.name), why));
    if manifest.quantization.is_some() {
        return refuse("it is for int8 already");
    }
    if let Some(base) = &manifest.base {
        return refuse(&format!("it is a head, which is computed as its base is: quantize {}", base.model));
    }
    if manifest.text.is_none() {
        return refuse(&format!("its task is {}; int8 is for encoders of texts", manifest.task));
    }
    // What has kernels has them in int8.
    let plan = Plan::of_text(&in_f32(manifest), &Config::load(files)?, compute)?;
    if plan.path == ComputePath::Candle {
        return refuse(&format!("on {} it is computed by candle, which has no int8", plan.device));
    }
    Ok(())
}

/// The factors of an encoder for texts such as these, of which there should be a hundred at least. Each is read behind
/// every prompt of the model. `heard` is called after each text.
///
/// # Errors
/// When the model or a text can not be read.
pub fn calibrate(files: &ModelFiles, texts: &[String], heard: &(dyn Fn() + Sync)) -> Result<Calibration, Error> {
    let config = Config::load(files)?;
    let weights = Weights::map(&files.path("model.safetensors"))?;
    let reference = Reference::load(&config, &weights)?;
    let tokens_max = files.manifest.text.as_ref().map_or(TOKENS_MAX, |recipe| recipe.max_tokens.min(TOKENS_MAX));
    let tokens = Tokens::load(&files.path("tokenizer.json"), LIMITS, tokens_max, config.vocab_size)?;
    let prompts = prompts(&files.manifest);
    let observe = |texts: &[&str]| {
        let mut maxima = Maxima::new(&config);
        for text in texts {
            for (_, prompt) in &prompts {
                let tokenized = tokens.text(prompt, text, Truncation::End);
                for window in &tokenized.map_err(|error| Error::load("a text", error))?.windows {
                    reference.observe(&window.ids, &mut maxima);
                }
            }
            heard();
        }
        Ok(maxima)
    };
    let seen = (0..FOLDS).map(|fold| {
        let parts = spread(&held_out(texts, fold), observe)?;
        Ok(parts.into_iter().fold(Maxima::new(&config), |all, part| all.joined(&part)))
    });
    let seen = seen.collect::<Result<Vec<_>, Error>>()?;
    let sites = (0..config.num_hidden_layers).flat_map(|layer| Site::ALL.map(|site| (layer, site)));
    let read = sites.map(|(layer, site)| weight_maxima(&config, &weights, layer, site));
    let read = Maxima(read.collect::<Result<_, Error>>()?);
    let without = |fold: usize| {
        let others = seen.iter().enumerate().filter(|(index, _)| *index != fold);
        factors(&others.fold(Maxima::new(&config), |all, (_, part)| all.joined(part)), &read)
    };
    Ok(Calibration { smoothing: without(FOLDS), without: (0..FOLDS).map(without).collect() })
}

/// The manifest of the same model for int8.
#[must_use]
pub fn prepared(manifest: &Manifest, name: ModelName, quantization: Quantization) -> Manifest {
    let precision = PrecisionChoice::Only(Precision::Int8);
    Manifest { name, precision, quantization: Some(quantization), ..manifest.clone() }
}

/// Compares the vectors of a model in int8 with those of f32: each text's with factors that were made without it, a
/// quarter of the texts being held out at a time. Of a model that gives labels it is the vectors before its last layer.
///
/// `texts` are those of the calibration.
///
/// # Errors
/// When the model can not be loaded, or a text not be computed.
pub fn compare(
    files: &ModelFiles,
    calibration: &Calibration,
    texts: &[String],
    compute: Compute,
) -> Result<Comparison, Error> {
    let load = |manifest: Manifest| {
        let manifest = Manifest { task: Task::Embedding, head: None, ..manifest };
        TextModel::load_sharing(&ModelFiles { manifest, ..files.clone() }, LIMITS, &Parts::new(compute))
    };
    let (exact, prompts) = (load(in_f32(&files.manifest))?, prompts(&files.manifest));
    let (mut cosines, mut rounded_bytes) = (Vec::new(), 0);
    for (fold, smoothing) in calibration.without.iter().enumerate() {
        let quantization = Quantization { smoothing: smoothing.clone(), measured: None };
        let rounded = load(prepared(&files.manifest, files.manifest.name.clone(), quantization))?;
        rounded_bytes = rounded.info().parameter_bytes;
        let both = |texts: &[&str]| {
            let all = texts.iter().flat_map(|text| prompts.iter().map(move |(role, _)| (*text, *role)));
            let one = |(text, role)| Ok(cosine(&vector(&exact, text, role)?, &vector(&rounded, text, role)?));
            all.map(one).collect::<Result<Vec<_>, Error>>()
        };
        cosines.extend(spread(&held_out(texts, fold), both)?.concat());
    }
    Ok(Comparison {
        measured: measured(texts.len(), &cosines)?,
        exact_bytes: exact.info().parameter_bytes,
        rounded_bytes,
    })
}

/// The texts of one fold.
fn held_out(texts: &[String], fold: usize) -> Vec<&str> {
    texts.iter().skip(fold).step_by(FOLDS).map(String::as_str).collect()
}

/// The prompts that the model reads texts behind, each with a role that has it. At least one, which may be empty.
fn prompts(manifest: &Manifest) -> Vec<(Role, String)> {
    let prompts = manifest.text.as_ref().and_then(|recipe| recipe.prompts.clone()).unwrap_or_default();
    let mut of_roles =
        vec![(Role::Symmetric, prompts.symmetric), (Role::Query, prompts.query), (Role::Document, prompts.document)];
    of_roles.sort_by(|(_, a), (_, b)| a.cmp(b));
    of_roles.dedup_by(|(_, a), (_, b)| a == b);
    of_roles
}

/// The greatest magnitudes of each component, layer after layer, in each site after site.
struct Maxima(Vec<Vec<f32>>);

impl Maxima {
    fn new(config: &Config) -> Self {
        Self(vec![vec![0.0; config.hidden_size]; config.num_hidden_layers * Site::ALL.len()])
    }

    fn joined(mut self, other: &Self) -> Self {
        for (ours, theirs) in self.0.iter_mut().zip(&other.0) {
            ours.iter_mut().zip(theirs).for_each(|(max, value)| *max = max.max(*value));
        }
        self
    }
}

impl Observe for Maxima {
    fn observe(&mut self, layer: usize, site: Site, row: &[f32]) {
        let maxima = &mut self.0[layer * Site::ALL.len() + site as usize];
        maxima.iter_mut().zip(row).for_each(|(max, value)| *max = max.max(value.abs()));
    }
}

/// The factors for these magnitudes of activations and of the weights that they are multiplied with.
fn factors(activations: &Maxima, weights: &Maxima) -> Exponents {
    let both = activations.0.iter().flatten().zip(weights.0.iter().flatten());
    Exponents::nearest(both.map(|(activation, weight)| factor(*activation, *weight)))
}

/// By what a component is divided. One that is never used, or never read, stays as it is.
fn factor(activation: f32, weight: f32) -> f32 {
    if activation == 0.0 || weight == 0.0 {
        return 1.0;
    }
    let [least, most] = FACTORS;
    (activation.sqrt() / weight.sqrt()).clamp(least, most)
}

/// The same in f32.
fn in_f32(manifest: &Manifest) -> Manifest {
    Manifest { precision: PrecisionChoice::Only(Precision::F32), quantization: None, ..manifest.clone() }
}

fn vector(model: &TextModel, text: &str, role: Role) -> Result<Vec<f32>, Error> {
    let content = Content::Text(text.to_owned(), role);
    let input = TextInput { content, work: Work::Compute(Truncation::End) };
    let output = model.run(&[&input], &mut Watch::start(&|| true)).pop();
    let output = output.ok_or_else(|| Error::load("a text", "the model gave no answer"))?;
    output.map(|output| output.values).map_err(|error| Error::load("a text", error))
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

fn measured(texts: usize, cosines: &[f64]) -> Result<Measured, Error> {
    if cosines.is_empty() || !cosines.iter().all(|cosine| cosine.is_finite()) {
        return Err(Error::load("the comparison", "there is no text, or one whose vector is zeros"));
    }
    // Of equal vectors rounding may give a little more than 1.
    let rounded = |cosine: f64| (cosine * 1e6).round().clamp(-1e6, 1e6) / 1e6;
    let cosine_mean = rounded(cosines.iter().sum::<f64>() / cosines.len() as f64);
    let texts = u32::try_from(texts).unwrap_or(u32::MAX);
    Ok(Measured { texts, cosine_mean, cosine_min: rounded(cosines.iter().copied().fold(1.0, f64::min)) })
}

/// Does the work of all texts, a part of them on each core; the results in their order.
fn spread<T: Send>(texts: &[&str], work: impl Fn(&[&str]) -> Result<T, Error> + Sync) -> Result<Vec<T>, Error> {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let part = texts.len().div_ceil(cores).max(1);
    let work = &work;
    thread::scope(|scope| {
        let threads: Vec<_> = texts.chunks(part).map(|texts| scope.spawn(move || work(texts))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| panic::resume_unwind(panic))).collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_texts_are_many_different_and_of_many_lengths() {
        let texts = builtin_texts();
        let mut distinct = texts.clone();
        distinct.sort();
        distinct.dedup();
        assert!((128..=TEXTS_MAX).contains(&texts.len()) && distinct.len() == texts.len());
        assert!(texts.iter().all(|text| !text.trim().is_empty()));
        assert!(texts.iter().any(|text| text.len() < 20) && texts.iter().any(|text| text.len() > 600));
    }

    #[test]
    fn a_factor_is_the_root_of_both_sides_within_its_bounds() {
        assert_eq!(factor(16.0, 4.0), 2.0);
        assert_eq!([factor(0.0, 4.0), factor(16.0, 0.0)], [1.0, 1.0]);
        assert_eq!([factor(1e30, 1e-3), factor(1e-9, 1e9)], [256.0, 1.0 / 256.0]);
    }

    #[test]
    fn cosines_are_measured_by_their_mean_and_their_least() {
        assert!((cosine(&[1.0, 0.0], &[3.0, 3.0]) - 0.5_f64.sqrt()).abs() < 1e-9);
        let found = measured(3, &[1.000_000_000_2, 0.998, 0.999]).unwrap();
        assert_eq!(found, Measured { texts: 3, cosine_mean: 0.999, cosine_min: 0.998 });
        assert!(measured(0, &[]).is_err() && measured(1, &[f64::NAN]).is_err());
    }

    #[test]
    fn each_text_is_held_out_once() {
        let texts: Vec<_> = (0..9).map(|n| n.to_string()).collect();
        let folds: Vec<_> = (0..FOLDS).map(|fold| held_out(&texts, fold).concat()).collect();
        assert_eq!(folds, ["048", "15", "26", "37"]);
    }

    #[test]
    fn a_model_has_as_many_prompts_as_differ() {
        let mut manifest = Manifest::builtin().into_iter().find(|manifest| manifest.text.is_some()).unwrap();
        let mut with = |query: &str, document: &str| {
            let (query, document) = (query.to_owned(), document.to_owned());
            let prompts = crate::manifest::Prompts { query, document, ..Default::default() };
            manifest.text.as_mut().unwrap().prompts = Some(prompts);
            prompts_of(&manifest)
        };
        assert_eq!(with("", ""), [""]);
        assert_eq!(with("query: ", ""), ["", "query: "]);
        assert_eq!(with("query: ", "passage: "), ["", "passage: ", "query: "]);
    }

    fn prompts_of(manifest: &Manifest) -> Vec<String> {
        prompts(manifest).into_iter().map(|(_, prompt)| prompt).collect()
    }

    #[test]
    fn texts_are_spread_and_their_results_come_in_order() {
        let texts = ["0", "1", "2", "3", "4", "5", "6"];
        assert_eq!(spread(&texts, |part| Ok(part.concat())).unwrap().concat(), "0123456");
        assert!(spread(&texts, |_| Err::<(), _>(Error::Closed)).is_err());
    }
}
