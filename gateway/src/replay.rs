//! Holds the message of a unary call so that it can be sent again.
//!
//! The bytes are those that arrived, by reference: nothing is decoded, and only frames below 1 KiB are copied, into one
//! another. That copy is on purpose: h2 counts small DATA frames and closes a whole connection over too many, so a client
//! that sends a message byte by byte must not be repeated as such on a connection that others share; and a small slice
//! would keep the much larger read buffer alive that it was cut from.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll},
};

use bytes::{Buf, BufMut as _, Bytes, BytesMut};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt as _;

use crate::refuse::Refusal;

/// The flag and the length before a gRPC message.
pub(crate) const PREFIX_BYTES: usize = 5;
/// Frames below this are joined.
const SMALL_BYTES: usize = 1024;
/// Joined frames are at most this long: one DATA frame of the default size.
const JOINED_BYTES: usize = 16 * 1024;

/// A whole unary message.
#[derive(Clone, Debug)]
pub(crate) struct Replay {
    chunks: Arc<[Bytes]>,
    bytes: usize,
    reserved: Arc<Reserved>,
}

/// Bytes of memory that held messages may take in this process.
#[derive(Debug)]
pub(crate) struct ByteBudget {
    left: AtomicUsize,
    max: usize,
}

/// A part of the budget, given back when dropped.
#[derive(Debug)]
pub(crate) struct Reserved {
    budget: Arc<ByteBudget>,
    bytes: usize,
}

/// Why a message is not held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NotHeld {
    /// Larger than any message may be.
    TooLarge { bytes: u64 },
    /// Held messages take all the memory that they may.
    Full { bytes_max: usize },
    /// Not exactly one message.
    Malformed(&'static str),
    /// The client left before its message was whole.
    Gone,
}

/// Reads a body of one message of at most `message_bytes_max` bytes.
///
/// # Errors
/// At once, when the announced length already says that the message will not be taken.
pub(crate) async fn hold<B>(body: B, message_bytes_max: usize, budget: &Arc<ByteBudget>) -> Result<Replay, NotHeld>
where
    B: Body<Data = Bytes>,
{
    let announced = body.size_hint().lower();
    if announced > (message_bytes_max + PREFIX_BYTES) as u64 {
        return Err(NotHeld::TooLarge { bytes: announced });
    }
    let mut holder = Holder::new(message_bytes_max, budget);
    let mut body = std::pin::pin!(body);
    while let Some(frame) = body.frame().await {
        // Trailers of a request mean nothing in gRPC.
        if let Ok(data) = frame.map_err(|_| NotHeld::Gone)?.into_data() {
            holder.add(data)?;
        }
    }
    holder.finish()
}

/// Sends a held message.
#[derive(Debug)]
pub(crate) struct ReplayBody {
    replay: Replay,
    sent: usize,
    sent_bytes: usize,
}

// === impl Replay ===

impl Replay {
    /// A message of the gateway's own.
    pub(crate) fn of(message: Bytes) -> Self {
        let budget = Arc::new(ByteBudget::new(0));
        Self { bytes: message.len(), chunks: Arc::new([message]), reserved: Arc::new(Reserved::none_of(&budget)) }
    }

    /// A message, without prefix, that is a part of a held one and shares its memory.
    ///
    /// The prefix and the beginning are copied, for the same reason for which small frames are joined.
    pub(crate) fn part(message: &Bytes, whole: &Arc<Reserved>) -> Self {
        let copied = if message.len() < JOINED_BYTES + SMALL_BYTES { message.len() } else { JOINED_BYTES };
        let mut first = BytesMut::with_capacity(PREFIX_BYTES + copied);
        first.put_u8(0);
        first.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
        first.put_slice(&message[..copied]);
        let rest = message.slice(copied..);
        let chunks = [first.freeze()].into_iter().chain((!rest.is_empty()).then_some(rest)).collect();
        Self { chunks, bytes: PREFIX_BYTES + message.len(), reserved: Arc::clone(whole) }
    }

    /// The message without its prefix, and what it holds of the budget; `None` if it is compressed. It is copied if it
    /// came in several pieces.
    pub(crate) fn into_message(self) -> Option<(Bytes, Arc<Reserved>)> {
        let whole = match &*self.chunks {
            [one] => one.clone(),
            pieces => Bytes::from(pieces.concat()),
        };
        (whole.first() == Some(&0)).then(|| (whole.slice(PREFIX_BYTES..), self.reserved))
    }

