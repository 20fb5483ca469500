//! Backup: the whole store in one new SQLite file, taken while the server runs.
//!
//! The file has the schema of a store and two more values in `meta`, by which `restore` knows it.
//! It is written as `DEST.partial` and renamed when it is complete and synced, so that a file
//! called DEST is always a whole backup. It holds one snapshot of the database. Verification counts
//! are as the database knows them, which a running server tells every 10 s.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode};
use sqlx::{ConnectOptions, Connection};

use super::copying::{self, Sum, rows_in};
use super::tables::TABLES;
use super::{close, refuse_if_moved, widen_cache};
use crate::clock::rfc3339;
use crate::error::{Error, Result};
use crate::progress::Progress;
use crate::secrets::{Keyring, Secrets};
use crate::store::{Location, Store, environments, failed, schema};

/// The name under which a backup says when it was taken (RFC 3339, database time).
pub(super) const TAKEN_AT: &str = "backup_taken_at";
/// The name under which a backup says which Keyward took it.
pub(super) const VERSION: &str = "backup_keyward_version";

/// What a backup came to.
#[derive(Debug)]
pub(crate) struct BackupReport {
    /// The backup.
    pub(crate) path: PathBuf,
    /// The copy of the secrets file beside it, if one was asked for.
    pub(crate) secrets: Option<PathBuf>,
    /// The database's time just before the snapshot, in µs since the epoch: what was committed
    /// later may not be in the backup.
    pub(crate) taken_at: i64,
    /// Rows in all tables.
    pub(crate) rows: u64,
    /// API keys, revoked ones too.
    pub(crate) keys: u64,
    /// The size of the file.
    pub(crate) bytes: u64,
}

/// Where the copy of the secrets file lies that belongs to the backup `path`.
pub(super) fn secrets_beside(path: &Path) -> PathBuf {
    with_suffix(path, ".secrets.toml")
}

/// `path` with `suffix` after its last character.
pub(super) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut text = OsString::from(path);
    text.push(suffix);
    PathBuf::from(text)
}

/// Takes a backup of `store` into the new file `dest`, with a copy of `secrets` if that is given.
///
/// # Errors
/// `Conflict` when `dest` exists or the store was moved away, `Invalid` when there is nothing to
/// back up or the secrets file is another store's, `Unavailable` when a file cannot be written.
pub(crate) async fn backup(
    store: &Store,
    dest: &Path,
    secrets: Option<&Path>,
    progress: &Progress,
) -> Result<BackupReport> {
    let partial = with_suffix(dest, ".partial");
    let beside = secrets.map(|_| secrets_beside(dest));
    for path in [Some(dest), beside.as_deref()].into_iter().flatten() {
        if path.exists() {
            let public = format!("{} exists already; a backup replaces nothing", path.display());
            return Err(Error::conflict("BACKUP_EXISTS", public));
        }
    }
    let secrets = check(store, secrets).await?;
    create(&partial)?;
    let taken = async {
        let (taken_at, sums) = fill(store, &partial, progress).await?;
        settle(&partial).await?;
        if let (Some(secrets), Some(beside)) = (&secrets, &beside) {
            secrets.write_new(beside)?;
        }
        let done = publish(&partial, dest).map_err(|cause| unwritable(dest, &cause));
        if let (Err(_), Some(beside)) = (&done, &beside) {
            remove(beside);
        }
        let bytes = done?;
        Ok(BackupReport {
            path: dest.to_path_buf(),
            secrets: beside,
            taken_at,
            rows: sums.iter().map(|sum| sum.rows).sum(),
            keys: rows_in(&sums, "api_keys"),
            bytes,
        })
    }
    .await;
    if taken.is_err() {
        remove_database(&partial);
    }
    taken
}

