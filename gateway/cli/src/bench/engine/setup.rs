//! Sets the rivals up: a virtual environment in the data directory with what pip brings, and the scripts that run
//! there.

use std::{
    fs::{self, File, TryLockError},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context as _, bail};
use sha2::{Digest as _, Sha256};
use tokio::process::Command;

use crate::{
    advice::Advice,
    home::{Home, private_folder},
    output::warn,
};

/// The versions that are measured.
const REQUIREMENTS: &str = include_str!("rivals/requirements.txt");
/// The scripts, by their names.
const SCRIPTS: [(&str, &str); 4] = [
    ("rivals.py", include_str!("rivals/rivals.py")),
    ("runtimes.py", include_str!("rivals/runtimes.py")),
    ("graphs.py", include_str!("rivals/graphs.py")),
    ("material.py", include_str!("rivals/material.py")),
];
/// Most time to make the environment; to bring so much may take a while.
const VENV_MAX: Duration = Duration::from_secs(120);
const PIP_MAX: Duration = Duration::from_secs(1800);
const IDENTIFY_MAX: Duration = Duration::from_secs(30);
/// Tells an interpreter from others, also from within an environment that it was made with.
const IDENTIFY: &str = "import sys; print('Python %d.%d of' % sys.version_info[:2], sys.base_prefix)";
const PYTHON: &str =
    "install Python 3.11 or later with its module venv (Debian: python3-venv), or name one with --python";
/// Characters of the digest of what models were made from.
const DIGITS: usize = 16;

/// A place where rivals can run. Nobody else uses it meanwhile: two that measure at once would measure each other.
#[derive(Debug)]
pub(crate) struct Place {
    folder: PathBuf,
    _lock: File,
}

impl Place {
    /// DATA/bench, for this process alone.
    pub(crate) fn claim(home: &Home) -> anyhow::Result<Self> {
        let folder = home.data().join("bench");
        private_folder(&folder)?;
        let path = folder.join("lock");
        let lock = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { folder, _lock: lock }),
            Err(TryLockError::WouldBlock) => {
                let what = format!("another `tamis bench engine` runs in {}", folder.display());
                bail!(Advice::new(what, "wait until it is done: two would measure each other"))
            }
            Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("cannot lock {}", path.display())),
        }
    }

    /// Its folder.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// The Python of the environment.
    pub(crate) fn python(&self) -> PathBuf {
        self.folder.join("venv/bin/python")
    }

    /// The script that runs a rival.
    pub(crate) fn script(&self) -> PathBuf {
        self.folder.join("rivals/rivals.py")
    }

    /// Writes the scripts, and makes the environment unless there is one that works, in these versions, of the Python that
    /// was named.
    pub(crate) async fn furnish(&self, named: Option<&Path>) -> anyhow::Result<()> {
        let scripts = self.folder.join("rivals");
        private_folder(&scripts)?;
        for (name, text) in SCRIPTS {
            write(&scripts.join(name), text)?;
        }
        let wanted = match named {
            Some(python) => {
                Some(identify(python).await.context(Advice::new("the rivals' Python does not run", PYTHON))?)
            }
            None => None,
        };
        let installed = self.folder.join("venv/installed.txt");
        // An environment outlives neither the interpreter that it was made with nor its next version.
        if let Ok(identity) = identify(&self.python()).await
            && wanted.is_none_or(|wanted| wanted == identity)
            && fs::read_to_string(&installed).is_ok_and(|found| found == stamp(&identity))
        {
            return Ok(());
        }
        warn(format!("setting up the rivals in {} (once, about 700 MB)", self.folder.display()));
        self.install(named.unwrap_or(Path::new("python3"))).await?;
        write(&installed, &stamp(&identify(&self.python()).await?))
    }

    async fn install(&self, python: &Path) -> anyhow::Result<()> {
        let requirements = self.folder.join("rivals/requirements.txt");
        write(&requirements, REQUIREMENTS)?;
        let mut make = Command::new(python);
        make.args(["-m", "venv", "--clear"]).arg(self.folder.join("venv"));
        finish(make, VENV_MAX).await.context(Advice::new("there is no virtual environment for the rivals", PYTHON))?;
        let mut pip = Command::new(self.python());
        pip.args(["-m", "pip", "install", "--no-input", "--quiet", "--disable-pip-version-check", "--requirement"]);
        pip.arg(&requirements);
        let help = "see that pip can reach a package index; without --against no rival is needed";
        finish(pip, PIP_MAX).await.context(Advice::new("pip could not install the rivals", help)).map(drop)
    }

    /// The folder for what is made of a model for the rivals; empty if that was made from something else.
    pub(crate) fn workshop(&self, model: &str, made_from: &str) -> anyhow::Result<PathBuf> {
        let folder = self.folder.join("made").join(model);
        let mut digest = Sha256::new();
        for part in SCRIPTS.into_iter().map(|(_, text)| text).chain([REQUIREMENTS, made_from]) {
            digest.update(part);
        }
        let digest: String = digest.finalize().iter().map(|byte| format!("{byte:02x}")).take(DIGITS / 2).collect();
        let label = folder.join("made-from");
        if fs::read_to_string(&label).is_ok_and(|made_from| made_from == digest) {
            return Ok(folder);
        }
        if folder.exists() {
            fs::remove_dir_all(&folder).with_context(|| format!("cannot empty {}", folder.display()))?;
        }
        private_folder(&folder)?;
        write(&label, &digest)?;
        Ok(folder)
    }
}

