//! `VisionService` as its contract promises it.

use std::time::{Duration, Instant};

use proto::{
    classification::v1::classify_result::Outcome,
    common::v1::ErrorReason,
    vision::v1::{self as pb, PixelFormat, image_input::Source},
};
use tonic::{Code, codegen::Bytes};

use crate::harness::{error_reason, image, mesh, photos, refused, refused_field, see, vector};

fn raw(width: u32, height: u32, format: PixelFormat, pixels: Vec<u8>) -> pb::ImageInput {
    let raw = pb::RawImage { width, height, format: format.into(), pixels: pixels.into() };
    pb::ImageInput { source: Some(Source::Raw(raw)), crop: None }
}

/// A PNG file whose header promises 20,000 x 20,000 pixels of four bytes, and whose few bytes of data never hold them.
fn bomb() -> Bytes {
    let mut file = b"\x89PNG\r\n\x1a\n".to_vec();
    let mut header = Vec::new();
    header.extend(20_000_u32.to_be_bytes());
    header.extend(20_000_u32.to_be_bytes());
    header.extend([8, 6, 0, 0, 0]); // 8 bits, RGBA, deflate, the one filter method, not interlaced
    let stream = [0x78, 0x9c, 0x63, 0x60, 0x60, 0x60, 0x60, 0, 0, 0, 5, 0, 1]; // zlib: a few zeros
    for (kind, data) in [(b"IHDR", &header[..]), (b"IDAT", &stream[..]), (b"IEND", &[])] {
        file.extend(u32::try_from(data.len()).unwrap().to_be_bytes());
        let checked = [kind, data].concat();
        file.extend(&checked);
        file.extend(crc32(&checked).to_be_bytes());
    }
    file.into()
}

/// The checksum of PNG's chunks.
fn crc32(data: &[u8]) -> u32 {
    let bit = |crc: u32| if crc & 1 == 1 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 };
    !data.iter().fold(!0, |crc: u32, byte| (0..8).fold(crc ^ u32::from(*byte), |crc, _| bit(crc)))
}

#[tokio::test]
async fn images_get_five_labels_unless_the_caller_says_otherwise() {
    let (mesh, photo) = (mesh(), photos().remove(0));
    let mut client = mesh.client().await.vision();
    let mut labels = async |top_k: Option<u32>| {
        let params = top_k.map(|_| proto::classification::v1::ClassifyParams { top_k, ..Default::default() });
        let request = pb::ClassifyImagesRequest { params, ..see([image(photo.file.clone())]) };
        match client.classify_images(request).await.unwrap().into_inner().results.remove(0).outcome {
            Some(Outcome::Labels(labels)) => labels.labels,
            other => panic!("no labels: {other:?}"),
        }
    };
    assert_eq!(labels(None).await.len(), 5);
    let all = labels(Some(1000)).await;
    let sum: f32 = all.iter().map(|label| label.score).sum();
    assert!(all.len() == 1000 && (sum - 1.0).abs() < 1e-3, "{} labels that sum to {sum}", all.len());
    assert_eq!(all.iter().map(|label| label.selected).collect::<Vec<_>>(), [&[true][..], &[false; 999]].concat());
}

#[tokio::test]
async fn image_vectors_have_length_one_and_differ_from_one_another() {
    let (mesh, photos) = (mesh(), photos());
    let images: Vec<_> = [0, 1, 0].map(|n: usize| image(photos[n].file.clone())).into();
    let mut client = mesh.client().await.vision();
    let request = pb::EmbedImagesRequest { images: images.clone(), ..Default::default() };
    let response = client.embed_images(request).await.unwrap().into_inner();
    let vectors: Vec<_> = response.results.iter().map(vector).collect();
    let dot = |a: usize, b: usize| vectors[a].iter().zip(&vectors[b]).map(|(a, b)| a * b).sum::<f32>();
    assert_eq!(vectors[0].len(), 1280);
    assert!((dot(0, 0) - 1.0).abs() < 1e-4 && (dot(0, 2) - 1.0).abs() < 1e-4, "{} {}", dot(0, 0), dot(0, 2));
    assert!(dot(0, 1) < 0.9, "{}", dot(0, 1));

    let params = pb::EmbedImagesParams { normalize: Some(false), ..Default::default() };
    let request = pb::EmbedImagesRequest { images, params: Some(params), ..Default::default() };
    let plain = client.embed_images(request).await.unwrap().into_inner();
    assert!(!response.space_id.is_empty());
    assert_ne!(plain.space_id, response.space_id);
}

#[tokio::test]
async fn bad_images_fail_alone_and_at_once() {
    let (mesh, photos) = (mesh(), photos());
    let good = &photos[1].file;
    let nothing = pb::ImageInput::default();
    let outside = pb::BoundingBox { x_min: 0.5, y_min: 0.0, x_max: 1.5, y_max: 1.0 };
    let images = [
        (image(good.clone()), None),
        (image(good.slice(..good.len() / 2)), Some(ErrorReason::BadImage)),
        (image(bomb()), Some(ErrorReason::InputTooLarge)),
        (image(&b"GIF89a"[..]), Some(ErrorReason::BadImage)),
        (image(&b"not an image, not at all"[..]), Some(ErrorReason::UnsupportedImage)),
        (image(Bytes::new()), Some(ErrorReason::EmptyInput)),
        (nothing, Some(ErrorReason::EmptyInput)),
        (raw(20_000, 20_000, PixelFormat::Rgba8, vec![0; 64]), Some(ErrorReason::InputTooLarge)),
        (raw(2, 2, PixelFormat::Rgb8, vec![0; 11]), Some(ErrorReason::BadImage)),
        (raw(2, 2, PixelFormat::Unspecified, vec![0; 12]), Some(ErrorReason::UnsupportedImage)),
        (pb::ImageInput { crop: Some(outside), ..image(good.clone()) }, Some(ErrorReason::BadParameter)),
        (raw(2, 2, PixelFormat::Gray8, vec![7; 4]), None),
    ];
    let mut client = mesh.client().await.vision();
    let request = see(images.iter().map(|(image, _)| image.clone()));
    let response = client.classify_images(request).await.unwrap().into_inner();
    for (index, (result, (_, expected))) in response.results.iter().zip(&images).enumerate() {
        assert_eq!((result.index as usize, error_reason(result)), (index, *expected), "{result:?}");
    }
    // The same bombs alone, in a full call: none is decoded, so all of them cost nothing.
    let started = Instant::now();
    let response = client.classify_images(see(vec![image(bomb()); 64])).await.unwrap().into_inner();
    assert!(response.results.iter().all(|result| error_reason(result) == Some(ErrorReason::InputTooLarge)));
    assert!(started.elapsed() < Duration::from_secs(2), "64 bombs took {:?}", started.elapsed());
}

#[tokio::test]
async fn unknown_values_of_enums_are_refused_and_the_service_lives() {
    let (mesh, photo) = (mesh(), photos().remove(0));
    let mut client = mesh.client().await.vision();
    let images = vec![image(photo.file)];
    let params = pb::EmbedImagesParams { encoding: 99, ..Default::default() };
    let request = pb::EmbedImagesRequest { images: images.clone(), params: Some(params), ..Default::default() };
    let status = client.embed_images(request).await.unwrap_err();
    refused(&status, Code::InvalidArgument, ErrorReason::BadParameter);
    refused_field(&status, ErrorReason::BadParameter, "params.encoding");
    client.classify_images(see(images)).await.unwrap();
}
