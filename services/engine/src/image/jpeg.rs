//! Decodes JPEG.
//!
//! Not through the crate `image`, which calls the same decoder with its lenient mode fixed: there a truncated photo
//! comes out half grey and counts as read, and everything is parsed three times. What cannot be found out is a damaged
//! byte that still decodes: JPEG has no checksum.

use ::image::metadata::Orientation;
use zune_jpeg::{
    JpegDecoder,
    errors::DecodeErrors,
    zune_core::{bytestream::ZCursor, colorspace::ColorSpace, options::DecoderOptions},
};

use super::{
    ImageLimits,
    decode::{Header, Picture},
};
use crate::{ItemError, Reason};

type Decoder<'a> = JpegDecoder<ZCursor<&'a [u8]>>;

/// Decodes a file that begins as a JPEG does.
pub(super) fn decode(bytes: &[u8], limits: &ImageLimits) -> Result<Picture, ItemError> {
    let (mut decoder, header) = open(bytes, limits)?;
    let Header { width, height, orientation } = header;
    decoder.set_options(options().set_strict_mode(true));
    let mut rgb = vec![0; width as usize * height as usize * 3];
    decoder.decode_into(&mut rgb).map_err(refusal)?;
    Ok(Picture { width, height, rgb: rgb.into(), orientation })
}

/// Reads what stands before the pixels.
pub(super) fn header(bytes: &[u8], limits: &ImageLimits) -> Result<Header, ItemError> {
    open(bytes, limits).map(|(_, header)| header)
}

/// Lenient while headers are read: cameras leave odd bytes between segments, which harm nobody.
fn options() -> DecoderOptions {
    DecoderOptions::default()
        .set_strict_mode(false)
        .set_max_width(usize::MAX) // the limit is on the product, and checked below
        .set_max_height(usize::MAX)
        .jpeg_set_out_colorspace(ColorSpace::RGB)
}

fn open<'a>(bytes: &'a [u8], limits: &ImageLimits) -> Result<(Decoder<'a>, Header), ItemError> {
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options());
    decoder.decode_headers().map_err(refusal)?;
    let Some(info) = decoder.info() else {
        return Err(ItemError::new(Reason::BadImage, "the JPEG has no size"));
    };
    let (width, height) = (u32::from(info.width), u32::from(info.height));
    limits.check_pixels(width, height)?;
    if !is_whole(bytes) {
        return Err(ItemError::new(Reason::BadImage, "the JPEG is truncated"));
    }
    let orientation = decoder.exif().and_then(|exif| Orientation::from_exif_chunk(exif));
    let orientation = orientation.unwrap_or(Orientation::NoTransforms);
    Ok((decoder, Header { width, height, orientation }))
}

fn refusal(error: DecodeErrors) -> ItemError {
    match error {
        DecodeErrors::Unsupported(scheme) => {
            ItemError::new(Reason::UnsupportedImage, format!("JPEG of a kind that is not read: {scheme:?}"))
        }
        error => ItemError::new(Reason::BadImage, format!("the JPEG is truncated or corrupt: {error}")),
    }
}

/// Whether an end-of-image marker follows the start of the first scan. Even the strict decoder checks only whether a
/// row of blocks begins before the file ends, so it takes a file whose last rows are missing. Pixel data cannot contain
/// the marker, but the thumbnail in a header can; and bytes behind it are common.
fn is_whole(bytes: &[u8]) -> bool {
    scan_start(bytes).is_some_and(|start| bytes[start..].windows(2).rev().any(|pair| pair == [0xff, END_OF_IMAGE]))
}

/// Where the first start-of-scan marker is.
fn scan_start(bytes: &[u8]) -> Option<usize> {
    let mut at = 2; // behind the start-of-image marker
    loop {
        at += bytes.get(at..)?.iter().position(|&byte| byte == 0xff)?;
        at += match *bytes.get(at + 1)? {
            START_OF_SCAN => return Some(at),
            0xff => 1,        // padding
            0x00..=0x01 => 2, // no segment
            0xd0..=0xd9 => 2, // a marker without a segment
            _ => 2 + usize::from(u16::from_be_bytes([*bytes.get(at + 2)?, *bytes.get(at + 3)?])),
        };
    }
}

const START_OF_SCAN: u8 = 0xda;
const END_OF_IMAGE: u8 = 0xd9;

#[cfg(test)]
mod tests {
    use ::image::{DynamicImage, ImageFormat};

    use super::*;
    use crate::image::samples::{LIMITS, encoded, exif, photo, with_segment};

    fn refuses(bytes: &[u8], reason: Reason) {
        let error = decode(bytes, &LIMITS).unwrap_err();
        assert_eq!(error.reason, reason, "{error}");
    }

    fn sample() -> Vec<u8> {
        encoded(&photo(67, 45), ImageFormat::Jpeg)
    }

    #[test]
    fn colours_and_gray_come_close_to_the_original() {
        let photo = photo(67, 45);
        for original in [photo.clone(), DynamicImage::ImageLuma8(photo.to_luma8())] {
            let picture = decode(&encoded(&original, ImageFormat::Jpeg), &LIMITS).unwrap();
            assert_eq!((picture.width, picture.height), (67, 45));
            let original = original.to_rgb8();
            let off = picture.rgb.iter().zip(original.as_raw()).map(|(a, b)| u32::from(a.abs_diff(*b))).sum::<u32>();
            assert!(off / (picture.rgb.len() as u32) < 6, "off by {off} in all");
        }
    }

    #[test]
    fn a_file_that_ends_early_is_refused_wherever_it_ends() {
        let whole = sample();
        for length in 3..whole.len() {
            refuses(&whole[..length], Reason::BadImage);
        }
    }

    #[test]
    fn the_thumbnail_of_a_truncated_file_does_not_make_it_whole() {
        let thumbnail = with_segment(&sample(), 0xe1, &sample());
        assert!(decode(&thumbnail, &LIMITS).is_ok());
        refuses(&thumbnail[..thumbnail.len() - 100], Reason::BadImage);
    }

    #[test]
    fn bytes_behind_the_end_and_between_segments_harm_nobody() {
        let whole = sample();
        assert!(decode(&[&whole[..], &[0; 1000]].concat(), &LIMITS).is_ok());
        let comment = with_segment(&whole, 0xfe, b"a comment");
        let first = 2 + 4 + b"a comment".len();
        assert!(decode(&[&comment[..first], &[0; 8], &comment[first..]].concat(), &LIMITS).is_ok());
    }

    #[test]
    fn the_size_is_checked_before_pixels_are_decoded() {
        let mut bytes = sample();
        let frame = bytes.windows(2).position(|pair| pair == [0xff, 0xc0]).unwrap();
        bytes[frame + 5..frame + 9].copy_from_slice(&[0xea, 0x60, 0xea, 0x60]); // 60,000 x 60,000
        refuses(&bytes, Reason::TooLarge);
    }

    #[test]
    fn exif_says_how_to_turn() {
        for orientation in 1..=8 {
            let segment = [&b"Exif\0\0"[..], &exif(orientation)].concat();
            let picture = decode(&with_segment(&sample(), 0xe1, &segment), &LIMITS).unwrap();
            assert_eq!(picture.orientation.to_exif(), orientation);
        }
        let nonsense = with_segment(&sample(), 0xe1, b"Exif\0\0nonsense");
        assert_eq!(decode(&nonsense, &LIMITS).unwrap().orientation, Orientation::NoTransforms);
    }
}