/// The version and the place of an interpreter, if it runs.
async fn identify(python: &Path) -> anyhow::Result<String> {
    let mut command = Command::new(python);
    command.args(["-c", IDENTIFY]);
    Ok(finish(command, IDENTIFY_MAX).await?.trim().to_owned())
}

/// What an environment says that it is, once all is installed.
fn stamp(identity: &str) -> String {
    format!("{REQUIREMENTS}# {identity}\n")
}

/// Waits until a command has succeeded; what it said.
async fn finish(mut command: Command, time_max: Duration) -> anyhow::Result<String> {
    let name = command.as_std().get_program().display().to_string();
    let run = command.stdin(Stdio::null()).kill_on_drop(true).output();
    let Ok(output) = tokio::time::timeout(time_max, run).await else {
        bail!("{name} was not done after {}", humantime::format_duration(time_max));
    };
    let output = output.with_context(|| format!("cannot run {name}"))?;
    let [errors, said] = [output.stderr, output.stdout].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    if output.status.success() {
        return Ok(said);
    }
    let last = [&errors, &said].into_iter().flat_map(|text| text.lines().rev()).find(|line| !line.trim().is_empty());
    bail!("{name} failed: {}", last.unwrap_or("it said nothing").trim())
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{advice::report, home::Variables};

    fn home(folder: &Path) -> Home {
        Home::find(Some(folder.to_owned()), &Variables::new()).unwrap()
    }

    #[test]
    fn only_one_measures_at_a_time() {
        let data = tempfile::tempdir().unwrap();
        let first = Place::claim(&home(data.path())).unwrap();
        assert!(report(&Place::claim(&home(data.path())).unwrap_err()).contains("wait until it is done"));
        drop(first);
        Place::claim(&home(data.path())).unwrap();
    }

    #[test]
    fn what_was_made_is_used_again_until_it_would_be_made_otherwise() {
        let data = tempfile::tempdir().unwrap();
        let place = Place::claim(&home(data.path())).unwrap();
        let made = place.workshop("m", "revision 1").unwrap().join("f32.onnx");
        write(&made, "graph").unwrap();
        place.workshop("m", "revision 1").unwrap();
        assert!(made.exists());
        place.workshop("m", "revision 2").unwrap();
        assert!(!made.exists());
    }

    #[tokio::test]
    async fn a_missing_python_is_said_with_what_to_do() {
        let data = tempfile::tempdir().unwrap();
        let place = Place::claim(&home(data.path())).unwrap();
        let said = report(&place.furnish(Some(Path::new("/nowhere/python"))).await.unwrap_err());
        assert!(said.contains("/nowhere/python") && said.contains("--python"), "{said}");
    }

    /// An interpreter of a script: it says who it is, makes environments of itself, and writes down what it was asked.
    fn interpreter(folder: &Path, name: &str, version: &str) -> PathBuf {
        use std::os::unix::fs::PermissionsExt as _;

        let path = folder.join(name);
        let script = format!(
            "#!/bin/sh\necho \"$2\" >> {0}/asked\ncase \"$2\" in\nvenv) mkdir -p \"$4/bin\"; rm -f \"$4/installed.txt\"; \
             ln -sf {1} \"$4/bin/python\";;\npip) ;;\n*) echo {version};;\nesac\n",
            folder.display(),
            path.display()
        );
        write(&path, &script).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
        path
    }

    #[tokio::test]
    async fn an_environment_is_made_anew_when_its_python_is_another() {
        let (data, tools) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let place = Place::claim(&home(data.path())).unwrap();
        let made = || {
            let asked = fs::read_to_string(tools.path().join("asked")).unwrap();
            asked.lines().filter(|line| *line == "venv").count()
        };
        let old = interpreter(tools.path(), "old", "3.11");
        for _ in 0..2 {
            place.furnish(Some(&old)).await.unwrap();
            place.furnish(None).await.unwrap();
        }
        assert_eq!(made(), 1);
        let new = interpreter(tools.path(), "new", "3.12");
        place.furnish(Some(&new)).await.unwrap();
        assert_eq!(made(), 2, "another one was named");
        interpreter(tools.path(), "new", "3.13");
        place.furnish(Some(&new)).await.unwrap();
        assert_eq!(made(), 3, "it was upgraded");
        fs::remove_file(&new).unwrap();
        place.furnish(Some(&old)).await.unwrap();
        assert_eq!(made(), 4, "it is gone");
    }

    #[tokio::test]
    async fn a_command_that_fails_is_quoted_and_one_that_hangs_is_ended() {
        let mut fails = Command::new("sh");
        fails.args(["-c", "echo first >&2; echo no network >&2; exit 3"]);
        let error = finish(fails, Duration::from_secs(60)).await.unwrap_err();
        assert!(error.to_string().contains("no network"), "{error}");
        let mut hangs = Command::new("tail");
        hangs.args(["-f", "/dev/null"]);
        let error = finish(hangs, Duration::from_millis(1)).await.unwrap_err();
        assert!(error.to_string().contains("not done"), "{error}");
    }
}
