//! The progress of a pull: a bar on a terminal, a line for each file elsewhere.

use std::{
    io::IsTerminal as _,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use engine::Progress;
use indicatif::{ProgressBar, ProgressStyle};

use crate::output::warn;

/// Progress on standard error, so that standard output stays clean.
pub(crate) struct Terminal {
    is_terminal: bool,
    /// The file that comes now.
    bar: Mutex<ProgressBar>,
}

impl Terminal {
    pub(crate) fn new() -> Self {
        Self { is_terminal: std::io::stderr().is_terminal(), bar: Mutex::new(ProgressBar::hidden()) }
    }

    /// Puts another bar in the place of the one that shows.
    fn show(&self, bar: ProgressBar) {
        let mut shown = self.bar.lock().unwrap_or_else(PoisonError::into_inner);
        shown.finish_and_clear();
        *shown = bar;
    }

    fn spinner(&self) -> ProgressBar {
        if !self.is_terminal {
            return ProgressBar::hidden();
        }
        let bar = ProgressBar::new_spinner().with_style(style("  {spinner} {elapsed}"));
        bar.enable_steady_tick(Duration::from_millis(120));
        bar
    }
}

impl Progress for Terminal {
    fn started(&self, file: &str, bytes: Option<u64>) {
        let bar = match bytes {
            Some(bytes) if self.is_terminal => ProgressBar::new(bytes)
                .with_style(style("  {prefix:24} {bar:30} {binary_bytes} of {binary_total_bytes}, {eta} left"))
                .with_prefix(file.to_owned()),
            _ => self.spinner(),
        };
        self.show(bar);
    }

    fn advanced(&self, bytes: u64) {
        self.bar.lock().unwrap_or_else(PoisonError::into_inner).inc(bytes);
    }

    fn finished(&self, file: &str) {
        self.show(ProgressBar::hidden());
        warn(format!("  {file}: sha256 is right"));
    }

    fn note(&self, text: &str) {
        self.show(ProgressBar::hidden());
        warn(format!("  {text}"));
        // Whatever the note announces takes its time.
        self.show(self.spinner());
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.show(ProgressBar::hidden());
    }
}

/// The style, or the library's own if the template had a mistake.
fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_templates_are_well_formed() {
        for template in
            ["  {spinner} {elapsed}", "  {prefix:24} {bar:30} {binary_bytes} of {binary_total_bytes}, {eta} left"]
        {
            assert!(ProgressStyle::with_template(template).is_ok());
        }
    }
}
