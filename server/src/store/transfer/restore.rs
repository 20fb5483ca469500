//! Restore: putting a backup in the place of a store, without reviving what was revoked since.
//!
//! Everything happens in one transaction of the target, on either engine: its tables are emptied,
//! the backup is copied into them, what the replaced store had taken away is applied to it (see
//! `narrowing`), and the change log begins anew above every number that was ever given out. A
//! failure at any instruction leaves the old store as it was. The replaced store is kept beside the
//! new one, as a backup that can be restored in its turn.
//!
//! Where the replaced store continues the backup, it knows every revocation, and its audit log and
//! counts, which tell what really happened, go on. Where there is none, where it cannot be read, or
//! where it is another store or an older state of this one, revocations after the backup are
//! unknown: the keys are refused until the operator says that this is accepted
//! (`ops::environments::confirm_restore`).

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::backup::{
    TAKEN_AT, VERSION, backup, remove_database, secrets_beside, sync_folder_of, unwritable,
    with_suffix,
};
use super::copying::{self, Sum, rows_in};
use super::narrowing::{self, Kept};
use super::tables::TABLES;
use super::{begin_exclusive, close, refuse_if_moved, refuse_running_server, widen_cache};
use crate::clock::{Clock, Entropy, rfc3339};
use crate::error::{Error, Result};
use crate::folder::Folder;
use crate::ops::environments::RESTORE_PENDING;
use crate::ops::{Action, Context};
use crate::progress::Progress;
use crate::secrets::{Keyring, Secrets};
use crate::store::changes::{self, NewChange};
use crate::store::{
    Conn, Fact, Location, Store, Touched, audit, environments, life, nodes, row, run, schema,
    sealed,
};

/// Tables that a restore leaves alone where the replaced store continues the backup: they tell
/// what happened, and that cannot be taken back.
const HISTORY: &[&str] = &["audit_log", "counter_files", "key_usage"];
/// How far sequence numbers jump where those given out since the backup are unknown: more than a
/// week of 1,500 changes per second.
const UNKNOWN_CHANGES: i64 = 1_000_000_000;

/// What is to be replaced.
#[derive(Debug)]
pub(crate) struct RestoreTarget<'a> {
    /// The database.
    pub(crate) location: &'a Location,
    /// The data folder; it is made if it does not exist.
    pub(crate) folder: &'a Folder,
    /// The secrets file; if it does not exist, the copy beside the backup is put there.
    pub(crate) secrets: &'a Path,
    /// The clock.
    pub(crate) clock: Clock,
    /// Where ids come from.
    pub(crate) entropy: Entropy,
}

/// What a restore came to.
#[derive(Debug)]
pub(crate) struct RestoreReport {
    /// When the backup was taken, RFC 3339.
    pub(crate) backup_taken_at: String,
    /// The Keyward that took it.
    pub(crate) backup_version: String,
    /// Rows that were copied.
    pub(crate) rows: u64,
    /// API keys in the backup, revoked ones too.
    pub(crate) keys: u64,
    /// Where the replaced store was kept.
    pub(crate) replaced: Option<PathBuf>,
    /// The replaced store could not be read; it was kept as it is and nothing was learned from it.
    pub(crate) replaced_unreadable: bool,
    /// The moment after which revocations are unknown; keys are refused until that is confirmed.
    pub(crate) revocations_unknown_since: Option<String>,
    /// What was kept of what the replaced store had taken away.
    pub(crate) kept: Kept,
    /// Active keys that a rotation after the backup leaves without a secret: to be rotated again.
    pub(crate) keys_without_secret: u64,
    /// The same of applications.
    pub(crate) applications_without_secret: u64,
    /// The copy of the secrets file beside the backup was put in place.
    pub(crate) secrets_installed: bool,
}

/// Replaces the store of `target` by the backup `source`.
///
/// # Errors
/// `Conflict` while a server runs, `Invalid` when `source` is no backup, is damaged or from a newer
/// Keyward, or when the secrets file is another store's. The old store is then as it was.
pub(crate) async fn restore(
    source: &Path,
    target: &RestoreTarget<'_>,
    context: &Context,
    progress: &Progress,
) -> Result<RestoreReport> {
    let folder = Folder::create(target.folder.path())?;
    let _lock = folder.lock_soon().await?;
    // The lock makes this name ours; a file of this name is left of a restore that was killed.
    let scratch = folder.path().join("restore.partial");
    remove_database(&scratch);
    let restored = async {
        let backup = open_backup(source, &scratch, target).await?;
        let restored = Restore { source, target, context, progress }.run(&backup).await;
        close(backup).await;
        restored
    }
    .await;
    remove_database(&scratch);
    restored
}

