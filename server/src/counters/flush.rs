//! Which cells the database does not know yet, in batches that cannot be forgotten half-way.
//! Writing them to the database, and not counting a batch for a key that is gone, is the
//! caller's.

use super::Counters;
use super::cell::{CELLS_PER_SEGMENT, Totals};

/// Where the round of flushing is. There is one for each [`Counters`], which makes its owner the
/// only one that flushes: two at once could each believe that the other's batch is written.
#[derive(Debug)]
pub struct FlushCursor {
    next: usize,
}

/// A cell that changed, with all its counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changed {
    /// The environment's id.
    pub env: [u8; 16],
    /// The key's id.
    pub key: [u8; 16],
    /// Cumulative counts in this file.
    pub totals: Totals,
}

/// Changed cells that are being written to the database. Dropped without
/// [`confirm`](Self::confirm) (an error, a cancelled task), it marks them as changed again and
/// begins the round anew, so that a round that ends has left nothing out.
#[must_use = "a batch that is not confirmed will be offered again"]
pub struct Batch<'a> {
    counters: &'a Counters,
    cursor: &'a mut FlushCursor,
    taken: Vec<usize>,
    changed: Vec<Changed>,
}

impl FlushCursor {
    pub(super) fn start() -> FlushCursor {
        FlushCursor { next: 0 }
    }

    /// Begins the round anew, as is needed when *everything* counted so far is to be flushed
    /// (at a shutdown, or for an exact answer) and the last round was left before its end.
    pub fn restart(&mut self) {
        self.next = 0;
    }
}

impl Counters {
    /// The next up to `max` (at least 1) cells that changed since they were last confirmed. An
    /// empty batch ends the round, and the next call begins another; a round offers no cell
    /// twice, so it ends however fast counts come in.
    ///
    /// A count that comes in after its cell was taken marks the cell again. Costs one word read
    /// for 64 cells and one lock for each changed one.
    pub fn take_changed<'a>(&'a self, cursor: &'a mut FlushCursor, max: usize) -> Batch<'a> {
        let mut batch = Batch { counters: self, cursor, taken: Vec::new(), changed: Vec::new() };
        let end = self.segments_end() * CELLS_PER_SEGMENT;
        while batch.cursor.next < end && batch.taken.len() < max {
            let segment_at = batch.cursor.next / CELLS_PER_SEGMENT;
            let room = max - batch.taken.len();
            let within = batch.cursor.next % CELLS_PER_SEGMENT;
            let taken = match self.segment(segment_at) {
                Some(segment) => segment.take_unflushed(within, room),
                None => Vec::new(),
            };
            batch.cursor.next = match taken.last() {
                Some(last) if taken.len() == room => segment_at * CELLS_PER_SEGMENT + last + 1,
                _ => (segment_at + 1) * CELLS_PER_SEGMENT,
            };
            batch.taken.extend(taken.iter().map(|cell| segment_at * CELLS_PER_SEGMENT + cell));
        }
        if batch.taken.is_empty() {
            batch.cursor.restart();
        }
        for &number in &batch.taken {
            if let Some((env, key, totals)) = u32::try_from(number).ok().and_then(|n| self.cell(n))
            {
                batch.changed.push(Changed { env, key, totals });
            }
        }
        batch
    }
}

impl Batch<'_> {
    /// What to write. The values are cumulative, so writing one twice does no harm.
    pub fn changed(&self) -> &[Changed] {
        &self.changed
    }

    /// Whether the round is over.
    pub fn is_empty(&self) -> bool {
        self.taken.is_empty()
    }

    /// The database has all of it, durably.
    pub fn confirm(mut self) {
        self.taken.clear();
    }
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        if self.taken.is_empty() {
            return;
        }
        self.cursor.restart();
        for number in self.taken.drain(..) {
            if let Some(place) = u32::try_from(number).ok().and_then(|n| self.counters.place(n)) {
                place.unflushed();
            }
        }
    }
}
