//! Decides what a worker takes next. Knows nothing of threads, clocks or models.

use std::collections::VecDeque;

use super::Lane;

/// Of this many entries that are taken while both lanes wait, one is of the batch lane.
const BATCH_SHARE: u32 = 8;

/// How far into a lane a worker looks for entries to top up with. Beyond that the look would cost more than it brings.
const LOOK_AHEAD_MAX: usize = 64;

/// Two lanes of entries, first in, first out.
pub(super) struct Queue<T> {
    interactive: VecDeque<Entry<T>>,
    batch: VecDeque<Entry<T>>,
    units: u64,
    /// Interactive entries taken since the last batch entry, while a batch entry waited.
    overtaken: u32,
}

struct Entry<T> {
    units: u64,
    item: T,
}

impl<T> Queue<T> {
    pub(super) fn new() -> Self {
        Self { interactive: VecDeque::new(), batch: VecDeque::new(), units: 0, overtaken: 0 }
    }

    /// Units that wait.
    pub(super) fn units(&self) -> u64 {
        self.units
    }

    /// Whether work of this size is let in. Work larger than the whole bound is let in when nothing waits: refused then,
    /// it would be refused for ever.
    pub(super) fn admits(&self, units: u64, max: u64) -> bool {
        self.units == 0 || self.units.saturating_add(units) <= max
    }

    pub(super) fn push(&mut self, lane: Lane, units: u64, item: T) {
        self.units += units;
        self.lane(lane).push_back(Entry { units, item });
    }

    /// The entry whose turn it is, and its units.
    pub(super) fn pop(&mut self) -> Option<(u64, T)> {
        let lane = turn(self.overtaken, !self.interactive.is_empty(), !self.batch.is_empty())?;
        self.overtaken = match lane {
            Lane::Interactive if !self.batch.is_empty() => self.overtaken + 1,
            Lane::Interactive => self.overtaken,
            Lane::Batch => 0,
        };
        let entry = self.lane(lane).pop_front()?;
        self.units -= entry.units;
        Some((entry.units, entry.item))
    }

    /// More entries for a worker that already has some: those that `fits` and that have room, interactive ones first.
    /// They only come forward, so nobody waits longer for it.
    pub(super) fn top_up(&mut self, mut room: u64, fits: impl Fn(&T) -> bool) -> Vec<(u64, T)> {
        let mut taken = Vec::new();
        for lane in [Lane::Interactive, Lane::Batch] {
            let lane = self.lane(lane);
            let mut index = 0;
            let mut looks = lane.len().min(LOOK_AHEAD_MAX);
            while room > 0 && looks > 0 {
                looks -= 1;
                if lane[index].units <= room && fits(&lane[index].item) {
                    let Some(entry) = lane.remove(index) else { break };
                    room -= entry.units;
                    taken.push((entry.units, entry.item));
                } else {
                    index += 1;
                }
            }
        }
        self.units -= taken.iter().map(|(units, _)| units).sum::<u64>();
        taken
    }

    /// Drops what is not worth keeping.
    pub(super) fn retain(&mut self, keep: impl Fn(&T) -> bool) {
        for lane in [&mut self.interactive, &mut self.batch] {
            lane.retain(|entry| keep(&entry.item));
        }
        self.units = self.interactive.iter().chain(&self.batch).map(|entry| entry.units).sum();
    }

    fn lane(&mut self, lane: Lane) -> &mut VecDeque<Entry<T>> {
        match lane {
            Lane::Interactive => &mut self.interactive,
            Lane::Batch => &mut self.batch,
        }
    }
}

