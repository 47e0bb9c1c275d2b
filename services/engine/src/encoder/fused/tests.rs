use std::collections::HashMap;

use candle_core::{Device, Tensor};
use kernels::Tier;
use proptest::{prelude::*, test_runner::TestCaseResult};
use serde_json::json;

use super::*;
use crate::{
    Manifest,
    encoder::stock::Stock,
    manifest::{Exponents, Quantization},
};

/// A checkpoint with weights that look random, on disk as the Hub would give it, and read back.
struct Checkpoint {
    config: Config,
    weights: Weights,
}

/// Shapes of a checkpoint.
#[derive(Clone, Copy)]
struct Shape {
    hidden: usize,
    heads: usize,
    inner: usize,
}

const SMALL: Shape = Shape { hidden: 64, heads: 2, inner: 96 };
const WIDE: Shape = Shape { hidden: 128, heads: 2, inner: 160 };
/// As BERT-base has it, and E5, BGE and GTE of that size.
const BASE: Shape = Shape { hidden: 768, heads: 12, inner: 3072 };
/// The same of their large ones.
const LARGE: Shape = Shape { hidden: 1024, heads: 16, inner: 4096 };
const WORDS: usize = 50;
const POSITIONS: usize = 44;
const LAYERS: usize = 3;

fn checkpoint(model_type: &str, activation: &str, shape: Shape) -> Checkpoint {
    let Shape { hidden, heads, inner } = shape;
    let config = json!({
        "model_type": model_type, "vocab_size": WORDS, "hidden_size": hidden, "num_hidden_layers": LAYERS,
        "num_attention_heads": heads, "intermediate_size": inner, "hidden_act": activation, "layer_norm_eps": 1e-12,
        "max_position_embeddings": POSITIONS, "type_vocab_size": 2,
    });
    let config = Config::parse(config.to_string().as_bytes()).unwrap();
    let names = config.family.names().unwrap();
    let mut shapes = vec![
        ("embeddings.word_embeddings.weight".to_owned(), vec![WORDS, hidden]),
        ("embeddings.position_embeddings.weight".to_owned(), vec![POSITIONS, hidden]),
        ("embeddings.token_type_embeddings.weight".to_owned(), vec![2, hidden]),
        ("embeddings.LayerNorm.weight".to_owned(), vec![hidden]),
        ("embeddings.LayerNorm.bias".to_owned(), vec![hidden]),
    ];
    for layer in 0..LAYERS {
        let mut dense = |name: &str, outputs: usize, inputs: usize| {
            shapes.push((format!("{}.{layer}.{name}.weight", names.layers), vec![outputs, inputs]));
            shapes.push((format!("{}.{layer}.{name}.bias", names.layers), vec![outputs]));
        };
        for name in [names.query, names.key, names.value, names.mixed] {
            dense(name, hidden, hidden);
        }
        dense(names.up, inner, hidden);
        dense(names.down, hidden, inner);
        for name in [names.mixed_norm, names.down_norm] {
            shapes.push((format!("{}.{layer}.{name}.weight", names.layers), vec![hidden]));
            shapes.push((format!("{}.{layer}.{name}.bias", names.layers), vec![hidden]));
        }
    }
    let mut seed = 7_u64;
    let mut noise = || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    let mut tensor = |name: &str, shape: &[usize]| {
        let is_scale = name.ends_with("orm.weight");
        let size = if shape.len() == 2 { 2.0 / (shape[1] as f32).sqrt() } else { 0.3 };
        let values: Vec<f32> =
            (0..shape.iter().product()).map(|_| noise() * size + f32::from(u8::from(is_scale))).collect();
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
    };
    let tensors: HashMap<_, _> = shapes.iter().map(|(name, shape)| (name.clone(), tensor(name, shape))).collect();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    candle_core::safetensors::save(&tensors, &path).unwrap();
    Checkpoint { config, weights: Weights::map(&path).unwrap() }
}

impl Checkpoint {
    fn fused(&self, cpu: Cpu, precision: Precision) -> Fused {
        Fused::load(&self.config, &self.weights, (cpu, precision), None).unwrap()
    }
}

fn cpus() -> Vec<Cpu> {
    Tier::ALL.into_iter().filter_map(Cpu::with).collect()
}

/// Texts of these lengths, each made of words of its own.
fn texts(lengths: &[usize]) -> Vec<Vec<u32>> {
    let word = |text: usize, position: usize| ((text * 31 + position * 17 + text * position) % WORDS) as u32;
    lengths
        .iter()
        .enumerate()
        .map(|(text, length)| (0..*length).map(|position| word(text, position)).collect())
        .collect()
}

