//! Decides what a worker takes next. Knows nothing of threads, clocks or models.

use std::collections::BTreeMap;

use super::Lane;

/// So many entries may be taken, one after the other, while an older one waits; the next is the oldest.
const OVERTAKING_MAX: u32 = 7;

/// Entries in the order of their urgency: the interactive lane before the other, in a lane all first parts of calls before
/// the second ones, among those the one that came first.
///
/// That makes short calls quick and could starve the others, so of eight entries that are taken one is the oldest that
/// waits, whatever its lane and part. Two promises follow, and hold whatever comes later:
/// - Who is the first part of an interactive call and finds n like it is taken after at most n + 1 + n / 7 others.
/// - Who finds n entries of any kind is taken after at most 8 n + 7 others, and 8 more whenever an older one is put back.
pub(super) struct Queue<T> {
    entries: BTreeMap<Place, Content<T>>,
    /// Where the entries are, the oldest first.
    arrivals: BTreeMap<u64, Place>,
    /// Entries that came since the start.
    came: u64,
    units: u64,
    /// Entries that were taken one after the other while an older one waited.
    overtaking: u32,
}

/// Where an entry stands; the most urgent place is the least.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) rank: Rank,
    arrival: u64,
}

/// Entries of one rank go first come, first served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    pub(super) lane: Lane,
    /// Which part of its call an entry is, from 0 on.
    pub(super) part: u32,
}

/// What was taken.
pub(super) struct Entry<T> {
    pub(super) place: Place,
    pub(super) units: u64,
    pub(super) item: T,
}

struct Content<T> {
    units: u64,
    item: T,
}

/// What a worker that has an entry may take with it.
pub(super) struct TopUp {
    /// Units in all.
    pub(super) room: u64,
    /// Only entries of this rank.
    pub(super) rank: Option<Rank>,
    /// How many entries to look at. To look at all would cost more than it brings.
    pub(super) looks: usize,
}

impl<T> Queue<T> {
    pub(super) fn new() -> Self {
        Self { entries: BTreeMap::new(), arrivals: BTreeMap::new(), came: 0, units: 0, overtaking: 0 }
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

    pub(super) fn push(&mut self, rank: Rank, units: u64, item: T) {
        let place = Place { rank, arrival: self.came };
        self.came += 1;
        self.insert(place, Content { units, item });
    }

    /// Lets an entry in again that was taken and is not done, as old as it was.
    pub(super) fn put_back(&mut self, place: Place, units: u64, item: T) {
        self.insert(place, Content { units, item });
    }

    /// The entry whose turn it is.
    pub(super) fn pop(&mut self) -> Option<Entry<T>> {
        let (urgent, oldest) = (*self.entries.keys().next()?, *self.arrivals.values().next()?);
        let place = if self.overtaking < OVERTAKING_MAX { urgent } else { oldest };
        self.overtaking = if place == oldest { 0 } else { self.overtaking + 1 };
        self.remove(place)
    }

    /// More entries for a worker that already has one: those that `fits` and that have room, the most urgent first. They
    /// only come forward, so nobody is taken later for it.
    pub(super) fn top_up(
        &mut self,
        TopUp { mut room, rank, looks }: TopUp,
        fits: impl Fn(&T) -> bool,
    ) -> Vec<Entry<T>> {
        let mut places = Vec::new();
        let from = Place { rank: rank.unwrap_or(Rank::FIRST), arrival: 0 };
        let of_rank = |place: &Place| rank.is_none_or(|rank| place.rank == rank);
        let looked = self.entries.range(from..).take_while(|(place, _)| of_rank(place)).take(looks);
        for (place, Content { units, item }) in looked {
            if *units <= room && fits(item) {
                room -= units;
                places.push(*place);
            }
        }
        places.into_iter().filter_map(|place| self.remove(place)).collect()
    }

    /// Drops what is not worth keeping.
    pub(super) fn retain(&mut self, keep: impl Fn(&T) -> bool) {
        self.entries.retain(|place, content| {
            let keep = keep(&content.item);
            if !keep {
                self.arrivals.remove(&place.arrival);
                self.units -= content.units;
            }
            keep
        });
    }

    fn insert(&mut self, place: Place, content: Content<T>) {
        self.units += content.units;
        self.arrivals.insert(place.arrival, place);
        self.entries.insert(place, content);
    }

    fn remove(&mut self, place: Place) -> Option<Entry<T>> {
        let Content { units, item } = self.entries.remove(&place)?;
        self.arrivals.remove(&place.arrival);
        self.units -= units;
        Some(Entry { place, units, item })
    }
}

// === impl Place ===

impl Place {
    /// That of the next part of the same call.
    pub(super) fn next(self) -> Self {
        Self { rank: Rank { part: self.rank.part.saturating_add(1), ..self.rank }, ..self }
    }
}

// === impl Rank ===

impl Rank {
    /// The most urgent.
    const FIRST: Self = Self { lane: Lane::Interactive, part: 0 };
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FIRST: Rank = Rank::FIRST;
    const BULK: Rank = Rank { lane: Lane::Batch, part: 0 };

