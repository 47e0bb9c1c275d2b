use proptest::prelude::*;

use super::*;
use crate::{
    Size, Weights,
    naive::{assert_near, bf16, cpus, matrix, noise, read},
};

/// A block of a network: a map that is widened and then convolved.
struct Case {
    size: Size,
    inputs: usize,
    channels: usize,
    window: Window,
    /// Lines of output at a time.
    strip: usize,
    seed: u64,
}

/// The parts of a case, scaled so that ReLU6 cuts at both ends.
struct Parts {
    input: Vec<f32>,
    widen: (Vec<f32>, Vec<f32>),
    convolve: (Vec<f32>, Vec<f32>),
}

// === impl Case ===

impl Case {
    fn parts(&self) -> Parts {
        let noise = |count: usize, seed: u64, scale: f32| -> Vec<f32> {
            noise(count, self.seed + seed).into_iter().map(|x| x * scale).collect()
        };
        let taps = self.window.side * self.window.side;
        Parts {
            input: noise(self.size.pixels() * self.inputs, 1, 2.0),
            widen: (noise(self.channels * self.inputs, 2, 2.0), noise(self.channels, 3, 4.0)),
            convolve: (noise(self.channels * taps, 4, 1.0), noise(self.channels, 5, 3.0)),
        }
    }

    /// Computed strip by strip.
    fn compute(&self, cpu: Cpu, precision: Precision) -> Matrix {
        let parts = self.parts();
        let mut reserve = Reserve::new(0);
        let layer = |(weight, bias)| Dense { weight, bias };
        let widen = Weights::pack(cpu, precision, layer((&parts.widen.0, &parts.widen.1)), &mut reserve);
        let convolve = Depthwise::pack(cpu, self.window, layer((&parts.convolve.0, &parts.convolve.1)), &mut reserve);
        let input = matrix(cpu, precision, self.inputs, &parts.input);
        let (height, width) = (self.window.places(self.size.height), self.window.places(self.size.width));
        let mut ring = Ring::new(Ring::numbers(&convolve, self.size, self.strip) + 7, &mut reserve);
        // Dirty, as an earlier layer leaves it.
        ring.pixels_mut().fill(12.0_f32.to_bits());
        ring.begin(&convolve, self.size, self.strip);
        let rows = self.strip * width;
        // Without gaps, and among them.
        let mut some = match self.seed % 2 {
            0 => Matrix::pixels(precision, rows, self.channels, &mut reserve),
            _ => Matrix::zeros(precision, rows, self.channels),
        };
        let mut all = Vec::new();
        for first in (0..height).step_by(self.strip) {
            let last = (first + self.strip).min(height);
            let lines = ring.wanted(last) - ring.come();
            ring.widen((&input, ring.come() * self.size.width), &widen, lines);
            convolve.convolve(&ring, first..last, &mut some);
            all.extend(&read(&some)[..(last - first) * width * self.channels]);
        }
        let mut out = Matrix::zeros(Precision::F32, height * width, self.channels);
        (0..height * width).for_each(|row| {
            out.row_mut(row).copy_from_slice(&all[row * self.channels..][..self.channels]);
        });
        out
    }

