//! Depthwise convolution: each channel is convolved with a kernel of its own.
//!
//! candle calls one general convolution per channel, which makes this the longest part of the network by far (200 of
//! 234 ms an image). Here a block of 16 channels of several neighbouring pixels stays in registers while the kernel's
//! weights pass over it. Plain arrays of fixed length: the compiler turns them into vector instructions.

/// Channels that are computed together: one AVX-512 or two AVX2 registers.
const LANES: usize = 16;

/// Pixels that are computed together, so that a weight is loaded once for all of them.
const PIXELS: usize = 4;

type Lanes = [f32; LANES];

/// A depthwise convolution with bias, ReLU6 before and after it, and padding as TensorFlow's "SAME" wants it.
#[derive(Clone, Debug)]
pub(super) struct Depthwise {
    kernel: Kernel,
    stride: Stride,
    /// By row of the kernel, column, block of channels.
    weights: Vec<Lanes>,
    /// By block of channels.
    bias: Vec<Lanes>,
}

/// Side of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kernel {
    Three,
    Five,
}

/// Pixels from one output pixel's field to the next one's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stride {
    One,
    Two,
}

/// A feature map with a border of zeros: values by row, column, block of channels.
#[derive(Debug, Default)]
pub(super) struct Padded {
    /// In blocks, border included.
    row_length: usize,
    values: Vec<Lanes>,
}

/// Size of a feature map in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Size {
    pub(super) height: usize,
    pub(super) width: usize,
}

/// `weights` and `bias` do not fit each other, or their channels do not come in blocks of 16.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Misshapen;

// === impl Depthwise ===

impl Depthwise {
    /// `weights` by row of the kernel, column, channel; one bias per channel; channels a multiple of 16.
    pub(super) fn new(kernel: Kernel, stride: Stride, weights: &[f32], bias: &[f32]) -> Result<Self, Misshapen> {
        let ((weights, []), (bias, [])) = (weights.as_chunks(), bias.as_chunks()) else { return Err(Misshapen) };
        if bias.is_empty() || weights.len() != bias.len() * kernel.side() * kernel.side() {
            return Err(Misshapen);
        }
        Ok(Self { kernel, stride, weights: weights.to_vec(), bias: bias.to_vec() })
    }

    /// Numbers that it holds.
    pub(super) fn parameters(&self) -> usize {
        (self.weights.len() + self.bias.len()) * LANES
    }

    /// Size of the output for an input of `size`.
    pub(super) fn output_size(&self, size: Size) -> Size {
        let stride = self.stride.pixels();
        Size { height: size.height.div_ceil(stride), width: size.width.div_ceil(stride) }
    }

    /// Convolves the map of `size`, values by row, column, channel. `scratch` keeps its memory from call to call.
    pub(super) fn forward(&self, input: &[f32], size: Size, scratch: &mut Padded) -> Vec<f32> {
        scratch.fill(input.as_chunks().0, size, self);
        let output = self.output_size(size);
        let mut values = vec![ZERO; output.height * output.width * self.bias.len()];
        for (y, row) in values.chunks_exact_mut(output.width * self.bias.len()).enumerate() {
            let field = &scratch.values[y * self.stride.pixels() * scratch.row_length..];
            match (self.kernel, self.stride) {
                (Kernel::Three, Stride::One) => self.row::<3, 1>(field, scratch.row_length, row),
                (Kernel::Three, Stride::Two) => self.row::<3, 2>(field, scratch.row_length, row),
                (Kernel::Five, Stride::One) => self.row::<5, 1>(field, scratch.row_length, row),
                (Kernel::Five, Stride::Two) => self.row::<5, 2>(field, scratch.row_length, row),
            }
        }
        values.into_flattened()
    }

