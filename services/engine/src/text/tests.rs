use std::{collections::HashMap, fs, path::Path};

use candle_core::{DType, Device, Tensor};
use serde_json::json;

use super::*;
use crate::{Compute, Manifest, Precision, PrecisionChoice, ScoreMode};

mod company;
mod families;
mod inputs;
mod modernbert;
mod over;
mod quantize;
mod rerank;

/// A shape that has kernels.
const HIDDEN: usize = 64;
const HEADS: usize = 2;
const INNER: usize = 32;
const LAYERS: usize = 2;
const POSITIONS: usize = 10;
const WORDS: [&str; 9] = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "man", "eats", "food", "##s"];

/// A checkpoint as f64, by the names of its tensors.
type Checkpoint = HashMap<String, (Vec<usize>, Vec<f64>)>;

/// Numbers that look random and are the same everywhere.
fn noise(seed: &mut u64) -> f64 {
    *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    f64::from((*seed >> 33) as u32) / f64::from(1_u32 << 30) - 1.0
}

fn checkpoint(prefix: &str) -> Checkpoint {
    let mut shapes = vec![
        ("embeddings.word_embeddings.weight".to_owned(), vec![WORDS.len(), HIDDEN]),
        ("embeddings.position_embeddings.weight".to_owned(), vec![POSITIONS, HIDDEN]),
        ("embeddings.token_type_embeddings.weight".to_owned(), vec![2, HIDDEN]),
        ("embeddings.LayerNorm.weight".to_owned(), vec![HIDDEN]),
        ("embeddings.LayerNorm.bias".to_owned(), vec![HIDDEN]),
        ("pooler.dense.weight".to_owned(), vec![HIDDEN, HIDDEN]),
        ("pooler.dense.bias".to_owned(), vec![HIDDEN]),
    ];
    for layer in 0..LAYERS {
        let mut part = |name: &str, shape: Vec<usize>| shapes.push((format!("encoder.layer.{layer}.{name}"), shape));
        for name in ["attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"] {
            part(&format!("{name}.weight"), vec![HIDDEN, HIDDEN]);
            part(&format!("{name}.bias"), vec![HIDDEN]);
        }
        for name in ["attention.output.LayerNorm", "output.LayerNorm"] {
            part(&format!("{name}.weight"), vec![HIDDEN]);
            part(&format!("{name}.bias"), vec![HIDDEN]);
        }
        part("intermediate.dense.weight", vec![INNER, HIDDEN]);
        part("intermediate.dense.bias", vec![INNER]);
        part("output.dense.weight", vec![HIDDEN, INNER]);
        part("output.dense.bias", vec![HIDDEN]);
    }
    let mut named: Vec<_> = shapes.into_iter().map(|(name, shape)| (format!("{prefix}{name}"), shape)).collect();
    named.push(("classifier.weight".to_owned(), vec![3, HIDDEN]));
    named.push(("classifier.bias".to_owned(), vec![3]));
    let mut seed = 7;
    // Sums over rows of any length are of order 1.
    let size = |shape: &[usize]| if shape.len() == 2 { 3.0 / (shape[1] as f64).sqrt() } else { 1.0 };
    let mut fill = |shape: &[usize]| {
        let values = (0..shape.iter().product()).map(|_| f64::from((noise(&mut seed) * size(shape)) as f32));
        values.collect()
    };
    named.into_iter().map(|(name, shape)| (name, (shape.clone(), fill(&shape)))).collect()
}

fn save(folder: &Path, checkpoint: &Checkpoint, dtype: DType) {
    let tensor = |(shape, values): &(Vec<usize>, Vec<f64>)| {
        let values: Vec<f32> = values.iter().map(|value| *value as f32).collect();
        Tensor::from_vec(values, shape.as_slice(), &Device::Cpu).and_then(|tensor| tensor.to_dtype(dtype)).unwrap()
    };
    let tensors: HashMap<String, Tensor> =
        checkpoint.iter().map(|(name, value)| (name.clone(), tensor(value))).collect();
    candle_core::safetensors::save(&tensors, folder.join("model.safetensors")).unwrap();
}

