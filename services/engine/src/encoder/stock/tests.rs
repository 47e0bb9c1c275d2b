//! Texts together, padded and masked as on a GPU, against texts one by one.

use candle_nn::VarMap;
use serde_json::{Value, json};

use super::*;
use crate::seeded::Seeded;

const HIDDEN: usize = 16;
const WORDS: usize = 50;

fn config(model_type: &str) -> Value {
    json!({
        "model_type": model_type, "vocab_size": WORDS, "hidden_size": HIDDEN, "num_hidden_layers": 3,
        "num_attention_heads": 2, "intermediate_size": 24, "hidden_act": "gelu", "hidden_activation": "gelu",
        "max_position_embeddings": 1200, "type_vocab_size": if model_type == "roberta" { 1 } else { 2 }, "dim": HIDDEN,
        "n_layers": 3, "n_heads": 2, "hidden_dim": 24, "activation": "gelu_new", "global_attn_every_n_layers": 2,
        "local_attention": 6,
    })
}

/// The same made-up weights in both companies.
fn both(config: &Value) -> [Stock; 2] {
    let config = Config::parse(config.to_string().as_bytes()).unwrap();
    let builder = Seeded::builder();
    [Company::Alone, Company::Padded].map(|company| Stock::read(&config, &builder, company).unwrap())
}

fn encode(stock: &Stock, texts: &[Vec<u32>], types: Option<&[u32]>) -> Vec<f32> {
    let ids = texts.concat();
    let ends: Vec<_> = texts
        .iter()
        .scan(0, |end, text| {
            *end += text.len();
            Some(*end)
        })
        .collect();
    let mut out = Vec::new();
    let mut read = |rows: &[&[f32]]| out.extend(rows.concat());
    stock.encode(Packed { ids: &ids, ends: &ends, types }, &|| true, &mut read).unwrap();
    out
}

/// Texts of made-up tokens.
fn texts(lengths: &[usize]) -> Vec<Vec<u32>> {
    let word = |text: usize, token: usize| ((text * 31 + token * 7) % WORDS) as u32;
    lengths.iter().enumerate().map(|(text, length)| (0..*length).map(|token| word(text, token)).collect()).collect()
}

