//! What all services share: selection, lanes, accounting, timing, limits of a call.

use std::time::{Duration, Instant};

use proto::{
    common::v1::{self as pb, ErrorReason},
    embedding::v1 as embedding,
    vision::v1::{self as vision, PixelFormat, image_input::Source},
};
use tonic::{Code, codegen::Bytes};

use crate::harness::{classify, embed, error_reason, image, mesh, photos, refused, refused_field, see, vector};

fn selecting(model: pb::ModelSelector) -> embedding::EmbedRequest {
    embedding::EmbedRequest { model: Some(model), ..embed(["a fine mesh"]) }
}

#[tokio::test]
async fn a_call_may_insist_on_a_model_and_its_revision() {
    let mesh = mesh();
    let mut client = mesh.client().await.embedding();
    let loaded = client.embed(embed(["a fine mesh"])).await.unwrap().into_inner().model.unwrap();
    assert_eq!(
        (loaded.model.as_str(), loaded.device.as_str(), loaded.dtype.as_str()),
        ("all-minilm-l6-v2", "cpu", "f32")
    );
    assert!(loaded.revision.len() == 71 && loaded.revision.starts_with("sha256:"), "{}", loaded.revision);

    let pinned = pb::ModelSelector { model: loaded.model, revision: loaded.revision, ..Default::default() };
    assert!(client.embed(selecting(pinned.clone())).await.is_ok());
    let other = pb::ModelSelector { revision: format!("sha256:{}", "0".repeat(64)), ..pinned };
    let status = client.embed(selecting(other)).await.unwrap_err();
    refused(&status, Code::FailedPrecondition, ErrorReason::RevisionMismatch);
}

#[tokio::test]
async fn a_model_that_is_not_loaded_is_not_found() {
    let mesh = mesh();
    let client = mesh.client().await;
    let model = || Some(pb::ModelSelector { model: "no-such-model".into(), ..Default::default() });
    let by_embedding = client.embedding().embed(selecting(model().unwrap())).await.unwrap_err();
    let request = proto::classification::v1::ClassifyRequest { model: model(), ..classify(["a"]) };
    let by_classification = client.classification().classify(request).await.unwrap_err();
    let request = vision::ClassifyImagesRequest { model: model(), ..see([image(photos().remove(0).file)]) };
    let by_vision = client.vision().classify_images(request).await.unwrap_err();
    for status in [by_embedding, by_classification, by_vision] {
        refused(&status, Code::NotFound, ErrorReason::ModelNotFound);
    }
}

#[tokio::test]
async fn an_empty_call_and_one_with_too_many_items_are_refused() {
    let mesh = mesh();
    let client = mesh.client().await;
    let status = client.embedding().embed(embed([""; 0])).await.unwrap_err();
    refused(&status, Code::InvalidArgument, ErrorReason::EmptyInput);
    let status = client.embedding().embed(embed(["a"; 10_000])).await.unwrap_err();
    refused(&status, Code::InvalidArgument, ErrorReason::TooManyItems);
    let status = client.classification().classify(classify(["a"; 10_000])).await.unwrap_err();
    refused(&status, Code::InvalidArgument, ErrorReason::TooManyItems);
    let status = client.vision().classify_images(see(vec![image(&b"x"[..]); 10_000])).await.unwrap_err();
    refused(&status, Code::InvalidArgument, ErrorReason::TooManyItems);
}

#[tokio::test]
async fn a_batch_beyond_a_replicas_limit_is_split_and_joined() {
    let mesh = mesh();
    let client = mesh.client().await;
    // Every replica takes 1,024 texts or 64 images.
    let texts: Vec<String> =
        (0..1_100).map(|n| if n % 100 == 7 { String::new() } else { format!("text {n}") }).collect();
    let split = client.embedding().embed(embed(texts.clone())).await.unwrap().into_inner();
    assert_eq!(split.results.len(), 1_100);
    assert_eq!(split.usage.unwrap().items, 1_100);
    for n in [0, 7, 63, 64, 107, 1_024, 1_099] {
        let result = &split.results[n];
        assert_eq!(result.index as usize, n);
        if n % 100 == 7 {
            assert_eq!(error_reason(result), Some(ErrorReason::EmptyInput));
            continue;
        }
        let alone = client.embedding().embed(embed([texts[n].clone()])).await.unwrap().into_inner();
        let (a, b) = (vector(result), vector(&alone.results[0]));
        assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1e-5), "text {n} has another's vector");
    }
    let photo = photos().swap_remove(0);
    let images: Vec<_> =
        (0..70).map(|n| image(if n == 66 { Bytes::from_static(b"x") } else { photo.file.clone() })).collect();
    let split = client.vision().classify_images(see(images)).await.unwrap().into_inner();
    assert_eq!(split.results.iter().map(|result| result.index).collect::<Vec<_>>(), (0..70).collect::<Vec<_>>());
}

