//! The last few lines of a feature map, with the border that a convolution wants.
//!
//! A block of a network widens its map, convolves each channel, and narrows it again. The wide map of a whole image is
//! megabytes; of it only the lines live that the convolution is about to read, in a ring, so that they never leave the
//! second-level cache.
//!
//! Its numbers are f32, also where the products before and behind it read bf16: a convolution of few numbers, whose sums
//! are differences of large ones, is where rounding would show most.

#![expect(unsafe_code, reason = "pointers into matrices, checked before")]

use crate::{
    Depthwise, Matrix, Precision, Reserve, Weights, Window,
    memory::{round_up, times},
    product::{self, Applied, Relu6, To},
    simd::{Simd, Strided},
    tile::Finish,
};

/// Channels of the smallest pixel that has no gap: a vector of any tier.
const PIXEL: usize = 16;

/// Lines and columns of a feature map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Lines.
    pub height: usize,
    /// Pixels of a line.
    pub width: usize,
}

/// Lines of one feature map after the other, in the order in which they come. A line takes the place of one that has had
/// its turn.
#[derive(Debug)]
pub struct Ring {
    /// A row per pixel, borders included.
    pixels: Matrix,
    /// Places of lines.
    lines: usize,
    size: Size,
    window: Window,
    /// Of the map's lines, how many have come.
    come: usize,
    /// Where the pixels that are being put have their place, in numbers from the start.
    places: Vec<u32>,
}

// === impl Size ===

impl Size {
    /// Pixels.
    ///
    /// # Panics
    ///
    /// If they are more than there are addresses.
    #[must_use]
    pub fn pixels(self) -> usize {
        times(self.height, self.width)
    }
}

// === impl Ring ===

impl Ring {
    /// Room for so many numbers, in memory of the reserve.
    ///
    /// # Panics
    ///
    /// If they are more than 2^32.
    #[must_use]
    pub fn new(numbers: usize, reserve: &mut Reserve) -> Self {
        assert!(u32::try_from(numbers).is_ok(), "{numbers} places: their numbers have 32 bits");
        Self {
            pixels: Matrix::pixels(Precision::F32, numbers.div_ceil(PIXEL), PIXEL, reserve),
            lines: 0,
            size: Size { height: 0, width: 0 },
            window: Window { side: 1, stride: 1 },
            come: 0,
            places: Vec::new(),
        }
    }

    /// Numbers that a ring has from which the layer can convolve so many lines of output at a time.
    #[must_use]
    pub fn numbers(layer: &Depthwise, size: Size, outputs: usize) -> usize {
        times(times(lines(layer.window(), outputs), line(layer.window(), size)), round_up(layer.channels(), PIXEL))
    }

    /// Forgets all and begins a map of this size, of which the layer is to convolve up to so many lines at a time.
    ///
    /// # Panics
    ///
    /// If the ring has no room for that; it still has the map that it had.
    pub fn begin(&mut self, layer: &Depthwise, size: Size, outputs: usize) {
        let window = layer.window();
        let lines = lines(window, outputs);
        self.pixels.reshape(times(lines, line(window, size)), layer.channels());
        // Only now: what has no room must not be what the next lines are put by.
        (self.lines, self.size, self.window, self.come) = (lines, size, window, 0);
        let (left, right) = window.border(size.width);
        let (line, stride) = (line(window, size), self.pixels.stride());
        for line in self.pixels.words_mut().chunks_exact_mut(line * stride).take(self.lines) {
            line[..left * stride].fill(0);
            line[(left + size.width) * stride..][..right * stride].fill(0);
        }
    }

    /// How many lines of the map must have come for this many lines of output, counted from the first.
    #[must_use]
    pub fn wanted(&self, outputs: usize) -> usize {
        lines(self.window, outputs).saturating_sub(self.window.border(self.size.height).0).min(self.size.height)
    }

    /// Lines that have come.
    #[must_use]
    pub fn come(&self) -> usize {
        self.come
    }

    /// Puts the next lines: rows of the input, from `at` on, multiplied by the weights and cut to 0 to 6.
    ///
    /// # Panics
    ///
    /// If the map has not so many lines more or the ring has no place for them, or the input is not of the weights'
    /// shape and precision, or the weights have not the outputs that the layer has channels.
    pub fn widen(&mut self, (input, at): (&Matrix, usize), weights: &Weights, lines: usize) {
        let Self { come, size, .. } = *self;
        assert!(lines <= size.height - come && lines <= self.lines, "{lines} lines after {come}");
        let rows = at..at.saturating_add(times(lines, size.width));
        assert!(rows.end <= input.rows(), "rows {rows:?} of {}", input.rows());
        let shapes = (input.precision(), input.width(), self.pixels.width());
        assert_eq!(shapes, (weights.precision(), weights.inputs(), weights.outputs()), "precision, inputs and outputs");
        self.place(lines);
        let (bias, places) = (weights.bias().as_ptr(), self.places.as_ptr());
        let pixels = self.pixels.numbers_mut::<f32>(&(0..self.pixels.rows()));
        // Places are of numbers and not of rows.
        let out = Scattered { out: To(Strided { stride: 1, ..pixels }), places };
        // SAFETY: the input has the weights' precision and width. There is a place for every row: that of a pixel of the
        // ring, which has the weights' outputs in whole vectors.
        unsafe { product::by_precision(input, rows, weights, Applied { out, bias, function: Relu6 }) };
        self.come += lines;
    }

    /// Finds the places of the next lines' pixels.
    fn place(&mut self, lines: usize) {
        let stride = self.pixels.stride();
        let ((top, _), (left, _)) = (self.window.border(self.size.height), self.window.border(self.size.width));
        let line = line(self.window, self.size);
        self.places.clear();
        for number in self.come..self.come + lines {
            let first = (number + top) % self.lines * line + left;
            let places = (first..first + self.size.width).map(|pixel| (pixel * stride) as u32);
            self.places.extend(places);
        }
    }

    /// Numbers from one line to the next.
    pub(crate) fn line(&self) -> usize {
        line(self.window, self.size) * self.pixels.stride()
    }

    /// Places of lines. The line of number n, lines of the border included, has place n modulo this.
    pub(crate) fn lines(&self) -> usize {
        self.lines
    }

    pub(crate) fn size(&self) -> Size {
        self.size
    }

    pub(crate) fn window(&self) -> Window {
        self.window
    }

    pub(crate) fn pixels(&self) -> &Matrix {
        &self.pixels
    }

    #[cfg(test)]
    pub(crate) fn pixels_mut(&mut self) -> &mut [u32] {
        self.pixels.words_mut()
    }
}

/// Lines that so many lines of output are made of.
fn lines(window: Window, outputs: usize) -> usize {
    outputs.saturating_sub(1).saturating_mul(window.stride).saturating_add(window.side)
}

/// Pixels of a line with its border.
fn line(window: Window, size: Size) -> usize {
    let (left, right) = window.border(size.width);
    size.width.saturating_add(left + right)
}

/// Puts each row where its place is: there is one for every row.
struct Scattered {
    out: To<f32>,
    places: *const u32,
}

impl Finish for Scattered {
    #[inline(always)]
    unsafe fn put<S: Simd>(&self, row: usize, column: usize, values: S::V) {
        // SAFETY: there is a place for every row of the product.
        unsafe { self.out.put::<S>(*self.places.add(row) as usize, column, values) }
    }
}
