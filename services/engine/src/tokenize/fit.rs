//! Cuts tokens to what a model takes. Knows nothing of texts or tokenizers.

use super::{Tokenized, Truncation, Window, too_long};
use crate::{ItemError, Reason};

/// How tokens are cut.
pub(super) struct Fit {
    pub(super) truncation: Truncation,
    /// Most tokens of one window.
    pub(super) max: usize,
    pub(super) windows_max: usize,
}

/// Tokens at both ends that every window keeps.
#[derive(Clone, Copy)]
pub(super) struct Ends {
    pub(super) head: usize,
    pub(super) tail: usize,
}

impl Fit {
    /// The windows of tokens that are more than the model takes.
    pub(super) fn cut(&self, ids: &[u32], ends: Ends) -> Result<Tokenized, ItemError> {
        let too_long = || Err(too_long(ids.len(), self.max));
        let Some(room) = self.max.checked_sub(ends.head + ends.tail).filter(|room| *room > 0) else {
            return too_long();
        };
        let (head, rest) = ids.split_at(ends.head);
        let (content, tail) = rest.split_at(rest.len() - ends.tail);
        let window = |part: &[u32]| Window { ids: [head, part, tail].concat(), types: None };
        match self.truncation {
            Truncation::Error => too_long(),
            Truncation::End => Ok(Tokenized::one(window(&content[..room]), true)),
            Truncation::Start => Ok(Tokenized::one(window(&content[content.len() - room..]), true)),
            Truncation::ChunkMean => {
                let count = content.len().div_ceil(room);
                if count > self.windows_max {
                    let message = format!(
                        "the text has {} tokens, {count} windows of the model's {}; the bound is {} windows",
                        ids.len(),
                        self.max,
                        self.windows_max
                    );
                    return Err(ItemError::new(Reason::TooLong, message));
                }
                let windows: Vec<_> = content.chunks(room).map(window).collect();
                let tokens = windows.iter().map(|window| window.ids.len() as u32).sum();
                Ok(Tokenized { windows, tokens, truncated: false })
            }
        }
    }
}

/// What two texts of these lengths keep in so much room: the longer one is cut first.
pub(super) fn share(a: usize, b: usize, room: usize) -> (usize, usize) {
    let half = room / 2;
    if a + b <= room {
        (a, b)
    } else if a <= half {
        (a, room - a)
    } else if b <= half {
        (room - b, b)
    } else {
        (room - half, half)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cut(truncation: Truncation, ids: &[u32]) -> Result<Tokenized, ItemError> {
        Fit { truncation, max: 5, windows_max: 3 }.cut(ids, Ends { head: 1, tail: 1 })
    }

    fn windows(truncation: Truncation, count: u32) -> Vec<Vec<u32>> {
        let ids: Vec<_> = (0..count).collect();
        cut(truncation, &ids).unwrap().windows.into_iter().map(|window| window.ids).collect()
    }

    #[test]
    fn both_ends_stay_whatever_is_cut() {
        assert_eq!(windows(Truncation::End, 8), [[0, 1, 2, 3, 7]]);
        assert_eq!(windows(Truncation::Start, 8), [[0, 4, 5, 6, 7]]);
        assert_eq!(windows(Truncation::ChunkMean, 9), [vec![0, 1, 2, 3, 8], vec![0, 4, 5, 6, 8], vec![0, 7, 8]]);
    }

    #[test]
    fn more_windows_than_allowed_are_too_long() {
        let ids: Vec<_> = (0..12).collect();
        let error = cut(Truncation::ChunkMean, &ids).err().unwrap();
        assert_eq!(error.message, "the text has 12 tokens, 4 windows of the model's 5; the bound is 3 windows");
        assert_eq!(cut(Truncation::Error, &ids).err().unwrap().message, "the text has 12 tokens, the model takes 5");
    }

    #[test]
    fn ends_that_leave_no_room_are_too_long() {
        let fit = Fit { truncation: Truncation::End, max: 2, windows_max: 3 };
        assert_eq!(fit.cut(&[1, 2, 3], Ends { head: 1, tail: 1 }).err().unwrap().reason, Reason::TooLong);
    }

    proptest! {
        #[test]
        fn windows_have_every_token_once(count in 6_u32..11) {
            let inner: Vec<u32> = windows(Truncation::ChunkMean, count)
                .into_iter().flat_map(|window| window[1..window.len() - 1].to_vec()).collect();
            prop_assert_eq!(inner, (1..count - 1).collect::<Vec<_>>());
        }

        #[test]
        fn two_texts_fill_their_room_and_the_shorter_is_cut_last(a in 1_usize..50, b in 1_usize..50, room in 2_usize..60) {
            let (x, y) = share(a, b, room);
            prop_assert!(x <= a && y <= b && x >= 1 && y >= 1);
            prop_assert_eq!(x + y, room.min(a + b));
            if x < a && y == b { prop_assert!(x + 1 >= y) }
            if y < b && x == a { prop_assert!(y + 1 >= x) }
        }
    }
}
