use proptest::prelude::*;
use prost::Message as _;
use proto::vision::v1::{self as pb, image_input::Source};

use super::*;
use crate::replay::Reader;

fn image(source: Source) -> pb::ImageInput {
    let crop = pb::BoundingBox { x_min: 0.1, y_min: 0.2, x_max: 0.3, y_max: 0.4 };
    pb::ImageInput { source: Some(source), crop: Some(crop) }
}

fn digest(bytes: &'static [u8]) -> Source {
    Source::Digest(Digest::of(bytes).to_string())
}

fn encoded(bytes: &'static [u8]) -> Source {
    Source::Encoded(Bytes::from_static(bytes))
}

fn request(sources: impl IntoIterator<Item = Source>) -> pb::ClassifyImagesRequest {
    let model = Some(proto::common::v1::ModelSelector { model: "a".into(), ..Default::default() });
    pb::ClassifyImagesRequest { model, images: sources.into_iter().map(image).collect(), ..Default::default() }
}

/// Knows `a` and `b`.
fn find(wanted: &Digest) -> Option<Bytes> {
    [&b"a"[..], b"b"].into_iter().find(|bytes| Digest::of(bytes) == *wanted).map(Bytes::from_static)
}

fn bytes_of(request: &impl prost::Message) -> Bytes {
    request.encode_to_vec().into()
}

fn library(message_bytes_max: usize) -> Library {
    let contents = Arc::new(Contents::new(1 << 20, 1 << 20));
    for bytes in [&b"a"[..], b"b"] {
        let bytes = Bytes::from_static(bytes);
        contents.keep(chassis::content::Content { digest: Digest::of(&bytes), bytes });
    }
    Library { contents, upload_bytes_max: 1 << 20, message_bytes_max, named: Arc::new(ByteBudget::new(1 << 20)) }
}

fn held(request: &impl prost::Message, budget: &Arc<ByteBudget>) -> Replay {
    let message = bytes_of(request);
    Replay::of_pieces([wire::prefix(message.len()).unwrap(), message], budget).unwrap()
}

#[test]
fn known_digests_become_their_bytes_and_all_else_stays() {
    let with_digests = request([encoded(b"x"), digest(b"a"), digest(b"unknown"), digest(b"b")]);
    let expected = request([encoded(b"x"), encoded(b"a"), digest(b"unknown"), encoded(b"b")]);
    let inlined = inline(bytes_of(&with_digests), find).unwrap().concat();
    assert_eq!(pb::ClassifyImagesRequest::decode(&inlined[..]).unwrap(), expected);
}

#[test]
fn fields_of_newer_clients_pass_through() {
    let mut newer = bytes_of(&request([digest(b"a")])).to_vec();
    newer.extend(b"\xfa\x3e\x05hello"); // field 1007
    let inlined = inline(newer.into(), find).unwrap().concat();
    assert!(inlined.ends_with(b"\xfa\x3e\x05hello"));
}

#[test]
fn nothing_known_is_nothing_to_do() {
    let malformed = Source::Digest("sha256:12".into());
    for request in [request([]), request([encoded(b"x")]), request([digest(b"unknown"), malformed])] {
        assert_eq!(inline(bytes_of(&request), find), None);
    }
    assert_eq!(inline(Bytes::from_static(b"\x12\xff\x01"), find), None);
}

#[test]
fn the_bytes_are_shared_and_not_copied() {
    let bytes = Bytes::from(vec![7; 100_000]);
    let wanted = Digest::of(&bytes);
    let named = request([Source::Digest(wanted.to_string())]);
    let pieces = inline(bytes_of(&named), |_| Some(bytes.clone())).unwrap();
    assert!(pieces.iter().any(|piece| piece.as_ptr() == bytes.as_ptr()));
}

