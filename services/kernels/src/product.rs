//! Dense layers: rows of activations by packed weights.

#![expect(unsafe_code, unsafe_op_in_unsafe_fn, reason = "pointers into matrices, checked before")]

use std::ops::Range;

use crate::{
    Matrix, Precision, Weights, math,
    simd::{Kernel, Simd, Strided},
    tile::{self, Bf16, Dot, F32, Finish, Int8, Operands},
};

/// What becomes of a layer's output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Epilogue {
    /// It is stored.
    Store,
    /// GELU of it is stored.
    Gelu,
    /// It is added to what is there, in f32.
    Add,
    /// It is cut to 0 to 6 and stored.
    Relu6,
}

/// Multiplies `rows` of the input by the weights, adds the bias, and puts the results into `out`, from row `at` on.
///
/// # Panics
///
/// If precision or shape do not fit: the input has the weights' precision and as many columns as they have inputs; `out`
/// is f32 or bf16, and has as many columns as there are outputs.
pub fn multiply(
    input: &Matrix,
    rows: Range<usize>,
    weights: &Weights,
    epilogue: Epilogue,
    (out, at): (&mut Matrix, usize),
) {
    assert!(rows.start <= rows.end && rows.end <= input.rows(), "rows {rows:?} of {}", input.rows());
    assert!(at + rows.len() <= out.rows(), "{} rows from {at} on of {}", rows.len(), out.rows());
    let shapes = (input.precision(), input.width(), out.width());
    assert_eq!(shapes, (weights.precision(), weights.inputs(), weights.outputs()), "precision, inputs and outputs");
    let stride = out.stride() * out.precision().values_per_word();
    let start = stride * at;
    let bias = weights.bias().as_ptr();
    match (out.precision(), epilogue) {
        (Precision::F32, _) => {
            let out = ToF32(Strided { start: out.words_mut()[start..].as_mut_ptr().cast(), stride });
            store(input, rows, weights, epilogue, (out, bias));
        }
        (Precision::Bf16, _) => {
            let out = ToBf16(Strided { start: out.words_mut()[start / 2..].as_mut_ptr().cast(), stride });
            store(input, rows, weights, epilogue, (out, bias));
        }
        (Precision::Int8, _) => panic!("{epilogue:?} in int8"),
    }
}

fn store<O: Stored>(
    input: &Matrix,
    rows: Range<usize>,
    weights: &Weights,
    epilogue: Epilogue,
    (out, bias): (O, *const f32),
) {
    match (epilogue, weights.precision()) {
        (Epilogue::Gelu, Precision::F32) => by_precision(input, rows, weights, Activated { out, bias }),
        (Epilogue::Gelu, _) => by_precision(input, rows, weights, RoughlyActivated { out, bias }),
        (Epilogue::Add, _) => by_precision(input, rows, weights, Added { out, bias }),
        (Epilogue::Relu6, _) => by_precision(input, rows, weights, Clipped { out, bias }),
        (Epilogue::Store, _) => by_precision(input, rows, weights, Biased { out, bias }),
    }
}

/// Multiplies these rows, which are there and fit the weights, by all panels.
pub(crate) fn by_precision<F: Finish>(input: &Matrix, rows: Range<usize>, weights: &Weights, finish: F) {
    if rows.is_empty() {
        return;
    }
    let start = input.words()[rows.start * input.stride()..].as_ptr();
    let input_rows = Strided { start, stride: input.stride() };
    let count = rows.len();
    match weights.precision() {
        Precision::F32 => weights.cpu().run(Layer { rows: input_rows, count, weights, dot: F32, finish }),
        Precision::Bf16 => weights.cpu().run(Layer { rows: input_rows, count, weights, dot: Bf16, finish }),
        Precision::Int8 => {
            let dot = Int8 {
                row_scales: input.scales[rows.clone()].as_ptr(),
                row_zeros: input.zeros[rows].as_ptr(),
                column_scales: weights.scales().as_ptr(),
                column_sums: weights.sums().as_ptr(),
            };
            weights.cpu().run(Layer { rows: input_rows, count, weights, dot, finish });
        }
    }
}

/// Rows by all panels.
struct Layer<'a, D, F> {
    rows: Strided<*const u32>,
    count: usize,
    weights: &'a Weights,
    dot: D,
    finish: F,
}

