//! Heads over embedding models.

use super::*;
use crate::{manifest::Sha256Digest, train::Layer};

const LIMITS: TextLimits = TextLimits { bytes_max: 100, windows_max: 1 };

fn manifest(name: &str, more: &str, files: &[&str]) -> Manifest {
    let file = |name: &&str| format!("[[files]]\nname = \"{name}\"\nsha256 = \"{}\"\n", "0".repeat(64));
    let files: String = files.iter().map(file).collect();
    Manifest::parse(&format!("name = \"{name}\"\nlicence = \"MIT\"\nsources = [{{ hub = \"a/b\" }}]\n{more}{files}"))
        .unwrap()
}

/// A tiny embedding model and the files of a head over it.
fn files(folder: &Path, normalize: bool, layer: &Layer) -> ModelFiles {
    write(folder, &checkpoint(""));
    fs::write(folder.join("head.safetensors"), layer.safetensors().unwrap()).unwrap();
    let base = manifest(
        "base",
        &format!("task = \"embedding\"\ntext = {{ pooling = \"mean\", normalize = {normalize}, max_tokens = 8 }}\n"),
        &["config.json", "tokenizer.json", "model.safetensors"],
    );
    let head = manifest(
        "mood",
        &format!(
            "task = \"classification\"\nbase = {{ model = \"base\", revision = \"{}\" }}\n\
             head = {{ labels = [\"bad\", \"good\"], activation = \"softmax\", temperature = 0.5 }}\n",
            base.revision()
        ),
        &["head.safetensors"],
    );
    let base = ModelFiles { manifest: base, folder: folder.to_owned(), base: None };
    ModelFiles { manifest: head, folder: folder.to_owned(), base: Some(Box::new(base)) }
}

fn layer() -> Layer {
    let mut seed = 5;
    Layer { weight: (0..2 * HIDDEN).map(|_| noise(&mut seed) as f32).collect(), bias: vec![0.5, -0.25] }
}

#[test]
fn a_head_reads_the_vectors_as_their_model_makes_them() {
    for unit in [true, false] {
        let folder = tempfile::tempdir().unwrap();
        let files = files(folder.path(), unit, &layer());
        let model = TextModel::load_sharing(&files, LIMITS, &exact()).unwrap();
        let base = model.base().unwrap();
        assert!(model.head().unwrap().labels == ["bad", "good"] && base.head().is_none());
        assert_eq!(
            (model.info().dimensions, base.info().dimensions, model.info().max_input_tokens),
            (0, HIDDEN as u32, 8)
        );
        let texts = ["a man eats", "food"];
        for (labels, vector) in run(&model, &texts).into_iter().zip(run(base, &texts)) {
            let mut vector = vector.unwrap().values;
            if unit {
                normalize(&mut vector);
            }
            let (labels, expected) = (labels.unwrap(), layer().logits(&vector));
            let near = labels.values.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-5);
            assert!(near && labels.values.len() == 2 && labels.tokens > 2, "{labels:?} instead of {expected:?}");
        }
    }
}

#[test]
fn a_head_says_what_it_and_its_base_are_made_of() {
    let folder = tempfile::tempdir().unwrap();
    let model = TextModel::load_sharing(&files(folder.path(), true, &layer()), LIMITS, &exact()).unwrap();
    let info = model.info();
    let names: Vec<_> = info.file_digests.keys().map(String::as_str).collect();
    assert_eq!(names, ["config.json", "head.safetensors", "model.safetensors", "tokenizer.json"]);
    assert_eq!(info.parameter_bytes, model.base().unwrap().info().parameter_bytes + 4 * (2 * HIDDEN as u64 + 2));
}

#[test]
fn models_with_the_same_parts_have_them_once_and_free_them_together() {
    let folder = tempfile::tempdir().unwrap();
    let files = files(folder.path(), true, &layer());
    let parts = exact();
    let load = |files: &ModelFiles| TextModel::load_sharing(files, LIMITS, &parts).unwrap();
    let (first, second, plain) = (load(&files), load(&files), load(files.base.as_ref().unwrap()));
    for other in [&second, &plain, first.base().unwrap()] {
        assert!(Arc::ptr_eq(&first.encoder, &other.encoder) && Arc::ptr_eq(&first.tokens, &other.tokens));
    }
    let alone = TextModel::load_sharing(&files, LIMITS, &exact()).unwrap();
    assert!(!Arc::ptr_eq(&first.encoder, &alone.encoder));

    // The same weights by another name are the same; other weights are not.
    let mut other = (**files.base.as_ref().unwrap()).clone();
    let weights = other.manifest.files.iter_mut().find(|file| file.name == "model.safetensors").unwrap();
    weights.sha256 = Sha256Digest::try_from("1".repeat(64)).unwrap();
    assert!(!Arc::ptr_eq(&first.encoder, &load(&other).encoder));

    let freed = Arc::downgrade(&first.encoder);
    drop((first, second));
    assert!(freed.upgrade().is_some(), "one still reads with it");
    drop(plain);
    assert!(freed.upgrade().is_none());
}

#[test]
fn a_head_that_does_not_fit_is_refused_with_both_names() {
    let folder = tempfile::tempdir().unwrap();
    let narrow = Layer { weight: vec![0.0; 2 * 5], bias: vec![0.0; 2] };
    let error =
        TextModel::load_sharing(&files(folder.path(), true, &narrow), LIMITS, &exact()).err().unwrap().to_string();
    assert!(error.contains("mood") && error.contains("does not fit base"), "{error}");

    let mut files = files(folder.path(), true, &layer());
    files.base = Some(Box::new(files.clone()));
    let error = TextModel::load_sharing(&files, LIMITS, &exact()).err().unwrap().to_string();
    assert!(error.contains("makes labels, not vectors"), "{error}");
}
