//! Each kernel in the shapes of the networks that run on it, on every tier of this CPU, beside the peak of its arithmetic.
//!
//! `cargo bench -p kernels` runs all, which takes an hour; `cargo bench -p kernels -- product/avx512-dot` some. Throughput
//! of products, attention and convolutions is in operations (a multiplication and an addition are two), of all else in
//! numbers that are written.

use std::hint::black_box;

use criterion::{
    BenchmarkGroup, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main, measurement::WallTime,
};
use kernels::{
    Activation, Copied, Cpu, Dense, Depthwise, Epilogue, Heads, Matrix, Norm, Patches, Precision, Reserve, Ring,
    Scratch, Size, Stem, Tier, Weights, Window, activate, attend, average, multiply, peak, round,
};

/// A dense layer, and how many rows it is measured with.
struct Layer {
    inputs: usize,
    outputs: usize,
    epilogue: Epilogue,
    rows: &'static [usize],
}

/// Convolution of a widened map.
struct Block {
    /// Of the map before it is widened.
    inputs: usize,
    channels: usize,
    /// Of a side of the map.
    pixels: usize,
    window: Window,
}

const fn layer(inputs: usize, outputs: usize, epilogue: Epilogue, rows: &'static [usize]) -> Layer {
    Layer { inputs, outputs, epilogue, rows }
}

const fn block(inputs: usize, channels: usize, pixels: usize, side: usize, stride: usize) -> Block {
    Block { inputs, channels, pixels, window: Window { side, stride } }
}

const ROWS: &[usize] = &[1, 16, 64, 256];

/// Those of MiniLM; of encoders of 768 and 1,024 the narrowest and the widest.
const ENCODERS: [Layer; 8] = [
    layer(384, 3 * 384, Epilogue::Store, ROWS),
    layer(384, 384, Epilogue::Add, ROWS),
    layer(384, 1536, Epilogue::Gelu, ROWS),
    layer(1536, 384, Epilogue::Add, ROWS),
    layer(768, 768, Epilogue::Add, &[64]),
    layer(768, 3072, Epilogue::Gelu, &[64]),
    layer(1024, 1024, Epilogue::Add, &[64]),
    layer(1024, 4096, Epilogue::Gelu, &[64]),
];

/// The pointwise convolutions of EfficientNet-Lite0 that narrow a map, and its head.
const POINTWISE: [Layer; 7] = [
    layer(32, 16, Epilogue::Store, &[1792]),
    layer(96, 24, Epilogue::Store, &[784]),
    layer(144, 24, Epilogue::Add, &[784]),
    layer(240, 40, Epilogue::Add, &[784]),
    layer(480, 80, Epilogue::Add, &[196]),
    layer(1152, 192, Epilogue::Add, &[49]),
    layer(320, 1280, Epilogue::Relu6, &[49]),
];

/// One of EfficientNet-Lite0 for each window.
const BLOCKS: [Block; 4] =
    [block(16, 96, 112, 3, 2), block(24, 144, 56, 3, 1), block(24, 144, 56, 5, 2), block(40, 240, 28, 5, 1)];

/// Heads of MiniLM, of encoders of 768 and of 1,024.
const HEADS: [Heads; 3] =
    [Heads { count: 12, width: 32 }, Heads { count: 12, width: 64 }, Heads { count: 16, width: 64 }];

/// Of what stands between products.
const WIDTHS: [usize; 3] = [384, 768, 1024];

fn cpus() -> impl Iterator<Item = Cpu> {
    Tier::ALL.into_iter().filter_map(Cpu::with)
}

fn group<'a>(
    criterion: &'a mut Criterion,
    kernel: &str,
    cpu: Cpu,
    precision: Precision,
) -> BenchmarkGroup<'a, WallTime> {
    criterion.benchmark_group(format!("{kernel}/{}/{precision}", cpu.tier()))
}

fn noise(count: usize) -> Vec<f32> {
    (0..count).map(|i| (i * 7919 % 2003) as f32 / 1000.0 - 1.0).collect()
}

fn filled(cpu: Cpu, precision: Precision, rows: usize, width: usize) -> Matrix {
    // Only whole vectors are rounded; what is then narrower is read from the same memory.
    let padded = width.next_multiple_of(16);
    let mut exact = Matrix::zeros(Precision::F32, rows, padded);
    for row in 0..rows {
        exact.row_mut(row).copy_from_slice(&noise(padded));
    }
    if precision == Precision::F32 && width == padded {
        return exact;
    }
    if width == padded {
        let mut rounded = Matrix::zeros(precision, rows, width);
        round(cpu, &exact, 0..rows, (&mut rounded, 0));
        return rounded;
    }
    let mut pixels = Matrix::pixels(precision, rows, padded, &mut Reserve::new(0));
    match precision {
        Precision::F32 => (0..rows).for_each(|row| pixels.row_mut(row).copy_from_slice(exact.row(row))),
        _ => round(cpu, &exact, 0..rows, (&mut pixels, 0)),
    }
    pixels.reshape(rows, width);
    pixels
}

