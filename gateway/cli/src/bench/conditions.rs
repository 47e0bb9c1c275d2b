//! Under what conditions numbers came about; without them they mean nothing.

use std::{num::NonZero, time::SystemTime};

use serde_json::{Value, json};

/// The conditions of a run.
#[derive(Clone, Debug)]
pub(crate) struct Conditions {
    pub(crate) at: SystemTime,
    /// Processors that this process may use.
    pub(crate) cpus: usize,
    pub(crate) cpu_model: String,
    /// Processes that wanted a processor in the minute before, as the kernel averages it.
    pub(crate) load_before: Option<f64>,
    pub(crate) target: String,
    pub(crate) arguments: Vec<String>,
}

impl Conditions {
    /// As they are now.
    pub(crate) fn now(target: String) -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        Self {
            at: SystemTime::now(),
            cpus: std::thread::available_parallelism().map_or(1, NonZero::get),
            cpu_model: cpu_model(&read("/proc/cpuinfo")),
            load_before: read("/proc/loadavg").split_whitespace().next().and_then(|load| load.parse().ok()),
            target,
            arguments: std::env::args().skip(1).collect(),
        }
    }

    pub(crate) fn json(&self) -> Value {
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "build": build(),
            "at": humantime::format_rfc3339_seconds(self.at).to_string(),
            "cpus": self.cpus,
            "cpu_model": self.cpu_model,
            "load_before": self.load_before,
            "target": self.target,
            "arguments": self.arguments,
        })
    }

    pub(crate) fn line(&self) -> String {
        let load = self.load_before.map_or_else(String::new, |load| format!(", load {load:.2} before"));
        format!(
            "tamis {} ({}) at {}, {} CPUs ({}){load}",
            env!("CARGO_PKG_VERSION"),
            build(),
            humantime::format_rfc3339_seconds(self.at),
            self.cpus,
            self.cpu_model
        )
    }
}

/// Whether this program is optimised.
fn build() -> &'static str {
    if cfg!(debug_assertions) { "debug build" } else { "release build" }
}

fn cpu_model(cpuinfo: &str) -> String {
    let value = |line: &str| Some(line.strip_prefix("model name")?.split_once(':')?.1.trim().to_owned());
    cpuinfo.lines().find_map(value).unwrap_or_else(|| std::env::consts::ARCH.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_processor_is_named_or_at_least_its_architecture() {
        assert_eq!(cpu_model("processor\t: 0\nmodel name\t: Fast CPU 9\nflags\t: fpu\n"), "Fast CPU 9");
        assert_eq!(cpu_model(""), std::env::consts::ARCH);
    }
}