    /// A message in pieces, prefix included, counted as all held messages are.
    pub(crate) fn of_pieces(
        pieces: impl IntoIterator<Item = Bytes>,
        budget: &Arc<ByteBudget>,
    ) -> Result<Self, NotHeld> {
        let mut holder = Holder::new(usize::MAX, budget);
        pieces.into_iter().try_for_each(|piece| holder.add(piece))?;
        holder.finish()
    }

    /// The message in the pieces in which it is held.
    pub(crate) fn chunks(&self) -> &[Bytes] {
        &self.chunks
    }

    /// Reads the message, without its prefix, where it lies; `None` if it is compressed.
    pub(crate) fn reader(&self) -> Option<Reader<'_>> {
        Reader::behind_prefix(&self.chunks)
    }

    /// Bytes with the prefix.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// A body that sends it.
    pub(crate) fn body(&self) -> ReplayBody {
        ReplayBody { replay: self.clone(), sent: 0, sent_bytes: 0 }
    }
}

/// A message that lies in pieces, read without being joined.
pub(crate) struct Reader<'a> {
    chunks: &'a [Bytes],
    /// In the first piece.
    at: usize,
    remaining: usize,
}

// === impl Reader ===

impl<'a> Reader<'a> {
    pub(crate) fn behind_prefix(chunks: &'a [Bytes]) -> Option<Self> {
        let mut reader = Self { chunks, at: 0, remaining: chunks.iter().map(Bytes::len).sum() };
        // Passes over empty pieces.
        reader.advance(0);
        let plain = reader.try_get_u8() == Ok(0);
        reader.advance((PREFIX_BYTES - 1).min(reader.remaining));
        plain.then_some(reader)
    }
}

impl Buf for Reader<'_> {
    fn remaining(&self) -> usize {
        self.remaining
    }

    fn chunk(&self) -> &[u8] {
        self.chunks.first().map_or(&[], |chunk| &chunk[self.at..])
    }

    fn advance(&mut self, count: usize) {
        assert!(count <= self.remaining, "{count} of {} bytes", self.remaining);
        self.remaining -= count;
        self.at += count;
        // Also over empty pieces: a chunk is empty at the end only.
        while let Some((first, rest)) = self.chunks.split_first()
            && self.at >= first.len()
        {
            (self.at, self.chunks) = (self.at - first.len(), rest);
        }
    }
}

// === impl ReplayBody ===

impl Body for ReplayBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let Some(chunk) = self.replay.chunks.get(self.sent).cloned() else { return Poll::Ready(None) };
        self.sent += 1;
        self.sent_bytes += chunk.len();
        Poll::Ready(Some(Ok(Frame::data(chunk))))
    }

    fn is_end_stream(&self) -> bool {
        self.sent == self.replay.chunks.len()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact((self.replay.bytes - self.sent_bytes) as u64)
    }
}

// === impl ByteBudget ===

impl ByteBudget {
    /// A budget of `max` bytes.
    pub(crate) fn new(max: usize) -> Self {
        Self { left: AtomicUsize::new(max), max }
    }

    fn take(&self, bytes: usize) -> bool {
        self.left.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(bytes)).is_ok()
    }
}

// === impl Reserved ===

impl Reserved {
    /// Nothing yet.
    pub(crate) fn none_of(budget: &Arc<ByteBudget>) -> Self {
        Self { budget: Arc::clone(budget), bytes: 0 }
    }

    /// Takes more, if as much is left.
    #[must_use]
    pub(crate) fn add(&mut self, bytes: usize) -> bool {
        let taken = self.budget.take(bytes);
        self.bytes += if taken { bytes } else { 0 };
        taken
    }

    /// Never gives it back: the budget counts what has passed, not what is there.
    pub(crate) fn spend(mut self) {
        self.bytes = 0;
    }

    /// The whole budget.
    pub(crate) fn bytes_max(&self) -> usize {
        self.budget.max
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.budget.left.fetch_add(self.bytes, Relaxed);
    }
}

/// Bytes that hold their part of a budget for as long as they live.
pub(crate) fn kept(bytes: Bytes, reserved: &Arc<Reserved>) -> Bytes {
    Bytes::from_owner(Kept { bytes, _reserved: Arc::clone(reserved) })
}

struct Kept {
    bytes: Bytes,
    _reserved: Arc<Reserved>,
}

