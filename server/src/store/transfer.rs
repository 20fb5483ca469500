//! Carrying a whole store from one database to another: backup, restore, move.
//!
//! One mechanism (`copying`) reads every table of [`tables`] in pages and writes it elsewhere, on
//! whichever engine either side is; values are numbers, text and bytes only, so it needs to know
//! nothing of what they mean. On it stand `backup` (to a new SQLite file, while the server runs),
//! `restore` (from such a file, which must not revive what was revoked since: see `narrowing`) and
//! `moving` (to the other engine). What an operator may ask for and how it is told is the command
//! line's business.
//!
//! The data folder's counter file belongs to none of this. It names itself by an id and a
//! generation that the database knows; the server compares them at its start and sets the file
//! aside by itself where they differ (see `counting`).

use std::str::FromStr;
use std::time::Duration;

use keyward_core::protocol::LeaseRow;
use sqlx::postgres::PgConnectOptions;

use super::{Conn, Location, Store, nodes, schema};
use crate::error::{Error, Result};
use crate::progress::Progress;

mod backup;
mod copying;
mod moving;
mod narrowing;
mod restore;
mod tables;
#[cfg(test)]
pub(super) mod tests;

pub(crate) use backup::backup;
pub(crate) use moving::move_store;
pub(crate) use restore::{RestoreReport, RestoreTarget, restore};

/// The name under which a store says where it was moved.
const MOVED_TO: &str = "moved_to";
/// How often the lease table is looked at while it is found out whether a server runs.
const WATCH_EVERY: Duration = Duration::from_millis(50);

/// Refuses a store whose contents live elsewhere by now; whatever were changed here would be lost.
///
/// # Errors
/// `Conflict` that says where the store is.
pub(crate) async fn refuse_if_moved(conn: &mut Conn) -> Result<()> {
    match schema::meta(conn, MOVED_TO).await? {
        None => Ok(()),
        Some(place) => Err(Error::conflict(
            "STORE_MOVED",
            format!("this store was moved to {place}; use it there, with --database or --data"),
        )),
    }
}

/// Refuses a PostgreSQL store from which a server verifies.
///
/// Clocks of two machines are never compared, so a row of the lease table is not judged by its
/// date: it is alive if it changes, and dead if it did not for as long as its lease lasts. An
/// SQLite store needs no such wait, because the lock of its folder tells at once.
async fn refuse_running_server(store: &Store, progress: &Progress) -> Result<()> {
    let began = store.clock.boot_us();
    let mut conn = store.read().await?;
    let first = nodes::all(&mut conn).await?.rows;
    // 1 % more than the longest lease, for clocks that run at different rates.
    let limit = first.iter().map(|node| node.lease_us + node.lease_us / 100).max().unwrap_or(0);
    progress.begin("waiting for leases to end (ms)", limit / 1_000);
    let mut shown = 0;
    loop {
        let elapsed = store.clock.boot_us() - began;
        if elapsed >= limit {
            progress.end();
            return Ok(());
        }
        progress.advance(usize::try_from((elapsed - shown) / 1_000).unwrap_or(0));
        shown = elapsed;
        tokio::time::sleep(WATCH_EVERY).await;
        let now = nodes::all(&mut conn).await?.rows;
        let unchanged = |node: &LeaseRow| {
            first.iter().any(|then| then.node == node.node && then.generation == node.generation)
        };
        if !now.iter().all(unchanged) {
            progress.end();
            return Err(Error::conflict(
                "SERVER_RUNNING",
                "a Keyward server is using this database; stop it first",
            ));
        }
    }
}

/// How a database is called in messages and reports: engine, host and name, never a password.
fn place(location: &Location) -> String {
    match location {
        Location::File(path) => format!("sqlite:{}", path.display()),
        Location::Server(url) => match PgConnectOptions::from_str(&url.0) {
            Ok(options) => {
                let name = options.get_database().unwrap_or(options.get_username());
                format!("postgres://{}:{}/{name}", options.get_host(), options.get_port())
            }
            Err(_) => "postgres://…".to_owned(),
        },
    }
}

/// Ends a store that nothing was queued in; SQLite's write-ahead log is gone afterwards.
async fn close(store: Store) {
    store.pools.close().await;
}

/// Gives SQLite's connection the memory that a large copy needs: 256 MiB of pages. With its usual
/// 2 MiB, rows that lie anywhere in an index would be written and read again page by page.
async fn widen_cache(conn: &mut Conn) -> Result<()> {
    match conn {
        Conn::Sqlite(_) => conn.raw("pragma cache_size = -262144").await,
        Conn::Postgres(_) => Ok(()),
    }
}

/// Begins a transaction in which this process alone may change the store, for as long as it takes.
///
/// It takes the lock of every change (see `write`), which nobody may hold for long while a server
/// runs; restore and move know that none does.
async fn begin_exclusive(conn: &mut Conn) -> Result<()> {
    match conn {
        Conn::Sqlite(_) => conn.raw("begin immediate").await,
        Conn::Postgres(_) => {
            conn.raw(
                "begin; set local idle_in_transaction_session_timeout = 0; \
                 set local synchronous_commit = on; select pg_advisory_xact_lock(7163001)",
            )
            .await
        }
    }
}
