//! Which file the counts are in: its header, and the protocol by which file and database agree
//! that this process, and no copy or older version of the file, goes on counting under its id.
//! The database's half is one row (file id, generation) that the caller keeps.
//!
//! ```text
//! let opened = Opened::open(folder, …);              the file is looked at, nothing is changed
//! let row = …row of opened.file_id()…;
//! let claimed = opened.claim(row);                   header: pending := a new generation
//! …row: claimed.previous() → claimed.next(), only if it still is previous…
//!      changed no row: claimed = claimed.refused(…)  another id; insert its row
//! let (counters, cursor) = claimed.confirm();        header: generation := pending
//! ```
//!
//! A process that dies between the steps leaves the row at either `generation` or `pending`, and
//! both are accepted. Any other row means that the file is a copy, or one of the two came from a
//! backup: the file is set aside, under a name that says which it was, and a new id begins.
//!
//! A generation is a number and forty random bits. With the number alone, two copies of a file,
//! opened on two nodes, would both write the pending generation 8; one of them wins the row, and
//! the other, had it died just then, would find its own pending 8 in the row when it comes back.
//!
//! The row is also a fence, if every flush checks in its transaction that the row still holds
//! [`Counters::generation`](super::Counters::generation): a process whose folder was cloned while
//! it ran then learns at its next flush that the file's id is another's.
//!
//! The header is 64 bytes, written in turn at 0 and at 2,048, so that a power failure in the
//! middle of a write leaves the previous one; the newer one with a good checksum counts.
//!
//! ```text
//!  0  magic       u64, also tells the byte order     40  pending   i64
//!  8  format      u32 = 1                            48  revision  u64, chooses the copy
//! 12  cell bytes  u32 = 192                          56  zero      u32
//! 16  file id     16 random bytes                    60  CRC-32 of the first 60 bytes
//! 32  generation  i64, 0 until first confirmed
//! ```

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::cell::CELL_BYTES;
use super::{Counters, FlushCursor};

pub(crate) const NAME: &str = "counters";
const MAGIC: u64 = u64::from_be_bytes(*b"KWcount\n");
const FORMAT: u32 = 1;
const HEADER_BYTES: usize = 64;
const COPY_AT_BYTES: u64 = 2_048;
/// Random bits of a generation; above them are 23 bits of number, enough for 8 million opens.
const NONCE_BITS: u32 = 40;

/// Sixteen random bytes that name a counter file in the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileId([u8; 16]);

impl FileId {
    /// What the database stores.
    pub fn bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

/// Which opening of a file this is. The database compares it for equality and stores it in a
/// BIGINT; it is never negative.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Generation(i64);

impl Generation {
    /// What a row of the database says.
    pub fn from_database(stored: i64) -> Generation {
        Generation(stored)
    }

    /// What a row of the database is to say.
    pub fn to_database(self) -> i64 {
        self.0
    }

    fn number(self) -> i64 {
        self.0 >> NONCE_BITS
    }

    fn following(self, random: [u8; 16]) -> Generation {
        let nonce = u128::from_ne_bytes(random) as i64 & ((1 << NONCE_BITS) - 1);
        Generation((self.number().wrapping_add(1) << NONCE_BITS & i64::MAX) | nonce)
    }
}

/// The number only; the random part says nothing to a reader.
impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.number().fmt(f)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) file_id: FileId,
    /// The last generation that this file knows the database to have had; 0 is none yet.
    pub(super) generation: i64,
    /// The one it was about to have; equal to `generation` when nothing is under way.
    pub(super) pending: i64,
    pub(super) revision: u64,
}