#[tokio::test]
async fn an_unknown_lane_is_refused_by_every_service() {
    let mesh = mesh();
    let client = mesh.client().await;
    let options = || Some(pb::RequestOptions { priority: 99, include_timing: false });
    let request = embedding::EmbedRequest { options: options(), ..embed(["a"]) };
    let by_embedding = client.embedding().embed(request).await.unwrap_err();
    let request = proto::classification::v1::ClassifyRequest { options: options(), ..classify(["a"]) };
    let by_classification = client.classification().classify(request).await.unwrap_err();
    let request = vision::ClassifyImagesRequest { options: options(), ..see([image(&b"x"[..])]) };
    let by_vision = client.vision().classify_images(request).await.unwrap_err();
    for status in [by_embedding, by_classification, by_vision] {
        refused(&status, Code::InvalidArgument, ErrorReason::BadParameter);
        refused_field(&status, ErrorReason::BadParameter, "options.priority");
    }
}

#[tokio::test]
async fn the_parts_of_the_timing_sum_to_its_total_and_the_total_to_less_than_the_clients() {
    let mesh = mesh();
    let mut client = mesh.client().await.embedding();
    let options = Some(pb::RequestOptions { include_timing: true, priority: pb::Priority::Batch.into() });
    let request = embedding::EmbedRequest { options, ..embed(["one text", "", "and another text"]) };
    let started = Instant::now();
    let response = client.embed(request).await.unwrap().into_inner();
    let seen = started.elapsed();
    let timing = response.timing.unwrap();
    let [total, queue, preprocess, compute, other] =
        [timing.total, timing.queue, timing.preprocess, timing.compute, timing.other]
            .map(|part| Duration::try_from(part.unwrap()).unwrap());
    assert_eq!(queue + preprocess + compute + other, total, "{timing:?}");
    assert!(total <= seen, "{total:?} of {seen:?}");
    assert!(compute > Duration::ZERO && preprocess > Duration::ZERO, "{timing:?}");
    assert!(timing.replica.starts_with("embedding"), "{}", timing.replica);
    assert_eq!(timing.items, 2, "the empty text is not computed");
    assert!(client.embed(embed(["a"])).await.unwrap().into_inner().timing.is_none());
}

#[tokio::test]
async fn usage_counts_what_came_and_what_was_computed() {
    let mesh = mesh();
    let client = mesh.client().await;
    let texts = ["Füße", "", "one two"]; // 6, 0 and 7 bytes
    let response = client.embedding().embed(embed(texts)).await.unwrap().into_inner();
    let tokens: u64 = response.results.iter().map(|result| u64::from(result.token_count)).sum();
    assert!(tokens >= 7, "{tokens}");
    assert_eq!(response.usage, Some(pb::Usage { items: 3, input_tokens: tokens, input_bytes: 13, input_pixels: 0 }));
    let response = client.classification().classify(classify(["one two"])).await.unwrap().into_inner();
    assert_eq!(response.usage, Some(pb::Usage { items: 1, input_tokens: 4, input_bytes: 7, input_pixels: 0 }));
    let raw = vision::RawImage { width: 10, height: 7, format: PixelFormat::Rgb8.into(), pixels: vec![9; 210].into() };
    let images = [vision::ImageInput { source: Some(Source::Raw(raw)), crop: None }, image(&b"bad"[..])];
    let response = client.vision().classify_images(see(images)).await.unwrap().into_inner();
    assert_eq!(response.usage, Some(pb::Usage { items: 2, input_tokens: 0, input_bytes: 213, input_pixels: 70 }));
}

#[tokio::test]
async fn a_message_of_15_mib_passes_and_one_beyond_the_limit_is_refused() {
    let mesh = mesh();
    let mut client = mesh.client().await.vision();
    let image = |rows: u32| {
        let pixels = vec![128; 2560 * 3 * rows as usize].into();
        let raw = vision::RawImage { width: 2560, height: rows, format: PixelFormat::Rgb8.into(), pixels };
        vision::ImageInput { source: Some(Source::Raw(raw)), crop: None }
    };
    let response = client.classify_images(see([image(2048)])).await.unwrap().into_inner(); // exactly 15 MiB
    assert_eq!(response.usage.unwrap().input_bytes, 15 << 20);
    let status = client.classify_images(see([image(2048), image(512)])).await.unwrap_err(); // 18.75 MiB
    refused(&status, Code::ResourceExhausted, ErrorReason::MessageTooLarge);
    client.classify_images(see([image(1)])).await.unwrap();
}
