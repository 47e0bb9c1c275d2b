//! Requests as values that cannot be wrong.

use engine::{Content, First, ItemError, Reason, Role, TextInput, Truncation, Work};
use proto::classification::v1 as pb;

/// A detector must not be blinded by length, and one that answers nothing is blind: what does not fit is cut, and the
/// result says so.
const CUT: Work = Work::Compute(Truncation::End);

/// Whether a model reads two texts together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pairs {
    /// It has an encoder of its own for its labels.
    Taken,
    /// It makes its labels from the vector of a text.
    Refused,
}

/// One input; the engine judges the text itself.
pub(crate) fn input(input: pb::TextInput, pairs: Pairs) -> Result<TextInput, ItemError> {
    match (input.text_pair, pairs) {
        (None, _) => Ok(text(input.text)),
        (Some(second), Pairs::Taken) => {
            Ok(TextInput { content: Content::Pair(First::text(input.text), second), work: CUT })
        }
        (Some(_), Pairs::Refused) => {
            let message = "text_pair is set, but the labels are made from the embedding of one text";
            Err(ItemError::new(Reason::BadParameter, message))
        }
    }
}

/// A text that stands alone.
pub(crate) fn text(text: String) -> TextInput {
    TextInput { content: Content::Text(text, Role::Symmetric), work: CUT }
}

/// Bytes of the texts as received.
pub(crate) fn input_bytes(inputs: &[pb::TextInput]) -> u64 {
    inputs.iter().map(|input| (input.text.len() + input.text_pair.as_ref().map_or(0, String::len)) as u64).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_is_refused_where_labels_are_made_from_an_embedding() {
        let pair = || pb::TextInput { text: "a".into(), text_pair: Some("b".into()) };
        assert!(matches!(input(pair(), Pairs::Taken).unwrap().content, Content::Pair(..)));
        let error = input(pair(), Pairs::Refused).unwrap_err();
        assert_eq!(error.reason, Reason::BadParameter);
        let alone = pb::TextInput { text: "a".into(), text_pair: None };
        assert!(matches!(input(alone, Pairs::Refused).unwrap().content, Content::Text(..)));
        assert_eq!(input_bytes(&[pair(), pair()]), 4);
    }
}