impl Header {
    pub(super) fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = Vec::with_capacity(HEADER_BYTES);
        bytes.extend_from_slice(&MAGIC.to_ne_bytes());
        bytes.extend_from_slice(&FORMAT.to_ne_bytes());
        bytes.extend_from_slice(&(CELL_BYTES as u32).to_ne_bytes());
        bytes.extend_from_slice(self.file_id.bytes());
        bytes.extend_from_slice(&self.generation.to_ne_bytes());
        bytes.extend_from_slice(&self.pending.to_ne_bytes());
        bytes.extend_from_slice(&self.revision.to_ne_bytes());
        bytes.extend_from_slice(&0_u32.to_ne_bytes());
        bytes.extend_from_slice(&crc32fast::hash(&bytes).to_ne_bytes());
        bytes.try_into().expect("8 + 4 + 4 + 16 + 8 + 8 + 8 + 4 + 4 = 64")
    }

    fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Header, String> {
        let mut rest = bytes.as_slice();
        let mut fields = Fields(&mut rest);
        let magic = u64::from_ne_bytes(fields.take());
        let format = u32::from_ne_bytes(fields.take());
        let cell_bytes = u32::from_ne_bytes(fields.take());
        let header = Header {
            file_id: FileId(fields.take()),
            generation: i64::from_ne_bytes(fields.take()),
            pending: i64::from_ne_bytes(fields.take()),
            revision: u64::from_ne_bytes(fields.take()),
        };
        let _zero: [u8; 4] = fields.take();
        let checksum = u32::from_ne_bytes(fields.take());
        if magic != MAGIC {
            return Err("it does not begin like a counter file of this machine".to_owned());
        }
        let (checked, _) = bytes.split_at(HEADER_BYTES - 4);
        if checksum != crc32fast::hash(checked) {
            return Err("the checksum of its header is wrong".to_owned());
        }
        if format != FORMAT || cell_bytes as usize != CELL_BYTES {
            return Err(format!(
                "it has format {format} with cells of {cell_bytes} bytes, this program writes \
                 format {FORMAT} with {CELL_BYTES}"
            ));
        }
        Ok(header)
    }

    fn read(file: &File) -> Result<Header, String> {
        let copy = |at: u64| {
            let mut bytes = [0; HEADER_BYTES];
            match file.read_exact_at(&mut bytes, at) {
                Ok(()) => Header::decode(&bytes),
                Err(error) => Err(format!("its header cannot be read: {error}")),
            }
        };
        match (copy(0), copy(COPY_AT_BYTES)) {
            (Ok(a), Ok(b)) => Ok(if a.revision > b.revision { a } else { b }),
            (Ok(one), Err(_)) | (Err(_), Ok(one)) => Ok(one),
            (Err(reason), Err(_)) => Err(reason),
        }
    }

    /// Writes the header as the next revision, over the older of the two copies.
    fn write(&mut self, file: &File) -> io::Result<()> {
        self.revision += 1;
        file.write_all_at(&self.encode(), (self.revision % 2) * COPY_AT_BYTES)?;
        file.sync_data()
    }

    fn accepts(&self, database: Option<Generation>) -> Result<(), String> {
        match database {
            None if self.generation == 0 => Ok(()),
            None => Err("the database does not know it".to_owned()),
            Some(Generation(row)) if row == self.generation || row == self.pending => Ok(()),
            Some(row) => Err(format!(
                "the database is at opening {row} of it and the file at {}: one of them is a \
                 copy or was restored",
                Generation(self.generation)
            )),
        }
    }
}

/// Takes fixed-size fields off a header, which is exactly as long as they are together.
struct Fields<'a, 'b>(&'a mut &'b [u8]);

impl Fields<'_, '_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let (field, rest) = self.0.split_first_chunk::<N>().expect("the fields are 64 bytes");
        *self.0 = rest;
        *field
    }
}

/// Where counter files live and how large they may become.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    pub(super) file_bytes_max: u64,
}

impl Folder {
    /// Creates the file with nothing but its header. An existing file is never replaced: the
    /// folder's lock is ours, so what is not there now does not appear in between.
    pub(super) fn create(&self, header: &mut Header) -> io::Result<File> {
        let to = self.path.join(NAME);
        if fs::symlink_metadata(&to).is_ok() {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                "the folder has a counter file that could not be opened",
            ));
        }
        if self.file_bytes_max < 2 * COPY_AT_BYTES {
            return Err(io::Error::new(
                io::ErrorKind::StorageFull,
                format!("the counter file may not grow beyond {} bytes", self.file_bytes_max),
            ));
        }
        let unfinished = self.path.join(format!("{NAME}.new"));
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&unfinished)?;
        header.write(&file)?;
        file.sync_all()?;
        fs::rename(&unfinished, &to)?;
        File::open(&self.path)?.sync_all()?;
        Ok(file)
    }

    fn set_aside(&self, which: &str) -> io::Result<PathBuf> {
        let mut to = self.path.join(format!("{NAME}.aside-{which}"));
        let mut again = 1;
        while fs::symlink_metadata(&to).is_ok() {
            again += 1;
            to = self.path.join(format!("{NAME}.aside-{which}-{again}"));
        }
        fs::rename(self.path.join(NAME), &to)?;
        File::open(&self.path)?.sync_all()?;
        Ok(to)
    }

    /// Begins a new id, in a file if the folder takes one.
    fn fresh<R: Fn() -> [u8; 16]>(self, random: R, mut notices: Vec<String>) -> Claimed<R> {
        let mut header = Header {
            file_id: FileId(random()),
            generation: 0,
            pending: Generation(0).following(random()).0,
            revision: 0,
        };
        let file = match self.create(&mut header) {
            Ok(file) => Some(file),
            Err(error) => {
                notices.push(format!("no counter file can be created: {error}"));
                None
            }
        };
        Claimed { folder: self, random, file, header, previous: None, notices }
    }

    /// Sets the file aside and begins a new id. A file that cannot even be renamed stays where
    /// it is, unchanged; counts are then kept in memory only.
    fn fresh_instead<R: Fn() -> [u8; 16]>(
        self,
        random: R,
        header: &Header,
        reason: &str,
        mut notices: Vec<String>,
    ) -> Claimed<R> {
        let hex: String = header.file_id.bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        let which = format!("{hex}-{}", Generation(header.generation));
        notices.push(self.set_aside_notice(&which, reason));
        self.fresh(random, notices)
    }

    fn set_aside_notice(&self, which: &str, reason: &str) -> String {
        match self.set_aside(which) {
            Ok(to) => format!("the counter file was set aside as {}: {reason}", to.display()),
            Err(error) => {
                format!("the counter file is not usable ({reason}), nor can it be renamed: {error}")
            }
        }
    }
}

