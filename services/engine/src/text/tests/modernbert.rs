//! ModernBERT against its paper's arithmetic, one number at a time in f64.

use serde_json::Value;

use super::*;

const LAYERS: usize = 3;
const LABELS: usize = 3;
/// Layers 0 and 2 see the whole text, layer 1 two tokens on each side.
const WINDOW: usize = 2;
const WIDTH: usize = HIDDEN / HEADS;
const THETAS: [f64; 2] = [100.0, 10.0];

/// A checkpoint, with biases or without.
struct Modern {
    checkpoint: Checkpoint,
}

impl Modern {
    fn new(prefix: &str, biases: bool) -> Self {
        let mut shapes = vec![("embeddings.tok_embeddings.weight".to_owned(), vec![WORDS.len(), HIDDEN])];
        let mut part = |name: &str, shape: &[usize]| {
            shapes.push((format!("{name}.weight"), shape.to_vec()));
            if biases {
                shapes.push((format!("{name}.bias"), vec![shape[0]]));
            }
        };
        part("embeddings.norm", &[HIDDEN]);
        part("final_norm", &[HIDDEN]);
        for layer in 0..LAYERS {
            let mut part = |name: &str, shape: &[usize]| part(&format!("layers.{layer}.{name}"), shape);
            if layer > 0 {
                part("attn_norm", &[HIDDEN]);
            }
            part("attn.Wqkv", &[3 * HIDDEN, HIDDEN]);
            part("attn.Wo", &[HIDDEN, HIDDEN]);
            part("mlp_norm", &[HIDDEN]);
            part("mlp.Wi", &[2 * INNER, HIDDEN]);
            part("mlp.Wo", &[HIDDEN, INNER]);
        }
        let mut all: Vec<_> = shapes.into_iter().map(|(name, shape)| (format!("{prefix}{name}"), shape)).collect();
        all.extend([("head.dense.weight".to_owned(), vec![HIDDEN, HIDDEN]), ("head.norm.weight".into(), vec![HIDDEN])]);
        if biases {
            all.extend([("head.dense.bias".to_owned(), vec![HIDDEN]), ("head.norm.bias".into(), vec![HIDDEN])]);
        }
        all.extend([("classifier.weight".to_owned(), vec![LABELS, HIDDEN]), ("classifier.bias".into(), vec![LABELS])]);
        let mut seed = 3;
        let mut fill = |count: usize| (0..count).map(|_| f64::from(noise(&mut seed) as f32)).collect();
        let tensor = |(name, shape): (String, Vec<usize>)| {
            let values = fill(shape.iter().product());
            (name, (shape, values))
        };
        Self { checkpoint: all.into_iter().map(tensor).collect() }
    }

    /// The same under the names of an encoder alone, for the paper.
    fn plain(&self) -> Self {
        let plain = |name: &String| name.strip_prefix("model.").unwrap_or(name).to_owned();
        Self { checkpoint: self.checkpoint.iter().map(|(name, tensor)| (plain(name), tensor.clone())).collect() }
    }

