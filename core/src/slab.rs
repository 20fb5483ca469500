//! Entries of one kind, numbered by `u32` slots that stay put until freed.
//!
//! Chunks of a fixed size instead of one growing `Vec`: growing never copies entries (a pause for
//! every verification while the follower holds the table) and never leaves half of the memory
//! unused. What a slot means, and that nobody keeps a freed one, is left to the table.

/// Entries per chunk: of 128-byte keys, 512 KiB.
const CHUNK: usize = 1 << CHUNK_BITS;
const CHUNK_BITS: u32 = 12;

pub(crate) struct Slab<T> {
    chunks: Vec<Vec<T>>,
    free: Vec<u32>,
}

impl<T> Slab<T> {
    pub(crate) const fn new() -> Self {
        Self { chunks: Vec::new(), free: Vec::new() }
    }

    /// Entries in use.
    pub(crate) fn len(&self) -> usize {
        self.made() - self.free.len()
    }

    pub(crate) fn insert(&mut self, entry: T) -> u32 {
        if let Some(slot) = self.free.pop() {
            *self.at_mut(slot) = entry;
            return slot;
        }
        let slot = u32::try_from(self.made()).expect("memory ends before 2^32 entries");
        if self.chunks.last().is_none_or(|chunk| chunk.len() == CHUNK) {
            // The first chunk grows as it fills: an environment with three APIs costs three.
            let capacity = if self.chunks.is_empty() { 0 } else { CHUNK };
            self.chunks.push(Vec::with_capacity(capacity));
        }
        self.chunks.last_mut().expect("a chunk with room was just made").push(entry);
        slot
    }

    /// Frees a slot. Its entry, which the caller has emptied, stays until the slot is used again.
    pub(crate) fn free(&mut self, slot: u32) {
        self.free.push(slot);
    }

    #[inline]
    pub(crate) fn at(&self, slot: u32) -> &T {
        let chunk = self.chunks.get((slot >> CHUNK_BITS) as usize);
        chunk.and_then(|chunk| chunk.get(slot as usize % CHUNK)).expect("a slot names an entry")
    }

    #[inline]
    pub(crate) fn at_mut(&mut self, slot: u32) -> &mut T {
        let chunk = self.chunks.get_mut((slot >> CHUNK_BITS) as usize);
        chunk.and_then(|chunk| chunk.get_mut(slot as usize % CHUNK)).expect("a slot names an entry")
    }

    fn made(&self) -> usize {
        self.chunks.last().map_or(0, |last| (self.chunks.len() - 1) * CHUNK + last.len())
    }
}
