//! A segment: 5,376 cells in one mapping, with the two bitmaps that say which of them changed.
//! Knows how to get blocks for its range of the file, and how to go on in memory without them.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use super::cell::{CELLS_PER_PAGE, CELLS_PER_SEGMENT, Cell, PAGES_PER_SEGMENT, Page};
use super::map::{Region, SEGMENT_BYTES};

/// Where the first segment begins. The header needs 4,096 bytes; a mapping must begin at a
/// multiple of the system's page size, of which 65,536 bytes is the largest in use.
const SEGMENTS_AT_BYTES: u64 = 65_536;

/// How many segments a file can have: 16,384 MiB and 88 million keys. The table of segments
/// takes 16 bytes for each, 256 KiB.
pub(super) const SEGMENTS_MAX: usize = 16_384;

pub(super) struct Segment {
    first: Region,
    first_is_of_file: bool,
    /// Where a segment that began in memory went on once the file could take it. The memory
    /// stays mapped, so that nobody's reference into it dangles.
    moved: OnceLock<Region>,
    /// One bit for each cell that changed since it was last taken for a flush.
    unflushed: [AtomicU64; CELLS_PER_SEGMENT / 64],
    /// One bit for each page that changed since the last sync.
    unsynced: [AtomicU64; PAGES_PER_SEGMENT / 64],
}

/// A cell together with where its changes are to be noted.
pub(super) struct Place<'a> {
    pub(super) cell: &'a Cell,
    segment: &'a Segment,
    /// 0..5,376.
    within: usize,
}

/// Where segment `index` begins in the file, in bytes.
pub(super) fn offset(index: usize) -> u64 {
    SEGMENTS_AT_BYTES + index as u64 * SEGMENT_BYTES as u64
}

/// How many whole segments a file of this length has.
pub(super) fn segments_in(file_bytes: u64) -> usize {
    let segments = file_bytes.saturating_sub(SEGMENTS_AT_BYTES) / SEGMENT_BYTES as u64;
    usize::try_from(segments).map_or(SEGMENTS_MAX, |segments| segments.min(SEGMENTS_MAX))
}

/// Sees to it that every byte of segment `index` has its block on the disk, without changing
/// what is there. The file grows if it must, up to `file_bytes_max`.
fn reserve(file: &File, index: usize, file_bytes_max: u64) -> io::Result<()> {
    let (start, bytes) = (offset(index), SEGMENT_BYTES as u64);
    let metadata = file.metadata()?;
    if start + bytes > file_bytes_max.max(metadata.len()) {
        return Err(io::Error::new(
            io::ErrorKind::StorageFull,
            format!("the counter file may not grow beyond {file_bytes_max} bytes"),
        ));
    }
    match rustix::fs::fallocate(file, FallocateFlags::empty(), start, bytes) {
        Ok(()) => Ok(()),
        // The file system has no fallocate (NFS 3): write the zeros. Within the file that would
        // wipe cells, so there it must do that the file is as a whole not sparse.
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => {
            if metadata.len() <= start {
                file.write_all_at(&vec![0; SEGMENT_BYTES], start)
            } else if metadata.len() >= start + bytes
                && metadata.blocks() * 512 >= metadata.len() - SEGMENTS_AT_BYTES
            {
                Ok(())
            } else {
                Err(Errno::OPNOTSUPP.into())
            }
        }
        Err(other) => Err(other.into()),
    }
}

impl Segment {
    fn on(first: Region, first_is_of_file: bool) -> Box<Segment> {
        Box::new(Segment {
            first,
            first_is_of_file,
            moved: OnceLock::new(),
            unflushed: [const { AtomicU64::new(0) }; CELLS_PER_SEGMENT / 64],
            unsynced: [const { AtomicU64::new(0) }; PAGES_PER_SEGMENT / 64],
        })
    }

    /// Reserves and maps segment `index` of the file.
    pub(super) fn of_file(
        file: &File,
        index: usize,
        file_bytes_max: u64,
    ) -> io::Result<Box<Segment>> {
        reserve(file, index, file_bytes_max)?;
        Ok(Segment::on(Region::of_file(file, offset(index))?, true))
    }

    /// A blank segment that dies with the process.
    pub(super) fn of_memory() -> io::Result<Box<Segment>> {
        Ok(Segment::on(Region::of_memory()?, false))
    }

    /// Maps segment `index` of the file where one can be had, in the file if its blocks can be
    /// reserved, else as a copy in memory with the reason. A range that cannot be read at all is
    /// an error: mapped, it would be a SIGBUS.
    pub(super) fn existing(
        file: &File,
        index: usize,
    ) -> io::Result<(Box<Segment>, Option<io::Error>)> {
        let mut piece = [0; 65_536];
        for at in (0..SEGMENT_BYTES as u64).step_by(piece.len()) {
            file.read_exact_at(&mut piece, offset(index) + at)?;
        }
        // A limit of 0 forbids growing, which an existing segment does not need.
        match Segment::of_file(file, index, 0) {
            Ok(segment) => Ok((segment, None)),
            Err(cause) => {
                let copy = Region::copy_of_file(file, offset(index))?;
                Ok((Segment::on(copy, false), Some(cause)))
            }
        }
    }

    pub(super) fn is_in_file(&self) -> bool {
        self.first_is_of_file || self.moved.get().is_some()
    }

    fn region(&self) -> &Region {
        self.moved.get().unwrap_or(&self.first)
    }

