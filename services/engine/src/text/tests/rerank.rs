//! Cross-encoders: two texts read together.

use super::*;
use crate::Task;

const RERANK: &str = "# rerank\n[text]\npooling = \"pooler\"\nmax_tokens = 8\n";

/// A cross-encoder with one logit, whose template is BERT's own: [CLS] a [SEP] b [SEP], the second text of type 1.
fn cross_encoder() -> (TextModel, Checkpoint) {
    let folder = tempfile::tempdir().unwrap();
    let (mut paper, mut file) = (checkpoint(""), checkpoint("bert."));
    for checkpoint in [&mut paper, &mut file] {
        checkpoint.insert(
            "classifier.weight".to_owned(),
            (vec![1, HIDDEN], (0..HIDDEN).map(|i| (i % 8) as f64 / 4.0 - 1.0).collect()),
        );
        checkpoint.insert("classifier.bias".to_owned(), (vec![1], vec![0.25]));
    }
    write(folder.path(), &file);
    let path = folder.path().join("tokenizer.json");
    let mut tokenizer: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let special = |id: &str, kind: u8| json!({"SpecialToken": {"id": id, "type_id": kind}});
    let sequence = |id: &str, kind: u8| json!({"Sequence": {"id": id, "type_id": kind}});
    tokenizer["post_processor"]["pair"] =
        json!([special("[CLS]", 0), sequence("A", 0), special("[SEP]", 0), sequence("B", 1), special("[SEP]", 1)]);
    fs::write(path, tokenizer.to_string()).unwrap();
    (load(folder.path(), RERANK).unwrap(), paper)
}

fn score(paper: &Paper<'_>, ids: &[usize], types: &[usize]) -> Vec<f64> {
    let pooled = paper.dense("pooler.dense", &paper.encode_pair(ids, types)[0]);
    paper.dense("classifier", &pooled.into_iter().map(f64::tanh).collect::<Vec<_>>())
}

fn rank(
    model: &TextModel,
    first: &Arc<First>,
    documents: &[&str],
    cut: Truncation,
) -> Vec<Result<TextOutput, ItemError>> {
    let pair = |document: &&str| Content::Pair(Arc::clone(first), (*document).to_owned());
    let inputs = documents.iter().map(pair).map(|content| TextInput { content, work: Work::Compute(cut) });
    compute(model, &inputs.collect::<Vec<_>>())
}

#[test]
fn scores_are_those_of_the_paper_with_both_types_of_tokens() {
    let (model, checkpoint) = cross_encoder();
    let paper = Paper { checkpoint: &checkpoint };
    assert_eq!((model.info().dimensions, model.info().task, model.head().is_none()), (0, Task::Rerank, true));
    let results = rank(&model, &First::query("a man"), &["food", "eats foods", " "], Truncation::End);
    let (food, foods) = (results[0].as_ref().unwrap(), results[1].as_ref().unwrap());
    assert_near(&food.values, &score(&paper, &[2, 4, 5, 3, 7, 3], &[0, 0, 0, 0, 1, 1]));
    assert_near(&foods.values, &score(&paper, &[2, 4, 5, 3, 6, 7, 8, 3], &[0, 0, 0, 0, 1, 1, 1, 1]));
    assert_eq!((food.tokens, food.truncated, foods.tokens, foods.truncated), (6, false, 8, false));
    assert_eq!(results[2].as_ref().unwrap_err().reason, Reason::Empty);
    // The types matter: without them the score is another.
    let untyped = score(&paper, &[2, 4, 5, 3, 7, 3], &[0; 6]);
    assert!((untyped[0] - f64::from(food.values[0])).abs() > 1e-3);
}

#[test]
fn the_end_of_a_document_is_cut_and_never_the_query() {
    let (model, checkpoint) = cross_encoder();
    let paper = Paper { checkpoint: &checkpoint };
    let result =
        rank(&model, &First::query("a man eats"), &["food a man eats food"], Truncation::End).remove(0).unwrap();
    assert_eq!((result.tokens, result.truncated), (8, true));
    assert_near(&result.values, &score(&paper, &[2, 4, 5, 6, 3, 7, 4, 3], &[0, 0, 0, 0, 0, 1, 1, 1]));
}

#[test]
fn a_query_of_more_than_half_the_tokens_fails_all_its_pairs() {
    let (model, _) = cross_encoder();
    let query = First::query("a man eats food a");
    let results = rank(&model, &query, &["food", "a"], Truncation::End);
    let message = "the query has 5 tokens, half of the model's 8 are its bound";
    assert!(results.iter().all(|result| result.as_ref().unwrap_err().message == message));
    assert_eq!(query.failure().unwrap().reason, Reason::TooLong);
    assert!(First::query("food").failure().is_none());
    let empty = First::query(" ");
    rank(&model, &empty, &["food"], Truncation::End);
    assert_eq!(empty.failure().unwrap().reason, Reason::Empty);
}

#[test]
fn of_two_texts_of_a_kind_the_longer_is_cut_first() {
    let (model, checkpoint) = cross_encoder();
    let paper = Paper { checkpoint: &checkpoint };
    let result = rank(&model, &First::text("a man eats food"), &["food"], Truncation::End).remove(0).unwrap();
    assert_eq!((result.tokens, result.truncated), (8, false));
    let result = rank(&model, &First::text("a man eats food a"), &["food a"], Truncation::End).remove(0).unwrap();
    assert_near(&result.values, &score(&paper, &[2, 4, 5, 6, 3, 7, 4, 3], &[0, 0, 0, 0, 0, 1, 1, 1]));
    let refused = rank(&model, &First::text("a man eats food a"), &["food a"], Truncation::Error).remove(0);
    assert_eq!(refused.unwrap_err().message, "the text has 10 tokens, the model takes 8");
    let odd = rank(&model, &First::text("a man eats food a"), &["food a"], Truncation::Start).remove(0);
    assert_eq!(odd.unwrap_err().reason, Reason::BadParameter);
}

#[test]
fn single_texts_beside_pairs_have_no_second_type() {
    let (model, checkpoint) = cross_encoder();
    let paper = Paper { checkpoint: &checkpoint };
    let pair = Content::Pair(First::query("a man"), "food".to_owned());
    let inputs = [
        input("a man", Truncation::Error),
        TextInput { content: pair, work: Work::Compute(Truncation::End) },
        input("food", Truncation::Error),
    ];
    let results = compute(&model, &inputs);
    assert_near(&results[0].as_ref().unwrap().values, &score(&paper, &[2, 4, 5, 3], &[0; 4]));
    assert_near(&results[1].as_ref().unwrap().values, &score(&paper, &[2, 4, 5, 3, 7, 3], &[0, 0, 0, 0, 1, 1]));
    assert_near(&results[2].as_ref().unwrap().values, &score(&paper, &[2, 7, 3], &[0; 3]));
}

#[test]
fn a_checkpoint_with_more_than_one_label_ranks_nothing() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &checkpoint("bert."));
    let error = load(folder.path(), RERANK).err().map(|error| error.to_string()).unwrap_or_default();
    assert!(error.contains("classifier.weight"), "{error}");
}
