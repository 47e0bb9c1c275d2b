//! The tables of a report: one for each number format and kind of work.

use engine::Precision;

use super::{
    Engine,
    report::{Report, Row},
    rounds::{Pace, Score},
    service::{CALLERS, WORKERS},
    work::Work,
};
use crate::output::{duration, render, right, table};

/// Rows that are told in the same unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Equal,
    Mixed,
    Image,
}

/// All tables that have a row, with their titles.
pub(crate) fn sections(report: &Report) -> Vec<String> {
    let mut sections = Vec::new();
    for kind in [Kind::Equal, Kind::Mixed, Kind::Image] {
        for precision in &report.precisions {
            let rows: Vec<_> = report.rows.iter().filter(|row| Kind::of(row.work) == kind).collect();
            sections.extend(section(report, kind, *precision, &rows));
        }
    }
    sections.extend(scaling(report));
    sections.extend(service(report));
    sections.extend(answers(report));
    sections
}

/// The rows of a kind in a number format: this program's, and beside it each rival's with the ratio.
fn section(report: &Report, kind: Kind, precision: Precision, rows: &[&Row]) -> Option<String> {
    let scores = rows.iter().flat_map(|row| &row.measured.scores);
    let mut rivals: Vec<Engine> = scores.map(|score| score.engine).filter(|engine| engine.rivals(precision)).collect();
    rivals.sort_unstable();
    rivals.dedup();
    if rivals.is_empty() && rows.iter().all(|row| row.own(precision).is_none()) {
        return None;
    }
    let (title, unit) = kind.title();
    let names = rivals.iter().map(ToString::to_string);
    let header = [title.to_owned(), format!("tamis {precision}"), "GOP/s".into(), "of peak".into()];
    let header: Vec<_> = header.into_iter().chain(names.flat_map(|name| [name, "ratio".into()])).collect();
    let mut lines = table(&header.iter().map(String::as_str).collect::<Vec<_>>());
    right(&mut lines, &(1..header.len()).collect::<Vec<_>>());
    for row in rows {
        let name = format!("{}{}", row.work, mark(row.measured.pace));
        let own = row.own(precision);
        let speed = own.and_then(|own| row.operations_per_second(own));
        let share = own.and_then(|own| row.share_of_peak(own, report.threads));
        let mut cells = vec![
            name,
            number(own.and_then(|own| kind.value(row, own))),
            speed.map_or_else(dash, |speed| format!("{:.0}", speed / 1e9)),
            share.map_or_else(dash, |share| format!("{:.0} %", share * 100.0)),
        ];
        for rival in &rivals {
            let score = row.measured.score(*rival);
            cells.push(number(score.and_then(|score| kind.value(row, score))));
            let ratio = score.and_then(|score| row.ratio(precision, score));
            cells.push(ratio.map_or_else(dash, |ratio| format!("{ratio:.2}x")));
        }
        lines.add_row(cells);
    }
    Some(format!("{precision}, {unit}\n{}", render(&lines)))
}

fn scaling(report: &Report) -> Option<String> {
    if report.scaling.is_empty() {
        return None;
    }
    let mut lines = table(&["single texts", "1 worker", "2 workers", "ratio"]);
    right(&mut lines, &[1, 2, 3]);
    for scaled in &report.scaling {
        let [one, two] = [scaled.one, scaled.two].map(|rate| number(Some(rate)));
        let name = format!("tamis {}{}", scaled.precision, mark(scaled.pace));
        lines.add_row([name, one, two, format!("{:.2}x", scaled.ratio())]);
    }
    Some(format!("workers, tokens/s\n{}", render(&lines)))
}

fn service(report: &Report) -> Option<String> {
    let service = report.service.as_ref()?;
    let mut lines = table(&["in process", "texts/s", "p50", "p99"]);
    right(&mut lines, &[1, 2, 3]);
    for served in &service.served {
        let name = format!("tamis {}{}", served.precision, mark(service.pace));
        let [p50, p99] = [served.p50, served.p99].map(|millis| duration(millis * 1e3));
        lines.add_row([name, number(Some(served.texts_per_s)), p50, p99]);
    }
    let texts = &service.texts;
    let title = format!(
        "service, {CALLERS} callers on {WORKERS} workers, one text a call; texts of `tamis bench load`: {texts}"
    );
    Some(format!("{title}\n{}", render(&lines)))
}

fn mark(pace: Pace) -> &'static str {
    if pace.discarded { " *" } else { "" }
}

