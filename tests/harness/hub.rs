//! A hub on loopback: it answers as the Hugging Face Hub does, and fails where a test wants it to.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex},
};

use axum::{
    Router,
    body::Body,
    extract::State,
    http::{HeaderMap, StatusCode, Uri, header},
    response::{IntoResponse, Response},
};
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::{net::TcpListener, task::JoinHandle};

/// The commit of every repository's branch `main`.
pub(crate) const COMMIT: &str = "8b3219a92973c328a8e22fadcfa821b5dc75636a";

/// Who may read gated repositories.
pub(crate) const TOKEN: &str = "hf_of_the_test";

/// A hub that listens until it is dropped.
pub(crate) struct Hub {
    pub(crate) endpoint: String,
    shelves: Arc<Shelves>,
    server: JoinHandle<()>,
}

#[derive(Default)]
struct Shelves {
    repositories: Mutex<HashMap<String, Repository>>,
    /// What is answered first to a request whose path ends so, each status once.
    busy: Mutex<Vec<(String, StatusCode)>>,
    /// Requests in their order: method and path.
    asked: Mutex<Vec<String>>,
}

/// A repository's files.
#[derive(Clone, Default)]
pub(crate) struct Repository {
    pub(crate) files: BTreeMap<String, Vec<u8>>,
    pub(crate) is_gated: bool,
    /// How the bytes come.
    pub(crate) flaw: Option<Flaw>,
    /// What the headers say instead of a digest and a commit.
    pub(crate) tag: Option<String>,
}

/// What is wrong with the bytes of a file.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flaw {
    /// The last one is another.
    Flipped,
    /// The last ten are missing.
    Short,
    /// README.md has no end, and no length.
    Endless,
}

