//! What a repository's small files say of its model.

use std::collections::BTreeMap;

use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

use super::{AddError, TextTask};
use crate::encoder::{ClassifierPooling, Config, Family};

/// Gives the bytes of a file by its path, or nothing if there is none.
pub(super) type Read<'a> = dyn Fn(&str) -> Result<Option<Vec<u8>>, AddError> + 'a;

/// What is said of a licence that nobody stated.
const LICENCE_UNKNOWN: &str = "unknown";

/// Most bytes of a licence's name: what a manifest takes.
const LICENCE_BYTES_MAX: usize = 128;

/// How the model is run.
#[derive(Debug)]
pub(super) struct Recipe {
    /// Folder of the encoder's files in the repository.
    pub(super) folder: String,
    pub(super) task: TextTask,
    pub(super) licence: String,
    pub(super) pooling: &'static str,
    /// None where vectors are not what the model gives.
    pub(super) normalize: Option<bool>,
    pub(super) max_tokens: u32,
    /// By role: query, document, symmetric.
    pub(super) prompts: Vec<(&'static str, String)>,
    pub(super) head: Option<HeadPlan>,
    /// What was decided and why, a sentence each.
    pub(super) decisions: Vec<String>,
}

/// How logits become labels.
#[derive(Debug)]
pub(super) struct HeadPlan {
    /// None: as config.json names them.
    pub(super) labels: Option<Vec<String>>,
    pub(super) activation: &'static str,
}

/// The modules of sentence-transformers that a repository strings together.
#[derive(Default)]
struct Modules {
    transformer: String,
    pooling: Option<String>,
    normalize: bool,
}

#[derive(Deserialize)]
struct Module {
    path: String,
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Default, Deserialize)]
struct SentenceConfig {
    max_seq_length: Option<u64>,
    do_lower_case: Option<bool>,
}

#[derive(Default, Deserialize)]
struct TokenizerConfig {
    /// 1e30 stands for no limit.
    model_max_length: Option<f64>,
    do_lower_case: Option<bool>,
}

#[derive(Default, Deserialize)]
struct PromptConfig {
    prompts: Option<BTreeMap<String, Option<String>>>,
    default_prompt_name: Option<String>,
}

#[derive(Deserialize)]
struct Architectures {
    architectures: Option<Vec<String>>,
    problem_type: Option<String>,
}

// === impl Recipe ===

impl Recipe {
    /// Reads what there is; `task` is the user's wish.
    pub(super) fn of(task: Option<TextTask>, read: &Read<'_>) -> Result<Self, AddError> {
        let modules = Modules::read(read)?;
        let path = |file: &str| {
            if modules.transformer.is_empty() { file.to_owned() } else { format!("{}/{file}", modules.transformer) }
        };
        let bytes = read(&path("config.json"))?
            .ok_or_else(|| unsupported("the repository has no config.json: it is no checkpoint of transformers"))?;
        let config = Config::parse(&bytes).map_err(unsupported)?;
        let written: Architectures = parse("config.json", &bytes)?;
        let mut decisions = Vec::new();
        let task = choose_task(task, &config, &written, &mut decisions)?;
        let sentence: SentenceConfig = json(read, &path("sentence_bert_config.json"))?.unwrap_or_default();
        let tokenizer: TokenizerConfig = json(read, &path("tokenizer_config.json"))?.unwrap_or_default();
        if sentence.do_lower_case == Some(true) && tokenizer.do_lower_case == Some(false) {
            let why = "sentence_bert_config.json wants lower case before the tokenizer, which this version does not do";
            return Err(unsupported(why));
        }
        let mut recipe = Self {
            folder: modules.transformer.clone(),
            task,
            licence: licence(read, &mut decisions)?,
            pooling: classifier_pooling(&config),
            normalize: None,
            max_tokens: max_tokens(&config, &sentence, &tokenizer),
            prompts: Vec::new(),
            head: None,
            decisions,
        };
        match task {
            TextTask::Embedding => recipe.embed(&modules, read)?,
            TextTask::Classification => recipe.classify(&config, &written)?,
            TextTask::Rerank => {}
        }
        Ok(recipe)
    }

