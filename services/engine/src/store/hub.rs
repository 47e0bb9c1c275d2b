//! Files from the Hugging Face Hub, or from the server that `HF_ENDPOINT` names.

use std::{
    env,
    fmt::{self, Display},
    fs,
    path::{Path, PathBuf},
    sync::mpsc,
    thread,
    time::Duration,
};

use hf_hub::{
    Repo, RepoType,
    api::{
        Progress as HubProgress, RepoInfo,
        sync::{Api, ApiBuilder, ApiError, ApiRepo},
    },
};

use super::{Arrival, Progress, refused};
use crate::{
    Error,
    manifest::{FileSpec, HubSource, Source},
};

/// How long the Hub may take to answer the first question. hf-hub has no bound of its own, and where there is no way to
/// the Hub a connection can hang for minutes.
const ANSWER_WITHIN: Duration = Duration::from_secs(8);

/// How often a question is asked that the Hub is too busy to answer (429 or 5xx), and the first pause between two.
const ATTEMPTS: u32 = 4;
const PAUSE: Duration = Duration::from_millis(250);

/// One repository at one revision.
pub(super) struct Hub {
    api: Api,
    repo: ApiRepo,
    name: String,
    revision: String,
}

/// What stands between a caller and a file.
#[derive(Debug)]
pub(super) enum Fault {
    /// There is no such repository, revision or file.
    Missing,
    /// Its owner lets only some read it, and the token is not of one of these.
    Forbidden,
    /// It is too busy: 429, or 5xx.
    Busy(u16),
    /// Anything else, in words.
    Failed(String),
}

/// A file that has come.
pub(super) struct Download {
    pub(super) path: PathBuf,
    /// Its sha256, where the Hub says so: for the large files.
    pub(super) sha256: Option<String>,
    pub(super) bytes: u64,
}

pub(super) fn fetch(
    source: &Source,
    hub: &HubSource,
    files: &[FileSpec],
    arrival: &mut Arrival<'_>,
) -> Result<(), Error> {
    let workspace = arrival.workspace()?;
    let refuse = |fault: Fault| refused(source, fault);
    let Some(first) = files.first() else { return Ok(()) };
    let repository = Hub::open(&hub.hub, &hub.revision, workspace.path()).map_err(refuse)?;
    repository.answers(&first.path_in(&hub.folder)).map_err(refuse)?;
    let mut refusals = Vec::new();
    for file in files {
        let received = repository
            .download(&file.path_in(&hub.folder), &file.name, arrival.progress())
            .map_err(|fault| refused(source, format!("{}: {fault}", file.name)))
            .and_then(|download| arrival.receive_file(file, &download.path));
        match received {
            Ok(()) => {}
            Err(Error::Fetch { why, .. }) => refusals.push(why),
            Err(other) => return Err(other),
        }
    }
    if refusals.is_empty() { Ok(()) } else { Err(refused(source, refusals.join("; "))) }
}

// === impl Hub ===

impl Hub {
    /// Downloads will lie below `workspace`: the Hub's own cache would keep every file a second time.
    pub(super) fn open(name: &str, revision: &str, workspace: &Path) -> Result<Self, Fault> {
        let mut builder =
            ApiBuilder::from_env().with_cache_dir(workspace.to_owned()).with_progress(false).with_retries(3);
        if let Some(endpoint) = variable("HF_ENDPOINT") {
            builder = builder.with_endpoint(endpoint.trim_end_matches('/').to_owned());
        }
        // hf-hub reads the token that a login wrote; the Hub's other clients prefer the variable.
        if let Some(token) = variable("HF_TOKEN") {
            builder = builder.with_token(Some(token));
        }
        let api = builder.build().map_err(|error| fault(&error))?;
        let repo = api.repo(Repo::with_revision(name.to_owned(), RepoType::Model, revision.to_owned()));
        Ok(Self { api, repo, name: name.to_owned(), revision: revision.to_owned() })
    }

    /// The commit of the revision, and the paths of all files.
    pub(super) fn info(&self) -> Result<RepoInfo, Fault> {
        let repo = self.api.repo(Repo::with_revision(self.name.clone(), RepoType::Model, self.revision.clone()));
        within(move || again(|| info(&repo)))?
    }

    /// Asks for the facts of one file, so that a Hub that does not answer is known before anything waits for it.
    fn answers(&self, path: &str) -> Result<(), Fault> {
        let (api, url) = (self.api.clone(), self.repo.url(path));
        within(move || again(|| api.metadata(&url).map_err(|error| fault(&error)).map(drop)))?
    }

