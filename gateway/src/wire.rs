//! Protobuf messages as the fields that they consist of.
//!
//! The gateway takes messages apart and puts them together without knowing all that is in them: what a newer client or
//! service has added passes through. Two rules of the encoding help: one message's bytes after another's merge the two,
//! and of a field that stands twice the last one counts.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, encode_key, encode_varint, skip_field};

/// One field of a message.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Field {
    /// Its number.
    pub(crate) number: u32,
    /// How it is written.
    pub(crate) kind: WireType,
    /// The field as it stands, with its key.
    pub(crate) whole: Bytes,
    /// The content of a length-delimited field: text, bytes or a message; empty for the others.
    pub(crate) content: Bytes,
}

impl Field {
    /// The value of an integer, an enumeration or a bool; `None` if it is written as anything else.
    pub(crate) fn value(&self) -> Option<u64> {
        let mut rest = self.whole.clone();
        decode_key(&mut rest).ok().filter(|(_, kind)| *kind == WireType::Varint)?;
        decode_varint(&mut rest).ok()
    }
}

/// A message that ends too early, or is none.
#[derive(Debug, thiserror::Error)]
#[error("not a protobuf message: {0}")]
pub(crate) struct Malformed(#[from] prost::DecodeError);

/// The fields of a message in the order in which they stand. They share its memory.
pub(crate) fn fields(message: Bytes) -> impl Iterator<Item = Result<Field, Malformed>> {
    let mut rest = message;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let field = field(&mut rest);
        if field.is_err() {
            // What stands behind a fault has no meaning.
            rest.clear();
        }
        Some(field.map_err(Malformed))
    })
}

fn field(rest: &mut Bytes) -> Result<Field, prost::DecodeError> {
    let start = rest.clone();
    let (number, kind) = decode_key(rest)?;
    let mut content = Bytes::new();
    if kind == WireType::LengthDelimited {
        let mut after = rest.clone();
        let length = decode_varint(&mut after)?;
        let length = usize::try_from(length).unwrap_or(usize::MAX).min(after.len());
        content = after.slice(..length);
    }
    // It also refuses a length beyond the end.
    skip_field(kind, number, rest, DecodeContext::default())?;
    let whole = start.slice(..start.len() - rest.remaining());
    Ok(Field { number, kind, whole, content })
}

/// The flag and the length that stand before a message that is not compressed; `None` if it is too long for any.
pub(crate) fn prefix(length: usize) -> Option<Bytes> {
    let [a, b, c, d] = u32::try_from(length).ok()?.to_be_bytes();
    Some(Bytes::copy_from_slice(&[0, a, b, c, d]))
}

/// The key and the length that stand before the content of a length-delimited field.
pub(crate) fn head(number: u32, length: usize) -> Bytes {
    let mut head = BytesMut::new();
    encode_key(number, WireType::LengthDelimited, &mut head);
    encode_varint(length as u64, &mut head);
    head.freeze()
}

/// Appends a length-delimited field: text, bytes or a message.
pub(crate) fn put_content(message: &mut BytesMut, number: u32, content: &[u8]) {
    encode_key(number, WireType::LengthDelimited, message);
    encode_varint(content.len() as u64, message);
    message.put_slice(content);
}

/// Appends a number: an integer, an enumeration's value or a bool.
pub(crate) fn put_number(message: &mut BytesMut, number: u32, value: u64) {
    encode_key(number, WireType::Varint, message);
    encode_varint(value, message);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message as _;
    use proto::embedding::v1 as pb;

    use super::*;

    #[test]
    fn fields_are_what_the_message_consists_of() {
        let result = pb::EmbedResult { index: 7, token_count: 300, ..Default::default() };
        let response = pb::EmbedResponse { results: vec![result], space_id: "space".into(), ..Default::default() };
        let bytes = Bytes::from(response.encode_to_vec());
        let fields: Vec<_> = fields(bytes.clone()).collect::<Result<_, _>>().unwrap();
        assert_eq!(fields.iter().map(|field| field.number).collect::<Vec<_>>(), [1, 3]);
        assert_eq!(pb::EmbedResult::decode(fields[0].content.clone()).unwrap(), result_of(&response));
        assert_eq!(fields[1].content, "space");
        let joined: Vec<u8> = fields.iter().flat_map(|field| field.whole.to_vec()).collect();
        assert_eq!(joined, bytes);
    }

    fn result_of(response: &pb::EmbedResponse) -> pb::EmbedResult {
        response.results[0].clone()
    }

    #[test]
    fn a_later_number_replaces_an_earlier_one() {
        let mut bytes = BytesMut::from(&pb::EmbedResult { index: 7, ..Default::default() }.encode_to_vec()[..]);
        put_number(&mut bytes, 1, 32);
        assert_eq!(pb::EmbedResult::decode(bytes.freeze()).unwrap().index, 32);
    }

    #[test]
    fn a_number_is_read_back_and_nothing_else_is_one() {
        let mut bytes = BytesMut::new();
        put_number(&mut bytes, 1, 300);
        put_content(&mut bytes, 2, b"\x07");
        let values: Vec<_> = fields(bytes.freeze()).map(|field| field.unwrap().value()).collect();
        assert_eq!(values, [Some(300), None]);
    }

    #[test]
    fn content_is_read_back() {
        let mut bytes = BytesMut::new();
        put_content(&mut bytes, 3, b"space");
        assert_eq!(pb::EmbedResponse::decode(bytes.freeze()).unwrap().space_id, "space");
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic_or_go_on_for_ever(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let bytes = Bytes::from(bytes);
            let read: Vec<_> = fields(bytes.clone()).collect();
            prop_assert!(read.len() <= bytes.len());
            if read.iter().all(Result::is_ok) {
                let joined: Vec<u8> = read.into_iter().flat_map(|field| field.unwrap().whole.to_vec()).collect();
                prop_assert_eq!(joined, bytes.to_vec());
            }
        }
    }
}
