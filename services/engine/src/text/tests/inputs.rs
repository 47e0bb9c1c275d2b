//! What a text may come as, and how it is cut.

use super::*;

const PROMPTED: &str =
    "[text]\npooling = \"mean\"\nmax_tokens = 8\nprompts = { query = \"food: \", document = \"man \" }\n";

fn one(model: &TextModel, content: Content, work: Work) -> Result<TextOutput, ItemError> {
    compute(model, &[TextInput { content, work }]).remove(0)
}

fn text(text: &str) -> Content {
    Content::Text(text.to_owned(), Role::Symmetric)
}

fn reason(result: Result<TextOutput, ItemError>) -> Reason {
    result.unwrap_err().reason
}

const LONG: &str = "a man eats food a man eats foods";
/// The tokens of [`LONG`] without those of the template.
const LONG_IDS: [usize; 9] = [4, 5, 6, 7, 4, 5, 6, 7, 8];

fn around(content: &[usize]) -> Vec<usize> {
    [&[2], content, &[3]].concat()
}

#[test]
fn the_start_of_a_text_is_cut_off() {
    let (model, checkpoint) = tiny(MEAN);
    let output = one(&model, text(LONG), Work::Compute(Truncation::Start)).unwrap();
    assert_eq!((output.tokens, output.truncated), (8, true));
    let expected = Paper { checkpoint: &checkpoint }.encode(&around(&LONG_IDS[3..]));
    assert_near(&output.values, &mean(&expected));
}

#[test]
fn the_windows_of_a_text_are_weighted_by_their_tokens() {
    let (model, checkpoint) = tiny(MEAN);
    let paper = Paper { checkpoint: &checkpoint };
    let output = one(&model, text(LONG), Work::Compute(Truncation::ChunkMean)).unwrap();
    assert_eq!((output.tokens, output.truncated), (13, false));
    let windows = [&LONG_IDS[..6], &LONG_IDS[6..]].map(around).map(|ids| (ids.len(), mean(&paper.encode(&ids))));
    let component = |i: usize| windows.iter().map(|(n, vector)| *n as f64 * vector[i]).sum::<f64>() / 13.0;
    assert_near(&output.values, &(0..HIDDEN).map(component).collect::<Vec<_>>());
    // A text that fits has one window.
    let short = one(&model, text("a man"), Work::Compute(Truncation::ChunkMean)).unwrap();
    assert_eq!(short.values, run(&model, &["a man"]).remove(0).unwrap().values);
    let endless = "food ".repeat(19);
    assert_eq!(reason(one(&model, text(&endless), Work::Compute(Truncation::ChunkMean))), Reason::TooLong);
}

#[test]
fn windows_do_not_mix_with_other_texts() {
    let (model, _) = tiny(MEAN);
    let inputs =
        || [input("food", Truncation::Error), input(LONG, Truncation::ChunkMean), input("", Truncation::Error)];
    let inputs: Vec<_> = inputs().into_iter().chain([input("a man", Truncation::Error)]).collect();
    let together = compute(&model, &inputs);
    let alone = one(&model, text(LONG), Work::Compute(Truncation::ChunkMean)).unwrap();
    assert_eq!(together[1].as_ref().unwrap().values, alone.values);
    let last = run(&model, &["a man"]).remove(0).unwrap();
    assert_eq!(together[3].as_ref().unwrap().values, last.values);
    assert!(together[2].is_err());
}

#[test]
fn token_ids_are_computed_as_they_are() {
    let (model, checkpoint) = tiny(MEAN);
    let paper = Paper { checkpoint: &checkpoint };
    let ids = |ids: &[u32], cut| one(&model, Content::Tokens(ids.to_vec()), Work::Compute(cut));
    let output = ids(&[4, 5], Truncation::Error).unwrap();
    assert_eq!(output.tokens, 2);
    assert_near(&output.values, &mean(&paper.encode(&[4, 5])));
    assert_eq!(reason(ids(&[], Truncation::Error)), Reason::Empty);
    assert_eq!(reason(ids(&[9], Truncation::Error)), Reason::BadParameter);
    let many = [2, 4, 5, 6, 7, 4, 5, 6, 7, 8, 3];
    assert_eq!(reason(ids(&many, Truncation::Error)), Reason::TooLong);
    for cut in [Truncation::Start, Truncation::End, Truncation::ChunkMean] {
        let same = one(&model, text(LONG), Work::Compute(cut)).unwrap();
        assert_eq!(ids(&many, cut).unwrap().values, same.values, "{cut:?}");
    }
}

