//! Vectors on the wire.

use chassis::refusal::Refusal;
use engine::ItemError;
use half::f16;
use proto::{
    common::v1 as common,
    embedding::v1::{self as pb, VectorEncoding, embed_result::Outcome},
};
use tonic::codegen::Bytes;

use crate::{bad_parameter, status};

/// The encoding that a request asks for.
///
/// # Errors
/// BAD_PARAMETER for a value that the contract does not have.
pub fn encoding(value: i32) -> Result<VectorEncoding, Refusal> {
    match VectorEncoding::try_from(value) {
        Ok(VectorEncoding::Unspecified) => Ok(VectorEncoding::F32),
        Ok(encoding) => Ok(encoding),
        Err(_) => Err(bad_parameter("params.encoding", format!("{value} is no vector encoding"))),
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

/// Moves the vectors of all results into one matrix of this many columns. The row of a failed input is zeros.
#[must_use]
pub fn matrix(results: &mut [pb::EmbedResult], encoding: VectorEncoding, dimensions: u32) -> Bytes {
    let row_bytes = row_bytes(encoding, dimensions as usize);
    let mut matrix = Vec::with_capacity(results.len() * row_bytes);
    for (row, result) in results.iter_mut().enumerate() {
        if let Some(Outcome::Embedding(embedding)) = &mut result.outcome {
            matrix.extend_from_slice(&std::mem::take(&mut embedding.data));
        }
        matrix.resize((row + 1) * row_bytes, 0);
    }
    matrix.into()
}

/// Bytes of a vector.
fn row_bytes(encoding: VectorEncoding, dimensions: usize) -> usize {
    match encoding {
        VectorEncoding::Unspecified | VectorEncoding::F32 => 4 * dimensions,
        VectorEncoding::F16 => 2 * dimensions,
        VectorEncoding::I8 => dimensions,
        VectorEncoding::Binary => dimensions.div_ceil(8),
        VectorEncoding::FloatList => 0,
    }
}

fn write(values: Vec<f32>, encoding: VectorEncoding) -> pb::Embedding {
    let dimensions = u32::try_from(values.len()).unwrap_or(u32::MAX);
    let mut written = pb::Embedding { dimensions, encoding: encoding.into(), ..pb::Embedding::default() };
    match encoding {
        VectorEncoding::FloatList => written.values = values,
        VectorEncoding::F32 | VectorEncoding::Unspecified => {
            written.data = values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>().into();
        }
        VectorEncoding::F16 => {
            let bytes = values.iter().flat_map(|value| f16::from_f32(*value).to_le_bytes());
            written.data = bytes.collect::<Vec<u8>>().into();
        }
        VectorEncoding::I8 => {
            let (scale, bytes) = quantize(&values);
            written.scale = Some(scale);
            written.data = bytes.into();
        }
        VectorEncoding::Binary => written.data = signs(&values).into(),
    }
    written
}

/// The scale, and the components divided by it as bytes.
fn quantize(values: &[f32]) -> (f32, Vec<u8>) {
    let greatest = values.iter().map(|value| value.abs()).fold(0.0, f32::max);
    // So small a vector that its scale would be 0 is one of zeros.
    let scale = Some(greatest / 127.0).filter(|scale| *scale > 0.0).unwrap_or(1.0);
    #[expect(clippy::cast_possible_truncation, reason = "rounded, and saturates at the bounds")]
    let byte = |value: &f32| ((value / scale).round().clamp(-127.0, 127.0) as i8).cast_unsigned();
    (scale, values.iter().map(byte).collect())
}

/// One bit a component, the first in the highest bit of the first byte.
fn signs(values: &[f32]) -> Vec<u8> {
    let byte = |eight: &[f32]| eight.iter().enumerate().fold(0, |byte, (i, x)| byte | (u8::from(*x > 0.0) << (7 - i)));
    values.chunks(8).map(byte).collect()
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

    fn written(values: &[f32], encoding: VectorEncoding) -> pb::Embedding {
        write(values.to_vec(), encoding)
    }

    #[test]
    fn halves_are_rounded_to_even_and_little_endian() {
        let embedding =
            written(&[1.0, -0.5, 1e6, 1.0 + f32::exp2(-11.0), 1.0 + 3.0 * f32::exp2(-11.0)], VectorEncoding::F16);
        let halves: Vec<u16> = embedding.data.chunks(2).map(|two| u16::from_le_bytes([two[0], two[1]])).collect();
        assert_eq!(halves, [0x3c00, 0xb800, 0x7c00, 0x3c00, 0x3c02]);
    }

    #[test]
    fn bytes_times_the_scale_are_within_half_a_scale() {
        let values = [0.3, -1.27, 0.004, 0.0];
        let embedding = written(&values, VectorEncoding::I8);
        let scale = embedding.scale.unwrap();
        assert!((scale - 0.01).abs() < 1e-6 && embedding.data[1].cast_signed() == -127);
        for (byte, value) in embedding.data.iter().zip(values) {
            assert!((f32::from(byte.cast_signed()) * scale - value).abs() <= scale / 2.0 + 1e-6);
        }
        let zeros = written(&[0.0, 0.0], VectorEncoding::I8);
        assert_eq!((zeros.scale, &zeros.data[..]), (Some(1.0), &[0, 0][..]));
        let tiny = written(&[f32::from_bits(1)], VectorEncoding::I8);
        assert!(tiny.scale.unwrap() > 0.0);
    }

    #[test]
    fn signs_fill_bytes_from_the_highest_bit() {
        let values = [1.0, -1.0, 0.0, 2.0, 1.0, 1.0, -3.0, 1.0, 1.0, -1.0];
        let embedding = written(&values, VectorEncoding::Binary);
        assert_eq!((&embedding.data[..], embedding.dimensions), (&[0b1001_1101, 0b1000_0000][..], 10));
    }

    #[test]
    fn a_matrix_has_a_row_for_every_result() {
        let failed = || Err(ItemError::new(Reason::TooLong, "300 tokens, at most 256"));
        for (encoding, row) in
            [(VectorEncoding::F32, 8), (VectorEncoding::F16, 4), (VectorEncoding::I8, 2), (VectorEncoding::Binary, 1)]
        {
            let alone = results([vector()], encoding);
            let Some(Outcome::Embedding(alone)) = &alone[0].outcome else { panic!("no vector") };
            let mut results = results([failed(), vector(), failed()], encoding);
            let matrix = matrix(&mut results, encoding, 2);
            assert_eq!([&vec![0; row][..], &alone.data, &vec![0; row]].concat(), matrix, "{encoding:?}");
            let Some(Outcome::Embedding(moved)) = &results[1].outcome else { panic!("no vector") };
            assert!(moved.data.is_empty() && moved.dimensions == 2 && moved.scale == alone.scale);
        }
    }

    #[test]
    fn an_unknown_encoding_is_refused() {
        assert_eq!(encoding(99).unwrap_err().reason, "BAD_PARAMETER");
        assert_eq!(encoding(0).unwrap(), VectorEncoding::F32);
    }
}
