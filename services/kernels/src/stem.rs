//! The first layer of a network of images: a full convolution of 3 x 3 that reads bytes and halves both sides.
//!
//! It is a product over patches: a row has the pixels of one place of the window. A byte becomes a number by a table per
//! colour, which holds whatever normalisation the network wants.

use std::ops::Range;

use crate::{
    Cpu, Dense, Matrix, Precision, Reserve, Size, Weights, Window,
    memory::{Block, Plain, round_up, times},
    weights::narrow,
};

const COLOURS: usize = 3;
const WINDOW: Window = Window { side: 3, stride: 2 };

/// The layer's weights and its tables.
#[derive(Debug)]
pub struct Stem {
    weights: Weights,
    /// The bits of a number for each byte of each colour.
    numbers: Box<[[u32; 256]; COLOURS]>,
}

/// Memory that patches are gathered in.
#[derive(Debug)]
pub struct Patches {
    rows: Matrix,
    /// Lines of the image as numbers, with their border.
    lines: Block,
}

// === impl Stem ===

impl Stem {
    /// What a layer takes of a reserve.
    #[must_use]
    pub fn bytes(cpu: Cpu, precision: Precision, outputs: usize) -> usize {
        Weights::bytes(cpu, precision, outputs, columns(precision))
    }

    /// Packs a layer in f32 or bf16. A row of its weights is a window, line by line and pixel by pixel, of colours;
    /// `numbers` are what the bytes of each colour stand for.
    ///
    /// # Panics
    ///
    /// If the weights have other windows, or in int8.
    #[must_use]
    pub fn pack(
        (cpu, precision): (Cpu, Precision),
        layer: Dense<'_>,
        numbers: &[[f32; 256]; COLOURS],
        reserve: &mut Reserve,
    ) -> Self {
        assert_ne!(precision, Precision::Int8, "a stem in int8");
        let line = WINDOW.side * COLOURS;
        assert_eq!(layer.weight.len(), layer.bias.len() * WINDOW.side * line, "windows of 3 x 3 x 3");
        let padded = line_words(precision) * precision.values_per_word();
        let mut weight = vec![0.0; layer.bias.len() * columns(precision)];
        weight.chunks_exact_mut(padded).zip(layer.weight.chunks_exact(line)).for_each(|(to, from)| {
            to[..line].copy_from_slice(from);
        });
        let bits = |x: f32| if precision == Precision::F32 { x.to_bits() } else { narrow(x).into() };
        Self {
            weights: Weights::pack(cpu, precision, Dense { weight: &weight, bias: layer.bias }, reserve),
            numbers: Box::new(numbers.map(|colour| colour.map(bits))),
        }
    }

    /// The weights by which the rows of patches are multiplied.
    #[must_use]
    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    /// Size of the output for an image of this size.
    #[must_use]
    pub fn output(size: Size) -> Size {
        Size { height: WINDOW.places(size.height), width: WINDOW.places(size.width) }
    }