    fn load(&self, config: &Value, recipe: &str) -> Result<TextModel, Error> {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), &self.checkpoint);
        fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        load(folder.path(), recipe)
    }

    fn biases(&self, name: &str, count: usize) -> Vec<f64> {
        self.checkpoint.get(&format!("{name}.bias")).map_or_else(|| vec![0.0; count], |(_, values)| values.clone())
    }

    fn dense(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let (shape, weights) = &self.checkpoint[&format!("{name}.weight")];
        let rows = weights.chunks(shape[1]).zip(self.biases(name, shape[0]));
        rows.map(|(row, bias)| bias + row.iter().zip(x).map(|(w, x)| w * x).sum::<f64>()).collect()
    }

    fn norm(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let mean = x.iter().sum::<f64>() / x.len() as f64;
        let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / x.len() as f64;
        let (weight, bias) = (&self.checkpoint[&format!("{name}.weight")].1, self.biases(name, x.len()));
        (0..x.len()).map(|i| (x[i] - mean) / (variance + 1e-5).sqrt() * weight[i] + bias[i]).collect()
    }

    fn encode(&self, ids: &[usize]) -> Vec<Vec<f64>> {
        let words = &self.checkpoint["embeddings.tok_embeddings.weight"].1;
        let word = |id: &usize| self.norm("embeddings.norm", &words[id * HIDDEN..(id + 1) * HIDDEN]);
        let mut rows: Vec<_> = ids.iter().map(word).collect();
        for layer in 0..LAYERS {
            let name = |part: &str| format!("layers.{layer}.{part}");
            let normed = |x: &Vec<f64>| if layer == 0 { x.clone() } else { self.norm(&name("attn_norm"), x) };
            let qkv: Vec<_> = rows.iter().map(|x| self.dense(&name("attn.Wqkv"), &normed(x))).collect();
            for (row, mixed) in rows.iter_mut().zip(mix(&qkv, layer == 1)) {
                add(row, &self.dense(&name("attn.Wo"), &mixed));
                let up = self.dense(&name("mlp.Wi"), &self.norm(&name("mlp_norm"), row));
                let inner: Vec<_> = (0..INNER).map(|i| gelu(up[i]) * up[INNER + i]).collect();
                add(row, &self.dense(&name("mlp.Wo"), &inner));
            }
        }
        rows.iter().map(|row| self.norm("final_norm", row)).collect()
    }

    fn logits(&self, pooled: &[f64]) -> Vec<f64> {
        let hidden: Vec<_> = self.dense("head.dense", pooled).into_iter().map(gelu).collect();
        self.dense("classifier", &self.norm("head.norm", &hidden))
    }
}

fn add(row: &mut [f64], other: &[f64]) {
    row.iter_mut().zip(other).for_each(|(x, y)| *x += y);
}

/// One head's part of a query or key, turned by its position.
fn turned(x: &[f64], position: usize, theta: f64) -> Vec<f64> {
    let half = WIDTH / 2;
    let turn = |i: usize| {
        let (sine, cosine) = (position as f64 / theta.powf(2.0 * (i % half) as f64 / WIDTH as f64)).sin_cos();
        if i < half { x[i] * cosine - x[i + half] * sine } else { x[i] * cosine + x[i - half] * sine }
    };
    (0..WIDTH).map(turn).collect()
}

fn mix(qkv: &[Vec<f64>], is_local: bool) -> Vec<Vec<f64>> {
    let theta = THETAS[usize::from(is_local)];
    let mut mixed = vec![vec![0.0; HIDDEN]; qkv.len()];
    for head in (0..HEADS).map(|head| head * WIDTH) {
        let part = |row: &[f64], which: usize| row[which * HIDDEN + head..which * HIDDEN + head + WIDTH].to_vec();
        for (place, out) in mixed.iter_mut().enumerate() {
            let query = turned(&part(&qkv[place], 0), place, theta);
            let seen: Vec<_> = (0..qkv.len()).filter(|other| !is_local || place.abs_diff(*other) <= WINDOW).collect();
            let power = |other: &usize| {
                let key = turned(&part(&qkv[*other], 1), *other, theta);
                (query.iter().zip(&key).map(|(q, k)| q * k).sum::<f64>() / (WIDTH as f64).sqrt()).exp()
            };
            let powers: Vec<_> = seen.iter().map(power).collect();
            let total: f64 = powers.iter().sum();
            for (other, power) in seen.iter().zip(&powers) {
                let value = part(&qkv[*other], 2);
                (0..WIDTH).for_each(|i| out[head + i] += power / total * value[i]);
            }
        }
    }
    mixed
}

fn config() -> Value {
    json!({
        "model_type": "modernbert", "vocab_size": WORDS.len(), "hidden_size": HIDDEN, "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS, "intermediate_size": INNER, "hidden_activation": "gelu", "norm_eps": 1e-5,
        "layer_norm_eps": 0.5, "max_position_embeddings": POSITIONS, "global_attn_every_n_layers": 2,
        "local_attention": 2 * WINDOW, "global_rope_theta": THETAS[0], "local_rope_theta": THETAS[1],
        "id2label": {"0": "bad", "1": "neutral", "2": "good"}, "position_embedding_type": "absolute",
    })
}