    /// One row of output from the rows of input at the start of `field`.
    fn row<const SIDE: usize, const STRIDE: usize>(&self, field: &[Lanes], row_length: usize, output: &mut [Lanes]) {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") {
            #[expect(unsafe_code, reason = "the compiler cannot know what the CPU has")]
            // SAFETY: the CPU has AVX2, says the line above.
            return unsafe { self.row_avx2::<SIDE, STRIDE>(field, row_length, output) };
        }
        self.tiles::<SIDE, STRIDE>(field, row_length, output);
    }

    /// The same in registers of 8 lanes: 4 pixels fill half of them, where they overflow those of the oldest x86-64,
    /// which makes the network half as fast. Without fused multiplication, so that every CPU gives the same numbers.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2")]
    fn row_avx2<const SIDE: usize, const STRIDE: usize>(
        &self,
        field: &[Lanes],
        row_length: usize,
        output: &mut [Lanes],
    ) {
        self.tiles::<SIDE, STRIDE>(field, row_length, output);
    }

    /// Inlined, so that it is compiled for the CPU of its caller.
    #[inline(always)]
    fn tiles<const SIDE: usize, const STRIDE: usize>(&self, field: &[Lanes], row_length: usize, output: &mut [Lanes]) {
        let blocks = self.bias.len();
        let width = output.len() / blocks;
        for block in 0..blocks {
            for x in (0..width).step_by(PIXELS) {
                let (field, output) = (&field[x * STRIDE * blocks + block..], &mut output[x * blocks + block..]);
                match width - x {
                    1 => self.tile::<SIDE, STRIDE, 1>(field, row_length, block, output),
                    2 => self.tile::<SIDE, STRIDE, 2>(field, row_length, block, output),
                    3 => self.tile::<SIDE, STRIDE, 3>(field, row_length, block, output),
                    _ => self.tile::<SIDE, STRIDE, PIXELS>(field, row_length, block, output),
                }
            }
        }
    }

    /// One block of channels of `COUNT` neighbouring pixels.
    #[inline(always)]
    fn tile<const SIDE: usize, const STRIDE: usize, const COUNT: usize>(
        &self,
        field: &[Lanes],
        row_length: usize,
        block: usize,
        output: &mut [Lanes],
    ) {
        let blocks = self.bias.len();
        let mut sums = [self.bias[block]; COUNT];
        for ky in 0..SIDE {
            for kx in 0..SIDE {
                let weight = &self.weights[(ky * SIDE + kx) * blocks + block];
                for (pixel, sum) in sums.iter_mut().enumerate() {
                    let value = &field[ky * row_length + (pixel * STRIDE + kx) * blocks];
                    for lane in 0..LANES {
                        sum[lane] += value[lane] * weight[lane];
                    }
                }
            }
        }
        for (pixel, sum) in sums.iter().enumerate() {
            output[pixel * blocks] = sum.map(relu6);
        }
    }

    /// Zeros before and after an axis, as TensorFlow's "SAME" places them: the odd one goes to the end.
    fn same_padding(&self, length: usize) -> (usize, usize) {
        let (kernel, stride) = (self.kernel.side(), self.stride.pixels());
        let total = (length.div_ceil(stride).saturating_sub(1) * stride + kernel).saturating_sub(length);
        (total / 2, total - total / 2)
    }
}

// === impl Kernel ===

impl Kernel {
    /// In pixels.
    pub(super) fn side(self) -> usize {
        match self {
            Self::Three => 3,
            Self::Five => 5,
        }
    }
}

// === impl Stride ===

impl Stride {
    fn pixels(self) -> usize {
        match self {
            Self::One => 1,
            Self::Two => 2,
        }
    }
}

// === impl Padded ===

impl Padded {
    /// Copies `input` into a border as wide as `layer` needs. The copy is where ReLU6 costs nothing: it would be a pass
    /// of its own over the largest maps of the network.
    fn fill(&mut self, input: &[Lanes], Size { height, width }: Size, layer: &Depthwise) {
        let blocks = layer.bias.len();
        debug_assert_eq!(input.len(), height * width * blocks);
        let (top, bottom) = layer.same_padding(height);
        let (left, right) = layer.same_padding(width);
        self.row_length = (left + width + right) * blocks;
        // What an earlier layer left here is overwritten: the border with zeros, the rest with values.
        self.values.resize((top + height + bottom) * self.row_length, ZERO);
        let (above, rest) = self.values.split_at_mut(top * self.row_length);
        let (inner, below) = rest.split_at_mut(height * self.row_length);
        above.fill(ZERO);
        below.fill(ZERO);
        let rows = inner.chunks_exact_mut(self.row_length);
        for (row, source) in rows.zip(input.chunks_exact(width * blocks)) {
            let (before, row) = row.split_at_mut(left * blocks);
            let (row, after) = row.split_at_mut(width * blocks);
            before.fill(ZERO);
            after.fill(ZERO);
            row.iter_mut().zip(source).for_each(|(lanes, source)| *lanes = source.map(relu6));
        }
    }
}

