//! Content that callers name by its digest: a bounded cache, and uploads on their way into it.
//!
//! A service keeps what it was sent, and the gateway keeps a copy, so that a digest works with every replica. Both are
//! bounded in bytes: of what is kept, and of what is on its way.

use std::{
    fmt,
    str::FromStr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
};

use bytes::Bytes;
use lru::LruCache;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _},
    metrics::{counter::ConstCounter, gauge::ConstGauge},
};
use sha2::{Digest as _, Sha256};

/// What a kept content counts beside its bytes: its digest and its place in the cache. Without it, tiny contents would
/// take many times the memory that they may.
const PLACE_BYTES: usize = 256;

/// SHA-256 over the bytes of a content, written as `sha256:` and 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest([u8; 32]);

/// A text that is no digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a digest is `sha256:` and 64 hexadecimal digits")]
pub struct NotDigest;

/// Bytes and their digest.
#[derive(Clone, Debug)]
pub struct Content {
    /// Of the bytes.
    pub digest: Digest,
    /// Shared with whoever still reads them when the cache drops them.
    pub bytes: Bytes,
}

/// The cache, and the bounds of uploads. The content that was unused for the longest time is dropped first.
#[derive(Debug)]
pub struct Contents {
    kept: Mutex<Kept>,
    bytes_max: usize,
    evictions: AtomicU64,
    uploading: AtomicUsize,
    uploads_bytes_max: usize,
}

#[derive(Debug)]
struct Kept {
    by_digest: LruCache<Digest, Bytes>,
    /// Their bytes and their places.
    bytes: usize,
}

/// Bytes that arrive, hashed as they do. Dropping it gives up its memory.
#[derive(Debug)]
pub struct Upload {
    contents: Arc<Contents>,
    bytes_max: usize,
    hasher: Sha256,
    bytes: Vec<u8>,
    /// Of the bound of all uploads: the memory of `bytes`, not its length.
    reserved: usize,
}

/// Why bytes are not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotTaken {
    /// The upload is longer than any may be.
    TooLarge {
        /// The bound.
        bytes_max: usize,
    },
    /// All uploads together take as much memory as they may.
    Full {
        /// The bound.
        bytes_max: usize,
    },
}

/// Reads the cache when it is scraped: `content_bytes`, `content_entries`, `content_upload_bytes`,
/// `content_evictions_total`.
#[derive(Debug)]
pub struct ContentMetrics(pub Arc<Contents>);

// === impl Digest ===

impl Digest {
    /// The digest of these bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }
}

impl FromStr for Digest {
    type Err = NotDigest;

