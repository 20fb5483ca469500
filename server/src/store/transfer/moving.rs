//! Move: carrying a store to another database, SQLite to PostgreSQL or back.
//!
//! Everything is carried as it is, ids, counts, audit log and change log, so that whoever followed
//! the store can go on with it, and the counter file of the data folder stays valid. The copy is
//! compared with the source, table by table, before it is committed.
//!
//! At no instruction are there two stores that could be served:
//! ```text
//! source:  lock ─ snapshot ──────────────────────── mark "moved" ─ commit
//! target:           copy ─ compare ─ audit record (uncommitted) ──────── commit
//! ```
//! A process that dies between the two commits leaves a marked source and an empty target; the same
//! command run again finishes the work, because a marked source may be moved to where it is marked.

use std::path::PathBuf;

use serde_json::json;

use super::backup::{remove_database, with_suffix};
use super::copying::{self, rows_in};
use super::restore::{make_private, rename_database};
use super::tables::TABLES;
use super::{
    MOVED_TO, begin_exclusive, close, place, refuse_if_moved, refuse_running_server, widen_cache,
};
use crate::clock::{Clock, Entropy, rfc3339};
use crate::error::{Error, Result};
use crate::folder::Folder;
use crate::ops::{Action, Context};
use crate::progress::Progress;
use crate::store::changes::{self, NewChange};
use crate::store::{Conn, Fact, Location, Store, audit, environments, life, schema};

/// What a move came to.
#[derive(Debug)]
pub(crate) struct MoveReport {
    /// Where the store is now, without a password.
    pub(crate) to: String,
    /// Rows that were carried.
    pub(crate) rows: u64,
    /// API keys, revoked ones too.
    pub(crate) keys: u64,
    /// Tables that were compared, by number of rows and digest.
    pub(crate) tables: u64,
    /// An SQLite file that was in the way, had itself been moved away, and got this name.
    pub(crate) set_aside: Option<PathBuf>,
    /// An earlier run had finished the move; nothing was done.
    pub(crate) already_moved: bool,
}

/// Carries the store at `from` to the empty database at `to`; `folder` is its data folder.
///
/// # Errors
/// `Conflict` while a server runs, when the target holds something, or when the source was moved
/// elsewhere before; `Invalid` when there is no store; `Internal` when the copy differs.
pub(crate) async fn move_store(
    from: &Location,
    to: &Location,
    folder: &Folder,
    (clock, entropy): (Clock, Entropy),
    context: &Context,
    progress: &Progress,
) -> Result<MoveReport> {
    let _lock = folder.lock_soon().await?;
    let source = Store::open(from, false, clock, entropy).await?;
    let moved = async {
        check_source(&source, to, progress).await?;
        let set_aside = set_aside_moved(&source, to).await?;
        let made = match to {
            Location::File(path) => make_private(path)?.then_some(path),
            Location::Server(_) => None,
        };
        let moved = async {
            let (clock, entropy) = (source.clock.clone(), source.entropy.clone());
            let target = Store::open(to, true, clock, entropy).await?;
            let record = Record { context, from: place(from), to: place(to) };
            let moved = carry(&source, &target, to, &record, progress).await;
            close(target).await;
            moved
        }
        .await;
        if let (Err(_), Some(path)) = (&moved, made) {
            remove_database(path);
        }
        moved.map(|report| MoveReport { set_aside, ..report })
    }
    .await;
    close(source).await;
    moved
}

/// Refuses a source that is none, that is served from, or that was moved to another place.
async fn check_source(source: &Store, to: &Location, progress: &Progress) -> Result<()> {
    let mut conn = source.read().await?;
    if schema::found(&mut conn).await? == schema::Found::Nothing {
        return Err(Error::invalid("NO_STORE", "there is no store to move"));
    }
    schema::bring_up(source).await?;
    if environments::all_any_environment(&mut conn).await?.is_empty() {
        return Err(Error::invalid("NO_STORE", "there is nothing in this store to move"));
    }
    if schema::meta(&mut conn, MOVED_TO).await? != Some(place(to)) {
        refuse_if_moved(&mut conn).await?;
    }
    if source.is_sqlite() { Ok(()) } else { refuse_running_server(source, progress).await }
}

/// Renames an SQLite file in the target's place whose contents were moved away before.
async fn set_aside_moved(source: &Store, to: &Location) -> Result<Option<PathBuf>> {
    let Location::File(path) = to else { return Ok(None) };
    if !path.exists() {
        return Ok(None);
    }
    let old = Store::open(to, false, source.clock.clone(), source.entropy.clone()).await?;
    let moved = async {
        let mut conn = old.read().await?;
        Ok(match schema::found(&mut conn).await? {
            schema::Found::Nothing => false,
            schema::Found::Version(_) => schema::meta(&mut conn, MOVED_TO).await?.is_some(),
        })
    }
    .await;
    close(old).await;
    if !moved? {
        return Ok(None);
    }
    let moment = rfc3339(source.clock.wall_us());
    let stamp: String = moment.chars().filter(char::is_ascii_alphanumeric).collect();
    let aside = with_suffix(path, &format!(".moved-{stamp}"));
    rename_database(path, &aside)?;
    Ok(Some(aside))
}

