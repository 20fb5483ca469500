//! The counter file: how often each key was verified, kept where neither a `kill -9` nor a
//! database that is away can lose it, without a system call on the way.
//!
//! A key's counts live in a *cell* of a memory-mapped file (`cell.rs` has the layout), so a
//! count is a few stores to memory that the kernel keeps when the process dies. Which file that
//! is, and that it is this process's, is agreed with the database when it is opened
//! ([`Opened`]). Cells come in *segments* of 1 MiB (`segment.rs`) that get their blocks on the
//! disk before they are mapped (`map.rs`, the one file with unsafe code).
//!
//! This module knows ids as sixteen bytes, times as µs since 1970, refusals as numbers. It has
//! no clock, no async and no SQL: the verify path calls [`Counters::count_valid`], and a
//! background task calls the rest:
//!
//! - [`maintain`](Counters::maintain) every second, which keeps segments ready so that the
//!   verify path does not wait for the file system, and moves counts from memory to the file
//!   when the disk has room again;
//! - [`sync`](Counters::sync) every second;
//! - [`take_changed`](Counters::take_changed) every ten, and the database's transaction.
//!
//! **What is lost when.** The process dies, at whatever instruction: nothing, except that a
//! count whose caller had not been answered may or may not be there. The operating system
//! crashes or the power fails: counts since the last `sync` that returned, about one second's;
//! and as pages are written in any order, counts of one cell may then be of slightly different
//! moments. The database, which is flushed to, may know more then: [`Counters::raise`]. The
//! disk is full or the file cannot be written: counts go on in memory and are lost when the
//! process dies before they are flushed or moved to the file; [`Health`] says so meanwhile.
//!
//! **Threads.** A cell is changed and read under one of 64 locks, chosen by the key's hash; each
//! is held for some ten nanoseconds, except when a key is counted for the very first time and
//! no segment is ready. All 64 are taken to move a segment from memory to the file. Locks are
//! taken in the order `maintenance` or `syncing`, a stripe, `growing`, `trouble`. They live in
//! the process, so a killed one leaves nothing locked. Bitmaps of changed cells need no order of
//! their own: who takes a bit passes through the cell's lock before it reads the cell, so either
//! it sees the count, or the count comes later, finds the bit cleared and sets it again.

mod cell;
mod file;
mod flush;
mod map;
mod segment;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use hashbrown::HashTable;

use cell::{CELLS_PER_SEGMENT, address_words, identity_hash};
use segment::{Place, SEGMENTS_MAX, Segment};

pub use cell::{REFUSALS, Totals};
pub(crate) use file::NAME as FILE_NAME;
pub use file::{Claimed, FileId, Generation, Opened};
pub use flush::{Batch, Changed, FlushCursor};

/// What a key's handle holds while its cell is not known.
pub const NO_CELL: u32 = u32::MAX;

/// How many keys one file can count: 16,384 × 5,376, 88 million.
const CELLS_MAX: u32 = (SEGMENTS_MAX * CELLS_PER_SEGMENT) as u32;
const STRIPES: usize = 64;
/// How far ahead of use `maintain` makes segments at most: 16 MiB of disk.
const AHEAD_SEGMENTS_MAX: u32 = 16;

/// The open counter file. Shared by all that verify.
pub struct Counters {
    folder: file::Folder,
    file_id: FileId,
    generation: Generation,
    /// Set at the start, or by `maintain` once a file could be made.
    file: OnceLock<File>,
    segments: Box<[OnceLock<Box<Segment>>]>,
    /// One more than the highest segment there is.
    segments_end: AtomicUsize,
    /// The cell that the next new key gets. A cell is never given twice.
    next_cell: AtomicU32,
    stripes: Box<[Stripe]>,
    growing: Mutex<()>,
    maintenance: Mutex<Maintenance>,
    syncing: Mutex<()>,
    trouble: Mutex<Trouble>,
    uncounted: AtomicU64,
    unusable_cells: u32,
}

/// A lock over the cells of 1/64 of the keys, and where they are. The table holds numbers of
/// cells and finds the ids in the cells themselves: 5 to 11 bytes for each key. On its own pair
/// of cache lines, since neighbours are locked by other threads.
#[repr(align(128))]
struct Stripe(Mutex<HashTable<u32>>);

struct Maintenance {
    /// What `next_cell` was when `maintain` last ran.
    next_cell: u32,
}

