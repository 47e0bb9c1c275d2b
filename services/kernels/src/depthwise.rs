//! Depthwise convolution: each channel is convolved with a window of its own.
//!
//! A vector of channels of several neighbouring pixels stays in registers while the window passes over them: of each line
//! of the window the pixels are loaded once and used for all its columns. The sums of a pixel are made in the order of
//! the window, whatever the pixels beside it are.

#![expect(unsafe_code, unsafe_op_in_unsafe_fn, reason = "pointers into matrices, checked before")]

use std::ops::Range;

use crate::{
    Cpu, Dense, Matrix, Precision, Reserve, Ring, math,
    memory::{Block, times},
    simd::{Kernel, Number, Simd, Strided},
    tile,
};

/// Channels whose weights stand together, window by window.
const BLOCK: usize = 16;
/// Most pixels that are computed together in any tier.
const PIXELS_MAX: usize = 8;
/// Pixels of a line that the largest window of so many pixels sees: stride 2, side 5.
const COLUMNS_MAX: usize = 2 * (PIXELS_MAX - 1) + SIDE_MAX;
const SIDE_MAX: usize = 5;

/// A square window that passes over a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Lines and columns.
    pub side: usize,
    /// Pixels from one place to the next.
    pub stride: usize,
}

/// A depthwise convolution with bias and ReLU6, for one tier.
#[derive(Debug)]
pub struct Depthwise {
    cpu: Cpu,
    window: Window,
    channels: usize,
    /// By block of channels, place in the window, channel.
    weights: Block,
    bias: Block,
}

// === impl Window ===

impl Window {
    /// Places along an axis of this length.
    #[must_use]
    pub fn places(self, length: usize) -> usize {
        length.div_ceil(self.stride)
    }

    /// Pixels of zeros before and after an axis, as TensorFlow's "SAME" wants them: the odd one goes to the end.
    #[must_use]
    pub fn border(self, length: usize) -> (usize, usize) {
        let last = self.places(length).saturating_sub(1) * self.stride;
        let total = self.side.saturating_sub(length - last);
        (total / 2, total - total / 2)
    }
}

// === impl Depthwise ===

impl Depthwise {
    /// What a layer takes of a reserve.
    #[must_use]
    pub fn bytes(window: Window, channels: usize) -> usize {
        let places = times(window.side, window.side);
        Reserve::bytes(times(places, channels)) + Reserve::bytes(channels)
    }

    /// Reorders a layer, into memory of the reserve. A row of its weights is a channel's window, line by line.
    ///
    /// # Panics
    ///
    /// If the window has another side than 3 or 5 or another stride than 1 or 2, the channels are no multiple of 16, or
    /// the weights not as many as their windows.
    #[must_use]
    pub fn pack(cpu: Cpu, window: Window, layer: Dense<'_>, reserve: &mut Reserve) -> Self {
        let (channels, places) = (layer.bias.len(), window.side * window.side);
        assert!(matches!((window.side, window.stride), (3 | 5, 1 | 2)), "{window:?}");
        assert!(channels > 0 && channels.is_multiple_of(BLOCK), "{channels} channels are no whole blocks of {BLOCK}");
        assert_eq!(layer.weight.len(), channels * places, "a window per channel");
        let mut packed =
            Self { cpu, window, channels, weights: reserve.take(channels * places), bias: reserve.take(channels) };
        packed.bias.get_mut().copy_from_slice(layer.bias);
        let weights = packed.weights.get_mut::<f32>();
        for (channel, row) in layer.weight.chunks_exact(places).enumerate() {
            let block = &mut weights[channel / BLOCK * BLOCK * places + channel % BLOCK..];
            block.iter_mut().step_by(BLOCK).zip(row).for_each(|(place, weight)| *place = *weight);
        }
        packed
    }

    /// The window.
    #[must_use]
    pub fn window(&self) -> Window {
        self.window
    }