/// A model whose tokenizer.json was changed so.
fn with_tokenizer(change: impl Fn(&mut serde_json::Value)) -> Result<TextModel, Error> {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &checkpoint(""));
    let path = folder.path().join("tokenizer.json");
    let mut tokenizer = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut tokenizer);
    fs::write(&path, tokenizer.to_string()).unwrap();
    load(folder.path(), MEAN)
}

#[test]
fn a_word_that_the_checkpoint_has_no_vector_of_fails_its_text_alone() {
    let added = json!({"id": WORDS.len(), "content": "zebra", "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false, "special": false});
    let model = with_tokenizer(|json| json["added_tokens"].as_array_mut().unwrap().push(added.clone())).unwrap();
    let results = run(&model, &["a man", "a zebra eats", "food"]);
    let error = results[1].as_ref().unwrap_err();
    assert_eq!(error.reason, Reason::Engine);
    assert!(error.message.contains("the token id 9 is beyond the vocabulary of 9"), "{error}");
    assert_eq!(results[0].as_ref().unwrap().values, run(&model, &["a man"])[0].as_ref().unwrap().values);
    assert!(results[2].is_ok());
    let refusal = with_tokenizer(|json| json["post_processor"]["special_tokens"]["[SEP]"]["ids"] = json!([9]));
    let refusal = refusal.err().unwrap().to_string();
    assert!(refusal.contains("tokenizer.json") && refusal.contains("the token id 9 is beyond"), "{refusal}");
}

#[test]
fn a_prompt_stands_before_every_text_of_its_role() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = checkpoint("");
    write(folder.path(), &checkpoint);
    let model = load(folder.path(), PROMPTED).unwrap();
    let paper = Paper { checkpoint: &checkpoint };
    let embed = |text: &str, role| {
        let output = one(&model, Content::Text(text.to_owned(), role), Work::Compute(Truncation::Start)).unwrap();
        (output.tokens, output.values)
    };
    // ":" is not in the vocabulary: it is [UNK], id 1.
    assert_near(&embed("a man", Role::Query).1, &mean(&paper.encode(&[2, 7, 1, 4, 5, 3])));
    assert_near(&embed("a man", Role::Document).1, &mean(&paper.encode(&[2, 5, 4, 5, 3])));
    assert_near(&embed("a man", Role::Symmetric).1, &mean(&paper.encode(&[2, 4, 5, 3])));
    // What is cut is the text: its prompt stays.
    assert_near(&embed(LONG, Role::Query).1, &mean(&paper.encode(&[2, 7, 1, 5, 6, 7, 8, 3])));
    let blank = Content::Text(" ".to_owned(), Role::Query);
    assert_eq!(reason(one(&model, blank, Work::Compute(Truncation::Error))), Reason::Empty);
}

#[test]
fn tokens_are_counted_before_any_cut_and_nothing_is_computed() {
    let (model, _) = tiny(MEAN);
    let output = one(&model, text(LONG), Work::Count).unwrap();
    assert_eq!((output.tokens, output.truncated, output.values.len()), (11, false, 0));
    assert_eq!(reason(one(&model, text(""), Work::Count)), Reason::Empty);
    assert_eq!(reason(one(&model, text(&"a".repeat(101)), Work::Count)), Reason::TooLarge);
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &checkpoint(""));
    let prompted = load(folder.path(), PROMPTED).unwrap();
    let query = Content::Text("a man".to_owned(), Role::Query);
    assert_eq!(one(&prompted, query, Work::Count).unwrap().tokens, 6);
}

