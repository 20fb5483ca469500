//! The data folder: who may use it, and what lies in it.
//!
//! `keyward.db` (SQLite's file, unless the store is a server), `secrets.toml`, `counters`, and
//! while a server runs `keyward.sock`, by which the command line talks to it. The server holds an
//! exclusive lock on `lock` for as long as it lives; the kernel drops it with the process.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
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

/// The proof that this process alone serves from a folder.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "closing the file gives the lock back")] File);

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
}
