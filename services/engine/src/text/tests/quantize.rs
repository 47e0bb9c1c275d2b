//! Calibration for int8, against the paper's arithmetic.

use super::*;
use crate::{
    PathChoice, Plan,
    manifest::{Exponents, Quantization},
    quantize,
};

pub(super) fn written(folder: &Path) -> ModelFiles {
    write(folder, &checkpoint(""));
    files(folder, MEAN)
}

/// The rows that go into both products of the first layer.
fn inputs(paper: &Paper<'_>, ids: &[usize]) -> [Vec<Vec<f64>>; 2] {
    let sum = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a + b).collect::<Vec<_>>();
    let embed = |(position, id): (usize, &usize)| {
        let typed = sum(
            paper.row("embeddings.word_embeddings.weight", *id),
            paper.row("embeddings.token_type_embeddings.weight", 0),
        );
        let row = sum(&typed, paper.row("embeddings.position_embeddings.weight", position));
        paper.norm("embeddings.LayerNorm", &row)
    };
    let rows: Vec<Vec<f64>> = ids.iter().enumerate().map(embed).collect();
    let name = |part: &str| format!("encoder.layer.0.attention.{part}");
    let project = |part: &str| rows.iter().map(|x| paper.dense(&name(part), x)).collect::<Vec<_>>();
    let mixed = attend(&project("self.query"), &project("self.key"), &project("self.value"));
    let add = |(row, mixed): (&Vec<f64>, &Vec<f64>)| {
        paper.norm(&name("output.LayerNorm"), &sum(row, &paper.dense(&name("output.dense"), mixed)))
    };
    let fed = rows.iter().zip(&mixed).map(add).collect();
    [rows, fed]
}

#[test]
fn factors_are_those_of_the_paper_for_the_texts() {
    let folder = tempfile::tempdir().unwrap();
    let (files, checkpoint) = (written(folder.path()), checkpoint(""));
    let paper = Paper { checkpoint: &checkpoint };
    let texts = ["A man eats food", "foods"].map(str::to_owned);
    let found = quantize::calibrate(&files, &texts, &|| ()).unwrap().smoothing;
    let seen: [Vec<Vec<f64>>; 2] = {
        let [a, b] = [&[2, 4, 5, 6, 7, 3][..], &[2, 7, 8, 3]].map(|ids| inputs(&paper, ids));
        [0, 1].map(|site| [a[site].clone(), b[site].clone()].concat())
    };
    let weights =
        [&["attention.self.query", "attention.self.key", "attention.self.value"][..], &["intermediate.dense"]];
    let mut expected = Vec::new();
    for (rows, products) in seen.iter().zip(weights) {
        let names: Vec<_> = products.iter().map(|name| format!("encoder.layer.0.{name}.weight")).collect();
        for i in 0..HIDDEN {
            let activation = rows.iter().map(|row| row[i].abs()).fold(0.0, f64::max);
            let column =
                |name: &String| (0..checkpoint[name].0[0]).map(|row| paper.row(name, row)[i].abs()).fold(0.0, f64::max);
            let weight = names.iter().map(column).fold(0.0, f64::max);
            expected.push((activation / weight).sqrt() as f32);
        }
    }
    let smoothing = quantized(&files.manifest, found).smoothing(LAYERS, HIDDEN).unwrap().unwrap();
    let first = quantize::Site::ALL.map(|site| smoothing.vector(0, site)).concat();
    assert_eq!(first.len(), expected.len());
    for (found, expected) in first.iter().zip(&expected) {
        // To the nearest eighth of a power of two: half a step is 4.5 %.
        assert!((found / expected).log2().abs() <= 1.0 / 16.0 + 1e-4, "{found} instead of {expected}");
    }
}

#[test]
fn a_calibration_is_the_same_for_any_order_and_division_of_its_texts() {
    let folder = tempfile::tempdir().unwrap();
    let files = written(folder.path());
    let texts = ["a man", "food", "eats foods a man", "man"].map(str::to_owned);
    let mut turned = texts.clone();
    turned.reverse();
    let heard = std::sync::atomic::AtomicUsize::new(0);
    let hear = || {
        heard.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
    };
    let found = quantize::calibrate(&files, &texts, &hear).unwrap().smoothing;
    assert_eq!(heard.into_inner(), 4);
    assert_eq!(quantize::calibrate(&files, &turned, &|| ()).unwrap().smoothing, found);
    assert_ne!(quantize::calibrate(&files, &texts[..1], &|| ()).unwrap().smoothing, found);
    let error = quantize::calibrate(&files, &[String::new()], &|| ()).unwrap_err().to_string();
    assert!(error.contains("a text"), "{error}");
}

