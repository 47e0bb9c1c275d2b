//! `tamis models quantize`: an encoder for int8.

use std::{
    fs::File,
    io::Read as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use engine::{
    Compute, Manifest, ModelName, Precision, Store,
    quantize::{self, Comparison, Quantization, TEXTS_MAX},
};

use super::{progress, pull};
use crate::{
    advice::Advice,
    output::{say, warn},
    train::vectors::bar,
};

/// Most bytes of a file of texts: 4,096 texts that are cut at 256 tokens need far less.
const FILE_BYTES_MAX: u64 = 64 << 20;
/// Fewer texts than these may not show every component at its greatest.
const TEXTS_WANTED: usize = 100;
/// Mean and least cosine of which nothing need be said. The built-in texts bring MiniLM to 0.9994 and 0.9941: sentences stay
/// above 0.998, and "Thank you!" is the one text below, for the fewer the words, the less evens out. What is below these wants
/// a look by somebody who knows the task.
const COSINE_WANTED: [f64; 2] = [0.999, 0.993];

/// Which model, and on what.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Name of a model for texts with an encoder of its own.
    name: String,
    /// Texts such as it will read, one a line, at most 4096 [default: 139 built-in English ones].
    #[arg(long, value_name = "FILE")]
    texts: Option<PathBuf>,
    /// Name of the new model [default: NAME-int8].
    #[arg(long = "as", value_name = "NEW")]
    new: Option<String>,
}

/// Runs `tamis models quantize`.
pub(super) fn run(store: &Store, args: &Args) -> anyhow::Result<()> {
    let manifest = store.manifest(&args.name)?;
    let name = free_name(store, &manifest, args.new.as_deref())?;
    let (texts, whose) = texts(args.texts.as_deref())?;
    if texts.len() < TEXTS_WANTED {
        warn(format!("warning: {} texts; {TEXTS_WANTED} and more of many kinds calibrate better", texts.len()));
    }
    if !store.is_present(&manifest) {
        pull(store, &manifest)?;
    }
    let (files, compute) = (store.open(&manifest)?, Compute::default());
    quantize::check(&files, &compute).map_err(|error| {
        let help = "int8 is for encoders of texts whose kernels are there; see `tamis doctor` for this machine";
        anyhow::Error::new(Advice::new(error.to_string(), help))
    })?;

    let progress = bar(texts.len() as u64, "calibrating");
    let calibration = quantize::calibrate(&files, &texts, &|| progress.inc(1));
    progress.finish_and_clear();
    let calibration = calibration?;
    let compared = quantize::compare(&files, &calibration, &texts, compute)?;
    let quantization = Quantization { smoothing: calibration.smoothing, measured: Some(compared.measured) };
    let prepared = quantize::prepared(&manifest, name, quantization);
    let remarks = format!("{} for int8, calibrated by `tamis models quantize` on {whose}.", manifest.name);
    let path = store.install_shared(&prepared, &remarks, &progress::Terminal::new())?;
    say(summary(&manifest, &prepared, &compared, &path))?;
    let Comparison { measured, .. } = compared;
    if [measured.cosine_mean, measured.cosine_min].iter().zip(COSINE_WANTED).any(|(found, wanted)| *found < wanted) {
        warn("warning: it is less near to f32 than most models are; compare both on your own task before you use it");
    }
    Ok(())
}

/// The new model's name, if it may be taken.
fn free_name(store: &Store, manifest: &Manifest, wanted: Option<&str>) -> anyhow::Result<ModelName> {
    let name = wanted.map_or_else(|| format!("{}-int8", manifest.name), str::to_owned);
    let name = ModelName::try_from(name).map_err(|why| Advice::new(why, "choose another with --as"))?;
    if store.is_known(&name)? {
        let help = format!("choose another with --as, or `tamis models remove {name}` first");
        bail!(Advice::new(format!("there is a model {name} already"), help));
    }
    Ok(name)
}

/// The texts, and what they are in words.
fn texts(file: Option<&Path>) -> anyhow::Result<(Vec<String>, String)> {
    let Some(path) = file else {
        let texts = quantize::builtin_texts();
        let whose = format!("{} built-in texts", texts.len());
        return Ok((texts, whose));
    };
    let mut bytes = Vec::new();
    let opened = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    opened.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    if bytes.len() as u64 > FILE_BYTES_MAX {
        let what = format!("{name} has more than {} MiB", FILE_BYTES_MAX >> 20);
        bail!(Advice::new(what, "take some hundred texts of it, of many kinds"));
    }
    let text = String::from_utf8(bytes).with_context(|| format!("{name} is not UTF-8"))?;
    let texts: Vec<_> = text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect();
    if texts.is_empty() || texts.len() > TEXTS_MAX {
        let what = format!("{name} has {} texts: 1 to {TEXTS_MAX}, one a line", texts.len());
        bail!(Advice::new(what, "some hundred texts of many kinds are enough"));
    }
    let whose = format!("{} texts of {name}", texts.len());
    Ok((texts, whose))
}

