//! A page of documentation as a list of commands.
//!
//! In a block that is marked `console`, a line that begins with `$ ` is a command, lines that begin with `> ` continue it,
//! and the other lines are what it prints. In these, `…` stands for anything, and alone on a line for any lines.

use std::path::Path;

use super::{
    Finished, Folder, PATIENCE, fixtures,
    process::{EXACT, Process},
};

/// The address that pages show, where a mesh of a test has another.
const ADDRESS: &str = "127.0.0.1:8443";

/// The commands of a page, in their order.
pub(crate) struct Page(Vec<Step>);

struct Step {
    /// In the page.
    line: usize,
    command: String,
    printed: Vec<String>,
}

impl Page {
    pub(crate) fn parse(text: &str) -> Self {
        let (mut steps, mut inside) = (Vec::<Step>::new(), false);
        for (number, line) in text.lines().enumerate() {
            if line.starts_with("```") {
                inside = line == "```console";
            } else if let (true, Some(command)) = (inside, line.strip_prefix("$ ")) {
                steps.push(Step { line: number + 1, command: command.to_owned(), printed: Vec::new() });
            } else if let (true, Some(step)) = (inside, steps.last_mut()) {
                match line.strip_prefix("> ").or((line == ">").then_some("")) {
                    Some(more) if step.printed.is_empty() => step.command.extend(["\n", more]),
                    _ => step.printed.push(line.trim_end().to_owned()),
                }
            }
        }
        Self(steps)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Follows a page from its top in a folder of its own. `tamis up` stays up until the page ends; the commands see these
/// environment variables.
pub(crate) async fn mesh_page(name: &str, page: &Page, variables: &[(&str, &str)]) {
    let folder = Folder::new();
    std::fs::create_dir(folder.path().join("work")).unwrap();
    let (mut meshes, mut address) = (Vec::new(), ADDRESS.to_owned());
    for step in &page.0 {
        let at = format!("{name}:{}: $ {}", step.line, step.command);
        let said = |text: &str| text.replace(ADDRESS, &address);
        let printed = if let Some(arguments) = step.command.strip_prefix("tamis up") {
            let (mesh, lines) = up(folder.path(), arguments);
            meshes.push(mesh);
            address = lines
                .iter()
                .find_map(|line| line.strip_prefix("Address"))
                .map_or(address, |rest| rest.trim().split(',').next().unwrap().to_owned());
            lines
        } else {
            let finished = run(folder.path(), &said(&step.command), variables).await;
            assert!(finished.success, "{at}\n{}{}", finished.stdout, finished.stderr);
            finished.stdout.lines().map(str::to_owned).collect()
        };
        let expected: Vec<_> = step.printed.iter().map(|line| line.replace(ADDRESS, &address)).collect();
        let lines: Vec<_> = printed.iter().map(|line| line.trim_end().to_owned()).collect();
        assert!(
            matches(&expected, &lines),
            "{at}\n--- the page says\n{}\n--- it prints\n{}",
            expected.join("\n"),
            lines.join("\n")
        );
    }
}

fn up(data: &Path, arguments: &str) -> (Process, Vec<String>) {
    let listen = ["up", "--listen", "127.0.0.1:0"].into_iter();
    let arguments: Vec<_> = listen.chain(arguments.split_whitespace()).collect();
    let mesh = Process::start(data, data.join("up.log"), &arguments, &EXACT);
    let lines = mesh.read_until("The mesh is ready.");
    (mesh, lines)
}

async fn run(data: &Path, command: &str, variables: &[(&str, &str)]) -> Finished {
    let grpcurl = fixtures::grpcurl().expect("grpcurl is there or can be installed");
    // The shell knows its own path.
    let path = format!("PATH={}:{}:$PATH", super::binary::folder().display(), grpcurl.parent().unwrap().display());
    let mut bash = tokio::process::Command::new("bash");
    bash.args(["-euo", "pipefail", "-c", &format!("{path}\n{command}")])
        .current_dir(data.join("work"))
        .env("TAMIS_DATA_DIR", data)
        .envs(variables.iter().copied())
        .stdin(std::process::Stdio::null())
        .kill_on_drop(true);
    let output = tokio::time::timeout(PATIENCE, bash.output()).await.expect("it ends").unwrap();
    Finished {
        success: output.status.success(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Whether lines are as a page says. A page that says nothing of them lets all pass.
fn matches(expected: &[String], lines: &[String]) -> bool {
    let blank = |line: &&String| !line.is_empty();
    let (expected, lines): (Vec<_>, Vec<_>) =
        (expected.iter().filter(blank).collect(), lines.iter().filter(blank).collect());
    expected.is_empty() || match_lines(&expected, &lines)
}

fn match_lines(expected: &[&String], lines: &[&String]) -> bool {
    match expected.split_first() {
        None => lines.is_empty(),
        Some((first, rest)) if first.trim() == "…" => {
            (0..=lines.len()).any(|skipped| match_lines(rest, &lines[skipped..]))
        }
        Some((first, rest)) => {
            lines.split_first().is_some_and(|(line, others)| match_line(first, line) && match_lines(rest, others))
        }
    }
}

fn match_line(expected: &str, line: &str) -> bool {
    // Columns are as wide as what stands in them.
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let (expected, line) = (words(expected), words(line));
    let mut parts = expected.split('…').map(str::trim);
    let Some(mut rest) = parts.next().and_then(|start| line.strip_prefix(start)) else { return false };
    let mut last = None;
    for part in parts {
        last = Some(part);
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    last.map_or(rest.is_empty(), |part| part.is_empty() || rest.is_empty() || line.ends_with(part))
}

#[test]
fn pages_are_read_as_they_are_meant() {
    let page = Page::parse("text\n```console\n$ a \\\n> b\nout …\n\n$ c\n```\n```\n$ not this\n```\n");
    let commands: Vec<_> = page.0.iter().map(|step| step.command.as_str()).collect();
    assert_eq!(commands, ["a \\\nb", "c"]);
    assert_eq!(page.0[0].printed, ["out …", ""]);
}

#[test]
fn an_ellipsis_stands_for_anything() {
    let check = |expected: &[&str], lines: &[&str]| {
        let own = |lines: &[&str]| lines.iter().map(|&line| line.to_owned()).collect::<Vec<_>>();
        matches(&own(expected), &own(lines))
    };
    assert!(check(&[], &["whatever"]));
    assert!(check(&["a  b"], &["a b"]));
    assert!(check(&["a … d"], &["a b c d"]));
    assert!(!check(&["a … d"], &["a b c"]));
    assert!(check(&["…", "d", "…"], &["a", "d", "e", "f"]));
    assert!(check(&["x …"], &["x"]));
    assert!(!check(&["a"], &["a", "b"]));
}
