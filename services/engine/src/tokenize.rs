//! Text to token ids, cut to what the model takes.

use std::{
    path::Path,
    sync::{Arc, OnceLock},
};

use tokenizers::Tokenizer;

use crate::{Error, ItemError, Reason, text::TextLimits};

mod fit;
mod guess;
mod template;
#[cfg(test)]
mod tests;
mod wordpiece;

pub(crate) use self::guess::guess;
use self::{
    fit::{Ends, Fit},
    template::Template,
    wordpiece::WordPiece,
};

/// A tokenizer that neither pads nor cuts on its own: published tokenizer.json files often carry settings for both.
pub(crate) struct Tokens {
    tokenizer: Tokenizer,
    template: Template,
    /// Gives the same ids sooner, if the tokenizer is of its kind.
    fast: Option<WordPiece>,
    limits: TextLimits,
    /// Most tokens of one text, special tokens included.
    max: usize,
    /// Ids that the model has vectors for: 0 to one less.
    vocabulary: usize,
}

/// What happens to a text that has more tokens than the model takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Truncation {
    /// It fails with [`Reason::TooLong`].
    Error,
    /// Its end is cut off; of a pair, the end of the longer text.
    End,
    /// Its start is cut off.
    Start,
    /// It is computed in windows, and the answer is their mean weighted by tokens.
    ChunkMean,
}

/// The first text of a pair. Tokenized once, by whoever needs it first, for all pairs that share it.
#[derive(Debug)]
pub struct First {
    text: String,
    guessed: usize,
    /// It is never cut, and may use half of the model's tokens.
    whole: bool,
    ids: OnceLock<Result<Vec<u32>, ItemError>>,
}

/// A text's tokens, in the windows in which it is computed.
pub(crate) struct Tokenized {
    /// One, but for [`Truncation::ChunkMean`]; none if the tokens are only counted.
    pub(crate) windows: Vec<Window>,
    /// Tokens of all windows.
    pub(crate) tokens: u32,
    pub(crate) truncated: bool,
}

/// Tokens that are computed together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Window {
    pub(crate) ids: Vec<u32>,
    /// Which text of a pair each token belongs to; `None`: all to the first.
    pub(crate) types: Option<Vec<u32>>,
}

// === impl First ===

impl First {
    /// A text that may be cut, like the second one.
    #[must_use]
    pub fn text(text: impl Into<String>) -> Arc<Self> {
        Self::new(text.into(), false)
    }

    /// A query: it is read whole, or the pair fails.
    #[must_use]
    pub fn query(text: impl Into<String>) -> Arc<Self> {
        Self::new(text.into(), true)
    }

    fn new(text: String, whole: bool) -> Arc<Self> {
        Arc::new(Self { guessed: guess(&text), text, whole, ids: OnceLock::new() })
    }

    /// How many tokens it has, about.
    pub(crate) fn guessed(&self) -> usize {
        self.guessed
    }

    /// Why no pair with this text can be computed, once one was tried.
    #[must_use]
    pub fn failure(&self) -> Option<&ItemError> {
        self.ids.get()?.as_ref().err()
    }
}

// === impl Tokens ===

impl Tokens {
    /// Reads a tokenizer.json.
    pub(crate) fn load(path: &Path, limits: TextLimits, max: u32, vocabulary: usize) -> Result<Self, Error> {
        let refuse = |error: tokenizers::Error| Error::load(path.display(), error);
        let mut tokenizer = Tokenizer::from_file(path).map_err(refuse)?;
        tokenizer.with_padding(None).with_truncation(None).map_err(refuse)?;
        let template = Template::learn(&tokenizer).map_err(|why| Error::load(path.display(), why))?;
        if let Some(why) = template.specials().find_map(|id| beyond(&[id], vocabulary)) {
            return Err(Error::load(path.display(), format!("its template does not fit the checkpoint: {why}")));
        }
        let fast = WordPiece::of(&tokenizer);
        tracing::debug!(path = %path.display(), fast = fast.is_some(), "tokenizer loaded");
        Ok(Self { tokenizer, template, fast, limits, max: max as usize, vocabulary })
    }

    /// The tokens of a text behind its prompt, special tokens included.
    pub(crate) fn text(&self, prompt: &str, text: &str, truncation: Truncation) -> Result<Tokenized, ItemError> {
        let ids = self.encode(prompt, text)?;
        if ids.len() <= self.max {
            return Ok(Tokenized::one(Window { ids, types: None }, false));
        }
        // What the template puts around a text stays: the model has never seen one without it. So does the prompt.
        let mut ends = self.template.ends();
        if matches!(truncation, Truncation::Start | Truncation::ChunkMean) && !prompt.is_empty() {
            ends.head += self.prompt_tokens(prompt, text)?;
        }
        self.fit(truncation).cut(&ids, ends)
    }

    /// How many tokens [`Self::text`] would compute if the model took any number.
    pub(crate) fn count(&self, prompt: &str, text: &str) -> Result<Tokenized, ItemError> {
        let tokens = self.encode(prompt, text)?.len() as u32;
        Ok(Tokenized { windows: Vec::new(), tokens, truncated: false })
    }

