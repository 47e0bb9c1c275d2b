//! What of some texts is computed next.

use std::sync::Arc;

use super::TextOutput;
use crate::{
    ItemError,
    encoder::Packed,
    tokenize::{Tokenized, Window},
};

/// The windows of a text, which are computed one after the other. A long text is put aside between them, so that others
/// need not wait for all of it.
#[derive(Clone, Debug)]
pub struct Windows {
    windows: Arc<[Window]>,
    /// What the windows gave that are computed.
    values: Vec<Vec<f32>>,
    tokens: u32,
    truncated: bool,
}

/// The tokens of windows, one after the other.
#[derive(Default)]
pub(super) struct Joined {
    ids: Vec<u32>,
    types: Vec<u32>,
    ends: Vec<usize>,
}

// === impl Windows ===

impl Windows {
    pub(super) fn new(Tokenized { windows, tokens, truncated }: Tokenized) -> Self {
        Self { windows: windows.into(), values: Vec::new(), tokens, truncated }
    }

    /// The windows that are not computed yet.
    pub(super) fn left(&self) -> &[Window] {
        &self.windows[self.values.len()..]
    }

    /// Tokens of those.
    pub(super) fn units(&self) -> u32 {
        let tokens = self.left().iter().map(|window| window.ids.len()).sum::<usize>();
        u32::try_from(tokens).unwrap_or(u32::MAX).max(1)
    }

    /// Those of them that are computed next beside what is joined already: as many as leave it at most so long. The first
    /// window of all is never too long.
    pub(super) fn next(&self, joined: usize, most: usize) -> &[Window] {
        let (left, mut length) = (self.left(), joined);
        let fits = |window: &&Window| {
            let first = length == 0;
            length = length.saturating_add(window.ids.len());
            first || length <= most
        };
        &left[..left.iter().take_while(fits).count()]
    }

    /// Takes what the next windows gave.
    pub(super) fn add(&mut self, values: Vec<Result<Vec<f32>, ItemError>>) -> Result<(), ItemError> {
        values.into_iter().try_for_each(|values| {
            self.values.push(values?);
            Ok(())
        })
    }

    /// The answer, of the windows that are computed.
    pub(super) fn output(self) -> TextOutput {
        let lengths: Vec<_> = self.windows.iter().map(|window| window.ids.len()).collect();
        TextOutput { values: mean(self.values, &lengths), tokens: self.tokens, truncated: self.truncated }
    }
}

/// The mean of the windows of a text, weighted by their tokens; of none, nothing.
fn mean(mut parts: Vec<Vec<f32>>, weights: &[usize]) -> Vec<f32> {
    if parts.len() <= 1 {
        return parts.pop().unwrap_or_default();
    }
    let mut sum = vec![0.0_f64; parts[0].len()];
    for (part, weight) in parts.iter().zip(weights) {
        sum.iter_mut().zip(part).for_each(|(sum, x)| *sum += f64::from(*x) * *weight as f64);
    }
    let total = weights.iter().sum::<usize>() as f64;
    sum.into_iter().map(|sum| (sum / total) as f32).collect()
}

// === impl Joined ===

impl Joined {
    pub(super) fn push(&mut self, window: &Window) {
        self.ids.extend_from_slice(&window.ids);
        match &window.types {
            Some(of_pair) => self.types.extend_from_slice(of_pair),
            None => self.types.resize(self.ids.len(), 0),
        }
        self.ends.push(self.ids.len());
    }

    /// How many tokens there are.
    pub(super) fn tokens(&self) -> usize {
        self.ids.len()
    }

    /// How many windows there are.
    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    pub(super) fn packed(&self) -> Packed<'_> {
        let pairs = self.types.iter().any(|of_pair| *of_pair != 0);
        Packed { ids: &self.ids, ends: &self.ends, types: pairs.then_some(self.types.as_slice()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(lengths: &[usize]) -> Windows {
        let windows = lengths.iter().map(|length| Window { ids: vec![1; *length], types: None }).collect();
        Windows::new(Tokenized { windows, tokens: 0, truncated: false })
    }

    #[test]
    fn windows_are_next_while_there_is_room_and_at_least_one_of_the_first_text() {
        let next = |lengths: &[usize], joined, most| text(lengths).next(joined, most).len();
        assert_eq!(next(&[8, 8, 4], 0, 256), 3);
        assert_eq!(next(&[8, 8, 4], 0, 17), 2);
        assert_eq!(next(&[8, 8, 4], 0, 3), 1);
        assert_eq!(next(&[8, 8, 4], 1, 3), 0);
        assert_eq!(next(&[8, 8, 4], 4, 12), 1);
        assert_eq!(next(&[8, 8, 4], 4, usize::MAX), 3);
        assert_eq!(next(&[], 0, 3), 0);
    }

    #[test]
    fn windows_come_one_after_the_other_and_count_by_their_tokens() {
        let mut text = text(&[3, 1]);
        text.add(vec![Ok(vec![4.0, 0.0])]).unwrap();
        assert_eq!(text.left().len(), 1);
        text.add(vec![Ok(vec![0.0, 4.0])]).unwrap();
        assert_eq!((text.left().len(), text.output().values), (0, vec![3.0, 1.0]));
    }
}
