//! What people see on standard output: lines and tables.

use std::{fmt::Display, io::Write as _};

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};

/// Writes a line.
pub(crate) fn say(text: impl Display) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}")?;
    out.flush()
}

/// Writes a line, if somebody still reads: for what must go on without an audience.
pub(crate) fn tell(text: impl Display) {
    let _ = say(text);
}

/// Writes a line to standard error, which is where troubles belong.
pub(crate) fn warn(text: impl Display) {
    // There is nowhere to complain that there is nowhere to complain.
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// A table without rules, as wide as its content and, on a terminal, no wider than that.
pub(crate) fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic).set_header(header.to_vec());
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table
}

/// Aligns columns of numbers.
pub(crate) fn right(table: &mut Table, columns: &[usize]) {
    for index in columns {
        if let Some(column) = table.column_mut(*index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
}

/// The table as text, without the blanks that fill its last column.
pub(crate) fn render(table: &Table) -> String {
    let lines: Vec<_> = table.lines().map(|line| line.trim_end().to_owned()).collect();
    lines.join("\n")
}

/// The beginning of a text on one line of at most `width_max` characters.
pub(crate) fn excerpt(text: &str, width_max: usize) -> String {
    let line: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if line.chars().count() <= width_max {
        return line;
    }
    let head: String = line.chars().take(width_max.saturating_sub(1)).collect();
    format!("{}…", head.trim_end())
}

/// A path of at most `width_max` characters: its end, since that tells it from others.
pub(crate) fn excerpt_path(path: &str, width_max: usize) -> String {
    let length = path.chars().count();
    if length <= width_max {
        return path.to_owned();
    }
    let tail: String = path.chars().skip(length + 1 - width_max).collect();
    format!("…{tail}")
}

/// Microseconds as people read them.
pub(crate) fn duration(micros: f64) -> String {
    let (value, unit) = match micros {
        m if m < 1e3 => (m, "µs"),
        m if m < 1e6 => (m / 1e3, "ms"),
        m => (m / 1e6, "s"),
    };
    let digits = if value < 10.0 { 2 } else { usize::from(value < 100.0) };
    format!("{value:.digits$} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_three_digits_and_a_unit() {
        assert_eq!(
            [900.0, 2_500.0, 15_040.0, 250_000.0, 1.5e6].map(duration),
            ["900 µs", "2.50 ms", "15.0 ms", "250 ms", "1.50 s"]
        );
    }

    #[test]
    fn a_table_has_aligned_columns_and_no_trailing_blanks() {
        let mut rows = table(&["NAME", "DAYS", "NOTE"]);
        right(&mut rows, &[1]);
        rows.add_row(["gateway", "90", "fine"]).add_row(["x", "3", ""]);
        assert_eq!(render(&rows), "NAME     DAYS  NOTE\ngateway    90  fine\nx           3");
    }

    #[test]
    fn an_excerpt_is_one_short_line() {
        assert_eq!(excerpt("two\n lines", 20), "two lines");
        assert_eq!(excerpt("äöü and more", 6), "äöü a…");
    }

    #[test]
    fn the_end_of_a_path_is_kept() {
        assert_eq!(excerpt_path("/photos/cat.jpg", 8), "…cat.jpg");
        assert_eq!(excerpt_path("cat.jpg", 8), "cat.jpg");
    }
}