    /// Brings one file; `name` is what the progress is told.
    pub(super) fn download(&self, path: &str, name: &str, progress: &dyn Progress) -> Result<Download, Fault> {
        let url = self.repo.url(path);
        again(|| {
            let metadata = self.api.metadata(&url).map_err(|error| fault(&error))?;
            let bar = Bar { file: name, progress, started: false };
            let path = self.repo.download_with_progress(path, bar).map_err(|error| fault(&error))?;
            let (bytes, all) = (fs::metadata(&path).map_or(0, |file| file.len()), metadata.size() as u64);
            if bytes != all {
                return Err(Fault::Failed(format!("{bytes} of {all} bytes came")));
            }
            // The Hub's tag of a large file is its digest; of a small one it is git's, which is of another kind.
            let is_digest = metadata.etag().len() == 64 && metadata.etag().bytes().all(|b| b.is_ascii_hexdigit());
            let sha256 = is_digest.then(|| metadata.etag().to_ascii_lowercase());
            Ok(Download { path, sha256, bytes })
        })
    }
}

/// Asks with the headers of a refusal at hand: the Hub says 401 for what is not there, too, and means it by a header.
fn info(repo: &ApiRepo) -> Result<RepoInfo, Fault> {
    let failed = |error: ureq::Error| fault(&ApiError::RequestError(Box::new(error)));
    let request = repo.info_request().config().http_status_as_error(false).build();
    let mut response = request.call().map_err(failed)?;
    let status = response.status().as_u16();
    if status == 200 {
        return response.body_mut().read_json().map_err(failed);
    }
    let code = response.headers().get("x-error-code").and_then(|code| code.to_str().ok()).unwrap_or_default();
    Err(match code {
        "RepoNotFound" | "RevisionNotFound" | "EntryNotFound" => Fault::Missing,
        _ => from_status(status),
    })
}

/// A variable of the Hub's clients, unless it is empty.
#[expect(clippy::disallowed_methods, reason = "the Hub's own variables, which hf-hub and its other clients read too")]
fn variable(name: &str) -> Option<String> {
    let value = env::var(name).ok()?.trim().to_owned();
    (!value.is_empty()).then_some(value)
}

/// Asks on a thread of its own, which is left behind if no answer comes.
fn within<T: Send + 'static>(ask: impl FnOnce() -> T + Send + 'static) -> Result<T, Fault> {
    let (sender, receiver) = mpsc::channel();
    // Nobody listens any more if the answer took too long.
    let ask = move || drop(sender.send(ask()));
    thread::Builder::new().name("hub".to_owned()).spawn(ask).map_err(|error| Fault::Failed(error.to_string()))?;
    receiver
        .recv_timeout(ANSWER_WITHIN)
        .map_err(|_| Fault::Failed(format!("the hub did not answer in {} s", ANSWER_WITHIN.as_secs())))
}

/// Asks again, after longer and longer pauses, while the Hub is too busy.
#[expect(
    clippy::disallowed_methods,
    reason = "a pull blocks its thread anyway, and nobody tells when the hub has time"
)]
fn again<T>(ask: impl Fn() -> Result<T, Fault>) -> Result<T, Fault> {
    let mut pause = PAUSE;
    for _ in 1..ATTEMPTS {
        match ask() {
            Err(Fault::Busy(_)) => thread::sleep(pause),
            answer => return answer,
        }
        pause *= 2;
    }
    ask()
}

// === impl Fault ===

fn fault(error: &ApiError) -> Fault {
    match error {
        ApiError::RequestError(error) => match **error {
            ureq::Error::StatusCode(status) => from_status(status),
            ref other => Fault::Failed(format!("the hub can not be used ({other})")),
        },
        ApiError::TooManyRetries(last) => fault(last),
        other => Fault::Failed(format!("the hub can not be used ({other})")),
    }
}

fn from_status(status: u16) -> Fault {
    match status {
        401 | 403 => Fault::Forbidden,
        404 => Fault::Missing,
        429 | 500..=599 => Fault::Busy(status),
        _ => Fault::Failed(format!("the hub refused (HTTP status {status})")),
    }
}

impl Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => f.write_str("the hub has no such file, revision or repository"),
            Self::Forbidden => f.write_str("the hub wants a token (HF_TOKEN) of somebody who may read the repository"),
            Self::Busy(status) => write!(f, "the hub is too busy (HTTP status {status})"),
            Self::Failed(why) => f.write_str(why),
        }
    }
}

/// Passes a download's progress on.
struct Bar<'a> {
    file: &'a str,
    progress: &'a dyn Progress,
    /// hf-hub begins anew with each attempt.
    started: bool,
}

impl HubProgress for Bar<'_> {
    fn init(&mut self, size: usize, _name: &str) {
        if !self.started {
            self.progress.started(self.file, Some(size as u64));
            self.started = true;
        }
    }

    fn update(&mut self, size: usize) {
        self.progress.advanced(size as u64);
    }

    // A file is finished when its digest was right, which is not known yet.
    fn finish(&mut self) {}
}
