//! A rival in a process of its own: requests and answers are lines of JSON.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    fmt,
    fs::File,
    path::{Path, PathBuf},
    process::Stdio,
    rc::Rc,
    time::Duration,
};

use anyhow::{Context as _, anyhow, bail};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    process::{Child, ChildStdin, ChildStdout, Command},
    runtime::Runtime,
};

use super::{
    Engine, Library, Shapes,
    rounds::{Contestant, Turn},
    setup::Place,
    work::{Call, Task},
};
use crate::advice::Advice;

/// Most time until an answer; quantising a model with some hundred texts takes the longest.
const ANSWER_MAX: Duration = Duration::from_secs(900);
/// Most bytes of an answer.
const ANSWER_BYTES_MAX: u64 = 64 << 20;

/// A rival's process. It ends with this value.
pub(crate) struct Rival {
    library: Library,
    runtime: Rc<Runtime>,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    log: PathBuf,
    _process: Child,
}

/// What a rival's process is for. What making models leaves in memory is no part of what is measured, so that is done in
/// another process than that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// To be measured.
    Measure,
    /// To make a model.
    Make,
}

/// The versions of a rival.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Versions {
    /// The library's.
    pub(crate) library: String,
    /// Python's.
    pub(crate) python: String,
    /// Those of the packages that work beside it, by their names.
    #[serde(default)]
    pub(crate) beside: BTreeMap<String, String>,
}

impl fmt::Display for Versions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (Python {}", self.library, self.python)?;
        self.beside.iter().try_for_each(|(name, version)| write!(f, ", {name} {version}"))?;
        f.write_str(")")
    }
}

/// A model that a rival has loaded, as a contestant.
pub(crate) struct Seat {
    engine: Engine,
    rival: Rc<RefCell<Rival>>,
    /// What of it is measured: "texts", "network" or "photo".
    what: &'static str,
    /// How images become what the network reads; null for texts.
    recipe: Value,
}

/// A model for a rival to load.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Loading<'a> {
    pub(crate) engine: Engine,
    /// The rival's name for it.
    pub(crate) name: &'a str,
    pub(crate) path: &'a Path,
    pub(crate) threads: u16,
    pub(crate) shapes: Shapes,
}

#[derive(Deserialize)]
struct Answers {
    vectors: Vec<Vec<f32>>,
}

#[derive(Deserialize)]
struct Times {
    times_ms: Vec<f64>,
    cores: f64,
}

// === impl Rival ===

impl Rival {
    /// Starts its process.
    pub(crate) fn start(
        library: Library,
        purpose: Purpose,
        place: &Place,
        runtime: &Rc<Runtime>,
    ) -> anyhow::Result<Self> {
        let suffix = if purpose == Purpose::Make { "-making" } else { "" };
        let log = place.folder().join(format!("{}{suffix}.log", library.as_str()));
        let mut command = Command::new(place.python());
        command.arg(place.script()).arg(library.as_str());
        Self::spawn(command, library, runtime, log)
    }

    fn spawn(mut command: Command, library: Library, runtime: &Rc<Runtime>, log: PathBuf) -> anyhow::Result<Self> {
        let said = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(said).kill_on_drop(true);
        let mut process = {
            let _inside = runtime.enter();
            command.spawn().with_context(|| format!("cannot run {}", command.as_std().get_program().display()))?
        };
        let (Some(input), Some(output)) = (process.stdin.take(), process.stdout.take()) else {
            bail!("{} has no input or output", library.as_str());
        };
        let (runtime, output) = (Rc::clone(runtime), BufReader::new(output));
        Ok(Self { library, runtime, input, output, log, _process: process })
    }

    /// Which it is.
    pub(crate) fn library(&self) -> Library {
        self.library
    }

    /// What it is made of.
    pub(crate) fn versions(&mut self) -> anyhow::Result<Versions> {
        Ok(serde_json::from_value(self.ask("versions", json!({}))?)?)
    }