/// Why counts are not as safe as they should be, for as long as it lasts.
#[derive(Default)]
struct Trouble {
    /// Of the file as it was found; lasts until the next start.
    opening: Option<String>,
    growth: Option<String>,
    sync: Option<String>,
}

/// Whether the counts are as safe as promised.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// Cells given to keys so far.
    pub cells: u32,
    /// How many there can be in one file.
    pub cells_max: u32,
    /// Whether there is a file at all.
    pub has_file: bool,
    /// Segments of 5,376 keys whose counts are in memory only.
    pub segments_in_memory: usize,
    /// Cells that were found half written or unreadable when the file was opened. Each half
    /// written one is a verification that was never answered.
    pub unusable_cells: u32,
    /// Verdicts that could not be counted at all, for want of cells or of memory.
    pub uncounted: u64,
    /// The last sync failed; the next successful one puts that right.
    pub unsynced: bool,
    /// What the operator should know, if anything is wrong.
    pub cause: Option<String>,
}

impl Health {
    /// Whether a crash of the process, or for `unsynced` of the machine, would lose counts for
    /// which the promise is that it does not. Over once `maintain` has moved all to the file.
    pub fn counts_at_risk(&self) -> bool {
        !self.has_file || self.segments_in_memory > 0 || self.unsynced || self.uncounted > 0
    }
}