/// What the audit log of the moved store says of the move.
struct Record<'a> {
    context: &'a Context,
    from: String,
    to: String,
}

impl Record<'_> {
    /// Writes it, in the transaction that makes the target a store.
    async fn write(&self, conn: &mut Conn, target: &Store) -> Result<()> {
        let all = environments::all_any_environment(conn).await?;
        let first = all.first().ok_or_else(|| Error::internal("no environment was carried"))?;
        let (heads, at) = (changes::heads(conn).await?, target.clock.now_us());
        let fact = Fact {
            target_kind: "store",
            before: Some(json!({ "database": self.from })),
            after: Some(json!({ "database": self.to })),
            ..Fact::default()
        };
        let (env, seq) = (first.env, heads.seq + 1);
        let action = Action::StoreMoved;
        let record = audit::NewRecord::of_change(env, at, self.context, action, &fact, seq);
        audit::insert(conn, heads.audit_no, vec![record]).await?;
        // Nothing that a follower must read again.
        let (nonce, touched) = (target.entropy.bytes(), Vec::new());
        changes::insert(conn, target.node(), vec![NewChange { seq, nonce, env, touched, at }]).await
    }
}

async fn carry(
    source: &Store,
    target: &Store,
    to: &Location,
    record: &Record<'_>,
    progress: &Progress,
) -> Result<MoveReport> {
    schema::bring_up(target).await?;
    let mut from = source.side().await?;
    let mut into = target.side().await?;
    if !environments::all_any_environment(&mut into).await?.is_empty() {
        return already_there(&mut from, &mut into, to).await;
    }
    begin_snapshot_alone(&mut from).await?;
    let carried = async {
        widen_cache(&mut into).await?;
        begin_exclusive(&mut into).await?;
        let report = copy_and_compare(&mut from, &mut into, to, progress).await?;
        schema::unset_meta(&mut into, MOVED_TO).await?;
        life::forget(&mut into).await?;
        record.write(&mut into, target).await?;
        schema::set_meta(&mut from, MOVED_TO, &report.to).await?;
        Ok(report)
    }
    .await;
    progress.end();
    match carried {
        Ok(report) => {
            from.raw("commit").await?;
            into.raw("commit").await.map_err(|mut error| {
                error.public = "the target did not confirm the move; run the same command again \
                                to finish it"
                    .to_owned();
                error
            })?;
            Ok(report)
        }
        Err(error) => {
            // OK to ignore: without them the transactions end with the connections.
            drop(from.raw("rollback").await);
            drop(into.raw("rollback").await);
            Err(error)
        }
    }
}

/// A target that holds something is refused, unless it holds what an earlier run put there.
async fn already_there(from: &mut Conn, into: &mut Conn, to: &Location) -> Result<MoveReport> {
    let marked = schema::meta(from, MOVED_TO).await? == Some(place(to));
    let life = schema::meta(from, "incarnation").await?;
    if !marked || life != schema::meta(into, "incarnation").await? {
        let public = format!("{} holds a store already; a move replaces nothing", place(to));
        return Err(Error::conflict("TARGET_NOT_EMPTY", public));
    }
    Ok(MoveReport {
        to: place(to),
        rows: 0,
        keys: 0,
        tables: 0,
        set_aside: None,
        already_moved: true,
    })
}

/// Begins a transaction that sees one snapshot and lets nobody else change the store.
async fn begin_snapshot_alone(conn: &mut Conn) -> Result<()> {
    match conn {
        Conn::Sqlite(_) => conn.raw("begin immediate").await,
        // The lock of every change is taken for the session, before the transaction: one that
        // waited for it inside would see a snapshot from before the wait. It falls with the
        // connection.
        Conn::Postgres(_) => {
            conn.raw("select pg_advisory_lock(7163001)").await?;
            conn.raw(
                "begin isolation level repeatable read; \
                 set local idle_in_transaction_session_timeout = 0; \
                 set local synchronous_commit = on",
            )
            .await
        }
    }
}

async fn copy_and_compare(
    from: &mut Conn,
    into: &mut Conn,
    to: &Location,
    progress: &Progress,
) -> Result<MoveReport> {
    copying::clear(into, TABLES.iter()).await?;
    // Each row is written once and read back once.
    progress.begin("moving", 2 * copying::count(from, TABLES.iter()).await?);
    let sent = copying::copy(from, into, TABLES.iter(), progress).await?;
    let arrived = copying::sums(into, TABLES.iter(), progress).await?;
    if let Some((sent, _)) = sent.iter().zip(&arrived).find(|(sent, there)| sent != there) {
        let cause = format!("table {} did not arrive as it was sent", sent.table);
        return Err(Error::internal(cause));
    }
    Ok(MoveReport {
        to: place(to),
        rows: sent.iter().map(|sum| sum.rows).sum(),
        keys: rows_in(&sent, "api_keys"),
        tables: u64::try_from(sent.len()).unwrap_or(0),
        set_aside: None,
        already_moved: false,
    })
}
