//! Requests as values that cannot be wrong.

use chassis::refusal::Refusal;
use engine::{ItemError, Reason, TextInput, Truncation};
use host::bad_parameter;
use proto::embedding::v1::{self as pb, VectorEncoding, embed_input::Input};

/// Parameters of a call with their defaults applied.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Params {
    pub(crate) encoding: VectorEncoding,
    /// `None`: as the model's recipe says.
    pub(crate) normalize: Option<bool>,
    truncation: Truncation,
}

impl Params {
    pub(crate) fn parse(params: Option<&pb::EmbedParams>) -> Result<Self, Refusal> {
        let params = params.copied().unwrap_or_default();
        let truncation = match pb::Truncation::try_from(params.truncation) {
            Ok(pb::Truncation::Unspecified | pb::Truncation::Error) => Truncation::Error,
            Ok(pb::Truncation::End) => Truncation::End,
            Ok(pb::Truncation::Start | pb::Truncation::ChunkMean) | Err(_) => {
                return Err(bad_parameter("params.truncation", format!("{} is no truncation", params.truncation)));
            }
        };
        Ok(Self { encoding: host::encoding(params.encoding)?, normalize: params.normalize, truncation })
    }

    /// One input; the engine judges the text itself.
    pub(crate) fn input(self, input: pb::EmbedInput) -> Result<TextInput, ItemError> {
        match input.input {
            Some(Input::Text(text)) => Ok(TextInput { text, truncation: self.truncation }),
            Some(Input::TokenIds(_)) => Err(ItemError::new(Reason::BadParameter, "token ids are not taken yet")),
            None => Err(ItemError::new(Reason::Empty, "the input is not set; set its text")),
        }
    }
}

/// Bytes of the texts as received.
pub(crate) fn input_bytes(inputs: &[pb::EmbedInput]) -> u64 {
    let bytes = |input: &pb::EmbedInput| match &input.input {
        Some(Input::Text(text)) => text.len() as u64,
        Some(Input::TokenIds(tokens)) => 4 * tokens.ids.len() as u64,
        None => 0,
    };
    inputs.iter().map(bytes).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_f32_the_models_normalisation_and_no_silent_cut() {
        let expected = Params { encoding: VectorEncoding::F32, normalize: None, truncation: Truncation::Error };
        assert_eq!(Params::parse(None).unwrap(), expected);
        assert_eq!(Params::parse(Some(&pb::EmbedParams::default())).unwrap(), expected);
    }

    #[test]
    fn unknown_enum_values_are_refused_by_field() {
        let bad = |params: pb::EmbedParams| Params::parse(Some(&params)).unwrap_err();
        let encoding = bad(pb::EmbedParams { encoding: 99, ..Default::default() });
        assert_eq!((encoding.reason, encoding.field.as_deref()), ("BAD_PARAMETER", Some("params.encoding")));
        let truncation = bad(pb::EmbedParams { truncation: -1, ..Default::default() });
        assert_eq!((truncation.reason, truncation.field.as_deref()), ("BAD_PARAMETER", Some("params.truncation")));
    }
}
