//! What the CPU's arithmetic can do at best: the yardstick of the kernels.

#![expect(unsafe_code, unsafe_op_in_unsafe_fn, reason = "a kernel that touches no memory")]

use std::{hint::black_box, time::Instant};

use crate::{
    Cpu, Precision,
    simd::{Kernel, Simd},
    tile::{Bf16, Dot, F32, Int8},
};

/// Independent sums: enough to hide the latency of a multiplication, few enough for the registers.
const SUMS: usize = 12;
const STEPS: usize = 1 << 16;

/// Operations per second (a multiplication and an addition are two) of one core when nothing is loaded or stored: the best
/// of some runs that take about 20 ms together.
#[must_use]
pub fn peak(cpu: Cpu, precision: Precision) -> f64 {
    let operations = 2 * SUMS * STEPS * cpu.lanes() * precision.values_per_word();
    let run = || {
        let start = Instant::now();
        black_box(match precision {
            Precision::F32 => cpu.run(Sums(F32)),
            Precision::Bf16 => cpu.run(Sums(Bf16)),
            Precision::Int8 => {
                let none = std::ptr::null();
                cpu.run(Sums(Int8 { row_scales: none, row_zeros: none, column_scales: none, column_sums: none }))
            }
        });
        operations as f64 / start.elapsed().as_secs_f64()
    };
    (0..32).map(|_| run()).fold(0.0, f64::max)
}

struct Sums<D>(D);

impl<D: Dot> Kernel for Sums<D> {
    type Output = f32;

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> f32 {
        let mut sums = [S::splat(0.0); SUMS];
        let b = S::splat(black_box(0.0));
        for _ in 0..STEPS {
            // Not known to be the same every time, or there would be less to do.
            let a = S::splat(black_box(0.0));
            for sum in &mut sums {
                *sum = D::add::<S>(*sum, a, b);
            }
        }
        let mut all = sums[0];
        for sum in sums {
            all = S::add(all, sum);
        }
        S::sum(all)
    }
}
