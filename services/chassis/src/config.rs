//! Strict configuration: defaults, then a file, then the environment, then flags; the later source wins.
//!
//! A key that does not exist is a mistake, so is a value that does not fit, and all mistakes come in one message. The
//! defaults are the schema: a configuration is a serde structure that can write its own defaults as TOML.
//!
//! The environment variable of the key `tls.cert` of the role `gateway` is `TAMIS_GATEWAY__TLS__CERT`. The double
//! underscore keeps apart what Kubernetes injects for a service named `tamis-gateway` (`TAMIS_GATEWAY_PORT`).
//!
//! ```
//! use chassis::config::{Layer, Mistakes, Settings, load};
//! #[derive(serde::Serialize, serde::Deserialize)]
//! struct Echo { words_max: u32 }
//! impl Settings for Echo {
//!     fn defaults() -> Self { Self { words_max: 10 } }
//!     fn check(&self, _: &mut Mistakes) {}
//! }
//! let flags = Layer::flags([("words_max".to_owned(), "20".to_owned())]);
//! let echo: Echo = load("echo", &[flags]).unwrap();
//! assert_eq!(echo.words_max, 20);
//! ```

mod layer;

use std::fmt;

use serde::{Serialize, de::DeserializeOwned};
use toml::{Table, Value};

pub use self::layer::Layer;

/// Key of a template table whose entries have names of the user's choice; its value is what an entry starts from.
pub const ANY: &str = "*";

/// A configuration: serialisable, so that the effective one can be printed.
pub trait Settings: Serialize + DeserializeOwned {
    /// What holds where nobody says otherwise.
    fn defaults() -> Self;

    /// Adds what is wrong with the values together.
    fn check(&self, mistakes: &mut Mistakes);

    /// The schema as TOML: the defaults, with an [`ANY`] entry in tables of named entries and one example in arrays of
    /// tables. Only configurations with such tables or arrays override it.
    fn template() -> Table {
        table_of(&Self::defaults())
    }
}

/// The TOML form of a value that serialises to a table; empty for anything else.
pub fn table_of(value: &impl Serialize) -> Table {
    Table::try_from(value).unwrap_or_default()
}

/// The effective configuration as TOML, for `--print-config` and `/config`.
pub fn print(settings: &impl Serialize) -> String {
    toml::to_string_pretty(settings).unwrap_or_default()
}

/// Builds the configuration of `role` from its defaults and the layers, in their order.
///
/// # Errors
/// All mistakes of all layers at once.
pub fn load<S: Settings>(role: &str, layers: &[Layer]) -> Result<S, Mistakes> {
    let mut mistakes = Mistakes::new(role);
    let template = S::template();
    let mut effective = concrete(&template, &table_of(&S::defaults()));
    for layer in layers {
        for entry in layer.entries(&template, &mut mistakes) {
            let mut candidate = effective.clone();
            entry.apply(&template, &mut candidate);
            // One entry at a time, so that every value that does not fit is reported with its own key and source.
            match candidate.clone().try_into::<S>() {
                Ok(_) => effective = candidate,
                Err(error) => mistakes.add(&entry.key(), entry.source(), error.message()),
            }
        }
    }
    let settings = effective.try_into::<S>().map_err(|error| mistakes.clone().with("", "defaults", error.message()))?;
    settings.check(&mut mistakes);
    if mistakes.list.is_empty() { Ok(settings) } else { Err(mistakes) }
}

/// The template without what stands there as an example only.
fn concrete(template: &Table, defaults: &Table) -> Table {
    let keep = |(key, value): (&String, &Value)| {
        let default = defaults.get(key)?;
        let value = match (value, default) {
            (Value::Table(template), Value::Table(defaults)) => Value::Table(concrete(template, defaults)),
            _ => default.clone(),
        };
        Some((key.clone(), value))
    };
    template.iter().filter_map(keep).collect()
}

/// Everything that is wrong with a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistakes {
    role: String,
    list: Vec<String>,
}

impl Mistakes {
    fn new(role: &str) -> Self {
        Self { role: role.to_owned(), list: Vec::new() }
    }

    /// Adds one: the key at fault, where it was written, and what is wrong.
    pub fn add(&mut self, key: &str, source: &str, what: impl fmt::Display) {
        let what = what.to_string();
        let what = what.trim();
        self.list.push(if key.is_empty() {
            format!("{source}: {what}")
        } else {
            format!("`{key}` ({source}): {what}")
        });
    }

    /// Adds one unless the condition holds.
    pub fn require(&mut self, holds: bool, key: &str, what: impl fmt::Display) {
        if !holds {
            self.add(key, "effective value", what);
        }
    }