    /// One number at a time.
    fn expected(&self, precision: Precision) -> Vec<f64> {
        let parts = self.parts();
        let round = |x: f32| if precision == Precision::Bf16 { bf16(x) } else { x };
        let relu6 = |x: f64| x.clamp(0.0, 6.0);
        let wide = |pixel: usize, channel: usize| {
            let products = (0..self.inputs).map(|input| {
                let (x, w) = (parts.input[pixel * self.inputs + input], parts.widen.0[channel * self.inputs + input]);
                f64::from(round(x)) * f64::from(round(w))
            });
            relu6(products.sum::<f64>() + f64::from(parts.widen.1[channel]))
        };
        let map: Vec<Vec<f64>> = (0..self.size.pixels())
            .map(|pixel| (0..self.channels).map(|channel| wide(pixel, channel)).collect())
            .collect();
        let (side, stride) = (self.window.side, self.window.stride);
        let (top, left) = (self.window.border(self.size.height).0, self.window.border(self.size.width).0);
        let mut all = Vec::new();
        for y in 0..self.window.places(self.size.height) {
            for x in 0..self.window.places(self.size.width) {
                for (channel, bias) in parts.convolve.1.iter().enumerate() {
                    let mut sum = f64::from(*bias);
                    for (ky, kx) in (0..side).flat_map(|ky| (0..side).map(move |kx| (ky, kx))) {
                        let (y, x) = ((y * stride + ky).wrapping_sub(top), (x * stride + kx).wrapping_sub(left));
                        if y < self.size.height && x < self.size.width {
                            let weight = parts.convolve.0[channel * side * side + ky * side + kx];
                            sum += map[y * self.size.width + x][channel] * f64::from(weight);
                        }
                    }
                    all.push(relu6(sum));
                }
            }
        }
        all
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_block_is_what_its_sums_say_in_any_shape_and_in_strips_of_any_height(
        (height, width) in (1_usize..14, 1_usize..30),
        (inputs, channels) in (1_usize..6, 1_usize..4),
        side in prop::sample::select(&[3_usize, 5]),
        stride in 1_usize..3,
        strip in 1_usize..9,
        seed in 0_u64..1000,
    ) {
        let size = Size { height, width };
        // EfficientNet-Lite's maps have 24 and 40 channels, too.
        let (inputs, channels) = (inputs * 8, channels * 16);
        let case = Case { size, inputs, channels, window: Window { side, stride }, strip, seed };
        for precision in [Precision::F32, Precision::Bf16] {
            let expected = case.expected(precision);
            // What comes out is rounded to bf16.
            let tolerance = if precision == Precision::F32 { 1e-5 } else { 0.005 };
            for cpu in cpus() {
                let found = read(&case.compute(cpu, precision));
                assert_near(&found, &expected, tolerance, &format!("{} {precision}", cpu.tier()));
            }
        }
    }

    #[test]
    fn strips_make_no_difference_to_a_bit(
        (height, width) in (1_usize..20, 1_usize..20), stride in 1_usize..3, strip in 1_usize..9, seed in 0_u64..1000,
    ) {
        let size = Size { height, width };
        let case = |strip| Case { size, inputs: 16, channels: 32, window: Window { side: 5, stride }, strip, seed };
        for cpu in cpus() {
            for precision in [Precision::F32, Precision::Bf16] {
                let (some, all) = (case(strip).compute(cpu, precision), case(height).compute(cpu, precision));
                prop_assert_eq!(read(&some), read(&all));
            }
        }
    }
}

#[test]
fn borders_are_those_of_tensorflow() {
    let border = |side: usize, stride: usize, length: usize| Window { side, stride }.border(length);
    assert_eq!(border(3, 1, 7), (1, 1));
    assert_eq!(border(3, 2, 224), (0, 1));
    assert_eq!(border(3, 2, 65), (1, 1));
    assert_eq!(border(5, 2, 56), (1, 2));
    assert_eq!(border(5, 1, 1), (2, 2));
    assert_eq!(border(3, 2, 1), (1, 1));
}

#[test]
fn what_is_not_a_number_is_not_hidden() {
    for cpu in cpus() {
        let mut reserve = Reserve::new(0);
        let widen = Weights::pack(cpu, Precision::F32, Dense { weight: &[1.0; 256], bias: &[0.0; 16] }, &mut reserve);
        let window = Window { side: 3, stride: 1 };
        let layer = Depthwise::pack(cpu, window, Dense { weight: &[1.0; 144], bias: &[0.0; 16] }, &mut reserve);
        let size = Size { height: 1, width: 1 };
        let mut ring = Ring::new(Ring::numbers(&layer, size, 1), &mut reserve);
        ring.begin(&layer, size, 1);
        ring.widen((&matrix(cpu, Precision::F32, 16, &[f32::NAN; 16]), 0), &widen, 1);
        let mut out = Matrix::pixels(Precision::F32, 1, 16, &mut reserve);
        layer.convolve(&ring, 0..1, &mut out);
        assert!(out.row(0).iter().all(|x| x.is_nan()), "{}", cpu.tier());
    }
}

#[test]
fn a_ring_that_has_no_room_for_a_map_keeps_the_one_that_it_has() {
    let mut reserve = Reserve::new(0);
    let (cpu, window) = (Cpu::best(), Window { side: 3, stride: 1 });
    let layer = Depthwise::pack(cpu, window, Dense { weight: &[1.0; 144], bias: &[0.0; 16] }, &mut reserve);
    let widen = Weights::pack(cpu, Precision::F32, Dense { weight: &[1.0; 256], bias: &[0.0; 16] }, &mut reserve);
    let size = Size { height: 2, width: 2 };
    let mut ring = Ring::new(Ring::numbers(&layer, size, 2), &mut reserve);
    ring.begin(&layer, size, 2);
    for size in [Size { height: 2, width: 3 }, Size { height: 2, width: usize::MAX }] {
        let begin = std::panic::AssertUnwindSafe(|| ring.begin(&layer, size, 2));
        assert!(std::panic::catch_unwind(begin).is_err());
    }
    ring.widen((&matrix(cpu, Precision::F32, 16, &[1.0 / 16.0; 64]), 0), &widen, 2);
    let mut out = Matrix::pixels(Precision::F32, 4, 16, &mut reserve);
    layer.convolve(&ring, 0..2, &mut out);
    assert_eq!(read(&out), [4.0; 64]);
}

#[test]
#[should_panic(expected = "of a ring that has")]
fn lines_that_have_not_come_are_not_read() {
    let window = Window { side: 3, stride: 1 };
    let layer = Dense { weight: &[1.0; 144], bias: &[0.0; 16] };
    let mut reserve = Reserve::new(0);
    let layer = Depthwise::pack(Cpu::best(), window, layer, &mut reserve);
    let size = Size { height: 4, width: 4 };
    let mut ring = Ring::new(Ring::numbers(&layer, size, 2), &mut reserve);
    ring.begin(&layer, size, 2);
    layer.convolve(&ring, 0..2, &mut Matrix::pixels(Precision::F32, 8, 16, &mut reserve));
}

#[test]
#[should_panic(expected = "no whole blocks")]
fn channels_that_are_no_whole_blocks_are_refused() {
    let layer = Dense { weight: &[0.0; 72], bias: &[0.0; 8] };
    let _ = Depthwise::pack(Cpu::best(), Window { side: 3, stride: 1 }, layer, &mut Reserve::new(0));
}
