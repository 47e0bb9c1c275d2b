//! Requests as values that cannot be wrong.

use chassis::content::{Contents, Digest};
use engine::{Crop, ImageInput, ImageOutputKind, ImageSource, ItemError, PixelFormat, RawImage, Reason};
use proto::vision::v1::{self as pb, image_input::Source};

/// One image; the engine judges its bytes and its crop.
pub(crate) fn input(image: pb::ImageInput, output: ImageOutputKind) -> Result<ImageInput, ItemError> {
    let source = match image.source {
        Some(Source::Encoded(bytes)) => ImageSource::Encoded(bytes),
        Some(Source::Raw(raw)) => {
            let (width, height, pixels) = (raw.width, raw.height, raw.pixels);
            ImageSource::Raw(RawImage { width, height, format: pixel_format(raw.format)?, pixels })
        }
        Some(Source::Digest(digest)) => return Err(unresolved(&digest)),
        None => return Err(ItemError::new(Reason::Empty, "the image has no source; set `encoded`, `raw` or `digest`")),
    };
    let crop = |b: pb::BoundingBox| Crop { x_min: b.x_min, y_min: b.y_min, x_max: b.x_max, y_max: b.y_max };
    Ok(ImageInput { source, crop: image.crop.map(crop), output })
}

/// The images with the content of digests in their place, by reference. Digests that find nothing stay.
pub(crate) fn resolve(mut images: Vec<pb::ImageInput>, contents: &Contents) -> Vec<pb::ImageInput> {
    for image in &mut images {
        if let Some(Source::Digest(digest)) = &image.source
            && let Ok(digest) = digest.parse()
            && let Some(bytes) = contents.find(&digest)
        {
            image.source = Some(Source::Encoded(bytes));
        }
    }
    images
}

fn unresolved(digest: &str) -> ItemError {
    match digest.parse::<Digest>() {
        Ok(digest) => {
            let message = format!("there is no content {digest}, not any more or never; upload it with UploadImage");
            ItemError::new(Reason::ContentNotFound, message)
        }
        Err(malformed) => ItemError::new(Reason::BadParameter, malformed.to_string()),
    }
}

fn pixel_format(value: i32) -> Result<PixelFormat, ItemError> {
    match pb::PixelFormat::try_from(value) {
        Ok(pb::PixelFormat::Rgb8) => Ok(PixelFormat::Rgb8),
        Ok(pb::PixelFormat::Rgba8) => Ok(PixelFormat::Rgba8),
        Ok(pb::PixelFormat::Gray8) => Ok(PixelFormat::Gray8),
        Ok(pb::PixelFormat::Unspecified) | Err(_) => Err(ItemError::new(
            Reason::UnsupportedImage,
            format!("{value} is no pixel format; use RGB8, RGBA8 or GRAY8"),
        )),
    }
}

/// Bytes of the images as received.
pub(crate) fn input_bytes(images: &[pb::ImageInput]) -> u64 {
    let bytes = |image: &pb::ImageInput| match &image.source {
        Some(Source::Encoded(bytes)) => bytes.len() as u64,
        Some(Source::Raw(raw)) => raw.pixels.len() as u64,
        Some(Source::Digest(_)) | None => 0,
    };
    images.iter().map(bytes).sum()
}

#[cfg(test)]
mod tests {
    use chassis::content::Content;
    use tonic::codegen::Bytes;

    use super::*;

    #[test]
    fn an_unknown_pixel_format_fails_its_item_alone() {
        let raw = pb::RawImage { width: 1, height: 1, format: 77, pixels: vec![0].into() };
        let image = pb::ImageInput { source: Some(Source::Raw(raw)), crop: None };
        assert_eq!(input(image, ImageOutputKind::Logits).unwrap_err().reason, Reason::UnsupportedImage);
    }

    #[test]
    fn a_digest_stands_for_its_content_or_fails_its_item_alone() {
        let contents = Contents::new(10_000, 0);
        let bytes = Bytes::from_static(b"an image");
        let digest = Digest::of(&bytes);
        contents.keep(Content { digest, bytes: bytes.clone() });
        let unknown = Digest::of(b"another").to_string();
        let digests = [digest.to_string(), unknown, "sha256:12".into(), String::new()];
        let image = |digest| pb::ImageInput { source: Some(Source::Digest(digest)), crop: None };
        let images = resolve(digests.map(image).into(), &contents);
        assert_eq!(input_bytes(&images), bytes.len() as u64);
        let read = |image| match input(image, ImageOutputKind::Logits) {
            Ok(input) => Ok(input.source),
            Err(error) => Err(error.reason),
        };
        let mut read = images.into_iter().map(read);
        let Some(Ok(ImageSource::Encoded(found))) = read.next() else { panic!("the content is not found") };
        assert_eq!(found.as_ptr(), bytes.as_ptr(), "it is shared, not copied");
        let refused: Vec<_> = read.map(Result::unwrap_err).collect();
        assert_eq!(refused, [Reason::ContentNotFound, Reason::BadParameter, Reason::BadParameter]);
    }

    #[test]
    fn an_image_without_a_source_is_empty() {
        let error = input(pb::ImageInput::default(), ImageOutputKind::Features).unwrap_err();
        assert_eq!(error.reason, Reason::Empty);
    }
}
