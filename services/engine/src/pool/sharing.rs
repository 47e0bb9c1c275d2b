//! How work is shared out, as the hardware that computes wants it.

use std::thread;

use super::{
    PoolSettings, cut,
    queue::{Rank, TopUp},
};
use crate::DeviceChoice;

/// How far a worker of a core looks for chunks to top up with: it needs few.
const CORE_LOOKS: usize = 64;

/// The same of a device: so many short texts fill it.
const DEVICE_LOOKS: usize = 1024;

/// How work is shared out among workers.
#[derive(Clone, Copy)]
pub(super) struct Sharing {
    pub(super) workers: usize,
    /// Most units that a worker computes at once.
    pub(super) chunk_units_max: u32,
    hardware: Hardware,
}

/// What computes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Hardware {
    /// A core per worker. One text fills it, so that company only makes texts wait for each other.
    Cores,
    /// One device for all workers, which is as good as idle unless it computes much at once.
    Device,
}

// === impl Sharing ===

impl Sharing {
    pub(super) fn new(settings: PoolSettings, device: DeviceChoice) -> Self {
        let hardware = if device == DeviceChoice::Cpu { Hardware::Cores } else { Hardware::Device };
        let (workers, chunk_units_max) = match hardware {
            Hardware::Cores => (thread::available_parallelism().map_or(1, usize::from), settings.chunk_units_max),
            Hardware::Device => (1, settings.device_chunk_units_max),
        };
        let workers = if settings.workers == 0 { workers } else { settings.workers };
        Self { workers, chunk_units_max, hardware }
    }

    /// Most units of a chunk of a call of so many that comes to so many idle workers.
    pub(super) fn chunk_units(&self, units: u64, idle: usize) -> u32 {
        let sharers = if self.hardware == Hardware::Cores { idle } else { 0 };
        cut::chunk_units(units, sharers, self.chunk_units_max)
    }

    /// What a worker may take with a chunk of so many units and this rank, while so many others are idle.
    pub(super) fn top_up(&self, units: u64, rank: Rank, idle: usize) -> TopUp {
        let room = u64::from(self.chunk_units_max).saturating_sub(units);
        match self.hardware {
            // What an idle worker could compute beside this one would only wait here. And who is quick by being short
            // must not wait for bulk work that is computed with it.
            Hardware::Cores => TopUp { room: if idle > 0 { 0 } else { room }, rank: Some(rank), looks: CORE_LOOKS },
            Hardware::Device => TopUp { room, rank: None, looks: DEVICE_LOOKS },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTINGS: PoolSettings =
        PoolSettings { workers: 0, queue_units_max: 10_000, chunk_units_max: 256, device_chunk_units_max: 4096 };

    #[test]
    fn cores_share_a_call_and_a_device_computes_it_at_once() {
        let cores = Sharing::new(SETTINGS, DeviceChoice::Cpu);
        assert_eq!((cores.workers >= 1, cores.chunk_units_max), (true, 256));
        assert_eq!([cores.chunk_units(200, 4), cores.chunk_units(9000, 4)], [50, 256]);
        let device = Sharing::new(SETTINGS, DeviceChoice::Cuda(0));
        assert_eq!((device.workers, device.chunk_units_max), (1, 4096));
        assert_eq!([device.chunk_units(200, 4), device.chunk_units(9000, 4)], [4096, 4096]);
        let two = Sharing::new(PoolSettings { workers: 2, ..SETTINGS }, DeviceChoice::Metal(0));
        assert_eq!(two.workers, 2);
    }
}
