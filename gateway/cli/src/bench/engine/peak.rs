//! What this processor's cores do at best, and most of the time.

use std::thread;

use engine::{Cpu, Precision, Tier};

use super::rounds::Peak;

/// Measures it on so many threads at once, in each number format; nothing on a processor that has not the tier. Threads
/// that share a core, or a power limit, do less each than one alone.
pub(crate) fn measure(tier: Tier, threads: u16) -> Peak {
    let Some(cpu) = Cpu::with(tier) else { return Peak::default() };
    let of = |precision| {
        let speeds = thread::scope(|scope| {
            let others: Vec<_> = (1..threads).map(|_| scope.spawn(|| engine::peak(cpu, precision))).collect();
            let own = engine::peak(cpu, precision);
            others.into_iter().filter_map(|other| other.join().ok()).chain([own]).collect::<Vec<_>>()
        });
        let mean = |sum: f64| Some(sum / f64::from(threads.max(1)));
        (mean(speeds.iter().map(|speed| speed.best).sum()), mean(speeds.iter().map(|speed| speed.usual).sum()))
    };
    let (f32, usual) = of(Precision::F32);
    Peak { f32, usual, bf16: of(Precision::Bf16).0, int8: of(Precision::Int8).0 }
}
