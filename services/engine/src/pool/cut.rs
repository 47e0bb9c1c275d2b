//! Cuts a call into chunks that workers can share.

/// Fewer units are not worth another worker: to wake it takes as long as a part of them.
const SHARE_MIN: u64 = 32;

/// Most units of a chunk of a call that comes to so many idle workers: they share it, though one could take it whole.
pub(super) fn chunk_units(units: u64, idle: usize, max: u32) -> u32 {
    let share = if idle > 1 { units.div_ceil(idle as u64).max(SHARE_MIN) } else { u64::MAX };
    u32::try_from(share).map_or(max, |share| share.min(max))
}

/// The items of a call, by their positions, in chunks of at most `max` units; an item of more stands alone.
///
/// Items of like size come together, the largest first: a chunk's rows are then of like length, and when several workers
/// share a call the small chunks at its end let them finish together.
pub(super) fn cut(units: &[u32], max: u32) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..units.len()).collect();
    order.sort_by_key(|&item| std::cmp::Reverse(units[item]));
    let mut chunks: Vec<Vec<usize>> = Vec::new();
    let mut room = 0;
    for item in order {
        let wanted = u64::from(units[item]);
        match chunks.last_mut() {
            Some(chunk) if wanted <= room => {
                chunk.push(item);
                room -= wanted;
            }
            _ => {
                chunks.push(vec![item]);
                room = u64::from(max).saturating_sub(wanted);
            }
        }
    }
    chunks
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn no_items_are_no_chunks() {
        assert!(cut(&[], 256).is_empty());
    }

    #[test]
    fn likes_come_together_and_the_largest_first() {
        assert_eq!(cut(&[10, 90, 10, 90], 100), [vec![1], vec![3, 0], vec![2]]);
    }

    proptest! {
        #[test]
        fn every_item_is_in_one_chunk_and_no_chunk_is_too_large(
            units in prop::collection::vec(1_u32..500, 0..200), max in 1_u32..300,
        ) {
            let chunks = cut(&units, max);
            let mut seen: Vec<usize> = chunks.concat();
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..units.len()).collect::<Vec<_>>());
            for chunk in &chunks {
                let sum: u32 = chunk.iter().map(|&item| units[item]).sum();
                prop_assert!(sum <= max || chunk.len() == 1);
            }
        }

        #[test]
        fn idle_workers_share_what_is_worth_it_and_nobody_gets_more_than_the_bound(
            units in prop::collection::vec(1_u32..20, 1..200), idle in 0_usize..10, max in 1_u32..300,
        ) {
            let sum: u64 = units.iter().map(|&units| u64::from(units)).sum();
            let share = chunk_units(sum, idle, max);
            prop_assert!(share <= max);
            if idle < 2 {
                prop_assert_eq!(share, max);
            } else {
                prop_assert!(u64::from(share) >= SHARE_MIN.min(u64::from(max)));
                // Whole items leave at most an item's room in each chunk.
                let chunks = cut(&units, share).len() as u64;
                prop_assert!(chunks >= (sum / SHARE_MIN).min(idle as u64).min(units.len() as u64).max(1));
            }
        }

        #[test]
        fn two_neighbours_never_fit_into_one(units in prop::collection::vec(1_u32..500, 0..200), max in 1_u32..300) {
            let chunks = cut(&units, max);
            for pair in chunks.windows(2) {
                let sum: u32 = pair[0].iter().chain(&pair[1][..1]).map(|&item| units[item]).sum();
                prop_assert!(sum > max);
            }
        }
    }
}
