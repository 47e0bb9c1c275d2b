use std::{
    cell::Cell,
    collections::{BTreeSet, HashMap},
};

use serde_json::{Value, json};
use tokenizers::NormalizerWrapper;

use super::*;

mod differential;

const SPECIAL: [&str; 5] = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];

/// English with code, quotes, dashes, arrows and tables.
const REAL: [&str; 3] = [
    include_str!("../../../../README.md"),
    include_str!("../../../../ARCHITECTURE.md"),
    include_str!("../../../../docs/operating.md"),
];

/// A vocabulary like those of real models: special tokens, characters, words, endings, and some of other scripts.
fn vocabulary() -> Vec<String> {
    let mut pieces: BTreeSet<String> = (0x21_u8..0x7f).map(|byte| char::from(byte).to_string()).collect();
    pieces.extend(('a'..='z').chain('0'..='9').chain('A'..='R').map(|letter| format!("##{letter}")));
    pieces.extend(["é", "über", "##ß", "中", "国", "##и", "мир", "ا", "##́", "don'", "##'t", "a b"].map(str::to_owned));
    for word in REAL.iter().flat_map(|text| text.split(|letter: char| !letter.is_ascii_alphanumeric())) {
        let lower = word.to_ascii_lowercase();
        let length = word.len();
        // Not every word, so that many are cut; the seven is as good as any number.
        if length % 7 != 0 {
            pieces.extend([word.to_owned(), lower.clone()]);
        }
        if length > 4 {
            pieces.extend([lower[..3].to_owned(), format!("##{}", &lower[3..]), format!("##{}", &lower[length - 2..])]);
        }
    }
    pieces.remove("");
    SPECIAL.map(str::to_owned).into_iter().chain(pieces).collect()
}

/// A tokenizer.json of BERT's kind with this vocabulary.
fn bert(vocabulary: &[String]) -> Value {
    let special = |(id, content): (usize, &&str)| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true})
    };
    let ids: HashMap<_, _> = vocabulary.iter().enumerate().map(|(id, piece)| (piece, id)).collect();
    json!({
        "version": "1.0", "truncation": null, "padding": null, "decoder": null,
        "added_tokens": SPECIAL.iter().enumerate().map(special).collect::<Vec<_>>(),
        "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
            "strip_accents": null, "lowercase": true},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "BertProcessing", "cls": ["[CLS]", 2], "sep": ["[SEP]", 3]},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": ids},
    })
}

fn tokenizer(json: &Value) -> Tokenizer {
    json.to_string().parse().unwrap()
}

/// The same with one setting changed, by its JSON pointer.
fn with(json: &Value, pointer: &str, value: Value) -> Value {
    let mut json = json.clone();
    *json.pointer_mut(pointer).unwrap() = value;
    json
}

fn ids(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
    tokenizer.encode_fast(text, false).unwrap().get_ids().to_vec()
}

/// What the fast path gives, and how often it asked the slow one.
fn fast_ids(fast: &WordPiece, tokenizer: &Tokenizer, text: &str) -> (Vec<u32>, u32) {
    let asked = Cell::new(0);
    let slow = |part: &str| {
        asked.set(asked.get() + 1);
        Ok::<_, ItemError>(ids(tokenizer, part))
    };
    let ids = fast.encode(text, slow).unwrap();
    (ids, asked.get())
}

#[test]
fn ascii_takes_the_fast_path_and_the_rest_of_a_text_keeps_to_it() {
    let tokenizer = tokenizer(&bert(&vocabulary()));
    let fast = WordPiece::of(&tokenizer).unwrap();
    let asked = |text: &str| fast_ids(&fast, &tokenizer, text).1;
    assert_eq!(asked("Plain text, with \u{1}control\u{7f} characters\tand punct-u-ation."), 0);
    assert_eq!(asked(&"long".repeat(1000)), 0);
    assert_eq!(asked("one café among words"), 1);
    assert_eq!(asked("café, naïve über-words, and behind many words of ASCII one more café"), 2, "near ones together");
    assert_eq!(asked("a token [SEP] inside of a café"), 1, "the whole text");
    assert_eq!(asked("[sep] is no token, [SEP is none"), 0);
}

