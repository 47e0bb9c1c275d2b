//! The messages that a fan-out answers with, built around replies that stay the bytes that came.

use std::{sync::Arc, time::Duration};

use bytes::{BufMut as _, Bytes, BytesMut};
use prost::{
    Message as _,
    encoding::{WireType, encode_key, encode_varint},
};
use proto::gateway::v1 as pb;

use crate::{
    replay::{PREFIX_BYTES, Reserved, kept},
    wire::{put_content, put_number},
};

/// Pieces below this are copied into one another: each piece becomes a DATA frame.
const SMALL_BYTES: usize = 1024;

/// A message, or a part of one, in pieces: whatever is large is not copied.
#[derive(Debug, Default)]
pub(super) struct Pieces {
    whole: Vec<Bytes>,
    last: BytesMut,
    bytes: usize,
}

/// The reply to a step and its place in the memory of the gateway.
#[derive(Debug)]
pub(super) struct Payload {
    pieces: Vec<Bytes>,
    bytes: usize,
}

/// What became of a step.
#[derive(Debug)]
pub(super) struct Ended {
    /// Its place in the request.
    pub(super) index: usize,
    pub(super) outcome: Result<Payload, Box<pb::StepError>>,
    pub(super) elapsed: Duration,
    pub(super) attempts: u32,
}

// === impl Pieces ===

impl Pieces {
    /// These, as one message with the prefix of gRPC, for DATA frames.
    pub(super) fn framed(self) -> Vec<Bytes> {
        let mut framed = Self::default();
        framed.last.put_u8(0);
        framed.last.put_u32(u32::try_from(self.bytes).unwrap_or(u32::MAX));
        framed.append(self);
        framed.flush();
        framed.whole
    }

    /// Appends a message field.
    pub(super) fn put_message(&mut self, number: u32, message: Self) {
        self.put_head(number, message.bytes);
        self.append(message);
    }

    /// Appends a number.
    pub(super) fn put_number(&mut self, number: u32, value: u64) {
        let before = self.last.len();
        put_number(&mut self.last, number, value);
        self.bytes += self.last.len() - before;
    }

    /// Appends text, or an encoded message.
    pub(super) fn put_content(&mut self, number: u32, content: &[u8]) {
        let before = self.last.len();
        put_content(&mut self.last, number, content);
        self.bytes += self.last.len() - before;
    }

    fn put_head(&mut self, number: u32, bytes: usize) {
        let before = self.last.len();
        encode_key(number, WireType::LengthDelimited, &mut self.last);
        encode_varint(bytes as u64, &mut self.last);
        self.bytes += self.last.len() - before;
    }

    fn append(&mut self, other: Self) {
        other.whole.into_iter().chain([other.last.freeze()]).for_each(|piece| self.push(piece));
    }

    fn push(&mut self, piece: Bytes) {
        self.bytes += piece.len();
        if piece.len() < SMALL_BYTES {
            self.last.put_slice(&piece);
        } else {
            self.flush();
            self.whole.push(piece);
        }
    }

    fn flush(&mut self) {
        if !self.last.is_empty() {
            self.whole.push(self.last.split().freeze());
        }
    }
}

// === impl Payload ===

impl Payload {
    /// The one message in the DATA frames of a reply, without its prefix; `None` if there is no such or if it is
    /// compressed. What it has reserved is given back when the last of its bytes has been sent.
    pub(super) fn read(frames: Vec<Bytes>, reserved: Reserved) -> Option<Self> {
        let (mut prefix, mut pieces, mut bytes) = (BytesMut::with_capacity(PREFIX_BYTES), Vec::new(), 0);
        let reserved = Arc::new(reserved);
        for mut frame in frames {
            let of_prefix = frame.split_to(frame.len().min(PREFIX_BYTES - prefix.len()));
            prefix.put_slice(&of_prefix);
            bytes += frame.len();
            if !frame.is_empty() {
                pieces.push(kept(frame, &reserved));
            }
        }
        let mut expected = vec![0];
        expected.put_u32(u32::try_from(bytes).ok()?);
        (prefix == expected).then_some(Self { pieces, bytes })
    }
}

// === impl Ended ===

