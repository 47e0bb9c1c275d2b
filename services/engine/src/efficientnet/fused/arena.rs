//! What an image is computed in.

use kernels::{Matrix, Patches, Precision, Reserve, Ring, Size, Stem};

use super::{Block, Widen};
use crate::efficientnet::{CLASSES, FEATURES};

/// Maps and parts of them, used again for the next image.
pub(super) struct Arena {
    /// What is handed from block to block.
    pub(super) map: Matrix,
    /// Where the next map is made if not in place.
    pub(super) next: Matrix,
    /// Some lines of a widened map.
    pub(super) ring: Ring,
    /// Some lines of a convolved one.
    pub(super) convolved: Matrix,
    pub(super) patches: Patches,
    /// The pooled features, and as the classifier reads them where it does not read f32.
    pub(super) features: Matrix,
    pub(super) rounded: Option<Matrix>,
    pub(super) logits: Matrix,
}

/// What an arena must have room for, in numbers.
pub(super) struct Room {
    map: usize,
    ring: usize,
    convolved: usize,
    image: Size,
    /// Most lines of patches at a time.
    patches: usize,
}

/// Channels of a pixel that has no gap.
const PIXEL: usize = 16;
/// For what the parts of an arena are rounded up by, and its patches.
const ROUNDING_BYTES: usize = 1 << 19;

// === impl Room ===

impl Room {
    pub(super) fn new(image: Size, blocks: &[Block]) -> Self {
        let mut room = Self { map: 0, ring: 0, convolved: 0, image, patches: 0 };
        for block in blocks {
            let (out, channels) = (block.output(), block.convolve.channels());
            let narrow = block.narrow.outputs().next_multiple_of(PIXEL);
            room.map = room.map.max(out.pixels() * narrow);
            room.ring = room.ring.max(Ring::numbers(&block.convolve, block.size, block.strip));
            room.convolved = room.convolved.max(block.strip * out.width * channels);
            if matches!(block.widen, Widen::Image(_)) {
                let window = block.convolve.window();
                room.patches = block.strip * window.stride + window.side;
            }
        }
        // The head makes of the last map the features of each pixel.
        let pixels = blocks.last().map_or(Stem::output(image), Block::output).pixels();
        room.map = room.map.max(pixels * FEATURES);
        room
    }
}

// === impl Arena ===

impl Arena {
    pub(super) fn new(room: &Room, precision: Precision) -> Self {
        // All in one piece, which is large enough for huge pages.
        let words = (2 * room.map + room.convolved) / precision.values_per_word() + room.ring;
        let reserve = &mut Reserve::new(words * size_of::<u32>() + ROUNDING_BYTES);
        let mut pixels = |numbers: usize| Matrix::pixels(precision, numbers.div_ceil(PIXEL), PIXEL, reserve);
        let (map, next, convolved) = (pixels(room.map), pixels(room.map), pixels(room.convolved));
        let one = |precision, width| Matrix::zeros(precision, 1, width);
        Self {
            map,
            next,
            convolved,
            ring: Ring::new(room.ring, reserve),
            patches: Patches::new(precision, room.image, room.patches, reserve),
            features: one(Precision::F32, FEATURES),
            rounded: (precision != Precision::F32).then(|| one(precision, FEATURES)),
            logits: one(Precision::F32, CLASSES),
        }
    }
}