/// What was made, how good it is, and what to do next.
fn summary(from: &Manifest, made: &Manifest, compared: &Comparison, path: &Path) -> String {
    let Comparison { measured, exact_bytes, rounded_bytes } = compared;
    let size = |bytes: &u64| indicatif::BinaryBytes(*bytes);
    let mut text = format!("quantized {} as {}\n", from.name, made.name);
    let mut line = |key: &str, value: &str| text.push_str(&format!("  {key:9} {value}\n"));
    line("texts", &measured.texts.to_string());
    let cosine = format!("{:.4} mean, {:.4} min", measured.cosine_mean, measured.cosine_min);
    line("cosine", &format!("{cosine}, to the vectors of f32, each text held out of the calibration"));
    line("size", &format!("{} in memory, {} in f32", size(rounded_bytes), size(exact_bytes)));
    line("revision", &format!("{} in int8", made.revision().in_precision(Precision::Int8)));
    line("manifest", &path.display().to_string());
    text.push_str(&format!("\nLet a running mesh load it:\n  tamis models load {}", made.name));
    text
}

#[cfg(test)]
mod tests {
    use engine::{
        ModelFiles,
        quantize::{Exponents, Measured},
    };

    use super::*;
    use crate::advice::report;

    fn read(content: &[u8]) -> anyhow::Result<(Vec<String>, String)> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mine.txt");
        std::fs::write(&path, content).unwrap();
        texts(Some(&path))
    }

    #[track_caller]
    fn refuses(content: &[u8], complaint: &str) {
        let said = report(&read(content).unwrap_err());
        assert!(said.contains(complaint) && said.contains("mine.txt"), "{said}");
    }

    #[test]
    fn texts_are_the_lines_of_a_file_and_bounded() {
        assert_eq!(read(b"one\n\n  two \n").unwrap(), (vec!["one".into(), "two".into()], "2 texts of mine.txt".into()));
        assert_eq!(texts(None).unwrap().0, quantize::builtin_texts());
        refuses(b" \n\n", "has 0 texts: 1 to 4096");
        refuses("a\n".repeat(TEXTS_MAX + 1).as_bytes(), "has 4097 texts");
        refuses(&[0xff, 0xfe], "is not UTF-8");
        refuses(&vec![b'a'; usize::try_from(FILE_BYTES_MAX).unwrap() + 1], "more than 64 MiB");
        let missing = report(&texts(Some(Path::new("/nowhere/x"))).unwrap_err());
        assert!(missing.contains("cannot read /nowhere/x"), "{missing}");
    }

    #[test]
    fn the_new_name_is_the_old_one_s_with_its_precision_unless_it_is_taken() {
        let folder = tempfile::tempdir().unwrap();
        let (store, manifest) = (Store::new(folder.path()), Manifest::builtin().remove(0));
        let name = |wanted: Option<&str>| free_name(&store, &manifest, wanted);
        assert_eq!(name(Some("mine")).unwrap().as_str(), "mine");
        let taken = report(&name(Some("sentiment-minilm-v1")).unwrap_err());
        assert!(taken.contains("there is a model sentiment-minilm-v1 already") && taken.contains("--as"), "{taken}");
        assert!(report(&name(Some("Not A Name")).unwrap_err()).contains("--as"));
        let other = Manifest { name: "other".to_owned().try_into().unwrap(), ..manifest.clone() };
        assert_eq!(free_name(&store, &other, None).unwrap().as_str(), "other-int8");
    }

    #[test]
    fn the_summary_says_how_near_it_is_and_what_to_do() {
        let from = Manifest::builtin().remove(0);
        let smoothing: Exponents = "AAAA".parse().unwrap();
        let quantization = Quantization { smoothing, measured: None };
        let made = quantize::prepared(&from, "m-int8".to_owned().try_into().unwrap(), quantization);
        let measured = Measured { texts: 139, cosine_mean: 0.999_412, cosine_min: 0.998_6 };
        let compared = Comparison { measured, exact_bytes: 90 << 20, rounded_bytes: 34 << 20 };
        let text = summary(&from, &made, &compared, Path::new("/data/manifests/m-int8.toml"));
        for part in ["0.9994 mean, 0.9986 min", "34.00 MiB in memory, 90.00 MiB in f32", "tamis models load m-int8"] {
            assert!(text.contains(part), "{part} is missing in {text}");
        }
        assert!(text.contains(made.revision().in_precision(Precision::Int8).as_str()), "as a replica has it");
    }

    #[test]
    fn what_can_not_be_quantized_is_refused_before_anything_is_computed() {
        let folder = tempfile::tempdir().unwrap();
        let refusal = |name: &str| {
            let manifest = Manifest::builtin().into_iter().find(|manifest| manifest.name.as_str() == name).unwrap();
            let files = ModelFiles { manifest, folder: folder.path().into(), base: None };
            quantize::check(&files, &Compute::default()).unwrap_err().to_string()
        };
        assert!(refusal("efficientnet-lite0").contains("its task is vision; int8 is for encoders of texts"));
        assert!(refusal("sentiment-minilm-v1").contains("quantize all-minilm-l6-v2"));
    }
}
