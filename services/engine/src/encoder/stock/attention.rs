//! What tokens take over from the tokens that they see (Vaswani et al., 2017).

use std::ops::Range;

use candle_core::{Device, Result, Tensor};

/// Tokens whose scores are computed at a time: all tokens of a long text at once would take memory with the square of its
/// length, gigabytes of it for 8,192 tokens.
const ROWS_MAX: usize = 512;

/// What is added to the score of a token that is not seen. Two of them are still a number: a row of padding that sees
/// nothing but padding must not become NaN, which would spread.
pub(super) const UNSEEN: f32 = f32::MIN / 4.0;

/// Queries, keys and values by head, [texts, heads, tokens, width] each.
pub(super) struct Parts {
    pub(super) queries: Tensor,
    pub(super) keys: Tensor,
    pub(super) values: Tensor,
}

// === impl Parts ===

impl Parts {
    /// Mixes values by their scores, [texts, tokens, heads x width]. A token sees all others that are no padding, or
    /// those of them that are at most `window` tokens away.
    pub(super) fn mix(&self, padding: Option<&Tensor>, window: Option<usize>) -> Result<Tensor> {
        let tokens = self.queries.dim(2)?;
        let part = |start: usize| {
            let rows = start..(start + ROWS_MAX).min(tokens);
            let seen = match window {
                Some(window) => start.saturating_sub(window)..(rows.end + window).min(tokens),
                None => 0..tokens,
            };
            self.mix_rows(rows, seen, padding, window)
        };
        let parts = (0..tokens).step_by(ROWS_MAX).map(part).collect::<Result<Vec<_>>>()?;
        Tensor::cat(&parts, 2)?.transpose(1, 2)?.flatten_from(2)
    }

    fn mix_rows(
        &self,
        rows: Range<usize>,
        seen: Range<usize>,
        padding: Option<&Tensor>,
        window: Option<usize>,
    ) -> Result<Tensor> {
        let take = |part: &Tensor, range: &Range<usize>| part.narrow(2, range.start, range.len())?.contiguous();
        let width = self.queries.dim(3)? as f64;
        let queries = (take(&self.queries, &rows)? / width.sqrt())?;
        let mut scores = queries.matmul(&take(&self.keys, &seen)?.t()?)?;
        if let Some(padding) = padding {
            scores = scores.broadcast_add(&padding.narrow(3, seen.start, seen.len())?)?;
        }
        if let Some(window) = window {
            scores = scores.broadcast_add(&band(rows, &seen, window, scores.device())?)?;
        }
        candle_nn::ops::softmax_last_dim(&scores)?.matmul(&take(&self.values, &seen)?)
    }
}

/// [rows, seen]: 0 where a token sees another, [`UNSEEN`] where it is further away than `window`.
fn band(rows: Range<usize>, seen: &Range<usize>, window: usize, device: &Device) -> Result<Tensor> {
    let shape = (rows.len(), seen.len());
    let sees = |row: usize, other: usize| if row.abs_diff(other) <= window { 0.0 } else { UNSEEN };
    let scores = rows.flat_map(|row| seen.clone().map(move |other| sees(row, other)));
    Tensor::from_vec(scores.collect::<Vec<f32>>(), shape, device)
}
