use std::collections::HashMap;

use serde_json::{Value, json};

use super::*;
use crate::manifest::{Activation, Pooling, Task};

/// A repository in memory.
struct Files(HashMap<String, String>);

impl Files {
    /// A sentence encoder as sentence-transformers publishes it.
    fn encoder() -> Self {
        let mut files = Self(HashMap::new());
        files.json("config.json", config("bert", "BertModel"));
        let module = |index: usize, path: &str, kind: &str| json!({"idx": index, "name": index.to_string(), "path": path, "type": format!("sentence_transformers.models.{kind}")});
        let modules =
            [module(0, "", "Transformer"), module(1, "1_Pooling", "Pooling"), module(2, "2_Normalize", "Normalize")];
        files.json("modules.json", json!(modules));
        files.json("1_Pooling/config.json", json!({"word_embedding_dimension": 384, "pooling_mode_cls_token": false,
            "pooling_mode_mean_tokens": true, "pooling_mode_max_tokens": false, "pooling_mode_mean_sqrt_len_tokens": false}));
        files.json("sentence_bert_config.json", json!({"max_seq_length": 256, "do_lower_case": false}));
        files.0.insert("README.md".into(), "---\nlanguage: en\nlicense: apache-2.0\ntags:\n- x\n---\n# Title\n".into());
        files
    }

    fn classifier(model_type: &str, labels: &[&str]) -> Self {
        let mut files = Self(HashMap::new());
        let mut config = config(model_type, "XForSequenceClassification");
        config["id2label"] = labels.iter().enumerate().map(|(id, label)| (id.to_string(), json!(label))).collect();
        files.json("config.json", config);
        files.json("tokenizer_config.json", json!({"model_max_length": 1e30}));
        files
    }

    fn json(&mut self, path: &str, value: Value) {
        self.0.insert(path.into(), value.to_string());
    }

    /// Changes a key of a JSON file.
    fn with(mut self, path: &str, key: &str, value: impl Into<Value>) -> Self {
        let mut file: Value = serde_json::from_str(&self.0[path]).unwrap();
        file[key] = value.into();
        self.json(path, file);
        self
    }

    fn without(mut self, path: &str) -> Self {
        self.0.remove(path).unwrap();
        self
    }

    fn recipe(&self, task: Option<TextTask>) -> Result<Recipe, AddError> {
        Recipe::of(task, &|path| Ok(self.0.get(path).map(|text| text.clone().into_bytes())))
    }

    #[track_caller]
    fn refuses(&self, task: Option<TextTask>, complaint: &str) {
        let error = self.recipe(task).expect_err("must be refused");
        assert!(matches!(&error, AddError::Unsupported { why } if why.contains(complaint)), "{error:?}: {complaint:?}");
    }
}

fn config(model_type: &str, architecture: &str) -> Value {
    json!({
        "model_type": model_type, "architectures": [architecture], "vocab_size": 30, "hidden_size": 8, "dim": 8,
        "num_hidden_layers": 2, "n_layers": 2, "num_attention_heads": 2, "n_heads": 2, "intermediate_size": 12,
        "hidden_dim": 12, "max_position_embeddings": 514, "type_vocab_size": 1,
    })
}

fn addition(repository: &str) -> Addition {
    Addition { repository: repository.into(), revision: "main".into(), name: None, task: None }
}

/// The manifest that the recipe makes, with digests of nothing.
fn text(recipe: &Recipe) -> String {
    let wanted = addition("sentence-transformers/all-MiniLM-L6-v2");
    let pinned = FILES.map(|name| Pinned { name, sha256: "0".repeat(64) });
    document(&wanted.name().unwrap(), &wanted, "c0ffee", recipe, &pinned)
}

