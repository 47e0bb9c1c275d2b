//! A reply on its way from a replica to the client: held until its status is known, then passed on.
//!
//! The status of a gRPC call comes last, in the trailers. As long as nothing of a reply has gone to the client, a replica
//! that is lost in the middle, or that refuses in its trailers, costs a retry and not the call.

use std::{
    convert::Infallible,
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll, ready},
    vec,
};

use bytes::Bytes;
use chassis::{load::Report, refusal::PUSHBACK};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header, response::Parts};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tonic::Code;

use crate::{
    cutoff::Cutoff,
    flight::Flight,
    metrics::Record,
    refuse::Refusal,
    replay::PREFIX_BYTES,
    request,
    retry::{Failure, Pushback},
    route::Shape,
};

const STATUS: &str = "grpc-status";

/// What a replica has answered so far.
pub(crate) struct Reply {
    head: Parts,
    frames: Vec<Bytes>,
    rest: Rest,
}

/// What comes after the frames that are here.
enum Rest {
    /// Trailers; none if the headers already were the trailers.
    Trailers(Option<HeaderMap>),
    /// More from a replica.
    Upstream(Incoming),
    /// More from a service of the gateway's own.
    Local(tonic::body::Body),
}

/// Why there is no reply.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoReply {
    /// Another HTTP status or content type.
    #[error("the reply is not gRPC")]
    NotGrpc,
    /// It ended without a status.
    #[error("the reply ended without a status")]
    CutShort,
    /// The stream or the connection failed.
    #[error("the reply was lost")]
    Lost(#[source] hyper::Error),
}

/// A reply as the client gets it. It ends with a status in any case: what fails on the way becomes trailers.
pub(crate) struct ReplyBody {
    frames: vec::IntoIter<Bytes>,
    rest: Rest,
    cutoff: Cutoff,
    flight: Option<Flight>,
    record: Record,
}

/// Reads a reply: a unary one until its status is known or more than `held_bytes_max` are here, a streaming one up to its
/// headers.
pub(crate) async fn receive(
    response: Response<Incoming>,
    shape: Shape,
    held_bytes_max: usize,
) -> Result<Reply, NoReply> {
    let (mut head, mut body) = response.into_parts();
    let content_type = head.headers.get(header::CONTENT_TYPE).map(http::HeaderValue::as_bytes);
    if head.status != StatusCode::OK || !content_type.is_some_and(|value| value.starts_with(b"application/grpc")) {
        return Err(NoReply::NotGrpc);
    }
    request::strip_hop_headers(&mut head.headers);
    if head.headers.contains_key(STATUS) {
        return Ok(Reply { head, frames: Vec::new(), rest: Rest::Trailers(None) });
    }
    let (mut frames, mut held_bytes) = (Vec::new(), 0);
    while shape == Shape::Unary && held_bytes <= held_bytes_max {
        let frame = body.frame().await.ok_or(NoReply::CutShort)?.map_err(NoReply::Lost)?;
        match frame.into_data() {
            Ok(data) => {
                held_bytes += data.len();
                frames.push(data);
            }
            Err(frame) => {
                let trailers = frame.into_trailers().ok().filter(|trailers| trailers.contains_key(STATUS));
                return Ok(Reply { head, frames, rest: Rest::Trailers(Some(trailers.ok_or(NoReply::CutShort)?)) });
            }
        }
    }
    Ok(Reply { head, frames, rest: Rest::Upstream(body) })
}

// === impl Reply ===

impl Reply {
    /// The reply of a service of the gateway's own.
    pub(crate) fn local(response: Response<tonic::body::Body>) -> Self {
        let (head, body) = response.into_parts();
        let rest = if head.headers.contains_key(STATUS) { Rest::Trailers(None) } else { Rest::Local(body) };
        Self { head, frames: Vec::new(), rest }
    }

    /// A unary reply of the gateway's own, as DATA frames.
    pub(crate) fn whole(frames: Vec<Bytes>) -> Self {
        Self { head: own_head(), frames, rest: Rest::Trailers(Some(ok_trailers())) }
    }

