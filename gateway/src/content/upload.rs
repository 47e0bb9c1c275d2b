//! An upload on its way to a replica, and the gateway's copy of it.
//!
//! The stream passes through frame by frame; what its messages carry is copied as it passes. Whether the copy counts is
//! the replica's word: it knows what an image is.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use chassis::content::{Contents, NotTaken, Upload};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use prost::{
    Message as _,
    encoding::{WireType, decode_key, decode_varint},
};
use proto::vision::v1 as pb;

use crate::{refuse::Refusal, replay::PREFIX_BYTES, reply::Reply};

/// `UploadImageRequest.chunk`.
const CHUNK: u32 = 1;
/// A key and a length or a number: two integers of at most ten bytes.
const HEAD_BYTES: usize = 20;

/// The gateway's copy of an upload, shared with the body that it is copied from.
#[derive(Clone)]
pub(crate) struct Copied(Arc<Mutex<Copy>>);

/// A request body whose content is copied as it passes.
pub(crate) struct Copying {
    body: Incoming,
    copied: Copied,
}

/// A copy and how it is going.
enum Copy {
    /// So far, so good.
    Reading(Reader, Upload),
    /// At a bound.
    NotTaken(NotTaken),
    /// Not what the contract says, or compressed, or settled: nothing to keep. The replica answers as it likes.
    Nothing,
}

/// Reads the messages of the stream, which lie in frames as they happened to be cut.
#[derive(Default)]
struct Reader {
    /// The start of what is read next, as long as it is not whole.
    head: Vec<u8>,
    /// Of the message; 0 between two.
    message_left: usize,
    /// Of the field's content.
    content_left: usize,
    /// The content is a chunk.
    chunk: bool,
}

/// What cannot be a stream of the contract's messages.
struct Unreadable;

// === impl Copied ===

impl Copied {
    pub(crate) fn new(upload: Upload) -> Self {
        Self(Arc::new(Mutex::new(Copy::Reading(Reader::default(), upload))))
    }

    /// The body that is copied from.
    pub(crate) fn from(&self, body: Incoming) -> Copying {
        Copying { body, copied: self.clone() }
    }

    /// Keeps the copy if the replica took the upload and names the same digest. What the replica took and the gateway
    /// could not is refused: its digest would work with one replica only.
    pub(crate) fn settle(self, reply: &Reply, contents: &Contents) -> Result<(), Refusal> {
        let Some(response) = reply.message().and_then(|message| pb::UploadImageResponse::decode(message).ok()) else {
            return Ok(());
        };
        let copy = std::mem::replace(&mut *self.lock(), Copy::Nothing);
        match copy {
            Copy::Reading(_, upload) => {
                let content = upload.finish();
                if response.digest == content.digest.to_string() {
                    contents.keep(content);
                }
                Ok(())
            }
            Copy::NotTaken(NotTaken::TooLarge { bytes_max }) => Err(Refusal::UploadTooLarge { bytes_max }),
            Copy::NotTaken(NotTaken::Full { bytes_max }) => {
                Err(Refusal::Full { what: "bytes of uploads under way", max: bytes_max })
            }
            Copy::Nothing => Ok(()),
        }
    }