impl Hub {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let shelves = Arc::<Shelves>::default();
        let app = Router::new().fallback(answer).with_state(shelves.clone());
        let server = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self { endpoint, shelves, server }
    }

    pub(crate) fn publish(&self, name: &str, repository: Repository) {
        self.shelves.repositories.lock().unwrap().insert(name.into(), repository);
    }

    /// Answers the next request for a path that ends so with this status.
    pub(crate) fn busy(&self, path: &str, status: u16) {
        self.shelves.busy.lock().unwrap().push((path.into(), StatusCode::from_u16(status).unwrap()));
    }

    /// How many answers of [`Self::busy`] nobody has asked for.
    pub(crate) fn left(&self) -> usize {
        self.shelves.busy.lock().unwrap().len()
    }

    /// The paths that were asked for.
    pub(crate) fn asked(&self) -> Vec<String> {
        self.shelves.asked.lock().unwrap().clone()
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn answer(State(shelves): State<Arc<Shelves>>, uri: Uri, headers: HeaderMap) -> Response {
    let path = uri.path().trim_start_matches('/').to_owned();
    shelves.asked.lock().unwrap().push(path.clone());
    {
        let mut busy = shelves.busy.lock().unwrap();
        if let Some(index) = busy.iter().position(|(end, _)| path.ends_with(end)) {
            return busy.remove(index).1.into_response();
        }
    }
    let parts: Vec<_> = path.split('/').collect();
    let find = |owner: &str, name: &str| shelves.repositories.lock().unwrap().get(&format!("{owner}/{name}")).cloned();
    let known = |revision: &str| revision == "main" || revision == COMMIT;
    match parts.as_slice() {
        ["api", "models", owner, name, "revision", revision] => match find(owner, name) {
            // Who does not say who he is must not learn what exists.
            None => refused(StatusCode::UNAUTHORIZED, "RepoNotFound"),
            Some(_) if !known(revision) => refused(StatusCode::NOT_FOUND, "RevisionNotFound"),
            Some(repository) => listing(&repository),
        },
        ["api", "resolve-cache", "models", owner, name, _, file @ ..] | ["cdn", owner, name, file @ ..] => {
            let repository = find(owner, name).unwrap();
            content(&repository, &file.join("/"), &headers)
        }
        [owner, name, "resolve", revision, file @ ..] => match find(owner, name) {
            None => refused(StatusCode::UNAUTHORIZED, "RepoNotFound"),
            Some(_) if !known(revision) => refused(StatusCode::NOT_FOUND, "RevisionNotFound"),
            Some(repository) if repository.is_gated && !is_authorized(&headers) => {
                refused(StatusCode::UNAUTHORIZED, "GatedRepo")
            }
            Some(repository) => resolve(&repository, &format!("{owner}/{name}"), &file.join("/"), &headers),
        },
        _ => StatusCode::NOT_FOUND.into_response(),
    }
}

fn listing(repository: &Repository) -> Response {
    let siblings: Vec<_> = repository.files.keys().map(|path| json!({ "rfilename": path })).collect();
    let gated = if repository.is_gated { json!("manual") } else { json!(false) };
    axum::response::Response::builder()
        .header(header::CONTENT_TYPE, "application/json")
        .body(Body::from(json!({"sha": COMMIT, "gated": gated, "private": false, "siblings": siblings}).to_string()))
        .unwrap()
}

/// Large files lie elsewhere, small ones behind a relative redirect.
fn resolve(repository: &Repository, name: &str, path: &str, headers: &HeaderMap) -> Response {
    let Some(bytes) = repository.files.get(path) else { return refused(StatusCode::NOT_FOUND, "EntryNotFound") };
    let host = headers[header::HOST].to_str().unwrap();
    let is_large = path.ends_with(".safetensors");
    let response = Response::builder().header("x-repo-commit", repository.tag.as_deref().unwrap_or(COMMIT));
    let tag = |digest: &str| format!("\"{}\"", repository.tag.as_deref().unwrap_or(digest));
    let response = if is_large {
        response
            .status(StatusCode::FOUND)
            .header(header::LOCATION, format!("http://{host}/cdn/{name}/{path}"))
            .header("x-linked-size", bytes.len())
            .header("x-linked-etag", tag(&sha256(bytes)))
            .header(header::ETAG, "\"of the redirect\"")
    } else {
        response
            .status(StatusCode::TEMPORARY_REDIRECT)
            .header(header::LOCATION, format!("/api/resolve-cache/models/{name}/{COMMIT}/{path}"))
            .header(header::ETAG, tag(&sha256(bytes)[..40]))
    };
    response.body(Body::empty()).unwrap()
}

/// The bytes, or the range of them that was asked for.
fn content(repository: &Repository, path: &str, headers: &HeaderMap) -> Response {
    let mut bytes = repository.files[path].clone();
    let length = bytes.len();
    let etag = format!("\"{}\"", repository.tag.as_deref().unwrap_or(&sha256(&bytes)[..40]));
    if path == "README.md" && repository.flaw == Some(Flaw::Endless) {
        let chunks =
            futures_util::stream::iter(std::iter::repeat_with(|| Ok::<_, std::io::Error>(vec![b'#'; 1 << 16])));
        return Body::from_stream(chunks).into_response();
    }
    if path.ends_with(".safetensors") {
        match repository.flaw {
            Some(Flaw::Flipped) => *bytes.last_mut().unwrap() ^= 1,
            Some(Flaw::Short) => bytes.truncate(length - 10),
            Some(Flaw::Endless) | None => {}
        }
    }
    let Some(range) = headers.get(header::RANGE) else {
        return Response::builder().header(header::ETAG, etag).body(Body::from(bytes)).unwrap();
    };
    let range = range.to_str().unwrap().strip_prefix("bytes=").unwrap();
    let (first, last) = range.split_once('-').unwrap();
    let first: usize = first.parse().unwrap();
    let last = last.parse().map_or(bytes.len(), |last: usize| (last + 1).min(bytes.len()));
    if first > last {
        return StatusCode::RANGE_NOT_SATISFIABLE.into_response();
    }
    Response::builder()
        .status(StatusCode::PARTIAL_CONTENT)
        .header("x-repo-commit", COMMIT)
        .header(header::ETAG, etag)
        .header(header::CONTENT_RANGE, format!("bytes {first}-{}/{length}", last.max(1) - 1))
        .body(Body::from(bytes[first..last].to_vec()))
        .unwrap()
}

fn refused(status: StatusCode, code: &str) -> Response {
    Response::builder().status(status).header("x-error-code", code).body(Body::empty()).unwrap()
}

fn is_authorized(headers: &HeaderMap) -> bool {
    headers.get(header::AUTHORIZATION).is_some_and(|value| value.to_str().is_ok_and(|v| v == format!("Bearer {TOKEN}")))
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
