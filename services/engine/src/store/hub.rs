//! Files from the Hugging Face Hub, or from the server that `HF_ENDPOINT` names.

use std::{sync::mpsc, thread, time::Duration};

use hf_hub::{
    Repo, RepoType,
    api::{
        Progress as HubProgress,
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

pub(super) fn fetch(
    source: &Source,
    hub: &HubSource,
    files: &[FileSpec],
    arrival: &mut Arrival<'_>,
) -> Result<(), Error> {
    // The Hub's own cache would keep every file a second time.
    let workspace = arrival.workspace()?;
    let refuse = |error: ApiError| refused(source, error);
    let builder =
        ApiBuilder::from_env().with_cache_dir(workspace.path().to_owned()).with_progress(false).with_retries(3);
    let api = builder.build().map_err(refuse)?;
    let repo = Repo::with_revision(hub.hub.clone(), RepoType::Model, hub.revision.clone());
    let repo: ApiRepo = api.repo(repo);
    let Some(first) = files.first() else { return Ok(()) };
    answers(source, api, repo.url(&first.path_in(&hub.folder)))?;
    let mut refusals = Vec::new();
    for file in files {
        let bar = Bar { file: &file.name, progress: arrival.progress(), started: false };
        let received = repo
            .download_with_progress(&file.path_in(&hub.folder), bar)
            .map_err(refuse)
            .and_then(|path| arrival.receive_file(file, &path));
        match received {
            Ok(()) => {}
            Err(Error::Fetch { why, .. }) => refusals.push(why),
            Err(other) => return Err(other),
        }
    }
    if refusals.is_empty() { Ok(()) } else { Err(refused(source, refusals.join("; "))) }
}

/// Asks for the facts of one file on a thread of its own, which is left behind if no answer comes.
fn answers(source: &Source, api: Api, url: String) -> Result<(), Error> {
    let (sender, receiver) = mpsc::channel();
    let ask = move || {
        // Nobody listens any more if the answer took too long.
        let _ = sender.send(api.metadata(&url));
    };
    thread::Builder::new().name("hub".to_owned()).spawn(ask).map_err(|error| refused(source, error))?;
    match receiver.recv_timeout(ANSWER_WITHIN) {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(refused(source, format!("the hub can not be used ({error})"))),
        Err(_) => Err(refused(source, format!("the hub did not answer in {} s", ANSWER_WITHIN.as_secs()))),
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