/// Locks. A thread that panicked in here left a whole cell, like a process that was killed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Counters {
    /// Maps the segments of a claimed file and finds whose its cells are.
    fn load(
        folder: file::Folder,
        header: file::Header,
        file: Option<File>,
        trouble: Option<io::Error>,
    ) -> (Counters, FlushCursor) {
        let mut counters = Counters {
            folder,
            file_id: header.file_id,
            generation: Generation::from_database(header.generation),
            file: file.map(OnceLock::from).unwrap_or_default(),
            segments: (0..SEGMENTS_MAX).map(|_| OnceLock::new()).collect(),
            segments_end: AtomicUsize::new(0),
            next_cell: AtomicU32::new(0),
            stripes: (0..STRIPES).map(|_| Stripe(Mutex::default())).collect(),
            growing: Mutex::default(),
            maintenance: Mutex::new(Maintenance { next_cell: 0 }),
            syncing: Mutex::default(),
            trouble: Mutex::default(),
            uncounted: AtomicU64::new(0),
            unusable_cells: 0,
        };
        lock(&counters.trouble).sync = trouble.map(|error| error.to_string());
        let (next_cell, unusable_cells) = counters.load_segments();
        counters.next_cell = AtomicU32::new(next_cell);
        counters.unusable_cells = unusable_cells;
        lock(&counters.maintenance).next_cell = next_cell;
        counters.maintain();
        (counters, FlushCursor::start())
    }

    /// Returns the first cell that was never used, and how many cells are of no use.
    fn load_segments(&self) -> (u32, u32) {
        let Some(file) = self.file.get() else {
            return (0, 0);
        };
        let segments = match file.metadata() {
            Ok(metadata) => segment::segments_in(metadata.len()),
            Err(error) => {
                // The file was read a moment ago. Without its length nothing in it can be told
                // from a fresh cell, so no cell is given away at all.
                lock(&self.trouble).opening = Some(error.to_string());
                return (CELLS_MAX, 0);
            }
        };
        let (mut next_cell, mut unusable_cells) = (0, 0);
        for at in 0..segments {
            let first_cell = (at * CELLS_PER_SEGMENT) as u32;
            let end_cell = first_cell + CELLS_PER_SEGMENT as u32;
            match Segment::existing(file, at) {
                Ok((segment, cause)) => {
                    self.publish(at, segment);
                    if let Some(cause) = cause {
                        lock(&self.trouble).growth = Some(cause.to_string());
                    }
                }
                Err(error) => {
                    lock(&self.trouble).opening =
                        Some(format!("segment {at} of the counter file is unreadable: {error}"));
                    next_cell = end_cell;
                    unusable_cells += CELLS_PER_SEGMENT as u32;
                }
            }
            for number in first_cell..end_cell {
                let Some(place) = self.place(number) else {
                    continue;
                };
                if let Some((env, key)) = place.cell.identity() {
                    place.unflushed();
                    self.index(&mut self.stripe(identity_hash(&env, &key)), number);
                    next_cell = number + 1;
                } else if !place.cell.is_blank() {
                    unusable_cells += 1;
                    next_cell = number + 1;
                }
            }
        }
        (next_cell, unusable_cells)
    }

    /// The file's id in the database.
    pub fn file_id(&self) -> FileId {
        self.file_id
    }

    /// What the file's row in the database holds for as long as the file is this process's. A
    /// flush that finds another must not write: see `file.rs` on the fence.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// Counts a success of a key and returns how many this file has for it now, at least 1; or 0
    /// if it could not be counted, for which see [`Health::uncounted`].
    ///
    /// `handle` is a hint, kept next to the key, that saves looking for the cell: [`NO_CELL`] at
    /// first, set here. One that is lost, stale or another key's costs a look-up and does no
    /// harm. Takes some 12 ns when the cell is in the processor's cache, 60 when two threads count
    /// the same key without pause; a key's first time is about 2 µs.
    #[inline]
    pub fn count_valid(
        &self,
        handle: &AtomicU32,
        env: &[u8; 16],
        key: &[u8; 16],
        at_us: i64,
        address: Option<IpAddr>,
    ) -> u64 {
        let address = address_words(address);
        let counted = self.with_cell(handle, env, key, |place| {
            place.changed();
            place.cell.count_valid(at_us, address)
        });
        counted.unwrap_or(0)
    }

    /// Counts a refusal of a key that exists. `refusal` is `Refusal as u8`, 1 to
    /// [`REFUSALS`]; others, like that of an unknown key, have no count.
    #[inline]
    pub fn count_refused(&self, handle: &AtomicU32, env: &[u8; 16], key: &[u8; 16], refusal: u8) {
        let Some(index) = usize::from(refusal).checked_sub(1).filter(|index| *index < REFUSALS)
        else {
            return;
        };
        self.with_cell(handle, env, key, |place| {
            place.changed();
            place.cell.count_refused(index);
        });
    }

    /// Lifts a key's counts to at least `known`, which is what the database has *for this file's
    /// id*. It has more than the file after a power failure, or when counts that were only in
    /// memory had been flushed; without this, new counts would stay below what the database has
    /// and be taken for old ones. For each row of the file's id, before the first verification.
    ///
    /// If the file has nothing that the database lacks, the cell counts as flushed, so that a
    /// start does not write every row again.
    pub fn raise(&self, handle: &AtomicU32, env: &[u8; 16], key: &[u8; 16], known: &Totals) {
        self.with_cell(handle, env, key, |place| {
            let before = place.cell.totals();
            place.cell.raise(known);
            let after = place.cell.totals();
            if after != before {
                place.changed();
            }
            if after == *known {
                place.flushed();
            } else {
                place.unflushed();
            }
        });
    }

    /// The counts of a cell, all of one moment.
    pub fn read(&self, cell: u32) -> Option<Totals> {
        self.cell(cell).map(|(_, _, totals)| totals)
    }

    /// The cell of a key that was ever counted, to read it or to set a handle.
    pub fn cell_of(&self, env: &[u8; 16], key: &[u8; 16]) -> Option<u32> {
        let hash = identity_hash(env, key);
        self.find(&self.stripe(hash), hash, env, key)
    }

    /// Every key that has a cell: cell, environment, key, counts.
    pub fn existing(&self) -> impl Iterator<Item = (u32, [u8; 16], [u8; 16], Totals)> {
        (0..self.next_cell.load(Ordering::Relaxed)).filter_map(|number| {
            self.cell(number).map(|(env, key, totals)| (number, env, key, totals))
        })
    }

    /// How the counts are.
    pub fn health(&self) -> Health {
        let in_memory = (0..self.segments_end())
            .filter_map(|at| self.segment(at))
            .filter(|segment| !segment.is_in_file());
        let segments_in_memory = in_memory.count();
        let trouble = lock(&self.trouble);
        Health {
            cells: self.next_cell.load(Ordering::Relaxed),
            cells_max: CELLS_MAX,
            has_file: self.file.get().is_some(),
            segments_in_memory,
            unusable_cells: self.unusable_cells,
            uncounted: self.uncounted.load(Ordering::Relaxed),
            unsynced: trouble.sync.is_some(),
            cause: [&trouble.growth, &trouble.sync, &trouble.opening]
                .into_iter()
                .flatten()
                .next()
                .cloned(),
        }
    }

    /// Makes the file if there is none yet, moves segments from memory into it, and keeps
    /// segments ready: one more than is in use, and twice as many cells as were given away since
    /// the last call. Blocks on the file system. What cannot be done is in [`Self::health`] and
    /// is tried again next time.
    pub fn maintain(&self) {
        let mut maintenance = lock(&self.maintenance);
        if let Err(error) = self.make_file().and_then(|file| self.move_to_file(file)) {
            lock(&self.trouble).growth = Some(error.to_string());
            return;
        }
        let next_cell = self.next_cell.load(Ordering::Relaxed);
        let given = next_cell.saturating_sub(maintenance.next_cell);
        maintenance.next_cell = next_cell;
        let per_segment = CELLS_PER_SEGMENT as u32;
        let ahead = (1 + given.saturating_mul(2) / per_segment).min(AHEAD_SEGMENTS_MAX);
        let in_use = next_cell / per_segment;
        for at in (in_use..=in_use + ahead).take_while(|at| (*at as usize) < SEGMENTS_MAX) {
            if self.grow(at as usize, None).is_none() {
                return;
            }
        }
        lock(&self.trouble).growth = None;
    }

    /// Makes the counts so far outlast a crash of the operating system. Blocks on the disk;
    /// returns at once if nothing was counted since the last time. When two call at once the
    /// second waits for the first, so either may answer for what was counted before its call.
    /// Counts in memory are left out: they have [`Health`].
    ///
    /// Errors: the disk's. The pages concerned are made dirty again, so that a later call writes
    /// them, since the kernel reports a failed page only once and then takes it for clean.
    pub fn sync(&self) -> io::Result<()> {
        let _one_at_a_time = lock(&self.syncing);
        let Some(file) = self.file.get() else {
            return Ok(());
        };
        let mut taken = Vec::new();
        for segment in (0..self.segments_end()).filter_map(|at| self.segment(at)) {
            if segment.is_in_file() {
                let pages = segment.take_unsynced();
                if pages.iter().any(|word| *word != 0) {
                    taken.push((segment, pages));
                }
            }
        }
        if taken.is_empty() && lock(&self.trouble).sync.is_none() {
            return Ok(());
        }
        // Whoever saw a bit still set has finished its store once its lock was free.
        for stripe in &self.stripes {
            drop(lock(&stripe.0));
        }
        let synced = file.sync_data();
        for (segment, pages) in &taken {
            // Writing a page out makes it read-only, and the next count there would fault and
            // wait for the file system's journal. A page that was counted in during the last
            // second is made writable again here, off the verify path.
            segment.redirty(pages);
            if synced.is_err() {
                segment.put_back_unsynced(pages);
            }
        }
        lock(&self.trouble).sync = synced.as_ref().err().map(ToString::to_string);
        synced
    }

    /// Finds or makes the key's cell and changes it under its lock. None, counted as uncounted:
    /// there is no cell to be had.
    #[inline]
    fn with_cell<T>(
        &self,
        handle: &AtomicU32,
        env: &[u8; 16],
        key: &[u8; 16],
        change: impl FnOnce(&Place<'_>) -> T,
    ) -> Option<T> {
        let hash = identity_hash(env, key);
        let mut stripe = self.stripe(hash);
        let hinted = self.place(handle.load(Ordering::Relaxed));
        let place = match hinted.filter(|place| place.cell.is_of(hash)) {
            Some(place) => place,
            None => self.find_or_give(&mut stripe, hash, handle, env, key)?,
        };
        Some(change(&place))
    }

    #[cold]
    fn find_or_give(
        &self,
        stripe: &mut HashTable<u32>,
        hash: u64,
        handle: &AtomicU32,
        env: &[u8; 16],
        key: &[u8; 16],
    ) -> Option<Place<'_>> {
        // Two threads with the same new key wait for the same stripe, and the second finds the
        // cell that the first made.
        let number = self.find(stripe, hash, env, key).or_else(|| {
            let given = self.give(env, key);
            match given {
                Some(number) => self.index(stripe, number),
                None => {
                    self.uncounted.fetch_add(1, Ordering::Relaxed);
                }
            }
            given
        })?;
        handle.store(number, Ordering::Relaxed);
        self.place(number)
    }

    fn give(&self, env: &[u8; 16], key: &[u8; 16]) -> Option<u32> {
        let next = |number: u32| (number < CELLS_MAX).then_some(number + 1);
        let number =
            self.next_cell.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).ok()?;
        let at = number as usize / CELLS_PER_SEGMENT;
        if self.segment(at).is_none() {
            self.grow(at, Some(Segment::of_memory))?;
        }
        let place = self.place(number)?;
        place.cell.give(env, key, &Totals::default());
        place.changed();
        Some(number)
    }

    fn find(
        &self,
        stripe: &HashTable<u32>,
        hash: u64,
        env: &[u8; 16],
        key: &[u8; 16],
    ) -> Option<u32> {
        let is_key =
            |number: &u32| self.place(*number).is_some_and(|place| place.cell.is_key(env, key));
        stripe.find(hash, is_key).copied()
    }

    /// Notes in the stripe of its key where a cell is.
    fn index(&self, stripe: &mut HashTable<u32>, number: u32) {
        let hash_of = |number: &u32| {
            let identity = self.place(*number).and_then(|place| place.cell.identity());
            identity.map_or(0, |(env, key)| identity_hash(&env, &key))
        };
        stripe.insert_unique(hash_of(&number), number, hash_of);
    }

    /// A cell's key and counts, read under its lock.
    fn cell(&self, number: u32) -> Option<([u8; 16], [u8; 16], Totals)> {
        let (env, key) = self.place(number)?.cell.identity()?;
        let _stripe = self.stripe(identity_hash(&env, &key));
        // Found again, since the segment may have moved before the lock was ours.
        Some((env, key, self.place(number)?.cell.totals()))
    }

    #[inline]
    fn stripe(&self, hash: u64) -> MutexGuard<'_, HashTable<u32>> {
        // The hash table in the stripe uses the lowest and the highest bits.
        let at = (hash >> 40) as usize % STRIPES;
        lock(&self.stripes.get(at).expect("there are 64 stripes").0)
    }

    #[inline]
    fn place(&self, number: u32) -> Option<Place<'_>> {
        self.segment(number as usize / CELLS_PER_SEGMENT)?
            .place(number as usize % CELLS_PER_SEGMENT)
    }

    #[inline]
    fn segment(&self, at: usize) -> Option<&Segment> {
        self.segments.get(at)?.get().map(Box::as_ref)
    }

    fn segments_end(&self) -> usize {
        self.segments_end.load(Ordering::Relaxed)
    }

    /// Makes segment `at` unless it exists: in the file, or else by `instead`.
    fn grow(
        &self,
        at: usize,
        instead: Option<fn() -> io::Result<Box<Segment>>>,
    ) -> Option<&Segment> {
        let _one_at_a_time = lock(&self.growing);
        if let Some(segment) = self.segment(at) {
            return Some(segment);
        }
        let made = match self.file.get() {
            Some(file) => Segment::of_file(file, at, self.file_bytes_max()),
            None => Err(io::Error::new(io::ErrorKind::NotFound, "there is no counter file")),
        };
        let segment = match (made, instead) {
            (Ok(segment), None) => {
                segment.prefault();
                segment
            }
            (Ok(segment), Some(_)) => segment,
            (Err(error), instead) => {
                lock(&self.trouble).growth = Some(error.to_string());
                instead?().ok()?
            }
        };
        self.publish(at, segment);
        self.segment(at)
    }

    fn publish(&self, at: usize, segment: Box<Segment>) {
        if let Some(slot) = self.segments.get(at) {
            // OK to ignore: one grows at a time, and looks first.
            let _ = slot.set(segment);
            self.segments_end.fetch_max(at + 1, Ordering::Relaxed);
        }
    }

    fn make_file(&self) -> io::Result<&File> {
        if let Some(file) = self.file.get() {
            return Ok(file);
        }
        let mut header = file::Header {
            file_id: self.file_id,
            generation: self.generation.to_database(),
            pending: self.generation.to_database(),
            revision: 0,
        };
        let file = self.folder.create(&mut header)?;
        Ok(self.file.get_or_init(|| file))
    }

    fn move_to_file(&self, file: &File) -> io::Result<()> {
        for at in 0..self.segments_end() {
            let Some(segment) = self.segment(at) else {
                continue;
            };
            if segment.is_in_file() {
                continue;
            }
            let room = segment.room_in_file(file, at, self.file_bytes_max())?;
            let stripes: Vec<_> = self.stripes.iter().map(|stripe| lock(&stripe.0)).collect();
            segment.move_to(room);
            drop(stripes);
        }
        Ok(())
    }

    fn file_bytes_max(&self) -> u64 {
        self.folder.file_bytes_max
    }
}