impl AsRef<[u8]> for Kept {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// A message on its way in.
struct Holder {
    chunks: Vec<Bytes>,
    joined: BytesMut,
    prefix: Prefix,
    bytes: usize,
    message_bytes_max: usize,
    reserved: Reserved,
}

impl Holder {
    fn new(message_bytes_max: usize, budget: &Arc<ByteBudget>) -> Self {
        let reserved = Reserved::none_of(budget);
        let (chunks, joined) = (Vec::new(), BytesMut::new());
        Self { chunks, joined, prefix: Prefix::default(), bytes: 0, message_bytes_max, reserved }
    }

    fn add(&mut self, data: Bytes) -> Result<(), NotHeld> {
        self.bytes += data.len();
        if let Some(message_bytes) = self.prefix.read(&data)? {
            if message_bytes > self.message_bytes_max {
                return Err(NotHeld::TooLarge { bytes: message_bytes as u64 });
            }
            if self.bytes > PREFIX_BYTES + message_bytes {
                return Err(NotHeld::Malformed("a unary call has more than one message"));
            }
        }
        // What has arrived is reserved, not what is announced: announcing costs a client nothing.
        if !self.reserved.add(data.len()) {
            return Err(NotHeld::Full { bytes_max: self.reserved.bytes_max() });
        }
        if data.len() >= SMALL_BYTES {
            self.flush();
            self.chunks.push(data);
        } else {
            self.joined.extend_from_slice(&data);
            if self.joined.len() >= JOINED_BYTES {
                self.flush();
            }
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Replay, NotHeld> {
        let whole = self.prefix.message_bytes().map(|message_bytes| PREFIX_BYTES + message_bytes);
        if whole != Some(self.bytes) {
            return Err(NotHeld::Malformed("the message of a unary call is missing or cut short"));
        }
        self.flush();
        Ok(Replay { chunks: self.chunks.into(), bytes: self.bytes, reserved: Arc::new(self.reserved) })
    }

    fn flush(&mut self) {
        if !self.joined.is_empty() {
            self.chunks.push(self.joined.split().freeze());
        }
    }
}

/// The prefix of a message, which may arrive in pieces.
#[derive(Default)]
struct Prefix {
    bytes: [u8; PREFIX_BYTES],
    read: usize,
}

impl Prefix {
    fn read(&mut self, data: &[u8]) -> Result<Option<usize>, NotHeld> {
        let take = data.len().min(PREFIX_BYTES - self.read);
        self.bytes[self.read..self.read + take].copy_from_slice(&data[..take]);
        self.read += take;
        if self.read > 0 && self.bytes[0] > 1 {
            return Err(NotHeld::Malformed("the flag before the message is neither 0 nor 1"));
        }
        Ok(self.message_bytes())
    }

    fn message_bytes(&self) -> Option<usize> {
        let [_, a, b, c, d] = self.bytes;
        (self.read == PREFIX_BYTES).then(|| u32::from_be_bytes([a, b, c, d]) as usize)
    }
}

impl NotHeld {
    /// What the client is told.
    pub(crate) fn into_refusal(self, message_bytes_max: usize) -> Refusal {
        match self {
            Self::TooLarge { bytes } => Refusal::TooLarge { bytes, bytes_max: message_bytes_max as u64 },
            Self::Full { bytes_max } => Refusal::Full { what: "bytes of held messages", max: bytes_max },
            Self::Malformed(why) => Refusal::Malformed(why.into()),
            Self::Gone => Refusal::Cancelled,
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{StreamExt as _, stream};
    use http_body_util::StreamBody;
    use proptest::prelude::*;

    use super::*;

    const MAX: usize = 64 * 1024;

    fn message(payload: &[u8]) -> Vec<u8> {
        let mut message = vec![0];
        message.extend_from_slice(&u32::try_from(payload.len()).unwrap().to_be_bytes());
        message.extend_from_slice(payload);
        message
    }

    fn hold_pieces(pieces: Vec<Bytes>, budget: &Arc<ByteBudget>) -> Result<Replay, NotHeld> {
        let frames = stream::iter(pieces).map(|piece| Ok::<_, Infallible>(Frame::data(piece)));
        futures_util::FutureExt::now_or_never(hold(StreamBody::new(frames), MAX, budget)).unwrap()
    }

    fn check(message: &[u8], expected: NotHeld) {
        let budget = Arc::new(ByteBudget::new(2 * MAX));
        assert_eq!(hold_pieces(vec![Bytes::copy_from_slice(message)], &budget).unwrap_err(), expected);
        assert_eq!(budget.left.load(Relaxed), 2 * MAX);
    }

    #[test]
    fn not_exactly_one_message_is_malformed() {
        check(b"", NotHeld::Malformed("the message of a unary call is missing or cut short"));
        check(b"\0\0\0\0\x02a", NotHeld::Malformed("the message of a unary call is missing or cut short"));
        check(b"\0\0\0\0\x01ab", NotHeld::Malformed("a unary call has more than one message"));
        check(b"\x02\0\0\0\x01a", NotHeld::Malformed("the flag before the message is neither 0 nor 1"));
    }

    #[test]
    fn too_large_is_known_from_the_prefix() {
        check(b"\0\x7f\xff\xff\xff", NotHeld::TooLarge { bytes: 0x7fff_ffff });
    }

    #[test]
    fn the_budget_is_shared_and_given_back() {
        let budget = Arc::new(ByteBudget::new(1500));
        let payload = Bytes::from(message(&[7; 1000]));
        let held = hold_pieces(vec![payload.clone()], &budget).unwrap();
        assert_eq!(hold_pieces(vec![payload.clone()], &budget).unwrap_err(), NotHeld::Full { bytes_max: 1500 });
        let body = held.body();
        drop(held);
        assert!(hold_pieces(vec![payload.clone()], &budget).is_err(), "a body that is being sent is still held");
        drop(body);
        hold_pieces(vec![payload], &budget).unwrap();
    }

    #[test]
    fn a_message_of_many_small_frames_is_sent_in_few() {
        let pieces = message(&[1; 20_000]).into_iter().map(|byte| Bytes::copy_from_slice(&[byte])).collect();
        let held = hold_pieces(pieces, &Arc::new(ByteBudget::new(MAX))).unwrap();
        assert_eq!(held.chunks.len(), 2);
    }

    #[test]
    fn large_frames_are_not_copied() {
        let frame = Bytes::from(message(&[1; 5000]));
        let held = hold_pieces(vec![frame.clone()], &Arc::new(ByteBudget::new(MAX))).unwrap();
        assert_eq!(held.chunks[0].as_ptr(), frame.as_ptr());
    }

    #[test]
    fn a_compressed_message_is_not_taken_apart() {
        let budget = Arc::new(ByteBudget::new(MAX));
        assert!(hold_pieces(vec![Bytes::from_static(b"\x01\0\0\0\x01a")], &budget).unwrap().into_message().is_none());
    }

    #[test]
    fn a_part_keeps_the_whole_in_the_budget() {
        let budget = Arc::new(ByteBudget::new(MAX));
        let payload = vec![3; 40_000];
        let (whole, reserved) = hold_pieces(vec![message(&payload).into()], &budget).unwrap().into_message().unwrap();
        for length in [0, 10, 16_384, 17_000, 39_000] {
            let part = Replay::part(&whole.slice(..length), &reserved);
            let sent = futures_util::FutureExt::now_or_never(part.body().collect()).unwrap().unwrap().to_bytes();
            assert_eq!(sent, message(&payload[..length]));
            assert_eq!(part.bytes(), sent.len());
            assert!(part.chunks.iter().all(|chunk| chunk.len() >= SMALL_BYTES.min(sent.len())));
        }
        assert_eq!(budget.left.load(Relaxed), MAX - payload.len() - PREFIX_BYTES);
        drop(reserved);
        assert_eq!(budget.left.load(Relaxed), MAX);
    }

    proptest! {
        #[test]
        fn what_is_sent_is_what_came_however_it_was_cut(
            payload in proptest::collection::vec(any::<u8>(), 0..8192),
            cuts in proptest::collection::vec(0usize..8192, 0..24),
        ) {
            let message = Bytes::from(message(&payload));
            let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(message.len())).collect();
            cuts.sort_unstable();
            let ends = cuts.iter().copied().chain([message.len()]);
            let pieces = std::iter::once(0).chain(cuts.iter().copied()).zip(ends).map(|(a, b)| message.slice(a..b)).collect();
            let budget = Arc::new(ByteBudget::new(MAX));
            let held = hold_pieces(pieces, &budget).unwrap();
            prop_assert_eq!(held.bytes(), message.len());
            for _ in 0..2 {
                let sent = futures_util::FutureExt::now_or_never(held.body().collect()).unwrap().unwrap().to_bytes();
                prop_assert_eq!(&sent, &message);
            }
            drop(held);
            prop_assert_eq!(budget.left.load(Relaxed), MAX);
        }
    }
}
