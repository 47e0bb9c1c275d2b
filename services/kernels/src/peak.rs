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
/// Runs of a stretch, which takes some milliseconds: a scheduler that has others to serve does not wait as long.
const RUNS: usize = 32;
/// Enough that a moment's disturbance is not what happens most of the time.
const STRETCHES: usize = 9;

/// Operations per second (a multiplication and an addition are two) of one core when nothing is loaded or stored.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Speed {
    /// In the best of many short runs: what the core can do.
    pub best: f64,
    /// Most of the time: less where somebody else has the core now and then, which no single short run shows.
    pub usual: f64,
}

/// Measures what a core does in some 60 ms.
#[must_use]
pub fn peak(cpu: Cpu, precision: Precision) -> Speed {
    let run = || match precision {
        // SAFETY: the kernel touches no memory.
        Precision::F32 => unsafe { cpu.run(Sums(F32)) },
        // SAFETY: as above.
        Precision::Bf16 => unsafe { cpu.run(Sums(Bf16)) },
        Precision::Int8 => {
            let none = std::ptr::null();
            let dot = Int8 { row_scales: none, row_zeros: none, column_scales: none, column_sums: none };
            // SAFETY: as above: only what is made of the sums would read these.
            unsafe { cpu.run(Sums(dot)) }
        }
    };
    let operations = (2 * SUMS * STEPS * cpu.lanes() * precision.values_per_word()) as f64;
    let mut best = 0.0f64;
    let mut stretches = [0.0; STRETCHES];
    for stretch in &mut stretches {
        let began = Instant::now();
        for _ in 0..RUNS {
            let start = Instant::now();
            black_box(run());
            best = best.max(operations / start.elapsed().as_secs_f64());
        }
        *stretch = RUNS as f64 * operations / began.elapsed().as_secs_f64();
    }
    stretches.sort_by(f64::total_cmp);
    Speed { best, usual: stretches[STRETCHES / 2] }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::naive;

    #[test]
    fn a_core_is_never_faster_than_at_best() {
        for cpu in naive::cpus() {
            for precision in Precision::ALL {
                let speed = peak(cpu, precision);
                assert!(0.0 < speed.usual && speed.usual <= speed.best, "{}: {speed:?}", cpu.tier());
            }
        }
    }
}
