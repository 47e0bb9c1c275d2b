//! Errors for people: what happened, why, and what to do.

use std::fmt;

/// What went wrong and what to do about it, as an error by itself or as the context of its cause.
#[derive(Debug)]
pub(crate) struct Advice {
    what: String,
    help: String,
}

impl Advice {
    /// One sentence each, without a full stop.
    pub(crate) fn new(what: impl Into<String>, help: impl Into<String>) -> Self {
        Self { what: what.into(), help: help.into() }
    }

    /// What to do.
    pub(crate) fn help(&self) -> &str {
        &self.help
    }
}

impl fmt::Display for Advice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl std::error::Error for Advice {}

/// The report of an error as it stands on standard error.
pub(crate) fn report(error: &anyhow::Error) -> String {
    let what = format!("error: {}", causes(error));
    match error.downcast_ref::<Advice>() {
        Some(advice) => format!("{what}\n  help: {}", advice.help.replace('\n', "\n        ")),
        None => what,
    }
}

/// An error that ended nothing, on one line among other remarks.
pub(crate) fn remark(error: &anyhow::Error) -> String {
    let what = causes(error);
    match error.downcast_ref::<Advice>() {
        Some(advice) => format!("{what}; {}", advice.help.replace('\n', "; ")),
        None => what,
    }
}

fn causes(error: &anyhow::Error) -> String {
    let mut what = String::new();
    for cause in error.chain().map(ToString::to_string) {
        // Some errors say their cause themselves.
        if !what.ends_with(&cause) {
            what = if what.is_empty() { cause } else { format!("{what}: {cause}") };
        }
    }
    what
}

#[cfg(test)]
mod tests {
    use anyhow::{Context as _, anyhow};

    use super::*;

    #[test]
    fn a_report_says_what_why_and_what_to_do() {
        let error = Err::<(), _>(anyhow!("connection refused"))
            .context(Advice::new("the mesh does not answer", "start it with `tamis up`"))
            .unwrap_err();
        assert_eq!(
            report(&error),
            "error: the mesh does not answer: connection refused\n  help: start it with `tamis up`"
        );
    }

    #[test]
    fn a_cause_is_said_once() {
        let error = anyhow!("no such file").context("cannot read a: no such file");
        assert_eq!(report(&error), "error: cannot read a: no such file");
    }

    #[test]
    fn a_remark_says_the_same_on_one_line() {
        let error = anyhow!("connection refused").context(Advice::new("no answer", "start it\nor wait"));
        assert_eq!(remark(&error), "no answer: connection refused; start it; or wait");
    }

    #[test]
    fn a_report_without_advice_is_one_line() {
        assert_eq!(report(&anyhow!("no")), "error: no");
    }
}
