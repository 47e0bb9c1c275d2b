//! The log files of the processes.

use std::{
    fs::File,
    io::{Read as _, Seek as _, SeekFrom},
    path::Path,
};

/// What is shown of the log of a process that died.
const TAIL_BYTES_MAX: u64 = 8 * 1024;
const TAIL_LINES_MAX: usize = 15;

/// Opens a log for appending.
pub(crate) fn append(path: &Path) -> std::io::Result<File> {
    File::options().create(true).append(true).open(path)
}

/// The last lines of what was written after the first `from` bytes of a log, indented for a report.
pub(crate) fn tail(path: &Path, from: u64) -> String {
    let text = end(path, from).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    let from = lines.len().saturating_sub(TAIL_LINES_MAX);
    lines[from..].iter().map(|line| format!("    {line}")).collect::<Vec<_>>().join("\n")
}

fn end(path: &Path, from: u64) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES_MAX).max(from)))?;
    let mut bytes = Vec::new();
    file.take(TAIL_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tail_is_the_last_lines() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let lines: String = (0..10_000).map(|n| format!("line {n}\n")).collect();
        std::fs::write(file.path(), lines).unwrap();
        let tail = tail(file.path(), 0);
        assert_eq!(tail.lines().count(), TAIL_LINES_MAX);
        assert!(tail.ends_with("    line 9999"), "{tail}");
    }

    #[test]
    fn what_an_earlier_process_wrote_is_left_out() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "old\nnew\n").unwrap();
        assert_eq!(tail(file.path(), 4), "    new");
    }

    #[test]
    fn a_log_that_is_not_there_has_no_tail() {
        assert_eq!(tail(Path::new("/nowhere/a.log"), 0), "");
    }
}
