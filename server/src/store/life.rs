//! Which life of the database answers, and what is left of the one before.
//!
//! A number of the change log means a change only in one life. A life is named by a digest of three
//! things: PostgreSQL's system identifier, which another cluster does not share; its timeline,
//! which a promoted standby does not share; and a random id in the store, which a restore changes.
//! On SQLite the random id is all there is. The timeline is asked for by the name of the present
//! log file, because the control file tells of a promotion only after the next checkpoint.
//!
//! A failover can lose rows of the lease table, so that for the length of the longest lease nobody
//! knows who may verify. A process that was there remembers how long that goes on; for one that
//! starts a moment later, whoever notices a new life first writes down when (by the database's
//! clock, which alone all processes share). What follows from it is decided in
//! `keyward_core::protocol`.

use keyward_core::protocol::Incarnation;
use keyward_core::sha256;

use super::schema::{self, hex};
use super::{Conn, Store, row, run};
use crate::error::{Error, Result};

/// The name under which the store keeps the life that was last seen, and since when.
const SEEN: &str = "life_seen";
/// The name under which the store keeps the longest lease, in µs, that a process ever had on it.
const LONGEST: &str = "lease_us_longest";

/// Fetches by `$fetch` (`row` or `rows`) what a statement selects together with the three columns
/// that [`incarnation`] takes: its text is `$before`, those columns, `$after`.
macro_rules! with_life {
    ($fetch:ident, $conn:expr, $row:ty, $before:literal, $after:literal $(, $arg:expr)* $(,)?) => {
        match $conn {
            $crate::store::Conn::Sqlite(_) => $fetch!(
                $conn,
                $row,
                concat!(
                    $before,
                    "(select value from meta where name = 'incarnation'), '', ''",
                    $after
                )
                $(, $arg)*
            ),
            $crate::store::Conn::Postgres(_) => $fetch!(
                $conn,
                $row,
                concat!(
                    $before,
                    "(select value from meta where name = 'incarnation'),
                     (select cast(system_identifier as text) from pg_control_system()),
                     (select case when pg_is_in_recovery() then null
                             else left(pg_walfile_name(pg_current_wal_lsn()), 8) end)",
                    $after
                )
                $(, $arg)*
            ),
        }
    };
}
pub(super) use with_life;

/// The life that those columns name.
///
/// # Errors
/// `Unavailable` for a standby: what it knows may be old.
pub(super) fn incarnation(
    store: Option<String>,
    system: &str,
    timeline: Option<String>,
) -> Result<Incarnation> {
    let store = store.ok_or_else(|| Error::internal("the store has no incarnation"))?;
    let timeline = timeline.ok_or_else(|| {
        let public = "the database is a standby, which may be behind; the primary is needed";
        Error::unavailable(public)
    })?;
    let digest = sha256(format!("{store}\n{system}\n{timeline}").as_bytes());
    Ok(Incarnation(*digest.bytes()))
}

/// What a process that has just come must know of those before it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Past {
    /// For how long yet rows of the lease table may be missing, in µs.
    pub(crate) quarantine_left_us: i64,
    /// The longest lease that anybody ever had on this store, in µs.
    pub(crate) longest_us: i64,
}

/// Writes down that this life was seen and that a lease of `lease_us` will be taken, where that is
/// news, and tells what is known. To be called before a lease is taken, or without one.
pub(crate) async fn note(store: &Store, seen: Incarnation, lease_us: i64) -> Result<Past> {
    if store.is_sqlite() {
        // One server at a time, under the folder's lock: nobody else's lease can be lost.
        return Ok(Past { quarantine_left_us: 0, longest_us: lease_us });
    }
    let mut conn = super::Unfinished::of(store.side().await?);
    let name = hex(&seen.0);
    let record = read(&mut conn).await?;
    if record.life.as_ref().is_none_or(|(life, _)| *life != name) {
        // A store that nobody ever verified from has no lease to wait for.
        let since_us = if record.life.is_some() { record.now_us } else { 0 };
        run!(
            &mut *conn,
            "insert into meta (name, value) values ($1, $2)
             on conflict (name) do update set value = excluded.value
             where left(meta.value, 64) <> left(excluded.value, 64)",
            SEEN,
            format!("{name} {since_us}"),
        )?;
    }
    let longest_us = record.longest_us.max(lease_us);
    if record.noted_longest_us.is_none_or(|noted| noted < longest_us) {
        run!(
            &mut *conn,
            "insert into meta (name, value) values ($1, $2)
             on conflict (name) do update set value = excluded.value
             where cast(meta.value as bigint) < cast(excluded.value as bigint)",
            LONGEST,
            longest_us.to_string(),
        )?;
    }
    let record = read(&mut conn).await?;
    conn.finish();
    let longest_us = record.longest_us.max(lease_us);
    let all_us = longest_us + longest_us / 100;
    let since_us = record.life.map_or(0, |(_, since_us)| since_us);
    let quarantine_left_us = since_us.saturating_add(all_us).saturating_sub(record.now_us);
    Ok(Past { quarantine_left_us: quarantine_left_us.clamp(0, all_us), longest_us })
}

/// Forgets what is on record, in a copy from which nobody ever verified, or after every lease was
/// waited for.
pub(super) async fn forget(conn: &mut Conn) -> Result<()> {
    schema::unset_meta(conn, SEEN).await?;
    schema::unset_meta(conn, LONGEST).await
}

/// What the store has on record.
struct Record {
    /// The life that was last seen, and since when.
    life: Option<(String, i64)>,
    noted_longest_us: Option<i64>,
    /// That, or a longer one that a row of the lease table has.
    longest_us: i64,
    /// The database's time.
    now_us: i64,
}

async fn read(conn: &mut Conn) -> Result<Record> {
    type Row = (Option<String>, Option<String>, Option<i64>, i64);
    let found = row!(
        conn,
        Row,
        "select (select value from meta where name = $1), (select value from meta where name = $2),
                (select max(lease_us) from node_lease),
                cast(extract(epoch from clock_timestamp()) * 1000000 as bigint)",
        SEEN,
        LONGEST,
    )?;
    let (life, noted, of_rows, now_us) =
        found.ok_or_else(|| Error::internal("a row of constants is missing"))?;
    let life = life.map(|text| {
        let (name, since) = text.split_once(' ').unwrap_or((&text, ""));
        // What cannot be read is as if it were seen just now: safe, and over soon.
        (name.to_owned(), since.parse().unwrap_or(now_us))
    });
    let noted_longest_us = noted.and_then(|text| text.parse().ok());
    let longest_us = noted_longest_us.max(of_rows).unwrap_or(0);
    Ok(Record { life, noted_longest_us, longest_us, now_us })
}
