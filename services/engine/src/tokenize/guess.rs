//! How many tokens a text has, before it is tokenized.

/// What bytes are counted in, so that all weights are whole.
const SHARES: usize = 12;

/// Of a longer text so many bytes at the start are looked at: no caller may keep a thread at it.
const BYTES_MAX: usize = 16 << 10;

/// Shares of a token that a byte has, about: of English rather too many, of random letters a half to a third.
const WEIGHTS: [u8; 256] = weights();

/// Tokens of a text in one pass over its bytes: tokenizing it takes some ten times as long.
pub(crate) fn guess(text: &str) -> usize {
    let seen = &text.as_bytes()[..text.len().min(BYTES_MAX)];
    let shares: usize = seen.iter().map(|byte| usize::from(WEIGHTS[usize::from(*byte)])).sum();
    shares.saturating_mul(text.len()) / (SHARES * seen.len().max(1))
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
