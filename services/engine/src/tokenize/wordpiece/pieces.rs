//! A small hash table from byte strings to ids.

/// Odd, and its bits look random (2^64 divided by the golden ratio): the upper half of a product depends on every byte.
const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;

/// Strings that never change, in one buffer, and their ids: a general map would hold each string on its own, in twice the
/// memory of all the rest. The hash of a prefix is a step on the way to that of the whole, so that all prefixes of a word
/// are looked up in one pass.
pub(super) struct Pieces {
    text: Box<[u8]>,
    /// A power of two of them, less than half in use.
    slots: Box<[Slot]>,
    longest: usize,
}

/// Where a string lies; one of no bytes is a free slot.
#[derive(Clone, Copy, Default)]
struct Slot {
    start: u32,
    id: u32,
    length: u16,
    /// Bits of the hash that did not choose the slot.
    check: u16,
}

impl Pieces {
    /// None if a string is longer than any vocabulary's.
    pub(super) fn new(pieces: &[(String, u32)]) -> Option<Self> {
        let mut table = Self {
            text: pieces.iter().flat_map(|(piece, _)| piece.bytes()).collect(),
            slots: vec![Slot::default(); (pieces.len() * 2 + 2).next_power_of_two()].into(),
            longest: pieces.iter().map(|(piece, _)| piece.len()).max().unwrap_or(0),
        };
        let mut start = 0;
        for (piece, id) in pieces {
            let hash = piece.bytes().fold(0, step);
            let length = u16::try_from(piece.len()).ok()?;
            let mut at = table.first_slot(hash);
            while table.slots[at].length != 0 {
                at = table.next_slot(at);
            }
            table.slots[at] = Slot { start, id: *id, length, check: check(hash) };
            start = start.checked_add(u32::from(length))?;
        }
        Some(table)
    }

    pub(super) fn find(&self, piece: &[u8]) -> Option<u32> {
        self.find_hashed(piece, piece.iter().copied().fold(0, step))
    }

    /// The longest string with which a text begins: its length and its id.
    pub(super) fn longest_prefix(&self, text: &[u8]) -> Option<(usize, u32)> {
        let mut longest = None;
        let mut hash = 0;
        for (at, &byte) in text.iter().take(self.longest).enumerate() {
            hash = step(hash, byte);
            if let Some(id) = self.find_hashed(&text[..=at], hash) {
                longest = Some((at + 1, id));
            }
        }
        longest
    }

    fn find_hashed(&self, piece: &[u8], hash: u64) -> Option<u32> {
        let mut at = self.first_slot(hash);
        loop {
            let slot = self.slots[at];
            if slot.length == 0 {
                return None;
            }
            let alike = slot.check == check(hash) && usize::from(slot.length) == piece.len();
            if alike && self.text[slot.start as usize..][..piece.len()] == *piece {
                return Some(slot.id);
            }
            at = self.next_slot(at);
        }
    }

    fn first_slot(&self, hash: u64) -> usize {
        (hash >> 32) as usize & (self.slots.len() - 1)
    }

    fn next_slot(&self, at: usize) -> usize {
        (at + 1) & (self.slots.len() - 1)
    }
}

fn step(hash: u64, byte: u8) -> u64 {
    (hash ^ u64::from(byte)).wrapping_mul(MULTIPLIER)
}

fn check(hash: u64) -> u16 {
    (hash >> 16) as u16
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn strings_are_found_as_in_a_map(
            strings in prop::collection::hash_set("[abc]{0,6}", 0..200), text in "[abcd]{0,10}",
        ) {
            let pieces: Vec<_> = strings.into_iter().filter(|piece| !piece.is_empty()).zip(7..).collect();
            let table = Pieces::new(&pieces).unwrap();
            let map: HashMap<_, _> = pieces.iter().map(|(piece, id)| (piece.as_bytes(), *id)).collect();
            for (piece, id) in &pieces {
                prop_assert_eq!(table.find(piece.as_bytes()), Some(*id));
            }
            let text = text.as_bytes();
            prop_assert_eq!(table.find(text), map.get(text).copied());
            let longest = (1..=text.len()).rev().find_map(|length| Some((length, *map.get(&text[..length])?)));
            prop_assert_eq!(table.longest_prefix(text), longest);
        }
    }

    #[test]
    fn a_string_beyond_all_bounds_makes_no_table() {
        assert!(Pieces::new(&[("a".repeat(1 << 16), 0)]).is_none());
        assert_eq!(Pieces::new(&[]).unwrap().longest_prefix(b"a"), None);
    }
}