#[test]
fn texts_are_calibrated_and_compared_behind_every_prompt() {
    let folder = tempfile::tempdir().unwrap();
    let mut files = written(folder.path());
    let texts = ["a man", "man"].map(str::to_owned);
    let plain = quantize::calibrate(&files, &texts, &|| ()).unwrap();
    let prompts = crate::manifest::Prompts { query: "foods ".to_owned(), ..Default::default() };
    files.manifest.text.as_mut().unwrap().prompts = Some(prompts);
    let prompted = quantize::calibrate(&files, &texts, &|| ()).unwrap();
    assert_ne!(prompted.smoothing, plain.smoothing);
    // As if the prompted texts had come among the others.
    files.manifest.text.as_mut().unwrap().prompts = None;
    let all = ["a man", "man", "foods a man", "foods man"].map(str::to_owned);
    assert_eq!(quantize::calibrate(&files, &all, &|| ()).unwrap().smoothing, prompted.smoothing);
}

#[test]
fn a_comparison_is_of_texts_that_the_factors_were_made_without() {
    let folder = tempfile::tempdir().unwrap();
    let files = written(folder.path());
    let texts = ["a man", "food", "eats foods a man", "man", "a food"].map(str::to_owned);
    let calibration = quantize::calibrate(&files, &texts, &|| ()).unwrap();
    let compared = quantize::compare(&files, &calibration, &texts, Compute::default()).unwrap();
    let near = compared.measured;
    assert_eq!(near.texts, 5);
    assert!(near.cosine_min > 0.99 && near.cosine_min < near.cosine_mean && near.cosine_mean < 1.0, "{near:?}");
    assert!(compared.rounded_bytes < compared.exact_bytes);
    let one = &texts[..1];
    // Of one text nothing is left to calibrate by.
    let alone = quantize::calibrate(&files, one, &|| ()).unwrap();
    assert_eq!(quantize::compare(&files, &alone, one, Compute::default()).unwrap().measured.texts, 1);
}

pub(super) fn quantized(manifest: &Manifest, smoothing: Exponents) -> Manifest {
    let name = "tiny-int8".to_owned().try_into().unwrap();
    quantize::prepared(manifest, name, Quantization { smoothing, measured: None })
}

#[test]
fn a_manifest_for_int8_is_written_and_read_and_has_a_revision_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let files = written(folder.path());
    let smoothing = quantize::calibrate(&files, &["a man".to_owned()], &|| ()).unwrap().smoothing;
    let manifest = quantized(&files.manifest, smoothing);
    let text = toml::to_string(&manifest).unwrap();
    assert!(text.contains("precision = \"int8\"") && text.contains("smoothing = \"\"\"\n"), "{text}");
    assert_eq!(Manifest::parse(&text).unwrap(), manifest);
    assert_ne!(manifest.revision(), files.manifest.revision());
    assert_ne!(manifest.space(HIDDEN as u32), files.manifest.space(HIDDEN as u32));
    let mut told = manifest.clone();
    told.quantization.as_mut().unwrap().measured =
        Some(quantize::Measured { texts: 9, cosine_mean: 0.999, cosine_min: 0.99 });
    assert_eq!((told.revision(), told.space(HIDDEN as u32)), (manifest.revision(), manifest.space(HIDDEN as u32)));
    assert_eq!(Manifest::parse(&toml::to_string(&told).unwrap()).unwrap(), told);
}

#[test]
fn a_model_for_int8_is_refused_where_nothing_computes_it() {
    let folder = tempfile::tempdir().unwrap();
    let files = written(folder.path());
    let candle = Compute { path: PathChoice::Candle, ..Compute::default() };
    let error = quantize::check(&files, &candle).unwrap_err().to_string();
    assert!(error.contains("candle, which has no int8"), "{error}");
    let smoothing = quantize::calibrate(&files, &["a man".to_owned()], &|| ()).unwrap().smoothing;
    let int8 = ModelFiles { manifest: quantized(&files.manifest, smoothing), ..files.clone() };
    let load = |files: &ModelFiles| {
        TextModel::load_sharing(files, TextLimits { bytes_max: 100, windows_max: 1 }, &Parts::new(candle))
    };
    assert!(load(&files).is_ok());
    let error = load(&int8).err().unwrap().to_string();
    assert!(error.contains("wants int8") && error.contains("candle, which has f32"), "{error}");
    let error = quantize::check(&int8, &Compute::default()).unwrap_err().to_string();
    assert!(error.contains("for int8 already"), "{error}");
}

#[test]
fn factors_of_another_checkpoint_are_refused_when_it_is_loaded() {
    let folder = tempfile::tempdir().unwrap();
    let mut files = written(folder.path());
    files.manifest = quantized(&files.manifest, Exponents::nearest([1.0; 8]));
    let error = Plan::new(&files, &Compute::default()).unwrap_err().to_string();
    assert!(error.contains("8 factors, a checkpoint of 2 layers of 64 components needs 256"), "{error}");
}

#[test]
fn a_plan_says_the_revision_before_the_model_is_loaded() {
    let folder = tempfile::tempdir().unwrap();
    let files = written(folder.path());
    let model = load(folder.path(), MEAN).unwrap();
    let plan = Plan::new(&files, &exact().compute).unwrap();
    assert_eq!((plan, plan.revision(&files.manifest)), (model.info().plan, model.info().revision.clone()));
}
