//! The bytes of one file of the Hub.
//!
//! Not by hf-hub's own download: it makes paths of what the server writes into its headers, and shows the token to
//! every server that it is sent on to. Here a header is a length, a digest or an address, and never a path.

use std::{
    io::{self, Read},
    time::Duration,
};

use hf_hub::api::sync::ApiRepo;
use ureq::{
    Agent, Body, BodyReader,
    http::{
        HeaderMap, Response, Uri,
        header::{ACCEPT_ENCODING, AUTHORIZATION, CONTENT_LENGTH, CONTENT_RANGE, ETAG, LOCATION, RANGE, USER_AGENT},
    },
};

use super::{Fault, again, fault, pause, refusal};

/// Most servers that one question is sent on to.
const REDIRECTS_MAX: u32 = 10;

/// How often a download that broke off goes on from where it was.
const RESUMES_MAX: u32 = 3;

/// How long a server may take to be reached, and to begin its answer.
const CONNECT_WITHIN: Duration = Duration::from_secs(30);
const RESPONSE_WITHIN: Duration = Duration::from_secs(60);

/// Asks for files, as hf-hub would: with its token and its name.
#[derive(Clone)]
pub(super) struct Client {
    agent: Agent,
    headers: HeaderMap,
}

/// A file that comes while it is read. No more bytes come than were announced, and no fewer without an error.
pub(in crate::store) struct Content {
    client: Client,
    url: String,
    /// Its length, unless the Hub does not say.
    pub(in crate::store) bytes: Option<u64>,
    /// Its sha256, where the Hub says so: for the large files.
    pub(in crate::store) sha256: Option<String>,
    body: BodyReader<'static>,
    read: u64,
    bytes_max: u64,
    resumes: u32,
}

/// What came back for a file, from the Hub or from where it sent us.
struct Reply {
    response: Response<Body>,
    /// What the Hub itself says of the file.
    etag: Option<String>,
    length: Option<u64>,
}

// === impl Client ===

impl Client {
    pub(super) fn new(repo: &ApiRepo) -> Self {
        let agent = Agent::config_builder()
            .max_redirects(0)
            .http_status_as_error(false)
            .timeout_connect(Some(CONNECT_WITHIN))
            .timeout_recv_response(Some(RESPONSE_WITHIN))
            .build()
            .into();
        let headers = repo.info_request().headers_ref().cloned().unwrap_or_default();
        Self { agent, headers }
    }

    /// Sees whether the file can be had.
    pub(super) fn answers(&self, url: &str) -> Result<(), Fault> {
        again(|| self.ask(url, 0)).map(drop)
    }

    /// Begins to bring a file. One that is announced as longer than `bytes_max` does not come at all.
    pub(super) fn content(&self, url: String, bytes_max: Option<u64>) -> Result<Content, Fault> {
        let reply = again(|| self.ask(&url, 0))?;
        let bytes = reply.length;
        let bytes_max = match (bytes, bytes_max) {
            (Some(bytes), Some(bytes_max)) if bytes > bytes_max => return Err(Fault::TooLong { bytes, bytes_max }),
            (Some(bytes), _) => bytes,
            (None, Some(bytes_max)) => bytes_max,
            (None, None) => return Err(Fault::Failed("the hub does not say how long the file is".to_owned())),
        };
        // The Hub's tag of a large file is its digest; of a small one it is git's, which is of another kind.
        let is_digest = |etag: &String| etag.len() == 64 && etag.bytes().all(|b| b.is_ascii_hexdigit());
        let sha256 = reply.etag.filter(is_digest).map(|etag| etag.to_ascii_lowercase());
        let body = reply.response.into_body().into_reader();
        Ok(Content { client: self.clone(), url, bytes, sha256, body, read: 0, bytes_max, resumes: 0 })
    }

    /// Asks for the bytes from `first` on, and goes where it is sent.
    fn ask(&self, url: &str, first: u64) -> Result<Reply, Fault> {
        let unusable = || Fault::Failed("the hub can not be used (it gives an address that is none)".to_owned());
        let hub: Uri = url.parse().map_err(|_| unusable())?;
        let (mut at, mut etag, mut linked, mut length) = (hub.clone(), None, None, None);
        for _ in 0..=REDIRECTS_MAX {
            let is_hub = (at.scheme(), at.authority()) == (hub.scheme(), hub.authority());
            let response = self.get(&at, is_hub, first)?;
            let (status, headers) = (response.status(), response.headers());
            if is_hub {
                // What the Hub says of the file goes before what a store behind the same address says of its bytes.
                linked = linked.or_else(|| text(headers, "x-linked-etag"));
                etag = text(headers, ETAG.as_str()).or(etag);
                length = length.or_else(|| text(headers, "x-linked-size")?.parse().ok());
            }
            if status.is_redirection() {
                let location = text(headers, LOCATION.as_str()).ok_or_else(unusable)?;
                at = follow(&at, &location).ok_or_else(unusable)?;
                continue;
            }
            if !status.is_success() {
                return Err(refusal(status.as_u16(), headers));
            }
            let length = length.or_else(|| text(headers, CONTENT_LENGTH.as_str())?.parse().ok());
            let etag = linked.or(etag).map(|etag| etag.trim_start_matches("W/").replace('"', ""));
            return Ok(Reply { response, etag, length });
        }
        Err(Fault::Failed(format!("the hub sends on more than {REDIRECTS_MAX} times")))
    }

