//! Images that are not what they say, and crops that hold nothing: each fails alone, with its reason.

use proto::{common::v1::ErrorReason, vision::v1 as pb};
use tonic::codegen::Bytes;

use crate::harness::{error_reason, image, mesh, photos, png, png_claiming, see};

async fn check(images: Vec<(pb::ImageInput, Option<ErrorReason>)>) {
    let mesh = mesh();
    let mut client = mesh.client().await.vision();
    let request = see(images.iter().map(|(image, _)| image.clone()));
    let response = client.classify_images(request).await.unwrap().into_inner();
    assert_eq!(response.results.len(), images.len());
    for (index, (result, (_, expected))) in response.results.iter().zip(&images).enumerate() {
        assert_eq!((result.index as usize, error_reason(result)), (index, *expected), "{result:?}");
    }
}

#[tokio::test]
async fn files_that_lie_or_end_early_fail_alone() {
    let (whole, photo) = (png(40, 30, 1), photos().remove(1).file);
    let no_frames = Bytes::from_static(b"GIF89a\x07\0\x05\0\0\0\0;");
    let cases = [
        (whole.clone(), None),
        (whole.slice(..whole.len() / 2), Some(ErrorReason::BadImage)),
        (png_claiming(20_000, 20_000, &[0; 64]), Some(ErrorReason::InputTooLarge)),
        (png_claiming(41, 30, &[0; 64]), Some(ErrorReason::BadImage)),
        (png_claiming(0, 30, &[0; 64]), Some(ErrorReason::BadImage)),
        (photo.slice(..photo.len() / 2), Some(ErrorReason::BadImage)),
        (photo.slice(..photo.len() - 2), Some(ErrorReason::BadImage)),
        (photo.slice(..3), Some(ErrorReason::BadImage)),
        (no_frames, Some(ErrorReason::BadImage)),
        (Bytes::from_static(b"RIFF\x10\0\0\0WEBPVP8 "), Some(ErrorReason::BadImage)),
        (Bytes::from_static(b"a text file that is named photo.jpg"), Some(ErrorReason::UnsupportedImage)),
        (Bytes::from_static(b"BM and more bytes of a bitmap"), Some(ErrorReason::UnsupportedImage)),
        (photo, None),
    ];
    check(cases.map(|(file, expected)| (image(file), expected)).into()).await;
}

#[tokio::test]
async fn crops_without_a_pixel_fail_alone() {
    let file = png(40, 30, 1);
    let cropped = |x_min, y_min, x_max, y_max| {
        let crop = Some(pb::BoundingBox { x_min, y_min, x_max, y_max });
        pb::ImageInput { crop, ..image(file.clone()) }
    };
    let bad = Some(ErrorReason::BadParameter);
    check(vec![
        (cropped(0.0, 0.0, 1.0, 1.0), None),
        (cropped(0.5, 0.5, 0.5, 0.5), bad),
        (cropped(0.0, 0.0, 0.0, 0.0), bad),
        (cropped(0.2, 0.2, 0.201, 0.9), bad),
        (cropped(0.9, 0.0, 0.1, 1.0), bad),
        (cropped(f32::NAN, 0.0, 1.0, 1.0), bad),
        (cropped(0.0, 0.0, f32::NAN, 1.0), bad),
        (cropped(0.0, f32::NEG_INFINITY, 1.0, f32::INFINITY), bad),
        (cropped(-0.1, 0.0, 1.0, 1.0), bad),
        (cropped(0.0, 0.0, 1.0, 1.1), bad),
        (cropped(0.0, 0.0, 0.03, 0.04), None), // one pixel
    ])
    .await;
}
