//! Requests as values that cannot be wrong.

use engine::{Content, First, Role, TextInput, Truncation, Work};
use proto::classification::v1 as pb;

/// One input; the engine judges the text itself. A detector must not be blinded by length, and one that answers nothing is
/// blind: what does not fit is cut, and the result says so.
pub(crate) fn input(input: pb::TextInput) -> TextInput {
    let content = match input.text_pair {
        None => Content::Text(input.text, Role::Symmetric),
        Some(second) => Content::Pair(First::text(input.text), second),
    };
    TextInput { content, work: Work::Compute(Truncation::End) }
}

/// Bytes of the texts as received.
pub(crate) fn input_bytes(inputs: &[pb::TextInput]) -> u64 {
    inputs.iter().map(|input| (input.text.len() + input.text_pair.as_ref().map_or(0, String::len)) as u64).sum()
}