fn packed(cpu: Cpu, precision: Precision, inputs: usize, outputs: usize) -> Weights {
    let (weight, bias) = (noise(inputs * outputs), noise(outputs));
    let mut reserve = Reserve::new(Weights::bytes(cpu, precision, outputs, inputs));
    Weights::pack(cpu, precision, Dense { weight: &weight, bias: &bias }, &mut reserve)
}

/// A layer whose output has the given format.
fn product(group: &mut BenchmarkGroup<'_, WallTime>, layer: &Layer, weights: &Weights, out: Precision) {
    let &Layer { inputs, outputs, epilogue, rows } = layer;
    for &rows in rows {
        let input = filled(weights.cpu(), weights.precision(), rows, inputs);
        let mut to = Matrix::pixels(out, rows, outputs, &mut Reserve::new(0));
        group.throughput(Throughput::Elements((2 * rows * inputs * outputs) as u64));
        group.bench_function(BenchmarkId::new(format!("{inputs}x{outputs}/{epilogue:?}/{out}"), rows), |bencher| {
            bencher.iter(|| multiply(black_box(&input), 0..rows, weights, epilogue, (&mut to, 0)));
        });
    }
}

fn products(criterion: &mut Criterion) {
    for cpu in cpus() {
        for precision in Precision::ALL {
            let mut group = group(criterion, "product", cpu, precision);
            for layer in &ENCODERS {
                let weights = packed(cpu, precision, layer.inputs, layer.outputs);
                product(&mut group, layer, &weights, Precision::F32);
                // What attention and the next product of bf16 read.
                if precision == Precision::Bf16 && layer.epilogue != Epilogue::Add {
                    product(&mut group, layer, &weights, Precision::Bf16);
                }
            }
        }
    }
}

fn pointwise(criterion: &mut Criterion) {
    for cpu in cpus() {
        for precision in [Precision::F32, Precision::Bf16] {
            let mut group = group(criterion, "pointwise", cpu, precision);
            for layer in &POINTWISE {
                let weights = packed(cpu, precision, layer.inputs, layer.outputs);
                product(&mut group, layer, &weights, precision);
            }
        }
    }
}

/// Widening a whole map into a ring, and convolving it.
fn convolutions(criterion: &mut Criterion) {
    for cpu in cpus() {
        for precision in [Precision::F32, Precision::Bf16] {
            let mut group = group(criterion, "convolution", cpu, precision);
            for block in &BLOCKS {
                let &Block { inputs, channels, pixels, window } = block;
                let (size, out) = (Size { height: pixels, width: pixels }, window.places(pixels));
                let (places, reserve) = (window.side * window.side, &mut Reserve::new(0));
                let (weight, bias) = (noise(channels * places), noise(channels));
                let layer = Depthwise::pack(cpu, window, Dense { weight: &weight, bias: &bias }, reserve);
                let weights = packed(cpu, precision, inputs, channels);
                let map = filled(cpu, precision, size.pixels(), inputs);
                let mut ring = Ring::new(Ring::numbers(&layer, size, out), reserve);
                let mut convolved = Matrix::pixels(precision, out * out, channels, reserve);
                let shape = format!("{pixels}x{channels}/{}by{}", window.side, window.stride);
                group.throughput(Throughput::Elements((2 * size.pixels() * inputs * channels) as u64));
                group.bench_function(BenchmarkId::new("widen", &shape), |bencher| {
                    bencher.iter(|| {
                        ring.begin(&layer, size, out);
                        ring.widen((black_box(&map), 0), &weights, pixels);
                    });
                });
                group.throughput(Throughput::Elements((2 * out * out * channels * places) as u64));
                group.bench_function(BenchmarkId::new("depthwise", &shape), |bencher| {
                    bencher.iter(|| layer.convolve(black_box(&ring), 0..out, &mut convolved));
                });
            }
        }
    }
}

