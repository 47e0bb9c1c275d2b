//! What a tokenizer sets around a text, or around two.

use std::panic::{AssertUnwindSafe, catch_unwind};

use tokenizers::{Encoding, Token, Tokenizer};

use super::{Window, fit::Ends};

/// Ids that no vocabulary has: they stand for the texts themselves.
const FIRST: u32 = u32::MAX;
const SECOND: u32 = u32::MAX - 1;

/// The special tokens of a tokenizer and where they stand. Learned once, so that a text's ids are all that is ever asked
/// of a tokenizer.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Template {
    head: Vec<u32>,
    tail: Vec<u32>,
    pair: Vec<Part>,
}

/// A part of a pair, and the type of its tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Special { id: u32, kind: u32 },
    First { kind: u32 },
    Second { kind: u32 },
}

impl Template {
    /// Asks the tokenizer to set its template around texts of one token.
    pub(super) fn learn(tokenizer: &Tokenizer) -> Result<Self, String> {
        let text = |id, kind| Encoding::from_tokens(vec![Token::new(id, String::new(), (0, 0))], kind);
        let ask = |second| {
            // Unwind safe: nothing is changed. The crate panics on a template with a token that it does not define.
            let answer = catch_unwind(AssertUnwindSafe(|| tokenizer.post_process(text(FIRST, 0), second, true)));
            answer.map_err(|_panic| "its template names what it does not define".to_owned())?.map_err(|e| e.to_string())
        };
        let (single, pair) = (ask(None)?, ask(Some(text(SECOND, 1)))?);
        let parts: Vec<&[u32]> = single.get_ids().split(|id| *id == FIRST).collect();
        let [head, tail] = parts[..] else {
            return Err(format!("its template has the text {} times, it should be once", parts.len() - 1));
        };
        let part = |(&id, &kind): (&u32, &u32)| match id {
            FIRST => Part::First { kind },
            SECOND => Part::Second { kind },
            id => Part::Special { id, kind },
        };
        let pair = pair.get_ids().iter().zip(pair.get_type_ids()).map(part).collect();
        Ok(Self { head: head.to_vec(), tail: tail.to_vec(), pair })
    }

    /// A text between its special tokens.
    pub(super) fn around(&self, text: &[u32]) -> Vec<u32> {
        [&self.head, text, &self.tail].concat()
    }

    /// How many special tokens stand at each end of a text.
    pub(super) fn ends(&self) -> Ends {
        Ends { head: self.head.len(), tail: self.tail.len() }
    }

    /// Two texts between their special tokens.
    pub(super) fn around_both(&self, first: &[u32], second: &[u32]) -> Window {
        let (mut ids, mut types) = (Vec::new(), Vec::new());
        for part in &self.pair {
            let kind = match part {
                Part::Special { id, kind } => {
                    ids.push(*id);
                    kind
                }
                Part::First { kind } => {
                    ids.extend_from_slice(first);
                    kind
                }
                Part::Second { kind } => {
                    ids.extend_from_slice(second);
                    kind
                }
            };
            types.resize(ids.len(), *kind);
        }
        Window { ids, types: Some(types) }
    }

    /// How many special tokens stand around two texts.
    pub(super) fn pair_specials(&self) -> usize {
        self.of_pair().count()
    }

    /// The ids of all special tokens.
    pub(super) fn specials(&self) -> impl Iterator<Item = u32> {
        self.head.iter().chain(&self.tail).copied().chain(self.of_pair())
    }

    fn of_pair(&self) -> impl Iterator<Item = u32> {
        self.pair.iter().filter_map(|part| match part {
            Part::Special { id, .. } => Some(*id),
            Part::First { .. } | Part::Second { .. } => None,
        })
    }
}
