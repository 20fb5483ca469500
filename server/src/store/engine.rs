//! What an operator should know of the database engine itself: `keyward doctor` asks, and a server
//! now and then.

use super::{Conn, row};
use crate::error::Result;

/// How the engine is set up, as far as a promise depends on it.
#[derive(Debug)]
pub(crate) enum Engine {
    /// The embedded engine.
    Sqlite {
        /// Its version.
        version: String,
        /// `wal`, or a promise of readers that do not wait is broken.
        journal: String,
    },
    /// A server.
    Postgres {
        /// Its version.
        version: String,
        /// Whether a commit waits for the disk and for synchronous standbys.
        synchronous_commit: String,
        /// The standbys that a commit waits for; empty for none.
        synchronous_standbys: String,
        /// How many receive the write-ahead log at this moment, synchronous or not.
        standbys: i64,
        /// Whether this is a standby itself, which must never be followed.
        is_standby: bool,
        /// Whether commits are flushed to disk.
        fsync: String,
    },
}

impl Engine {
    /// Whether a standby is there that commits do not wait for: after a failover to it, changes
    /// that were acknowledged can be missing.
    pub(crate) fn has_asynchronous_standby(&self) -> bool {
        match self {
            Self::Sqlite { .. } => false,
            Self::Postgres { synchronous_standbys, standbys, .. } => {
                synchronous_standbys.is_empty() && *standbys > 0
            }
        }
    }
}

/// Asks the engine how it is set up.
pub(crate) async fn engine(conn: &mut Conn) -> Result<Engine> {
    if matches!(conn, Conn::Sqlite(_)) {
        let version = row!(conn, (String,), "select sqlite_version()")?;
        let journal = row!(conn, (String,), "select journal_mode from pragma_journal_mode")?;
        return Ok(Engine::Sqlite { version: first(version), journal: first(journal) });
    }
    type Settings = (String, String, String, String);
    let settings = row!(
        conn,
        Settings,
        "select current_setting('server_version'), current_setting('synchronous_commit'),
                current_setting('synchronous_standby_names'), current_setting('fsync')",
    )?;
    let (standby, standbys) = row!(
        conn,
        (i64, i64),
        "select cast(cast(pg_is_in_recovery() as int) as bigint), count(*)
         from pg_stat_replication",
    )?
    .unwrap_or_default();
    let (version, synchronous_commit, synchronous_standbys, fsync) = settings.unwrap_or_default();
    let is_standby = standby != 0;
    Ok(Engine::Postgres {
        version,
        synchronous_commit,
        synchronous_standbys,
        standbys,
        is_standby,
        fsync,
    })
}

fn first(row: Option<(String,)>) -> String {
    row.map(|(text,)| text).unwrap_or_default()
}
