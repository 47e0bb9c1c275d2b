//! A histogram of times as bars, with limits that people like to read.

use hdrhistogram::Histogram;

use crate::output::duration;

/// Limits within a factor of ten, from fine to coarse.
const SERIES: [&[f64]; 4] = [
    &[1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.8, 2.0, 2.2, 2.5, 2.8, 3.0, 3.5, 4.0, 4.5, 5.0, 6.0, 7.0, 8.0, 9.0],
    &[1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0],
    &[1.0, 1.5, 2.0, 3.0, 5.0, 7.0],
    &[1.0, 2.0, 5.0],
];
/// Most rows, unless even the coarsest limits need more.
const ROWS_MAX: usize = 16;
/// Cells of the longest bar.
const WIDTH: usize = 40;
const EIGHTHS: [char; 8] = [' ', '▏', '▎', '▍', '▌', '▋', '▊', '▉'];

/// Times up to `limit` microseconds, and above the row before.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Row {
    pub(crate) limit: f64,
    pub(crate) count: u64,
}

/// The rows from the least time to the greatest.
pub(crate) fn rows(times: &Histogram<u64>) -> Vec<Row> {
    if times.is_empty() {
        return Vec::new();
    }
    let mut rows = Vec::new();
    for series in SERIES {
        rows = rows_by(times, series);
        if rows.len() <= ROWS_MAX {
            break;
        }
    }
    rows
}

/// A line for each row.
pub(crate) fn draw(rows: &[Row]) -> Vec<String> {
    let most = rows.iter().map(|row| row.count).max().unwrap_or(0);
    let total: u64 = rows.iter().map(|row| row.count).sum();
    let line = |row: &Row| {
        let share = ratio(row.count, total) * 100.0;
        let bar = bar(ratio(row.count, most));
        format!("  ≤ {:>9}  {bar:<WIDTH$}  {:>8}  {share:>5.1} %", duration(row.limit), row.count)
    };
    rows.iter().map(line).collect()
}

fn rows_by(times: &Histogram<u64>, series: &[f64]) -> Vec<Row> {
    let limits = (0..).flat_map(|power| series.iter().map(move |step| step * 10f64.powi(power)));
    let mut limits = limits.peekable();
    let mut rows: Vec<Row> = Vec::new();
    for step in times.iter_recorded() {
        let value = float(step.value_iterated_to());
        while let Some(limit) = limits.next_if(|limit| *limit < value) {
            // Rows before the first time would all be empty.
            if !rows.is_empty() && rows.last().is_some_and(|row| row.limit < limit) {
                rows.push(Row { limit, count: 0 });
            }
        }
        let Some(limit) = limits.peek().copied() else { break };
        match rows.last_mut() {
            Some(row) if row.limit >= limit => row.count += step.count_at_value(),
            _ => rows.push(Row { limit, count: step.count_at_value() }),
        }
    }
    rows
}

fn bar(share: f64) -> String {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 8 * WIDTH")]
    let mut eighths = (share * float(8 * WIDTH as u64)).round() as usize;
    if share > 0.0 {
        // What is there is seen.
        eighths = eighths.max(1);
    }
    let mut bar = "█".repeat(eighths / 8);
    if !eighths.is_multiple_of(8) {
        bar.push(EIGHTHS[eighths % 8]);
    }
    bar
}

fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { float(part) / float(whole) }
}

#[expect(clippy::cast_precision_loss, reason = "for people, who read a few digits")]
fn float(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn histogram(times: &[u64]) -> Histogram<u64> {
        let mut histogram = Histogram::new_with_bounds(1, 3_600_000_000, 3).unwrap();
        times.iter().for_each(|time| histogram.record(*time).unwrap());
        histogram
    }

    #[test]
    fn bars_are_as_long_as_their_share_and_nothing_that_is_there_is_invisible() {
        let times: Vec<_> = [vec![1_950; 999], vec![3_900; 500], vec![9_900]].concat();
        let lines = draw(&rows(&histogram(&times)));
        let row = |limit: &str| lines.iter().find(|line| line.contains(limit)).unwrap();
        assert!(row("2.00 ms").contains(&"█".repeat(40)), "{lines:#?}");
        assert!(row("4.00 ms").contains(&"█".repeat(20)) && !row("4.00 ms").contains(&"█".repeat(21)));
        assert!(row("10.0 ms").contains('▏'), "{lines:#?}");
    }

    #[test]
    fn nothing_has_no_rows() {
        assert!(draw(&rows(&histogram(&[]))).is_empty());
    }

    proptest! {
        #[test]
        fn every_time_is_in_one_row(times in prop::collection::vec(1u64..3_000_000_000, 1..200)) {
            let histogram = histogram(&times);
            let rows = rows(&histogram);
            prop_assert_eq!(rows.iter().map(|row| row.count).sum::<u64>(), histogram.len());
            prop_assert!(rows.windows(2).all(|pair| pair[0].limit < pair[1].limit));
            prop_assert!(rows.first().unwrap().count > 0 && rows.last().unwrap().count > 0);
        }
    }
}
