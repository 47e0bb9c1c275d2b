//! Makes a digest work with every replica: the gateway keeps a copy of what a replica took by UploadImage, and puts the
//! bytes in the place of their digest before it sends a request.
//!
//! Which replica took an upload does not matter then, nor whether it still runs. Requests are taken apart no further than
//! that, and one that names no digest is only looked over: keys and lengths, no byte of an image.

mod upload;

use std::sync::Arc;

use bytes::{Buf, Bytes};
use chassis::{
    content::{Contents, Digest},
    units::bytes,
};
use prost::{
    DecodeError,
    encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field},
};

pub(crate) use self::upload::{Copied, Copying};
use crate::{
    config::Settings,
    refuse::Refusal,
    replay::{ByteBudget, PREFIX_BYTES, Replay},
    wire::{self, fields},
};

/// What a method has to do with contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    /// Its request may name them.
    Names,
    /// It brings one.
    Uploads,
}

const METHODS: [(&str, Use); 3] = [
    ("/tamis.vision.v1.VisionService/ClassifyImages", Use::Names),
    ("/tamis.vision.v1.VisionService/EmbedImages", Use::Names),
    ("/tamis.vision.v1.VisionService/UploadImage", Use::Uploads),
];

/// `images` of both requests that name contents.
const IMAGES: u32 = 2;
/// `ImageInput.encoded`.
const ENCODED: u32 = 1;
/// `ImageInput.digest`.
const DIGEST: u32 = 4;

/// What surrounds the images of a request at the most: an upload that leaves less room than this could never be named.
const SURROUNDINGS_BYTES: usize = 64 << 10;

/// The contents that the gateway holds.
pub(crate) struct Library {
    contents: Arc<Contents>,
    upload_bytes_max: usize,
    message_bytes_max: usize,
    /// For requests with images in the place of digests: these have a budget of their own, so that images named by a few
    /// bytes never take the room of other calls.
    named: Arc<ByteBudget>,
}

// === impl Use ===

impl Use {
    /// That of the method at a path.
    pub(crate) fn of(path: &str) -> Option<Self> {
        METHODS.iter().find(|(method, _)| *method == path).map(|(_, role)| *role)
    }
}

// === impl Library ===

impl Library {
    /// An empty one within the bounds of the settings.
    pub(crate) fn new(settings: &Settings) -> Self {
        let content = &settings.content;
        let (kept, uploads) = (bytes(content.bytes_max), bytes(content.uploads_bytes_max));
        let message_bytes_max = bytes(content.message_bytes_max).min(bytes(settings.hold.request_bytes_max));
        let upload_bytes_max = message_bytes_max.min(kept).min(uploads).saturating_sub(SURROUNDINGS_BYTES);
        let (contents, named) = (Arc::new(Contents::new(kept, uploads)), Arc::new(ByteBudget::new(kept)));
        Self { contents, upload_bytes_max, message_bytes_max, named }
    }

    /// What it holds.
    pub(crate) fn contents(&self) -> &Arc<Contents> {
        &self.contents
    }

    /// A copy of an upload on its way to a replica.
    pub(crate) fn copy(&self) -> Copied {
        Copied::new(self.contents.upload(self.upload_bytes_max))
    }

    /// A request with the images in the place of those digests that are known here. A replica answers for the others.
    pub(crate) fn resolve(&self, request: Replay) -> Result<Replay, Refusal> {
        let named = request.reader().is_some_and(|message| names_digest(message).unwrap_or(false));
        if !named {
            return Ok(request);
        }
        let message = Bytes::from(request.chunks().concat()).slice(PREFIX_BYTES..);
        let Some(message) = inline(message, |digest| self.contents.find(digest)) else { return Ok(request) };
        let length: usize = message.iter().map(Bytes::len).sum();
        let too_large = Refusal::ContentTooLarge { bytes: length as u64, bytes_max: self.message_bytes_max as u64 };
        if length > self.message_bytes_max {
            return Err(too_large);
        }
        let prefix = wire::prefix(length).ok_or(too_large)?;
        let pieces = std::iter::once(prefix).chain(message);
        Replay::of_pieces(pieces, &self.named).map_err(|not_held| not_held.into_refusal(self.message_bytes_max))
    }
}

/// A request with the bytes that `find` has in the place of their digests, in pieces that share the memory of both; `None`
/// if it has none of them, or if this is no request.
pub(crate) fn inline(message: Bytes, find: impl Fn(&Digest) -> Option<Bytes>) -> Option<Vec<Bytes>> {
    replace(message, IMAGES, |image| {
        let image = replace(image, DIGEST, |digest| {
            let digest = std::str::from_utf8(&digest).ok()?.parse().ok()?;
            Some((ENCODED, vec![find(&digest)?]))
        })?;
        Some((IMAGES, image))
    })
}

/// A message with another field in the place of those of a number for which `other` has one.
fn replace(message: Bytes, number: u32, other: impl Fn(Bytes) -> Option<(u32, Vec<Bytes>)>) -> Option<Vec<Bytes>> {
    let (mut pieces, mut replaced) = (Vec::new(), false);
    // What stays goes on in one piece, however many fields it is.
    let (mut kept, mut at) = (0, 0);
    for field in fields(message.clone()) {
        let field = field.ok()?;
        let start = at;
        at += field.whole.len();
        let eligible = field.number == number && field.kind == WireType::LengthDelimited;
        if let Some((number, content)) = eligible.then(|| other(field.content)).flatten() {
            pieces.extend((kept < start).then(|| message.slice(kept..start)));
            pieces.push(wire::head(number, content.iter().map(Bytes::len).sum()));
            pieces.extend(content);
            (kept, replaced) = (at, true);
        }
    }
    pieces.extend((kept < at).then(|| message.slice(kept..at)));
    replaced.then_some(pieces)
}

/// Whether a request names a digest, known or not.
fn names_digest(mut message: impl Buf) -> Result<bool, DecodeError> {
    while message.has_remaining() {
        let (number, kind) = decode_key(&mut message)?;
        if (number, kind) != (IMAGES, WireType::LengthDelimited) {
            skip_field(kind, number, &mut message, DecodeContext::default())?;
            continue;
        }
        let length = usize::try_from(decode_varint(&mut message)?).unwrap_or(usize::MAX);
        let Some(behind) = message.remaining().checked_sub(length) else { return Ok(false) };
        while message.remaining() > behind {
            let (number, kind) = decode_key(&mut message)?;
            if (number, kind) == (DIGEST, WireType::LengthDelimited) {
                return Ok(true);
            }
            skip_field(kind, number, &mut message, DecodeContext::default())?;
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests;