    fn embed(&mut self, modules: &Modules, read: &Read<'_>) -> Result<(), AddError> {
        self.normalize = Some(modules.normalize);
        let written: PromptConfig = json(read, "config_sentence_transformers.json")?.unwrap_or_default();
        self.prompts = prompts(written);
        let Some(folder) = &modules.pooling else {
            self.pooling = "mean";
            self.decisions.push("The repository names no pooling: the mean, as sentence-transformers takes it.".into());
            return Ok(());
        };
        let path = format!("{folder}/config.json");
        let pooling: Value = json(read, &path)?
            .ok_or_else(|| unsupported(format!("modules.json names {path}, and the repository has none")))?;
        self.pooling = pooling_of(&pooling).map_err(|why| unsupported(format!("{path}: {why}")))?;
        if pooling["include_prompt"] == Value::Bool(false) && !self.prompts.is_empty() {
            return Err(unsupported(format!(
                "{path} leaves prompts out of the pooling, which this version does not do"
            )));
        }
        Ok(())
    }

    fn classify(&mut self, config: &Config, written: &Architectures) -> Result<(), AddError> {
        if written.problem_type.as_deref() == Some("regression") {
            return Err(unsupported("config.json has the problem_type \"regression\": its numbers are no labels"));
        }
        let labels = config.labels();
        if labels.len() == 1 {
            return Err(unsupported("the checkpoint has one label: it scores, which is the task rerank"));
        }
        // transformers leaves out what it would assume: two labels without names.
        let unnamed = labels.is_empty().then(|| vec!["LABEL_0".to_owned(), "LABEL_1".to_owned()]);
        if unnamed.is_some() {
            self.decisions.push("config.json names no labels: two, as transformers assumes.".into());
        }
        let activation = if config.is_multi_label { "sigmoid" } else { "softmax" };
        if config.is_multi_label {
            self.decisions.push("problem_type is multi_label_classification: each label stands for itself.".into());
        }
        self.head = Some(HeadPlan { labels: unnamed, activation });
        Ok(())
    }
}

fn choose_task(
    wanted: Option<TextTask>,
    config: &Config,
    written: &Architectures,
    decisions: &mut Vec<String>,
) -> Result<TextTask, AddError> {
    let architectures = written.architectures.clone().unwrap_or_default();
    let classifies = architectures.iter().any(|name| name.ends_with("ForSequenceClassification"));
    let suggested = match (classifies, config.labels().len()) {
        (true, 1) => TextTask::Rerank,
        (true, _) => TextTask::Classification,
        (false, _) => TextTask::Embedding,
    };
    let Some(task) = wanted else {
        decisions.push(format!("The task is {}, as its architecture suggests.", suggested.name()));
        return Ok(suggested);
    };
    if task != TextTask::Embedding && !classifies {
        let has = if architectures.is_empty() { "none".to_owned() } else { architectures.join(", ") };
        let why = format!(
            "config.json has the architectures {has}: the task {} wants one ...ForSequenceClassification",
            task.name()
        );
        return Err(unsupported(why));
    }
    if task == TextTask::Rerank && config.labels().len() != 1 {
        let why = format!("the checkpoint has {} labels: the task rerank wants one", config.labels().len().max(2));
        return Err(unsupported(why));
    }
    Ok(task)
}

/// What stands for a text in a classifier: BERT's dense layer is apart from the classifier, the others' is in it.
fn classifier_pooling(config: &Config) -> &'static str {
    match config.family {
        Family::Bert => "pooler",
        Family::DistilBert | Family::Roberta => "cls",
        Family::ModernBert => match config.modern.as_ref().map(|modern| modern.classifier_pooling) {
            Some(ClassifierPooling::Mean) => "mean",
            Some(ClassifierPooling::Cls) | None => "cls",
        },
    }
}

fn max_tokens(config: &Config, sentence: &SentenceConfig, tokenizer: &TokenizerConfig) -> u32 {
    let positions = config.positions() as u64;
    let tokenizer = tokenizer.model_max_length.filter(|max| *max >= 1.0).map_or(positions, |max| max as u64);
    let max = sentence.max_seq_length.filter(|max| *max > 0).unwrap_or(tokenizer);
    u32::try_from(max.min(positions)).unwrap_or(u32::MAX)
}