    /// Channels.
    #[must_use]
    pub fn channels(&self) -> usize {
        self.channels
    }

    /// Convolves these lines of output, cuts them to 0 to 6, and puts their pixels into the first rows of `out`.
    ///
    /// # Panics
    ///
    /// If the ring was not begun for such a layer, or has not all lines that these are made of, or `out` is neither f32 nor
    /// bf16, or has other columns or too few rows.
    pub fn convolve(&self, ring: &Ring, outputs: Range<usize>, out: &mut Matrix) {
        let (window, size) = (self.window, ring.size());
        let width = window.places(size.width);
        assert!(ring.window() == window && ring.pixels().width() == self.channels, "a ring of another layer");
        assert!(outputs.end <= window.places(size.height), "lines {outputs:?} of {size:?}");
        assert_eq!(out.width(), self.channels, "channels");
        assert!(outputs.len() * width <= out.rows(), "{outputs:?} x {width} pixels in {} rows", out.rows());
        if outputs.is_empty() {
            return;
        }
        let first = (outputs.start * window.stride).saturating_sub(window.border(size.height).0);
        assert!(
            ring.wanted(outputs.end) <= ring.come() && first + ring.lines() >= ring.come(),
            "lines {outputs:?} of a ring that has {} of {} behind line {}",
            ring.lines(),
            size.height,
            ring.come()
        );
        // SAFETY: the ring is one for this layer and has the lines, and `out` has the channels.
        unsafe {
            match out.precision() {
                Precision::F32 => self.by_window::<f32>(ring, outputs, out),
                Precision::Bf16 => self.by_window::<u16>(ring, outputs, out),
                Precision::Int8 => panic!("a convolution in int8"),
            }
        }
    }

    /// # Panics
    ///
    /// If `out` has other numbers or too few rows.
    ///
    /// # Safety
    ///
    /// The ring has the layer's window and channels and all lines that these are made of, and `out` has its channels.
    unsafe fn by_window<T: Number>(&self, ring: &Ring, outputs: Range<usize>, out: &mut Matrix) {
        let out = out.numbers_mut::<T>(&(0..outputs.len() * self.window.places(ring.size().width)));
        match (self.window.side, self.window.stride) {
            (3, 1) => self.cpu.run(Lines::<T, 3, 1> { layer: self, ring, outputs, out }),
            (3, 2) => self.cpu.run(Lines::<T, 3, 2> { layer: self, ring, outputs, out }),
            (5, 1) => self.cpu.run(Lines::<T, 5, 1> { layer: self, ring, outputs, out }),
            (5, 2) => self.cpu.run(Lines::<T, 5, 2> { layer: self, ring, outputs, out }),
            (side, stride) => unreachable!("no window of {side} and {stride} is packed"),
        }
    }
}

/// Some lines of output, which the ring has all lines of; the layer's window is that of `SIDE` and `STRIDE`, and `out` has
/// a row of its channels per pixel.
struct Lines<'a, T, const SIDE: usize, const STRIDE: usize> {
    layer: &'a Depthwise,
    ring: &'a Ring,
    outputs: Range<usize>,
    out: Strided<*mut T>,
}

/// What the window sees of the ring, from the first pixel of a tile on: a pointer per line, null where the line lies
/// outside the map.
struct Field<const SIDE: usize> {
    lines: [*const f32; SIDE],
    /// Numbers from one pixel to the next.
    stride: usize,
    weights: *const f32,
    bias: *const f32,
}