/// The vectors of all tokens, text by text.
fn encode(encoder: &dyn Encoder, texts: &[&Vec<u32>], types: Option<&[u32]>) -> Vec<Vec<f32>> {
    let ids = texts.iter().copied().flatten().copied().collect::<Vec<_>>();
    let mut end = 0;
    let ends = texts.iter().map(|text| {
        end += text.len();
        end
    });
    let ends: Vec<_> = ends.collect();
    let mut out = Vec::new();
    let mut read = |rows: &[&[f32]]| out.push(rows.concat());
    encoder.encode(Packed { ids: &ids, ends: &ends, types }, &|| true, &mut read).unwrap();
    out
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

/// The kernels against candle: f32 to rounding, the others to what 8 and 7 bits leave of a vector of random weights.
fn check(model_type: &str, activation: &str, shape: Shape) {
    let checkpoint = checkpoint(model_type, activation, shape);
    let reference = Stock::load(&checkpoint.config, &checkpoint.weights).unwrap();
    let texts = texts(&[1, 7, 40, 2, 16]);
    let texts: Vec<_> = texts.iter().collect();
    let types: Vec<u32> = (0..66).map(|token| u32::from(token % 5 == 0)).collect();
    for types in [None, Some(types.as_slice())] {
        let expected = encode(&reference, &texts, types);
        for cpu in cpus() {
            for (precision, least) in [(Precision::F32, 0.999_999_9), (Precision::Bf16, 0.999), (Precision::Int8, 0.99)]
            {
                let found = encode(&checkpoint.fused(cpu, precision), &texts, types);
                for (found, expected) in found.iter().zip(&expected) {
                    let cosine = cosine(found, expected);
                    assert!(cosine >= least, "{model_type} {activation} {} {precision}: {cosine}", cpu.tier());
                }
            }
        }
    }
}

#[test]
fn every_family_is_what_candle_makes_of_it() {
    check("bert", "gelu", SMALL);
    check("distilbert", "gelu", SMALL);
    check("roberta", "gelu", WIDE);
}

#[test]
fn the_widths_of_real_models_are_what_candle_makes_of_them() {
    check("bert", "gelu", BASE);
    check("roberta", "gelu", LARGE);
}

#[test]
fn activations_other_than_gelu_are_theirs_too() {
    check("bert", "gelu_new", WIDE);
    check("distilbert", "relu", SMALL);
}

#[test]
fn shapes_without_kernels_are_told() {
    let fits = |hidden, heads, inner| {
        let shape = Shape { hidden, heads, inner };
        super::fits(&checkpoint("bert", "gelu", shape).config)
    };
    assert!(fits(64, 2, 96) && fits(64, 1, 32));
    assert!(!fits(64, 4, 96) && !fits(8, 2, 12) && !fits(64, 2, 100));
}

#[test]
fn a_long_text_leaves_no_memory_behind() {
    let fused = checkpoint("bert", "gelu", SMALL).fused(Cpu::best(), Precision::F32);
    let kept = || fused.arenas.lock().unwrap().iter().map(Arena::rows).collect::<Vec<_>>();
    fused.with_arena(30, |_| ());
    assert_eq!(kept(), [64]);
    fused.with_arena(KEPT_ROWS_MAX + 1, |arena| assert!(arena.rows() > KEPT_ROWS_MAX));
    assert_eq!(kept(), [64], "and the one that was there is there still");
    fused.with_arena(KEPT_ROWS_MAX, |_| ());
    assert_eq!(kept(), [KEPT_ROWS_MAX]);
}

#[test]
fn parameters_are_those_of_the_encoder_in_every_path() {
    let checkpoint = checkpoint("bert", "gelu", SMALL);
    let stock = Stock::load(&checkpoint.config, &checkpoint.weights).unwrap().parameter_bytes();
    assert_eq!(stock, checkpoint.weights.bytes(), "the file has nothing else");
    let fused = checkpoint.fused(Cpu::with(Tier::Portable).unwrap(), Precision::F32).parameter_bytes();
    // Instead of the two vectors of the types there are the positions of the second type.
    let positions = (POSITIONS - 2) * SMALL.hidden * size_of::<f32>();
    assert_eq!(fused, stock + positions as u64);
}

#[test]
fn what_nobody_wants_is_not_computed() {
    let fused = checkpoint("bert", "gelu", SMALL).fused(Cpu::best(), Precision::F32);
    let batch = Packed { ids: &[1, 2], ends: &[2], types: None };
    let error = fused.encode(batch, &|| false, &mut |_| panic!("nothing to read")).unwrap_err();
    assert_eq!(error.reason, Reason::Abandoned);
}

/// Some texts, and the order in which they come together.
#[derive(Clone, Debug)]
struct Mix {
    /// With the types of their tokens if they are pairs.
    texts: Vec<(Vec<u32>, Option<Vec<u32>>)>,
    order: Vec<usize>,
}

fn any_mix() -> impl Strategy<Value = Mix> {
    let ids = prop::collection::vec(0..WORDS as u32, 1..40);
    let text = ids.prop_flat_map(|ids| {
        let types = prop::option::weighted(0.3, prop::collection::vec(0_u32..2, ids.len()));
        (Just(ids), types)
    });
    prop::collection::vec(text, 1..16).prop_flat_map(|texts| {
        let order = Just((0..texts.len()).collect::<Vec<_>>()).prop_shuffle();
        (Just(texts), order).prop_map(|(texts, order)| Mix { texts, order })
    })
}

/// Factors such as a calibration finds.
fn any_smoothing(hidden: usize) -> impl Strategy<Value = Smoothing> {
    let factors = prop::collection::vec(0.25_f32..8.0, Site::ALL.len() * LAYERS * hidden);
    factors.prop_map(move |factors| smoothing(factors, hidden))
}

fn smoothing(factors: Vec<f32>, hidden: usize) -> Smoothing {
    let quantization = Quantization { smoothing: Exponents::nearest(factors), measured: None };
    let manifest = Manifest { quantization: Some(quantization), ..Manifest::builtin().remove(0) };
    manifest.smoothing(LAYERS, hidden).unwrap().unwrap()
}

/// The wide inner rows of all texts do not fit into the cache: the block is computed in several steps.
#[test]
fn a_feed_forward_block_in_steps_keeps_the_bits() {
    let checkpoint = checkpoint("bert", "gelu", Shape { inner: 2048, ..SMALL });
    let texts = texts(&[40; 6]).into_iter().map(|ids| (ids, None)).collect();
    let mix = Mix { texts, order: vec![3, 0, 5, 1, 4, 2] };
    let smoothing = smoothing(vec![1.0; Site::ALL.len() * LAYERS * SMALL.hidden], SMALL.hidden);
    has_the_same_bits(&checkpoint, &smoothing, &mix, 1).unwrap();
}

impl Mix {
    /// The bits of each text's vectors, computed by itself.
    fn alone(&self, fused: &Fused) -> Vec<Vec<u32>> {
        self.texts.iter().map(|(ids, types)| bits(&encode(fused, &[ids], types.as_deref())[0])).collect()
    }

    /// The same of all together, each at its own place again.
    fn together(&self, fused: &Fused) -> Vec<Vec<u32>> {
        let ordered: Vec<_> = self.order.iter().map(|index| &self.texts[*index]).collect();
        let types_of = |(ids, types): &&(Vec<u32>, Option<Vec<u32>>)| types.clone().unwrap_or(vec![0; ids.len()]);
        let are_pairs = ordered.iter().any(|(_, types)| types.is_some());
        let types = are_pairs.then(|| ordered.iter().flat_map(types_of).collect::<Vec<_>>());
        let texts: Vec<_> = ordered.iter().map(|(ids, _)| ids).collect();
        let mut placed = vec![Vec::new(); texts.len()];
        for (index, rows) in self.order.iter().zip(encode(fused, &texts, types.as_deref())) {
            placed[*index] = bits(&rows);
        }
        placed
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// On every tier, in every precision.
fn has_the_same_bits(checkpoint: &Checkpoint, smoothing: &Smoothing, mix: &Mix, threads: usize) -> TestCaseResult {
    for cpu in cpus() {
        for precision in Precision::ALL {
            let smoothing = (precision == Precision::Int8).then_some(smoothing);
            let fused = Fused::load(&checkpoint.config, &checkpoint.weights, (cpu, precision), smoothing).unwrap();
            let alone = mix.alone(&fused);
            let all = std::thread::scope(|scope| {
                let threads: Vec<_> = (0..threads).map(|_| scope.spawn(|| mix.together(&fused))).collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
            });
            for together in all {
                prop_assert!(together == alone, "{} {precision}: {mix:?}", cpu.tier());
            }
        }
    }
    Ok(())
}

// The promise of the README: not a bit depends on the company, its order, or what the memory was used for before.
proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn a_text_has_the_same_bits_in_any_company(
        mix in any_mix(), smoothing in any_smoothing(SMALL.hidden), threads in 1_usize..4,
    ) {
        has_the_same_bits(&checkpoint("bert", "gelu", SMALL), &smoothing, &mix, threads)?;
    }

    #[test]
    fn heads_of_64_keep_their_bits_too(
        mix in any_mix(), smoothing in any_smoothing(WIDE.hidden), threads in 1_usize..4,
    ) {
        has_the_same_bits(&checkpoint("bert", "gelu_new", WIDE), &smoothing, &mix, threads)?;
    }
}
