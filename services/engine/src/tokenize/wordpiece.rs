//! BERT's tokenizer once more, for the texts that are most texts: forty times as fast, with the same ids.
//!
//! ASCII is tokenized here. A stretch between two white spaces that has another character goes to the crate `tokenizers`,
//! whose Unicode tables are not worth a copy; white space ends all that depends on neighbours, so that the stretch's ids
//! are those that it has in its text. A text that names an added token goes there whole.

use tokenizers::{ModelWrapper, NormalizerWrapper, PreTokenizerWrapper, Tokenizer, normalizers::BertNormalizer};

use self::pieces::Pieces;

mod pieces;

/// To ask `tokenizers` once more takes as long as to have it tokenize about so many bytes more.
const NEAR: usize = 24;

/// The words of a vocabulary, and what is done to a text before they are looked up.
pub(super) struct WordPiece {
    classes: [Class; 256],
    /// Pieces that begin a word.
    initial: Pieces,
    /// Pieces that continue one, without the prefix that marks them.
    following: Pieces,
    unknown: u32,
    word_chars_max: usize,
    added: Added,
}

/// What a byte does in a text.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    /// It is a part of a word, as this byte.
    Word(u8),
    /// It is a word.
    Punctuation,
    /// It ends a word.
    Space,
    /// It is dropped, and the word goes on.
    Nothing,
    /// It is no ASCII.
    Foreign,
}

/// Tokens that are found in a text before it is cut into words.
struct Added {
    tokens: Vec<String>,
    begins: [bool; 256],
}

// === impl WordPiece ===

impl WordPiece {
    /// The same tokenizer; none if it is of a kind that is not known here to the last detail.
    pub(super) fn of(tokenizer: &Tokenizer) -> Option<Self> {
        let (
            Some(NormalizerWrapper::BertNormalizer(normalizer)),
            Some(PreTokenizerWrapper::BertPreTokenizer(_)),
            ModelWrapper::WordPiece(model),
        ) = (tokenizer.get_normalizer(), tokenizer.get_pre_tokenizer(), tokenizer.get_model())
        else {
            return None;
        };
        let added = tokenizer.get_added_tokens_decoder();
        if added.values().any(|token| token.normalized) {
            return None;
        }
        let classes = std::array::from_fn(|byte| Class::of(byte as u8, normalizer));
        let in_word = |piece: &str| piece.bytes().all(|byte| classes[usize::from(byte)] == Class::Word(byte));
        let is_word = |piece: &str| in_word(piece) || piece.len() == 1;
        let (mut initial, mut following) = (Vec::new(), Vec::new());
        // Every id below the number of pieces has one piece, then: no two pieces share an id, and none is left out.
        for id in 0..u32::try_from(tokenizer.get_vocab_size(false)).ok()? {
            let piece = tokenizers::Model::id_to_token(model, id)?;
            if let Some(rest) = piece.strip_prefix(&model.continuing_subword_prefix).filter(|rest| in_word(rest)) {
                following.push((rest.to_owned(), id));
            }
            if is_word(&piece) {
                initial.push((piece, id));
            }
        }
        Some(Self {
            classes,
            initial: Pieces::new(&initial)?,
            following: Pieces::new(&following)?,
            unknown: tokenizers::Model::token_to_id(model, &model.unk_token)?,
            word_chars_max: model.max_input_chars_per_word,
            added: Added::new(added.into_values().map(|token| token.content).collect()),
        })
    }

    /// The ids of a text, without the template's. `slow` gives the ids of a part that is not for here.
    pub(super) fn encode<E>(&self, text: &str, slow: impl Fn(&str) -> Result<Vec<u32>, E>) -> Result<Vec<u32>, E> {
        let bytes = text.as_bytes();
        if self.added.are_in(bytes) {
            return slow(text);
        }
        let mut ids = Vec::with_capacity(bytes.len() / 4 + 1); // about a token per word
        let mut word = Vec::new();
        // Where the stretch since the last white space begins, and how many ids there were.
        let (mut stretch, mut before) = (0, 0);
        let mut at = 0;
        while at < bytes.len() {
            let byte = bytes[at];
            at += 1;
            match self.classes[usize::from(byte)] {
                Class::Word(byte) => word.push(byte),
                Class::Nothing => {}
                Class::Punctuation => {
                    self.end(&mut word, &mut ids);
                    self.word(&[byte], &mut ids);
                }
                Class::Space => {
                    self.end(&mut word, &mut ids);
                    (stretch, before) = (at, ids.len());
                }
                Class::Foreign => {
                    word.clear();
                    ids.truncate(before);
                    at = self.end_of_foreign(bytes, at);
                    ids.extend(slow(&text[stretch..at])?);
                    (stretch, before) = (at, ids.len());
                }
            }
        }
        self.end(&mut word, &mut ids);
        Ok(ids)
    }

    /// Ends a word, if there is one.
    fn end(&self, word: &mut Vec<u8>, ids: &mut Vec<u32>) {
        if !word.is_empty() {
            self.word(word, ids);
            word.clear();
        }
    }

    /// The pieces of a word: at each place the longest that the vocabulary has. A word that leaves a rest is unknown.
    fn word(&self, word: &[u8], ids: &mut Vec<u32>) {
        if word.len() > self.word_chars_max {
            return ids.push(self.unknown);
        }
        // Most words are in the vocabulary.
        if let Some(id) = self.initial.find(word) {
            return ids.push(id);
        }
        let before = ids.len();
        let (mut rest, mut pieces) = (word, &self.initial);
        while !rest.is_empty() {
            let Some((length, id)) = pieces.longest_prefix(rest) else {
                ids.truncate(before);
                return ids.push(self.unknown);
            };
            ids.push(id);
            (rest, pieces) = (&rest[length..], &self.following);
        }
    }

    /// Where the stretch ends that has a foreign character before this place; with those behind it that have more of
    /// them soon.
    fn end_of_foreign(&self, bytes: &[u8], mut at: usize) -> usize {
        while let Some(last) = bytes[at..].iter().take(NEAR).rposition(|byte| !byte.is_ascii()) {
            at += last + 1;
        }
        at + bytes[at..].iter().take_while(|byte| self.classes[usize::from(**byte)] != Class::Space).count()
    }
}

// === impl Class ===

impl Class {
    fn of(byte: u8, normalizer: &BertNormalizer) -> Self {
        match byte {
            b' ' | b'\t' | b'\n' | b'\r' => Self::Space,
            // What else is white space counts as a control character first.
            _ if byte.is_ascii_control() && normalizer.clean_text => Self::Nothing,
            0x0b | 0x0c => Self::Space,
            _ if byte.is_ascii_punctuation() => Self::Punctuation,
            _ if !byte.is_ascii() => Self::Foreign,
            _ if normalizer.lowercase => Self::Word(byte.to_ascii_lowercase()),
            _ => Self::Word(byte),
        }
    }
}

// === impl Added ===

impl Added {
    fn new(tokens: Vec<String>) -> Self {
        let mut begins = [false; 256];
        tokens.iter().filter_map(|token| token.bytes().next()).for_each(|byte| begins[usize::from(byte)] = true);
        Self { tokens, begins }
    }

    fn are_in(&self, bytes: &[u8]) -> bool {
        let here = |at: usize| self.tokens.iter().any(|token| bytes[at..].starts_with(token.as_bytes()));
        bytes.iter().enumerate().any(|(at, byte)| self.begins[usize::from(*byte)] && here(at))
    }
}
