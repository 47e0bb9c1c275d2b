use std::collections::HashMap;

use proptest::prelude::*;
use prost_types::{FileDescriptorSet, field_descriptor_proto::Label};
use proto::{
    classification::v1 as classification,
    embedding::v1::{self as embedding, embed_input::Input, embed_result, rerank_result},
};

use super::*;

const EMBED: &str = "/tamis.embedding.v1.EmbeddingService/Embed";
const RERANK: &str = "/tamis.embedding.v1.EmbeddingService/Rerank";

fn embed_request(texts: usize) -> embedding::EmbedRequest {
    let input = |n: usize| embedding::EmbedInput { input: Some(Input::Text(format!("text {n}"))) };
    let model = pb::ModelSelector { model: "m".into(), ..Default::default() };
    let params = embedding::EmbedParams { normalize: Some(false), ..Default::default() };
    embedding::EmbedRequest {
        model: Some(model),
        inputs: (0..texts).map(input).collect(),
        params: Some(params),
        ..Default::default()
    }
}

/// What a replica makes of a request: every third text fails, the vector is the number in the text.
fn embed(request: &embedding::EmbedRequest) -> embedding::EmbedResponse {
    let result = |(index, input): (usize, &embedding::EmbedInput)| {
        let Some(Input::Text(text)) = &input.input else { panic!("no text") };
        let number: f32 = text.strip_prefix("text ").unwrap().parse().unwrap();
        let outcome = if number as usize % 3 == 2 {
            embed_result::Outcome::Error(pb::ItemError { reason: 1, message: text.clone() })
        } else {
            embed_result::Outcome::Embedding(embedding::Embedding { values: vec![number], ..Default::default() })
        };
        embedding::EmbedResult { index: index as u32, outcome: Some(outcome), token_count: 4, truncated: false }
    };
    let items = request.inputs.len() as u64;
    embedding::EmbedResponse {
        results: request.inputs.iter().enumerate().map(result).collect(),
        model: Some(pb::ModelInfo { model: "m".into(), revision: "sha256:1".into(), ..Default::default() }),
        space_id: "space".into(),
        usage: Some(pb::Usage { items, input_tokens: 4 * items, input_bytes: 9, input_pixels: 0 }),
        matrix: (0..items as u8).collect::<Vec<_>>().into(),
        dimensions: 1,
        ..Default::default()
    }
}

/// The request of a piece.
fn whole(split: &Split, piece: Piece) -> Bytes {
    split.request(piece).collect::<Vec<_>>().concat().into()
}

fn bytes(message: &impl prost::Message) -> Bytes {
    message.encode_to_vec().into()
}

proptest! {
    #[test]
    fn a_split_batch_is_answered_as_a_whole_one(texts in 1usize..60, items_max in 1usize..20) {
        let (batch, request) = (of(EMBED).unwrap(), embed_request(texts));
        prop_assert_eq!(batch.items(bytes(&request)).unwrap(), texts);
        let split = batch.split(&bytes(&request), items_max).unwrap();
        prop_assert_eq!(split.is_some(), texts > items_max);
        let Some(split) = split else { return Ok(()) };
        prop_assert!(split.pieces.iter().all(|piece| (1..=items_max).contains(&piece.items)));
        let requests: Vec<_> =
            split.pieces.iter().map(|piece| embedding::EmbedRequest::decode(whole(&split, *piece)).unwrap()).collect();
        prop_assert!(requests.iter().all(|piece| piece.model == request.model && piece.params == request.params));
        let replies: Vec<_> = requests.iter().map(|request| bytes(&embed(request))).collect();
        let joined = embedding::EmbedResponse::decode(batch.join(&split, &replies).unwrap()).unwrap();
        let expected = embed(&request);
        prop_assert_eq!(&joined.results, &expected.results);
        prop_assert_eq!((joined.model, joined.space_id, joined.dimensions), (expected.model, expected.space_id, 1));
        prop_assert_eq!(joined.matrix.len(), texts);
        let usage = joined.usage.unwrap();
        prop_assert_eq!((usage.items, usage.input_tokens), (texts as u64, 4 * texts as u64));
    }

    #[test]
    fn ranked_pieces_rank_as_the_whole(
        scores in prop::collection::vec(prop::option::of(-3i8..3), 2..50),
        items_max in 1usize..9,
        top_n in prop::option::of(1u32..20),
    ) {
        let documents = scores.iter().map(|score| format!("{score:?}, a document")).collect();
        let request = embedding::RerankRequest { documents, top_n, query: "q".into(), ..Default::default() };
        let batch = of(RERANK).unwrap();
        let Some(split) = batch.split(&bytes(&request), items_max).unwrap() else { return Ok(()) };
        let replies: Vec<_> = split
            .pieces
            .iter()
            .map(|piece| bytes(&rank(&scores[piece.first..piece.first + piece.items], top_n)))
            .collect();
        let joined = embedding::RerankResponse::decode(batch.join(&split, &replies).unwrap()).unwrap();
        prop_assert_eq!(joined.results, rank(&scores, top_n).results);
    }
}

/// The contract's order, written down plainly.
fn rank(scores: &[Option<i8>], top_n: Option<u32>) -> embedding::RerankResponse {
    let result = |(index, score): (usize, &Option<i8>)| embedding::RerankResult {
        index: index as u32,
        outcome: Some(match score {
            Some(score) => rerank_result::Outcome::Score(f32::from(*score)),
            None => rerank_result::Outcome::Error(pb::ItemError::default()),
        }),
        ..Default::default()
    };
    let all: Vec<_> = scores.iter().enumerate().map(result).collect();
    let key = |result: &embedding::RerankResult| match result.outcome {
        Some(rerank_result::Outcome::Score(score)) => Some(-score as i32),
        _ => None,
    };
    let mut scored: Vec<_> = all.iter().filter(|result| key(result).is_some()).cloned().collect();
    scored.sort_by_key(|result| key(result));
    scored.truncate(top_n.map_or(usize::MAX, |n| n as usize));
    scored.extend(all.into_iter().filter(|result| key(result).is_none()));
    embedding::RerankResponse { results: scored, ..Default::default() }
}