/// The same as newer versions of transformers write it.
fn newer() -> Value {
    let mut config = config();
    let kinds = ["full_attention", "sliding_attention", "full_attention"];
    config["layer_types"] = json!(kinds);
    config["global_attn_every_n_layers"] = json!(1);
    let rotation = |theta: f64| json!({"rope_type": "default", "rope_theta": theta});
    config["rope_parameters"] =
        json!({"full_attention": rotation(THETAS[0]), "sliding_attention": rotation(THETAS[1])});
    config["global_rope_theta"] = json!(7.0);
    config["local_rope_theta"] = json!(7.0);
    config
}

fn biased(mut config: Value) -> Value {
    for key in ["attention_bias", "mlp_bias", "norm_bias", "classifier_bias"] {
        config[key] = true.into();
    }
    config
}

#[test]
fn modernbert_gives_the_vectors_of_the_paper() {
    let long = [2, 4, 5, 6, 7, 4, 5, 3];
    let check = |modern: &Modern, config: &Value| {
        let paper = modern.plain();
        let model = modern.load(config, MEAN).unwrap();
        let together = run(&model, &["food", "a man eats food a man"]);
        assert_near(&together[0].as_ref().unwrap().values, &mean(&paper.encode(&[2, 7, 3])));
        assert_near(&together[1].as_ref().unwrap().values, &mean(&paper.encode(&long)));
        let first = modern.load(config, &MEAN.replace("mean", "cls")).unwrap();
        assert_near(&run(&first, &["a man eats food a man"])[0].as_ref().unwrap().values, &paper.encode(&long)[0]);
    };
    for prefix in ["", "model."] {
        check(&Modern::new(prefix, false), &config());
        check(&Modern::new(prefix, false), &newer());
        check(&Modern::new(prefix, true), &biased(config()));
    }
}

#[test]
fn a_classifier_of_modernbert_gives_the_logits_of_the_paper() {
    for (biases, config) in [(false, config()), (true, biased(config()))] {
        let modern = Modern::new("model.", biases);
        let paper = modern.plain();
        let rows = paper.encode(&[2, 4, 5, 3]);
        for (pooling, pooled) in [("mean", mean(&rows)), ("cls", rows[0].clone())] {
            let recipe = format!("{}[head]\nactivation = \"softmax\"\n", MEAN.replace("mean", pooling));
            let model = modern.load(&config, &recipe).unwrap();
            assert_eq!(model.head().unwrap().labels, ["bad", "neutral", "good"]);
            let output = run(&model, &["a man"]).remove(0).unwrap();
            assert_near(&output.values, &paper.logits(&pooled));
        }
    }
}

#[test]
fn a_modernbert_that_is_computed_otherwise_is_refused() {
    let refuses = |key: &str, value: Value, complaint: &str| {
        let mut config = config();
        config[key] = value;
        let error = Modern::new("", false).load(&config, MEAN).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(error.contains(complaint), "{error:?} does not say {complaint:?}");
    };
    refuses("global_attn_every_n_layers", 0.into(), "global_attn_every_n_layers is 0");
    refuses("layer_types", json!(["full_attention"]), "layer_types names 1 of 3 layers");
    refuses("layer_types", json!(["linear_attention"]), "\"linear_attention\"");
    refuses("rope_parameters", json!({"full_attention": {"rope_type": "yarn"}}), "\"yarn\"");
    refuses("rope_scaling", json!({"rope_type": "linear", "factor": 2.0}), "rotated");
    refuses("num_attention_heads", HIDDEN.into(), "width 1");
    refuses("norm_bias", true.into(), "norm.bias");
    refuses("hidden_activation", "silu".into(), "silu");
    let mut long = config();
    (long["hidden_size"], long["num_attention_heads"], long["max_position_embeddings"]) =
        (4096.into(), 1.into(), (1 << 20).into());
    let error = crate::encoder::Config::parse(long.to_string().as_bytes()).unwrap_err();
    assert!(error.contains("max_position_embeddings is 1048576: at most 8192 for heads of 4096"), "{error}");
    let mut lacks = Modern::new("", false);
    lacks.checkpoint.remove("layers.1.attn_norm.weight");
    let error = lacks.load(&config(), MEAN).err().unwrap().to_string();
    assert!(error.contains("layers.1.attn_norm.weight"), "{error}");
}