/// Writes the checkpoint as the Hub would give it, with a tokenizer.json that would cut at 4 tokens and pad to 6.
fn write(folder: &Path, checkpoint: &Checkpoint) {
    save(folder, checkpoint, DType::F32);
    let config = json!({
        "model_type": "bert", "vocab_size": WORDS.len(), "hidden_size": HIDDEN, "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS, "intermediate_size": INNER, "hidden_act": "gelu", "layer_norm_eps": 1e-12,
        "max_position_embeddings": POSITIONS, "type_vocab_size": 2, "architectures": ["BertModel"],
        "id2label": {"1": "neutral", "0": "bad", "2": "good"},
    });
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let vocabulary: HashMap<_, _> = WORDS.iter().enumerate().map(|(id, word)| (word, id)).collect();
    let special = |id: usize| {
        json!({"id": id, "content": WORDS[id], "single_word": false, "lstrip": false,
        "rstrip": false, "normalized": false, "special": true})
    };
    let template = |word: &str, id: usize| (word.to_owned(), json!({"id": word, "ids": [id], "tokens": [word]}));
    let tokenizer = json!({
        "version": "1.0",
        "truncation": {"max_length": 4, "strategy": "LongestFirst", "stride": 0, "direction": "Right"},
        "padding": {"strategy": {"Fixed": 6}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0,
            "pad_type_id": 0, "pad_token": "[PAD]"},
        "added_tokens": [special(0), special(1), special(2), special(3)],
        "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
            "strip_accents": null, "lowercase": true},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": "[SEP]", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": HashMap::from([template("[CLS]", 2), template("[SEP]", 3)])},
        "decoder": null,
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": vocabulary},
    });
    fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).unwrap();
}

/// Models in f32.
fn exact() -> Parts {
    Parts::new(Compute { precision: PrecisionChoice::Only(Precision::F32), ..Compute::default() })
}

/// A model of this recipe, from files that only the test has: the store has checked their digests in real life.
fn load(folder: &Path, recipe: &str) -> Result<TextModel, Error> {
    load_in(folder, recipe, &exact())
}

/// The files of a checkpoint that is written there, under a manifest with this recipe.
fn files(folder: &Path, recipe: &str) -> ModelFiles {
    let task = match recipe {
        _ if recipe.contains("[head]") => "classification",
        _ if recipe.contains("# rerank") => "rerank",
        _ => "embedding",
    };
    let file = |name: &str| format!("[[files]]\nname = \"{name}\"\nsha256 = \"{}\"\n", "0".repeat(64));
    let files = ["config.json", "tokenizer.json", "model.safetensors"].map(file).concat();
    let text = format!(
        "name = \"tiny\"\ntask = \"{task}\"\nlicence = \"MIT\"\nsources = [{{ hub = \"a/b\" }}]\n{files}{recipe}"
    );
    ModelFiles { manifest: Manifest::parse(&text).unwrap(), folder: folder.to_owned(), base: None }
}

const LIMITS: TextLimits = TextLimits { bytes_max: 100, windows_max: 3 };

fn load_in(folder: &Path, recipe: &str, parts: &Parts) -> Result<TextModel, Error> {
    TextModel::load_sharing(&files(folder, recipe), LIMITS, parts)
}

fn tiny(recipe: &str) -> (TextModel, Checkpoint) {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = checkpoint("");
    write(folder.path(), &checkpoint);
    (load(folder.path(), recipe).unwrap(), checkpoint)
}

fn input(text: &str, truncation: Truncation) -> TextInput {
    TextInput { content: Content::Text(text.to_owned(), Role::Symmetric), work: Work::Compute(truncation) }
}

fn run(model: &TextModel, texts: &[&str]) -> Vec<Result<TextOutput, ItemError>> {
    compute(model, &texts.iter().map(|text| input(text, Truncation::Error)).collect::<Vec<_>>())
}

fn compute(model: &TextModel, inputs: &[TextInput]) -> Vec<Result<TextOutput, ItemError>> {
    model.run(&inputs.iter().collect::<Vec<_>>(), &mut Watch::start(&|| true))
}

/// BERT written out from the paper, one number at a time, in f64.
struct Paper<'a> {
    checkpoint: &'a Checkpoint,
}