#[test]
fn what_fits_is_not_taken_apart() {
    let batch = of(EMBED).unwrap();
    assert_eq!(batch.split(&bytes(&embed_request(64)), 64).unwrap(), None);
    assert_eq!(batch.split(&Bytes::new(), 64).unwrap(), None);
    assert!(of("/tamis.embedding.v1.EmbeddingService/EmbedStream").is_none());
}

#[test]
fn what_is_no_message_is_refused() {
    let garbage = Bytes::from(vec![0xff; 4096]);
    assert!(of(EMBED).unwrap().split(&garbage, 4).is_err());
    assert!(of(EMBED).unwrap().items(garbage).is_err());
}

#[test]
fn fields_that_this_gateway_does_not_know_stay() {
    let batch = of(EMBED).unwrap();
    let mut request = BytesMut::from(&bytes(&embed_request(3))[..]);
    put_content(&mut request, 1000, b"new in the request");
    let split = batch.split(&request.freeze(), 2).unwrap().unwrap();
    let kept = |message: &Bytes| wire::fields(message.clone()).any(|field| field.unwrap().number == 1000);
    assert!(split.pieces.iter().all(|piece| kept(&whole(&split, *piece))));
    let mut reply = BytesMut::from(&bytes(&embed(&embed_request(1)))[..]);
    put_content(&mut reply, 1000, b"new in the reply");
    let replies = [reply.freeze(), bytes(&embed(&embed_request(2)))];
    assert!(kept(&batch.join(&split, &replies).unwrap()));
}

#[test]
fn a_pinned_piece_keeps_what_its_selector_says() {
    let batch = of(EMBED).unwrap();
    let split = batch.split(&bytes(&embed_request(3)), 2).unwrap().unwrap();
    let model = batch.model(&bytes(&embed(&embed_request(1)))).unwrap();
    let pinned = [whole(&split, split.pieces[1]), Batch::pin(model).unwrap()].concat();
    let selector = embedding::EmbedRequest::decode(&pinned[..]).unwrap().model.unwrap();
    assert_eq!((selector.model.as_str(), selector.revision.as_str()), ("m", "sha256:1"));
}

#[test]
fn the_slowest_piece_has_the_batchs_times() {
    let batch = of("/tamis.classification.v1.ClassificationService/Classify").unwrap();
    let inputs = (0..3).map(|_| classification::TextInput { text: "a text".into(), text_pair: None }).collect();
    let request = classification::ClassifyRequest { inputs, ..Default::default() };
    let split = batch.split(&bytes(&request), 1).unwrap().unwrap();
    let reply = |millis: i32| {
        let total = Some(prost_types::Duration { seconds: 0, nanos: millis * 1_000_000 });
        let timing = pb::Timing { total, items: 1, replica: format!("r{millis}"), ..Default::default() };
        bytes(&classification::ClassifyResponse { timing: Some(timing), ..Default::default() })
    };
    let joined = batch.join(&split, &[reply(3), reply(9), reply(5)]).unwrap();
    let timing = classification::ClassifyResponse::decode(joined).unwrap().timing.unwrap();
    assert_eq!((timing.items, timing.replica.as_str()), (3, "r9"));
}

/// Numbers in the table are those of the contracts.
#[test]
fn the_table_agrees_with_the_contracts() {
    let set = FileDescriptorSet::decode(proto::DESCRIPTORS).unwrap();
    let messages: HashMap<_, _> = set
        .file
        .iter()
        .flat_map(|file| {
            file.message_type.iter().map(|message| (format!(".{}.{}", file.package(), message.name()), message))
        })
        .collect();
    let number = |message: &str, field: &str| {
        let field = messages[message].field.iter().find(|candidate| candidate.name() == field);
        field.map_or(0, |field| field.number() as u32)
    };
    let mut checked = 0;
    for (file, service) in set.file.iter().flat_map(|file| file.service.iter().map(move |service| (file, service))) {
        for method in &service.method {
            let path = format!("/{}.{}/{}", file.package(), service.name(), method.name());
            let Some(batch) = of(&path) else { continue };
            let (request, reply) = (method.input_type(), method.output_type());
            let repeated =
                ["inputs", "texts", "images", "documents"].into_iter().find(|name| number(request, name) > 0);
            assert_eq!(number(request, repeated.unwrap()), batch.items, "{path}");
            assert_eq!(number(request, "model"), SELECTOR, "{path}");
            for (name, expected) in [
                ("results", batch.results),
                ("model", batch.model),
                ("usage", batch.usage),
                ("timing", batch.timing),
                ("matrix", batch.matrix),
            ] {
                assert_eq!(number(reply, name), expected, "{path}: {name}");
            }
            let results = messages[reply].field.iter().find(|field| field.name() == "results").unwrap();
            assert_eq!(results.label(), Label::Repeated);
            assert_eq!(number(results.type_name(), "index"), INDEX, "{path}");
            if let Order::Score { top_n } = batch.order {
                assert_eq!((number(request, "top_n"), number(results.type_name(), "score")), (top_n, SCORE), "{path}");
            }
            checked += 1;
        }
    }
    assert_eq!(checked, BATCHES.len());
    assert_eq!(number(".tamis.common.v1.ModelSelector", "revision"), REVISION);
}
