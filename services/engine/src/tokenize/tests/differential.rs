//! The fast path against `tokenizers`, over more than 100,000 texts.

use super::*;

/// A generator that is the same everywhere.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % bound
    }

    fn one_of<'a>(&mut self, choice: &[&'a str]) -> &'a str {
        choice[self.below(choice.len())]
    }

    fn ascii(&mut self) -> char {
        char::from(self.below(128) as u8)
    }

    fn control(&mut self) -> char {
        [self.below(32), 0x7f, 0x80 + self.below(32), 0x200b, 0xfeff, 0xfffd][self.below(6)]
            .try_into()
            .ok()
            .and_then(char::from_u32)
            .unwrap()
    }

    /// A character of this plane of Unicode.
    fn of_plane(&mut self, plane: usize) -> char {
        loop {
            if let Some(letter) = char::from_u32(((plane << 16) + self.below(1 << 16)) as u32) {
                return letter;
            }
        }
    }

    fn many(&mut self, most: usize, mut part: impl FnMut(&mut Self) -> String) -> String {
        (0..=self.below(most)).map(|_| part(self)).collect()
    }
}

const KINDS: usize = 8;
const GLUE: [&str; 16] =
    [" ", " ", " ", "", "", "  ", "\t", "\n", "\r\n", ", ", "-", ".", "\u{b}", "\u{a0}", "\u{2003}", "\u{301}"];

/// A text of one of the kinds on which tokenizers differ.
fn text(dice: &mut Dice, kind: usize, vocabulary: &[String]) -> String {
    let word = |dice: &mut Dice| {
        let word = vocabulary[dice.below(vocabulary.len())].trim_start_matches("##");
        if dice.below(4) == 0 { word.to_uppercase() } else { word.to_owned() }
    };
    let glued = |dice: &mut Dice| word(dice) + dice.one_of(&GLUE);
    match kind {
        0 => dice.many(60, |dice| dice.ascii().to_string()),
        1 => dice.many(30, glued),
        2 => {
            let plane = dice.below(17);
            dice.many(12, |dice| [dice.of_plane(plane).to_string(), word(dice), dice.one_of(&GLUE).to_owned()].concat())
        }
        3 => dice.many(20, |dice| format!("{}{}", word(dice), dice.control())),
        4 => {
            let length = 90 + dice.below(30);
            let letters: String = (0..length).map(|_| char::from(b'a' + dice.below(3) as u8)).collect();
            glued(dice) + &letters + &glued(dice) + &dice.many(200, word)
        }
        5 => dice.many(40, |dice| char::from(b"!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~ a"[dice.below(34)]).to_string()),
        6 => {
            let cut = ["[SEP", "[sep]", "SEP]", "[\u{1}SEP]", "[MASK] ", "[", "[[CLS]]", "[Unk]", "##s", "# #"];
            let special = |dice: &mut Dice| dice.one_of(&SPECIAL).to_owned();
            dice.many(6, |dice| {
                let part = if dice.below(3) == 0 { special(dice) } else { dice.one_of(&cut).to_owned() };
                part + &glued(dice)
            })
        }
        _ => {
            let real = REAL[dice.below(REAL.len())];
            let (start, length) = (dice.below(real.len()), dice.below(300));
            real[real.floor_char_boundary(start)..real.floor_char_boundary(start + length)].to_owned()
        }
    }
}

/// Every combination of settings that matters to the fast path is somewhere among these.
fn settings(vocabulary: &[String]) -> Vec<Value> {
    let bert = bert(vocabulary);
    let cased = with(&bert, "/normalizer/lowercase", json!(false));
    let raw = with(&bert, "/normalizer/clean_text", json!(false));
    let accents = with(&cased, "/normalizer/strip_accents", json!(true));
    let scripts = with(&bert, "/normalizer/handle_chinese_chars", json!(false));
    let short = with(&with(&raw, "/normalizer/lowercase", json!(false)), "/model/max_input_chars_per_word", json!(7));
    let prefix = with(&bert, "/model/continuing_subword_prefix", json!("s"));
    let token = with(
        &bert,
        "/added_tokens/4",
        json!({"id": 4, "content": "the ", "single_word": true, "lstrip": true,
        "rstrip": true, "normalized": false, "special": false}),
    );
    vec![bert, cased, raw, accents, scripts, short, prefix, token]
}

#[track_caller]
fn compare(fast: &WordPiece, tokenizer: &Tokenizer, text: &str) {
    let (found, expected) = (fast_ids(fast, tokenizer, text).0, ids(tokenizer, text));
    assert_eq!(found, expected, "{text:?}");
}

#[test]
fn a_hundred_thousand_texts_of_every_kind_have_the_ids_of_tokenizers() {
    let (vocabulary, mut dice) = (vocabulary(), Dice(1));
    let mut compared = 0;
    for json in settings(&vocabulary) {
        let tokenizer = tokenizer(&json);
        let fast = WordPiece::of(&tokenizer).unwrap();
        for round in 0..12_500 {
            compare(&fast, &tokenizer, &text(&mut dice, round % KINDS, &vocabulary));
            compared += 1;
        }
    }
    assert!(compared >= 100_000, "{compared}");
}

#[test]
fn every_character_of_unicode_leaves_its_neighbours_alone_as_in_tokenizers() {
    let tokenizer = tokenizer(&bert(&vocabulary()));
    let fast = WordPiece::of(&tokenizer).unwrap();
    // Most planes have nothing but private or unassigned characters, which are all alike.
    let told = |letter: &char| matches!(*letter as u32 >> 16, 0..=3 | 14) || (*letter as u32).is_multiple_of(17);
    let letters: Vec<char> = (char::MIN..=char::MAX).filter(told).collect();
    // Alone, within a word, at either end of one; so far apart that each is for itself.
    let around = [(" ", " "), ("", ""), (" ", ""), ("", " ")];
    for letters in letters.chunks(16) {
        let part = |(at, letter): (usize, &char)| {
            let (before, behind) = around[at % around.len()];
            format!("words of ASCII before{before}{letter}{behind}and behind it, as many")
        };
        compare(&fast, &tokenizer, &letters.iter().enumerate().map(part).collect::<String>());
    }
}
