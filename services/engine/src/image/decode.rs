//! Turns what a caller sent into pixels, or says why not, at a cost that its limits bound.

use std::io::Cursor;

use ::image::{DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader, Limits, metadata::Orientation};
use bytes::Bytes;

use super::{Dimensions, ImageLimits, ImageSource, PixelFormat, RawImage, jpeg, region::upright};
use crate::{ItemError, Reason};

/// Decoded pixels as they are stored: not yet turned as the file says.
#[derive(Debug)]
pub(super) struct Picture {
    pub(super) width: u32,
    pub(super) height: u32,
    /// Row-major, 3 bytes a pixel.
    pub(super) rgb: Bytes,
    /// How to turn it upright.
    pub(super) orientation: Orientation,
}

/// What a file says of itself before its pixels.
#[derive(Debug)]
pub(super) struct Header {
    pub(super) width: u32,
    pub(super) height: u32,
    /// How to turn it upright.
    pub(super) orientation: Orientation,
}

/// Bytes of the largest pixel that a decoder makes: 16-bit RGBA.
const PIXEL_BYTES_MAX: u64 = 8;

/// Decodes one image. Alpha is dropped, not blended.
pub(super) fn decode(source: &ImageSource, limits: &ImageLimits) -> Result<Picture, ItemError> {
    match source {
        ImageSource::Encoded(bytes) => decode_file(bytes, limits),
        ImageSource::Raw(raw) => take_raw(raw, limits),
    }
}

/// The size of a file's upright image, from its header.
pub(super) fn dimensions(bytes: &[u8], limits: &ImageLimits) -> Result<Dimensions, ItemError> {
    let header = match format(bytes, limits)? {
        ImageFormat::Jpeg => jpeg::header(bytes, limits),
        // What stands beside the pixels takes no more memory than the file may: a colour profile of a few bytes that
        // inflates to hundreds of megabytes is passed over.
        other => open(bytes, other, limits, limits.bytes_max as u64).map(|(_, header)| header),
    }?;
    let (width, height) = upright(header.width, header.height, header.orientation);
    Ok(Dimensions { width, height })
}

fn decode_file(bytes: &[u8], limits: &ImageLimits) -> Result<Picture, ItemError> {
    match format(bytes, limits)? {
        ImageFormat::Jpeg => jpeg::decode(bytes, limits),
        other => decode_other(bytes, other, limits),
    }
}

/// The format of a file that is read here.
fn format(bytes: &[u8], limits: &ImageLimits) -> Result<ImageFormat, ItemError> {
    if bytes.is_empty() {
        return Err(ItemError::new(Reason::Empty, "the image has no bytes"));
    }
    if bytes.len() > limits.bytes_max {
        let message = format!("the image has {} bytes, the bound is {}", bytes.len(), limits.bytes_max);
        return Err(ItemError::new(Reason::TooLarge, message));
    }
    match ::image::guess_format(bytes) {
        Ok(format @ (ImageFormat::Jpeg | ImageFormat::Png | ImageFormat::WebP | ImageFormat::Gif)) => Ok(format),
        _ => Err(ItemError::new(Reason::UnsupportedImage, "the image is no JPEG, PNG, WebP or GIF file")),
    }
}

/// PNG, WebP, or the first frame of a GIF.
fn decode_other(bytes: &[u8], format: ImageFormat, limits: &ImageLimits) -> Result<Picture, ItemError> {
    let (decoder, header) = open(bytes, format, limits, limits.pixels_max.saturating_mul(PIXEL_BYTES_MAX))?;
    let Header { width, height, orientation } = header;
    let rgb = DynamicImage::from_decoder(decoder).map_err(refusal)?.into_rgb8().into_raw();
    Ok(Picture { width, height, rgb: rgb.into(), orientation })
}

/// A decoder that has read the header, and takes no more than `memory_max` bytes of memory.
fn open<'a>(
    bytes: &'a [u8],
    format: ImageFormat,
    limits: &ImageLimits,
    memory_max: u64,
) -> Result<(impl ImageDecoder + 'a, Header), ItemError> {
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    let mut memory = Limits::no_limits();
    memory.max_alloc = Some(memory_max);
    reader.limits(memory);
    // Reads the header only, so that a claim of more pixels than the limit costs nothing.
    let mut decoder = reader.into_decoder().map_err(refusal)?;
    let (width, height) = decoder.dimensions();
    limits.check_pixels(width, height)?;
    // Metadata that cannot be read is no reason to refuse pixels that can.
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    Ok((decoder, Header { width, height, orientation }))
}

fn refusal(error: ImageError) -> ItemError {
    match error {
        ImageError::Limits(error) => ItemError::new(Reason::TooLarge, format!("the image is too large: {error}")),
        ImageError::Unsupported(error) => {
            ItemError::new(Reason::UnsupportedImage, format!("the image is of a kind that is not read: {error}"))
        }
        error => ItemError::new(Reason::BadImage, format!("the image is truncated or corrupt: {error}")),
    }
}

