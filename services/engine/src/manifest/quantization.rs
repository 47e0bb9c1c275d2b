//! What computing a model in int8 needs beside its weights.
//!
//! A product of rows X and weights W is one of X / s and s W for any factors s, one for each input. Factors that are large
//! where the activations are make both sides about equally hard to round to 8 bits (SmoothQuant, Xiao et al., 2022).

use std::{f32::consts::SQRT_2, fmt, str::FromStr};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::Manifest;
use crate::{Error, compute::written, revision::hex};

/// Most factors of one model: 128 layers of 8,192 inputs.
const FACTORS_MAX: usize = Site::ALL.len() * 128 * 8192;
/// Columns of base64 on a line of a manifest.
const COLUMNS: usize = 96;
/// Steps in which a factor doubles.
const STEPS: i32 = 8;
/// 2^(i/8): written down, because systems differ in the last digit of what they compute for it.
const FRACTIONS: [f32; STEPS as usize] =
    [1.0, 1.090_507_7, 1.189_207_1, 1.296_839_6, SQRT_2, 1.542_210_8, 1.681_792_9, 1.834_008];

/// How an encoder was prepared for int8: the table `[quantization]`. `tamis models quantize` writes it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quantization {
    /// By what the inputs of two products of each layer are divided, and the weights multiplied.
    #[serde(with = "written")]
    pub smoothing: Exponents,
    /// How near the vectors come to those of f32, as it was measured on texts that the factors were made without. For
    /// people: it is no part of the revision. Default: not measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measured: Option<Measured>,
}

/// How near vectors come to those of f32.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Measured {
    /// Texts that were compared; at least 1.
    pub texts: u32,
    /// Mean over the texts of the cosine between both vectors of a text; -1 to 1.
    pub cosine_mean: f64,
    /// The least of them.
    pub cosine_min: f64,
}

/// Factors as they are written: each is 2^(q/8) with q from -128 to 127, so that every machine reads the same number. In
/// base64, a byte for each q, blanks and line ends between them: layer after layer, in each the factors of
/// [`Site::Attention`] and then those of [`Site::FeedForward`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exponents(Vec<i8>);

/// The factors of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Smoothing {
    exponents: Exponents,
    hidden: usize,
}

/// A product of each layer whose inputs come from a normalisation, where their factors cost nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Site {
    /// Queries, keys and values.
    Attention,
    /// The first dense layer of the feed-forward block.
    FeedForward,
}

// === impl Manifest ===

impl Manifest {
    /// The factors of a checkpoint of so many layers and components; none if the model is not for int8.
    ///
    /// # Errors
    /// When they are for another checkpoint.
    pub(crate) fn smoothing(&self, layers: usize, hidden: usize) -> Result<Option<Smoothing>, Error> {
        let Some(quantization) = &self.quantization else { return Ok(None) };
        let smoothing = Smoothing::new(quantization.smoothing.clone(), layers, hidden);
        smoothing.map(Some).map_err(|why| Error::load(format!("model {}", self.name), why))
    }
}

// === impl Measured ===

impl Measured {
    /// Whether the numbers can be what they say.
    pub(super) fn is_plausible(&self) -> bool {
        let cosine = |value: f64| (-1.0..=1.0).contains(&value);
        self.texts > 0 && cosine(self.cosine_mean) && cosine(self.cosine_min) && self.cosine_min <= self.cosine_mean
    }
}

// === impl Exponents ===

impl Exponents {
    /// The nearest to these factors, which must be finite and above 0.
    #[must_use]
    pub(crate) fn nearest(factors: impl IntoIterator<Item = f32>) -> Self {
        #[expect(clippy::cast_possible_truncation, reason = "rounded, and saturates at the bounds")]
        let exponent = |factor: f32| (factor.log2() * STEPS as f32).round() as i8;
        Self(factors.into_iter().map(exponent).collect())
    }

    /// sha256 of the exponents, however they are written.
    pub(crate) fn digest(&self) -> String {
        hex(&Sha256::digest(self.bytes()))
    }

    fn bytes(&self) -> Vec<u8> {
        self.0.iter().map(|exponent| exponent.cast_unsigned()).collect()
    }
}

impl fmt::Display for Exponents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = STANDARD.encode(self.bytes());
        let mut rest = text.as_str();
        while !rest.is_empty() {
            let (line, more) = rest.split_at(COLUMNS.min(rest.len()));
            writeln!(f, "{line}")?;
            rest = more;
        }
        Ok(())
    }
}

