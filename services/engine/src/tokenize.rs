//! Text to token ids.

use std::path::Path;

use tokenizers::Tokenizer;

use crate::{Error, ItemError, Reason};

/// A tokenizer that neither pads nor cuts on its own: published tokenizer.json files often carry settings for both.
pub(crate) struct Tokens {
    tokenizer: Tokenizer,
    /// Most tokens of one text, special tokens included.
    max: usize,
}

/// What happens to a text that has more tokens than the model takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Truncation {
    /// It fails with [`Reason::TooLong`].
    Error,
    /// Its end is cut off.
    End,
}

/// A text's tokens.
pub(crate) struct Tokenized {
    pub(crate) ids: Vec<u32>,
    pub(crate) truncated: bool,
}

impl Tokens {
    /// Reads a tokenizer.json.
    pub(crate) fn load(path: &Path, max: u32) -> Result<Self, Error> {
        let refuse = |error: tokenizers::Error| Error::load(path.display(), error);
        let mut tokenizer = Tokenizer::from_file(path).map_err(refuse)?;
        tokenizer.with_padding(None).with_truncation(None).map_err(refuse)?;
        Ok(Self { tokenizer, max: max as usize })
    }

    /// The ids of a text, special tokens included.
    pub(crate) fn encode(&self, text: &str, truncation: Truncation) -> Result<Tokenized, ItemError> {
        let encoding = self.tokenizer.encode_fast(text, true).map_err(|error| {
            // The tokenizer's message may quote the text.
            tracing::debug!(bytes = text.len(), kind = std::any::type_name_of_val(&error), "tokenizer failed");
            ItemError::new(Reason::Engine, "the tokenizer failed on this text")
        })?;
        let ids = encoding.get_ids();
        if ids.is_empty() {
            return Err(ItemError::new(Reason::Empty, "the text has no token"));
        }
        if ids.len() <= self.max {
            return Ok(Tokenized { ids: ids.to_vec(), truncated: false });
        }
        if truncation == Truncation::Error {
            let message = format!("the text has {} tokens, the model takes {}", ids.len(), self.max);
            return Err(ItemError::new(Reason::TooLong, message));
        }
        // What the template puts at the end stays at the end: the model has never seen a text without it.
        let tail = encoding.get_special_tokens_mask().iter().rev().take_while(|special| **special == 1).count();
        let tail = tail.min(self.max);
        let kept = self.max - tail;
        Ok(Tokenized { ids: [&ids[..kept], &ids[ids.len() - tail..]].concat(), truncated: true })
    }
}
