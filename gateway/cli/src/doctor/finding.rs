//! What a check found.

use serde_json::{Value, json};

use crate::output::{render, table};

/// How it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Mark {
    Ok,
    /// It works, and may not for long or not well.
    Warn,
    /// Something does not work.
    Fail,
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    /// What was looked at: `certificate`, `port`.
    pub(crate) check: &'static str,
    /// Which of them.
    pub(crate) subject: String,
    pub(crate) mark: Mark,
    pub(crate) what: String,
    /// What to do; nothing where nothing need be done.
    pub(crate) help: Option<String>,
}

impl Finding {
    pub(crate) fn ok(check: &'static str, subject: impl Into<String>, what: impl Into<String>) -> Self {
        Self { check, subject: subject.into(), mark: Mark::Ok, what: what.into(), help: None }
    }

    /// A finding that asks for something; what to do comes with `help`.
    pub(crate) fn warn(check: &'static str, subject: impl Into<String>, what: impl Into<String>) -> Self {
        Self { mark: Mark::Warn, ..Self::ok(check, subject, what) }
    }

    /// A finding that asks for something at once; what to do comes with `help`.
    pub(crate) fn fail(check: &'static str, subject: impl Into<String>, what: impl Into<String>) -> Self {
        Self { mark: Mark::Fail, ..Self::ok(check, subject, what) }
    }

    /// Says what to do.
    pub(crate) fn help(self, help: impl Into<String>) -> Self {
        Self { help: Some(help.into()), ..self }
    }

    fn json(&self) -> Value {
        json!({
            "check": self.check,
            "subject": self.subject,
            "mark": self.mark.name(),
            "what": self.what,
            "help": self.help,
        })
    }
}

impl Mark {
    fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }

    fn sign(self) -> &'static str {
        match self {
            Self::Ok => "✓ ok",
            Self::Warn => "! warn",
            Self::Fail => "✗ FAIL",
        }
    }
}

/// How many have this mark.
pub(crate) fn count(findings: &[Finding], mark: Mark) -> usize {
    findings.iter().filter(|finding| finding.mark == mark).count()
}

/// For programs: the names are stable.
pub(crate) fn json(findings: &[Finding]) -> Value {
    json!({
        "format": 1,
        "version": env!("CARGO_PKG_VERSION"),
        "ok": count(findings, Mark::Ok),
        "warn": count(findings, Mark::Warn),
        "fail": count(findings, Mark::Fail),
        "findings": findings.iter().map(Finding::json).collect::<Vec<_>>(),
    })
}

/// For people.
pub(crate) fn text(findings: &[Finding]) -> String {
    let mut rows = table(&["", "CHECK", "SUBJECT", "FINDING"]);
    let mut check = "";
    for finding in findings {
        // A name that repeats hides where the next group begins.
        let shown = if std::mem::replace(&mut check, finding.check) == finding.check { "" } else { finding.check };
        let help = finding.help.as_ref().map_or_else(String::new, |help| format!("\n→ {}", help.replace('\n', "\n  ")));
        rows.add_row([finding.mark.sign(), shown, &finding.subject, &format!("{}{help}", finding.what)]);
    }
    let [ok, warn, fail] = [Mark::Ok, Mark::Warn, Mark::Fail].map(|mark| count(findings, mark));
    format!("{}\n\n{ok} ok, {warn} to watch, {fail} failed", render(&rows))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings() -> [Finding; 3] {
        [
            Finding::ok("port", "a:1", "free"),
            Finding::fail("port", "a:2", "taken").help("stop it\nor not"),
            Finding::warn("disk", "/data", "nearly full").help("remove something"),
        ]
    }

    #[test]
    fn a_table_marks_findings_and_says_what_to_do() {
        let text = text(&findings());
        assert!(text.contains("✗ FAIL") && text.contains("→ stop it") && text.contains("or not"), "{text}");
        assert!(text.ends_with("1 ok, 1 to watch, 1 failed"), "{text}");
        assert_eq!(text.matches("port").count(), 1);
    }

    #[test]
    fn json_has_marks_and_counts() {
        let json = json(&findings());
        assert_eq!((&json["fail"], &json["findings"][1]["mark"]), (&json!(1), &json!("fail")));
        assert_eq!(json["findings"][0]["help"], Value::Null);
    }
}
