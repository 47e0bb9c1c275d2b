//! A batch that is too large for one replica, answered as if it were not.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use prost::Message as _;
use proto::{
    common::v1::{ItemError, ModelInfo, Usage},
    embedding::v1::{
        EmbedInput, EmbedRequest, EmbedResponse, EmbedResult, Embedding, embed_input::Input, embed_result::Outcome,
    },
};
use tonic::Code;

use crate::{
    client::{Answer, EMBED, framed, request},
    front::Front,
    replica::{Do, Headers, Replica},
};

const SPLIT: &str = "split_items = 8\nbatch_items_max = 100";

/// Texts "0", "1", ..., of which every tenth is empty.
fn batch(items: usize) -> Vec<u8> {
    let text = |n: usize| if n % 10 == 9 { String::new() } else { n.to_string() };
    let input = |n: usize| EmbedInput { input: Some(Input::Text(text(n))) };
    EmbedRequest { inputs: (0..items).map(input).collect(), ..Default::default() }.encode_to_vec()
}

/// The vector of a text is its number; an empty one is an error.
fn embed(request: &[u8], revision: &str) -> Vec<u8> {
    let request = EmbedRequest::decode(request).unwrap();
    let result = |(index, input): (usize, &EmbedInput)| {
        let outcome = match &input.input {
            Some(Input::Text(text)) if !text.is_empty() => {
                Outcome::Embedding(Embedding { values: vec![text.parse().unwrap()], ..Default::default() })
            }
            _ => Outcome::Error(ItemError { reason: 1, message: "empty".into() }),
        };
        EmbedResult { index: index as u32, outcome: Some(outcome), ..Default::default() }
    };
    let response = EmbedResponse {
        results: request.inputs.iter().enumerate().map(result).collect(),
        model: Some(ModelInfo { revision: revision.into(), ..Default::default() }),
        usage: Some(Usage { items: request.inputs.len() as u64, ..Default::default() }),
        ..Default::default()
    };
    response.encode_to_vec()
}

/// A replica that has both revisions, and whose default is this one unless the call pins another.
fn embed_with(request: &[u8], default: &str) -> Vec<u8> {
    let pinned = EmbedRequest::decode(request).unwrap().model.map(|model| model.revision).unwrap_or_default();
    embed(request, if pinned.is_empty() { default } else { &pinned })
}

const OLD: Do = Do::Answer(|request| embed_with(request, "old"));
const NEW: Do = Do::Answer(|request| embed_with(request, "new"));

fn response(answer: &Answer) -> EmbedResponse {
    assert_eq!(answer.status().code(), Code::Ok, "{:?}", answer.status());
    EmbedResponse::decode(answer.data.slice(5..)).unwrap()
}

#[track_caller]
fn check(response: &EmbedResponse, items: usize) {
    assert_eq!(response.results.len(), items);
    for (n, result) in response.results.iter().enumerate() {
        assert_eq!(result.index as usize, n);
        match result.outcome.as_ref().unwrap() {
            Outcome::Embedding(embedding) => assert_eq!(embedding.values, [n as f32]),
            Outcome::Error(_) => assert_eq!(n % 10, 9),
        }
    }
    assert_eq!(response.usage.as_ref().unwrap().items, items as u64);
}

#[tokio::test]
async fn a_large_batch_is_shared_by_the_replicas_and_joined_in_order() {
    let (mut first, mut second) = (Replica::start(OLD).await, Replica::start(OLD).await);
    let front = Front::configured(&[first.address, second.address], SPLIT).await;
    front.until_ready(2).await;
    check(&response(&front.client.embed(&batch(75)).await), 75);
    let counts = (first.count(), second.count());
    assert_eq!(counts.0 + counts.1, 10, "75 items, at most 8 at once");
    assert!(counts.0 > 0 && counts.1 > 0, "{counts:?}");
}

#[tokio::test]
async fn a_batch_that_fits_one_replica_goes_there_as_it_is() {
    let mut replica = Replica::start(OLD).await;
    let front = Front::configured(&[replica.address], SPLIT).await;
    front.until_ready(1).await;
    check(&response(&front.client.embed(&batch(8)).await), 8);
    assert_eq!(replica.next().await.message, framed(&batch(8)));
    assert_eq!(replica.count(), 0);
}

#[tokio::test]
async fn a_batch_above_the_bound_is_refused_before_any_replica_sees_it() {
    let mut replica = Replica::start(OLD).await;
    let front = Front::configured(&[replica.address], SPLIT).await;
    front.until_ready(1).await;
    let refused = front.client.embed(&batch(101)).await;
    assert_eq!(refused.refusal(), (Code::InvalidArgument, "TOO_MANY_ITEMS".into()));
    assert!(refused.status().message().contains("101 items, at most 100"), "{}", refused.status().message());
    assert_eq!(replica.count(), 0);
}