#[test]
fn a_tokenizer_that_is_not_known_to_the_last_detail_has_no_fast_path() {
    let bert = bert(&vocabulary());
    let fast = |json: &Value| WordPiece::of(&tokenizer(json)).is_some();
    assert!(fast(&bert));
    assert!(!fast(&with(&bert, "/normalizer", json!({"type": "Lowercase"}))));
    assert!(!fast(&with(&bert, "/normalizer", Value::Null)));
    assert!(!fast(&with(&bert, "/pre_tokenizer", json!({"type": "Whitespace"}))));
    assert!(!fast(&with(&bert, "/model/type", json!("WordLevel"))));
    assert!(!fast(&with(&bert, "/added_tokens/4/normalized", json!(true))));
    let mut gap = bert.clone();
    gap["model"]["vocab"]["beyond"] = json!(1_000_000);
    assert!(!fast(&gap));
    // The slow path answers there.
    let mut slow = tokenizer(&bert);
    slow.with_normalizer(None::<NormalizerWrapper>).unwrap();
    assert!(!ids(&slow, "Text").is_empty());
}

#[test]
fn a_template_is_set_as_the_tokenizer_sets_it() {
    let bert = bert(&vocabulary());
    let special = |id: &str, kind: u32| json!({"SpecialToken": {"id": id, "type_id": kind}});
    let sequence = |id: &str, kind: u32| json!({"Sequence": {"id": id, "type_id": kind}});
    let token = |content: &str, ids: &[u32]| json!({"id": content, "ids": ids, "tokens": vec![content; ids.len()]});
    let template = json!({"type": "TemplateProcessing",
        "single": [special("<", 0), sequence("A", 0)],
        "pair": [sequence("B", 1), special("<", 4), sequence("A", 2), special(">", 3)],
        "special_tokens": {"<": token("<", &[7, 8]), ">": token(">", &[9])}});
    let roberta = json!({"type": "RobertaProcessing", "cls": ["[CLS]", 2], "sep": ["[SEP]", 3],
        "trim_offsets": true, "add_prefix_space": false});
    let several = json!({"type": "Sequence", "processors": [
        {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false, "use_regex": true}, template]});
    for processor in [bert["post_processor"].clone(), template, roberta, several, Value::Null] {
        let tokenizer = tokenizer(&with(&bert, "/post_processor", processor));
        let learned = Template::learn(&tokenizer).unwrap();
        let (first, second) = ("one text", "and another one");
        let (first_ids, second_ids) = (ids(&tokenizer, first), ids(&tokenizer, second));
        let single = tokenizer.encode_fast(first, true).unwrap();
        assert_eq!(learned.around(&first_ids), single.get_ids());
        let mask = single.get_special_tokens_mask();
        let Ends { head, tail } = learned.ends();
        assert_eq!(head, mask.iter().take_while(|special| **special == 1).count());
        assert_eq!(tail, mask.iter().rev().take_while(|special| **special == 1).count());
        let pair = tokenizer.encode((first, second), true).unwrap();
        let window = learned.around_both(&first_ids, &second_ids);
        assert_eq!((window.ids.as_slice(), window.types.as_deref()), (pair.get_ids(), Some(pair.get_type_ids())));
        assert_eq!(learned.pair_specials() + first_ids.len() + second_ids.len(), pair.len());
    }
}

#[test]
fn a_template_that_makes_no_sense_is_refused_when_it_is_loaded() {
    let bert = bert(&vocabulary());
    let complaint = |single: Value| {
        let template = json!({"type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": {}});
        Template::learn(&tokenizer(&with(&bert, "/post_processor", template))).unwrap_err()
    };
    let text = json!({"Sequence": {"id": "A", "type_id": 0}});
    assert_eq!(complaint(json!([text, text])), "its template has the text 2 times, it should be once");
    assert_eq!(complaint(json!([])), "its template has the text 0 times, it should be once");
    let unknown = json!([text, {"SpecialToken": {"id": "[CLS]", "type_id": 0}}]);
    assert_eq!(complaint(unknown), "its template names what it does not define");
}