#[test]
fn a_sentence_encoder_becomes_a_manifest() {
    let recipe = Files::encoder().recipe(Some(TextTask::Embedding)).unwrap();
    let manifest = Manifest::parse(&text(&recipe)).unwrap();
    assert_eq!((manifest.name.as_str(), manifest.task), ("all-minilm-l6-v2", Task::Embedding));
    assert_eq!(manifest.sources[0].to_string(), "hf:sentence-transformers/all-MiniLM-L6-v2@c0ffee");
    assert_eq!(manifest.licence, "apache-2.0");
    let recipe = manifest.text.unwrap();
    assert_eq!((recipe.pooling, recipe.normalize, recipe.max_tokens), (Pooling::Mean, true, 256));
    assert!(manifest.head.is_none());
}

#[test]
fn the_modules_decide_folder_pooling_and_normalisation() {
    let cls = Files::encoder().with("1_Pooling/config.json", "pooling_mode_mean_tokens", false);
    let cls = cls.with("1_Pooling/config.json", "pooling_mode_cls_token", true);
    assert_eq!(cls.recipe(None).unwrap().pooling, "cls");
    cls.with("1_Pooling/config.json", "pooling_mode_max_tokens", true).refuses(None, "side by side");
    let lone = |key: &str| {
        Files::encoder().with("1_Pooling/config.json", "pooling_mode_mean_tokens", false).with(
            "1_Pooling/config.json",
            key,
            true,
        )
    };
    assert_eq!(lone("pooling_mode_max_tokens").recipe(None).unwrap().pooling, "max");
    lone("pooling_mode_lasttoken").refuses(None, "pooling_mode_lasttoken is not run");
    lone("word").refuses(None, "no pooling is chosen");
    Files::encoder().without("1_Pooling/config.json").refuses(None, "the repository has none");

    let bare = Files::encoder().without("modules.json").recipe(None).unwrap();
    assert_eq!((bare.pooling, bare.normalize), ("mean", Some(false)));
    assert!(bare.decisions.iter().any(|text| text.contains("names no pooling")), "{:?}", bare.decisions);

    let mut moved = Files::encoder();
    moved.json("modules.json", json!([{"path": "0_Transformer", "type": "a.Transformer"}]));
    let config = moved.0.remove("config.json").unwrap();
    moved.0.insert("0_Transformer/config.json".into(), config);
    let recipe = moved.recipe(None).unwrap();
    assert_eq!((recipe.folder.as_str(), recipe.max_tokens), ("0_Transformer", 514));
    assert!(text(&recipe).contains("folder = \"0_Transformer\""));
    moved.json("modules.json", json!([{"path": "2_Dense", "type": "a.Dense"}]));
    moved.refuses(None, "a module Dense");
}

#[test]
fn the_least_limit_of_tokens_holds() {
    let tokens = |files: Files| files.recipe(None).unwrap().max_tokens;
    assert_eq!(tokens(Files::encoder().with("sentence_bert_config.json", "max_seq_length", 1000)), 514);
    assert_eq!(tokens(Files::encoder().with("sentence_bert_config.json", "max_seq_length", Value::Null)), 514);
    let mut files = Files::encoder().without("sentence_bert_config.json");
    files.json("tokenizer_config.json", json!({"model_max_length": 128}));
    assert_eq!(tokens(files), 128);
    // The first two of RoBERTa's positions are no token's.
    assert_eq!(tokens(Files::classifier("roberta", &["no", "yes"])), 512);
    assert_eq!(tokens(Files::classifier("distilbert", &["no", "yes"])), 514);
}