#[tokio::test]
async fn a_lost_replica_costs_its_pieces_a_retry_and_not_the_batch() {
    let (first, second) = (Replica::start(Do::Cut).await, Replica::start(OLD).await);
    let front = Front::configured(&[first.address, second.address], SPLIT).await;
    front.until_ready(2).await;
    check(&response(&front.client.embed(&batch(60)).await), 60);
}

#[tokio::test]
async fn a_piece_that_fails_fails_the_batch_with_its_status() {
    let status = &[("grpc-status", "9"), ("grpc-message", "another revision")];
    for act in [Do::Refuse(status), Do::Status(status)] {
        let replica = Replica::start(act).await;
        let front = Front::configured(&[replica.address], SPLIT).await;
        front.until_ready(1).await;
        let failed = front.client.embed(&batch(60)).await.status();
        assert_eq!((failed.code(), failed.message()), (Code::FailedPrecondition, "another revision"));
    }
}

#[tokio::test]
async fn a_batch_is_answered_from_one_revision_even_while_a_model_is_swapped() {
    let (first, second) = (Replica::start(OLD).await, Replica::start(NEW).await);
    let front = Front::configured(&[first.address, second.address], SPLIT).await;
    front.until_ready(2).await;
    let joined = response(&front.client.embed(&batch(60)).await);
    check(&joined, 60);
    let revision = joined.model.unwrap().revision;
    assert!(["old", "new"].contains(&revision.as_str()), "{revision}");
}

/// A replica that has this revision only.
fn embed_only(request: &[u8], only: &str) -> Result<Vec<u8>, Headers> {
    let pinned = EmbedRequest::decode(request).unwrap().model.map(|model| model.revision).unwrap_or_default();
    if pinned.is_empty() || pinned == only { Ok(embed(request, only)) } else { Err(OTHER_REVISION) }
}

const OTHER_REVISION: Headers = &[("grpc-status", "9")];
const ONLY_OLD: Do = Do::Judge(|request| embed_only(request, "old"));
const ONLY_NEW: Do = Do::Judge(|request| embed_only(request, "new"));

#[tokio::test]
async fn a_swap_that_has_reached_one_replica_only_fails_no_batch() {
    let (first, second) = (Replica::start(ONLY_OLD).await, Replica::start(ONLY_NEW).await);
    let front = Front::configured(&[first.address, second.address], SPLIT).await;
    front.until_ready(2).await;
    for _ in 0..5 {
        check(&response(&front.client.embed(&batch(40)).await), 40);
    }
}

#[tokio::test]
async fn a_piece_that_finds_the_queue_full_comes_again() {
    static CALLS: AtomicUsize = AtomicUsize::new(0);
    let often_full = |request: &[u8]| match CALLS.fetch_add(1, Relaxed) % 3 {
        1 => Err(FULL),
        _ => Ok(embed(request, "old")),
    };
    let replica = Replica::start(Do::Judge(often_full)).await;
    let front = Front::configured(&[replica.address], SPLIT).await;
    front.until_ready(1).await;
    check(&response(&front.client.embed(&batch(60)).await), 60);
}

const FULL: Headers = &[("grpc-status", "8"), ("grpc-retry-pushback-ms", "100")];

#[tokio::test]
async fn what_is_no_item_is_not_multiplied_in_memory() {
    let replica = Replica::start(OLD).await;
    // Twelve pieces of 2 MiB each: as a whole they would not fit.
    let more = format!("{SPLIT}\n[server]\nmessage_bytes_max = '4MiB'\n[hold]\nrequest_bytes_max = '16MiB'");
    let front = Front::configured(&[replica.address], &more).await;
    front.until_ready(1).await;
    let mut request = batch(96);
    let unknown = vec![0; 2 << 20];
    // Field 1000, of no contract.
    request.extend_from_slice(b"\xc2\x3e");
    prost::encoding::encode_varint(unknown.len() as u64, &mut request);
    request.extend_from_slice(&unknown);
    check(&response(&front.client.embed(&request).await), 96);
}

#[tokio::test]
async fn a_cancelled_batch_leaves_every_replica() {
    let mut replica = Replica::start(Do::Hang).await;
    let front = Front::configured(&[replica.address], SPLIT).await;
    front.until_ready(1).await;
    let call = request(EMBED).header("grpc-timeout", "200m");
    let late = front.client.call(call, framed(&batch(60))).await;
    assert_eq!(late.refusal(), (Code::DeadlineExceeded, "DEADLINE".into()));
    // Two pieces for the one replica, and no more before these have ended.
    for _ in 0..2 {
        replica.next().await.over.cancelled().await;
    }
    assert_eq!(replica.count(), 0);
}
