//! Memory for weights and activations: aligned for vectors and, where it is large, on huge pages.
//!
//! With pages of 4 KB a matrix of weights takes more entries than the first levels of a CPU's translation cache have, so
//! that streaming it waits for page tables; of 2 MB pages a whole model takes a few dozen.

#![expect(unsafe_code, reason = "memory with an alignment of its own")]

use std::{
    alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error},
    ptr::NonNull,
    sync::Arc,
};

/// Cache lines of all CPUs of interest, and the widest vectors.
const ALIGNMENT: usize = 64;
const HUGE_PAGE: usize = 2 << 20;

/// Memory of which weights and matrices take their parts.
#[derive(Debug)]
pub struct Reserve {
    memory: Arc<Memory>,
    used: usize,
}

/// Zeroed memory of its own, in 32-bit words.
#[derive(Debug)]
pub(crate) struct Block {
    start: NonNull<u32>,
    words: usize,
    /// Keeps the memory that this is a part of.
    _memory: Arc<Memory>,
}

#[derive(Debug)]
struct Memory {
    start: NonNull<u8>,
    layout: Layout,
}

/// What a word may be seen as.
///
/// # Safety
///
/// Any bits are a value, the alignment is at most that of a word, and a word is a whole number of them.
pub(crate) unsafe trait Plain: Copy {}

// SAFETY: numbers of 1, 2 and 4 bytes.
unsafe impl Plain for u8 {}
// SAFETY: as above.
unsafe impl Plain for i8 {}
// SAFETY: as above.
unsafe impl Plain for u16 {}
// SAFETY: as above.
unsafe impl Plain for u32 {}
// SAFETY: as above.
unsafe impl Plain for f32 {}

// === impl Reserve ===

impl Reserve {
    /// Zeroed memory, from which blocks are taken until it is used up.
    ///
    /// # Panics
    ///
    /// If that is more than there are addresses.
    #[must_use]
    pub fn new(bytes: usize) -> Self {
        Self { memory: Arc::new(Memory::zeroed(bytes)), used: 0 }
    }

    /// The next so many words; from elsewhere if they are not there any more.
    pub(crate) fn take(&mut self, words: usize) -> Block {
        let bytes = Self::bytes(words);
        if self.memory.layout.size() - self.used < bytes {
            return Reserve::new(bytes).take(words);
        }
        // SAFETY: the sum is within the allocation, and no other block has been or will be given these bytes.
        let start = unsafe { self.memory.start.add(self.used) }.cast();
        self.used += bytes;
        Block { start, words, _memory: Arc::clone(&self.memory) }
    }

    /// What a block of so many words takes.
    pub(crate) fn bytes(words: usize) -> usize {
        round_up(times(words, size_of::<u32>()), ALIGNMENT)
    }
}

// === impl Block ===

impl Block {
    pub(crate) fn new(words: usize) -> Self {
        Reserve::new(Reserve::bytes(words)).take(words)
    }

    pub(crate) fn get<T: Plain>(&self) -> &[T] {
        // SAFETY: the words are initialised, aligned, and lent as long as this is; any bits are a T.
        unsafe {
            std::slice::from_raw_parts(self.start.as_ptr().cast(), self.words * size_of::<u32>() / size_of::<T>())
        }
    }

    pub(crate) fn get_mut<T: Plain>(&mut self) -> &mut [T] {
        let length = self.words * size_of::<u32>() / size_of::<T>();
        // SAFETY: as above, and nobody else has this part of the memory.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr().cast(), length) }
    }
}

// SAFETY: a block owns its words, as a boxed slice does.
unsafe impl Send for Block {}
// SAFETY: as above.
unsafe impl Sync for Block {}

// === impl Memory ===

impl Memory {
    fn zeroed(bytes: usize) -> Self {
        let large = bytes >= HUGE_PAGE;
        let (size, align) = if large { (round_up(bytes, HUGE_PAGE), HUGE_PAGE) } else { (bytes.max(1), ALIGNMENT) };
        #[expect(clippy::expect_used, reason = "the alignments are powers of two; the size is that of a model")]
        let layout = Layout::from_size_align(size, align).expect("less than the address space");
        // SAFETY: the size is not 0.
        let start = unsafe { if large { std::alloc::alloc(layout) } else { alloc_zeroed(layout) } };
        let Some(start) = NonNull::new(start) else { handle_alloc_error(layout) };
        if large {
            advise_huge(start, size);
            // Only now: the first touch decides what pages there are.
            // SAFETY: these bytes have just been allocated.
            unsafe { start.write_bytes(0, size) };
        }
        Self { start, layout }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout; the last block is gone.
        unsafe { dealloc(self.start.as_ptr(), self.layout) }
    }
}

// SAFETY: memory that no thread is bound to; blocks divide it among themselves.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

/// `count` parts of `each`. What does not fit into a number must not become a small one: shapes decide how much memory is
/// taken, and kernels write as much as the shape says.
///
/// # Panics
///
/// If the product is more than there are addresses.
pub(crate) fn times(count: usize, each: usize) -> usize {
    let product = count.checked_mul(each).filter(|product| *product <= isize::MAX.cast_unsigned());
    #[expect(clippy::expect_used, reason = "no memory has such a shape")]
    product.expect("less than the address space")
}

/// The next multiple, for the same reason.
///
/// # Panics
///
/// If it is more than there are addresses.
pub(crate) fn round_up(count: usize, step: usize) -> usize {
    times(count.div_ceil(step), step)
}

/// Asks for huge pages. Where there are none it is as before, only slower.
fn advise_huge(start: NonNull<u8>, bytes: usize) {
    #[cfg(target_os = "linux")]
    // SAFETY: whole pages of an allocation that is ours; the advice changes no contents.
    unsafe {
        let _ = rustix::mm::madvise(start.as_ptr().cast(), bytes, rustix::mm::Advice::LinuxHugepage);
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (start, bytes);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Matrix, Precision, Scratch};

    #[test]
    fn blocks_are_zeroed_aligned_and_apart() {
        let mut reserve = Reserve::new(3 << 20);
        let mut blocks: Vec<Block> = (1..20).map(|i| reserve.take(i * 1000)).collect();
        for (i, block) in blocks.iter_mut().enumerate() {
            assert!(block.get::<u8>().iter().all(|byte| *byte == 0));
            assert_eq!(block.start.as_ptr() as usize % ALIGNMENT, 0);
            block.get_mut::<u32>().fill(i as u32);
        }
        for (i, block) in blocks.iter().enumerate() {
            assert!(block.get::<u32>().iter().all(|word| *word == i as u32), "{i}");
            assert_eq!(block.get::<u16>().len(), (i + 1) * 2000);
        }
    }

    #[test]
    fn shapes_beyond_the_address_space_are_refused() {
        let attempts: [fn(); 5] = [
            || drop(Reserve::new(usize::MAX)),
            || drop(Block::new(1 << 62)),
            || drop(Matrix::zeros(Precision::F32, 1 << 57, 16)),
            || drop(Matrix::zeros(Precision::F32, 1, usize::MAX)),
            || drop(Scratch::new(usize::MAX, 32)),
        ];
        for (number, attempt) in attempts.into_iter().enumerate() {
            assert!(std::panic::catch_unwind(attempt).is_err(), "attempt {number}");
        }
    }

    #[test]
    fn a_reserve_that_is_used_up_takes_from_elsewhere() {
        let mut reserve = Reserve::new(64);
        let first = reserve.take(16);
        assert_eq!(reserve.take(17).get::<f32>(), [0.0; 17]);
        drop(reserve);
        assert_eq!(first.get::<u32>(), [0; 16]);
    }
}