/// Opens a copy of the backup, with the schema of this binary. The backup itself is not touched.
async fn open_backup(source: &Path, scratch: &Path, target: &RestoreTarget<'_>) -> Result<Store> {
    let no_backup = |why: &str| {
        let public = format!("{} is not a backup of Keyward ({why})", source.display());
        Error::invalid("NOT_A_BACKUP", public)
    };
    let mut head = [0; 16];
    File::open(source)
        .and_then(|mut file| file.read_exact(&mut head))
        .map_err(|cause| no_backup(&cause.kind().to_string()))?;
    if head != *b"SQLite format 3\0" {
        return Err(no_backup("it is not an SQLite file"));
    }
    let (from, to) = (source.to_path_buf(), scratch.to_path_buf());
    // Copying a large file waits for the disk, which other tasks should not.
    tokio::task::spawn_blocking(move || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to)?;
        io::copy(&mut File::open(from)?, &mut file)
    })
    .await
    .map_err(Error::internal)?
    .map_err(|cause| unwritable(scratch, &cause))?;
    let location = Location::File(scratch.to_path_buf());
    let store = Store::open(&location, false, target.clock.clone(), target.entropy.clone())
        .await
        .map_err(|_| no_backup("it is damaged"))?;
    let checked = async {
        let mut conn = store.read().await?;
        if !is_whole(&mut conn).await? {
            return Err(no_backup("it is damaged"));
        }
        match schema::found(&mut conn).await {
            Ok(schema::Found::Version(version)) if version > schema::VERSION => {
                let public = format!(
                    "this backup was taken by a newer Keyward (schema {version}, this binary \
                     knows {}); restore it with that one",
                    schema::VERSION
                );
                Err(Error::invalid("NEWER_STORE", public))
            }
            Ok(schema::Found::Version(_)) => {
                let taken = schema::meta(&mut conn, TAKEN_AT).await?;
                taken.map(|_| ()).ok_or_else(|| no_backup("a copy of a store's file is none"))
            }
            Ok(schema::Found::Nothing) | Err(_) => Err(no_backup("it holds something else")),
        }
    }
    .await;
    match checked {
        Ok(()) => schema::bring_up(&store).await.map(|()| store),
        Err(error) => {
            close(store).await;
            Err(error)
        }
    }
}

