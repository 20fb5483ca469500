//! Mapped memory: one segment's worth of pages, from the counter file or from nowhere.
//!
//! This is the only file of the workspace that may contain unsafe code. It turns a range of a
//! file into `&[Page]` of atomics and back into address space on drop, and knows nothing of what
//! the cells mean. That the range has blocks on the disk is for the caller (`segment.rs`) to
//! see to: writing to a mapped hole on a full disk is a SIGBUS. So is touching a page that
//! somebody has truncated away; the folder's lock keeps other servers off, nothing can keep an
//! operator with a shell off.
#![expect(
    unsafe_code,
    reason = "a memory mapping has no safe interface; this file is the only one that makes one"
)]

use std::fs::File;
use std::io;
use std::ptr::{self, NonNull};

use rustix::mm::{Advice, MapFlags, ProtFlags};

use super::cell::{PAGE_BYTES, PAGES_PER_SEGMENT, Page};

/// Bytes of one mapping: 256 pages × 4,096 bytes = 1 MiB.
pub(super) const SEGMENT_BYTES: usize = PAGES_PER_SEGMENT * PAGE_BYTES;

/// An owned, readable and writable mapping of [`SEGMENT_BYTES`] bytes.
pub(super) struct Region {
    base: NonNull<[Page; PAGES_PER_SEGMENT]>,
}

// SAFETY: `base` points to memory that this value owns until it is dropped, and through it only
// shared references to atomics are handed out.
unsafe impl Send for Region {}
// SAFETY: as above; all access through `&Region` is atomic.
unsafe impl Sync for Region {}

impl Region {
    /// Maps the bytes of `file` from `offset` on, shared: what is written here is in the
    /// kernel's page cache at once and outlives the process. The range must have its blocks.
    pub(super) fn of_file(file: &File, offset: u64) -> io::Result<Region> {
        Region::map(file, offset, MapFlags::SHARED)
    }

    /// Maps the same bytes as a copy in memory: what is written here never reaches the file and
    /// dies with the process, and holes in the file do no harm.
    pub(super) fn copy_of_file(file: &File, offset: u64) -> io::Result<Region> {
        Region::map(file, offset, MapFlags::PRIVATE)
    }

    fn map(file: &File, offset: u64, sharing: MapFlags) -> io::Result<Region> {
        // SAFETY: a new mapping at an address of the kernel's choice touches no existing memory.
        let base = unsafe {
            rustix::mm::mmap(
                ptr::null_mut(),
                SEGMENT_BYTES,
                ProtFlags::READ | ProtFlags::WRITE,
                sharing,
                file,
                offset,
            )
        }?;
        Region::new(base.cast())
    }

    /// Maps zeroed memory that dies with the process.
    pub(super) fn of_memory() -> io::Result<Region> {
        // SAFETY: as in `map`.
        let base = unsafe {
            rustix::mm::mmap_anonymous(
                ptr::null_mut(),
                SEGMENT_BYTES,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )
        }?;
        Region::new(base.cast())
    }

    fn new(base: *mut [Page; PAGES_PER_SEGMENT]) -> io::Result<Region> {
        match NonNull::new(base) {
            Some(base) => Ok(Region { base }),
            None => Err(io::Error::other("the kernel mapped a segment at address zero")),
        }
    }

    /// The pages. They may change at any moment, like every atomic that is shared.
    #[inline]
    pub(super) fn pages(&self) -> &[Page; PAGES_PER_SEGMENT] {
        // SAFETY: the mapping is SEGMENT_BYTES = size_of::<[Page; PAGES_PER_SEGMENT]>() bytes
        // long, aligned to the system's page, hence to `Page`'s 64 bytes, and lives as long as
        // `self`. A `Page` consists of AtomicU64 only: any bytes are a value of it, and the
        // kernel's or another thread's writes to it are no data race.
        unsafe { self.base.as_ref() }
    }

    /// Makes `count` pages from `first` on writable and dirty without changing them, so that the
    /// next count there takes no page fault. Fails harmlessly on Linux before 5.14 and where the
    /// system's pages are larger than 4,096 bytes.
    pub(super) fn prefault(&self, first: usize, count: usize) -> io::Result<()> {
        if first.checked_add(count).is_none_or(|end| end > PAGES_PER_SEGMENT) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let start = self.base.as_ptr().cast::<Page>().wrapping_add(first);
        // SAFETY: the range was just checked to lie in the mapping, and populating a range
        // changes no byte of it.
        unsafe {
            rustix::mm::madvise(start.cast(), count * PAGE_BYTES, Advice::LinuxPopulateWrite)
        }?;
        Ok(())
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and every reference into it borrowed `self`.
        let unmapped = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), SEGMENT_BYTES) };
        debug_assert!(unmapped.is_ok(), "a mapping that we made could not be unmade");
    }
}

const _: () = assert!(size_of::<[Page; PAGES_PER_SEGMENT]>() == SEGMENT_BYTES);
