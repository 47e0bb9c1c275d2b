//! Which part of a picture the network looks at: the caller's crop, then the square in its middle.

use ::image::metadata::Orientation;

use super::Crop;
use crate::{ItemError, Reason, manifest::ImageRecipe};

/// A rectangle, in pixels and fractions of them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Region {
    pub(super) x: Span,
    pub(super) y: Span,
}

/// A rectangle's extent along one axis.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Span {
    pub(super) start: f64,
    pub(super) length: f64,
}

// === impl Region ===

impl Region {
    /// All of an upright picture.
    pub(super) fn whole(width: u32, height: u32) -> Self {
        Self { x: Span::to(width.into()), y: Span::to(height.into()) }
    }

    /// The pixels of an upright picture of this size that `crop` names: its edges at the nearest pixel's.
    pub(super) fn cropped(self, crop: Crop) -> Result<Self, ItemError> {
        let Crop { x_min, y_min, x_max, y_max } = crop;
        let inside = |value: f32| (0.0..=1.0).contains(&value); // false for NaN
        if ![x_min, y_min, x_max, y_max].into_iter().all(inside) || x_min >= x_max || y_min >= y_max {
            let message = "the crop's corners must be from 0 to 1, its minima below its maxima";
            return Err(ItemError::new(Reason::BadParameter, message));
        }
        let cropped = Self { x: self.x.part(x_min, x_max), y: self.y.part(y_min, y_max) };
        if cropped.x.length < 1.0 || cropped.y.length < 1.0 {
            return Err(ItemError::new(Reason::BadParameter, "the crop holds no pixel"));
        }
        Ok(cropped)
    }

    /// What becomes the square of `recipe.crop` pixels when the shorter side becomes `recipe.resize`: the same numbers
    /// as resizing all of it and cutting then, for a fraction of the work. Relative to this region.
    pub(super) fn centre(self, recipe: &ImageRecipe) -> Self {
        let shorter = self.x.length.min(self.y.length);
        let axis = |span: Span| {
            // Whole pixels, as a resized picture has them.
            let resized = (span.length * f64::from(recipe.resize) / shorter).floor();
            let start = ((resized - f64::from(recipe.crop)) / 2.0).floor();
            let scale = span.length / resized;
            Span { start: start * scale, length: f64::from(recipe.crop) * scale }
        };
        Self { x: axis(self.x), y: axis(self.y) }
    }

    /// Where this region of an upright picture lies in the picture as it is stored. `whole` is the upright picture.
    pub(super) fn stored(self, orientation: Orientation, whole: Self) -> Self {
        let (x, y) = (self.x, self.y);
        let (x_mirrored, y_mirrored) = (x.mirrored(whole.x), y.mirrored(whole.y));
        let (x, y) = match orientation {
            Orientation::NoTransforms => (x, y),
            Orientation::FlipHorizontal => (x_mirrored, y),
            Orientation::FlipVertical => (x, y_mirrored),
            Orientation::Rotate180 => (x_mirrored, y_mirrored),
            Orientation::Rotate90 => (y, x_mirrored),
            Orientation::Rotate90FlipH => (y, x),
            Orientation::Rotate270 => (y_mirrored, x),
            Orientation::Rotate270FlipH => (y_mirrored, x_mirrored),
        };
        Self { x, y }
    }
}

// === impl Span ===

impl Span {
    fn to(length: f64) -> Self {
        Self { start: 0.0, length }
    }

    fn part(self, min: f32, max: f32) -> Self {
        let start = (self.length * f64::from(min)).round();
        Self { start, length: (self.length * f64::from(max)).round() - start }
    }

    /// This span without what rounding carried over the ends of `0..length`.
    pub(super) fn within(self, length: f64) -> Self {
        let start = self.start.clamp(0.0, length);
        Self { start, length: self.length.min(length - start) }
    }

    fn mirrored(self, whole: Self) -> Self {
        Self { start: whole.length - self.start - self.length, ..self }
    }
}