/// Whether SQLite finds its file undamaged.
async fn is_whole(conn: &mut Conn) -> Result<bool> {
    match row!(conn, (String,), "pragma integrity_check(1)") {
        Ok(answer) => Ok(answer.is_some_and(|(answer,)| answer == "ok")),
        Err(error) if is_damage(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether SQLite said that the file is damaged (11) or is not its own (26).
fn is_damage(error: &Error) -> bool {
    let cause = error.cause.as_ref().and_then(|cause| cause.downcast_ref::<sqlx::Error>());
    let code = match cause {
        Some(sqlx::Error::Database(error)) => error.code(),
        Some(_) | None => None,
    };
    code.and_then(|code| code.parse::<u32>().ok())
        .is_some_and(|code| matches!(code & 0xff, 11 | 26))
}

/// What the parts of a restore share.
struct Restore<'a> {
    source: &'a Path,
    target: &'a RestoreTarget<'a>,
    context: &'a Context,
    progress: &'a Progress,
}

/// What the target held before.
struct Replaced {
    /// It is the store of the backup at a later moment.
    continued: bool,
    heads: changes::Heads,
    /// Since when its own revocations are unknown, if it was restored and not confirmed.
    pending: Option<String>,
}

impl Restore<'_> {
    async fn run(&self, backup: &Store) -> Result<RestoreReport> {
        let (secrets, install) = self.secrets(backup).await?;
        let kept_at = self.kept_at();
        let set_aside = self.set_aside_unreadable(&kept_at).await?;
        let file = match self.target.location {
            Location::File(path) => make_private(path)?.then_some(path),
            Location::Server(_) => None,
        };
        let restored = async {
            let (clock, entropy) = (self.target.clock.clone(), self.target.entropy.clone());
            let store = Store::open(self.target.location, true, clock, entropy).await?;
            let restored = self.replace(backup, &store, &secrets, install, &kept_at).await;
            close(store).await;
            restored
        }
        .await;
        match restored {
            Ok(mut report) => {
                if set_aside {
                    report.replaced = Some(kept_at);
                    report.replaced_unreadable = true;
                }
                Ok(report)
            }
            Err(error) => {
                if let Some(file) = file {
                    remove_database(file);
                }
                if let (true, Location::File(path)) = (set_aside, self.target.location) {
                    rename_database(&kept_at, path)?;
                }
                Err(error)
            }
        }
    }

    /// The secrets that belong to the backup, and whether they must be put in place.
    async fn secrets(&self, backup: &Store) -> Result<(Secrets, bool)> {
        let beside = secrets_beside(self.source);
        let install = !self.target.secrets.exists() && beside.exists();
        let path = if install { beside.as_path() } else { self.target.secrets };
        let mut conn = backup.read().await?;
        Keyring::open(path.to_path_buf())?.check(&mut conn).await?;
        let secrets = Secrets::read(path)?;
        check_signing_keys(&mut conn, &secrets, path).await?;
        Ok((secrets, install))
    }

    /// Where the replaced store will be kept.
    fn kept_at(&self) -> PathBuf {
        let moment = rfc3339(self.target.clock.wall_us());
        let stamp: String = moment.chars().filter(char::is_ascii_alphanumeric).collect();
        let beside = match self.target.location {
            Location::File(path) => path.clone(),
            Location::Server(_) => self.target.folder.database(),
        };
        with_suffix(&beside, &format!(".before-restore-{stamp}"))
    }

    /// Puts an SQLite file out of the way that is damaged or from a newer Keyward: it can neither
    /// be asked nor be written. True when there was one.
    async fn set_aside_unreadable(&self, kept_at: &Path) -> Result<bool> {
        let Location::File(path) = self.target.location else { return Ok(false) };
        if !path.exists() {
            return Ok(false);
        }
        let (clock, entropy) = (self.target.clock.clone(), self.target.entropy.clone());
        let readable = match Store::open(self.target.location, false, clock, entropy).await {
            Ok(store) => {
                let readable = async {
                    let mut conn = store.read().await?;
                    let known = match schema::found(&mut conn).await? {
                        schema::Found::Nothing => true,
                        schema::Found::Version(version) => version <= schema::VERSION,
                    };
                    Ok(known && is_whole(&mut conn).await?)
                }
                .await;
                close(store).await;
                readable
            }
            Err(error) => Err(error),
        };
        match readable {
            Ok(true) => Ok(false),
            Ok(false) => rename_database(path, kept_at).map(|()| true),
            Err(error) if is_damage(&error) => rename_database(path, kept_at).map(|()| true),
            Err(error) => Err(error),
        }
    }

    async fn replace(
        &self,
        backup: &Store,
        store: &Store,
        secrets: &Secrets,
        install: bool,
        kept_at: &Path,
    ) -> Result<RestoreReport> {
        schema::bring_up(store).await?;
        let mut from = backup.read().await?;
        let mut conn = store.side().await?;
        refuse_if_moved(&mut conn).await?;
        if !store.is_sqlite() {
            refuse_running_server(store, self.progress).await?;
        }
        let kept_before = kept_at.exists();
        widen_cache(&mut conn).await?;
        begin_exclusive(&mut conn).await?;
        let replaced = async {
            let replaced = self.keep(&mut from, &mut conn, store, secrets, kept_at).await?;
            let mut report = self.fill(&mut from, &mut conn, store, secrets, &replaced).await?;
            report.replaced = replaced.map(|_| kept_at.to_path_buf());
            if install {
                secrets.write_new(self.target.secrets)?;
                report.secrets_installed = true;
            }
            Ok(report)
        }
        .await;
        let done = match replaced {
            Ok(report) => conn.raw("commit").await.map(|()| report),
            Err(error) => {
                // OK to ignore: without it the transaction ends with the connection.
                drop(conn.raw("rollback").await);
                Err(error)
            }
        };
        if done.is_err() {
            // OK to ignore: what cannot be removed is a copy too many.
            if !kept_before {
                drop(fs::remove_file(kept_at));
            }
            if install {
                drop(fs::remove_file(self.target.secrets));
            }
        }
        done
    }

    /// Keeps a copy of the store that will be replaced, and sets down what it had taken away.
    async fn keep(
        &self,
        from: &mut Conn,
        conn: &mut Conn,
        store: &Store,
        secrets: &Secrets,
        kept_at: &Path,
    ) -> Result<Option<Replaced>> {
        if environments::all_any_environment(conn).await?.is_empty() {
            return Ok(None);
        }
        backup(store, kept_at, None, self.progress).await?;
        let continued = narrowing::continues(conn, from).await?;
        if continued {
            check_signing_keys(conn, secrets, self.target.secrets).await?;
        }
        narrowing::remember(conn).await?;
        Ok(Some(Replaced {
            continued,
            heads: changes::heads(conn).await?,
            pending: schema::meta(conn, RESTORE_PENDING).await?,
        }))
    }

    /// Puts the backup into the tables, narrowed, as the next change of the store's life.
    async fn fill(
        &self,
        from: &mut Conn,
        conn: &mut Conn,
        store: &Store,
        secrets: &Secrets,
        replaced: &Option<Replaced>,
    ) -> Result<RestoreReport> {
        let now = conn.now_us(&store.clock).await?;
        let continued = replaced.as_ref().is_some_and(|replaced| replaced.continued);
        let sums = self.copy(from, conn, continued).await?;
        let heads = changes::heads(from).await?;
        let taken_at = schema::meta(from, TAKEN_AT).await?.unwrap_or_default();
        let mut kept = Kept::default();
        if let Some(replaced) = replaced {
            kept = narrowing::apply(conn, continued, now).await?;
            if continued {
                let newer = replaced.heads.audit_no - heads.audit_no;
                kept.audit_records = u64::try_from(newer).unwrap_or(0);
            }
        }
        let unknown_since = match replaced {
            Some(replaced) if replaced.continued => replaced.pending.clone(),
            // A backup of a store that was itself waiting keeps the earlier moment.
            Some(_) | None => {
                Some(schema::meta(from, RESTORE_PENDING).await?.unwrap_or(taken_at.clone()))
            }
        };
        let head = match replaced {
            Some(replaced) if replaced.continued => replaced.heads.seq.max(heads.seq),
            Some(replaced) => replaced.heads.seq.max(heads.seq) + UNKNOWN_CHANGES,
            None => heads.seq + UNKNOWN_CHANGES,
        };
        begin_life(conn, store, secrets, unknown_since.as_deref(), head, now).await?;
        let fact = Fact {
            target_kind: "store",
            after: Some(json!({
                "backup_taken_at": taken_at,
                "revocations_unknown_since": unknown_since,
                "audit_records_kept": kept.audit_records,
                "restrictions_kept": kept.keys + kept.secrets + kept.owners + kept.memberships
                    + kept.apis + kept.applications,
            })),
            touched: vec![Touched::Directory],
            ..Fact::default()
        };
        self.record(conn, store, fact, head + 1, now).await?;
        Ok(RestoreReport {
            backup_taken_at: taken_at,
            backup_version: schema::meta(from, VERSION).await?.unwrap_or_default(),
            rows: sums.iter().map(|sum| sum.rows).sum(),
            keys: rows_in(&sums, "api_keys"),
            replaced: None,
            replaced_unreadable: false,
            revocations_unknown_since: unknown_since,
            kept,
            keys_without_secret: keys_without_secret(conn).await?,
            applications_without_secret: applications_without_secret(conn, now).await?,
            secrets_installed: false,
        })
    }

    async fn copy(&self, from: &mut Conn, conn: &mut Conn, continued: bool) -> Result<Vec<Sum>> {
        let tables = || TABLES.iter().filter(|table| !(continued && HISTORY.contains(&table.name)));
        nodes::remove_all(conn).await?;
        copying::clear(conn, tables()).await?;
        self.progress.begin("restoring", copying::count(from, tables()).await?);
        let sums = copying::copy(from, conn, tables(), self.progress).await;
        self.progress.end();
        // Of keys that were issued after the backup there is nothing to count any more.
        run!(conn, "delete from key_usage where key_id not in (select key_id from api_keys)")?;
        sums
    }

    /// Writes the change and its audit record, in the transaction that restores.
    async fn record(
        &self,
        conn: &mut Conn,
        store: &Store,
        fact: Fact,
        seq: i64,
        now: i64,
    ) -> Result<()> {
        let all = environments::all_any_environment(conn).await?;
        let first = all.first().ok_or_else(|| {
            Error::invalid("NOT_A_BACKUP", "this backup holds no environment; it is useless")
        })?;
        let action = Action::StoreRestored;
        let record = audit::NewRecord::of_change(first.env, now, self.context, action, &fact, seq);
        let audit_no = changes::heads(conn).await?.audit_no;
        audit::insert(conn, audit_no, vec![record]).await?;
        let change = NewChange {
            seq,
            nonce: store.entropy.bytes(),
            env: first.env,
            touched: fact.touched,
            at: now,
        };
        changes::insert(conn, store.node(), vec![change]).await
    }
}

/// Makes what was copied a store with a life of its own: followers load anew, sequence numbers go
/// on above `head`, and every pepper of the secrets file is known.
async fn begin_life(
    conn: &mut Conn,
    store: &Store,
    secrets: &Secrets,
    unknown_since: Option<&str>,
    head: i64,
    now: i64,
) -> Result<()> {
    schema::unset_meta(conn, TAKEN_AT).await?;
    schema::unset_meta(conn, VERSION).await?;
    match unknown_since {
        Some(moment) => schema::set_meta(conn, RESTORE_PENDING, moment).await?,
        None => schema::unset_meta(conn, RESTORE_PENDING).await?,
    }
    // Every lease was waited for, and none of an earlier life can be lost.
    life::forget(conn).await?;
    schema::set_meta(conn, "incarnation", &schema::hex(&store.entropy.bytes::<16>())).await?;
    run!(conn, "delete from change_log")?;
    run!(conn, "update change_head set seq = $1 where one = 1", head)?;
    for pepper in secrets.peppers() {
        run!(
            conn,
            "insert into peppers (pepper_id, check_value, created_at) values ($1, $2, $3)
             on conflict (pepper_id) do nothing",
            i64::from(pepper.id()),
            Secrets::check_value(&pepper).as_slice(),
            now,
        )?;
    }
    Ok(())
}

/// Checks that `secrets` open the keys that the store signs with.
async fn check_signing_keys(conn: &mut Conn, secrets: &Secrets, path: &Path) -> Result<()> {
    let keys = sealed::signing_keys_any_environment(conn).await?;
    let closed = keys.iter().find(|key| {
        key.retired_at.is_none() && secrets.open(&key.kid, &key.private_sealed).is_none()
    });
    match closed {
        None => Ok(()),
        Some(_) => Err(Error::invalid(
            "WRONG_SECRETS_FILE",
            format!(
                "the secrets file {} does not belong to this store: it cannot open the signing \
                 key; name the right one with --secrets-file",
                path.display()
            ),
        )),
    }
}

async fn keys_without_secret(conn: &mut Conn) -> Result<u64> {
    let found = row!(
        conn,
        (i64,),
        "select count(*) from key_states k
         where k.status = 'active'
           and not exists (select 1 from key_secrets s
                           where s.key_id = k.key_id and s.superseded_at is null)",
    )?;
    Ok(found.map_or(0, |(count,)| u64::try_from(count).unwrap_or(0)))
}

async fn applications_without_secret(conn: &mut Conn, now: i64) -> Result<u64> {
    let found = row!(
        conn,
        (i64,),
        "select count(*) from applications a
         where a.deleted_at is null
           and not exists (select 1 from application_secrets s
                           where s.app_id = a.app_id
                             and (s.expires_at is null or s.expires_at > $1))",
        now,
    )?;
    Ok(found.map_or(0, |(count,)| u64::try_from(count).unwrap_or(0)))
}

/// Makes a missing SQLite file for its owner alone, before SQLite would make it for everybody.
/// True when it was missing.
pub(super) fn make_private(path: &Path) -> Result<bool> {
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Ok(_) => Ok(true),
        Err(cause) if cause.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(cause) => Err(unwritable(path, &cause)),
    }
}

/// Gives an SQLite file another name, with the log beside it that may hold its last changes.
pub(super) fn rename_database(from: &Path, to: &Path) -> Result<()> {
    for suffix in ["", "-wal"] {
        match fs::rename(with_suffix(from, suffix), with_suffix(to, suffix)) {
            Ok(()) => {}
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => {}
            Err(cause) => return Err(unwritable(to, &cause)),
        }
    }
    // OK to ignore: SQLite makes this file anew from the log.
    drop(fs::remove_file(with_suffix(from, "-shm")));
    sync_folder_of(to).map_err(|cause| unwritable(to, &cause))
}