impl Ended {
    /// As a `StepResult` of the step with this id, whose call stands in the field `number`.
    pub(super) fn into_result(self, id: &str, number: u32) -> Pieces {
        let mut result = Pieces::default();
        result.put_content(1, id.as_bytes());
        let elapsed = prost_types::Duration::try_from(self.elapsed).unwrap_or_default();
        result.put_content(20, &elapsed.encode_to_vec());
        result.put_number(21, self.attempts.into());
        match self.outcome {
            Ok(Payload { pieces, bytes }) => {
                result.put_head(number, bytes);
                pieces.into_iter().for_each(|piece| result.push(piece));
            }
            Err(error) => result.put_content(19, &error.encode_to_vec()),
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proto::embedding::v1::EmbedResponse;

    use super::*;
    use crate::replay::ByteBudget;

    fn budget() -> Arc<ByteBudget> {
        Arc::new(ByteBudget::new(1 << 20))
    }

    fn ended(outcome: Result<Payload, Box<pb::StepError>>) -> Ended {
        Ended { index: 0, outcome, elapsed: Duration::from_millis(1500), attempts: 2 }
    }

    /// A reply with a field of no contract, in frames of this length.
    fn reply(space_id: &str, length: usize) -> Vec<Bytes> {
        let mut message = EmbedResponse { space_id: space_id.into(), ..EmbedResponse::default() }.encode_to_vec();
        message.extend_from_slice(b"\xfa\x3e\x03abc");
        let mut framed = BytesMut::new();
        framed.put_u8(0);
        framed.put_u32(message.len() as u32);
        framed.put_slice(&message);
        framed.chunks(length).map(Bytes::copy_from_slice).collect()
    }

    fn response(result: Pieces) -> (pb::FanOutResponse, Bytes) {
        let mut response = Pieces::default();
        response.put_message(1, result);
        response.put_number(2, 1);
        let framed = Bytes::from(response.framed().concat());
        assert_eq!(framed[..5], [&[0][..], &(framed.len() as u32 - 5).to_be_bytes()].concat());
        (pb::FanOutResponse::decode(framed.slice(5..)).unwrap(), framed)
    }

    #[test]
    fn a_failure_is_a_result() {
        let error = pb::StepError { code: 14, message: "gone".into(), ..pb::StepError::default() };
        let (response, _) = response(ended(Err(Box::new(error.clone()))).into_result("a", 2));
        let elapsed = Some(prost_types::Duration { seconds: 1, nanos: 500_000_000 });
        let outcome = Some(pb::step_result::Outcome::Error(error));
        assert_eq!(response.results, [pb::StepResult { id: "a".into(), outcome, elapsed, attempts: 2 }]);
        assert!(response.degraded);
    }

    #[test]
    fn what_is_not_one_message_is_no_payload() {
        let reserved = || Reserved::none_of(&budget());
        let read = |frames: &[&'static [u8]]| {
            Payload::read(frames.iter().map(|frame| Bytes::from_static(frame)).collect(), reserved()).is_some()
        };
        assert!(read(&[b"\0\0\0\0\0"]) && read(&[b"\0\0", b"\0\0\x01", b"a"]));
        assert!(!read(&[]) && !read(&[b"\0\0\0"]) && !read(&[b"\0\0\0\0\x02a"]) && !read(&[b"\x01\0\0\0\x01a"]));
    }

    #[test]
    fn memory_is_given_back_with_the_last_byte() {
        let budget = budget();
        let frames = reply(&"x".repeat(100_000), 40_000);
        let pieces: Vec<_> = frames.iter().map(|frame| frame.as_ptr()).collect();
        let mut reserved = Reserved::none_of(&budget);
        assert!(reserved.add(1 << 20));
        let payload = Payload::read(frames, reserved).unwrap();
        let mut sent = ended(Ok(payload)).into_result("a", 2).framed();
        assert!(sent.iter().any(|frame| frame.as_ptr() == pieces[1]), "large frames are not copied");
        assert!(!Reserved::none_of(&budget).add(1));
        sent.clear();
        assert!(Reserved::none_of(&budget).add(1 << 20));
    }

    proptest! {
        #[test]
        fn a_reply_passes_byte_for_byte_however_it_was_cut(length in 1usize..5000, text in "[a-z]{0,4000}") {
            let payload = Payload::read(reply(&text, length), Reserved::none_of(&budget())).unwrap();
            let (response, bytes) = response(ended(Ok(payload)).into_result("a", 2));
            let Some(pb::step_result::Outcome::Embed(embed)) = &response.results[0].outcome else { panic!() };
            prop_assert_eq!(&embed.space_id, &text);
            prop_assert!(bytes.windows(6).any(|window| window == b"\xfa\x3e\x03abc"), "the unknown field is lost");
        }
    }
}