fn take_raw(raw: &RawImage, limits: &ImageLimits) -> Result<Picture, ItemError> {
    let &RawImage { width, height, format, ref pixels } = raw;
    if width == 0 || height == 0 {
        return Err(ItemError::new(Reason::BadParameter, format!("an image of {width} x {height} pixels has none")));
    }
    limits.check_pixels(width, height)?;
    let expected = u64::from(width) * u64::from(height) * format.pixel_bytes();
    if pixels.len() as u64 != expected {
        let message = format!("{width} x {height} pixels take {expected} bytes, not {}", pixels.len());
        return Err(ItemError::new(Reason::BadImage, message));
    }
    let rgb = match format {
        PixelFormat::Rgb8 => pixels.clone(),
        PixelFormat::Rgba8 => {
            pixels.as_chunks().0.iter().flat_map(|&[red, green, blue, _]| [red, green, blue]).collect()
        }
        PixelFormat::Gray8 => pixels.iter().flat_map(|&gray| [gray; 3]).collect(),
    };
    Ok(Picture { width, height, rgb, orientation: Orientation::NoTransforms })
}

// === impl ImageLimits ===

impl ImageLimits {
    /// Refuses an image by its header.
    pub(super) fn check_pixels(&self, width: u32, height: u32) -> Result<(), ItemError> {
        let pixels = u64::from(width) * u64::from(height);
        if pixels <= self.pixels_max {
            return Ok(());
        }
        let message = format!("the image has {width} x {height} pixels, the bound is {} in all", self.pixels_max);
        Err(ItemError::new(Reason::TooLarge, message))
    }
}

// === impl PixelFormat ===