impl FromStr for Exponents {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits: String = text.split_ascii_whitespace().collect();
        // Before anything is decoded: four digits are three bytes.
        if digits.len() / 4 * 3 > FACTORS_MAX + 3 {
            return Err(format!("quantization.smoothing is too long: at most {FACTORS_MAX} factors"));
        }
        let bytes = STANDARD.decode(digits).map_err(|error| format!("quantization.smoothing is no base64: {error}"))?;
        if bytes.is_empty() {
            return Err("quantization.smoothing is empty".to_owned());
        }
        Ok(Self(bytes.into_iter().map(u8::cast_signed).collect()))
    }
}

// === impl Smoothing ===

impl Smoothing {
    fn new(exponents: Exponents, layers: usize, hidden: usize) -> Result<Self, String> {
        let (found, wanted) = (exponents.0.len(), Site::ALL.len() * layers * hidden);
        if hidden == 0 || found != wanted {
            let of = format!("{layers} layers of {hidden} components");
            return Err(format!("quantization.smoothing has {found} factors, a checkpoint of {of} needs {wanted}"));
        }
        Ok(Self { exponents, hidden })
    }

    /// The factors of a site: activations are divided by them, weights multiplied; as many as the site has inputs.
    #[must_use]
    pub fn vector(&self, layer: usize, site: Site) -> Vec<f32> {
        let start = (layer * Site::ALL.len() + site as usize) * self.hidden;
        self.exponents.0[start..start + self.hidden].iter().map(|exponent| power(*exponent)).collect()
    }
}

impl Site {
    /// All, in the order in which they are written.
    pub const ALL: [Self; 2] = [Self::Attention, Self::FeedForward];
}

/// 2^(exponent/8), the same on every machine.
fn power(exponent: i8) -> f32 {
    let (whole, step) = (i32::from(exponent).div_euclid(STEPS), i32::from(exponent).rem_euclid(STEPS));
    // A power of two by its bits: -16 to 15 is far inside of what f32 has.
    let whole = f32::from_bits((127 + whole).cast_unsigned() << 23);
    whole * FRACTIONS[step as usize]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn exponents(values: impl IntoIterator<Item = i8>) -> Exponents {
        Exponents(values.into_iter().collect())
    }

    #[test]
    fn a_power_is_that_of_its_exponent() {
        for exponent in i8::MIN..=i8::MAX {
            let exact = (f64::from(exponent) / 8.0).exp2();
            let error = (f64::from(power(exponent)) - exact).abs() / exact;
            assert!(error <= f64::from(f32::EPSILON) / 2.0, "{exponent}: {error}");
            assert_eq!(Exponents::nearest([power(exponent)]), exponents([exponent]));
        }
        assert_eq!([power(0), power(8), power(-16)], [1.0, 2.0, 0.25]);
    }

    #[test]
    fn a_factor_that_is_too_large_becomes_the_largest() {
        assert_eq!(Exponents::nearest([1e30, 1e-30]), exponents([127, -128]));
    }

    #[test]
    fn vectors_lie_layer_by_layer_and_site_by_site() {
        let smoothing = Smoothing::new(exponents((0..12).map(|i| 8 * i)), 3, 2).unwrap();
        assert_eq!(smoothing.vector(0, Site::Attention), [1.0, 2.0]);
        assert_eq!(smoothing.vector(0, Site::FeedForward), [4.0, 8.0]);
        assert_eq!(smoothing.vector(2, Site::FeedForward), [1024.0, 2048.0]);
    }

    #[test]
    fn factors_of_another_checkpoint_are_refused() {
        let refusal = |layers, hidden| Smoothing::new(exponents([0; 12]), layers, hidden).unwrap_err();
        assert!(refusal(2, 2).contains("12 factors, a checkpoint of 2 layers of 2 components needs 8"));
        assert!(refusal(4, 2).contains("needs 16"));
        refusal(0, 2);
        refusal(2, 0);
    }

    #[test]
    fn what_is_no_base64_or_too_much_of_it_is_refused() {
        let refusal = |text: &str| text.parse::<Exponents>().unwrap_err();
        assert!(refusal("").contains("is empty"));
        assert!(refusal("*").contains("no base64"));
        assert!(refusal(&"A".repeat(FACTORS_MAX * 2)).contains("too long"));
    }

    proptest! {
        #[test]
        fn exponents_are_read_as_they_are_written(values in prop::collection::vec(any::<i8>(), 1..300)) {
            let exponents = exponents(values);
            let text = exponents.to_string();
            prop_assert_eq!(text.parse::<Exponents>().unwrap(), exponents.clone());
            prop_assert_eq!(text.replace('\n', " \r\n\t").parse::<Exponents>().unwrap(), exponents);
        }
    }
}