/// Refuses a store that has nothing to back up, and a secrets file that is not the store's.
async fn check(store: &Store, secrets: Option<&Path>) -> Result<Option<Secrets>> {
    let mut conn = store.read().await?;
    if schema::found(&mut conn).await? == schema::Found::Nothing
        || environments::all_any_environment(&mut conn).await?.is_empty()
    {
        return Err(Error::invalid("NO_STORE", "there is nothing in this store to back up"));
    }
    refuse_if_moved(&mut conn).await?;
    let Some(path) = secrets else { return Ok(None) };
    Keyring::open(path.to_path_buf())?.check(&mut conn).await?;
    Secrets::read(path).map(Some)
}

/// Makes the file, for its owner alone, before SQLite would make it for everybody.
fn create(partial: &Path) -> Result<()> {
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(partial) {
        Ok(_) => Ok(()),
        Err(cause) if cause.kind() == io::ErrorKind::AlreadyExists => {
            let public = format!(
                "{} exists: another backup is being written, or one was interrupted; remove it \
                 if none is running",
                partial.display()
            );
            Err(Error::conflict("BACKUP_EXISTS", public))
        }
        Err(cause) => Err(unwritable(partial, &cause)),
    }
}

/// Copies one snapshot of `store` into the empty file.
async fn fill(store: &Store, partial: &Path, progress: &Progress) -> Result<(i64, Vec<Sum>)> {
    let location = Location::File(partial.to_path_buf());
    let target = Store::open(&location, true, store.clock.clone(), store.entropy.clone()).await?;
    let filled = async {
        schema::bring_up(&target).await?;
        let mut to = target.side().await?;
        widen_cache(&mut to).await?;
        to.raw("begin immediate").await?;
        copying::clear(&mut to, TABLES.iter()).await?;
        let mut from = store.read().await?;
        // Asked before the snapshot: the moment must not be later than what the backup holds.
        let taken_at = from.now_us(&store.clock).await?;
        from.begin_snapshot().await?;
        let copied = async {
            progress.begin("backing up", copying::count(&mut from, TABLES.iter()).await?);
            copying::copy(&mut from, &mut to, TABLES.iter(), progress).await
        }
        .await;
        progress.end();
        from.raw("rollback").await?;
        let sums = copied?;
        schema::set_meta(&mut to, TAKEN_AT, &rfc3339(taken_at)).await?;
        schema::set_meta(&mut to, VERSION, env!("CARGO_PKG_VERSION")).await?;
        to.raw("commit").await?;
        Ok((taken_at, sums))
    }
    .await;
    close(target).await;
    filled
}

/// Takes the file out of write-ahead logging, so that it is whole without files beside it.
async fn settle(partial: &Path) -> Result<()> {
    SqliteConnectOptions::new()
        .filename(partial)
        .journal_mode(SqliteJournalMode::Delete)
        .disable_statement_logging()
        .connect()
        .await
        .map_err(failed)?
        .close()
        .await
        .map_err(failed)
}

/// Syncs the file and gives it its name, which nobody may have taken meanwhile; its size.
fn publish(partial: &Path, dest: &Path) -> io::Result<u64> {
    let file = File::open(partial)?;
    file.sync_all()?;
    match renameat_with(CWD, partial, CWD, dest, RenameFlags::NOREPLACE) {
        // Some network file systems cannot promise it in one step.
        Err(Errno::INVAL | Errno::NOSYS) if !dest.exists() => fs::rename(partial, dest)?,
        done => done?,
    }
    sync_folder_of(dest)?;
    Ok(file.metadata()?.len())
}

/// Makes a new name in the folder of `path` survive a power failure.
pub(super) fn sync_folder_of(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}

/// Removes an SQLite file with what SQLite keeps beside it.
pub(super) fn remove_database(path: &Path) {
    for suffix in ["", "-wal", "-shm", "-journal"] {
        remove(&with_suffix(path, suffix));
    }
}

fn remove(path: &Path) {
    // OK to ignore: most of these files do not exist, and one that cannot be removed does no harm.
    drop(fs::remove_file(path));
}

pub(super) fn unwritable(path: &Path, cause: &io::Error) -> Error {
    Error::unavailable(format!("{} cannot be written ({})", path.display(), cause.kind()))
}