    fn from_str(text: &str) -> Result<Self, NotDigest> {
        let digits = text.strip_prefix("sha256:").map(str::as_bytes).ok_or(NotDigest)?;
        let (pairs, []) = digits.as_chunks() else { return Err(NotDigest) };
        let pairs: &[[u8; 2]; 32] = pairs.try_into().map_err(|_| NotDigest)?;
        let mut digest = [0; 32];
        for (byte, pair) in digest.iter_mut().zip(pairs) {
            let [high, low] = pair.map(|digit| char::from(digit).to_digit(16));
            let value = high.zip(low).map(|(high, low)| high << 4 | low).ok_or(NotDigest)?;
            *byte = u8::try_from(value).map_err(|_| NotDigest)?;
        }
        Ok(Self(digest))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sha256:")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

// === impl Contents ===

impl Contents {
    /// An empty cache of at most `bytes_max`, into which uploads of at most `uploads_bytes_max` together may be on
    /// their way.
    #[must_use]
    pub fn new(bytes_max: usize, uploads_bytes_max: usize) -> Self {
        Self {
            kept: Mutex::new(Kept { by_digest: LruCache::unbounded(), bytes: 0 }),
            bytes_max,
            evictions: AtomicU64::new(0),
            uploading: AtomicUsize::new(0),
            uploads_bytes_max,
        }
    }

    /// The bytes with this digest, if they are here. They count as used now.
    #[must_use]
    pub fn find(&self, digest: &Digest) -> Option<Bytes> {
        self.lock().by_digest.get(digest).cloned()
    }

    /// Keeps a content as the one used last; drops the longest unused until it fits. One that is larger than the whole
    /// cache is not kept.
    pub fn keep(&self, Content { digest, bytes }: Content) {
        let size = bytes.len() + PLACE_BYTES;
        if size > self.bytes_max {
            return;
        }
        // Freed after the lock: giving back many megabytes takes time.
        let mut dropped = Vec::new();
        let mut kept = self.lock();
        match kept.by_digest.put(digest, bytes) {
            Some(same) => dropped.push(same),
            None => kept.bytes += size,
        }
        while kept.bytes > self.bytes_max {
            let Some((_, oldest)) = kept.by_digest.pop_lru() else { break };
            kept.bytes -= oldest.len() + PLACE_BYTES;
            self.evictions.fetch_add(1, Relaxed);
            dropped.push(oldest);
        }
        drop(kept);
    }

    /// Begins an upload of at most `bytes_max`.
    #[must_use]
    pub fn upload(self: &Arc<Self>, bytes_max: usize) -> Upload {
        Upload { contents: Arc::clone(self), bytes_max, hasher: Sha256::new(), bytes: Vec::new(), reserved: 0 }
    }

    fn reserve(&self, bytes: usize) -> bool {
        let fits = |taken: usize| taken.checked_add(bytes).filter(|taken| *taken <= self.uploads_bytes_max);
        self.uploading.fetch_update(Relaxed, Relaxed, fits).is_ok()
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        // Nothing that runs under the lock can leave it half done.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Upload ===

impl Upload {
    /// Takes the next bytes. What was taken so far stays as it is if they are refused.
    ///
    /// # Errors
    /// At the bound of this upload, or of all together.
    pub fn add(&mut self, chunk: &[u8]) -> Result<(), NotTaken> {
        let length = self.bytes.len() + chunk.len();
        if length > self.bytes_max {
            return Err(NotTaken::TooLarge { bytes_max: self.bytes_max });
        }
        if length > self.reserved {
            // Doubled, so that many small chunks are not copied again and again.
            let wanted = length.max(2 * self.reserved).min(self.bytes_max);
            if !self.contents.reserve(wanted - self.reserved) {
                return Err(NotTaken::Full { bytes_max: self.contents.uploads_bytes_max });
            }
            self.reserved = wanted;
            self.bytes.reserve_exact(wanted - self.bytes.len());
        }
        self.hasher.update(chunk);
        self.bytes.extend_from_slice(chunk);
        Ok(())
    }

    /// What has arrived.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// All that arrived is all that there is.
    #[must_use]
    pub fn finish(mut self) -> Content {
        let digest = Digest(std::mem::take(&mut self.hasher).finalize().into());
        // In a box: the cache counts the length, so nothing more may be held.
        Content { digest, bytes: std::mem::take(&mut self.bytes).into_boxed_slice().into() }
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        self.contents.uploading.fetch_sub(self.reserved, Relaxed);
    }
}

// === impl ContentMetrics ===

impl Collector for ContentMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let (bytes, entries) = {
            let kept = self.0.lock();
            (kept.bytes, kept.by_digest.len())
        };
        let uploading = self.0.uploading.load(Relaxed);
        for (name, help, value) in [
            ("content_bytes", "Memory that uploaded contents take", bytes),
            ("content_entries", "Uploaded contents that a digest finds", entries),
            ("content_upload_bytes", "Memory that uploads under way take", uploading),
        ] {
            let gauge = ConstGauge::new(value as u64);
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        let evictions = ConstCounter::new(self.0.evictions.load(Relaxed));
        let help = "Contents that were dropped for newer ones";
        evictions.encode(encoder.encode_descriptor("content_evictions", help, None, evictions.metric_type())?)
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::{encoding::text::encode, registry::Registry};

    use super::*;

    /// The digest of no bytes, as FIPS 180 gives it.
    const NOTHING: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    /// A cache for so many contents of 1,000 bytes.
    fn contents(entries: usize) -> Arc<Contents> {
        Arc::new(Contents::new(entries * (1000 + PLACE_BYTES), 10_000))
    }

    fn content(byte: u8) -> Content {
        let bytes = Bytes::from(vec![byte; 1000]);
        Content { digest: Digest::of(&bytes), bytes }
    }

    fn metrics(contents: &Arc<Contents>) -> String {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(ContentMetrics(Arc::clone(contents))));
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        text
    }

    #[test]
    fn a_digest_reads_what_it_writes() {
        assert_eq!(Digest::of(b"").to_string(), NOTHING);
        assert_eq!(NOTHING.parse(), Ok(Digest::of(b"")));
        assert_eq!(NOTHING.to_uppercase().replace("SHA256", "sha256").parse(), Ok(Digest::of(b"")));
    }

    #[test]
    fn what_is_no_digest_is_refused() {
        let long = format!("{NOTHING}0");
        let strange = NOTHING.replace("e3", "+3");
        for text in ["", "sha256:", "e3b0c442", &NOTHING[7..], &NOTHING[..70], &long, &strange, "sha256:äöü", "md5:00"]
        {
            assert_eq!(text.parse::<Digest>(), Err(NotDigest), "{text}");
        }
    }

    #[test]
    fn what_was_unused_the_longest_goes_first() {
        let contents = contents(2);
        for byte in [1, 2] {
            contents.keep(content(byte));
        }
        assert_eq!(contents.find(&content(1).digest).unwrap(), content(1).bytes);
        contents.keep(content(3));
        let found = [1, 2, 3].map(|byte| contents.find(&content(byte).digest).is_some());
        assert_eq!(found, [true, false, true]);
    }

    #[test]
    fn a_content_that_is_kept_twice_counts_once_and_as_used() {
        let contents = contents(2);
        for byte in [1, 2, 1, 3] {
            contents.keep(content(byte));
        }
        assert_eq!([1, 2, 3].map(|byte| contents.find(&content(byte).digest).is_some()), [true, false, true]);
        assert_eq!(contents.lock().bytes, 2 * (1000 + PLACE_BYTES));
    }

    #[test]
    fn tiny_contents_do_not_take_more_memory_than_they_may() {
        let contents = contents(2);
        for byte in 0..=255 {
            let bytes = Bytes::from(vec![byte]);
            contents.keep(Content { digest: Digest::of(&bytes), bytes });
        }
        assert!(contents.lock().by_digest.len() <= 2 * (1000 + PLACE_BYTES) / PLACE_BYTES);
    }

    #[test]
    fn what_is_larger_than_the_cache_drops_nothing() {
        let contents = contents(1);
        contents.keep(content(1));
        let bytes = Bytes::from(vec![0; 2000]);
        contents.keep(Content { digest: Digest::of(&bytes), bytes });
        assert!(contents.find(&content(1).digest).is_some());
    }

    #[test]
    fn an_upload_is_its_chunks() {
        let contents = contents(1);
        let mut upload = contents.upload(1000);
        for _ in 0..100 {
            upload.add(&[7; 10]).unwrap();
        }
        let uploaded = upload.finish();
        assert_eq!((uploaded.digest, &uploaded.bytes), (content(7).digest, &content(7).bytes));
        contents.keep(uploaded);
        let found = contents.find(&content(7).digest).unwrap();
        assert_eq!(found.as_ptr(), contents.find(&content(7).digest).unwrap().as_ptr(), "it is shared, not copied");
    }

    #[test]
    fn an_upload_ends_at_its_bound() {
        let contents = contents(1);
        let mut upload = contents.upload(1000);
        upload.add(&[0; 1000]).unwrap();
        assert_eq!(upload.add(&[0]), Err(NotTaken::TooLarge { bytes_max: 1000 }));
        assert_eq!(upload.bytes().len(), 1000);
    }

    #[test]
    fn all_uploads_share_a_bound_and_give_back_what_they_took() {
        let contents = contents(1);
        let mut uploads = [contents.upload(9000), contents.upload(9000)];
        uploads[0].add(&[0; 6000]).unwrap();
        assert_eq!(uploads[1].add(&[0; 6000]), Err(NotTaken::Full { bytes_max: 10_000 }));
        let [first, mut second] = uploads;
        drop(first.finish());
        second.add(&[0; 6000]).unwrap();
        drop(second);
        assert_eq!(contents.uploading.load(Relaxed), 0);
    }

    #[test]
    fn the_metrics_tell_what_is_kept_and_what_was_dropped() {
        let contents = contents(2);
        for byte in [1, 2, 3] {
            contents.keep(content(byte));
        }
        let mut upload = contents.upload(1000);
        upload.add(&[0; 123]).unwrap();
        let text = metrics(&contents);
        for line in ["content_bytes 2512", "content_entries 2", "content_upload_bytes 123", "content_evictions_total 1"]
        {
            assert!(text.lines().any(|said| said == line), "{line} is missing in\n{text}");
        }
    }
}