/// Whose turn it is among the lanes that wait.
fn turn(overtaken: u32, interactive: bool, batch: bool) -> Option<Lane> {
    match (interactive, batch) {
        (false, false) => None,
        (true, false) => Some(Lane::Interactive),
        (false, true) => Some(Lane::Batch),
        (true, true) if overtaken + 1 >= BATCH_SHARE => Some(Lane::Batch),
        (true, true) => Some(Lane::Interactive),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn lane() -> impl Strategy<Value = Lane> {
        prop_oneof![Just(Lane::Interactive), Just(Lane::Batch)]
    }

    #[test]
    fn one_in_eight_is_of_the_batch_lane_while_both_wait() {
        let mut queue = Queue::new();
        (0..100).for_each(|_| queue.push(Lane::Interactive, 1, Lane::Interactive));
        (0..100).for_each(|_| queue.push(Lane::Batch, 1, Lane::Batch));
        let taken: Vec<Lane> = (0..80).map(|_| queue.pop().unwrap().1).collect();
        for eight in taken.chunks(8) {
            assert_eq!(eight[7], Lane::Batch);
            assert!(eight[..7].iter().all(|lane| *lane == Lane::Interactive));
        }
    }

    #[test]
    fn work_larger_than_the_bound_is_let_in_when_nothing_waits() {
        let mut queue = Queue::new();
        assert!(queue.admits(500, 100));
        queue.push(Lane::Batch, 500, ());
        assert!(!queue.admits(1, 100));
    }

    #[test]
    fn topping_up_takes_what_fits_and_leaves_the_rest_in_order() {
        let mut queue = Queue::new();
        for (units, name) in [(50, "a"), (200, "b"), (50, "other"), (60, "c"), (10, "d")] {
            queue.push(Lane::Interactive, units, name);
        }
        let taken: Vec<_> = queue.top_up(120, |name| *name != "other").into_iter().map(|(_, name)| name).collect();
        assert_eq!(taken, ["a", "c", "d"]);
        assert_eq!(queue.units(), 250);
        assert_eq!([queue.pop().unwrap().1, queue.pop().unwrap().1], ["b", "other"]);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Push(Lane, u64),
        Pop,
        TopUp(u64),
        Retain(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => (lane(), 1_u64..100).prop_map(|(lane, units)| Step::Push(lane, units)),
            2 => Just(Step::Pop),
            1 => (0_u64..200).prop_map(Step::TopUp),
            1 => (2_u64..5).prop_map(Step::Retain),
        ]
    }

    proptest! {
        #[test]
        fn units_are_always_those_of_what_waits(steps in prop::collection::vec(step(), 0..200)) {
            let mut queue = Queue::new();
            let mut waiting: Vec<(u64, usize)> = Vec::new();
            for (id, step) in steps.into_iter().enumerate() {
                match step {
                    Step::Push(lane, units) => {
                        queue.push(lane, units, (units, id));
                        waiting.push((units, id));
                    }
                    Step::Pop => {
                        let taken = queue.pop();
                        prop_assert_eq!(taken.is_none(), waiting.is_empty());
                        waiting.retain(|entry| taken.is_none_or(|(_, taken)| taken != *entry));
                    }
                    Step::TopUp(room) => {
                        let taken = queue.top_up(room, |_| true);
                        prop_assert!(taken.iter().map(|(units, _)| units).sum::<u64>() <= room);
                        waiting.retain(|entry| taken.iter().all(|(_, taken)| taken != entry));
                    }
                    Step::Retain(modulus) => {
                        queue.retain(|(units, _)| units % modulus != 0);
                        waiting.retain(|(units, _)| units % modulus != 0);
                    }
                }
                prop_assert_eq!(queue.units(), waiting.iter().map(|(units, _)| units).sum::<u64>());
            }
        }

        #[test]
        fn who_comes_into_an_empty_interactive_lane_waits_for_one_batch_entry_at_most(
            steps in prop::collection::vec(step(), 0..100), batch in 0_usize..20,
        ) {
            let mut queue = Queue::new();
            for step in steps {
                match step {
                    Step::Push(lane, units) => queue.push(lane, units, lane),
                    Step::Pop => drop(queue.pop()),
                    Step::TopUp(room) => drop(queue.top_up(room, |_| true)),
                    Step::Retain(_) => queue.retain(|lane| *lane == Lane::Batch),
                }
            }
            queue.retain(|lane| *lane == Lane::Batch);
            (0..batch).for_each(|_| queue.push(Lane::Batch, 1, Lane::Batch));
            queue.push(Lane::Interactive, 1, Lane::Interactive);
            let before = std::iter::from_fn(|| queue.pop()).take_while(|(_, lane)| *lane == Lane::Batch).count();
            prop_assert!(before <= 1, "{before}");
        }

        #[test]
        fn a_lane_keeps_its_order(lanes in prop::collection::vec(lane(), 0..100)) {
            let mut queue = Queue::new();
            lanes.iter().enumerate().for_each(|(id, lane)| queue.push(*lane, 1, (*lane, id)));
            let taken: Vec<_> = std::iter::from_fn(|| queue.pop()).map(|(_, entry)| entry).collect();
            prop_assert_eq!(taken.len(), lanes.len());
            for lane in [Lane::Interactive, Lane::Batch] {
                prop_assert!(taken.iter().filter(|entry| entry.0 == lane).is_sorted_by_key(|entry| entry.1));
            }
        }
    }
}
