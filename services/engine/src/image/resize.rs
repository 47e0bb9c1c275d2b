//! Makes the network's input of a picture: crop, resize, turn.

use ::image::{DynamicImage, RgbImage, metadata::Orientation};
use fast_image_resize::{
    FilterType, ResizeAlg, ResizeOptions, Resizer,
    images::{TypedCroppedImage, TypedImage, TypedImageRef},
    pixels::U8x3,
};

use super::{
    Crop,
    decode::Picture,
    region::{Region, upright},
};
use crate::{
    ItemError, Reason,
    manifest::{Filter, ImageRecipe},
};

/// The square of `recipe.crop` pixels that the network sees: by row, column, colour.
pub(super) fn prepare(picture: Picture, crop: Option<Crop>, recipe: &ImageRecipe) -> Result<Vec<u8>, ItemError> {
    let (width, height) = upright(picture.width, picture.height, picture.orientation);
    let whole = Region::whole(width, height);
    let visible = match crop {
        Some(crop) => whole.cropped(crop)?,
        None => whole,
    };
    // Resizing and turning commute, and 50 thousand pixels are turned faster than 12 million.
    let orientation = picture.orientation;
    let centre = visible.centre(recipe).stored(orientation, visible);
    let square = resize(&picture, visible.stored(orientation, whole), centre, recipe)
        .map_err(|error| ItemError::new(Reason::Engine, format!("the image cannot be resized: {error}")))?;
    if orientation == Orientation::NoTransforms {
        return Ok(square);
    }
    let square = RgbImage::from_raw(recipe.crop, recipe.crop, square)
        .ok_or_else(|| ItemError::new(Reason::Engine, "the resized image is not square"))?;
    let mut square = DynamicImage::ImageRgb8(square);
    square.apply_orientation(orientation);
    Ok(square.into_rgb8().into_raw())
}

/// Resizes the part `centre` of the part `visible` of a picture. No pixel outside `visible` has an influence.
fn resize(
    picture: &Picture,
    visible: Region,
    centre: Region,
    recipe: &ImageRecipe,
) -> Result<Vec<u8>, Box<dyn std::error::Error>> {
    // Typed: the untyped functions are compiled into this crate for every pixel type, which takes minutes.
    let all = TypedImageRef::<U8x3>::from_buffer(picture.width, picture.height, &picture.rgb)?;
    let (width, height) = (visible.x.length as u32, visible.y.length as u32);
    let source = TypedCroppedImage::from_ref(&all, visible.x.start as u32, visible.y.start as u32, width, height)?;
    let mut bytes = vec![0; recipe.crop as usize * recipe.crop as usize * 3];
    let mut square = TypedImage::<U8x3>::from_buffer(recipe.crop, recipe.crop, &mut bytes)?;
    let filter = match recipe.filter {
        Filter::Bilinear => FilterType::Bilinear,
        Filter::Bicubic => FilterType::CatmullRom,
    };
    let (x, y) = (centre.x.within(visible.x.length), centre.y.within(visible.y.length));
    let options =
        ResizeOptions::new().resize_alg(ResizeAlg::Convolution(filter)).crop(x.start, y.start, x.length, y.length);
    Resizer::new().resize_typed(&source, &mut square, &options)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::samples::{photo, recipe};

    fn picture(image: &DynamicImage, orientation: Orientation) -> Picture {
        let rgb = image.to_rgb8().into_raw().into();
        Picture { width: image.width(), height: image.height(), rgb, orientation }
    }

    fn prepared(image: &DynamicImage, orientation: Orientation) -> Vec<u8> {
        prepare(picture(image, orientation), None, &recipe()).unwrap()
    }

    /// Greatest difference of two bytes.
    fn difference(a: &[u8], b: &[u8]) -> u8 {
        assert_eq!(a.len(), b.len());
        a.iter().zip(b).fold(0, |most, (a, b)| most.max(a.abs_diff(*b)))
    }

    #[test]
    fn cutting_first_equals_resizing_first() {
        let image = photo(700, 413);
        let all = TypedImageRef::<U8x3>::from_buffer(700, 413, image.as_bytes()).unwrap();
        let mut whole = TypedImage::<U8x3>::new(433, 256);
        let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::CatmullRom));
        Resizer::new().resize_typed(&all, &mut whole, &options).unwrap();
        let mut expected = Vec::new();
        for row in whole.pixels().chunks_exact(433).skip(16).take(224) {
            expected.extend(row[104..][..224].iter().flat_map(|pixel| pixel.0));
        }
        assert!(difference(&prepared(&image, Orientation::NoTransforms), &expected) <= 1);
    }

    #[test]
    fn turning_last_equals_turning_first() {
        let stored = photo(311, 270);
        for exif in 1..=8 {
            let orientation = Orientation::from_exif(exif).unwrap();
            let mut turned = stored.clone();
            turned.apply_orientation(orientation);
            let (last, first) = (prepared(&stored, orientation), prepared(&turned, Orientation::NoTransforms));
            // A few steps are the rounding between the two passes, whose order turning swaps.
            assert!(difference(&last, &first) <= 4, "orientation {exif}: {}", difference(&last, &first));
        }
    }

    #[test]
    fn pixels_outside_the_crop_have_no_influence() {
        let image = RgbImage::from_fn(400, 300, |x, _| ::image::Rgb(if x < 200 { [255; 3] } else { [0; 3] }));
        let image = DynamicImage::ImageRgb8(image);
        let right = Crop { x_min: 0.5, y_min: 0.0, x_max: 1.0, y_max: 1.0 };
        let values = prepare(picture(&image, Orientation::NoTransforms), Some(right), &recipe()).unwrap();
        assert!(values.iter().all(|&value| value == 0));
        // Upside down, the white half is the right one.
        let values = prepare(picture(&image, Orientation::Rotate180), Some(right), &recipe()).unwrap();
        assert!(values.iter().all(|&value| value == 255));
    }

    #[test]
    fn extreme_shapes_cost_no_more_than_others() {
        for (width, height) in [(1, 1), (100_000, 1), (1, 100_000), (3, 2)] {
            let image = DynamicImage::ImageRgb8(RgbImage::from_pixel(width, height, ::image::Rgb([255; 3])));
            assert!(prepared(&image, Orientation::Rotate90).iter().all(|&value| value == 255), "{width} x {height}");
        }
    }
}