    /// Loads a model.
    pub(crate) fn load(&mut self, loading: Loading<'_>) -> anyhow::Result<()> {
        let shapes = if loading.shapes == Shapes::Fixed { "fixed" } else { "any" };
        let request = json!({
            "engine": loading.name, "path": loading.path, "precision": loading.engine.precision.as_str(),
            "threads": loading.threads, "shapes": shapes,
        });
        self.ask("load", request).map(drop)
    }

    /// Sends a request and waits for the answer.
    pub(crate) fn ask(&mut self, what: &str, mut request: Value) -> anyhow::Result<Value> {
        request["do"] = what.into();
        let (runtime, name) = (Rc::clone(&self.runtime), self.library.as_str());
        let answer = runtime.block_on(async { tokio::time::timeout(ANSWER_MAX, self.exchange(&request)).await });
        let log = self.log.display();
        let help = || Advice::new(format!("{name} did not answer"), format!("what it said last is in {log}"));
        let answer = answer.map_err(|_elapsed| anyhow!("nothing in {ANSWER_MAX:?}")).flatten().with_context(help)?;
        if let Some(error) = answer.get("error") {
            let why = error.as_str().unwrap_or("an error without a word");
            bail!(Advice::new(format!("{name} could not do {what}: {why}"), format!("more is in {log}")));
        }
        Ok(answer)
    }

    async fn exchange(&mut self, request: &Value) -> anyhow::Result<Value> {
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        self.input.write_all(&line).await.context("it has ended")?;
        let mut answer = Vec::new();
        (&mut self.output).take(ANSWER_BYTES_MAX).read_until(b'\n', &mut answer).await?;
        if answer.last() != Some(&b'\n') {
            bail!("it has ended, or said more than {ANSWER_BYTES_MAX} bytes");
        }
        serde_json::from_slice(&answer).context("it did not answer in JSON")
    }
}

// === impl Seat ===

impl Seat {
    /// A model for texts.
    pub(crate) fn texts(engine: Engine, rival: &Rc<RefCell<Rival>>) -> Self {
        Self { engine, rival: Rc::clone(rival), what: "texts", recipe: Value::Null }
    }

    /// A model for images, which become what it reads by this recipe.
    pub(crate) fn images(engine: Engine, rival: &Rc<RefCell<Rival>>, recipe: Value) -> Self {
        Self { engine, rival: Rc::clone(rival), what: "network", recipe }
    }

    /// How a rival calls the model of this seat.
    pub(crate) fn name(engine: Engine, kind: &str) -> String {
        format!("{kind} {}", engine.precision)
    }

    fn model(&self) -> String {
        let kind = if self.what == "texts" { "texts" } else { "images" };
        Self::name(self.engine, kind)
    }
}

impl Contestant for Seat {
    fn engine(&self) -> Engine {
        self.engine
    }

    fn take(&mut self, task: &Task) -> anyhow::Result<()> {
        let mut rival = self.rival.borrow_mut();
        let picture = match task {
            Task::Texts(calls) => {
                self.what = "texts";
                return rival.ask("texts", json!({ "calls": calls })).map(drop);
            }
            Task::Network(picture) => {
                self.what = "network";
                picture
            }
            Task::Photo(picture) => {
                self.what = "photo";
                picture
            }
        };
        rival.ask("image", json!({ "path": picture.path, "recipe": self.recipe })).map(drop)
    }

    fn answers(&mut self) -> anyhow::Result<Vec<Vec<f32>>> {
        let answers = self.rival.borrow_mut().ask("answers", json!({ "engine": self.model() }))?;
        Ok(serde_json::from_value::<Answers>(answers)?.vectors)
    }

    fn turn(&mut self, time: Duration) -> anyhow::Result<Turn> {
        let request = json!({ "engine": self.model(), "seconds": time.as_secs_f64(), "what": self.what });
        turn(self.rival.borrow_mut().ask("turn", request)?)
    }
}