    /// Gathers the patches of these lines of output of an image: row by row, 3 bytes a pixel. Returns their rows.
    ///
    /// # Panics
    ///
    /// If the image has another size, or not so many lines, or there is no room for them.
    pub fn gather<'a>(&self, image: &[u8], size: Size, outputs: Range<usize>, patches: &'a mut Patches) -> &'a Matrix {
        assert_eq!(image.len(), times(size.pixels(), COLOURS), "bytes of {size:?}");
        let out = Self::output(size);
        assert!(outputs.start <= outputs.end && outputs.end <= out.height, "lines {outputs:?} of {out:?}");
        assert_eq!(patches.rows.precision(), self.weights.precision(), "precision of the patches");
        let rows = outputs.len() * out.width;
        patches.rows.reshape(rows, self.weights.inputs());
        match self.weights.precision() {
            Precision::F32 => self.gather_lines::<f32>(image, size, outputs, patches),
            Precision::Bf16 => self.gather_lines::<u16>(image, size, outputs, patches),
            Precision::Int8 => unreachable!("no stem is packed in int8"),
        }
        &patches.rows
    }

    fn gather_lines<T: Bits>(&self, image: &[u8], size: Size, outputs: Range<usize>, patches: &mut Patches) {
        let Patches { rows, lines } = patches;
        let (top, (left, _)) = (WINDOW.border(size.height).0, WINDOW.border(size.width));
        let (line, width) = (line_numbers(size), size.width * COLOURS);
        let read =
            outputs.start * WINDOW.stride..(outputs.end * WINDOW.stride + WINDOW.side).saturating_sub(WINDOW.stride);
        let room = lines.get_mut::<T>();
        assert!(read.len() * line <= room.len(), "{} lines of {line} numbers in {}", read.len(), room.len());
        for (to, number) in room.chunks_exact_mut(line).zip(read) {
            to.fill(T::of(0));
            if !(top..top + size.height).contains(&number) {
                continue;
            }
            let from = image[(number - top) * width..][..width].as_chunks::<COLOURS>().0;
            let to = to[left * COLOURS..][..width].as_chunks_mut::<COLOURS>().0;
            for (to, from) in to.iter_mut().zip(from) {
                *to = std::array::from_fn(|colour| T::of(self.numbers[colour][usize::from(from[colour])]));
            }
        }
        let per_word = self.weights.precision().values_per_word();
        let width = Self::output(size).width;
        let lines = Lines { words: lines.get(), line: line / per_word, step: WINDOW.stride * COLOURS / per_word };
        let stride = rows.stride();
        let rows = rows.words_mut().chunks_exact_mut(stride).take(outputs.len() * width).enumerate();
        match self.weights.precision() {
            Precision::F32 => rows.for_each(|(row, to)| lines.copy::<LINE_WORDS>((row / width, row % width), to)),
            _ => rows.for_each(|(row, to)| lines.copy::<LINE_PAIRS>((row / width, row % width), to)),
        }
    }
}

// === impl Patches ===

impl Patches {
    /// For images of up to this size, so many lines of output at a time, in memory of the reserve.
    #[must_use]
    pub fn new(precision: Precision, size: Size, outputs: usize, reserve: &mut Reserve) -> Self {
        let lines = times(outputs, WINDOW.stride).saturating_add(WINDOW.side);
        Self {
            rows: Matrix::pixels(precision, times(outputs, Stem::output(size).width), columns(precision), reserve),
            lines: reserve.take(times(lines, line_numbers(size)).div_ceil(precision.values_per_word())),
        }
    }
}

/// Lines of the image, in words.
struct Lines<'a> {
    words: &'a [u32],
    line: usize,
    /// Words from one place of the window to the next.
    step: usize,
}

// === impl Lines ===

impl Lines<'_> {
    /// Copies a patch whose lines have this many words.
    fn copy<const WORDS: usize>(&self, (y, x): (usize, usize), to: &mut [u32]) {
        for (row, to) in to.as_chunks_mut::<WORDS>().0.iter_mut().enumerate().take(WINDOW.side) {
            let start = (y * WINDOW.stride + row) * self.line + x * self.step;
            to.copy_from_slice(&self.words[start..start + WORDS]);
        }
    }
}

/// A number from the bits of the tables.
trait Bits: Plain {
    fn of(bits: u32) -> Self;
}

impl Bits for f32 {
    fn of(bits: u32) -> f32 {
        f32::from_bits(bits)
    }
}

/// bf16.
impl Bits for u16 {
    fn of(bits: u32) -> u16 {
        bits as u16
    }
}

/// Words of a patch's line: 9 numbers of f32; of bf16, one more, which has the weight 0.
const LINE_WORDS: usize = 9;
const LINE_PAIRS: usize = 5;

fn line_words(precision: Precision) -> usize {
    if precision == Precision::F32 { LINE_WORDS } else { LINE_PAIRS }
}

/// Numbers of a patch.
fn columns(precision: Precision) -> usize {
    WINDOW.side * line_words(precision) * precision.values_per_word()
}

/// Numbers of a line with its border, in whole words.
fn line_numbers(size: Size) -> usize {
    let (left, right) = WINDOW.border(size.width);
    round_up(times(size.width.saturating_add(left + right), COLOURS), 2)
}

#[cfg(test)]
mod tests;
