//! What a well-formed manifest must also satisfy.

use kernels::Precision;

use super::{Activation, FileSpec, HeadRecipe, ImageRecipe, Labels, Manifest, Prompts, Source, Task};
use crate::PrecisionChoice;

const LICENCE_BYTES_MAX: usize = 128;
const TOKENS_MAX: u32 = 1 << 20;
const PIXELS_MAX: u32 = 4096;
/// What a head over a base consists of.
const HEAD_FILE: &str = "head.safetensors";
const PROMPT_BYTES_MAX: usize = 1024;

impl Manifest {
    /// All mistakes in one message, or nothing.
    pub(super) fn check(&self) -> Result<(), String> {
        let mut faults = Vec::new();
        if self.licence.is_empty() || self.licence.len() > LICENCE_BYTES_MAX {
            faults.push(format!("licence has {} bytes: 1 to {LICENCE_BYTES_MAX}", self.licence.len()));
        }
        if self.sources.is_empty() {
            faults.push("there is no source: add [[sources]]".to_owned());
        }
        for source in &self.sources {
            check_source(source, &mut faults);
        }
        self.check_files(&mut faults);
        self.check_recipes(&mut faults);
        self.check_precision(&mut faults);
        if faults.is_empty() { Ok(()) } else { Err(faults.join("; ")) }
    }

    fn check_files(&self, faults: &mut Vec<String>) {
        for (index, file) in self.files.iter().enumerate() {
            check_file(file, faults);
            if self.files[..index].iter().any(|other| other.name == file.name) {
                faults.push(format!("file {:?} is listed twice", file.name));
            }
        }
        let needed: &[&str] = match self.task {
            _ if self.base.is_some() => {
                for file in self.files.iter().filter(|file| file.name != HEAD_FILE) {
                    faults.push(format!("file {:?}: a head over a base has {HEAD_FILE:?} only", file.name));
                }
                &[HEAD_FILE]
            }
            Task::Embedding | Task::Classification | Task::Rerank => {
                &["config.json", "model.safetensors", "tokenizer.json"]
            }
            Task::Vision => &["model.safetensors"],
        };
        for name in needed {
            if !self.files.iter().any(|file| file.name == *name) {
                faults.push(format!("file {name:?} is not listed, and the task {} needs it", self.task));
            }
        }
    }

    fn check_recipes(&self, faults: &mut Vec<String>) {
        let task = self.task;
        let mut table = |name: &str, present: bool, wanted: bool| match (present, wanted) {
            (true, false) => faults.push(format!("[{name}] does not belong to the task {task}")),
            (false, true) => faults.push(format!("[{name}] is missing, and the task {task} needs it")),
            _ => {}
        };
        if self.base.is_some() && task != Task::Classification {
            table("base", true, false);
        }
        table("text", self.text.is_some(), task != Task::Vision && self.base.is_none());
        table("image", self.image.is_some(), task == Task::Vision);
        table("head", self.head.is_some(), !matches!(task, Task::Embedding | Task::Rerank));
        if let Some(text) = &self.text
            && !(1..=TOKENS_MAX).contains(&text.max_tokens)
        {
            faults.push(format!("text.max_tokens is {}: 1 to {TOKENS_MAX}", text.max_tokens));
        }
        if let Some(prompts) = self.text.as_ref().and_then(|text| text.prompts.as_ref()) {
            check_prompts(prompts, task, faults);
        }
        if let Some(image) = &self.image {
            check_image(image, faults);
        }
        if let Some(head) = &self.head {
            check_head(head, faults);
            if (task == Task::Vision || self.base.is_some()) && head.labels.is_none() {
                faults.push("head.labels is missing: only whole checkpoints for texts carry their labels".to_owned());
            }
        }
    }

    fn check_precision(&self, faults: &mut Vec<String>) {
        let is_int8 = self.precision == PrecisionChoice::Only(Precision::Int8);
        if self.base.is_some() && (!self.precision.is_auto() || self.quantization.is_some()) {
            faults.push("precision and [quantization] belong to the base: a head is computed as that is".to_owned());
        } else if self.task == Task::Vision && is_int8 {
            faults.push("precision is int8: images are computed in f32 or bf16".to_owned());
        } else if is_int8 && self.quantization.is_none() {
            let how = "`tamis models quantize` writes it";
            faults.push(format!("[quantization] is missing, and the precision int8 needs it: {how}"));
        } else if !is_int8 && self.quantization.is_some() {
            faults.push(format!("[quantization] belongs to the precision int8, not to {}", self.precision));
        }
        if let Some(measured) = self.quantization.as_ref().and_then(|quantization| quantization.measured.as_ref())
            && !measured.is_plausible()
        {
            faults
                .push("quantization.measured: texts must be above 0, -1 <= cosine_min <= cosine_mean <= 1".to_owned());
        }
    }
}