#[test]
fn a_request_is_looked_over_and_only_then_taken_apart() {
    let (library, budget) = (library(1 << 20), Arc::new(ByteBudget::new(1 << 20)));
    let plain = held(&request([encoded(b"x")]), &budget);
    let before = plain.chunks().as_ptr();
    assert_eq!(library.resolve(plain).unwrap().chunks().as_ptr(), before, "it is the same");
    let resolved = library.resolve(held(&request([digest(b"a")]), &budget)).unwrap();
    let sent = resolved.chunks().concat();
    assert_eq!(sent.len(), resolved.bytes());
    assert_eq!(sent[..PREFIX_BYTES], wire::prefix(sent.len() - PREFIX_BYTES).unwrap());
    assert_eq!(pb::ClassifyImagesRequest::decode(&sent[PREFIX_BYTES..]).unwrap(), request([encoded(b"a")]));
}

#[test]
fn a_compressed_request_is_left_to_the_replica() {
    let (library, budget) = (library(1 << 20), Arc::new(ByteBudget::new(1 << 20)));
    let message = bytes_of(&request([digest(b"a")]));
    let mut prefix = wire::prefix(message.len()).unwrap().to_vec();
    prefix[0] = 1;
    let compressed = Replay::of_pieces([prefix.into(), message.clone()], &budget).unwrap();
    assert!(library.resolve(compressed).unwrap().chunks().concat().ends_with(&message));
}

#[test]
fn a_request_that_becomes_too_large_is_refused_with_its_size() {
    let budget = Arc::new(ByteBudget::new(1 << 20));
    let expected = request([encoded(b"a"), encoded(b"b")]).encoded_len();
    let replay = held(&request([digest(b"a"), digest(b"b")]), &budget);
    let refusal = library(expected - 1).resolve(replay.clone()).unwrap_err();
    assert_eq!(refusal, Refusal::ContentTooLarge { bytes: expected as u64, bytes_max: expected as u64 - 1 });
    assert!(library(expected).resolve(replay).is_ok());
}

#[test]
fn the_images_count_in_a_budget_of_their_own() {
    let replay = held(&request([digest(b"a")]), &Arc::new(ByteBudget::new(1 << 20)));
    let small = Library { named: Arc::new(ByteBudget::new(10)), ..library(1 << 20) };
    let refusal = small.resolve(replay).unwrap_err();
    assert_eq!(refusal.reason(), "QUEUE_FULL");
}

#[test]
fn the_methods_are_those_of_the_contract() {
    let paths: Vec<_> = crate::route::methods([proto::DESCRIPTORS])
        .unwrap()
        .into_iter()
        .filter_map(|method| Some((method.path.as_str().to_owned(), method.content?)))
        .collect();
    assert_eq!(paths.len(), METHODS.len());
    assert_eq!(Use::of("/tamis.vision.v1.VisionService/UploadImage"), Some(Use::Uploads));
    assert_eq!(Use::of("/tamis.embedding.v1.EmbeddingService/Embed"), None);
}

fn any_source() -> impl Strategy<Value = Source> {
    let raw = pb::RawImage { width: 1, height: 1, format: 1, pixels: Bytes::from_static(b"\x22\x47\x00") };
    prop_oneof![Just(encoded(b"\x22\x47sha256:")), Just(digest(b"a")), Just(digest(b"unknown")), Just(Source::Raw(raw)),]
}

proptest! {
    #[test]
    fn digests_are_seen_however_the_message_is_cut(
        sources in prop::collection::vec(any_source(), 0..6),
        cuts in prop::collection::vec(0usize..600, 0..9),
    ) {
        let request = request(sources.clone());
        let message = bytes_of(&request);
        let whole = [wire::prefix(message.len()).unwrap(), message.clone()].concat();
        let whole = Bytes::from(whole);
        let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(whole.len())).collect();
        cuts.sort_unstable();
        let ends = cuts.iter().copied().chain([whole.len()]);
        let pieces: Vec<_> =
            std::iter::once(0).chain(cuts.iter().copied()).zip(ends).map(|(a, b)| whole.slice(a..b)).collect();
        let seen = names_digest(Reader::behind_prefix(&pieces).unwrap()).unwrap();
        prop_assert_eq!(seen, sources.iter().any(|source| matches!(source, Source::Digest(_))));
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let bytes = Bytes::from(bytes);
        _ = names_digest(bytes.clone());
        _ = inline(bytes, find);
    }
}