/// How near all answers are to this program's f32.
fn answers(report: &Report) -> Option<String> {
    let entrants = [("texts", &report.text_entrants), ("images", &report.image_entrants)];
    if entrants.iter().all(|(_, entrants)| entrants.is_empty()) {
        return None;
    }
    let mut lines = table(&["answers", "to", "cosine, mean", "least"]);
    right(&mut lines, &[2, 3]);
    for (kind, entrant) in entrants.iter().flat_map(|(kind, list)| list.iter().map(move |entrant| (kind, entrant))) {
        let [mean, least] = [entrant.mean, entrant.least].map(|cosine| format!("{cosine:.5}"));
        lines.add_row([entrant.engine.to_string(), (*kind).to_owned(), mean, least]);
    }
    Some(format!("answers, compared with tamis f32\n{}", render(&lines)))
}

impl Kind {
    fn of(work: Work) -> Self {
        match work {
            Work::Equal { .. } => Self::Equal,
            Work::Mixed { .. } => Self::Mixed,
            Work::Network | Work::Photo => Self::Image,
        }
    }

    /// The title of the first column, and what the numbers are.
    fn title(self) -> (&'static str, &'static str) {
        match self {
            Self::Equal => ("texts x tokens", "ms a call"),
            Self::Mixed => ("texts", "tokens/s"),
            Self::Image => ("efficientnet-lite0", "ms an image"),
        }
    }

    fn value(self, row: &Row, score: &Score) -> Option<f64> {
        match self {
            Self::Equal | Self::Image => Some(score.median),
            Self::Mixed => row.tokens_per_second(score),
        }
    }
}

/// Three digits, as many as the noise leaves.
fn number(value: Option<f64>) -> String {
    match value {
        None => dash(),
        Some(value) if value < 10.0 => format!("{value:.2}"),
        Some(value) if value < 100.0 => format!("{value:.1}"),
        Some(value) => format!("{value:.0}"),
    }
}

fn dash() -> String {
    "-".into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::engine::{
        Library,
        report::tests::{engine, pace, report, row},
        scaling::Scaled,
        service::{Served, Service},
    };

    #[test]
    fn each_format_has_a_table_of_its_own_rivals() {
        let times = [
            (engine(Library::Tamis, Precision::F32), 4.0),
            (engine(Library::Onnxruntime, Precision::F32), 6.0),
            (engine(Library::Openvino, Precision::Int8), 5.0),
        ];
        let sections = sections(&report(vec![row(Work::Equal { texts: 1, tokens: 16 }, &times)]));
        let lines =
            |index: usize| sections[index].lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
        let f32: Vec<_> = lines(0).collect();
        assert_eq!(f32[0], "f32, ms a call");
        assert_eq!(f32[1], "texts x tokens tamis f32 GOP/s of peak onnxruntime f32 ratio");
        assert_eq!(f32[2], "1 x 16 4.00 85 85 % 6.00 1.50x");
        // This program has no bf16 here, yet what stands beside it is shown.
        assert_eq!(lines(1).next_back().unwrap(), "1 x 16 - - - 6.00 -");
        assert_eq!(lines(2).next_back().unwrap(), "1 x 16 - - - 5.00 -");
        assert_eq!(sections.len(), 3);
    }

    #[test]
    fn mixed_texts_are_told_in_tokens_a_second() {
        let times =
            [(engine(Library::Tamis, Precision::F32), 4.0), (engine(Library::Onnxruntime, Precision::F32), 8.0)];
        let sections = sections(&report(vec![row(Work::Mixed { call: 32 }, &times)]));
        assert!(sections[0].starts_with("f32, tokens/s"));
        let last = sections[0].lines().last().unwrap().split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(last, "mixed, 32 a call 4000 85 85 % 2000 2.00x");
    }

    #[test]
    fn nothing_measured_has_no_table() {
        let mut empty = report(Vec::new());
        assert!(sections(&empty).is_empty());
        empty.scaling.push(Scaled { precision: Precision::F32, one: 100.0, two: 195.0, pace: pace() });
        let scaling = sections(&empty).remove(0);
        let last: Vec<_> = scaling.lines().last().unwrap().split_whitespace().collect();
        assert_eq!(last, ["tamis", "f32", "100", "195", "1.95x"]);
    }

    #[test]
    fn what_callers_see_stands_in_a_table_of_its_own() {
        let served = Served { precision: Precision::Int8, texts_per_s: 512.3, p50: 120.4, p99: 350.0 };
        let pace = Pace { discarded: true, ..pace() };
        let mut report = report(Vec::new());
        report.service = Some(Service { texts: "its built-in ones".into(), served: vec![served], pace });
        let table = sections(&report).remove(0);
        let last: Vec<_> = table.lines().last().unwrap().split_whitespace().collect();
        assert_eq!(last, ["tamis", "int8", "*", "512", "120", "ms", "350", "ms"]);
        assert!(report.text().contains("* discarded"));
    }
}