const ZERO: Lanes = [0.0; LANES];

/// Not `max` and `min`, which would turn a NaN into a number and so hide it.
#[inline(always)]
pub(super) fn relu6(value: f32) -> f32 {
    value.clamp(0.0, 6.0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What is computed, one multiplication at a time.
    fn naive(layer: &Depthwise, input: &[f32], size: Size) -> Vec<f32> {
        let channels = layer.bias.len() * LANES;
        let (side, stride) = (layer.kernel.side(), layer.stride.pixels());
        let (top, left) = (layer.same_padding(size.height).0, layer.same_padding(size.width).0);
        let (weights, bias) = (layer.weights.as_flattened(), layer.bias.as_flattened());
        let value = |y: usize, x: usize, channel: usize| relu6(input[(y * size.width + x) * channels + channel]);
        let output = layer.output_size(size);
        let mut values = Vec::new();
        for (y, x) in (0..output.height).flat_map(|y| (0..output.width).map(move |x| (y, x))) {
            for channel in 0..channels {
                let mut sum = bias[channel];
                for (ky, kx) in (0..side).flat_map(|ky| (0..side).map(move |kx| (ky, kx))) {
                    let (y, x) = ((y * stride + ky).wrapping_sub(top), (x * stride + kx).wrapping_sub(left));
                    if y < size.height && x < size.width {
                        sum += value(y, x, channel) * weights[(ky * side + kx) * channels + channel];
                    }
                }
                values.push(relu6(sum));
            }
        }
        values
    }

    /// Numbers from -2 to 7, the same for the same seed.
    fn numbers(seed: u32, count: usize) -> Vec<f32> {
        let mut state = seed | 1;
        let next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 24) as f32 * 9.0 - 2.0
        };
        std::iter::repeat_with(next).take(count).collect()
    }

    proptest! {
        #[test]
        fn the_kernel_equals_the_naive_one(
            height in 1..12_usize,
            width in 1..20_usize,
            blocks in 1..4_usize,
            kernel in prop::sample::select(&[Kernel::Three, Kernel::Five]),
            stride in prop::sample::select(&[Stride::One, Stride::Two]),
            seed: u32,
        ) {
            let channels = blocks * LANES;
            let weights = numbers(seed, kernel.side() * kernel.side() * channels);
            let layer = Depthwise::new(kernel, stride, &weights, &numbers(seed ^ 1, channels)).unwrap();
            let input = numbers(seed ^ 2, height * width * channels);
            let size = Size { height, width };
            // Dirty, as an earlier layer leaves it.
            let mut scratch = Padded { row_length: 3, values: vec![[7.0; LANES]; 50] };
            let output = layer.forward(&input, size, &mut scratch);
            let expected = naive(&layer, &input, size);
            prop_assert_eq!(output.len(), expected.len());
            for (is, must) in output.iter().zip(&expected) {
                prop_assert!((is - must).abs() < 1e-4, "{} is not {}", is, must);
            }
        }
    }

    #[test]
    fn nan_is_not_hidden() {
        let layer = Depthwise::new(Kernel::Three, Stride::One, &[1.0; 9 * 16], &[0.0; 16]).unwrap();
        let output = layer.forward(&[f32::NAN; 16], Size { height: 1, width: 1 }, &mut Padded::default());
        assert!(output.iter().all(|value| value.is_nan()));
    }

    #[test]
    fn channels_that_are_no_whole_blocks_are_refused() {
        assert_eq!(Depthwise::new(Kernel::Three, Stride::One, &[0.0; 9 * 8], &[0.0; 8]).unwrap_err(), Misshapen);
        assert_eq!(Depthwise::new(Kernel::Three, Stride::One, &[], &[]).unwrap_err(), Misshapen);
        assert_eq!(Depthwise::new(Kernel::Five, Stride::One, &[0.0; 9 * 16], &[0.0; 16]).unwrap_err(), Misshapen);
    }
}