fn stems(criterion: &mut Criterion) {
    let size = Size { height: 224, width: 224 };
    let image: Vec<u8> = (0..size.pixels() * 3).map(|i| (i * 7919 % 251) as u8).collect();
    let numbers = [(); 3].map(|()| std::array::from_fn(|byte| (byte as f32 - 127.0) / 128.0));
    let (cpu, lines) = (Cpu::best(), 16);
    for precision in [Precision::F32, Precision::Bf16] {
        let (weight, bias, reserve) = (noise(32 * 27), noise(32), &mut Reserve::new(0));
        let stem = Stem::pack((cpu, precision), Dense { weight: &weight, bias: &bias }, &numbers, reserve);
        let mut patches = Patches::new(precision, size, lines, reserve);
        let mut group = criterion.benchmark_group(format!("gather/{precision}"));
        group.throughput(Throughput::Elements((lines * Stem::output(size).width * 27) as u64));
        group.bench_function(lines.to_string(), |bencher| {
            bencher.iter(|| {
                stem.gather(black_box(&image), size, 0..lines, &mut patches);
            });
        });
    }
}

fn attention(criterion: &mut Criterion) {
    for cpu in cpus() {
        for precision in [Precision::F32, Precision::Bf16] {
            let mut group = group(criterion, "attention", cpu, precision);
            for heads in HEADS {
                let columns = heads.count * heads.width;
                for rows in [16, 64, 256, 512] {
                    let qkv = filled(cpu, precision, rows, 3 * columns);
                    let mut out = Matrix::zeros(precision, rows, columns);
                    let mut scratch = Scratch::new(rows, heads.width);
                    group.throughput(Throughput::Elements((4 * rows * rows * columns) as u64));
                    group.bench_function(
                        BenchmarkId::new(format!("{}x{}", heads.count, heads.width), rows),
                        |bencher| {
                            bencher.iter(|| attend(cpu, black_box(&qkv), 0..rows, heads, (&mut out, &mut scratch)));
                        },
                    );
                }
            }
        }
    }
}

/// Norms, with the copy that the next product reads.
fn norms(criterion: &mut Criterion) {
    for cpu in cpus() {
        for precision in Precision::ALL {
            let mut group = group(criterion, "norm", cpu, precision);
            for (width, rows) in WIDTHS.into_iter().flat_map(|width| [(width, 1), (width, 64)]) {
                let norm = Norm::new(vec![1.0; width], vec![0.0; width], 1e-12);
                let (mut x, factors) = (filled(cpu, Precision::F32, rows, width), vec![1.0; width]);
                let mut copy = Matrix::zeros(precision, rows, width);
                group.throughput(Throughput::Elements((rows * width) as u64));
                group.bench_function(BenchmarkId::new(width.to_string(), rows), |bencher| {
                    bencher.iter(|| {
                        let copied = match precision {
                            Precision::F32 => Copied::None,
                            Precision::Bf16 => Copied::Bf16(&mut copy),
                            Precision::Int8 => Copied::Int8(&mut copy, &factors),
                        };
                        norm.apply(cpu, black_box(&mut x), 0..rows, copied);
                    });
                });
            }
        }
    }
}

/// What passes over rows once: rounding, activations and means.
fn passes(criterion: &mut Criterion) {
    const ROWS: usize = 64;
    for cpu in cpus() {
        for precision in [Precision::Bf16, Precision::Int8] {
            let mut group = group(criterion, "round", cpu, precision);
            for width in WIDTHS.map(|width| 4 * width) {
                let (x, mut out) = (filled(cpu, Precision::F32, ROWS, width), Matrix::zeros(precision, ROWS, width));
                group.throughput(Throughput::Elements((ROWS * width) as u64));
                group.bench_function(width.to_string(), |bencher| {
                    bencher.iter(|| round(cpu, black_box(&x), 0..ROWS, (&mut out, 0)));
                });
            }
        }
        for precision in [Precision::F32, Precision::Bf16] {
            let mut group = group(criterion, "pass", cpu, precision);
            let mut x = filled(cpu, precision, ROWS, 1536);
            group.throughput(Throughput::Elements((ROWS * 1536) as u64));
            for activation in [Activation::GeluTanh, Activation::Relu] {
                group.bench_function(format!("{activation:?}"), |bencher| {
                    bencher.iter(|| activate(cpu, black_box(&mut x), 0..ROWS, activation));
                });
            }
            let (map, mut means) = (filled(cpu, precision, 49, 1280), vec![0.0; 1280]);
            group.throughput(Throughput::Elements(1280));
            group.bench_function("average", |bencher| {
                bencher.iter(|| average(cpu, black_box(&map), 0..49, &mut means));
            });
        }
    }
}

/// The yardstick: what a core does when nothing is loaded or stored. Printed, since it is a rate and not a time.
fn peaks(_: &mut Criterion) {
    for cpu in cpus() {
        let peaks = Precision::ALL.map(|precision| format!("{precision} {:.0}", peak(cpu, precision).best / 1e9));
        eprintln!("peak of {}, 10^9 operations a second: {}", cpu.tier(), peaks.join(", "));
    }
}

criterion_group!(benches, peaks, products, pointwise, convolutions, stems, attention, norms, passes);
criterion_main!(benches);
