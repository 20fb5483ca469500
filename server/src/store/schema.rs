//! Migrations: bringing a database up to the schema that this binary understands.
//!
//! Migrations only add. One text serves both engines, with `BLOB` read as `BYTEA` and texts ordered
//! by their bytes on PostgreSQL.
//! A database newer than this binary is refused, since an older binary could not know what the
//! newer one keeps there.

use sqlx::AssertSqlSafe;

use super::{Conn, Store, row, run};
use crate::error::{Error, Result};

/// Every migration, oldest first; the schema's version is how many were applied.
const MIGRATIONS: &[&str] = &[include_str!("migrations/0001.sql")];

/// The version of the schema that this binary writes.
pub(crate) const VERSION: usize = MIGRATIONS.len();

/// What a database holds, before anything is done to it.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub(crate) enum Found {
    /// No table of Keyward's.
    Nothing,
    /// A schema of this version.
    Version(usize),
}

/// Looks which schema is there.
pub(crate) async fn found(conn: &mut Conn) -> Result<Found> {
    let tables = match conn {
        Conn::Sqlite(_) => row!(
            conn,
            (i64,),
            "select count(*) from sqlite_master where type = 'table' and name = 'meta'",
        ),
        Conn::Postgres(_) => row!(
            conn,
            (i64,),
            "select count(*) from information_schema.tables
             where table_schema = current_schema() and table_name = 'meta'",
        ),
    }?;
    if tables.is_none_or(|(count,)| count == 0) {
        return Ok(Found::Nothing);
    }
    let version = meta(conn, "schema_version").await?;
    match version.as_deref().map(str::parse::<usize>) {
        Some(Ok(version)) => Ok(Found::Version(version)),
        Some(Err(_)) | None => Err(Error::invalid(
            "FOREIGN_DATABASE",
            "this database has a table `meta` that is not Keyward's; use another database",
        )),
    }
}

/// Makes the tables, or adds what this binary needs and the database lacks.
///
/// # Errors
/// `Invalid` when the database is from a newer version.
pub(crate) async fn bring_up(store: &Store) -> Result<()> {
    let mut conn = store.side().await?;
    match &conn {
        Conn::Sqlite(_) => conn.raw("begin immediate").await?,
        Conn::Postgres(_) => {
            conn.raw("begin; select pg_advisory_xact_lock(7163002)").await?;
        }
    }
    let done = match refuse_encoding(&mut conn).await {
        Ok(()) => apply(&mut conn, store).await,
        Err(refused) => Err(refused),
    };
    match &done {
        Ok(()) => conn.raw("commit").await?,
        Err(_) => conn.raw("rollback").await?,
    }
    done
}

/// Refuses a PostgreSQL database that cannot keep every name, or counts its bytes otherwise.
///
/// # Errors
/// `Invalid` with the encoding.
pub(crate) async fn refuse_encoding(conn: &mut Conn) -> Result<()> {
    if matches!(conn, Conn::Sqlite(_)) {
        return Ok(());
    }
    let found = row!(conn, (String,), "select current_setting('server_encoding')")?;
    match found {
        Some((encoding,)) if encoding != "UTF8" => {
            let public = format!(
                "this database has the encoding {encoding} and cannot keep every name; make one \
                 with `create database … encoding 'UTF8' template template0`"
            );
            Err(Error::invalid("BAD_ENCODING", public))
        }
        _ => Ok(()),
    }
}

async fn apply(conn: &mut Conn, store: &Store) -> Result<()> {
    let from = match found(conn).await? {
        Found::Nothing => {
            refuse_foreign_tables(conn).await?;
            0
        }
        Found::Version(version) if version > VERSION => {
            return Err(Error::invalid(
                "NEWER_STORE",
                format!(
                    "this store was written by a newer Keyward (schema {version}, this binary \
                     knows {VERSION}); start the newer binary, or restore a backup made before"
                ),
            ));
        }
        Found::Version(version) => version,
    };
    for text in MIGRATIONS.iter().skip(from) {
        let text = match conn {
            Conn::Sqlite(_) => (*text).to_owned(),
            // Texts compare by their bytes, as on SQLite: pages keep one order on both engines, and
            // an upgrade of the system's collations cannot disturb a primary key.
            Conn::Postgres(_) => {
                text.replace("BLOB", "BYTEA").replace(" text", " text collate \"C\"")
            }
        };
        conn.raw_text(AssertSqlSafe(text)).await?;
    }
    if from == 0 {
        let life = hex(&store.entropy.bytes::<16>());
        set_meta(conn, "incarnation", &life).await?;
    }
    if from < VERSION {
        set_meta(conn, "schema_version", &VERSION.to_string()).await?;
    }
    Ok(())
}

/// Refuses a database that somebody else uses: ours would be in their way, and theirs in ours.
async fn refuse_foreign_tables(conn: &mut Conn) -> Result<()> {
    let tables = match conn {
        Conn::Sqlite(_) => {
            row!(conn, (i64,), "select count(*) from sqlite_master where type = 'table'")
        }
        Conn::Postgres(_) => row!(
            conn,
            (i64,),
            "select count(*) from information_schema.tables
             where table_schema = current_schema() and table_type = 'BASE TABLE'",
        ),
    }?;
    if tables.is_some_and(|(count,)| count > 0) { Err(foreign()) } else { Ok(()) }
}

/// That the database is somebody else's.
pub(super) fn foreign() -> Error {
    let public = "this database holds tables that are not Keyward's; use an empty database";
    Error::invalid("FOREIGN_DATABASE", public)
}

/// A single value of the store's own.
pub(crate) async fn meta(conn: &mut Conn, name: &str) -> Result<Option<String>> {
    Ok(row!(conn, (String,), "select value from meta where name = $1", name)?.map(|(value,)| value))
}

/// Sets a single value of the store's own.
pub(crate) async fn set_meta(conn: &mut Conn, name: &str, value: &str) -> Result<()> {
    run!(
        conn,
        "insert into meta (name, value) values ($1, $2)
         on conflict (name) do update set value = excluded.value",
        name,
        value,
    )?;
    Ok(())
}

/// Forgets a single value of the store's own.
pub(crate) async fn unset_meta(conn: &mut Conn, name: &str) -> Result<()> {
    run!(conn, "delete from meta where name = $1", name)?;
    Ok(())
}

/// Bytes in lower-case hex.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