impl PixelFormat {
    fn pixel_bytes(self) -> u64 {
        match self {
            Self::Rgb8 => 3,
            Self::Rgba8 => 4,
            Self::Gray8 => 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use ::image::{GenericImageView, ImageBuffer, Luma, Rgb, Rgba};

    use super::*;
    use crate::image::samples::{LIMITS, encoded, exif, photo, with_png_size, with_segment};

    fn file(bytes: &[u8]) -> Result<Picture, ItemError> {
        decode(&ImageSource::Encoded(Bytes::copy_from_slice(bytes)), &LIMITS)
    }

    fn raw(width: u32, height: u32, format: PixelFormat, pixels: &[u8]) -> Result<Picture, ItemError> {
        decode(&ImageSource::Raw(RawImage { width, height, format, pixels: Bytes::copy_from_slice(pixels) }), &LIMITS)
    }

    fn refuses(result: Result<Picture, ItemError>, reason: Reason) {
        let error = result.unwrap_err();
        assert_eq!(error.reason, reason, "{error}");
    }

    #[test]
    fn lossless_files_give_their_pixels() {
        let photo = photo(31, 17);
        for format in [ImageFormat::Png, ImageFormat::WebP] {
            let picture = file(&encoded(&photo, format)).unwrap();
            assert_eq!((picture.width, picture.height), (31, 17));
            assert_eq!(picture.rgb, photo.as_bytes(), "{format:?}");
        }
    }

    #[test]
    fn the_size_is_read_without_the_pixels() {
        for format in [ImageFormat::Jpeg, ImageFormat::Png, ImageFormat::WebP, ImageFormat::Gif] {
            let bytes = encoded(&photo(31, 17), format);
            let size = Dimensions::read(&bytes, &LIMITS).unwrap();
            assert_eq!((size.width, size.height), (31, 17), "{format:?}");
        }
        let turned =
            with_segment(&encoded(&photo(31, 17), ImageFormat::Jpeg), 0xe1, &[&b"Exif\0\0"[..], &exif(6)].concat());
        let size = Dimensions::read(&turned, &LIMITS).unwrap();
        assert_eq!((size.width, size.height), (17, 31), "upright");
    }

    #[test]
    fn a_file_whose_header_is_no_images_has_no_size() {
        let png = encoded(&photo(8, 8), ImageFormat::Png);
        for (bytes, reason) in [
            (&b""[..], Reason::Empty),
            (b"hello", Reason::UnsupportedImage),
            (&png[..20], Reason::BadImage),
            (b"GIF89a", Reason::BadImage),
            (b"RIFF\x04\0\0\0WEBP", Reason::BadImage),
            (b"\xff\xd8\xff\xd9", Reason::BadImage),
            (&with_png_size(&png, 20_000, 20_000), Reason::TooLarge),
            (&vec![0; LIMITS.bytes_max + 1], Reason::TooLarge),
        ] {
            let error = Dimensions::read(bytes, &LIMITS).unwrap_err();
            assert_eq!(error.reason, reason, "{error}");
        }
    }

    #[test]
    fn a_colour_profile_that_inflates_is_passed_over() {
        let mut bytes = Vec::new();
        let mut encoder = ::image::codecs::png::PngEncoder::new(&mut bytes);
        ::image::ImageEncoder::set_icc_profile(&mut encoder, vec![0; 2 * LIMITS.bytes_max]).unwrap();
        photo(4, 4).write_with_encoder(encoder).unwrap();
        assert!(bytes.len() < 10_000 && file(&bytes).is_ok(), "{} bytes", bytes.len());
        assert!(Dimensions::read(&bytes, &LIMITS).is_ok_and(|size| size.width == 4));
    }

    #[test]
    fn the_first_frame_of_a_gif_is_taken() {
        let mut bytes = Vec::new();
        let mut encoder = ::image::codecs::gif::GifEncoder::new(&mut bytes);
        for color in [[255, 0, 0, 255], [0, 0, 255, 255]] {
            encoder.encode_frame(::image::Frame::new(ImageBuffer::from_pixel(3, 2, Rgba(color)))).unwrap();
        }
        drop(encoder);
        assert_eq!(file(&bytes).unwrap().rgb, [255, 0, 0].repeat(6));
    }

    #[test]
    fn every_kind_of_pixel_becomes_rgb() {
        let cases: [(DynamicImage, [u8; 3]); 5] = [
            (ImageBuffer::from_pixel(2, 2, Luma([90_u8])).into(), [90, 90, 90]),
            (ImageBuffer::from_pixel(2, 2, Luma([90_u16 * 257])).into(), [90, 90, 90]),
            (ImageBuffer::from_pixel(2, 2, Rgb([257_u16, 514, 771])).into(), [1, 2, 3]),
            (ImageBuffer::from_pixel(2, 2, Rgba([1_u8, 2, 3, 0])).into(), [1, 2, 3]),
            (ImageBuffer::from_pixel(2, 2, Rgba([257_u16, 514, 771, 9])).into(), [1, 2, 3]),
        ];
        for (image, expected) in cases {
            let picture = file(&encoded(&image, ImageFormat::Png)).unwrap();
            assert_eq!(picture.rgb, expected.repeat(4), "{:?}", image.color());
        }
    }

    #[test]
    fn truncated_files_are_refused() {
        for format in [ImageFormat::Png, ImageFormat::WebP, ImageFormat::Gif] {
            let bytes = encoded(&photo(40, 30), format);
            for length in [20, bytes.len() / 3, bytes.len() * 9 / 10] {
                refuses(file(&bytes[..length]), Reason::BadImage);
            }
        }
    }

    #[test]
    fn a_bomb_is_refused_by_its_header() {
        let bomb = with_png_size(&encoded(&photo(8, 8), ImageFormat::Png), 20_000, 20_000);
        refuses(file(&bomb), Reason::TooLarge);
        // Within the limit it is read, and found to lack its pixels.
        refuses(file(&with_png_size(&bomb, 8, 9)), Reason::BadImage);
    }

    #[test]
    fn what_is_no_image_is_refused_with_its_reason() {
        refuses(file(b""), Reason::Empty);
        refuses(file(b"hello"), Reason::UnsupportedImage);
        refuses(file(b"BM and more bytes of a bitmap"), Reason::UnsupportedImage);
        refuses(file(&vec![0; LIMITS.bytes_max + 1]), Reason::TooLarge);
    }

    #[test]
    fn raw_pixels_are_taken_as_they_are() {
        let rgb = raw(2, 1, PixelFormat::Rgb8, &[1, 2, 3, 4, 5, 6]).unwrap();
        assert_eq!(rgb.rgb[..], [1, 2, 3, 4, 5, 6]);
        let rgba = raw(2, 1, PixelFormat::Rgba8, &[1, 2, 3, 0, 4, 5, 6, 255]).unwrap();
        assert_eq!(rgba.rgb[..], [1, 2, 3, 4, 5, 6]);
        let gray = raw(1, 2, PixelFormat::Gray8, &[7, 9]).unwrap();
        assert_eq!(gray.rgb[..], [7, 7, 7, 9, 9, 9]);
    }

    #[test]
    fn raw_pixels_of_another_length_are_refused() {
        refuses(raw(2, 2, PixelFormat::Rgb8, &[0; 11]), Reason::BadImage);
        refuses(raw(2, 2, PixelFormat::Gray8, &[0; 5]), Reason::BadImage);
        refuses(raw(0, 2, PixelFormat::Gray8, &[]), Reason::BadParameter);
        refuses(raw(u32::MAX, u32::MAX, PixelFormat::Rgba8, &[]), Reason::TooLarge);
    }

    #[test]
    fn exif_of_png_and_webp_is_read() {
        let photo = photo(4, 4);
        assert_eq!(photo.dimensions(), (4, 4));
        let mut bytes = Vec::new();
        let mut encoder = ::image::codecs::png::PngEncoder::new(&mut bytes);
        ::image::ImageEncoder::set_exif_metadata(&mut encoder, crate::image::samples::exif(8)).unwrap();
        photo.write_with_encoder(encoder).unwrap();
        assert_eq!(file(&bytes).unwrap().orientation, Orientation::Rotate270);
    }
}