    /// Tokens that the caller made.
    pub(crate) fn ids(&self, ids: &[u32], truncation: Truncation) -> Result<Tokenized, ItemError> {
        if ids.is_empty() {
            return Err(ItemError::new(Reason::Empty, "there are no token ids"));
        }
        if let Some(why) = beyond(ids, self.vocabulary) {
            return Err(ItemError::new(Reason::BadParameter, why));
        }
        if ids.len() <= self.max {
            return Ok(Tokenized::one(Window { ids: ids.to_vec(), types: None }, false));
        }
        // Nobody knows which of them are special; in every template the first and the last are.
        self.fit(truncation).cut(ids, Ends { head: 1, tail: 1 })
    }

    /// The tokens of two texts that are read together.
    pub(crate) fn pair(&self, first: &First, second: &str, truncation: Truncation) -> Result<Tokenized, ItemError> {
        let first_ids = first.ids.get_or_init(|| self.first(first)).as_ref().map_err(Clone::clone)?;
        self.check(second)?;
        let second_ids = self.part(second)?;
        let special = self.template.pair_specials();
        let (a, b, room) = (first_ids.len(), second_ids.len(), self.max.saturating_sub(special));
        let truncated = a + b > room;
        let (a, b) = match truncation {
            _ if !truncated => (a, b),
            Truncation::Error => return Err(too_long(a + b + special, self.max)),
            Truncation::End if first.whole => (a, room.saturating_sub(a)),
            Truncation::End => fit::share(a, b, room),
            Truncation::Start | Truncation::ChunkMean => {
                return Err(ItemError::new(Reason::BadParameter, "a pair of texts is cut at its end, or not at all"));
            }
        };
        if a == 0 || b == 0 {
            return Err(ItemError::new(Reason::TooLong, format!("{} tokens have no room for both texts", self.max)));
        }
        Ok(Tokenized::one(self.template.around_both(&first_ids[..a], &second_ids[..b]), truncated))
    }

    fn first(&self, first: &First) -> Result<Vec<u32>, ItemError> {
        self.check(&first.text)?;
        let ids = self.part(&first.text)?;
        if first.whole && ids.len() > self.max / 2 {
            let message = format!("the query has {} tokens, half of the model's {} are its bound", ids.len(), self.max);
            return Err(ItemError::new(Reason::TooLong, message));
        }
        Ok(ids)
    }

    /// The ids of a text that is a part of a pair.
    fn part(&self, text: &str) -> Result<Vec<u32>, ItemError> {
        not_empty(self.content(text)?)
    }

    fn encode(&self, prompt: &str, text: &str) -> Result<Vec<u32>, ItemError> {
        self.check(text)?;
        let prompted;
        let whole = if prompt.is_empty() {
            text
        } else {
            prompted = format!("{prompt}{text}");
            &prompted
        };
        not_empty(self.template.around(&self.content(whole)?))
    }

    /// A text's own ids, without the template's.
    fn content(&self, text: &str) -> Result<Vec<u32>, ItemError> {
        let slow = |text: &str| {
            let encoding = self.tokenizer.encode_fast(text, false).map_err(|error| failed(&error))?;
            Ok(encoding.get_ids().to_vec())
        };
        let ids = match &self.fast {
            Some(fast) => fast.encode(text, slow),
            None => slow(text),
        }?;
        // Publishers add words to a tokenizer and forget their vectors. All other texts can be computed.
        match beyond(&ids, self.vocabulary) {
            None => Ok(ids),
            Some(why) => Err(ItemError::new(Reason::Engine, format!("the model lacks a word of its tokenizer: {why}"))),
        }
    }

    fn check(&self, text: &str) -> Result<(), ItemError> {
        if text.len() > self.limits.bytes_max {
            let message = format!("the text has {} bytes, the bound is {}", text.len(), self.limits.bytes_max);
            return Err(ItemError::new(Reason::TooLarge, message));
        }
        if text.chars().all(char::is_whitespace) {
            return Err(ItemError::new(Reason::Empty, "the text has no character that is not white space"));
        }
        Ok(())
    }

    /// Tokens that lie in the prompt. Asked only for a text that is cut: it is tokenized again, with its offsets.
    fn prompt_tokens(&self, prompt: &str, text: &str) -> Result<usize, ItemError> {
        let encoding = self.tokenizer.encode(format!("{prompt}{text}"), false).map_err(|error| failed(&error))?;
        Ok(encoding.get_offsets().iter().take_while(|(_, end)| *end <= prompt.len()).count())
    }

    fn fit(&self, truncation: Truncation) -> Fit {
        Fit { truncation, max: self.max, windows_max: self.limits.windows_max }
    }
}

// === impl Tokenized ===

impl Tokenized {
    fn one(window: Window, truncated: bool) -> Self {
        Self { tokens: window.ids.len() as u32, windows: vec![window], truncated }
    }
}

/// What is wrong with ids of which one has no vector.
fn beyond(ids: &[u32], vocabulary: usize) -> Option<String> {
    let id = ids.iter().find(|id| **id as usize >= vocabulary)?;
    Some(format!("the token id {id} is beyond the vocabulary of {vocabulary}"))
}

fn not_empty(ids: Vec<u32>) -> Result<Vec<u32>, ItemError> {
    if ids.is_empty() { Err(ItemError::new(Reason::Empty, "the text has no token")) } else { Ok(ids) }
}

fn too_long(tokens: usize, max: usize) -> ItemError {
    ItemError::new(Reason::TooLong, format!("the text has {tokens} tokens, the model takes {max}"))
}

/// The tokenizer's message may quote the text.
fn failed(error: &tokenizers::Error) -> ItemError {
    tracing::debug!(kind = std::any::type_name_of_val(error), "tokenizer failed");
    ItemError::new(Reason::Engine, "the tokenizer failed on this text")
}