impl Paper<'_> {
    fn row(&self, name: &str, row: usize) -> &[f64] {
        let (shape, values) = &self.checkpoint[name];
        let width = *shape.last().unwrap();
        &values[row * width..(row + 1) * width]
    }

    fn dense(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let bias = self.row(&format!("{name}.bias"), 0);
        let weight = format!("{name}.weight");
        (0..bias.len()).map(|i| bias[i] + self.row(&weight, i).iter().zip(x).map(|(w, x)| w * x).sum::<f64>()).collect()
    }

    fn norm(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let mean = x.iter().sum::<f64>() / x.len() as f64;
        let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / x.len() as f64;
        let (weight, bias) = (self.row(&format!("{name}.weight"), 0), self.row(&format!("{name}.bias"), 0));
        (0..x.len()).map(|i| (x[i] - mean) / (variance + 1e-12).sqrt() * weight[i] + bias[i]).collect()
    }

    /// The vectors of the tokens of one text.
    fn encode(&self, ids: &[usize]) -> Vec<Vec<f64>> {
        self.encode_pair(ids, &vec![0; ids.len()])
    }

    /// The same where each token says which text of a pair it belongs to.
    fn encode_pair(&self, ids: &[usize], types: &[usize]) -> Vec<Vec<f64>> {
        let sum = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a + b).collect::<Vec<_>>();
        let embed = |(position, id): (usize, &usize)| {
            let word = self.row("embeddings.word_embeddings.weight", *id);
            let typed = sum(word, self.row("embeddings.token_type_embeddings.weight", types[position]));
            self.norm("embeddings.LayerNorm", &sum(&typed, self.row("embeddings.position_embeddings.weight", position)))
        };
        let mut rows: Vec<Vec<f64>> = ids.iter().enumerate().map(embed).collect();
        for layer in 0..LAYERS {
            let name = |part: &str| format!("encoder.layer.{layer}.{part}");
            let project = |part: &str| rows.iter().map(|x| self.dense(&name(part), x)).collect::<Vec<_>>();
            let mixed = attend(
                &project("attention.self.query"),
                &project("attention.self.key"),
                &project("attention.self.value"),
            );
            rows = rows
                .iter()
                .zip(&mixed)
                .map(|(x, mixed)| {
                    let attended = self.dense(&name("attention.output.dense"), mixed);
                    let x = self.norm(&name("attention.output.LayerNorm"), &sum(x, &attended));
                    let inner: Vec<_> = self.dense(&name("intermediate.dense"), &x).into_iter().map(gelu).collect();
                    self.norm(&name("output.LayerNorm"), &sum(&x, &self.dense(&name("output.dense"), &inner)))
                })
                .collect();
        }
        rows
    }
}

fn attend(queries: &[Vec<f64>], keys: &[Vec<f64>], values: &[Vec<f64>]) -> Vec<Vec<f64>> {
    let width = HIDDEN / HEADS;
    let mut mixed = vec![vec![0.0; HIDDEN]; queries.len()];
    for head in (0..HEADS).map(|head| head * width..(head + 1) * width) {
        for (query, out) in queries.iter().zip(&mut mixed) {
            let score = |key: &Vec<f64>| head.clone().map(|i| query[i] * key[i]).sum::<f64>() / (width as f64).sqrt();
            let powers: Vec<f64> = keys.iter().map(|key| score(key).exp()).collect();
            let total: f64 = powers.iter().sum();
            for (power, value) in powers.iter().zip(values) {
                head.clone().for_each(|i| out[i] += power / total * value[i]);
            }
        }
    }
    mixed
}

/// x times the normal distribution's area below x, by Simpson's rule.
fn gelu(x: f64) -> f64 {
    let density = |t: f64| (-t * t / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt();
    let steps = 2000;
    let step = x / f64::from(steps);
    let weight = |i: i32| {
        if i == 0 || i == steps {
            1.0
        } else if i % 2 == 1 {
            4.0
        } else {
            2.0
        }
    };
    let area: f64 = (0..=steps).map(|i| weight(i) * density(step * f64::from(i))).sum::<f64>() * step / 3.0;
    x * (0.5 + area)
}

/// Compares with an absolute tolerance of 1e-4: the values are of order 1, and sums in f32 lose a few units of 1e-7.
#[track_caller]
fn assert_near(values: &[f32], expected: &[f64]) {
    assert_eq!(values.len(), expected.len());
    let worst = values.iter().zip(expected).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max);
    assert!(worst < 1e-4, "{values:?} is {worst} from {expected:?}");
}

const MEAN: &str = "[text]\npooling = \"mean\"\nmax_tokens = 8\n";

fn mean(rows: &[Vec<f64>]) -> Vec<f64> {
    (0..HIDDEN).map(|i| rows.iter().map(|row| row[i]).sum::<f64>() / rows.len() as f64).collect()
}