fn turn(answer: Value) -> anyhow::Result<Turn> {
    let Times { times_ms, cores } = serde_json::from_value(answer)?;
    if times_ms.is_empty() || times_ms.iter().any(|time| !time.is_finite() || *time <= 0.0) {
        bail!("a rival says that it took no time");
    }
    Ok(Turn { times: times_ms, cores })
}

/// Has a rival make a file, unless it is there already. What is half made has another name.
pub(crate) fn make(to: &Path, work: impl FnOnce(&Path) -> anyhow::Result<()>) -> anyhow::Result<()> {
    if to.exists() {
        return Ok(());
    }
    let (Some(folder), Some(name)) = (to.parent(), to.file_name()) else {
        bail!("{} is no file's path", to.display());
    };
    let half = folder.join("half-made").join(name);
    std::fs::create_dir_all(folder.join("half-made"))?;
    work(&half)?;
    // OpenVINO writes weights beside what it was told to write; the file that says that all is there moves last.
    let weights = half.with_extension("bin");
    if weights.exists() {
        std::fs::rename(&weights, to.with_extension("bin"))?;
    }
    std::fs::rename(&half, to).with_context(|| format!("cannot write {}", to.display()))
}

/// The calls by which activations are scaled, of one text each.
pub(crate) fn calibration(texts: &[Vec<u32>], max: usize) -> Vec<Call> {
    texts.iter().take(max).map(|ids| vec![ids.clone()]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rival(script: &str, folder: &Path) -> Rival {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        Rival::spawn(command, Library::Openvino, &Rc::new(runtime), folder.join("log")).unwrap()
    }

    #[test]
    fn an_answer_is_a_line_of_json() {
        let place = tempfile::tempdir().unwrap();
        let mut rival = rival(
            r#"read line; echo '{"library":"1.2","python":"3","beside":{"nncf":"9"}}'; read line; echo "$line""#,
            place.path(),
        );
        assert_eq!(rival.versions().unwrap().to_string(), "1.2 (Python 3, nncf 9)");
        assert_eq!(
            rival.ask("texts", json!({ "calls": [[[1]]] })).unwrap(),
            json!({ "do": "texts", "calls": [[[1]]] })
        );
    }

    #[test]
    fn what_a_rival_could_not_do_is_told_with_where_to_read_on() {
        let place = tempfile::tempdir().unwrap();
        let mut rival = rival(r#"read line; echo '{"error":"no such opset"}'; cat"#, place.path());
        let said = crate::advice::report(&rival.ask("load", json!({})).unwrap_err());
        assert!(said.contains("could not do load: no such opset") && said.contains("log"), "{said}");
    }

    #[test]
    fn a_rival_that_ends_is_no_riddle() {
        let place = tempfile::tempdir().unwrap();
        let mut rival = rival("read line; exit 1", place.path());
        let said = crate::advice::report(&rival.ask("load", json!({})).unwrap_err());
        assert!(said.contains("openvino did not answer") && said.contains("ended"), "{said}");
    }

    #[test]
    fn times_that_can_not_be_are_refused() {
        assert_eq!(turn(json!({ "times_ms": [2.0], "cores": 1.0 })).unwrap().times, [2.0]);
        for times in [json!([]), json!([0.0]), json!([-1.0])] {
            assert!(turn(json!({ "times_ms": times, "cores": 1.0 })).is_err());
        }
    }

    #[test]
    fn what_is_half_made_is_made_again() {
        let place = tempfile::tempdir().unwrap();
        let to = place.path().join("model.xml");
        let half = |path: &Path| -> anyhow::Result<()> {
            std::fs::write(path, "half")?;
            bail!("interrupted")
        };
        assert!(make(&to, half).is_err() && !to.exists());
        let whole = |path: &Path| -> anyhow::Result<()> {
            std::fs::write(path.with_extension("bin"), "weights")?;
            Ok(std::fs::write(path, "whole")?)
        };
        make(&to, whole).unwrap();
        assert_eq!(std::fs::read_to_string(&to).unwrap(), "whole");
        assert!(place.path().join("model.bin").exists());
        make(&to, |_| bail!("it is there already")).unwrap();
    }
}