    /// A reply that is nothing but its end.
    pub(crate) fn ended(trailers: HeaderMap) -> Self {
        Self { head: own_head(), frames: Vec::new(), rest: Rest::Trailers(Some(trailers)) }
    }

    /// A streaming reply of the gateway's own. The body ends with trailers.
    pub(crate) fn stream(body: impl Body<Data = Bytes, Error = Infallible> + Send + 'static) -> Self {
        Self { head: own_head(), frames: Vec::new(), rest: Rest::Local(tonic::body::Body::new(body)) }
    }

    /// The gateway's refusal.
    pub(crate) fn refusal(refusal: &Refusal) -> Self {
        Self { head: refusal.head(), frames: Vec::new(), rest: Rest::Trailers(None) }
    }

    /// The failure that it is to a retry, if it is one.
    pub(crate) fn failure(&self) -> Option<Failure> {
        let trailers = self.trailers()?;
        let pushback =
            match trailers.get(PUSHBACK).map(|wait| wait.to_str().ok().and_then(|text| text.parse::<u64>().ok())) {
                None => Pushback::Absent,
                Some(Some(_)) => Pushback::Later,
                Some(None) => Pushback::Never,
            };
        match code(trailers) {
            Code::Ok => None,
            code => Some(Failure::Status(code, pushback)),
        }
    }

    /// The status of a reply that is here as a whole; UNKNOWN as long as it is not.
    pub(crate) fn code(&self) -> Code {
        self.trailers().map_or(Code::Unknown, code)
    }

    /// Takes out what the replica says about its load, if the reply is here as a whole: that is between the replica and
    /// the gateway.
    pub(crate) fn take_report(&mut self) -> Option<Report> {
        match &mut self.rest {
            Rest::Trailers(Some(trailers)) => Report::take(trailers),
            Rest::Trailers(None) => Report::take(&mut self.head.headers),
            Rest::Upstream(_) | Rest::Local(_) => None,
        }
    }

    /// Nothing more will come.
    pub(crate) fn is_whole(&self) -> bool {
        self.rest.is_here()
    }

    /// The message of a whole reply with status OK, for the gateway itself, without its prefix. A compressed one is not
    /// understood, and not sent to those who did not say that they accept it.
    pub(crate) fn message(&self) -> Option<Bytes> {
        let whole = self.is_whole() && self.failure().is_none();
        whole.then(|| message(&self.frames)).flatten()
    }

    /// Reads the reply to its end: its DATA frames and its trailers. `keep` is asked before a frame is kept.
    pub(crate) async fn collect(
        self,
        flight: Option<Flight>,
        mut keep: impl FnMut(usize) -> Result<(), Refusal>,
    ) -> Result<(Vec<Bytes>, HeaderMap), Refusal> {
        let Self { head, frames, mut rest } = self;
        for frame in &frames {
            keep(frame.len())?;
        }
        let mut chunks = frames;
        let mut trailers = match &mut rest {
            Rest::Trailers(trailers) => return Ok((chunks, trailers.take().unwrap_or(head.headers))),
            Rest::Upstream(_) | Rest::Local(_) => loop {
                match poll_fn(|cx| rest.poll_frame(cx)).await.map(|frame| frame.map(Frame::into_data)) {
                    Some(Ok(Ok(data))) => {
                        keep(data.len())?;
                        chunks.push(data);
                    }
                    Some(Ok(Err(frame))) => break frame.into_trailers().unwrap_or_default(),
                    Some(Err(lost)) => {
                        flight.into_iter().for_each(Flight::lose);
                        return Err(lost);
                    }
                    None => break HeaderMap::new(),
                }
            },
        };
        let report = Report::take(&mut trailers);
        if let Some(flight) = flight {
            flight.land(code(&trailers), report);
        }
        Ok((chunks, trailers))
    }

    /// The response to the client. `flight` is what the call holds while more comes; `record` ends with the last frame.
    pub(crate) fn into_response(
        self,
        cutoff: Cutoff,
        flight: Option<Flight>,
        mut record: Record,
    ) -> Response<ReplyBody> {
        if let Some(trailers) = self.trailers() {
            record.status(code(trailers));
        }
        let frames = self.frames.into_iter();
        Response::from_parts(self.head, ReplyBody { frames, rest: self.rest, cutoff, flight, record })
    }