#[test]
fn classifiers_have_their_labels_and_their_activation() {
    for (model_type, pooling) in
        [("bert", "pooler"), ("distilbert", "cls"), ("xlm-roberta", "cls"), ("modernbert", "cls")]
    {
        let recipe = Files::classifier(model_type, &["no", "yes", "perhaps"]).recipe(None).unwrap();
        assert_eq!((recipe.task, recipe.pooling), (TextTask::Classification, pooling));
        let head = Manifest::parse(&text(&recipe)).unwrap().head.unwrap();
        assert_eq!((head.labels, head.activation), (None, Activation::Softmax));
    }
    let mean = Files::classifier("modernbert", &["no", "yes"]).with("config.json", "classifier_pooling", "mean");
    assert_eq!(mean.recipe(None).unwrap().pooling, "mean");
    let many = Files::classifier("bert", &["a", "b"]).with("config.json", "problem_type", "multi_label_classification");
    assert_eq!(many.recipe(None).unwrap().head.unwrap().activation, "sigmoid");
    let unnamed = Files::classifier("bert", &[]).recipe(Some(TextTask::Classification)).unwrap();
    assert_eq!(unnamed.head.as_ref().unwrap().labels.as_deref(), Some(["LABEL_0".into(), "LABEL_1".into()].as_slice()));
    assert!(text(&unnamed).contains("labels = [\"LABEL_0\", \"LABEL_1\"]"));
}

#[test]
fn a_task_that_the_checkpoint_can_not_do_is_refused() {
    Files::encoder().refuses(Some(TextTask::Classification), "has the architectures BertModel");
    let one = || Files::classifier("bert", &["LABEL_0"]);
    assert_eq!(one().recipe(None).unwrap().task, TextTask::Rerank);
    one().refuses(Some(TextTask::Classification), "which is the task rerank");
    Files::classifier("bert", &["a", "b"]).refuses(Some(TextTask::Rerank), "has 2 labels");
    let number = Files::classifier("bert", &["a", "b"]).with("config.json", "problem_type", "regression");
    number.refuses(Some(TextTask::Classification), "\"regression\"");
    Files::encoder().with("config.json", "model_type", "t5").refuses(None, "runs bert, distilbert, roberta");
    Files::encoder().without("config.json").refuses(None, "no config.json");
    let mut broken = Files::encoder();
    broken.0.insert("1_Pooling/config.json".into(), "{".into());
    broken.refuses(None, "1_Pooling/config.json");
}

#[test]
fn prompts_are_written_by_role_and_only_if_there_are_any() {
    let prompts = |value: Value| {
        let mut files = Files::encoder();
        files.json("config_sentence_transformers.json", value);
        files.recipe(None).unwrap()
    };
    assert!(!text(&prompts(json!({"prompts": {}, "default_prompt_name": null}))).contains("prompts"));
    assert!(!text(&prompts(json!({"prompts": {"query": "", "document": ""}}))).contains("prompts"));
    let e5 = text(&prompts(json!({"prompts": {"query": "query: ", "passage": "passage: \"", "sts": "same: "},
        "default_prompt_name": "sts"})));
    let table = "[text.prompts]\nquery = \"query: \"\ndocument = 'passage: \"'\nsymmetric = \"same: \"\n";
    assert!(e5.ends_with(table), "{e5}");
}

#[test]
fn the_licence_is_what_the_front_matter_states() {
    let licence = |readme: &str| {
        let mut files = Files::encoder();
        files.0.insert("README.md".into(), readme.into());
        files.recipe(None).unwrap().licence
    };
    assert_eq!(licence("---\nlicense: mit # free\n---\n"), "mit");
    assert_eq!(licence("---\r\nlicense: 'cc-by-4.0'\r\n---\r\n"), "cc-by-4.0");
    assert_eq!(licence("---\nlicense:\n- apache-2.0\n- mit\n---\n"), "apache-2.0");
    assert_eq!(licence("---\nlicense: other\nlicense_name: llama3\n---\n"), "llama3");
    for silent in ["", "license: mit\n", "---\ntags: x\n---\nlicense: mit\n", "---\nlicense: other\n---\n"] {
        assert_eq!(licence(silent), "unknown", "{silent:?}");
    }
}

