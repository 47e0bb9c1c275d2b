//! What replies have in common, as people and programs read it.

use proto::common::v1 as pb;
use serde_json::{Value, json};

/// A reply to be shown.
pub(crate) trait Reply {
    /// For programs: the contract's field names.
    fn json(&self) -> Value;
    /// For people.
    fn table(&self) -> String;
    /// How many items failed, of how many.
    fn failed(&self) -> (usize, usize);
    /// What an item is called.
    fn item(&self) -> &'static str {
        "item"
    }
}

/// The model that answered.
pub(crate) fn model(model: Option<&pb::ModelInfo>) -> Value {
    model.map_or(Value::Null, |model| {
        json!({
            "model": model.model,
            "revision": model.revision,
            "device": model.device,
            "dtype": model.dtype,
            "compute_path": model.compute_path,
        })
    })
}

/// What the call used.
pub(crate) fn usage(usage: Option<&pb::Usage>) -> Value {
    usage.map_or(Value::Null, |usage| {
        json!({
            "items": usage.items,
            "input_tokens": usage.input_tokens,
            "input_bytes": usage.input_bytes,
            "input_pixels": usage.input_pixels,
        })
    })
}

/// Why an item failed.
pub(crate) fn error(error: &pb::ItemError) -> Value {
    json!({ "reason": error.reason().as_str_name(), "message": error.message })
}

/// Why an item failed, in its place in a table.
pub(crate) fn complaint(error: &pb::ItemError) -> String {
    format!("{}: {}", error.reason().as_error_info(), error.message)
}

/// The line below a table.
pub(crate) fn model_line(model: Option<&pb::ModelInfo>) -> String {
    model.map_or_else(String::new, |model| {
        let computed = computed(&model.dtype, &model.compute_path);
        let comma = if computed.is_empty() { "" } else { ", " };
        format!("Model {}, revision {}{comma}{computed}", model.model, model.revision)
    })
}

/// In what number format, and by what.
pub(crate) fn computed(dtype: &str, compute_path: &str) -> String {
    [dtype, compute_path].into_iter().filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_below_a_table_says_which_model_and_in_what_precision() {
        let info = |dtype: &str, path: &str| {
            let (dtype, compute_path) = (dtype.to_owned(), path.to_owned());
            pb::ModelInfo { model: "m".into(), revision: "sha256:1".into(), dtype, compute_path, ..Default::default() }
        };
        let line = |dtype, path| model_line(Some(&info(dtype, path)));
        assert_eq!(line("bf16", "avx512-dot"), "Model m, revision sha256:1, bf16 avx512-dot");
        assert_eq!(line("", ""), "Model m, revision sha256:1", "a service of before");
        assert_eq!(model_line(None), "");
    }
}