/// The folder's counter file as it was found, or that there is none.
#[must_use]
pub struct Opened<R> {
    folder: Folder,
    random: R,
    found: Option<(File, Header)>,
    notices: Vec<String>,
}

impl<R: Fn() -> [u8; 16]> Opened<R> {
    /// Looks for the counter file in the folder at `path`, whose lock the caller holds. A file
    /// with a bad header is set aside at once. The file will never grow beyond
    /// `file_bytes_max` (195 bytes for each verified key); `random` makes ids. This cannot fail:
    /// where no file can be had, counts are kept in memory and [`Health`](super::Health) says so.
    pub fn open(path: &Path, file_bytes_max: u64, random: R) -> Opened<R> {
        let folder = Folder { path: path.to_owned(), file_bytes_max };
        let mut notices = Vec::new();
        let found = match OpenOptions::new().read(true).write(true).open(path.join(NAME)) {
            Ok(file) => match Header::read(&file) {
                Ok(header) => Some((file, header)),
                Err(reason) => {
                    notices.push(folder.set_aside_notice("unreadable", &reason));
                    None
                }
            },
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    notices.push(format!("the counter file cannot be opened: {error}"));
                }
                None
            }
        };
        Opened { folder, random, found, notices }
    }

    /// The id whose row [`claim`](Self::claim) wants to see. None: there is no file yet.
    pub fn file_id(&self) -> Option<FileId> {
        self.found.as_ref().map(|(_, header)| header.file_id)
    }

    /// Compares the file with the generation in its row, if it has one, and writes down which
    /// generation is to be next. A file that does not match is set aside for a new one.
    pub fn claim(self, database: Option<Generation>) -> Claimed<R> {
        let Opened { folder, random, found, mut notices } = self;
        let Some((file, mut header)) = found else {
            return folder.fresh(random, notices);
        };
        if let Err(reason) = header.accepts(database) {
            return folder.fresh_instead(random, &header, &reason, notices);
        }
        let current = database.unwrap_or(Generation(0));
        header.generation = current.0;
        header.pending = current.following(random()).0;
        if let Err(error) = header.write(&file) {
            // It may be good still, so it stays for the next start; without having claimed it,
            // nothing may be counted in it.
            notices.push(format!("the counter file cannot be written: {error}"));
            return folder.fresh(random, notices);
        }
        Claimed { folder, random, file: Some(file), header, previous: database, notices }
    }
}

/// A file that says which generation the database is to have next.
#[must_use = "the database's row is to be advanced, then this confirmed"]
pub struct Claimed<R> {
    folder: Folder,
    random: R,
    file: Option<File>,
    header: Header,
    previous: Option<Generation>,
    notices: Vec<String>,
}

impl<R: Fn() -> [u8; 16]> Claimed<R> {
    /// The file's id.
    pub fn file_id(&self) -> FileId {
        self.header.file_id
    }

    /// What the row must hold to be advanced; None: it must not exist.
    pub fn previous(&self) -> Option<Generation> {
        self.previous
    }

    /// What the row is to hold.
    pub fn next(&self) -> Generation {
        Generation(self.header.pending)
    }

    /// What the operator should read in the log, a sentence each: files set aside, and why.
    pub fn notices(&self) -> &[String] {
        &self.notices
    }

    /// The row could not be advanced from `previous` to `next`, for it was no longer at
    /// `previous`: somebody else has the file's id. Sets the file aside and claims a new one.
    pub fn refused(self, reason: &str) -> Claimed<R> {
        let Claimed { folder, random, file, header, notices, .. } = self;
        match file {
            Some(_) => folder.fresh_instead(random, &header, reason, notices),
            None => folder.fresh(random, notices),
        }
    }

    /// The row holds `next` now, durably: maps the file and reads its cells. The cursor is the
    /// one for [`Counters::take_changed`].
    pub fn confirm(self) -> (Counters, FlushCursor) {
        let Claimed { folder, file, mut header, .. } = self;
        header.generation = header.pending;
        // A failure is no reason to stop: the row is at `pending`, which the file has.
        let trouble = file.as_ref().and_then(|file| header.write(file).err());
        Counters::load(folder, header, file, trouble)
    }
}
