//! Images that the tests make themselves.

use std::io::Cursor;

use ::image::{DynamicImage, ImageFormat, RgbImage};

use super::ImageLimits;
use crate::manifest::{Architecture, Filter, ImageRecipe};

pub(super) const LIMITS: ImageLimits = ImageLimits { bytes_max: 1 << 20, pixels_max: 1_000_000 };

/// The built-in recipe.
pub(super) fn recipe() -> ImageRecipe {
    ImageRecipe {
        architecture: Architecture::EfficientnetLite0,
        resize: 256,
        filter: Filter::Bicubic,
        crop: 224,
        mean: [127.0; 3],
        std: [128.0; 3],
        normalize: true,
    }
}

/// Smooth colours with no symmetry: no two places look the same.
pub(super) fn photo(width: u32, height: u32) -> DynamicImage {
    let wave = |at: u32, length: f32| (at as f32 / length).sin() * 60.0 + 60.0;
    DynamicImage::ImageRgb8(RgbImage::from_fn(width, height, |x, y| {
        let ramp = x as f32 / width as f32 * 130.0;
        let colors = [wave(x, 9.0) + ramp, wave(y, 7.0) + ramp, wave(x + 2 * y, 13.0) + ramp];
        ::image::Rgb(colors.map(|color| color as u8))
    }))
}

pub(super) fn encoded(image: &DynamicImage, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    image.write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

/// A PNG with another size in its header.
pub(super) fn with_png_size(png: &[u8], width: u32, height: u32) -> Vec<u8> {
    let mut png = png.to_vec();
    png[16..20].copy_from_slice(&width.to_be_bytes());
    png[20..24].copy_from_slice(&height.to_be_bytes());
    let sum = crc32(&png[12..29]);
    png[29..33].copy_from_slice(&sum.to_be_bytes());
    png
}

/// A JPEG with one more segment at its front.
pub(super) fn with_segment(jpeg: &[u8], marker: u8, content: &[u8]) -> Vec<u8> {
    let length = (content.len() as u16 + 2).to_be_bytes();
    [&jpeg[..2], &[0xff, marker], &length, content, &jpeg[2..]].concat()
}

/// EXIF data of one entry.
pub(super) fn exif(orientation: u8) -> Vec<u8> {
    let header = b"MM\0\x2a\0\0\0\x08";
    let entry = [b"\0\x01", &b"\x01\x12\0\x03\0\0\0\x01\0"[..], &[orientation], b"\0\0", b"\0\0\0\0"];
    [&header[..], &entry.concat()].concat()
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0_u32, |sum, &byte| {
        (0..8).fold(sum ^ u32::from(byte), |sum, _| if sum & 1 == 1 { sum >> 1 ^ 0xedb8_8320 } else { sum >> 1 })
    })
}