#[test]
fn units_follow_what_is_computed() {
    let (model, _) = tiny(MEAN);
    let units = |content, work| model.units(&TextInput { content, work });
    assert_eq!(units(Content::Tokens(vec![4; 5]), Work::Compute(Truncation::Error)), 5);
    assert_eq!(units(Content::Tokens(vec![4; 50]), Work::Compute(Truncation::End)), 8);
    assert_eq!(units(Content::Tokens(vec![4; 50]), Work::Compute(Truncation::ChunkMean)), 24);
    assert_eq!(units(text(&"a".repeat(90)), Work::Count), 1);
    // Of a long text most is cut off, and all of it is tokenized first.
    let long = || text(&"a".repeat(6400));
    assert_eq!(units(long(), Work::Compute(Truncation::End)), 8 + 25);
    assert_eq!(units(long(), Work::Compute(Truncation::Start)), 8 + 25);
    assert_eq!(units(long(), Work::Compute(Truncation::Error)), 8 + 25);
    assert_eq!(units(long(), Work::Compute(Truncation::ChunkMean)), 24 + 25);
    assert_eq!(units(long(), Work::Count), 25);
}

#[test]
fn units_follow_what_a_text_is_made_of() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &checkpoint(""));
    let model = load(folder.path(), MEAN).unwrap();
    // Counted, so that no limit hides the guess: 64 tokens are a unit.
    let counted = |of: &str| model.units(&TextInput { content: text(of), work: Work::Count });
    let units = |of: &str| counted(&of.repeat(6400 / of.len()));
    assert_eq!([units("abc "), units("0"), units("!"), units("\u{4e2d}")], [25, 50, 100, 33]);
    // Of a long text the start is looked at.
    assert_eq!(counted(&format!("{}{}", "abc ".repeat(5000), "!".repeat(5000))), 97);
    // The same of both texts of a pair, of which the first is looked at once.
    let pair = |first: &str, second: &str| TextInput {
        content: Content::Pair(First::text(first), second.to_owned()),
        work: Work::Compute(Truncation::End),
    };
    assert_eq!([model.units(&pair("abcd", "efgh")), model.units(&pair("!!", "!"))], [4, 5]);
}

#[test]
fn texts_of_more_tokens_than_a_step_has_room_for_come_back_whole() {
    let (model, _) = tiny(MEAN);
    let texts = ["a man eats food", "man eats foods", "food", ""].map(|of| input(of, Truncation::End));
    let all: Vec<_> = texts.iter().collect();
    let tokens = |units_max| -> Vec<_> {
        let steps = model.step(&all, units_max, &mut Watch::start(&|| true));
        let length = |step: Step<TextModel>| match step {
            Step::Done(output) => output.tokens as i32,
            Step::Later(rest) => -(model.units(&rest) as i32),
            Step::Rest(_) => panic!("a text of one window was begun and not ended"),
        };
        steps.into_iter().map(|step| step.map(length).map_err(|error| error.reason)).collect()
    };
    let empty = Err(Reason::Empty);
    assert_eq!(tokens(100), [Ok(6), Ok(6), Ok(3), empty]);
    assert_eq!(tokens(10), [Ok(6), Ok(6), Ok(3), empty]);
    assert_eq!(tokens(8), [Ok(6), Ok(6), Ok(-3), empty]);
    assert_eq!(tokens(6), [Ok(6), Ok(-6), Ok(3), empty]);
    assert_eq!(tokens(1), [Ok(6), Ok(-6), Ok(-3), empty]);
}

#[test]
fn fewer_components_are_another_space() {
    let (model, _) = tiny(MEAN);
    let space = |dimensions| model.info().space_id(true, dimensions);
    assert_eq!(space(None), space(Some(HIDDEN as u32)));
    assert_ne!(space(None), space(Some(4)));
    assert_ne!(space(Some(2)), space(Some(4)));
}

#[test]
fn token_ids_are_those_that_are_computed() {
    let (model, _) = tiny(PROMPTED);
    let ids = model.token_ids(LONG, Role::Document).unwrap();
    let by_ids = one(&model, Content::Tokens(ids.clone()), Work::Compute(Truncation::Error)).unwrap();
    let document = Content::Text(LONG.to_owned(), Role::Document);
    let by_text = one(&model, document, Work::Compute(Truncation::End)).unwrap();
    assert_eq!((by_ids.values, ids.len()), (by_text.values, 8));
    assert_eq!(model.token_ids("  ", Role::Symmetric).unwrap_err().reason, Reason::Empty);
}
