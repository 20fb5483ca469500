//! The data folder: who may use it, and what lies in it.
//!
//! `keyward.db` (SQLite's file, unless the store is a server), `secrets.toml`, `counters`, and
//! while a server runs `keyward.sock`, by which the command line talks to it. The server holds an
//! exclusive lock on `lock` for as long as it lives; the kernel drops it with the process.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};

use crate::error::{Error, Result};

/// The code of a folder whose lock another process holds.
const IN_USE: &str = "FOLDER_IN_USE";
/// How often the lock is tried, and how long between: 300 ms together.
const LOCK_TRIES: u32 = 30;
const LOCK_AGAIN: Duration = Duration::from_millis(10);

/// A data folder.
#[derive(Debug, Clone)]
pub struct Folder(PathBuf);

/// The proof that this process alone serves from a folder. Closing the file gives the lock back.
#[derive(Debug)]
pub struct Lock(File);

impl Lock {
    /// Notes in the lock's file that the server `node` holds it, and returns the one that held it
    /// before and did not live to say goodbye. That one is certainly dead: it had the lock.
    ///
    /// A copy of the folder, or a machine that was started anew, returns nobody, since the server
    /// that the note names may be alive elsewhere.
    ///
    /// # Errors
    /// The file system's.
    pub(crate) fn hand_over(&self, node: [u8; 16]) -> io::Result<Option<[u8; 16]>> {
        let metadata = self.0.metadata()?;
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
        let place = format!("{} {} {}", boot.trim(), metadata.dev(), metadata.ino());
        let mut note = vec![0; 256];
        let length = self.0.read_at(&mut note, 0)?;
        note.truncate(length);
        let note = String::from_utf8_lossy(&note).into_owned();
        let before = note
            .trim()
            .strip_prefix(&place)
            .and_then(|rest| uuid::Uuid::try_parse(rest.trim()).ok().map(uuid::Uuid::into_bytes));
        self.0.set_len(0)?;
        let own = uuid::Uuid::from_bytes(node).simple();
        self.0.write_all_at(format!("{place} {own}\n").as_bytes(), 0)?;
        Ok(before)
    }
}

impl Folder {
    /// Uses `path`, making the folder if it does not exist (for its owner alone).
    ///
    /// # Errors
    /// `Unavailable` that names the folder when it cannot be made or written.
    pub fn create(path: &Path) -> Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|cause| {
            Error::unavailable(format!(
                "the data folder {} cannot be made ({}); choose another with --data",
                path.display(),
                cause.kind()
            ))
        })?;
        Ok(Self(path.to_path_buf()))
    }

    /// Uses `path` as it is, whether it exists or not.
    pub fn existing(path: &Path) -> Self {
        Self(path.to_path_buf())
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// SQLite's file.
    pub fn database(&self) -> PathBuf {
        self.0.join("keyward.db")
    }

    /// The secrets file, unless another is named.
    pub fn secrets(&self) -> PathBuf {
        self.0.join(crate::secrets::FILE_NAME)
    }

    /// The counter file.
    pub fn counters(&self) -> PathBuf {
        self.0.join(crate::counters::FILE_NAME)
    }

    /// The socket by which the command line talks to a running server.
    pub fn socket(&self) -> PathBuf {
        self.0.join("keyward.sock")
    }

    /// Takes the folder's lock for the life of the returned value. Waits a moment for it, because
    /// commands on the folder of a server that was killed hold it for some milliseconds.
    ///
    /// # Errors
    /// As [`Folder::lock`].
    pub async fn lock_soon(&self) -> Result<Lock> {
        for _ in 0..LOCK_TRIES {
            match self.lock() {
                Err(error) if error.code == IN_USE => tokio::time::sleep(LOCK_AGAIN).await,
                done => return done,
            }
        }
        self.lock()
    }

    /// Takes the folder's lock for the life of the returned value.
    ///
    /// # Errors
    /// `Conflict` when another server holds it, `Unavailable` when the folder cannot be written.
    pub fn lock(&self) -> Result<Lock> {
        let path = self.0.join("lock");
        let file = OpenOptions::new()
            .create(true)
            .read(true)
            .write(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(|cause| {
                Error::unavailable(format!(
                    "the data folder {} cannot be written ({}); make it writable for this account, \
                     or choose another with --data",
                    self.0.display(),
                    cause.kind()
                ))
            })?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Lock(file)),
            Err(_) => Err(Error::conflict(
                IN_USE,
                format!("another Keyward server is using the data folder {}", self.0.display()),
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_folder_serves_one_server() {
        let parent = tempfile::tempdir().expect("a folder");
        let folder = Folder::create(&parent.path().join("deep/er")).expect("made");
        let lock = folder.lock().expect("free");
        assert_eq!(folder.lock().expect_err("held").code, "FOLDER_IN_USE");
        drop(lock);
        folder.lock().expect("free again");
    }

    #[test]
    fn the_server_that_died_with_the_lock_is_known_to_the_next_one_and_to_no_copy() {
        let parent = tempfile::tempdir().expect("a folder");
        let folder = Folder::create(&parent.path().join("a")).expect("made");
        let (first, second) = ([1; 16], [2; 16]);
        assert_eq!(folder.lock().expect("free").hand_over(first).expect("noted"), None);
        assert_eq!(folder.lock().expect("free").hand_over(second).expect("noted"), Some(first));
        let copy = Folder::create(&parent.path().join("b")).expect("made");
        fs::copy(parent.path().join("a/lock"), parent.path().join("b/lock")).expect("copied");
        assert_eq!(copy.lock().expect("free").hand_over(first).expect("noted"), None);
    }
}
