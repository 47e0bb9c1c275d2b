//! Each kernel in the shapes of all-MiniLM-L6-v2, on every tier of this CPU, beside the peak of its arithmetic.
//!
//! `cargo bench -p kernels` runs all; `cargo bench -p kernels -- product/avx512-dot` some. Throughput is in operations: a
//! multiplication and an addition are two.

use std::hint::black_box;

use criterion::{
    BenchmarkGroup, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main, measurement::WallTime,
};
use kernels::{
    Copied, Cpu, Dense, Epilogue, Heads, Matrix, Norm, Precision, Reserve, Scratch, Tier, Weights, attend, multiply,
    peak, round,
};

const HIDDEN: usize = 384;
const INNER: usize = 1536;
const HEADS: Heads = Heads { count: 12, width: 32 };
const ROWS: [usize; 4] = [1, 16, 64, 256];

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
    let mut exact = Matrix::zeros(Precision::F32, rows, width);
    for row in 0..rows {
        exact.row_mut(row).copy_from_slice(&noise(width));
    }
    if precision == Precision::F32 {
        return exact;
    }
    let mut rounded = Matrix::zeros(precision, rows, width);
    round(cpu, &exact, 0..rows, (&mut rounded, 0));
    rounded
}

/// The four products of a layer, with their epilogues.
fn products(criterion: &mut Criterion) {
    let layers = [
        (3 * HIDDEN, HIDDEN, Epilogue::Store),
        (HIDDEN, HIDDEN, Epilogue::Add),
        (INNER, HIDDEN, Epilogue::Gelu),
        (HIDDEN, INNER, Epilogue::Add),
    ];
    for cpu in cpus() {
        for precision in Precision::ALL {
            let mut group = group(criterion, "product", cpu, precision);
            for (outputs, inputs, epilogue) in layers {
                let (weight, bias) = (noise(outputs * inputs), noise(outputs));
                let mut reserve = Reserve::new(Weights::bytes(cpu, precision, outputs, inputs));
                let dense = Dense { weight: &weight, bias: &bias };
                let weights = Weights::pack(cpu, precision, dense, &mut reserve);
                for rows in ROWS {
                    let input = filled(cpu, precision, rows, inputs);
                    let mut out = Matrix::zeros(Precision::F32, rows, outputs);
                    group.throughput(Throughput::Elements((2 * rows * inputs * outputs) as u64));
                    group.bench_function(BenchmarkId::new(format!("{outputs}x{inputs}"), rows), |bencher| {
                        bencher.iter(|| multiply(black_box(&input), 0..rows, &weights, epilogue, (&mut out, 0)));
                    });
                }
            }
        }
    }
}

fn attention(criterion: &mut Criterion) {
    for cpu in cpus() {
        for precision in [Precision::F32, Precision::Bf16] {
            let mut group = group(criterion, "attention", cpu, precision);
            for rows in [16, 64, 256, 512] {
                let qkv = filled(cpu, precision, rows, 3 * HIDDEN);
                let mut out = Matrix::zeros(Precision::F32, rows, HIDDEN);
                let mut scratch = Scratch::new(rows, HEADS.width);
                group.throughput(Throughput::Elements((4 * rows * rows * HIDDEN) as u64));
                group.bench_function(BenchmarkId::from_parameter(rows), |bencher| {
                    bencher.iter(|| attend(cpu, black_box(&qkv), 0..rows, HEADS, (&mut out, &mut scratch)));
                });
            }
        }
    }
}

/// Values per second, not operations.
fn norms(criterion: &mut Criterion) {
    for cpu in cpus() {
        for precision in Precision::ALL {
            let mut group = group(criterion, "norm", cpu, precision);
            let norm = Norm::new(vec![1.0; HIDDEN], vec![0.0; HIDDEN], 1e-12);
            let (mut x, factors) = (filled(cpu, Precision::F32, 64, HIDDEN), vec![1.0; HIDDEN]);
            let mut copy = Matrix::zeros(precision, 64, HIDDEN);
            group.throughput(Throughput::Elements((64 * HIDDEN) as u64));
            group.bench_function("64", |bencher| {
                bencher.iter(|| {
                    let copied = match precision {
                        Precision::F32 => Copied::None,
                        Precision::Bf16 => Copied::Bf16(&mut copy),
                        Precision::Int8 => Copied::Int8(&mut copy, &factors),
                    };
                    norm.apply(cpu, black_box(&mut x), 0..64, copied);
                });
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

criterion_group!(benches, peaks, products, attention, norms);
criterion_main!(benches);