    fn rank() -> impl Strategy<Value = Rank> {
        (prop_oneof![Just(Lane::Interactive), Just(Lane::Batch)], 0_u32..3).prop_map(|(lane, part)| Rank { lane, part })
    }

    fn items<T>(entries: impl IntoIterator<Item = Entry<T>>) -> Vec<T> {
        entries.into_iter().map(|entry| entry.item).collect()
    }

    /// All of it, as it is taken.
    fn drain<T>(queue: &mut Queue<T>) -> Vec<T> {
        items(std::iter::from_fn(|| queue.pop()))
    }

    #[test]
    fn first_parts_go_before_later_ones_and_the_interactive_lane_before_the_other() {
        let mut queue = Queue::new();
        for (lane, name) in [(Lane::Batch, 'c'), (Lane::Interactive, 'a'), (Lane::Interactive, 'b')] {
            (0..2).for_each(|part| queue.push(Rank { lane, part }, 1, (name, part)));
        }
        assert_eq!(drain(&mut queue), [('a', 0), ('b', 0), ('a', 1), ('b', 1), ('c', 0), ('c', 1)]);
    }

    #[test]
    fn of_eight_that_are_taken_one_is_the_oldest() {
        let mut queue = Queue::new();
        (0..100).for_each(|part| queue.push(Rank { part, ..BULK }, 1, BULK));
        (0..100).for_each(|_| queue.push(FIRST, 1, FIRST));
        let taken = items((0..80).filter_map(|_| queue.pop()));
        for eight in taken.chunks(8) {
            assert_eq!(eight[7], BULK);
            assert!(eight[..7].iter().all(|rank| *rank == FIRST));
        }
    }

    #[test]
    fn work_larger_than_the_bound_is_let_in_when_nothing_waits() {
        let mut queue = Queue::new();
        assert!(queue.admits(500, 100));
        queue.push(BULK, 500, ());
        assert!(!queue.admits(1, 100));
    }

    fn mixed() -> Queue<&'static str> {
        let mut queue = Queue::new();
        for (units, name) in [(50, "a"), (200, "b"), (50, "other"), (60, "c"), (10, "d")] {
            queue.push(FIRST, units, name);
        }
        queue.push(BULK, 5, "bulk");
        queue.push(Rank { part: 1, ..FIRST }, 5, "second");
        queue
    }

    #[test]
    fn topping_up_takes_what_fits_and_leaves_the_rest_in_order() {
        let mut queue = mixed();
        let of_rank = TopUp { room: 130, rank: Some(FIRST), looks: 64 };
        assert_eq!(items(queue.top_up(of_rank, |name| *name != "other")), ["a", "c", "d"]);
        assert_eq!(queue.units(), 260);
        assert_eq!(drain(&mut queue), ["b", "other", "second", "bulk"]);
        let of_any = TopUp { room: 130, rank: None, looks: 64 };
        assert_eq!(items(mixed().top_up(of_any, |name| *name != "other")), ["a", "c", "d", "second", "bulk"]);
        let looks = TopUp { room: 1000, rank: None, looks: 2 };
        assert_eq!(items(mixed().top_up(looks, |_| true)), ["a", "b"]);
    }

    #[test]
    fn what_is_put_back_is_a_later_part_and_as_old_as_it_was() {
        let mut queue = Queue::new();
        (0..10).for_each(|name| queue.push(FIRST, 2, name));
        let Entry { place, units, item } = queue.pop().unwrap();
        queue.put_back(place.next(), units - 1, item);
        assert_eq!(queue.units(), 19);
        assert_eq!(drain(&mut queue), [1, 2, 3, 4, 5, 6, 7, 0, 8, 9]);
    }