    fn add(&self, data: &[u8]) {
        let mut copy = self.lock();
        if let Copy::Reading(reader, upload) = &mut *copy {
            match reader.read(data, |chunk| upload.add(chunk)) {
                Ok(Ok(())) => {}
                Ok(Err(not_taken)) => *copy = Copy::NotTaken(not_taken),
                Err(Unreadable) => *copy = Copy::Nothing,
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Copy> {
        // A copy that a panic left half done has another digest.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Reader ===

impl Reader {
    /// Reads on, and gives every piece of a chunk to `take` until that refuses one.
    fn read<E>(
        &mut self,
        mut data: &[u8],
        mut take: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<Result<(), E>, Unreadable> {
        while !data.is_empty() {
            if self.content_left > 0 {
                let (content, rest) = data.split_at(self.content_left.min(data.len()));
                self.content_left -= content.len();
                self.message_left -= content.len();
                data = rest;
                if self.chunk
                    && let Err(refused) = take(content)
                {
                    return Ok(Err(refused));
                }
                continue;
            }
            let (&byte, rest) = data.split_first().ok_or(Unreadable)?;
            data = rest;
            self.head.push(byte);
            if self.message_left == 0 { self.prefix()? } else { self.field()? }
        }
        Ok(Ok(()))
    }

    /// One more byte of the prefix has come.
    fn prefix(&mut self) -> Result<(), Unreadable> {
        let Ok([flag, length @ ..]) = <[u8; PREFIX_BYTES]>::try_from(self.head.as_slice()) else { return Ok(()) };
        if flag != 0 {
            return Err(Unreadable);
        }
        self.message_left = u32::from_be_bytes(length) as usize;
        self.head.clear();
        Ok(())
    }

    /// One more byte of a field's head has come.
    fn field(&mut self) -> Result<(), Unreadable> {
        self.message_left -= 1;
        let Some((content, chunk)) = field_head(&self.head) else {
            let goes_on = self.head.len() < HEAD_BYTES && self.message_left > 0;
            return if goes_on { Ok(()) } else { Err(Unreadable) };
        };
        if content > self.message_left {
            return Err(Unreadable);
        }
        (self.content_left, self.chunk) = (content, chunk);
        self.head.clear();
        Ok(())
    }
}

/// Bytes of content behind a whole head, and whether they are a chunk.
fn field_head(mut head: &[u8]) -> Option<(usize, bool)> {
    let (number, kind) = decode_key(&mut head).ok()?;
    Some(match kind {
        WireType::LengthDelimited => (usize::try_from(decode_varint(&mut head).ok()?).ok()?, number == CHUNK),
        WireType::Varint => decode_varint(&mut head).ok().map(|_| (0, false))?,
        WireType::SixtyFourBit => (8, false),
        WireType::ThirtyTwoBit => (4, false),
        // No contract here has groups.
        WireType::StartGroup | WireType::EndGroup => return None,
    })
}

// === impl Copying ===

impl Body for Copying {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
        {
            self.copied.add(data);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use proptest::prelude::*;

    use super::*;
    use crate::wire;

    fn message(payload: &[u8]) -> Vec<u8> {
        [&wire::prefix(payload.len()).unwrap()[..], payload].concat()
    }

    fn chunk(bytes: &[u8]) -> Vec<u8> {
        message(&pb::UploadImageRequest { chunk: Bytes::copy_from_slice(bytes) }.encode_to_vec())
    }

    /// What is read of these frames.
    fn read<'a>(frames: impl IntoIterator<Item = &'a [u8]>) -> Option<Vec<u8>> {
        let (mut reader, mut taken) = (Reader::default(), Vec::new());
        for frame in frames {
            let take = |bytes: &[u8]| {
                taken.extend_from_slice(bytes);
                Ok::<_, Infallible>(())
            };
            let Ok(Ok(())) = reader.read(frame, take) else { return None };
        }
        Some(taken)
    }

    #[test]
    fn other_fields_are_passed_over() {
        let chunk = pb::UploadImageRequest { chunk: Bytes::from_static(b"abc") }.encode_to_vec();
        // 2: a number, 3: eight bytes, 4: four bytes, 5: a text.
        let others = b"\x10\x96\x01\x19\x01\x02\x03\x04\x05\x06\x07\x08\x25\x01\x02\x03\x04\x2a\x02hi";
        let stream = [message(&[&others[..], &chunk, others].concat()), message(b""), message(&chunk)].concat();
        assert_eq!(read([&stream[..]]).unwrap(), b"abcabc");
    }

    #[test]
    fn what_the_contract_does_not_say_is_not_copied() {
        for stream in [
            &b"\x01\0\0\0\x05\x0a\x03abc"[..], // compressed
            b"\0\0\0\0\x05\x0a\x09abc",        // longer than its message
            b"\0\0\0\0\x02\x0b\x0c",           // a group
            b"\0\0\0\0\x01\x0a",               // a key without a length
            b"\0\0\0\0\x20\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
        ] {
            assert_eq!(read([stream]), None, "{stream:?}");
        }
    }

    #[test]
    fn a_chunk_that_is_not_taken_ends_the_copy() {
        let mut reader = Reader::default();
        assert!(matches!(reader.read(&chunk(b"abc"), |_| Err(7)), Ok(Err(7))));
    }

    proptest! {
        #[test]
        fn chunks_are_read_however_the_stream_is_cut(
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..6),
            cuts in prop::collection::vec(0usize..1800, 0..12),
        ) {
            let stream: Vec<u8> = chunks.iter().flat_map(|bytes| chunk(bytes)).collect();
            let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(stream.len())).collect();
            cuts.sort_unstable();
            let ends = cuts.iter().copied().chain([stream.len()]);
            let frames = std::iter::once(0).chain(cuts.iter().copied()).zip(ends).map(|(a, b)| &stream[a..b]);
            prop_assert_eq!(read(frames), Some(chunks.concat()));
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            _ = read([&bytes[..]]);
        }
    }
}