/// Width and height of a stored picture once it is upright.
pub(super) fn upright(width: u32, height: u32, orientation: Orientation) -> (u32, u32) {
    match orientation {
        Orientation::NoTransforms
        | Orientation::FlipHorizontal
        | Orientation::FlipVertical
        | Orientation::Rotate180 => (width, height),
        Orientation::Rotate90 | Orientation::Rotate90FlipH | Orientation::Rotate270 | Orientation::Rotate270FlipH => {
            (height, width)
        }
    }
}

#[cfg(test)]
mod tests {
    use ::image::{DynamicImage, imageops::crop_imm};
    use proptest::prelude::*;

    use super::*;
    use crate::image::samples::{photo, recipe};

    fn span(start: f64, length: f64) -> Span {
        Span { start, length }
    }

    fn crop(x_min: f32, y_min: f32, x_max: f32, y_max: f32) -> Crop {
        Crop { x_min, y_min, x_max, y_max }
    }

    #[test]
    fn a_crop_has_the_nearest_pixels_edges() {
        let whole = Region::whole(100, 10);
        let cropped = whole.cropped(crop(0.101, 0.5, 0.499, 1.0)).unwrap();
        assert_eq!(cropped, Region { x: span(10.0, 40.0), y: span(5.0, 5.0) });
        assert_eq!(whole.cropped(crop(0.0, 0.0, 1.0, 1.0)).unwrap(), whole);
    }

    #[test]
    fn a_crop_out_of_bounds_or_without_pixels_is_refused() {
        let bad = [
            crop(-0.1, 0.0, 1.0, 1.0),
            crop(0.0, 0.0, 1.1, 1.0),
            crop(0.0, f32::NAN, 1.0, 1.0),
            crop(0.0, 0.0, f32::INFINITY, 1.0),
            crop(0.5, 0.0, 0.5, 1.0),
            crop(0.0, 0.6, 1.0, 0.4),
            crop(0.500, 0.0, 0.501, 1.0),
        ];
        for crop in bad {
            assert_eq!(Region::whole(100, 100).cropped(crop).unwrap_err().reason, Reason::BadParameter, "{crop:?}");
        }
    }

    #[test]
    fn the_centre_is_what_resizing_first_would_leave() {
        // 512 x 1024 becomes 256 x 512, of which 224 stay: 16 and 144 off at half the size.
        let centre = Region::whole(512, 1024).centre(&recipe());
        assert_eq!(centre, Region { x: span(32.0, 448.0), y: span(288.0, 448.0) });
    }

    proptest! {
        #[test]
        fn the_centre_lies_inside(width in 1..60_000_u32, height in 1..60_000_u32) {
            let centre = Region::whole(width, height).centre(&recipe());
            for (span, length) in [(centre.x, f64::from(width)), (centre.y, f64::from(height))] {
                prop_assert!(span.start >= 0.0 && span.length > 0.0 && span.start + span.length <= length + 1e-6);
            }
        }

        #[test]
        fn a_stored_region_holds_the_pixels_of_the_upright_one(
            exif in 1..=8_u8,
            (width, height) in (4..12_u32, 4..12_u32),
            (x, y) in (0..3_u32, 0..3_u32),
        ) {
            let orientation = Orientation::from_exif(exif).unwrap();
            let stored = photo(width, height);
            let mut turned = stored.clone();
            turned.apply_orientation(orientation);
            prop_assert_eq!((turned.width(), turned.height()), upright(width, height, orientation));

            let region = Region { x: span(x.into(), 2.0), y: span(y.into(), 1.0) };
            let expected = crop_imm(&turned, x, y, 2, 1).to_image();
            let place = region.stored(orientation, Region::whole(turned.width(), turned.height()));
            let [left, top, width, height] =
                [place.x.start, place.y.start, place.x.length, place.y.length].map(|edge| edge as u32);
            let mut found = DynamicImage::ImageRgba8(crop_imm(&stored, left, top, width, height).to_image());
            found.apply_orientation(orientation);
            prop_assert_eq!(found.into_rgba8(), expected);
        }
    }
}
