//! One source of configuration, read against the template.

use std::path::Path;

use toml::{Table, Value};

use super::{ANY, Mistakes};

/// A source of configuration.
#[derive(Clone, Debug)]
pub struct Layer(Kind);

#[derive(Clone, Debug)]
enum Kind {
    /// Name of the file, and what it holds or why it cannot be read.
    File(String, Result<String, String>),
    /// Source, path of the key, value as text; in the order they were given.
    Pairs(Vec<(String, Vec<String>, String)>),
}

impl Layer {
    /// A TOML file.
    #[must_use]
    pub fn file(path: &Path) -> Self {
        let text = std::fs::read_to_string(path).map_err(|error| format!("cannot be read: {error}"));
        Self(Kind::File(path.display().to_string(), text))
    }

    /// TOML text, under a name for messages.
    #[must_use]
    pub fn text(name: &str, text: &str) -> Self {
        Self(Kind::File(name.to_owned(), Ok(text.to_owned())))
    }

    /// The variables `TAMIS_<ROLE>__<KEY>` among `variables`.
    pub fn environment(role: &str, variables: impl IntoIterator<Item = (String, String)>) -> Self {
        let prefix = format!("TAMIS_{}__", role.to_uppercase());
        let pair = |(name, value): (String, String)| {
            let path = name.strip_prefix(&prefix)?.split("__").map(str::to_lowercase).collect();
            Some((name, path, value))
        };
        Self(Kind::Pairs(variables.into_iter().filter_map(pair).collect()))
    }

    /// Flags `--set key=value`.
    pub fn flags(flags: impl IntoIterator<Item = (String, String)>) -> Self {
        Self::pairs("--set", flags)
    }

    /// Values that the program chooses, under a name for messages; keys are paths with dots.
    pub fn pairs(source: &str, pairs: impl IntoIterator<Item = (String, String)>) -> Self {
        let pair =
            |(key, value): (String, String)| (source.to_owned(), key.split('.').map(str::to_owned).collect(), value);
        Self(Kind::Pairs(pairs.into_iter().map(pair).collect()))
    }

    /// The leaves that this layer sets, as far as the template knows them.
    pub(super) fn entries(&self, template: &Table, mistakes: &mut Mistakes) -> Vec<Entry> {
        let mut entries = Vec::new();
        match &self.0 {
            Kind::File(name, Err(error)) => mistakes.add("", name, error),
            Kind::File(name, Ok(text)) => match text.parse::<Table>() {
                Ok(table) => {
                    flatten(&mut Walk { source: name, mistakes, entries: &mut entries }, &[], template, &table)
                }
                Err(error) => mistakes.add("", name, error),
            },
            Kind::Pairs(pairs) => {
                for (source, path, text) in pairs {
                    match lookup(template, path) {
                        Ok(kind) => {
                            let value = read(kind, text);
                            entries.push(Entry { source: source.clone(), path: path.clone(), value });
                        }
                        Err(hint) => mistakes.add(&path.join("."), source, hint),
                    }
                }
            }
        }
        entries
    }
}

/// One leaf that a layer sets.
pub(super) struct Entry {
    source: String,
    path: Vec<String>,
    value: Value,
}

impl Entry {
    pub(super) fn key(&self) -> String {
        self.path.join(".")
    }

    pub(super) fn source(&self) -> &str {
        &self.source
    }

    /// Sets the leaf; named entries on its way that are new start from the template's.
    pub(super) fn apply(&self, template: &Table, into: &mut Table) {
        let Some((leaf, parents)) = self.path.split_last() else { return };
        let (mut template, mut table) = (Some(template), into);
        for name in parents {
            let below = template.and_then(|t| t.get(name).or_else(|| t.get(ANY))).and_then(Value::as_table);
            let fresh = || Value::Table(below.cloned().unwrap_or_default());
            let Value::Table(next) = table.entry(name.clone()).or_insert_with(fresh) else { return };
            (template, table) = (below, next);
        }
        table.insert(leaf.clone(), self.value.clone());
    }
}

struct Walk<'a> {
    source: &'a str,
    mistakes: &'a mut Mistakes,
    entries: &'a mut Vec<Entry>,
}

fn flatten(walk: &mut Walk<'_>, at: &[String], template: &Table, table: &Table) {
    for (name, value) in table {
        let path: Vec<String> = at.iter().chain([name]).cloned().collect();
        let known = template.get(name).or_else(|| template.get(ANY));
        match (known, value) {
            (None, _) => walk.mistakes.add(&path.join("."), walk.source, unknown(template, &path)),
            (Some(Value::Table(template)), Value::Table(table)) => flatten(walk, &path, template, table),
            (Some(_), value) => {
                walk.entries.push(Entry { source: walk.source.to_owned(), path, value: value.clone() });
            }
        }
    }
}

/// The template's value at a path, or a hint.
fn lookup<'t>(template: &'t Table, path: &[String]) -> Result<&'t Value, String> {
    let mut table = template;
    for (depth, name) in path.iter().enumerate() {
        let here = &path[..=depth];
        let value = table.get(name).or_else(|| table.get(ANY)).ok_or_else(|| unknown(table, here))?;
        match value {
            Value::Table(next) if depth + 1 < path.len() => table = next,
            Value::Table(next) => {
                let keys: Vec<_> = next.keys().map(String::as_str).collect();
                return Err(format!("this is a group of keys; set one of them: {}", keys.join(", ")));
            }
            leaf if depth + 1 == path.len() => return Ok(leaf),
            _ => return Err(unknown(table, path)),
        }
    }
    Err("no such key".to_owned())
}

/// Reads text as the kind of value that stands in the template: text needs no quotes, the rest is TOML.
fn read(kind: &Value, text: &str) -> Value {
    let as_text = || Value::String(text.to_owned());
    match kind {
        Value::String(_) => as_text(),
        _ => {
            format!("v = {text}").parse::<Table>().ok().and_then(|mut table| table.remove("v")).unwrap_or_else(as_text)
        }
    }
}

fn unknown(template: &Table, path: &[String]) -> String {
    let name = path.last().map_or("", String::as_str);
    let near = template.keys().filter(|key| *key != ANY).map(|key| (distance(key, name), key)).min();
    match near {
        Some((d, key)) if d <= 1 + name.len() / 4 => {
            let full: Vec<&str> = path[..path.len() - 1].iter().map(String::as_str).chain([key.as_str()]).collect();
            format!("no such key; did you mean `{}`?", full.join("."))
        }
        _ => {
            let keys: Vec<_> = template.keys().map(String::as_str).collect();
            format!("no such key; there are: {}", keys.join(", "))
        }
    }
}

/// Levenshtein distance, with a swap of neighbours counted as one.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![(0..=b.len()).collect::<Vec<_>>()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let change = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = change.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            row.push(best);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}