    fn get(&self, at: &Uri, is_hub: bool, first: u64) -> Result<Response<Body>, Fault> {
        // Packed bytes would have another length than the one announced.
        let mut request = self.agent.get(at).header(ACCEPT_ENCODING, "identity");
        if let Some(name) = self.headers.get(USER_AGENT) {
            request = request.header(USER_AGENT, name);
        }
        // The token is for the Hub, and for nobody whom the Hub names.
        if let (Some(token), true) = (self.headers.get(AUTHORIZATION), is_hub) {
            request = request.header(AUTHORIZATION, token);
        }
        if first > 0 {
            request = request.header(RANGE, format!("bytes={first}-"));
        }
        request.call().map_err(|error| fault(&error))
    }
}

fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name)?.to_str().ok().map(str::to_owned)
}

/// Where a redirect leads: a path of the same server, or an address, which must not be less private than this one.
fn follow(from: &Uri, location: &str) -> Option<Uri> {
    let to: Uri = if location.starts_with('/') && !location.starts_with("//") {
        format!("{}://{}{location}", from.scheme_str()?, from.authority()?).parse().ok()?
    } else {
        location.parse().ok()?
    };
    match (from.scheme_str()?, to.scheme_str()?) {
        (_, "https") | ("http", "http") => Some(to),
        _ => None,
    }
}

// === impl Content ===

impl Content {
    /// Goes on where the bytes ended too early.
    fn resume(&mut self) -> Result<(), Fault> {
        self.resumes += 1;
        pause(super::PAUSE);
        let reply = again(|| self.client.ask(&self.url, self.read))?;
        let range = text(reply.response.headers(), CONTENT_RANGE.as_str()).unwrap_or_default();
        if self.read > 0 && !range.starts_with(&format!("bytes {}-", self.read)) {
            return Err(Fault::Failed("the hub can not go on where it broke off".to_owned()));
        }
        self.body = reply.response.into_body().into_reader();
        Ok(())
    }

    /// Whether there is more than there may be.
    fn goes_on(&mut self) -> bool {
        // Whatever breaks behind the last byte breaks nothing.
        matches!(self.body.read(&mut [0]), Ok(1..))
    }
}

impl Read for Content {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        let left = self.bytes_max - self.read;
        if left == 0 {
            let why = format!("more than {} bytes came", self.bytes_max);
            return if self.goes_on() { Err(io::Error::other(why)) } else { Ok(0) };
        }
        let most = usize::try_from(left).map_or(buffer.len(), |left| left.min(buffer.len()));
        loop {
            let why = match self.body.read(&mut buffer[..most]) {
                Ok(0) if self.bytes.is_none() => return Ok(0),
                Ok(0) => String::new(),
                Ok(count) => {
                    self.read += count as u64;
                    return Ok(count);
                }
                Err(error) => format!(" ({error})"),
            };
            let short = |why: &str| io::Error::other(format!("{} of {} bytes came{why}", self.read, self.bytes_max));
            if self.resumes == RESUMES_MAX {
                return Err(short(&why));
            }
            if let Err(fault) = self.resume() {
                return Err(io::Error::other(fault.to_string()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redirect_leads_to_an_address_that_is_no_less_private() {
        let to =
            |from: &'static str, location: &str| follow(&Uri::from_static(from), location).map(|to| to.to_string());
        let hub = "https://hub.test/a/b";
        assert_eq!(to(hub, "/c?d=e").as_deref(), Some("https://hub.test/c?d=e"));
        assert_eq!(to(hub, "https://cdn.test/x").as_deref(), Some("https://cdn.test/x"));
        for location in ["http://hub.test/x", "//cdn.test/x", "x", "", "file:///etc/passwd"] {
            assert_eq!(to(hub, location), None, "{location}");
        }
        assert_eq!(to("http://hub.test/a", "http://cdn.test/x").as_deref(), Some("http://cdn.test/x"));
    }
}
