//! How many tokens a text has, before it is tokenized.

/// What bytes are counted in, so that all weights are whole.
const SHARES: usize = 12;

/// Shares of a token that a byte has, about. Too many rather than too few: a budget must hold.
const WEIGHTS: [u8; 256] = weights();

/// Tokens of a text in one pass over its bytes: tokenizing it takes some ten times as long.
pub(crate) fn guess(text: &str) -> usize {
    let shares: usize = text.bytes().map(|byte| usize::from(WEIGHTS[usize::from(byte)])).sum();
    shares / SHARES
}

const fn weights() -> [u8; 256] {
    let mut weights = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        weights[byte] = match byte as u8 {
            // Each is a token.
            letter if letter.is_ascii_punctuation() => 12,
            // Two and three of them are one.
            letter if letter.is_ascii_digit() => 6,
            // A character of two to four bytes is a token or a part of one.
            letter if !letter.is_ascii() => 4,
            // English has a token per four to five bytes.
            _ => 3,
        };
        byte += 1;
    }
    weights
}
