//! Texts of mixed lengths, the same on every machine: most are short, a few are long, as in most traffic.

/// Texts after which they repeat.
const TEXTS: usize = 256;
/// Words of a text and how many of 16 texts have that many: queries, sentences, paragraphs, passages.
const LENGTHS: [(usize, usize); 4] = [(6, 8), (18, 5), (70, 2), (200, 1)];
const WORDS: [&str; 48] = [
    "the", "a", "of", "to", "and", "in", "for", "with", "on", "by", "from", "after", "before", "people", "water",
    "market", "engine", "river", "question", "answer", "system", "garden", "music", "winter", "report", "station",
    "letter", "window", "bridge", "doctor", "teacher", "signal", "paper", "history", "mountain", "kitchen", "reads",
    "builds", "carries", "finds", "changes", "opens", "slowly", "early", "quiet", "bright", "old", "new",
];
const SEED: u64 = 0x0074_616d_6973;

/// The texts.
pub(crate) fn texts() -> Vec<String> {
    let mut random = Random(SEED);
    (0..TEXTS).map(|number| text(number, &mut random)).collect()
}

fn text(number: usize, random: &mut Random) -> String {
    let base = length(number);
    // A quarter more or less, so that no two lengths need be equal.
    let count = base - base / 4 + random.below(base / 2 + 1);
    let words: Vec<_> = (0..count).map(|_| WORDS[random.below(WORDS.len())]).collect();
    format!("{}.", words.join(" "))
}

/// Long ones are spread between the short ones: 7 and 16 have no divisor in common.
fn length(number: usize) -> usize {
    let mut place = number * 7 % 16;
    for (words, share) in LENGTHS {
        if place < share {
            return words;
        }
        place -= share;
    }
    LENGTHS[0].0
}

/// SplitMix64 (Steele, Lea, Flood, 2014): numbers that only need to look random.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        let bound = u64::try_from(bound).unwrap_or(u64::MAX).max(1);
        usize::try_from(self.next() % bound).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_the_same_every_time() {
        assert_eq!(texts(), texts());
        assert_eq!(texts().len(), TEXTS);
    }

    #[test]
    fn most_texts_are_short_and_some_are_long() {
        let words: Vec<_> = texts().iter().map(|text| text.split(' ').count()).collect();
        let between = |low, high| words.iter().filter(|count| (low..high).contains(*count)).count();
        assert_eq!((between(4, 10), between(13, 25), between(52, 95), between(150, 260)), (128, 80, 32, 16));
    }
}