fn check_source(source: &Source, faults: &mut Vec<String>) {
    let (folder, revision) = match source {
        Source::Hub(source) => (source.folder.as_str(), source.revision.as_str()),
        Source::Pip(source) => (source.folder.as_str(), "-"),
        Source::File(source) => (source.file.trim_start_matches('/'), "-"),
        Source::Builtin => ("", "-"),
    };
    if !folder.is_empty() && !is_relative(folder) {
        faults.push(format!("the source {source} has the folder {folder:?}: a relative path without `..`"));
    }
    if revision.is_empty() || revision.chars().any(|c| c.is_whitespace() || c.is_control()) {
        faults.push(format!("the source {source} has no usable revision"));
    }
}

fn check_file(file: &FileSpec, faults: &mut Vec<String>) {
    // A leading dot is the store's own: its record, its lock and what is half-written.
    if !is_relative(&file.name) || file.name.contains('/') || file.name.starts_with('.') {
        faults.push(format!("file {:?}: a plain file name that does not begin with a dot", file.name));
    }
    if let Some(path) = &file.path
        && !is_relative(path)
    {
        faults.push(format!("file {:?} has the path {path:?}: a relative path without `..`", file.name));
    }
    if file.convert.is_some() && file.name != "model.safetensors" {
        faults.push(format!("file {:?}: a conversion makes model.safetensors", file.name));
    }
}

fn check_prompts(prompts: &Prompts, task: Task, faults: &mut Vec<String>) {
    if task != Task::Embedding {
        faults.push(format!("[text.prompts] does not belong to the task {task}"));
    }
    for (role, prompt) in
        [("query", &prompts.query), ("document", &prompts.document), ("symmetric", &prompts.symmetric)]
    {
        if prompt.len() > PROMPT_BYTES_MAX {
            faults.push(format!("text.prompts.{role} has {} bytes: at most {PROMPT_BYTES_MAX}", prompt.len()));
        }
    }
}

fn check_image(image: &ImageRecipe, faults: &mut Vec<String>) {
    if !(1..=PIXELS_MAX).contains(&image.crop) {
        faults.push(format!("image.crop is {}: 1 to {PIXELS_MAX}", image.crop));
    }
    if !(image.crop..=PIXELS_MAX).contains(&image.resize) {
        faults.push(format!("image.resize is {}: {} (image.crop) to {PIXELS_MAX}", image.resize, image.crop));
    }
    if !image.mean.iter().all(|mean| mean.is_finite()) {
        faults.push("image.mean must be finite".to_owned());
    }
    if !image.std.iter().all(|std| std.is_finite() && *std > 0.0) {
        faults.push("image.std must be finite and above 0".to_owned());
    }
}

fn check_head(head: &HeadRecipe, faults: &mut Vec<String>) {
    if !(head.temperature.is_finite() && head.temperature > 0.0) {
        faults.push(format!("head.temperature is {}: finite and above 0", head.temperature));
    }
    if !head.thresholds.iter().all(|threshold| (0.0..=1.0).contains(threshold)) {
        faults.push("head.thresholds must lie in 0 to 1".to_owned());
    }
    if head.activation == Activation::Softmax && !head.thresholds.is_empty() && !are_complements(&head.thresholds) {
        let only = "under softmax the best label is selected, save that two labels may have two that sum to 1";
        faults.push(format!("head.thresholds belong to sigmoid: {only}"));
    }
    let Some(labels) = head.labels.as_ref().map(Labels::names) else { return };
    if labels.is_empty() || labels.iter().any(String::is_empty) {
        faults.push("head.labels must be at least one name, none of them empty".to_owned());
    }
    if !head.thresholds.is_empty() && head.thresholds.len() != labels.len() {
        faults.push(format!("head.thresholds has {} values for {} labels", head.thresholds.len(), labels.len()));
    }
}

/// Two thresholds of which exactly one is reached by probabilities that sum to 1.
fn are_complements(thresholds: &[f32]) -> bool {
    matches!(thresholds, [a, b] if *a > 0.0 && *b > 0.0 && (a + b - 1.0).abs() < 1e-5)
}