#[test]
fn vectors_are_those_of_the_paper_in_any_company() {
    let (model, checkpoint) = tiny(MEAN);
    let paper = Paper { checkpoint: &checkpoint };
    let texts: [(&str, &[usize]); 3] =
        [("A man eats food", &[2, 4, 5, 6, 7, 3]), ("foods", &[2, 7, 8, 3]), ("zebra", &[2, 1, 3])];
    let together = run(&model, &texts.map(|(text, _)| text));
    for ((text, ids), beside) in texts.into_iter().zip(together) {
        let alone = run(&model, &[text]).remove(0).unwrap();
        assert_eq!((alone.tokens as usize, alone.truncated), (ids.len(), false));
        let expected = mean(&paper.encode(ids));
        assert_near(&alone.values, &expected);
        assert_near(&beside.unwrap().values, &expected);
    }
}

/// Independent pooling of a text's rows.
type Pooled = fn(&Paper<'_>, Vec<Vec<f64>>) -> Vec<f64>;

#[test]
fn every_pooling_is_what_it_says() {
    let ids = [2, 4, 5, 3];
    let check = |pooling: &str, expected: Pooled| {
        let (model, checkpoint) = tiny(&MEAN.replace("mean", pooling));
        let paper = Paper { checkpoint: &checkpoint };
        let output = run(&model, &["a man"]).remove(0).unwrap();
        assert_near(&output.values, &expected(&paper, paper.encode(&ids)));
    };
    check("mean", |_, rows| mean(&rows));
    check("cls", |_, rows| rows[0].clone());
    check("max", |_, rows| (0..HIDDEN).map(|i| rows.iter().map(|row| row[i]).fold(f64::MIN, f64::max)).collect());
    check("pooler", |paper, rows| paper.dense("pooler.dense", &rows[0]).into_iter().map(f64::tanh).collect());
}

#[test]
fn a_classifier_of_the_hub_has_its_labels_and_stands_on_the_pooler() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &checkpoint("bert."));
    let recipe = "[text]\npooling = \"pooler\"\nmax_tokens = 8\n[head]\nactivation = \"softmax\"\n";
    let model = load(folder.path(), recipe).unwrap();
    assert_eq!(model.head().unwrap().labels, ["bad", "neutral", "good"]);
    assert_eq!((model.info().dimensions, model.info().labels.len()), (0, 3));
    let plain = checkpoint("");
    let paper = Paper { checkpoint: &plain };
    let pooled: Vec<_> =
        paper.dense("pooler.dense", &paper.encode(&[2, 4, 5, 3])[0]).into_iter().map(f64::tanh).collect();
    let output = run(&model, &["a man"]).remove(0).unwrap();
    assert_near(&output.values, &paper.dense("classifier", &pooled));
    let scores = model.head().unwrap().scores(&output.values, ScoreMode::Native);
    assert!((scores.iter().sum::<f32>() - 1.0).abs() < 1e-6);
}

#[test]
fn nothing_is_cut_in_silence() {
    let (model, _) = tiny(MEAN);
    let long = "a man eats food a man eats food";
    let error = run(&model, &[long]).remove(0).unwrap_err();
    assert_eq!(error.reason, Reason::TooLong);
    assert_eq!(error.message, "the text has 10 tokens, the model takes 8");
    let end = |text: &str| compute(&model, &[input(text, Truncation::End)]).remove(0).unwrap();
    let cut = end(long);
    assert_eq!((cut.tokens, cut.truncated), (8, true));
    // The last special token stays: the cut text is that of its first words.
    let short = end("a man eats food a man");
    assert_eq!((short.tokens, short.truncated), (8, false));
    assert_eq!(cut.values, short.values);
}

#[test]
fn a_bad_text_fails_alone() {
    let (model, _) = tiny(MEAN);
    let large = "a ".repeat(51);
    let results = run(&model, &["a man", "", " \n\t\u{2003}", &large, "food"]);
    let reasons: Vec<_> = results.iter().map(|result| result.as_ref().err().map(|error| error.reason)).collect();
    assert_eq!(reasons, [None, Some(Reason::Empty), Some(Reason::Empty), Some(Reason::TooLarge), None]);
    assert_eq!(results[3].as_ref().unwrap_err().message, "the text has 102 bytes, the bound is 100");
    assert_eq!(results[0].as_ref().unwrap().values, run(&model, &["a man"])[0].as_ref().unwrap().values);
    assert!(run(&model, &[""])[0].is_err());
}

