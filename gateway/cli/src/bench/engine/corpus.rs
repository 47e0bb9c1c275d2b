//! The texts that are computed, as token ids: all contestants read the same.

use std::{
    fs::File,
    io::{BufRead as _, BufReader},
    path::Path,
};

use anyhow::{Context as _, bail};
use engine::{Role, TextModel};
use sha2::{Digest as _, Sha256};

use super::work::{Call, MIXED_TEXTS, Task, Work};
use crate::advice::Advice;

/// Most texts that are read of a file.
const TEXTS_MAX: usize = 4096;

/// Texts as token ids.
#[derive(Clone, Debug)]
pub(crate) struct Corpus {
    /// Where they come from, for people.
    pub(crate) source: String,
    /// At least one, each with at least one token.
    ids: Vec<Vec<u32>>,
}

/// The texts of a file, one a line.
pub(crate) fn read(path: &Path) -> anyhow::Result<Vec<String>> {
    let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let lines: Result<Vec<_>, _> = BufReader::new(file).lines().take(TEXTS_MAX).collect();
    let mut texts = lines.with_context(|| format!("cannot read {}", path.display()))?;
    texts.retain(|text| !text.trim().is_empty());
    Ok(texts)
}

impl Corpus {
    /// Tokenizes texts. Those that the model refuses are left out.
    pub(crate) fn new(source: String, texts: &[String], model: &TextModel) -> anyhow::Result<Self> {
        let ids = texts.iter().filter_map(|text| model.token_ids(text, Role::Symmetric).ok());
        Self::of(source, ids.collect())
    }

    fn of(source: String, ids: Vec<Vec<u32>>) -> anyhow::Result<Self> {
        // Equal texts are made of what lies between the first and the last token.
        if ids.iter().all(|ids| ids.len() < 3) {
            bail!(Advice::new(format!("{source} has no text to measure with"), "name a file with one text a line"));
        }
        Ok(Self { source, ids })
    }

    /// All texts.
    pub(crate) fn texts(&self) -> &[Vec<u32>] {
        &self.ids
    }

    /// The texts of the rows of mixed texts: the first of all, from the start again if there are too few.
    pub(crate) fn mixed(&self) -> Vec<Vec<u32>> {
        self.ids.iter().cycle().take(MIXED_TEXTS).cloned().collect()
    }

    /// What is computed in a row of texts.
    pub(crate) fn task(&self, work: Work) -> Task {
        Task::Texts(match work {
            Work::Equal { texts, tokens } => vec![self.equal(texts, tokens)],
            Work::Mixed { call } => self.mixed().chunks(call.max(1)).map(<[_]>::to_vec).collect(),
            Work::Network | Work::Photo => Vec::new(),
        })
    }

    /// What the texts are, for people.
    pub(crate) fn describe(&self) -> String {
        let (mean, most) = self.lengths();
        let (count, source) = (self.ids.len(), &self.source);
        format!(
            "{count} texts: {source}\nmixed rows: the first {MIXED_TEXTS} of them, of {mean:.0} tokens on average and \
             {most} at most"
        )
    }

    /// Changes whenever one of the first texts does.
    pub(crate) fn digest(&self, first: usize) -> String {
        let mut digest = Sha256::new();
        for ids in self.ids.iter().take(first) {
            digest.update(ids.len().to_le_bytes());
            ids.iter().for_each(|id| digest.update(id.to_le_bytes()));
        }
        digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The mean and the greatest number of tokens of the mixed texts.
    fn lengths(&self) -> (f64, usize) {
        let mixed = self.mixed();
        let (sum, most) = mixed.iter().fold((0, 0), |(sum, most), ids| (sum + ids.len(), most.max(ids.len())));
        #[expect(clippy::cast_precision_loss, reason = "a few thousand")]
        let mean = sum as f64 / mixed.len() as f64;
        (mean, most)
    }

    /// Texts of so many tokens each: what is written, one text after the other, cut into equal pieces.
    fn equal(&self, texts: usize, tokens: usize) -> Call {
        let long = self.ids.iter().filter(|ids| ids.len() > 2);
        let mut written = long.clone().flat_map(|ids| &ids[1..ids.len() - 1]).copied().cycle();
        let ends = long.clone().next().and_then(|ids| Some((*ids.first()?, *ids.last()?)));
        let mut piece = || -> Vec<u32> {
            let inside = written.by_ref().take(tokens.saturating_sub(2));
            let (first, last) = ends.unzip();
            first.into_iter().chain(inside).chain(last).collect()
        };
        (0..texts).map(|_| piece()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn corpus() -> Corpus {
        Corpus::of("test".into(), vec![vec![101, 1, 2, 3, 102], vec![101, 102], vec![101, 4, 102]]).unwrap()
    }

    #[test]
    fn equal_texts_are_real_ones_cut_to_length_between_the_same_ends() {
        let Task::Texts(calls) = corpus().task(Work::Equal { texts: 2, tokens: 5 }) else { unreachable!() };
        assert_eq!(calls, [[vec![101, 1, 2, 3, 102], vec![101, 4, 1, 2, 102]]]);
    }

    #[test]
    fn mixed_texts_come_in_calls_of_any_size_and_are_the_same_in_each() {
        let tasks = [1, 32].map(|call| corpus().task(Work::Mixed { call }));
        let [Task::Texts(one), Task::Texts(many)] = &tasks else { unreachable!() };
        assert_eq!((one.len(), many.len()), (MIXED_TEXTS, MIXED_TEXTS / 32));
        assert_eq!(one.concat(), many.concat());
        assert_eq!(corpus().lengths().1, 5);
    }

    #[test]
    fn the_digest_is_that_of_the_texts_and_not_of_their_source() {
        let of = |source: &str, texts: &[&[u32]]| {
            Corpus::of(source.into(), texts.iter().map(|ids| ids.to_vec()).collect()).unwrap().digest(2)
        };
        let one = of("a.txt", &[&[1, 2, 3], &[1, 3]]);
        assert_eq!(one, of("b.txt", &[&[1, 2, 3], &[1, 3], &[1, 9]]));
        assert_ne!(one, of("a.txt", &[&[1, 2, 3], &[1, 4]]));
        assert_ne!(one, of("a.txt", &[&[1, 2, 3, 1], &[3]]));
    }

    #[test]
    fn texts_without_words_are_refused() {
        assert!(Corpus::of("empty.txt".into(), vec![vec![101, 102]]).is_err());
        assert!(Corpus::of("empty.txt".into(), Vec::new()).is_err());
    }

    #[test]
    fn lines_without_text_are_passed_over() {
        let place = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(place.path(), "one\n\n  \ntwo\n").unwrap();
        assert_eq!(read(place.path()).unwrap(), ["one", "two"]);
    }
}