/// A path that can not leave the folder it is joined to, on any system.
fn is_relative(path: &str) -> bool {
    !path.contains(['\\', ':', '\0']) && path.split('/').all(|part| !matches!(part, "" | "." | ".."))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
name = "m"
task = "classification"
licence = "MIT"
sources = [{ hub = "a/b" }, { pip = "c", version = "1.0", folder = "d/e" }]
files = [
    { name = "config.json", sha256 = "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41" },
    { name = "tokenizer.json", sha256 = "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037" },
    { name = "model.safetensors", path = "x/y.onnx", convert = "onnx-int8-bert", sha256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db" },
]
text = { pooling = "mean", max_tokens = 256 }
head = { labels = ["no", "yes"], activation = "sigmoid", thresholds = [0.5, 0.5] }
"#;

    /// Refuses the good manifest with one thing changed, and says `complaint`.
    #[track_caller]
    fn refuses(from: &str, to: &str, complaint: &str) {
        assert!(GOOD.contains(from), "{from:?} is not in the manifest");
        let error = Manifest::parse(&GOOD.replacen(from, to, 1)).expect_err("must be refused").to_string();
        assert!(error.contains(complaint), "{error:?} does not say {complaint:?}");
    }

    #[test]
    fn a_good_manifest_parses_with_its_defaults() {
        let manifest = Manifest::parse(GOOD).unwrap();
        assert_eq!(manifest.sources[0].to_string(), "hf:a/b@main");
        assert_eq!(manifest.sources[1].to_string(), "pip:c==1.0");
        assert_eq!(manifest.files[2].path_in("d/e"), "d/e/x/y.onnx");
        assert!(manifest.normalize_default());
        assert_eq!(manifest.head.unwrap().temperature, 1.0);
    }

    #[test]
    fn what_is_written_parses_to_the_same() {
        let manifest = Manifest::parse(GOOD).unwrap();
        assert_eq!(Manifest::parse(&toml::to_string(&manifest).unwrap()).unwrap(), manifest);
    }

    #[test]
    fn unknown_keys_are_refused_everywhere() {
        refuses("licence", "license = \"\"\nlicence", "license");
        refuses("hub =", "branch = \"x\", hub =", "branch");
        refuses("version =", "extra = 1, version =", "extra");
        refuses("max_tokens", "dim = 1, max_tokens", "dim");
        refuses("activation", "bias = 1, activation", "bias");
        refuses("convert", "size = 1, convert", "size");
    }

    #[test]
    fn names_and_digests_have_one_form() {
        refuses("\"m\"", "\"M\"", "is no name for a model");
        refuses("\"m\"", "\"../m\"", "is no name for a model");
        refuses("\"m\"", "\"\"", "is no name for a model");
        refuses("953f", "953F", "is no sha256 digest");
        refuses("953f", "", "is no sha256 digest");
    }

    #[test]
    fn a_source_is_a_hub_or_a_package() {
        refuses("{ hub = \"a/b\" }", "{ folder = \"x\" }", "either `hub`");
        refuses("{ hub = \"a/b\" }", "{ hub = \"a/b\", pip = \"c\" }", "either `hub`");
        refuses("hub = \"a/b\"", "hub = \"a\"", "OWNER/NAME");
        refuses("hub = \"a/b\"", "hub = \"a/b\", version = \"1\"", "not a `version`");
        refuses(", version = \"1.0\"", "", "lacks its exact `version`");
        refuses("pip = \"c\"", "pip = \"--index-url\"", "is no version of a Python package");
        refuses("[{ hub = \"a/b\" }, { pip = \"c\", version = \"1.0\", folder = \"d/e\" }]", "[]", "no source");
    }

    #[test]
    fn paths_stay_inside_their_folders() {
        refuses("folder = \"d/e\"", "folder = \"../e\"", "without `..`");
        refuses("path = \"x/y.onnx\"", "path = \"/etc/passwd\"", "without `..`");
        refuses("name = \"config.json\"", "name = \".config.json\"", "plain file name");
    }

    const HEAD: &str = r#"
name = "mood"
task = "classification"
licence = "MIT"
sources = [{ file = "head.safetensors" }, { builtin = true }]
files = [{ name = "head.safetensors", sha256 = "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41" }]
base = { model = "m", revision = "sha256:be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037" }
head = { labels = ["no", "yes"], activation = "softmax", temperature = 0.8, thresholds = [0.7, 0.3] }
"#;

    #[track_caller]
    fn refuses_head(from: &str, to: &str, complaint: &str) {
        assert!(HEAD.contains(from), "{from:?} is not in the manifest");
        let error = Manifest::parse(&HEAD.replacen(from, to, 1)).expect_err("must be refused").to_string();
        assert!(error.contains(complaint), "{error:?} does not say {complaint:?}");
    }

    #[test]
    fn a_head_over_a_base_is_one_file_and_labels() {
        let manifest = Manifest::parse(HEAD).unwrap();
        assert_eq!(
            manifest.sources.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["file:head.safetensors", "builtin"]
        );
        assert_eq!(Manifest::parse(&toml::to_string(&manifest).unwrap()).unwrap(), manifest);
        refuses_head("head.safetensors\", sha", "config.json\", sha", "\"head.safetensors\" is not listed");
        refuses_head("head.safetensors\", sha", "config.json\", sha", "has \"head.safetensors\" only");
        refuses_head("base =", "text = { pooling = \"mean\", max_tokens = 9 }\nbase =", "[text] does not belong");
        refuses_head("\"classification\"", "\"embedding\"", "[base] does not belong");
        refuses_head("labels = [\"no\", \"yes\"], ", "", "head.labels is missing");
        refuses_head("sha256:be", "be", "is no revision");
        refuses_head("[0.7, 0.3]", "[0.7, 0.7]", "two that sum to 1");
        refuses_head("\"head.safetensors\" }, {", "\"../head.safetensors\" }, {", "without `..`");
        refuses_head("builtin = true", "builtin = false", "either `hub`");
        refuses_head("builtin = true", "builtin = true, folder = \"x\"", "neither a `folder`");
        refuses_head("file = \"head.safetensors\"", "file = \"h\", version = \"1\"", "neither a `folder`");
    }

    #[test]
    fn a_revision_covers_the_base_and_the_head() {
        let revision = |from: &str, to: &str| Manifest::parse(&HEAD.replacen(from, to, 1)).unwrap().revision();
        let same = revision("", "");
        assert_eq!(revision("\"mood\"", "\"tone\""), same, "names compute nothing");
        for (from, to) in [("sha256:be", "sha256:ae"), ("953f", "853f"), ("0.8", "0.9")] {
            assert_ne!(revision(from, to), same, "{from}");
        }
    }

    #[test]
    fn every_mistake_is_in_the_one_message() {
        let text = GOOD.replace("\"config.json\"", "\"conf.json\"").replace("max_tokens = 256", "max_tokens = 0");
        let error = Manifest::parse(&text.replace("[0.5, 0.5]", "[0.5]")).unwrap_err().to_string();
        for part in ["\"config.json\" is not listed", "max_tokens is 0", "1 values for 2 labels"] {
            assert!(error.contains(part), "{error:?} lacks {part:?}");
        }
    }

    #[test]
    fn builtin_manifests_parse_and_differ() {
        let all = Manifest::builtin();
        let names: Vec<_> = all.iter().map(|manifest| manifest.name.as_str()).collect();
        assert_eq!(
            names,
            [
                "all-minilm-l6-v2",
                "all-minilm-l6-v2-int8",
                "efficientnet-lite0",
                "efficientnet-lite2",
                "prompt-injection-minilm-v5",
                "prompt-injection-minilm-v5-int8",
                "sentiment-minilm-v1"
            ]
        );
        assert_ne!(all[0].revision(), all[1].revision());
        assert_eq!(all[2].head.as_ref().unwrap().labels.as_ref().unwrap().names().len(), 1000);
    }

    /// Heads are trained on it, and clients pin it: a new key of a recipe must leave it as it is.
    #[test]
    fn the_embedding_model_keeps_its_revision() {
        let all = Manifest::builtin();
        let revision = "sha256:1a9436147aa79447c8c18700c2e8f398184597034dcfc9e03aad5444c63c1440";
        assert_eq!(all[0].revision().as_str(), revision);
        assert_eq!(all[6].base.as_ref().unwrap().revision.as_str(), revision);
    }

    #[test]
    fn labels_are_a_list_or_a_known_name() {
        refuses("labels = [\"no\", \"yes\"]", "labels = \"imagenet-21k\"", "a list of names, or \"imagenet-1k\"");
    }

    #[test]
    fn prompts_and_scores_belong_to_their_tasks() {
        refuses(
            "max_tokens = 256",
            "max_tokens = 256, prompts = { query = \"q: \" }",
            "[text.prompts] does not belong",
        );
        refuses("max_tokens = 256", "max_tokens = 256, prompts = { quest = \"q: \" }", "quest");
        refuses("task = \"classification\"", "task = \"rerank\"", "[head] does not belong to the task rerank");
        let embedding = GOOD.replace("classification", "embedding").replace("head = {", "#");
        let long = format!("max_tokens = 256, prompts = {{ query = \"{}\" }}", "q".repeat(1025));
        let error = Manifest::parse(&embedding.replace("max_tokens = 256", &long)).unwrap_err().to_string();
        assert!(error.contains("text.prompts.query has 1025 bytes"), "{error}");
        let prompts = embedding.replace("max_tokens = 256", "max_tokens = 256, prompts = { query = \"q: \" }");
        let (with, without) = (Manifest::parse(&prompts).unwrap(), Manifest::parse(&embedding).unwrap());
        assert_ne!(with.revision(), without.revision());
        assert_eq!(with.space(384), without.space(384));
        assert_eq!(Manifest::parse(&toml::to_string(&with).unwrap()).unwrap(), with);
    }

    #[test]
    fn a_precision_is_left_out_where_none_is_named_and_changes_no_revision() {
        let plain = Manifest::parse(GOOD).unwrap();
        assert!(!toml::to_string(&plain).unwrap().contains("precision"));
        let named = |precision: &str| {
            let text = GOOD.replace("licence", &format!("precision = \"{precision}\"\nlicence"));
            Manifest::parse(&text).unwrap()
        };
        assert_eq!(named("auto"), plain);
        let bf16 = named("bf16");
        assert_eq!((bf16.revision(), bf16.space(384)), (plain.revision(), plain.space(384)));
        assert_eq!(Manifest::parse(&toml::to_string(&bf16).unwrap()).unwrap(), bf16);
        refuses("licence", "precision = \"f16\"\nlicence", "is no precision");
    }

    #[test]
    fn int8_and_its_factors_come_together_and_only_for_texts() {
        let int8 = "precision = \"int8\"\nlicence";
        refuses("licence", int8, "[quantization] is missing");
        refuses("head = {", "quantization = { smoothing = \"AAAA\" }\nhead = {", "belongs to the precision int8");
        let both = GOOD.replace("licence", int8);
        let with = |quantization: &str| {
            Manifest::parse(&both.replace("head = {", &format!("quantization = {{ {quantization} }}\nhead = {{")))
        };
        assert!(with("smoothing = \"AAAA\"").is_ok());
        let complaint = |quantization: &str| with(quantization).unwrap_err().to_string();
        assert!(complaint("smoothing = \"%\"").contains("is no base64"));
        assert!(complaint("smoothing = \"AAAA\", alpha = 0.5").contains("alpha"));
        let measured = "smoothing = \"AAAA\", measured = { texts = 1, cosine_mean = 0.9, cosine_min = 0.95 }";
        assert!(complaint(measured).contains("cosine_min <= cosine_mean"));
        assert!(with(&measured.replace("0.95", "0.85")).is_ok());
        refuses_head("licence", "precision = \"bf16\"\nlicence", "belong to the base");
        let image = include_str!("../../models/efficientnet-lite0.toml").replace("\nlicence", &format!("\n{int8}"));
        let error = Manifest::parse(&image).unwrap_err().to_string();
        assert!(error.contains("images are computed in f32 or bf16"), "{error}");
    }

    #[test]
    fn what_is_computed_in_f32_keeps_its_ids_and_in_another_precision_has_others() {
        let manifest = Manifest::parse(GOOD).unwrap();
        let revisions = Precision::ALL.map(|precision| manifest.revision().in_precision(precision));
        let spaces = Precision::ALL.map(|precision| manifest.space(384).in_precision(precision).id(true, None));
        assert_eq!((&revisions[0], &spaces[0]), (&manifest.revision(), &manifest.space(384).id(true, None)));
        assert!(revisions[1] != revisions[0] && revisions[2] != revisions[0] && revisions[1] != revisions[2]);
        assert!(spaces[1] != spaces[0] && spaces[2] != spaces[0] && spaces[1] != spaces[2]);
    }

    #[test]
    fn recipes_fit_the_task() {
        refuses("task = \"classification\"", "task = \"embedding\"", "[head] does not belong");
        refuses("task = \"classification\"", "task = \"vision\"", "[image] is missing");
        refuses("\"sigmoid\", thresholds = [0.5", "\"softmax\", thresholds = [0.6", "belong to sigmoid");
        refuses("activation", "temperature = 0.0, activation", "temperature");
        refuses("name = \"config.json\"", "name = \"tokenizer.json\"", "listed twice");
    }
}