impl<T: Number, const SIDE: usize, const STRIDE: usize> Kernel for Lines<'_, T, SIDE, STRIDE> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { layer, ring, outputs, out } = self;
        let (size, pixels) = (ring.size(), ring.pixels().numbers::<f32>(&(0..ring.pixels().rows())));
        let (top, width) = (layer.window.border(size.height).0, layer.window.places(size.width));
        let line = ring.line();
        let (weights, bias) = (layer.weights.get::<f32>().as_ptr(), layer.bias.get::<f32>().as_ptr());
        // Block by block, so that the lines of one stay in the nearest cache from one line of output to the next.
        for channel in (0..layer.channels).step_by(S::LANES) {
            let weights = weights.add(channel / BLOCK * BLOCK * SIDE * SIDE + channel % BLOCK);
            for (number, output) in outputs.clone().enumerate() {
                let mut lines = [std::ptr::null(); SIDE];
                for (row, place) in lines.iter_mut().enumerate() {
                    let row = output * STRIDE + row;
                    if (top..top + size.height).contains(&row) {
                        *place = pixels.start.add(row % ring.lines() * line + channel);
                    }
                }
                let field = Field { lines, stride: pixels.stride, weights, bias: bias.add(channel) };
                let line_out = out.start.add(number * width * out.stride + channel);
                for (first, count) in tile::tiles(width, S::TILE_ROWS) {
                    let out = Strided { start: line_out.add(first * out.stride), ..out };
                    convolve::<S, T, SIDE, STRIDE>(&field, first, count, out);
                }
            }
        }
    }
}

/// `count` neighbouring pixels.
///
/// # Safety
///
/// That of [`pixels`].
#[inline(always)]
unsafe fn convolve<S: Simd, T: Number, const SIDE: usize, const STRIDE: usize>(
    field: &Field<SIDE>,
    first: usize,
    count: usize,
    out: Strided<*mut T>,
) {
    match count {
        1 => pixels::<S, T, SIDE, STRIDE, 1>(field, first, out),
        2 => pixels::<S, T, SIDE, STRIDE, 2>(field, first, out),
        3 => pixels::<S, T, SIDE, STRIDE, 3>(field, first, out),
        4 => pixels::<S, T, SIDE, STRIDE, 4>(field, first, out),
        5 => pixels::<S, T, SIDE, STRIDE, 5>(field, first, out),
        6 => pixels::<S, T, SIDE, STRIDE, 6>(field, first, out),
        7 => pixels::<S, T, SIDE, STRIDE, 7>(field, first, out),
        8 => pixels::<S, T, SIDE, STRIDE, 8>(field, first, out),
        _ => unreachable!("no tier computes {count} pixels together"),
    }
}

/// A vector of channels of `COUNT` neighbouring pixels, from the `first` of a line on.
///
/// # Safety
///
/// The lines of the field that are not null have all pixels that the windows see, its weights and bias are those of a
/// vector of channels, and `out` has the pixels.
#[inline(always)]
unsafe fn pixels<S: Simd, T: Number, const SIDE: usize, const STRIDE: usize, const COUNT: usize>(
    field: &Field<SIDE>,
    first: usize,
    out: Strided<*mut T>,
) {
    // Not compiled where registers would not do, and not called there.
    if COUNT > S::TILE_ROWS {
        unreachable!("{COUNT} pixels together in a tier of {}", S::TILE_ROWS);
    }
    let mut sums = [S::load(field.bias); COUNT];
    let mut weights = field.weights;
    for line in field.lines {
        if line.is_null() {
            weights = weights.add(SIDE * BLOCK);
            continue;
        }
        let line = line.add(first * STRIDE * field.stride);
        let mut seen = [S::splat(0.0); COLUMNS_MAX];
        for (column, seen) in seen.iter_mut().enumerate().take((COUNT - 1) * STRIDE + SIDE) {
            *seen = S::load(line.add(column * field.stride));
        }
        for column in 0..SIDE {
            let weight = S::load(weights);
            for (pixel, sum) in sums.iter_mut().enumerate() {
                *sum = S::fma(seen[pixel * STRIDE + column], weight, *sum);
            }
            weights = weights.add(BLOCK);
        }
    }
    for (pixel, sum) in sums.into_iter().enumerate() {
        T::store::<S>(out.start.add(pixel * out.stride), math::relu6::<S>(sum));
    }
}

#[cfg(test)]
mod tests;