impl<D: Dot, F: Finish> Kernel for Layer<'_, D, F> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { rows, count, weights, dot, finish } = self;
        let (words, width) = (weights.words(), 2 * S::LANES);
        // A panel stays in the nearest caches while all rows pass by it; meanwhile the next one is asked for, a part by each
        // tile: asked for at once, it would come slower than it is multiplied.
        for column in (0..weights.padded()).step_by(width) {
            let start = weights.panels()[column * words..].as_ptr();
            let whole = column + width <= weights.padded();
            let stride = if whole { width } else { S::LANES };
            let ask = stride.div_ceil(count.div_ceil(S::TILE_ROWS));
            let mut next = Strided { start: start.wrapping_add(words * stride), stride: ask };
            for (first, count) in tile::tiles(count, S::TILE_ROWS) {
                let rows = Strided { start: rows.start.add(first * rows.stride), ..rows };
                let operands = Operands { rows, words, panel: Strided { start, stride }, next };
                if whole {
                    tile::multiply::<S, D, F, 2>(&operands, count, (first, column), (&dot, &finish));
                } else {
                    tile::multiply::<S, D, F, 1>(&operands, count, (first, column), (&dot, &finish));
                }
                next.start = next.start.wrapping_add(words * ask);
            }
        }
    }
}

/// As it is, to rows of f32.
pub(crate) struct ToF32(pub(crate) Strided<*mut f32>);

/// Rounded, to rows of bf16.
pub(crate) struct ToBf16(pub(crate) Strided<*mut u16>);

struct Biased<O> {
    out: O,
    bias: *const f32,
}

struct Activated<O> {
    out: O,
    bias: *const f32,
}

struct RoughlyActivated<O> {
    out: O,
    bias: *const f32,
}

struct Added<O> {
    out: O,
    bias: *const f32,
}

/// Cut to 0 to 6.
pub(crate) struct Clipped<O> {
    pub(crate) out: O,
    pub(crate) bias: *const f32,
}

/// Reads back what was put.
pub(crate) trait Stored: Finish {
    unsafe fn get<S: Simd>(&self, row: usize, column: usize) -> S::V;
}

impl Stored for ToF32 {
    #[inline(always)]
    unsafe fn get<S: Simd>(&self, row: usize, column: usize) -> S::V {
        S::load(self.0.start.add(row * self.0.stride + column))
    }
}

impl Stored for ToBf16 {
    #[inline(always)]
    unsafe fn get<S: Simd>(&self, row: usize, column: usize) -> S::V {
        S::load_bf16(self.0.start.add(row * self.0.stride + column))
    }
}

impl Finish for ToF32 {
    #[inline(always)]
    unsafe fn put<S: Simd>(&self, row: usize, column: usize, values: S::V) {
        S::store(self.0.start.add(row * self.0.stride + column), values);
    }
}

impl Finish for ToBf16 {
    #[inline(always)]
    unsafe fn put<S: Simd>(&self, row: usize, column: usize, values: S::V) {
        S::store_bf16(self.0.start.add(row * self.0.stride + column), values);
    }
}

impl<O: Finish> Finish for Biased<O> {
    #[inline(always)]
    unsafe fn put<S: Simd>(&self, row: usize, column: usize, values: S::V) {
        self.out.put::<S>(row, column, S::add(values, S::load(self.bias.add(column))));
    }
}

impl<O: Finish> Finish for Activated<O> {
    #[inline(always)]
    unsafe fn put<S: Simd>(&self, row: usize, column: usize, values: S::V) {
        self.out.put::<S>(row, column, math::gelu::<S>(S::add(values, S::load(self.bias.add(column)))));
    }
}

impl<O: Finish> Finish for RoughlyActivated<O> {
    #[inline(always)]
    unsafe fn put<S: Simd>(&self, row: usize, column: usize, values: S::V) {
        self.out.put::<S>(row, column, math::gelu_rough::<S>(S::add(values, S::load(self.bias.add(column)))));
    }
}

impl<O: Stored> Finish for Added<O> {
    #[inline(always)]
    unsafe fn put<S: Simd>(&self, row: usize, column: usize, values: S::V) {
        let values = S::add(values, S::load(self.bias.add(column)));
        self.out.put::<S>(row, column, S::add(values, self.out.get::<S>(row, column)));
    }
}

impl<O: Finish> Finish for Clipped<O> {
    #[inline(always)]
    unsafe fn put<S: Simd>(&self, row: usize, column: usize, values: S::V) {
        self.out.put::<S>(row, column, math::relu6::<S>(S::add(values, S::load(self.bias.add(column)))));
    }
}

#[cfg(test)]
mod tests;
