//! Requests as values that cannot be wrong.

use chassis::refusal::Refusal;
use engine::{Content, ItemError, Reason, Role, TextInput, Truncation, Work};
use host::bad_parameter;
use proto::embedding::v1::{self as pb, VectorEncoding, VectorLayout, embed_input::Input};

/// Parameters of a call with their defaults applied.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Params {
    pub(crate) encoding: VectorEncoding,
    /// All vectors stand in one matrix.
    pub(crate) matrix: bool,
    /// `None`: as the model's recipe says.
    pub(crate) normalize: Option<bool>,
    /// Components to keep, at least 1; `None`: all.
    pub(crate) dimensions: Option<u32>,
    truncation: Truncation,
    role: Role,
}

impl Params {
    pub(crate) fn parse(params: Option<&pb::EmbedParams>) -> Result<Self, Refusal> {
        let params = params.copied().unwrap_or_default();
        let truncation = match pb::Truncation::try_from(params.truncation) {
            Ok(pb::Truncation::Unspecified | pb::Truncation::Error) => Truncation::Error,
            Ok(pb::Truncation::End) => Truncation::End,
            Ok(pb::Truncation::Start) => Truncation::Start,
            Ok(pb::Truncation::ChunkMean) => Truncation::ChunkMean,
            Err(_) => {
                return Err(bad_parameter("params.truncation", format!("{} is no truncation", params.truncation)));
            }
        };
        let encoding = host::encoding(params.encoding)?;
        let matrix = match VectorLayout::try_from(params.layout) {
            Ok(VectorLayout::Unspecified | VectorLayout::PerItem) => false,
            Ok(VectorLayout::Matrix) if encoding == VectorEncoding::FloatList => {
                return Err(bad_parameter(
                    "params.layout",
                    "a list of numbers has no matrix; ask for another encoding",
                ));
            }
            Ok(VectorLayout::Matrix) => true,
            Err(_) => return Err(bad_parameter("params.layout", format!("{} is no vector layout", params.layout))),
        };
        if params.dimensions == Some(0) {
            return Err(bad_parameter("params.dimensions", "dimensions is 0; keep 1 component or more"));
        }
        let (normalize, dimensions) = (params.normalize, params.dimensions);
        let role = role("params.role", params.role)?;
        Ok(Self { encoding, matrix, normalize, dimensions, truncation, role })
    }

    /// One input; the engine judges the text itself.
    pub(crate) fn input(self, input: pb::EmbedInput) -> Result<TextInput, ItemError> {
        let content = match input.input {
            Some(Input::Text(text)) => Content::Text(text, self.role),
            Some(Input::TokenIds(tokens)) => Content::Tokens(tokens.ids),
            None => return Err(ItemError::new(Reason::Empty, "the input is not set; set its text or its token_ids")),
        };
        Ok(TextInput { content, work: Work::Compute(self.truncation) })
    }
}

/// The role that a field names.
pub(crate) fn role(field: &str, value: i32) -> Result<Role, Refusal> {
    match pb::InputRole::try_from(value) {
        Ok(pb::InputRole::Unspecified | pb::InputRole::Symmetric) => Ok(Role::Symmetric),
        Ok(pb::InputRole::Query) => Ok(Role::Query),
        Ok(pb::InputRole::Document) => Ok(Role::Document),
        Err(_) => Err(bad_parameter(field, format!("{value} is no input role"))),
    }
}

/// Bytes of the inputs as received; four for each token id.
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
        let expected = Params {
            encoding: VectorEncoding::F32,
            matrix: false,
            normalize: None,
            dimensions: None,
            truncation: Truncation::Error,
            role: Role::Symmetric,
        };
        assert_eq!(Params::parse(None).unwrap(), expected);
        assert_eq!(Params::parse(Some(&pb::EmbedParams::default())).unwrap(), expected);
    }

    #[test]
    fn values_out_of_their_bounds_are_refused_by_field() {
        let bad = |params: pb::EmbedParams, field: &str| {
            let refusal = Params::parse(Some(&params)).unwrap_err();
            assert_eq!((refusal.reason, refusal.field.as_deref()), ("BAD_PARAMETER", Some(field)));
        };
        let params = pb::EmbedParams::default;
        bad(pb::EmbedParams { encoding: 99, ..params() }, "params.encoding");
        bad(pb::EmbedParams { truncation: -1, ..params() }, "params.truncation");
        bad(pb::EmbedParams { role: 4, ..params() }, "params.role");
        bad(pb::EmbedParams { layout: 3, ..params() }, "params.layout");
        bad(pb::EmbedParams { dimensions: Some(0), ..params() }, "params.dimensions");
        let list = VectorEncoding::FloatList.into();
        bad(pb::EmbedParams { layout: VectorLayout::Matrix.into(), encoding: list, ..params() }, "params.layout");
    }
}
