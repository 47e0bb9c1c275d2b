//! Tables of texts and labels.

use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
    hash::{DefaultHasher, Hash as _, Hasher as _},
};

use anyhow::{Context as _, bail};
use csv::{ByteRecord, Reader, ReaderBuilder};

use super::Args;
use crate::{advice::Advice, output::excerpt};

/// Bounds of a table; beyond them it is refused with the line that went too far.
const COLUMNS_MAX: usize = 1024;
const TEXT_BYTES_MAX: usize = 1 << 20;
const LABEL_BYTES_MAX: usize = 256;
const LABELS_MAX: usize = 1000;
const GROUPS_MAX: usize = 32;
/// Labels with fewer rows are warned of: their figures are chance.
const FEW_ROWS: usize = 20;
/// Names that columns usually have.
const TEXT_NAMES: [&str; 6] = ["text", "sentence", "content", "message", "body", "review"];
const LABEL_NAMES: [&str; 6] = ["label", "class", "category", "target", "intent", "sentiment"];
/// Lines that a warning names.
const LINES_SHOWN: usize = 5;

/// Texts with their labels.
#[derive(Debug)]
pub(crate) struct Data {
    pub(crate) texts: Vec<String>,
    /// Label of each text, as an index of `labels`.
    pub(crate) classes: Vec<u32>,
    /// Names in the order of their characters.
    pub(crate) labels: Vec<String>,
    /// Texts of each label.
    pub(crate) counts: Vec<usize>,
    /// Equal for equal texts.
    pub(crate) groups: Vec<u64>,
    /// Values of the column that divides the report, if there is one.
    pub(crate) parts: Option<Vec<String>>,
    /// What is worth knowing before the figures are believed.
    pub(crate) warnings: Vec<String>,
}

/// Positions of the columns.
struct Columns {
    text: usize,
    label: usize,
    part: Option<usize>,
}

/// One row, and the line where it begins.
struct Row {
    line: u64,
    text: String,
    label: String,
    part: Option<String>,
}

impl Data {
    /// Reads the table that the arguments name.
    pub(crate) fn read(args: &Args) -> anyhow::Result<Self> {
        let cannot = || format!("cannot read {}", args.file.display());
        let file = File::open(&args.file).with_context(cannot)?;
        let delimiter =
            if args.file.extension().is_some_and(|end| end.eq_ignore_ascii_case("tsv")) { b'\t' } else { b',' };
        let mut reader = ReaderBuilder::new().delimiter(delimiter).from_reader(file);
        let columns = columns(args, &mut reader).with_context(cannot)?;
        let mut rows = Vec::new();
        let mut record = ByteRecord::new();
        while reader.read_byte_record(&mut record).with_context(cannot)? {
            if rows.len() == args.max_rows {
                let what = format!("{} has more than {} rows", args.file.display(), args.max_rows);
                bail!(Advice::new(
                    what,
                    "a larger --max-rows takes more; a row needs 1.6 kB of memory for each vector"
                ));
            }
            rows.push(row(&record, &columns).with_context(cannot)?);
        }
        Self::of(rows)
    }

