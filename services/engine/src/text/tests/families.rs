//! DistilBERT and RoBERTa against the paper's arithmetic, under the names that transformers gives their tensors.

use serde_json::Value;

use super::*;

/// DistilBERT's names of what `checkpoint` calls as BERT does; longer names first, for one may hold another.
const DISTILBERT: [(&str, &str); 10] = [
    ("encoder.layer", "transformer.layer"),
    ("attention.self.query", "attention.q_lin"),
    ("attention.self.key", "attention.k_lin"),
    ("attention.self.value", "attention.v_lin"),
    ("attention.output.dense", "attention.out_lin"),
    ("attention.output.LayerNorm", "sa_layer_norm"),
    ("intermediate.dense", "ffn.lin1"),
    ("output.dense", "ffn.lin2"),
    ("output.LayerNorm", "output_layer_norm"),
    ("pooler.dense", "pooler.dense"),
];

/// Rows of RoBERTa's table that no token gets: for the padding, and for what is before it.
const UNUSED: usize = 2;

/// The labels of every classifier here.
const LABELS: usize = 3;

/// A family as the tests write it: the checkpoint of the paper under other names.
struct Written {
    /// What `Paper` reads.
    paper: Checkpoint,
    /// What the model reads.
    file: Checkpoint,
    config: Value,
}

impl Written {
    fn distilbert(prefix: &str) -> Self {
        let mut paper = checkpoint("");
        // There are no types: to the paper they add nothing.
        paper.get_mut("embeddings.token_type_embeddings.weight").unwrap().1.fill(0.0);
        let renamed = |name: &str| {
            let layer = name.starts_with("encoder.layer");
            let renamings = DISTILBERT.iter().filter(|_| layer);
            renamings.fold(name.to_owned(), |name, (from, to)| name.replace(from, to))
        };
        let encoder = paper.iter().filter(|(name, _)| {
            !name.contains("token_type") && !name.starts_with("pooler") && !name.starts_with("classifier")
        });
        let file = encoder.map(|(name, tensor)| (format!("{prefix}{}", renamed(name)), tensor.clone())).collect();
        let config = json!({
            "model_type": "distilbert", "vocab_size": WORDS.len(), "dim": HIDDEN, "n_layers": LAYERS, "n_heads": HEADS,
            "hidden_dim": INNER, "activation": "gelu", "max_position_embeddings": POSITIONS, "pad_token_id": 0,
            "sinusoidal_pos_embds": false, "tie_weights_": true, "id2label": {"0": "bad", "1": "neutral", "2": "good"},
        });
        Self { paper, file, config }
    }

    fn roberta(prefix: &str, model_type: &str) -> Self {
        let mut paper = checkpoint("");
        paper.get_mut("embeddings.token_type_embeddings.weight").unwrap().0[0] = 1;
        paper.get_mut("embeddings.token_type_embeddings.weight").unwrap().1.truncate(HIDDEN);
        let encoder = paper.iter().filter(|(name, _)| !name.starts_with("classifier"));
        let mut file: Checkpoint = encoder.map(|(name, tensor)| (format!("{prefix}{name}"), tensor.clone())).collect();
        let (shape, values) = file.get_mut(&format!("{prefix}embeddings.position_embeddings.weight")).unwrap();
        shape[0] += UNUSED;
        values.splice(0..0, vec![100.0; UNUSED * HIDDEN]);
        let config = json!({
            "model_type": model_type, "vocab_size": WORDS.len(), "hidden_size": HIDDEN, "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS, "intermediate_size": INNER, "hidden_act": "gelu", "layer_norm_eps": 1e-12,
            "max_position_embeddings": POSITIONS + UNUSED, "type_vocab_size": 1, "pad_token_id": 1,
            "id2label": {"0": "bad", "1": "neutral", "2": "good"},
        });
        Self { paper, file, config }
    }

    /// Adds a dense layer to what the paper knows as `paper` and the file as `file`.
    fn dense(&mut self, paper: &str, file: &str, outputs: usize) {
        let mut seed = 11 + outputs as u64;
        for (part, shape) in [("weight", vec![outputs, HIDDEN]), ("bias", vec![outputs])] {
            let values: Vec<_> = (0..shape.iter().product()).map(|_| f64::from(noise(&mut seed) as f32)).collect();
            self.paper.insert(format!("{paper}.{part}"), (shape.clone(), values.clone()));
            self.file.insert(format!("{file}.{part}"), (shape, values));
        }
    }

    fn load(&self, recipe: &str) -> Result<TextModel, Error> {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), &self.file);
        fs::write(folder.path().join("config.json"), self.config.to_string()).unwrap();
        load(folder.path(), recipe)
    }

    fn paper(&self) -> Paper<'_> {
        Paper { checkpoint: &self.paper }
    }
}

const SIGMOID: &str = "[text]\npooling = \"cls\"\nmax_tokens = 8\n\
                       [head]\nactivation = \"sigmoid\"\ntemperature = 2.0\nthresholds = [0.0, 1.0, 0.5]\n";

fn cls() -> String {
    MEAN.replace("mean", "cls")
}