    fn trailers(&self) -> Option<&HeaderMap> {
        match &self.rest {
            Rest::Trailers(trailers) => Some(trailers.as_ref().unwrap_or(&self.head.headers)),
            Rest::Upstream(_) | Rest::Local(_) => None,
        }
    }
}

fn own_head() -> Parts {
    let mut response = Response::new(());
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response.into_parts().0
}

/// The message in the frames of a reply, without its prefix; `None` if it is compressed or cut short.
pub(crate) fn message(frames: &[Bytes]) -> Option<Bytes> {
    let all = Bytes::from(frames.concat());
    (all.first() == Some(&0) && all.len() >= PREFIX_BYTES).then(|| all.slice(PREFIX_BYTES..))
}

/// The end of a reply that is OK.
pub(crate) fn ok_trailers() -> HeaderMap {
    HeaderMap::from_iter([(HeaderName::from_static(STATUS), HeaderValue::from_static("0"))])
}

/// The status in trailers.
pub(crate) fn code(trailers: &HeaderMap) -> Code {
    trailers.get(STATUS).map_or(Code::Unknown, |code| Code::from_bytes(code.as_bytes()))
}

// === impl Rest ===

impl Rest {
    /// Nothing more is to come from anywhere.
    fn is_here(&self) -> bool {
        matches!(self, Self::Trailers(_))
    }

    /// The next frame; a body that ends without trailers has been lost.
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Refusal>>> {
        let (frame, lost) = match self {
            Self::Trailers(trailers) => return Poll::Ready(trailers.take().map(Frame::trailers).map(Ok)),
            Self::Upstream(body) => {
                (ready!(Pin::new(body).poll_frame(cx)).and_then(Result::ok), Refusal::ReplicaLost { attempts: 1 })
            }
            Self::Local(body) => {
                let lost = Refusal::Engine("a service of the gateway ended without a status");
                (ready!(Pin::new(body).poll_frame(cx)).and_then(Result::ok), lost)
            }
        };
        Poll::Ready(Some(frame.ok_or(lost)))
    }
}

// === impl ReplyBody ===

impl Body for ReplyBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = self.get_mut();
        if let Some(chunk) = this.frames.next() {
            return Poll::Ready(Some(Ok(Frame::data(chunk))));
        }
        if !this.rest.is_here()
            && let Poll::Ready(late) = this.cutoff.poll_late(cx)
        {
            return Poll::Ready(Some(Ok(this.refuse(&late))));
        }
        let frame = match this.rest.poll_frame(cx) {
            Poll::Ready(frame) => frame,
            Poll::Pending => Some(Err(ready!(this.cutoff.poll_drain(cx)))),
        };
        Poll::Ready(frame.map(|frame| match frame {
            Ok(frame) => Ok(this.pass(frame)),
            Err(refusal) => Ok(this.refuse(&refusal)),
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.frames.len() == 0 && matches!(self.rest, Rest::Trailers(None))
    }

    fn size_hint(&self) -> SizeHint {
        // Never exact: hyper would announce a content-length, which means nothing before trailers.
        SizeHint::default()
    }
}

impl ReplyBody {
    /// A frame for the client; the last one ends the flight.
    fn pass(&mut self, frame: Frame<Bytes>) -> Frame<Bytes> {
        match frame.into_trailers() {
            Ok(mut trailers) => {
                let report = Report::take(&mut trailers);
                let code = code(&trailers);
                if let Some(flight) = self.flight.take() {
                    flight.land(code, report);
                }
                self.record.status(code);
                self.rest = Rest::Trailers(None);
                Frame::trailers(trailers)
            }
            Err(data) => data,
        }
    }

    /// Ends the reply with the gateway's own trailers, and the stream to the replica with it.
    fn refuse(&mut self, refusal: &Refusal) -> Frame<Bytes> {
        self.record.refused(refusal);
        let flight = self.flight.take();
        if matches!(refusal, Refusal::ReplicaLost { .. }) {
            flight.into_iter().for_each(Flight::lose);
        }
        self.rest = Rest::Trailers(None);
        Frame::trailers(refusal.trailers())
    }
}
