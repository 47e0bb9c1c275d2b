//! Dense layers: rows of activations by packed weights.

#![expect(unsafe_code, unsafe_op_in_unsafe_fn, reason = "pointers into matrices, checked before")]

use std::ops::Range;

use crate::{
    Matrix, Precision, Weights, math,
    simd::{Kernel, Number, Simd, Strided},
    tile::{self, Bf16, Dot, F32, Finish, Int8, Operands},
};

/// What becomes of a layer's output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Epilogue {
    /// It is stored.
    Store,
    /// GELU of it is stored: to an absolute error of 2e-6 where the weights are f32, and else to 1e-4 and 5e-6 of its
    /// magnitude, which is less than rounding the factors did to it.
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
    let to = at..at.saturating_add(rows.len());
    let shapes = (input.precision(), input.width(), out.width());
    assert_eq!(shapes, (weights.precision(), weights.inputs(), weights.outputs()), "precision, inputs and outputs");
    // SAFETY: the input has the weights' precision and width; `out` has as many rows as are multiplied, which
    // `numbers_mut` checks, and of each the weights' outputs in whole vectors.
    unsafe {
        match out.precision() {
            Precision::F32 => store(input, rows, weights, epilogue, To(out.numbers_mut::<f32>(&to))),
            Precision::Bf16 => store(input, rows, weights, epilogue, To(out.numbers_mut::<u16>(&to))),
            Precision::Int8 => panic!("{epilogue:?} in int8"),
        }
    }
}

/// # Safety
///
/// That of [`by_precision`], where `out` is what the values are put into.
unsafe fn store<T: Number>(input: &Matrix, rows: Range<usize>, weights: &Weights, epilogue: Epilogue, out: To<T>) {
    let bias = weights.bias().as_ptr();
    match (epilogue, weights.precision()) {
        (Epilogue::Store, _) => by_precision(input, rows, weights, Applied { out, bias, function: Identity }),
        (Epilogue::Gelu, Precision::F32) => by_precision(input, rows, weights, Applied { out, bias, function: Gelu }),
        (Epilogue::Gelu, _) => by_precision(input, rows, weights, Applied { out, bias, function: RoughGelu }),
        (Epilogue::Relu6, _) => by_precision(input, rows, weights, Applied { out, bias, function: Relu6 }),
        (Epilogue::Add, _) => by_precision(input, rows, weights, Added { out, bias }),
    }
}

/// Multiplies these rows by all panels.
///
/// # Safety
///
/// The input has the weights' precision and as many columns as they have inputs. `finish` may put whole vectors at as many
/// rows as these are, counted from 0, and at all columns up to the weights' outputs rounded up to vectors.
///
/// # Panics
///
/// If the rows are not there.
pub(crate) unsafe fn by_precision<F: Finish>(input: &Matrix, rows: Range<usize>, weights: &Weights, finish: F) {
    let (words, count) = (input.words_of(&rows), rows.len());
    if rows.is_empty() {
        return;
    }
    match weights.precision() {
        Precision::F32 => weights.cpu().run(Layer { rows: words, count, weights, dot: F32, finish }),
        Precision::Bf16 => weights.cpu().run(Layer { rows: words, count, weights, dot: Bf16, finish }),
        Precision::Int8 => {
            let dot = Int8 {
                row_scales: input.scales[rows.clone()].as_ptr(),
                row_zeros: input.zeros[rows].as_ptr(),
                column_scales: weights.scales().as_ptr(),
                column_sums: weights.sums().as_ptr(),
            };
            weights.cpu().run(Layer { rows: words, count, weights, dot, finish });
        }
    }
}

/// Rows by all panels: `count` rows of the weights' words, which `dot` and `finish` take values of; and the tier is that
/// of the weights.
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

/// As they are in f32, rounded in bf16, to rows that there are.
pub(crate) struct To<T>(pub(crate) Strided<*mut T>);

/// Adds the bias, of whole vectors, and puts a function of that.
pub(crate) struct Applied<O, A> {
    pub(crate) out: O,
    pub(crate) bias: *const f32,
    pub(crate) function: A,
}

/// Adds the bias and what is there.
struct Added<T> {
    out: To<T>,
    bias: *const f32,
}

/// A function of numbers.
pub(crate) trait Function {
    /// # Safety
    ///
    /// That of [`Simd`].
    unsafe fn apply<S: Simd>(&self, x: S::V) -> S::V;
}

struct Identity;
struct Gelu;
/// For weights of few bits, whose products are less exact than that.
struct RoughGelu;
/// Cut to 0 to 6.
pub(crate) struct Relu6;

impl Function for Identity {
    #[inline(always)]
    unsafe fn apply<S: Simd>(&self, x: S::V) -> S::V {
        x
    }
}

impl Function for Gelu {
    #[inline(always)]
    unsafe fn apply<S: Simd>(&self, x: S::V) -> S::V {
        math::gelu::<S>(x)
    }
}

impl Function for RoughGelu {
    #[inline(always)]
    unsafe fn apply<S: Simd>(&self, x: S::V) -> S::V {
        math::gelu_rough::<S>(x)
    }
}

impl Function for Relu6 {
    #[inline(always)]
    unsafe fn apply<S: Simd>(&self, x: S::V) -> S::V {
        math::relu6::<S>(x)
    }
}

impl<T: Number> Finish for To<T> {
    #[inline(always)]
    unsafe fn put<S: Simd>(&self, row: usize, column: usize, values: S::V) {
        T::store::<S>(self.0.start.add(row * self.0.stride + column), values);
    }
}

impl<O: Finish, A: Function> Finish for Applied<O, A> {
    #[inline(always)]
    unsafe fn put<S: Simd>(&self, row: usize, column: usize, values: S::V) {
        let values = S::add(values, S::load(self.bias.add(column)));
        self.out.put::<S>(row, column, self.function.apply::<S>(values));
    }
}

impl<T: Number> Finish for Added<T> {
    #[inline(always)]
    unsafe fn put<S: Simd>(&self, row: usize, column: usize, values: S::V) {
        let values = S::add(values, S::load(self.bias.add(column)));
        let there = T::load::<S>(self.out.0.start.add(row * self.out.0.stride + column));
        self.out.put::<S>(row, column, S::add(values, there));
    }
}

#[cfg(test)]
mod tests;