/// The first of the names that sentence-transformers and its users give to the roles.
fn prompts(written: PromptConfig) -> Vec<(&'static str, String)> {
    let all = written.prompts.unwrap_or_default();
    let find = |names: &[&str]| {
        let text = names.iter().find_map(|name| all.get(*name)?.clone());
        text.filter(|text| !text.is_empty())
    };
    let default = written.default_prompt_name.unwrap_or_default();
    let roles = [
        ("query", find(&["query"])),
        ("document", find(&["document", "passage"])),
        ("symmetric", find(&[default.as_str()])),
    ];
    roles.into_iter().filter_map(|(role, text)| Some((role, text?))).collect()
}

fn pooling_of(written: &Value) -> Result<&'static str, String> {
    const MODES: [(&str, &str); 3] =
        [("pooling_mode_cls_token", "cls"), ("pooling_mode_mean_tokens", "mean"), ("pooling_mode_max_tokens", "max")];
    if let Some(mode) = written["pooling_mode"].as_str() {
        let known = MODES.iter().find(|(_, name)| *name == mode);
        return known.map(|(_, name)| *name).ok_or_else(|| format!("pooling_mode {mode:?} is not run"));
    }
    let keys = written.as_object().into_iter().flatten();
    let chosen: Vec<_> = keys
        .filter(|(key, value)| key.starts_with("pooling_mode_") && **value == Value::Bool(true))
        .map(|(key, _)| key.as_str())
        .collect();
    let run = "this version runs one of cls, mean and max";
    match chosen.as_slice() {
        [only] => MODES
            .iter()
            .find(|(key, _)| key == only)
            .map(|(_, name)| *name)
            .ok_or_else(|| format!("{only} is not run; {run}")),
        [] => Err(format!("no pooling is chosen; {run}")),
        several => Err(format!("{} side by side are not run; {run}", several.join(" and "))),
    }
}

// === impl Modules ===

impl Modules {
    fn read(read: &Read<'_>) -> Result<Self, AddError> {
        let Some(listed) = json::<Vec<Module>>(read, "modules.json")? else { return Ok(Self::default()) };
        let mut modules = Self::default();
        for Module { path, kind } in listed {
            match kind.rsplit('.').next().unwrap_or_default() {
                "Transformer" => modules.transformer = path,
                "Pooling" => modules.pooling = Some(path),
                "Normalize" => modules.normalize = true,
                other => {
                    let why =
                        format!("modules.json has a module {other}; this version runs Transformer, Pooling, Normalize");
                    return Err(unsupported(why));
                }
            }
        }
        Ok(modules)
    }
}

/// The licence that the front matter of README.md states.
fn licence(read: &Read<'_>, decisions: &mut Vec<String>) -> Result<String, AddError> {
    let text = read("README.md")?.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let stated = stated(&text, "license").filter(|name| name != "other").or_else(|| stated(&text, "license_name"));
    let fits = |name: &String| !name.is_empty() && name.len() <= LICENCE_BYTES_MAX;
    if let Some(name) = stated.filter(fits) {
        return Ok(name);
    }
    decisions.push("README.md states no licence: look for it before you use the model.".into());
    Ok(LICENCE_UNKNOWN.to_owned())
}

/// A key at the top of the YAML between the first two lines of dashes: a word, or the first of a list.
fn stated(text: &str, key: &str) -> Option<String> {
    let mut lines = text.lines();
    if lines.next()?.trim_end() != "---" {
        return None;
    }
    let mut lines = lines.take_while(|line| line.trim_end() != "---");
    let value = lines.find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    let value = value.split(" #").next().unwrap_or_default().trim();
    let value = if value.is_empty() { lines.next()?.trim_start().strip_prefix("- ")?.trim() } else { value };
    let first = value.trim_matches(['[', ']']).split(',').next().unwrap_or_default();
    Some(first.trim().trim_matches(['"', '\'']).to_owned())
}

fn json<T: DeserializeOwned>(read: &Read<'_>, path: &str) -> Result<Option<T>, AddError> {
    read(path)?.map(|bytes| parse(path, &bytes)).transpose()
}

fn parse<T: DeserializeOwned>(path: &str, bytes: &[u8]) -> Result<T, AddError> {
    serde_json::from_slice(bytes).map_err(|error| unsupported(format!("{path}: {error}")))
}

fn unsupported(why: impl Into<String>) -> AddError {
    AddError::Unsupported { why: why.into() }
}

// === impl TextTask ===

impl TextTask {
    /// As a manifest has it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Embedding => "embedding",
            Self::Classification => "classification",
            Self::Rerank => "rerank",
        }
    }
}
