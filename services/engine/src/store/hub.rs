//! Files from the Hugging Face Hub, or from the server that `HF_ENDPOINT` names.

use std::{
    env,
    fmt::{self, Display},
    sync::mpsc,
    thread,
    time::Duration,
};

use hf_hub::{
    Repo, RepoType,
    api::{
        RepoInfo,
        sync::{Api, ApiBuilder, ApiRepo},
    },
};
use ureq::http::HeaderMap;

use super::{Arrival, refused};
use crate::{
    Error,
    manifest::{FileSpec, HubSource, Source},
};

mod content;

use self::content::Client;
pub(super) use self::content::Content;

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
    client: Client,
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
    /// The file is longer than it may be.
    TooLong { bytes: u64, bytes_max: u64 },
    /// Anything else, in words.
    Failed(String),
}

pub(super) fn fetch(
    source: &Source,
    hub: &HubSource,
    files: &[FileSpec],
    arrival: &mut Arrival<'_>,
) -> Result<(), Error> {
    let refuse = |fault: Fault| refused(source, fault);
    let Some(first) = files.first() else { return Ok(()) };
    let repository = Hub::open(&hub.hub, &hub.revision).map_err(refuse)?;
    repository.answers(&first.path_in(&hub.folder)).map_err(refuse)?;
    let mut refusals = Vec::new();
    for file in files {
        let received = repository
            .content(&file.path_in(&hub.folder), None)
            .map_err(|fault| refused(source, format!("{}: {fault}", file.name)))
            .and_then(|mut content| arrival.receive(file, content.bytes, &mut content));
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
    /// hf-hub knows the endpoint, the token and the addresses; its cache is not used.
    pub(super) fn open(name: &str, revision: &str) -> Result<Self, Fault> {
        let mut builder = ApiBuilder::from_env().with_progress(false);
        if let Some(endpoint) = variable("HF_ENDPOINT") {
            builder = builder.with_endpoint(endpoint.trim_end_matches('/').to_owned());
        }
        // hf-hub reads the token that a login wrote; the Hub's other clients prefer the variable.
        if let Some(token) = variable("HF_TOKEN") {
            builder = builder.with_token(Some(token));
        }
        let api = builder.build().map_err(|error| Fault::Failed(format!("the hub can not be used ({error})")))?;
        let repo = api.repo(Repo::with_revision(name.to_owned(), RepoType::Model, revision.to_owned()));
        let client = Client::new(&repo);
        Ok(Self { api, repo, client, name: name.to_owned(), revision: revision.to_owned() })
    }

    /// The commit of the revision, and the paths of all files.
    pub(super) fn info(&self) -> Result<RepoInfo, Fault> {
        let repo = self.api.repo(Repo::with_revision(self.name.clone(), RepoType::Model, self.revision.clone()));
        within(move || again(|| info(&repo)))?
    }

    /// Asks for the facts of one file, so that a Hub that does not answer is known before anything waits for it.
    fn answers(&self, path: &str) -> Result<(), Fault> {
        let (client, url) = (self.client.clone(), self.repo.url(path));
        within(move || client.answers(&url))?
    }

    /// One file, of at most so many bytes if a bound is given. Its bytes come while it is read.
    pub(super) fn content(&self, path: &str, bytes_max: Option<u64>) -> Result<Content, Fault> {
        self.client.content(self.repo.url(path), bytes_max)
    }
}

/// Asks with the headers of a refusal at hand.
fn info(repo: &ApiRepo) -> Result<RepoInfo, Fault> {
    let failed = |error: ureq::Error| fault(&error);
    let request = repo.info_request().config().http_status_as_error(false).build();
    let mut response = request.call().map_err(failed)?;
    let status = response.status().as_u16();
    if status == 200 {
        return response.body_mut().read_json().map_err(failed);
    }
    Err(refusal(status, response.headers()))
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
fn again<T>(ask: impl Fn() -> Result<T, Fault>) -> Result<T, Fault> {
    let mut length = PAUSE;
    for _ in 1..ATTEMPTS {
        match ask() {
            Err(Fault::Busy(_)) => pause(length),
            answer => return answer,
        }
        length *= 2;
    }
    ask()
}

#[expect(
    clippy::disallowed_methods,
    reason = "a pull blocks its thread anyway, and nobody tells when the hub has time"
)]
fn pause(length: Duration) {
    thread::sleep(length);
}

// === impl Fault ===

fn fault(error: &ureq::Error) -> Fault {
    Fault::Failed(format!("the hub can not be used ({error})"))
}

/// What a refusal means. The Hub says 401 for what is not there, too, and means it by a header.
fn refusal(status: u16, headers: &HeaderMap) -> Fault {
    let code = headers.get("x-error-code").and_then(|code| code.to_str().ok()).unwrap_or_default();
    match code {
        "RepoNotFound" | "RevisionNotFound" | "EntryNotFound" => Fault::Missing,
        _ => from_status(status),
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
            Self::TooLong { bytes, bytes_max } => write!(f, "it has {bytes} bytes, the bound is {bytes_max}"),
            Self::Failed(why) => f.write_str(why),
        }
    }
}