/// Vectors are of order 1 after the last normalisation. Sums of f32 in another order lose a few units of 1e-7, which the
/// powers of the softmax make more of.
#[track_caller]
fn assert_near(ours: &[f32], theirs: &[f32]) {
    let difference = ours.iter().zip(theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(ours.len() == theirs.len() && difference < 1e-4, "{difference}");
    assert!(ours.iter().all(|x| x.is_finite()));
}

#[test]
fn padding_changes_no_vector_in_any_family() {
    let texts = texts(&[5, 1, 9, 9, 40, 2, 7]);
    let types: Vec<u32> = texts.iter().flat_map(|text| (0..text.len()).map(|i| u32::from(i > 2))).collect();
    for family in ["bert", "distilbert", "roberta", "modernbert"] {
        let [alone, padded] = both(&config(family));
        let one_by_one = encode(&alone, &texts, None);
        assert_near(&encode(&padded, &texts, None), &one_by_one);
        let pairs = encode(&alone, &texts, Some(&types));
        assert_near(&encode(&padded, &texts, Some(&types)), &pairs);
        assert_eq!(pairs != one_by_one, family == "bert", "{family} has types or it has none");
    }
}

#[test]
fn on_a_cpu_a_text_is_bit_identical_in_any_company() {
    let texts = texts(&[6, 3, 11]);
    for family in ["bert", "modernbert"] {
        let [alone, _] = both(&config(family));
        let together = encode(&alone, &texts, None);
        let one_by_one: Vec<_> =
            texts.iter().flat_map(|text| encode(&alone, std::slice::from_ref(text), None)).collect();
        assert_eq!(together, one_by_one);
    }
}

#[test]
fn long_texts_are_attended_in_parts_that_make_the_whole() {
    // Longer than the rows that are computed at a time; the padding begins in the middle of them.
    let texts = texts(&[1100, 700]);
    for family in ["bert", "modernbert"] {
        let [alone, padded] = both(&config(family));
        let one_by_one = encode(&alone, &texts, None);
        assert_near(&encode(&padded, &texts, None), &one_by_one);
    }
    let ramp = |scale: f64| (Tensor::arange(0.0_f32, 2400.0, &Device::Cpu).unwrap() * scale).unwrap();
    let part = |scale: f64| ramp(scale).sin().unwrap().reshape((1, 2, 600, 2)).unwrap();
    let parts = attention::Parts { queries: part(0.7), keys: part(1.3), values: part(0.1) };
    for window in [None, Some(0), Some(3), Some(600)] {
        let scores = (parts.queries.matmul(&parts.keys.t().unwrap()).unwrap() / 2_f64.sqrt()).unwrap();
        let sees = |row: usize, other: usize| window.is_none_or(|window| row.abs_diff(other) <= window);
        let mask = (0..600).flat_map(|row| (0..600).map(move |other| if sees(row, other) { 0.0 } else { f32::MIN }));
        let mask = Tensor::from_vec(mask.collect(), (600, 600), &Device::Cpu).unwrap();
        let scores = candle_nn::ops::softmax(&scores.broadcast_add(&mask).unwrap(), 3).unwrap();
        let whole = scores.matmul(&parts.values).unwrap().transpose(1, 2).unwrap();
        let flat = |tensor: Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_near(&flat(parts.mix(None, window).unwrap()), &flat(whole));
    }
}

#[test]
fn what_is_not_finite_stays_in_its_text() {
    for family in ["bert", "modernbert"] {
        let config = Config::parse(config(family).to_string().as_bytes()).unwrap();
        let weights = VarMap::new();
        let builder = VarBuilder::from_varmap(&weights, DType::F32, &Device::Cpu);
        let first = if family == "bert" { "word_embeddings" } else { "tok_embeddings" };
        let mut words = vec![0.1_f32; WORDS * HIDDEN];
        words[..HIDDEN].fill(f32::NAN);
        let words = Tensor::from_vec(words, (WORDS, HIDDEN), &Device::Cpu).unwrap();
        let name = format!("embeddings.{first}.weight");
        weights.data().lock().unwrap().insert(name, candle_core::Var::from_tensor(&words).unwrap());
        let padded = Stock::read(&config, &builder, Company::Padded).unwrap();
        // Padding has the id 0 in most vocabularies.
        let texts = [vec![1, 2, 3], vec![4, 5], vec![6, 0]];
        let out = encode(&padded, &texts, None);
        assert!(out[..5 * HIDDEN].iter().all(|x| x.is_finite()), "{family}");
        assert!(out[5 * HIDDEN..].iter().all(|x| x.is_nan()), "{family}");
    }
}

#[test]
fn at_most_half_of_a_group_is_padding_and_no_text_is_lost() {
    let check = |lengths: &[usize], expected: usize| {
        let starts = lengths.iter().scan(0, |end, length| {
            *end += length;
            Some(*end - length)
        });
        let texts: Vec<_> = starts.zip(lengths.iter().copied()).collect();
        let groups = groups(&texts, Company::Padded);
        for group in &groups {
            let longest = group.iter().map(|(_, length)| length).max().unwrap();
            assert!(group.len() * longest <= 2 * group.iter().map(|(_, length)| length).sum::<usize>(), "{group:?}");
        }
        let mut all: Vec<_> = groups.concat();
        all.sort_unstable();
        assert_eq!(all, texts);
        assert_eq!(groups.len(), expected, "{groups:?}");
    };
    check(&[], 0);
    check(&[7], 1);
    check(&[4; 100], 1);
    check(&[3, 512, 3, 3, 3], 2);
    check(&(1..=64).collect::<Vec<_>>(), 1);
    assert_eq!(groups(&[(0, 2), (2, 9), (11, 1)], Company::Alone).len(), 3);
}

#[test]
fn layers_are_given_up_between_them() {
    let [alone, _] = both(&config("modernbert"));
    let asked = std::cell::Cell::new(0);
    let twice = || asked.replace(asked.get() + 1) < 2;
    let batch = Packed { ids: &[1], ends: &[1], types: None };
    let error = alone.encode(batch, &twice, &mut |_| panic!("nothing to read")).unwrap_err();
    assert_eq!((error.reason, asked.get()), (Reason::Abandoned, 3));
}