    #[test]
    fn what_was_not_begun_has_the_place_that_it_had() {
        let mut queue = Queue::new();
        (0..3).for_each(|name| queue.push(FIRST, 2, name));
        let Entry { place, units, item } = queue.pop().unwrap();
        queue.put_back(place, units, item);
        assert_eq!(drain(&mut queue), [0, 1, 2]);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Push(Rank, u64),
        Pop,
        TopUp(u64, Option<Rank>),
        Retain(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => (rank(), 1_u64..100).prop_map(|(rank, units)| Step::Push(rank, units)),
            2 => Just(Step::Pop),
            1 => (0_u64..200, prop::option::of(rank())).prop_map(|(room, rank)| Step::TopUp(room, rank)),
            1 => (2_u64..5).prop_map(Step::Retain),
        ]
    }

    /// A queue that has lived.
    fn used(steps: Vec<Step>) -> Queue<(u64, usize)> {
        let mut queue = Queue::new();
        for (id, step) in steps.into_iter().enumerate() {
            match step {
                Step::Push(rank, units) => queue.push(rank, units, (units, id)),
                Step::Pop => drop(queue.pop()),
                Step::TopUp(room, rank) => drop(queue.top_up(TopUp { room, rank, looks: 64 }, |_| true)),
                Step::Retain(modulus) => queue.retain(|(units, _)| units % modulus != 0),
            }
        }
        queue
    }

    /// How many are taken before the one that comes now, if so many more come before each that is taken.
    fn before(mut queue: Queue<(u64, usize)>, now: Rank, more: &[Rank]) -> usize {
        let mine = (0, usize::MAX);
        queue.push(now, 0, mine);
        let taken = std::iter::from_fn(|| {
            more.iter().for_each(|rank| queue.push(*rank, 1, (1, 0)));
            queue.pop()
        });
        taken.take_while(|entry| entry.item != mine).count()
    }

    proptest! {
        #[test]
        fn nothing_is_lost_and_nothing_is_taken_twice(steps in prop::collection::vec(step(), 0..200)) {
            let mut queue = Queue::new();
            let mut waiting: Vec<(u64, usize)> = Vec::new();
            for (id, step) in steps.into_iter().enumerate() {
                let mut taken = Vec::new();
                match step {
                    Step::Push(rank, units) => {
                        queue.push(rank, units, (units, id));
                        waiting.push((units, id));
                    }
                    Step::Pop => {
                        taken.extend(queue.pop().map(|entry| entry.item));
                        prop_assert_eq!(taken.is_empty(), waiting.is_empty());
                    }
                    Step::TopUp(room, rank) => {
                        taken = items(queue.top_up(TopUp { room, rank, looks: 64 }, |_| true));
                        prop_assert!(taken.iter().map(|(units, _)| units).sum::<u64>() <= room);
                    }
                    Step::Retain(modulus) => {
                        queue.retain(|(units, _)| units % modulus != 0);
                        waiting.retain(|(units, _)| units % modulus != 0);
                    }
                }
                let count = waiting.len();
                waiting.retain(|entry| !taken.contains(entry));
                prop_assert_eq!(count - waiting.len(), taken.len());
                prop_assert_eq!(queue.units(), waiting.iter().map(|(units, _)| units).sum::<u64>());
                prop_assert_eq!(queue.arrivals.len(), waiting.len());
            }
        }

        #[test]
        fn a_first_part_waits_for_its_like_and_one_more_and_one_for_seven_of_them(
            steps in prop::collection::vec(step(), 0..100), more in prop::collection::vec(rank(), 0..5),
        ) {
            let queue = used(steps);
            let like = queue.entries.keys().filter(|place| place.rank == FIRST).count();
            let before = before(queue, FIRST, &more);
            prop_assert!(before <= like + 1 + like / 7, "{before} before it, {like} of them like it");
        }

        #[test]
        fn no_flow_of_others_starves_anybody(
            steps in prop::collection::vec(step(), 0..100), now in rank(), more in prop::collection::vec(rank(), 0..5),
        ) {
            let queue = used(steps);
            let waiting = queue.entries.len();
            let before = before(queue, now, &more);
            prop_assert!(before <= 8 * waiting + 7, "{before} before it, it found {waiting}");
        }

        #[test]
        fn a_rank_keeps_its_order(ranks in prop::collection::vec(rank(), 0..100)) {
            let mut queue = Queue::new();
            ranks.iter().enumerate().for_each(|(id, rank)| queue.push(*rank, 1, (*rank, id)));
            let taken = drain(&mut queue);
            prop_assert_eq!(taken.len(), ranks.len());
            for rank in ranks {
                prop_assert!(taken.iter().filter(|entry| entry.0 == rank).is_sorted_by_key(|entry| entry.1));
            }
        }
    }
}
