//! Requests as values that cannot be wrong.

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
        Some(Source::Digest(_)) => return Err(ItemError::new(Reason::BadParameter, "digests are not taken yet")),
        None => return Err(ItemError::new(Reason::Empty, "the image has no source; set `encoded` or `raw`")),
    };
    let crop = |b: pb::BoundingBox| Crop { x_min: b.x_min, y_min: b.y_min, x_max: b.x_max, y_max: b.y_max };
    Ok(ImageInput { source, crop: image.crop.map(crop), output })
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
    use super::*;

    #[test]
    fn an_unknown_pixel_format_fails_its_item_alone() {
        let raw = pb::RawImage { width: 1, height: 1, format: 77, pixels: vec![0].into() };
        let image = pb::ImageInput { source: Some(Source::Raw(raw)), crop: None };
        assert_eq!(input(image, ImageOutputKind::Logits).unwrap_err().reason, Reason::UnsupportedImage);
    }

    #[test]
    fn an_image_without_a_source_is_empty() {
        let error = input(pb::ImageInput::default(), ImageOutputKind::Features).unwrap_err();
        assert_eq!(error.reason, Reason::Empty);
    }
}