#[test]
fn numbers_that_are_none_fail_their_text_alone() {
    let folder = tempfile::tempdir().unwrap();
    let mut checkpoint = checkpoint("");
    let words = &mut checkpoint.get_mut("embeddings.word_embeddings.weight").unwrap().1;
    words[7 * HIDDEN] = f64::NAN;
    write(folder.path(), &checkpoint);
    let model = load(folder.path(), MEAN).unwrap();
    let results = run(&model, &["food", "a man"]);
    assert_eq!(results[0].as_ref().unwrap_err().reason, Reason::Engine);
    assert!(results[1].is_ok());
}

#[test]
fn what_nobody_wants_is_given_up_between_layers() {
    let (model, _) = tiny(MEAN);
    let results = model.run(&[&input("a man", Truncation::Error)], &mut Watch::start(&|| false));
    assert_eq!(results[0].as_ref().unwrap_err().reason, Reason::Abandoned);
}

#[test]
fn units_follow_the_length_up_to_the_limit() {
    let (model, _) = tiny(MEAN);
    let units = |text: &str| model.units(&input(text, Truncation::End));
    assert_eq!([units(""), units("a man eats"), units(&"a".repeat(90))], [2, 4, 8]);
}

#[test]
fn a_checkpoint_that_does_not_fit_is_refused_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let mut broken = checkpoint("");
    broken.remove("encoder.layer.1.output.dense.weight");
    write(folder.path(), &broken);
    let refuses = |recipe: &str, complaint: &str| {
        let error = load(folder.path(), recipe).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(error.contains(complaint), "{error:?} does not say {complaint:?}");
    };
    refuses(MEAN, "encoder.layer.1.output.dense.weight");
    refuses(&MEAN.replace("= 8", "= 11"), "the checkpoint has 10");
    let config = fs::read_to_string(folder.path().join("config.json")).unwrap();
    // Layers that nobody has must not be given memory before they are looked for.
    for (layers, complaint) in [("1000000", "num_hidden_layers is 1000000: at most 1024"), ("1024", "encoder.layer.")] {
        let config = config.replace("\"num_hidden_layers\":2", &format!("\"num_hidden_layers\":{layers}"));
        fs::write(folder.path().join("config.json"), config).unwrap();
        refuses(MEAN, complaint);
    }
    fs::write(folder.path().join("config.json"), config.replace("\"bert\"", "\"t5\"")).unwrap();
    refuses(MEAN, "model_type \"t5\"");
    fs::write(folder.path().join("config.json"), "{").unwrap();
    refuses(MEAN, "config.json");
}

#[test]
fn weights_that_are_not_finite_are_refused_by_their_name() {
    for (name, number) in [
        ("encoder.layer.0.attention.self.key.weight", f64::NAN),
        ("encoder.layer.1.output.dense.bias", f64::INFINITY),
        ("encoder.layer.1.output.LayerNorm.weight", f64::NEG_INFINITY),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let mut checkpoint = checkpoint("");
        checkpoint.get_mut(name).unwrap().1[3] = number;
        write(folder.path(), &checkpoint);
        let error = load(folder.path(), MEAN).err().unwrap().to_string();
        assert!(error.contains(&format!("{name} has")), "{error}");
    }
}

#[test]
fn spaces_differ_by_what_moves_vectors_only() {
    let (mean, _) = tiny(MEAN);
    let (longer, _) = tiny(&MEAN.replace("= 8", "= 9"));
    let (cls, _) = tiny(&MEAN.replace("mean", "cls"));
    assert_eq!(mean.info().space_id(true, None), longer.info().space_id(true, None));
    assert_ne!(mean.info().revision, longer.info().revision);
    assert_ne!(mean.info().space_id(true, None), cls.info().space_id(true, None));
    assert_ne!(mean.info().space_id(true, None), mean.info().space_id(false, None));
    assert!(mean.info().space_id(true, None).starts_with("sha256:"));
}

#[test]
fn normalising_gives_length_one_and_leaves_zeros() {
    let mut vector = [3.0, -4.0];
    normalize(&mut vector);
    assert_eq!(vector, [0.6, -0.8]);
    let mut zeros = [0.0; 3];
    normalize(&mut zeros);
    assert_eq!(zeros, [0.0; 3]);
}
