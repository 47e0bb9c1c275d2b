//! Which examples are held out together.

use std::collections::BTreeMap;

use super::Examples;

/// A fold for every example. Every label is spread over the folds as evenly as its groups allow, and a group, such as a
/// text that occurs twice, is in one fold: a head that has seen an example knows its answer.
pub(super) fn stratified(examples: Examples<'_>, groups: &[u64], folds: u32) -> Vec<u32> {
    let mut members = BTreeMap::<u64, Vec<usize>>::new();
    for (row, group) in groups.iter().enumerate() {
        members.entry(*group).or_default().push(row);
    }
    let mut members: Vec<_> = members.into_values().collect();
    shuffle(&mut members);
    let mut fold_of = vec![0; groups.len()];
    let mut filled = vec![vec![0_usize; folds as usize]; examples.labels];
    for rows in members {
        let filled = &mut filled[examples.classes[rows[0]] as usize];
        let fold = (0..filled.len()).min_by_key(|fold| filled[*fold]).unwrap_or(0);
        filled[fold] += rows.len();
        for row in rows {
            fold_of[row] = fold as u32;
        }
    }
    fold_of
}

/// Fisher and Yates, with the numbers of SplitMix64 (Steele et al., 2014) from a fixed seed: files are often sorted, and
/// the same file must give the same folds.
fn shuffle<T>(items: &mut [T]) {
    let mut state = 0_u64;
    for last in (1..items.len()).rev() {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = state;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^= x >> 31;
        // The remainder's bias is one in 2^40 for a million items.
        items.swap(last, (x % (last as u64 + 1)) as usize);
    }
}