#[test]
fn encoders_of_every_family_give_the_vectors_of_the_paper() {
    let check = |written: &Written| {
        let model = written.load(MEAN).unwrap();
        let long = [2, 4, 5, 6, 7, 4, 5, 3];
        for (text, ids) in [("A man eats food", [2, 4, 5, 6, 7, 3].as_slice()), ("a man eats food a man", &long)] {
            let together = run(&model, &["food", text]).remove(1).unwrap();
            assert_near(&together.values, &mean(&written.paper().encode(ids)));
        }
        let first = run(&written.load(&cls()).unwrap(), &["a man"]).remove(0).unwrap();
        assert_near(&first.values, &written.paper().encode(&[2, 4, 5, 3])[0]);
    };
    for prefix in ["", "distilbert."] {
        check(&Written::distilbert(prefix));
    }
    for model_type in ["roberta", "xlm-roberta", "camembert"] {
        check(&Written::roberta("", model_type));
    }
    check(&Written::roberta("roberta.", "roberta"));
}

#[test]
fn a_roberta_that_embeds_has_its_pooler() {
    let written = Written::roberta("", "roberta");
    let model = written.load(&MEAN.replace("mean", "pooler")).unwrap();
    let output = run(&model, &["a man"]).remove(0).unwrap();
    let pooled = written.paper().dense("pooler.dense", &written.paper().encode(&[2, 4, 5, 3])[0]);
    assert_near(&output.values, &pooled.into_iter().map(f64::tanh).collect::<Vec<_>>());
}

/// What a family puts between the pooled vector and the logits.
type Hidden = fn(f64) -> f64;

#[test]
fn classifiers_of_every_family_give_the_logits_of_the_paper() {
    let check = |mut written: Written, hidden: &str, output: &str, activation: Hidden| {
        written.dense("hidden", hidden, HIDDEN);
        written.dense("output", output, LABELS);
        let paper = written.paper();
        for (recipe, pool) in [(cls(), (|rows| rows[0].clone()) as fn(&[Vec<f64>]) -> Vec<f64>), (MEAN.into(), mean)] {
            let model = written.load(&format!("{recipe}[head]\nactivation = \"softmax\"\n")).unwrap();
            assert_eq!(model.head().unwrap().labels, ["bad", "neutral", "good"]);
            let pooled = pool(&paper.encode(&[2, 4, 5, 3]));
            let inner: Vec<_> = paper.dense("hidden", &pooled).into_iter().map(activation).collect();
            let values = run(&model, &["a man"]).remove(0).unwrap().values;
            assert_near(&values, &paper.dense("output", &inner));
            let scores = model.head().unwrap().scores(&values, ScoreMode::Native);
            assert!((scores.iter().sum::<f32>() - 1.0).abs() < 1e-6, "{scores:?}");
        }
    };
    check(Written::distilbert("distilbert."), "pre_classifier", "classifier", |x| x.max(0.0));
    check(Written::roberta("roberta.", "xlm-roberta"), "classifier.dense", "classifier.out_proj", f64::tanh);
}

#[test]
fn labels_that_stand_for_themselves_have_temperature_and_thresholds() {
    let mut written = Written::roberta("roberta.", "roberta");
    written.dense("hidden", "classifier.dense", HIDDEN);
    written.dense("output", "classifier.out_proj", LABELS);
    let model = written.load(SIGMOID).unwrap();
    let paper = written.paper();
    let inner: Vec<_> = paper.dense("hidden", &paper.encode(&[2, 4, 5, 3])[0]).into_iter().map(f64::tanh).collect();
    let expected: Vec<_> =
        paper.dense("output", &inner).into_iter().map(|logit| 1.0 / (1.0 + (-logit / 2.0).exp())).collect();
    let values = run(&model, &["a man"]).remove(0).unwrap().values;
    let head = model.head().unwrap();
    assert_near(&head.scores(&values, ScoreMode::Native), &expected);
    assert_eq!(head.selected(&values), [true, false, expected[2] >= 0.5]);
}

#[test]
fn weights_of_half_precision_are_computed_as_f32() {
    for (dtype, digits) in [(DType::F16, 11), (DType::BF16, 8)] {
        let mut rounded = checkpoint("");
        // Weights that half precision holds exactly, so that nothing but the arithmetic is compared.
        let scale = 2_f64.powi(digits - 2);
        let round = |value: &mut f64| *value = (*value * scale).trunc() / scale;
        rounded.values_mut().for_each(|(_, values)| values.iter_mut().for_each(round));
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), &rounded);
        save(folder.path(), &rounded, dtype);
        let output = run(&load(folder.path(), MEAN).unwrap(), &["a man"]).remove(0).unwrap();
        assert_near(&output.values, &mean(&Paper { checkpoint: &rounded }.encode(&[2, 4, 5, 3])));
    }
}

#[test]
fn positions_end_where_the_family_ends_them() {
    let refuses = |written: &Written, recipe: &str, complaint: &str| {
        let error = written.load(recipe).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(error.contains(complaint), "{error:?} does not say {complaint:?}");
    };
    let full = MEAN.replace("= 8", "= 10");
    let beyond = MEAN.replace("= 8", "= 11");
    let mut roberta = Written::roberta("", "roberta");
    assert!(roberta.load(&full).is_ok());
    refuses(&roberta, &beyond, "the checkpoint has 10");
    refuses(&Written::distilbert(""), &beyond, "the checkpoint has 10");
    roberta.config["max_position_embeddings"] = 2.into();
    refuses(&roberta, MEAN, "begin at 2");
    roberta.config["position_embedding_type"] = "relative_key".into();
    refuses(&roberta, MEAN, "only \"absolute\" is run");
    let mut electra = Written::distilbert("");
    electra.config["model_type"] = "electra".into();
    refuses(&electra, MEAN, "this version runs bert, distilbert, roberta, xlm-roberta, camembert");
    refuses(&Written::distilbert(""), &MEAN.replace("mean", "pooler"), "pooler.dense");
}
