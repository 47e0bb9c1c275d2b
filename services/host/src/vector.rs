//! Vectors on the wire.

use chassis::refusal::Refusal;
use engine::ItemError;
use proto::{
    common::v1 as common,
    embedding::v1::{self as pb, VectorEncoding, embed_result::Outcome},
};

use crate::{bad_parameter, status};

/// The encoding that a request asks for.
///
/// # Errors
/// BAD_PARAMETER for a value that the contract does not have.
pub fn encoding(value: i32) -> Result<VectorEncoding, Refusal> {
    match VectorEncoding::try_from(value) {
        Ok(VectorEncoding::Unspecified) => Ok(VectorEncoding::F32),
        Ok(encoding @ (VectorEncoding::F32 | VectorEncoding::FloatList)) => Ok(encoding),
        Ok(_) | Err(_) => Err(bad_parameter("params.encoding", format!("{value} is no vector encoding"))),
    }
}

/// A vector with what is said about its input.
pub struct Vector {
    /// Its components.
    pub values: Vec<f32>,
    /// Tokens that were computed; 0 for an image.
    pub tokens: u32,
    /// The input was cut.
    pub truncated: bool,
}

/// The results of a call, in order.
pub fn results(
    outcomes: impl IntoIterator<Item = Result<Vector, ItemError>>,
    encoding: VectorEncoding,
) -> Vec<pb::EmbedResult> {
    let result = |(index, outcome): (usize, Result<Vector, ItemError>)| {
        let index = u32::try_from(index).unwrap_or(u32::MAX);
        match outcome {
            Ok(vector) => pb::EmbedResult {
                index,
                token_count: vector.tokens,
                truncated: vector.truncated,
                outcome: Some(Outcome::Embedding(write(vector.values, encoding))),
            },
            Err(error) => {
                let error: common::ItemError = status::of_item(error);
                pb::EmbedResult { index, outcome: Some(Outcome::Error(error)), ..pb::EmbedResult::default() }
            }
        }
    };
    outcomes.into_iter().enumerate().map(result).collect()
}

fn write(values: Vec<f32>, encoding: VectorEncoding) -> pb::Embedding {
    let dimensions = u32::try_from(values.len()).unwrap_or(u32::MAX);
    let written = pb::Embedding { dimensions, encoding: encoding.into(), ..pb::Embedding::default() };
    match encoding {
        VectorEncoding::FloatList => pb::Embedding { values, ..written },
        VectorEncoding::F32 | VectorEncoding::Unspecified => {
            let data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            pb::Embedding { data: data.into(), ..written }
        }
        VectorEncoding::F16 | VectorEncoding::I8 | VectorEncoding::Binary => unreachable!("refused by `encoding`"),
    }
}

#[cfg(test)]
mod tests {
    use engine::Reason;

    use super::*;

    fn vector() -> Result<Vector, ItemError> {
        Ok(Vector { values: vec![1.0, -0.5], tokens: 3, truncated: false })
    }

    #[test]
    fn f32_is_little_endian_in_data() {
        let results = results([vector()], VectorEncoding::F32);
        let Some(Outcome::Embedding(embedding)) = &results[0].outcome else { panic!("no vector") };
        assert_eq!(&embedding.data[..], [0, 0, 128, 63, 0, 0, 0, 191]);
        assert_eq!((embedding.dimensions, embedding.encoding()), (2, VectorEncoding::F32));
    }

    #[test]
    fn a_failed_item_keeps_its_place_and_spares_the_others() {
        let failed = Err(ItemError::new(Reason::TooLong, "300 tokens, at most 256"));
        let results = results([vector(), failed, vector()], VectorEncoding::FloatList);
        assert_eq!(results.iter().map(|result| result.index).collect::<Vec<_>>(), [0, 1, 2]);
        let errors: Vec<_> = results.iter().map(|r| matches!(r.outcome, Some(Outcome::Error(_)))).collect();
        assert_eq!(errors, [false, true, false]);
    }

    #[test]
    fn an_unknown_encoding_is_refused() {
        assert_eq!(encoding(99).unwrap_err().reason, "BAD_PARAMETER");
        assert_eq!(encoding(0).unwrap(), VectorEncoding::F32);
    }
}