#[test]
fn names_come_from_the_repository_and_are_not_taken_twice() {
    let data = tempfile::tempdir().unwrap();
    let store = Store::new(data.path());
    let name = |repository: &str| addition(repository).name().map(|name| name.to_string());
    assert_eq!(name("a/Some-Model_v2.0").unwrap(), "some-model_v2.0");
    for bad in ["a", "a/b/c", "/b", "a/", "../b", "a b/c", "-a/b"] {
        let error = name(bad).unwrap_err().to_string();
        assert!(error.contains("OWNER/NAME"), "{error}");
    }
    let free = |name: &str, repository: &str| store.check_free(&name.to_owned().try_into().unwrap(), repository);
    assert!(free("mine", "a/mine").is_ok());
    assert!(free("all-minilm-l6-v2", "sentence-transformers/all-MiniLM-L6-v2").is_ok());
    let taken = free("all-minilm-l6-v2", "a/all-MiniLM-L6-v2").unwrap_err().to_string();
    assert_eq!(taken, "the name all-minilm-l6-v2 is taken by a built-in model");
    let recipe = Files::encoder().recipe(None).unwrap();
    write(&store.manifest_path(&"other".to_owned().try_into().unwrap()), &text(&recipe)).unwrap();
    for name in ["all-minilm-l6-v2", "other"] {
        let taken = free(name, "sentence-transformers/all-MiniLM-L6-v2").unwrap_err().to_string();
        assert!(taken.contains("other.toml"), "{taken}");
    }
}

#[test]
fn what_was_added_is_removed_and_what_is_built_in_stays() {
    let data = tempfile::tempdir().unwrap();
    let store = Store::new(data.path());
    let recipe = Files::encoder().recipe(None).unwrap();
    let (own, shadow) = (data.path().join("manifests/a.toml"), data.path().join("manifests/b.toml"));
    write(&own, &text(&recipe).replace("all-minilm-l6-v2", "mine")).unwrap();
    write(&shadow, &text(&recipe)).unwrap();
    for name in ["mine", "all-minilm-l6-v2"] {
        fs::create_dir_all(data.path().join("models").join(name)).unwrap();
    }
    assert_eq!(store.remove("mine").unwrap(), own);
    assert!(!own.exists() && !data.path().join("models/mine").exists());
    assert_eq!(store.remove("all-minilm-l6-v2").unwrap(), shadow);
    assert!(data.path().join("models/all-minilm-l6-v2").exists(), "the built-in model's files");
    let built_in = store.remove("all-minilm-l6-v2").unwrap_err().to_string();
    assert!(built_in.contains("built in"), "{built_in}");
    assert!(store.remove("mine").unwrap_err().to_string().contains("no such model"));
}

#[test]
fn a_name_that_was_taken_while_waiting_is_refused_and_the_other_model_stays() {
    /// Somebody adds the same model while we wait.
    struct Other<'a>(&'a Store, std::sync::mpsc::Sender<()>);
    impl Progress for Other<'_> {
        fn started(&self, _file: &str, _bytes: Option<u64>) {}
        fn advanced(&self, _bytes: u64) {}
        fn finished(&self, _file: &str) {}
        fn note(&self, text: &str) {
            assert!(text.contains("waiting"), "{text}");
            let recipe = Files::encoder().recipe(None).unwrap();
            let name = "mine".to_owned().try_into().unwrap();
            write(&self.0.manifest_path(&name), &self::text(&recipe).replace("all-minilm-l6-v2", "mine")).unwrap();
            fs::write(self.0.data.join("models/mine/config.json"), "{}").unwrap();
            self.1.send(()).unwrap();
        }
    }
    let data = tempfile::tempdir().unwrap();
    let store = Store::new(data.path());
    let lock = PullLock::take(&data.path().join("models/mine"), || ()).unwrap();
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        let added = scope.spawn(|| store.add(&addition("a/mine"), &Other(&store, sender)).map(|_| ()));
        receiver.recv().unwrap();
        drop(lock);
        let error = added.join().unwrap().unwrap_err().to_string();
        assert!(error.contains("the name mine is taken by"), "{error}");
    });
    assert!(data.path().join("models/mine/config.json").exists(), "the files of the other");
}