    fn of(mut rows: Vec<Row>) -> anyhow::Result<Self> {
        let mut warnings = Vec::new();
        let empty: Vec<_> =
            rows.iter().filter(|row| row.text.is_empty() || row.label.is_empty()).map(|row| row.line).collect();
        if !empty.is_empty() {
            warnings.push(format!(
                "warning: {} rows without a text or a label are left out ({})",
                empty.len(),
                lines(&empty)
            ));
            rows.retain(|row| !row.text.is_empty() && !row.label.is_empty());
        }
        let mut counted = BTreeMap::<&str, usize>::new();
        for row in &rows {
            *counted.entry(&row.label).or_default() += 1;
        }
        if counted.len() < 2 {
            let found = counted.keys().next().map_or("none".to_owned(), |label| format!("only {label:?}"));
            bail!(Advice::new(
                format!("two labels or more are needed, there is {found}"),
                "see that --label-column is right"
            ));
        }
        if counted.len() > LABELS_MAX {
            let what = format!("{} different labels, at most {LABELS_MAX} are taken", counted.len());
            bail!(Advice::new(what, "see that --label-column is right"));
        }
        let labels: Vec<String> = counted.keys().map(|label| (*label).to_owned()).collect();
        let counts: Vec<usize> = counted.into_values().collect();
        for (label, count) in labels.iter().zip(&counts).filter(|(_, count)| **count < FEW_ROWS) {
            warnings.push(format!(
                "warning: {label:?} has {count} rows; its figures are little more than chance below {FEW_ROWS}"
            ));
        }
        let index: HashMap<&str, u32> = labels.iter().map(String::as_str).zip(0..).collect();
        let classes: Vec<u32> = rows.iter().map(|row| index[row.label.as_str()]).collect();
        warnings.extend(contradictions(&rows));
        let parts = rows.iter().map(|row| row.part.clone()).collect::<Option<Vec<_>>>();
        if parts
            .as_ref()
            .is_some_and(|parts| parts.iter().collect::<std::collections::BTreeSet<_>>().len() > GROUPS_MAX)
        {
            bail!(Advice::new(format!("--group-column has more than {GROUPS_MAX} values"), "choose another column"));
        }
        let groups = rows.iter().map(|row| group(&row.text)).collect();
        let texts = rows.into_iter().map(|row| row.text).collect();
        Ok(Self { texts, classes, labels, counts, groups, parts, warnings })
    }

    /// The labels in a line.
    pub(crate) fn label_list(&self) -> String {
        excerpt(&self.labels.join(", "), 200)
    }
}

/// Finds the columns by the header.
fn columns(args: &Args, reader: &mut Reader<File>) -> anyhow::Result<Columns> {
    let header: Vec<String> =
        reader.byte_headers()?.iter().map(|name| String::from_utf8_lossy(name).trim().to_owned()).collect();
    if header.len() > COLUMNS_MAX {
        bail!("{} columns, at most {COLUMNS_MAX} are taken", header.len());
    }
    let position = |name: &str| header.iter().position(|column| column.eq_ignore_ascii_case(name));
    let find = |wanted: Option<&String>, usual: &[&str], flag: &str| {
        let found = match wanted {
            Some(name) => position(name),
            None => usual.iter().find_map(|name| position(name)),
        };
        found.ok_or_else(|| {
            let name = wanted.map_or(usual[0], String::as_str);
            let help = format!("its header line has {}; choose one with {flag}", excerpt(&header.join(", "), 200));
            Advice::new(format!("line 1: there is no column {name:?}"), help)
        })
    };
    Ok(Columns {
        text: find(args.text_column.as_ref(), &TEXT_NAMES, "--text-column")?,
        label: find(args.label_column.as_ref(), &LABEL_NAMES, "--label-column")?,
        part: args.group_column.as_ref().map(|name| find(Some(name), &[""], "--group-column")).transpose()?,
    })
}

fn row(record: &ByteRecord, columns: &Columns) -> anyhow::Result<Row> {
    let line = record.position().map_or(0, csv::Position::line);
    let field = |index: usize, bytes_max: usize| {
        let bytes = record.get(index).unwrap_or_default();
        if bytes.len() > bytes_max {
            bail!("line {line}: a field has {} bytes, at most {bytes_max} are taken", bytes.len());
        }
        let text = std::str::from_utf8(bytes).with_context(|| format!("line {line}: no UTF-8"))?;
        Ok(text.trim().to_owned())
    };
    Ok(Row {
        line,
        text: field(columns.text, TEXT_BYTES_MAX)?,
        label: field(columns.label, LABEL_BYTES_MAX)?,
        part: columns.part.map(|index| field(index, LABEL_BYTES_MAX)).transpose()?,
    })
}

/// Texts that stand there twice, and with different labels at that.
fn contradictions(rows: &[Row]) -> Vec<String> {
    let mut first = HashMap::<&str, &str>::new();
    let (mut twice, mut contrary) = (0_usize, Vec::new());
    for row in rows {
        match first.get(row.text.as_str()) {
            None => _ = first.insert(&row.text, &row.label),
            Some(label) if *label == row.label => twice += 1,
            Some(_) => contrary.push(row.line),
        }
    }
    let mut warnings = Vec::new();
    if twice > 0 {
        warnings.push(format!("note: {twice} rows repeat another; equal texts are held out together"));
    }
    if !contrary.is_empty() {
        let lines = lines(&contrary);
        warnings.push(format!("warning: {} rows repeat a text with another label ({lines})", contrary.len()));
    }
    warnings
}

