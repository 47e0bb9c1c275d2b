//! Parts of models that several loaded models have in common.
//!
//! Ten heads over one embedding model need its encoder once, and not ten times 90 MB. A part is kept as long as some model
//! uses it: this holds none alive.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use crate::{Compute, Error, Manifest, encoder::Encoder, tokenize::Tokens};

/// The encoders and tokenizers of loaded models, by what determines them. Models that are loaded through the same value
/// share; clones are the same value.
#[derive(Clone, Default)]
pub struct Parts {
    pub(crate) compute: Compute,
    pub(crate) encoders: Shelf<dyn Encoder>,
    pub(crate) tokens: Shelf<Tokens>,
}

/// Parts of one kind.
pub(crate) struct Shelf<T: ?Sized>(Arc<Mutex<HashMap<String, Weak<T>>>>);

impl std::fmt::Debug for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Parts")
    }
}

// === impl Parts ===

impl Parts {
    /// Nothing yet, of models that are computed so.
    #[must_use]
    pub fn new(compute: Compute) -> Self {
        Self { compute, ..Self::default() }
    }
}

// === impl Shelf ===

impl<T: ?Sized> Shelf<T> {
    /// The part of this key, made if no model has it. Whoever asks meanwhile waits, so that it is never made twice.
    pub(crate) fn share(&self, key: String, make: impl FnOnce() -> Result<Arc<T>, Error>) -> Result<Arc<T>, Error> {
        let mut shelf = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(part) = shelf.get(&key).and_then(Weak::upgrade) {
            return Ok(part);
        }
        shelf.retain(|_, part| part.strong_count() > 0);
        let part = make()?;
        shelf.insert(key, Arc::downgrade(&part));
        Ok(part)
    }
}

impl<T: ?Sized> Clone for Shelf<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T: ?Sized> Default for Shelf<T> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

/// Names bytes: these files of a model, as they were published and converted.
pub(crate) fn key(manifest: &Manifest, names: &[&str]) -> String {
    let file = |name: &&str| {
        let file = manifest.files.iter().find(|file| file.name == **name)?;
        Some(format!("{}:{}", file.sha256, file.convert.map(|kind| kind.versioned()).unwrap_or_default()))
    };
    names.iter().filter_map(file).collect::<Vec<_>>().join("+")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_made_once_while_somebody_uses_it_and_freed_after() {
        let shelf = Shelf::<u32>::default();
        let make = |value: u32| move || Ok(Arc::new(value));
        let first = shelf.share("a".into(), make(1)).unwrap();
        assert_eq!(*shelf.clone().share("a".into(), make(2)).unwrap(), 1);
        assert_eq!(*shelf.share("b".into(), make(3)).unwrap(), 3);
        let seen = Arc::downgrade(&first);
        drop(first);
        assert!(seen.upgrade().is_none());
        assert_eq!(*shelf.share("a".into(), make(4)).unwrap(), 4);
    }

    #[test]
    fn a_part_that_can_not_be_made_leaves_no_trace() {
        let shelf = Shelf::<u32>::default();
        assert!(shelf.share("a".into(), || Err(Error::Closed)).is_err());
        assert_eq!(*shelf.share("a".into(), || Ok(Arc::new(1))).unwrap(), 1);
    }
}
