//! The manifest's text: for people too, so with comments, which a serializer has none of.

use std::fmt::Write as _;

use super::{Addition, recipe::Recipe};
use crate::manifest::ModelName;

/// A file of the model and what its bytes are.
pub(super) struct Pinned {
    pub(super) name: &'static str,
    pub(super) sha256: String,
}

/// Writes the manifest.
pub(super) fn document(name: &ModelName, wanted: &Addition, commit: &str, recipe: &Recipe, files: &[Pinned]) -> String {
    let mut text = format!("# From the files of {} at {}.\n", wanted.repository, wanted.revision);
    for decision in &recipe.decisions {
        text.push_str(&format!("# {decision}\n"));
    }
    line(&mut text, "name", name.as_str());
    line(&mut text, "task", recipe.task.name());
    line(&mut text, "licence", recipe.licence.as_str());
    text.push_str("\n[[sources]]\n");
    line(&mut text, "hub", wanted.repository.as_str());
    line(&mut text, "revision", commit);
    if !recipe.folder.is_empty() {
        line(&mut text, "folder", recipe.folder.as_str());
    }
    for file in files {
        text.push_str("\n[[files]]\n");
        line(&mut text, "name", file.name);
        line(&mut text, "sha256", file.sha256.as_str());
    }
    text.push_str("\n[text]\n");
    line(&mut text, "pooling", recipe.pooling);
    if let Some(normalize) = recipe.normalize {
        line(&mut text, "normalize", normalize);
    }
    line(&mut text, "max_tokens", i64::from(recipe.max_tokens));
    write_prompts(&mut text, recipe);
    if let Some(head) = &recipe.head {
        text.push_str("\n[head]\n");
        if let Some(labels) = &head.labels {
            line(&mut text, "labels", labels.clone());
        }
        line(&mut text, "activation", head.activation);
    }
    text
}

/// What stands before a text, by its role; no table where there is nothing to write.
fn write_prompts(text: &mut String, recipe: &Recipe) {
    if recipe.prompts.is_empty() {
        return;
    }
    text.push_str("\n[text.prompts]\n");
    for (role, prompt) in &recipe.prompts {
        line(text, role, prompt.as_str());
    }
}

/// A key and its value, quoted as TOML wants it.
fn line(text: &mut String, key: &str, value: impl Into<toml::Value>) {
    // Writing to a string does not fail.
    let _ = writeln!(text, "{key} = {}", value.into());
}
