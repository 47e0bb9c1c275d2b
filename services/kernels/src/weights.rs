//! Weights of dense layers, in the order in which the products read them.
//!
//! The outputs stand in panels of two vectors' width. A panel has, for each word of the inputs, the words of its outputs
//! side by side: a word holds one f32, two bf16 or four int8 of neighbouring inputs, so that one loop multiplies all
//! three (see `tile`). The last panel is one vector wide if that is enough. What is missing to whole vectors and words is
//! zero.

use crate::{
    Cpu, Precision,
    memory::{Block, Reserve, round_up, times},
};

/// Inputs of a layer beyond which sums of int8 products could overflow: 65,536 x 255 x 127 is just below 2^31.
const INPUTS_MAX: usize = 1 << 16;

/// A dense layer as checkpoints have it.
#[derive(Clone, Copy, Debug)]
pub struct Dense<'a> {
    /// Row by row, a row per output.
    pub weight: &'a [f32],
    /// One per output.
    pub bias: &'a [f32],
}

/// A dense layer for one tier and precision.
#[derive(Debug)]
pub struct Weights {
    cpu: Cpu,
    precision: Precision,
    inputs: usize,
    outputs: usize,
    panels: Block,
    /// Of whole vectors; zeros beyond the outputs.
    bias: Block,
    /// In int8, what an output's integers are multiplied by, and their sum; as many as there are biases.
    scales: Block,
    sums: Block,
}

// === impl Weights ===

impl Weights {
    /// What [`Self::pack`] takes of its reserve for a layer of this shape.
    #[must_use]
    pub fn bytes(cpu: Cpu, precision: Precision, outputs: usize, inputs: usize) -> usize {
        let outputs = round_up(outputs, cpu.lanes());
        let per_output = if precision == Precision::Int8 { 3 } else { 1 };
        let panels = Reserve::bytes(times(outputs, inputs.div_ceil(precision.values_per_word())));
        panels + times(per_output, Reserve::bytes(outputs))
    }

    /// Rounds and reorders a layer, into memory of the reserve.
    ///
    /// In int8 an output's weights are divided by the greatest of their magnitudes and rounded to -127 to 127. Where one
    /// of them is infinite or not a number, neither is what comes out.
    ///
    /// # Panics
    ///
    /// If the weights are not as many as inputs by outputs, or the inputs more than 65,536.
    #[must_use]
    pub fn pack(cpu: Cpu, precision: Precision, layer: Dense<'_>, reserve: &mut Reserve) -> Self {
        let outputs = layer.bias.len();
        assert!(outputs > 0 && layer.weight.len().is_multiple_of(outputs), "a layer's weights are inputs x outputs");
        let inputs = layer.weight.len() / outputs;
        assert!(inputs > 0 && inputs <= INPUTS_MAX, "a layer of {inputs} inputs: 1 to {INPUTS_MAX}");
        let padded = outputs.next_multiple_of(cpu.lanes());
        let per_output = if precision == Precision::Int8 { padded } else { 0 };
        let mut packed = Self {
            cpu,
            precision,
            inputs,
            outputs,
            panels: reserve.take(padded * inputs.div_ceil(precision.values_per_word())),
            bias: reserve.take(padded),
            scales: reserve.take(per_output),
            sums: reserve.take(per_output),
        };
        packed.bias.get_mut()[..outputs].copy_from_slice(layer.bias);
        for (output, row) in layer.weight.chunks_exact(inputs).enumerate() {
            match precision {
                Precision::F32 => packed.place(output, row.iter().map(|x| x.to_bits())),
                Precision::Bf16 => packed.place(output, row.chunks(2).map(bf16_word)),
                Precision::Int8 => packed.quantize(output, row),
            }
        }
        packed
    }

    fn quantize(&mut self, output: usize, row: &[f32]) {
        let greatest = row.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
        // No byte says that a weight is not a number: the scale says it of the whole output.
        let scale = match row.iter().all(|x| x.is_finite()) {
            true if greatest > 0.0 => greatest / 127.0,
            true => 1.0,
            false => f32::NAN,
        };
        let mut sum = 0.0;
        let word = |values: &[f32]| {
            let mut bytes = [0; 4];
            for (byte, x) in bytes.iter_mut().zip(values) {
                let integer = nearest_even(x / scale).clamp(-127.0, 127.0) as i8;
                sum += f32::from(integer);
                *byte = integer.cast_unsigned();
            }
            u32::from_le_bytes(bytes)
        };
        self.place(output, row.chunks(4).map(word));
        self.scales.get_mut()[output] = scale;
        self.sums.get_mut()[output] = sum;
    }

    fn place(&mut self, output: usize, words: impl Iterator<Item = u32>) {
        let widest = 2 * self.cpu.lanes();
        let (panel, column) = (output / widest, output % widest);
        let start = panel * widest * self.words();
        let width = widest.min(self.padded() - panel * widest);
        let panels = self.panels.get_mut::<u32>();
        for (index, word) in words.enumerate() {
            panels[start + index * width + column] = word;
        }
    }

    /// The tier.
    #[must_use]
    pub fn cpu(&self) -> Cpu {
        self.cpu
    }

    /// The precision.
    #[must_use]
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Numbers that go in.
    #[must_use]
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Numbers that come out.
    #[must_use]
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// Words of an input row.
    pub(crate) fn words(&self) -> usize {
        self.inputs.div_ceil(self.precision.values_per_word())
    }

    /// Outputs, in whole vectors.
    pub(crate) fn padded(&self) -> usize {
        self.outputs.next_multiple_of(self.cpu.lanes())
    }

    pub(crate) fn panels(&self) -> &[u32] {
        self.panels.get()
    }

    pub(crate) fn bias(&self) -> &[f32] {
        self.bias.get()
    }

    pub(crate) fn scales(&self) -> &[f32] {
        self.scales.get()
    }

    pub(crate) fn sums(&self) -> &[f32] {
        self.sums.get()
    }
}

/// Rounds what is below 2^22, ties to even: beside 1.5 x 2^23 there is no room for a fraction. What is greater stays
/// near itself, and what is not a number none. For `round_ties_even` the compiler calls a function where it compiles for
/// any CPU.
#[inline]
pub(crate) fn nearest_even(x: f32) -> f32 {
    const SHIFT: f32 = 12_582_912.0;
    (x + SHIFT) - SHIFT
}

fn bf16_word(pair: &[f32]) -> u32 {
    let low = u32::from(narrow(pair[0]));
    low | pair.get(1).map_or(0, |x| u32::from(narrow(*x))) << 16
}

/// Rounds to bf16, ties to even. What is not a number stays none.
#[inline]
pub(crate) fn narrow(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = if x.is_nan() { bits | 1 << 22 } else { bits.wrapping_add(0x7fff + (bits >> 16 & 1)) };
    (rounded >> 16) as u16
}