    /// The cell at `within`, 0..5,376.
    #[inline]
    pub(super) fn place(&self, within: usize) -> Option<Place<'_>> {
        let page: &Page = self.region().pages().get(within / CELLS_PER_PAGE)?;
        let cell = page.cell(within % CELLS_PER_PAGE)?;
        Some(Place { cell, segment: self, within })
    }

    /// Reserves room in the file for a segment that lives in memory.
    pub(super) fn room_in_file(
        &self,
        file: &File,
        index: usize,
        file_bytes_max: u64,
    ) -> io::Result<Region> {
        reserve(file, index, file_bytes_max)?;
        let region = Region::of_file(file, offset(index))?;
        // OK to ignore: it only spares page faults.
        let _ = region.prefault(0, PAGES_PER_SEGMENT);
        Ok(region)
    }

    /// Goes on in `room`, which is of the file. Every stripe is locked by the caller, so no
    /// count can fall between the copy and the move.
    pub(super) fn move_to(&self, room: Region) {
        for within in 0..CELLS_PER_SEGMENT {
            let target = room
                .pages()
                .get(within / CELLS_PER_PAGE)
                .and_then(|page| page.cell(within % CELLS_PER_PAGE));
            let (Some(source), Some(target)) = (self.place(within), target) else {
                continue;
            };
            let Some((env, key)) = source.cell.identity() else {
                continue;
            };
            // A cell that was read from the file when its blocks could not be had is there
            // still; it must at no instant hold less than it did.
            if target.identity() == Some((env, key)) {
                target.raise(&source.cell.totals());
            } else {
                target.give(&env, &key, &source.cell.totals());
            }
        }
        // OK to ignore: only `maintain` moves, one at a time, and only what has not moved.
        let _ = self.moved.set(room);
        for word in &self.unsynced {
            word.store(u64::MAX, Ordering::Relaxed);
        }
    }

    /// Makes all pages writable now, so that the first counts there take no page fault.
    pub(super) fn prefault(&self) {
        // OK to ignore: it only spares page faults.
        let _ = self.region().prefault(0, PAGES_PER_SEGMENT);
    }

    /// Takes up to `max` changed cells from `from` on, 0..5,376, clearing their bits.
    pub(super) fn take_unflushed(&self, from: usize, max: usize) -> Vec<usize> {
        let mut taken = Vec::new();
        for (word_at, word) in self.unflushed.iter().enumerate().skip(from / 64) {
            let mut bits = word.load(Ordering::Relaxed);
            if word_at == from / 64 {
                bits &= u64::MAX << (from % 64);
            }
            while bits != 0 && taken.len() < max {
                let bit = bits.trailing_zeros();
                bits &= bits - 1;
                word.fetch_and(!(1 << bit), Ordering::Relaxed);
                taken.push(word_at * 64 + bit as usize);
            }
            if taken.len() == max {
                break;
            }
        }
        taken
    }

    /// Takes the bits of the pages that changed since the last sync.
    pub(super) fn take_unsynced(&self) -> [u64; PAGES_PER_SEGMENT / 64] {
        let mut taken = [0; PAGES_PER_SEGMENT / 64];
        for (copy, word) in taken.iter_mut().zip(&self.unsynced) {
            if word.load(Ordering::Relaxed) != 0 {
                *copy = word.swap(0, Ordering::Relaxed);
            }
        }
        taken
    }

    /// Makes the pages of `taken` writable and dirty again.
    pub(super) fn redirty(&self, taken: &[u64; PAGES_PER_SEGMENT / 64]) {
        let touched =
            |page: &usize| taken.get(page / 64).is_some_and(|word| word >> (page % 64) & 1 == 1);
        let mut page = 0;
        while page < PAGES_PER_SEGMENT {
            let run = (page..PAGES_PER_SEGMENT).take_while(touched).count();
            if run > 0 {
                // OK to ignore: see `Region::prefault`.
                let _ = self.region().prefault(page, run);
            }
            page += run + 1;
        }
    }

    /// Puts bits back that `take_unsynced` took.
    pub(super) fn put_back_unsynced(&self, taken: &[u64; PAGES_PER_SEGMENT / 64]) {
        for (copy, word) in taken.iter().zip(&self.unsynced) {
            word.fetch_or(*copy, Ordering::Relaxed);
        }
    }
}

impl Place<'_> {
    /// Notes that the cell changed. The cell's stripe is locked; see `Counters` for why that
    /// makes Relaxed enough.
    #[inline]
    pub(super) fn changed(&self) {
        self.unflushed();
        set(&self.segment.unsynced, self.within / CELLS_PER_PAGE);
    }

    /// Notes that the database may know less than the cell.
    pub(super) fn unflushed(&self) {
        set(&self.segment.unflushed, self.within);
    }

    /// Notes that the database knows as much as the cell.
    pub(super) fn flushed(&self) {
        if let Some(word) = self.segment.unflushed.get(self.within / 64) {
            word.fetch_and(!(1 << (self.within % 64)), Ordering::Relaxed);
        }
    }
}

/// Sets a bit; nearly always it is set already, and reading is cheaper than a locked write.
#[inline]
fn set(words: &[AtomicU64], bit: usize) {
    if let Some(word) = words.get(bit / 64) {
        let mask = 1 << (bit % 64);
        if word.load(Ordering::Relaxed) & mask == 0 {
            word.fetch_or(mask, Ordering::Relaxed);
        }
    }
}
