//! Requests as values that cannot be wrong.

use engine::{TextInput, Truncation};
use proto::classification::v1 as pb;

/// One input; the engine judges the text itself. A detector must not be blinded by length, and one that answers nothing is
/// blind: what does not fit is cut, and the result says so.
pub(crate) fn input(input: pb::TextInput) -> TextInput {
    TextInput { text: input.text, truncation: Truncation::End }
}

/// Bytes of the texts as received.
pub(crate) fn input_bytes(inputs: &[pb::TextInput]) -> u64 {
    inputs.iter().map(|input| input.text.len() as u64).sum()
}