fn lines(lines: &[u64]) -> String {
    let shown: Vec<_> = lines.iter().take(LINES_SHOWN).map(u64::to_string).collect();
    let (word, more) =
        (if lines.len() == 1 { "line" } else { "lines" }, if lines.len() > LINES_SHOWN { ", …" } else { "" });
    format!("{word} {}{more}", shown.join(", "))
}

/// The same in every run: `DefaultHasher::new` has fixed keys.
fn group(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use clap::Parser;

    use super::*;
    use crate::advice::report;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        args: Args,
    }

    fn read_as(name: &str, table: &[u8], flags: &[&str]) -> anyhow::Result<Data> {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join(name);
        std::fs::write(&path, table).unwrap();
        let command = ["train", path.to_str().unwrap(), "--name", "m"].iter().chain(flags).copied().collect::<Vec<_>>();
        assert!(Path::new(&path).exists());
        Data::read(&Command::parse_from(command).args)
    }

    fn read(table: &str) -> anyhow::Result<Data> {
        read_as("t.csv", table.as_bytes(), &[])
    }

    #[track_caller]
    fn refuses(table: &[u8], flags: &[&str], complaints: &[&str]) {
        let said = report(&read_as("t.csv", table, flags).expect_err("must be refused"));
        for complaint in complaints {
            assert!(said.contains(complaint), "{said:?} does not say {complaint:?}");
        }
    }

    #[test]
    fn columns_are_found_by_their_names() {
        let data = read("Id,Label,TEXT\n1,b,\"one, two\"\n2,a,three\n3,b,\"a\nb\"\n").unwrap();
        assert_eq!((data.labels, data.counts), (vec!["a".to_owned(), "b".to_owned()], vec![1, 2]));
        assert_eq!(
            (data.texts, data.classes),
            (vec!["one, two".into(), "three".into(), "a\nb".to_owned()], vec![1, 0, 1])
        );
        let named = read_as("t.csv", b"x,y\na,1\nb,2\n", &["--text-column", "x", "--label-column", "y"]).unwrap();
        assert_eq!(named.labels, ["1", "2"]);
        assert_eq!(read("\u{feff}text,label\na,1\nb,2\n").unwrap().texts, ["a", "b"]);
        assert_eq!(read_as("t.TSV", b"text\tlabel\na,b\t1\nb\t2\n", &[]).unwrap().texts, ["a,b", "b"]);
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line() {
        refuses(b"words,label\na,1\n", &[], &["line 1", "no column \"text\"", "words, label", "--text-column"]);
        refuses(b"text,label\na,1\nb\n", &[], &["line: 3"]);
        refuses(b"text,label\na,1\n\xff,2\n", &[], &["line 3", "UTF-8"]);
        refuses(b"text,label\na,1\nb,1\n", &[], &["two labels", "only \"1\""]);
        refuses(b"text,label\n", &[], &["there is none"]);
        refuses(b"text,label\na,1\nb,2\nc,2\n", &["--max-rows", "2"], &["more than 2 rows"]);
        refuses(format!("text,label\na,{}\n", "x".repeat(300)).as_bytes(), &[], &["line 2", "300 bytes"]);
        refuses(b"text,label\na,1\nb,2\n", &["--group-column", "nope"], &["no column \"nope\""]);
    }

    #[test]
    fn doubtful_rows_are_warned_of() {
        let data = read("text,label\na,1\na,1\na,2\n,1\nb,2\n").unwrap();
        let said = data.warnings.join("\n");
        for part in
            ["1 rows without", "line 5", "1 rows repeat another", "with another label (line 4)", "\"1\" has 2 rows"]
        {
            assert!(said.contains(part), "{said:?} lacks {part:?}");
        }
        assert_eq!(data.groups[0], data.groups[2]);
        assert_ne!(data.groups[0], data.groups[3]);
    }
}