    fn with(mut self, key: &str, source: &str, what: impl fmt::Display) -> Self {
        self.add(key, source, what);
        self
    }
}

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (n, s) = (self.list.len(), if self.list.len() == 1 { "" } else { "s" });
        write!(f, "the configuration of `{}` has {n} mistake{s}:", self.role)?;
        self.list.iter().try_for_each(|mistake| write!(f, "\n  - {mistake}"))
    }
}

impl std::error::Error for Mistakes {}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::Deserialize;

    use super::*;
    use crate::units::Span;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Demo {
        wait: Span,
        tls: Tls,
        services: BTreeMap<String, Service>,
    }
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Tls {
        cert: String,
        strict: bool,
    }
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Service {
        endpoints: Vec<String>,
        calls_max: u32,
    }

    impl Settings for Demo {
        fn defaults() -> Self {
            Self { wait: Span::seconds(1), tls: Tls { cert: String::new(), strict: true }, services: BTreeMap::new() }
        }
        fn check(&self, mistakes: &mut Mistakes) {
            mistakes.require(self.wait.0.as_secs() < 100, "wait", "at most 100s");
        }
        fn template() -> Table {
            let any = Service { endpoints: Vec::new(), calls_max: 8 };
            let mut template = table_of(&Self::defaults());
            template.insert("services".into(), Value::Table(Table::from_iter([(ANY.into(), table_of(&any).into())])));
            template
        }
    }

    fn file(text: &str) -> Layer {
        Layer::text("demo.toml", text)
    }
    fn environment(name: &str, value: &str) -> Layer {
        Layer::environment("demo", [(name.to_owned(), value.to_owned())])
    }
    fn flag(key: &str, value: &str) -> Layer {
        Layer::flags([(key.to_owned(), value.to_owned())])
    }
    fn refused(layers: &[Layer]) -> String {
        load::<Demo>("demo", layers).unwrap_err().to_string()
    }

    #[test]
    fn the_later_source_wins() {
        let layers = [file("wait = '2s'"), environment("TAMIS_DEMO__WAIT", "3s"), flag("wait", "4s")];
        assert_eq!(load::<Demo>("demo", &layers[..1]).unwrap().wait, Span::seconds(2));
        assert_eq!(load::<Demo>("demo", &layers[..2]).unwrap().wait, Span::seconds(3));
        assert_eq!(load::<Demo>("demo", &layers).unwrap().wait, Span::seconds(4));
    }

    #[test]
    fn nested_keys_and_named_entries_have_variables_and_flags() {
        let layers = [
            environment("TAMIS_DEMO__TLS__STRICT", "false"),
            flag("services.embedding.calls_max", "3"),
            flag("services.embedding.endpoints", "['a:1', 'b:2']"),
        ];
        let demo = load::<Demo>("demo", &layers).unwrap();
        assert!(!demo.tls.strict);
        assert_eq!(demo.services["embedding"], Service { endpoints: vec!["a:1".into(), "b:2".into()], calls_max: 3 });
    }

    #[test]
    fn all_mistakes_come_in_one_message_with_key_and_source() {
        let layers = [
            file("wait = 'soon'\nwiat = 1\n[tls]\ncert = 3\n[services.a]\nendpoint = ['x:1']"),
            environment("TAMIS_DEMO__TLS__STRICT", "perhaps"),
            flag("nonsense", "1"),
        ];
        let message = refused(&layers);
        for part in [
            "`wait` (demo.toml): `soon` is not a length of time",
            "`wiat` (demo.toml): no such key; did you mean `wait`?",
            "`tls.cert` (demo.toml)",
            "`services.a.endpoint` (demo.toml): no such key; did you mean `services.a.endpoints`?",
            "`tls.strict` (TAMIS_DEMO__TLS__STRICT)",
            "`nonsense` (--set): no such key",
        ] {
            assert!(message.contains(part), "{part} is missing in\n{message}");
        }
    }

    #[test]
    fn what_kubernetes_injects_is_not_taken_for_configuration() {
        assert!(load::<Demo>("demo", &[environment("TAMIS_DEMO_PORT", "tcp://10.0.0.1:80")]).is_ok());
    }

    #[test]
    fn a_file_that_is_no_toml_is_refused_with_its_place() {
        assert!(refused(&[file("wait = ")]).contains("demo.toml"));
    }

    #[test]
    fn values_are_checked_together() {
        assert!(refused(&[flag("wait", "1000s")]).contains("at most 100s"));
    }

    #[test]
    fn the_effective_configuration_reads_back() {
        let demo = load::<Demo>("demo", &[flag("services.a.calls_max", "3")]).unwrap();
        assert_eq!(load::<Demo>("demo", &[file(&print(&demo))]).unwrap(), demo);
    }
}
