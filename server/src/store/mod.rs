//! The database: ground state, and the only place where SQL is written.
//!
//! One SQL text runs on two engines. [`Conn`] has an arm for each, and the macros [`rows!`],
//! [`row!`] and [`run!`] repeat a statement in both arms; that is the whole abstraction. Reading
//! goes through [`Store::read`]; writing goes through [`Store::write`] (see `write`), which cannot
//! be entered without an actor and an action and whose commit leaves the audit record and the
//! change row. What a statement means is the business of the file of its noun, what a change is
//! for is the business of `ops/`.

use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection, PgPool, Postgres, Sqlite, SqlitePool};

use crate::clock::{Clock, Entropy};
use crate::error::{Error, Result};

pub(crate) mod apis;
pub(crate) mod applications;
pub(crate) mod audit;
pub(crate) mod changes;
pub(crate) mod counts;
pub(crate) mod engine;
pub(crate) mod environments;
pub(crate) mod hints;
pub(crate) mod idempotency;
pub(crate) mod keys;
pub(crate) mod life;
pub(crate) mod nodes;
mod notices;
pub(crate) mod owners;
pub(crate) mod pages;
pub(crate) mod schema;
pub(crate) mod sealed;
pub(crate) mod transfer;
mod write;

pub use write::{Committed, Fact, Outcome, Stamp, Touched, Tx};

/// How many connections read at once; writes have one of their own.
const READERS_MAX: u32 = 4;
/// How long a server may take to answer before its connection is given up.
const SILENCE_MAX: Duration = Duration::from_secs(5);
/// How long a connection to a server may take to be there.
const ACQUIRE_MAX: Duration = Duration::from_secs(5);
/// How long a process waits for another's write to end on SQLite.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// One connection, on one of the two engines.
pub(crate) enum Conn {
    /// The embedded engine.
    Sqlite(PoolConnection<Sqlite>),
    /// A server.
    Postgres(PoolConnection<Postgres>),
}

/// Repeats a statement in both arms of a [`Conn`] and fetches every row as `$row`.
macro_rules! rows {
    ($conn:expr, $row:ty, $sql:expr $(, $arg:expr)* $(,)?) => {
        match $conn {
            $crate::store::Conn::Sqlite(c) => sqlx::query_as::<_, $row>($sql)
                $(.bind($arg))*.fetch_all(&mut **c).await,
            $crate::store::Conn::Postgres(c) => sqlx::query_as::<_, $row>($sql)
                $(.bind($arg))*.fetch_all(&mut **c).await,
        }
        .map_err($crate::store::failed)
    };
}

/// Like [`rows!`], for at most one row.
macro_rules! row {
    ($conn:expr, $row:ty, $sql:expr $(, $arg:expr)* $(,)?) => {
        match $conn {
            $crate::store::Conn::Sqlite(c) => sqlx::query_as::<_, $row>($sql)
                $(.bind($arg))*.fetch_optional(&mut **c).await,
            $crate::store::Conn::Postgres(c) => sqlx::query_as::<_, $row>($sql)
                $(.bind($arg))*.fetch_optional(&mut **c).await,
        }
        .map_err($crate::store::failed)
    };
}

/// Like [`rows!`], for a statement that returns nothing: the number of rows it touched.
macro_rules! run {
    ($conn:expr, $sql:expr $(, $arg:expr)* $(,)?) => {
        match $conn {
            $crate::store::Conn::Sqlite(c) => sqlx::query::<sqlx::Sqlite>($sql)
                $(.bind($arg))*.execute(&mut **c).await.map(|done| done.rows_affected()),
            $crate::store::Conn::Postgres(c) => sqlx::query::<sqlx::Postgres>($sql)
                $(.bind($arg))*.execute(&mut **c).await.map(|done| done.rows_affected()),
        }
        .map_err($crate::store::failed)
    };
}
pub(crate) use {row, rows, run};

impl Conn {
    /// Runs fixed text without arguments: transaction control and migrations.
    pub(crate) async fn raw(&mut self, sql: &'static str) -> Result<()> {
        self.raw_text(sqlx::AssertSqlSafe(sql)).await
    }

    /// Like [`Conn::raw`], for text that this crate made from its own fixed parts.
    pub(crate) async fn raw_text(&mut self, sql: impl sqlx::SqlSafeStr) -> Result<()> {
        match self {
            Conn::Sqlite(c) => sqlx::raw_sql(sql).execute(&mut **c).await.map(|_| ()),
            Conn::Postgres(c) => sqlx::raw_sql(sql).execute(&mut **c).await.map(|_| ()),
        }
        .map_err(failed)
    }

    /// Commits a transaction that others rely on. Success means that it is where it has to be: on
    /// disk, and with the standbys that the server waits for.
    ///
    /// # Errors
    /// After any of them the outcome is unknown.
    pub(crate) async fn commit(&mut self) -> Result<()> {
        match self {
            Conn::Sqlite(_) => self.raw("commit").await,
            Conn::Postgres(_) => notices::without_warning(self.raw("commit")).await,
        }
    }

    /// Commits like [`Conn::commit`], and hints to whoever listens that change `seq` is there.
    pub(crate) async fn commit_change(&mut self, seq: i64) -> Result<()> {
        match self {
            Conn::Sqlite(_) => self.raw("commit").await,
            Conn::Postgres(_) => {
                let text = sqlx::AssertSqlSafe(format!("notify keyward, '{seq}'; commit"));
                notices::without_warning(self.raw_text(text)).await
            }
        }
    }

    /// Begins a transaction that sees one snapshot of the store and writes nothing.
    pub(crate) async fn begin_snapshot(&mut self) -> Result<()> {
        match self {
            Conn::Sqlite(_) => self.raw("begin deferred").await,
            Conn::Postgres(_) => {
                self.raw("begin transaction isolation level repeatable read read only").await
            }
        }
    }

    /// The database's own idea of the time, in µs since the Unix epoch.
    ///
    /// SQLite has no clock but the machine's, which the server that holds the file shares.
    pub(crate) async fn now_us(&mut self, clock: &Clock) -> Result<i64> {
        match self {
            Conn::Sqlite(_) => Ok(clock.wall_us()),
            Conn::Postgres(c) => sqlx::query_scalar::<Postgres, i64>(
                "select cast(extract(epoch from clock_timestamp()) * 1000000 as bigint)",
            )
            .fetch_one(&mut **c)
            .await
            .map_err(failed),
        }
    }
}

/// A connection that is closed instead of given back to its pool, unless what was done on it came
/// to its end: one with an open transaction, or on which an answer is still due, perhaps for ever,
/// must not be anybody's next one.
pub(crate) struct Unfinished(Option<Conn>);

impl Unfinished {
    /// A connection on which something begins.
    pub(crate) fn of(conn: Conn) -> Self {
        Self(Some(conn))
    }

    /// It came to its end.
    pub(crate) fn finish(mut self) {
        drop(self.0.take());
    }

    /// It came to its end, and something else begins.
    pub(crate) fn keep(mut self) -> Conn {
        self.0.take().expect("it is there until it is finished")
    }
}

impl Deref for Unfinished {
    type Target = Conn;

    fn deref(&self) -> &Conn {
        self.0.as_ref().expect("it is there until it is finished")
    }
}

impl DerefMut for Unfinished {
    fn deref_mut(&mut self) -> &mut Conn {
        self.0.as_mut().expect("it is there until it is finished")
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        match &mut self.0 {
            Some(Conn::Sqlite(conn)) => conn.close_on_drop(),
            Some(Conn::Postgres(conn)) => conn.close_on_drop(),
            None => {}
        }
    }
}

/// Which database, as the operator named it.
#[derive(Clone, Debug)]
pub enum Location {
    /// An SQLite file in the data folder.
    File(PathBuf),
    /// A PostgreSQL server; the text may hold a password, so it is never printed.
    Server(ServerUrl),
}

/// A `postgres://` address. `Debug` and `Display` leave the password out.
#[derive(Clone)]
pub struct ServerUrl(String);

impl ServerUrl {
    /// Keeps the address as given.
    pub fn new(url: impl Into<String>) -> Self {
        Self(url.into())
    }
}

impl std::fmt::Debug for ServerUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match PgConnectOptions::from_str(&self.0) {
            Ok(o) => write!(f, "postgres://{}:{}", o.get_host(), o.get_port()),
            Err(_) => f.write_str("postgres://…"),
        }
    }
}

impl Location {
    /// Which of the two engines, in one word.
    pub fn engine(&self) -> &'static str {
        match self {
            Location::File(_) => "sqlite",
            Location::Server(_) => "postgresql",
        }
    }
}

#[derive(Clone)]
enum Pools {
    Sqlite { read: SqlitePool, write: SqlitePool },
    Postgres { read: PgPool, write: PgPool },
}

/// The open database; cheap to clone.
#[derive(Clone)]
pub struct Store {
    pools: Pools,
    writer: write::Queue,
    /// Names this process in the change log.
    node: [u8; 16],
    /// The clock that changes are dated by.
    pub(crate) clock: Clock,
    /// Where ids and secrets come from.
    pub(crate) entropy: Entropy,
}

impl Store {
    /// Opens the database at `location` without changing it, except that a missing SQLite file is
    /// made when `create` is set. `schema::bring_up` makes or checks the tables.
    ///
    /// # Errors
    /// `Invalid` for an address that cannot be read, `Unavailable` when nobody answers there.
    pub async fn open(
        location: &Location,
        create: bool,
        clock: Clock,
        entropy: Entropy,
    ) -> Result<Self> {
        let pools = match location {
            Location::File(path) => open_sqlite(path, create).await?,
            Location::Server(url) => open_postgres(url).await?,
        };
        let node = entropy.bytes();
        let writer = write::Queue::start(pools.clone(), node, clock.clone(), entropy.clone());
        Ok(Self { pools, writer, node, clock, entropy })
    }

    /// Which of the two engines.
    pub fn is_sqlite(&self) -> bool {
        matches!(self.pools, Pools::Sqlite { .. })
    }

    /// This process's name in the change log and the lease table; new at every start.
    pub fn node(&self) -> [u8; 16] {
        self.node
    }

    /// A connection for reading. It must not be used to write: that would leave no record.
    pub(crate) async fn read(&self) -> Result<Conn> {
        match &self.pools {
            Pools::Sqlite { read, .. } => read.acquire().await.map(Conn::Sqlite),
            Pools::Postgres { read, .. } => read.acquire().await.map(Conn::Postgres),
        }
        .map_err(failed)
    }

    /// A connection for the follower, which must not wait behind readers: on a server some of those
    /// may hang for as long as the network is cut.
    pub(crate) async fn follow(&self) -> Result<Conn> {
        if self.is_sqlite() { self.read().await } else { self.side().await }
    }

    /// Does a piece of work on the database, but waits no longer than [`SILENCE_MAX`] for a server:
    /// one that was cut off without a word never answers. SQLite always does, and giving up there
    /// would leave a transaction open.
    ///
    /// # Errors
    /// Those of `work`, or `Unavailable`.
    pub(crate) async fn in_time<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        self.pools.in_time(work).await
    }

    /// A connection that may write what is no change: leases, counts, migrations, copies.
    pub(crate) async fn side(&self) -> Result<Conn> {
        self.pools.writing().await
    }

    /// Closes every connection after the queued writes are done.
    pub async fn close(&self) {
        self.writer.close().await;
        let closed = self.in_time(async {
            self.pools.close().await;
            Ok(())
        });
        if closed.await.is_err() {
            tracing::warn!("some connections to the database did not end and are left to it");
        }
    }
}

impl Pools {
    /// Closes every connection. SQLite's write-ahead log is gone from the folder afterwards.
    async fn close(&self) {
        match self {
            Pools::Sqlite { read, write } => {
                read.close().await;
                write.close().await;
            }
            Pools::Postgres { read, write } => {
                read.close().await;
                write.close().await;
            }
        }
    }

    async fn in_time<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        match self {
            Pools::Sqlite { .. } => work.await,
            Pools::Postgres { .. } => {
                let answer = tokio::time::timeout(SILENCE_MAX, work).await;
                answer.unwrap_or_else(|_| Err(Error::unavailable(SILENT)))
            }
        }
    }

    async fn writing(&self) -> Result<Conn> {
        match self {
            Pools::Sqlite { write, .. } => write.acquire().await.map(Conn::Sqlite),
            Pools::Postgres { write, .. } => write.acquire().await.map(Conn::Postgres),
        }
        .map_err(failed)
    }
}

async fn open_sqlite(path: &Path, create: bool) -> Result<Pools> {
    if !create && !path.exists() {
        return Err(Error::invalid(
            "NO_STORE",
            "there is no Keyward store in this folder; run `keyward init` or `keyward serve`",
        ));
    }
    let options = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(create)
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(BUSY_TIMEOUT)
        .foreign_keys(false)
        // 64 MiB of mapped pages: reading the start-up load without copying it.
        .pragma("mmap_size", "67108864")
        .statement_cache_capacity(200)
        // The engine's thread hands rows over in this many at a time; a load reads a million.
        .row_buffer_size(4_096)
        .disable_statement_logging();
    refuse_foreign_file(path, &options).await?;
    let options = options.journal_mode(SqliteJournalMode::Wal);
    // Changes touch pages all over the file, because digests are random. 32 MiB of them are kept
    // and the log goes back into the file every 8,000 pages of 4 KiB instead of every 1,000, so
    // that a page which changes often is written there once. What the log holds is as durable.
    let writing =
        options.clone().pragma("cache_size", "-32768").pragma("wal_autocheckpoint", "8000");
    let write = SqlitePoolOptions::new().max_connections(2).connect_lazy_with(writing);
    // The first connection switches the file to WAL, which readers alone could not.
    drop(write.acquire().await.map_err(|cause| cannot_open(path, cause))?);
    let read = SqlitePoolOptions::new().max_connections(READERS_MAX).connect_lazy_with(options);
    Ok(Pools::Sqlite { read, write })
}

async fn open_postgres(url: &ServerUrl) -> Result<Pools> {
    let options = PgConnectOptions::from_str(&url.0)
        .map_err(|_| {
            Error::invalid(
                "BAD_DATABASE_URL",
                "the database address must look like postgres://user@host:5432/name",
            )
        })?
        .application_name("keyward")
        .disable_statement_logging();
    let write = PgPoolOptions::new()
        .max_connections(5)
        .acquire_timeout(ACQUIRE_MAX)
        .connect_lazy_with(options.clone());
    let read = PgPoolOptions::new()
        .max_connections(READERS_MAX)
        .acquire_timeout(ACQUIRE_MAX)
        .connect_lazy_with(options);
    drop(write.acquire().await.map_err(|cause| cannot_connect(url, cause))?);
    Ok(Pools::Postgres { read, write })
}

/// Refuses a file with somebody else's tables, before its journal mode is changed.
async fn refuse_foreign_file(path: &Path, options: &SqliteConnectOptions) -> Result<()> {
    if !path.exists() {
        return Ok(());
    }
    let mut conn = options.connect().await.map_err(|cause| cannot_open(path, cause))?;
    let tables = "select count(*), coalesce(sum(name = 'meta'), 0) from sqlite_master
                  where type = 'table'";
    let found = sqlx::query_as::<_, (i64, i64)>(tables).fetch_one(&mut conn).await;
    // OK to ignore: nothing was written.
    let _ = conn.close().await;
    match found.map_err(|cause| cannot_open(path, cause))? {
        (1.., 0) => Err(schema::foreign()),
        _ => Ok(()),
    }
}

/// Why an SQLite file could not be opened, with its name.
fn cannot_open(path: &Path, cause: sqlx::Error) -> Error {
    let failure = failed(cause);
    // Opening writes beside the file, so that a folder which cannot be written looks like a file
    // which cannot be opened.
    let folder = path.parent().unwrap_or(path);
    let why = match rustix::fs::access(folder, rustix::fs::Access::WRITE_OK) {
        Err(why) => format!("the folder cannot be written ({})", std::io::Error::from(why).kind()),
        Ok(()) if failure.kind == crate::error::Kind::Internal => "it cannot be opened".to_owned(),
        Ok(()) => failure.public.clone(),
    };
    Error { public: format!("{}: {why}", path.display()), ..failure }
}

/// Why a server's database could not be reached, with its address and without a password.
fn cannot_connect(url: &ServerUrl, cause: sqlx::Error) -> Error {
    let public = match cause.as_database_error() {
        // The server's own sentence: no such database, no such role, a wrong password.
        Some(e) => format!("the database at {url:?} says: {}", e.message()),
        None => format!("the database at {url:?} does not answer"),
    };
    Error::unavailable(public).because(cause)
}

/// What a failed statement means to the one who asked.
///
/// A broken constraint is a `Conflict` that carries the constraint's name in `public`, to be told
/// in words by the caller (see [`breaks`]); a full or absent database is `Unavailable`.
pub(crate) fn failed(cause: sqlx::Error) -> Error {
    let public = match cause.as_database_error() {
        Some(e) if e.is_unique_violation() => {
            let name = match e.constraint() {
                Some(name) => name.to_owned(),
                None => e.message().to_owned(),
            };
            return Error::conflict("CONSTRAINT", name).because(cause);
        }
        Some(e) => e.code().and_then(|code| state(&code)),
        None => {
            let text = cause.to_string();
            let ours = text.contains("decoding") || text.contains("column");
            (!ours).then_some(SILENT)
        }
    };
    match public {
        Some(public) => Error::unavailable(public).because(cause),
        None => Error::internal(cause),
    }
}

const SILENT: &str = "the database does not answer; try again";

/// What state of the database an error's code tells of; `None` for a defect of ours.
///
/// SQLite's codes are numbers whose low byte is the kind (sqlite.org/rescode.html), PostgreSQL's
/// are five characters of which the first two are the class (its manual, appendix A).
fn state(code: &str) -> Option<&'static str> {
    let read_only = "the database cannot be written: it is on a read-only disk, closed to this \
                     account, or a standby";
    let full = "the database cannot be written: the disk is full";
    if code.len() < 5 {
        return match code.parse::<u32>().ok()? & 0xff {
            // Busy, locked, cannot open.
            5 | 6 | 14 => Some(SILENT),
            8 => Some(read_only),
            10 => Some("the database's file cannot be read or written: the disk fails or is full"),
            11 => Some("the database's file is damaged; restore a backup"),
            13 => Some(full),
            26 => Some("the database's file is not an SQLite database"),
            _ => None,
        };
    }
    match code.get(..2)? {
        _ if code == "25006" => Some(read_only),
        _ if code == "53100" => Some(full),
        // Connection, shutdown, resources, system, transaction state, serialization, locks.
        "08" | "53" | "57" | "58" | "25" | "40" | "55" => Some(SILENT),
        _ => None,
    }
}

/// The greatest of 1, 2, 3, 4, 6, 8, 12, 16, 24, … that is not greater than `rows`.
fn portion(rows: usize) -> usize {
    let power = 1 << rows.max(1).ilog2();
    if rows >= power + power / 2 { power + power / 2 } else { power }
}

/// Splits rows to be written into portions of at most `most`, and of few different sizes. Each size
/// makes a statement of its own, and one that is not found prepared costs as much again.
pub(crate) fn portions<T>(mut rows: &[T], most: usize) -> impl Iterator<Item = &[T]> {
    std::iter::from_fn(move || {
        let size = if rows.len() >= most { most } else { portion(rows.len()) };
        let (first, rest) = rows.split_at_checked(size)?;
        rows = rest;
        Some(first)
    })
}

/// Like [`portions`], for a list of ids to be looked for: the last is repeated until their number
/// is one of the few, but not beyond `most`.
pub(crate) fn repeated<T>(ids: &[T], most: usize) -> impl Iterator<Item = &T> {
    let size = (ids.len()..).find(|size| portion(*size) == *size).unwrap_or(most);
    let more = size.min(most).saturating_sub(ids.len());
    ids.iter().chain(std::iter::repeat_n(ids.last(), more).flatten())
}

/// Whether `error` is the breach of the unique index `name`, which SQLite names by its columns.
pub(crate) fn breaks(error: &Error, name: &str, sqlite_columns: &str) -> bool {
    error.code == "CONSTRAINT" && (error.public == name || error.public.contains(sqlite_columns))
}

/// Sixteen bytes from a column that holds one of our ids.
pub(crate) fn id16(bytes: &[u8]) -> Result<[u8; 16]> {
    bytes.try_into().map_err(|_| Error::internal("an id in the database is not 16 bytes long"))
}

/// A digest from a column that holds one.
pub(crate) fn digest(bytes: &[u8]) -> Result<keyward_core::Digest> {
    let bytes = bytes
        .try_into()
        .map_err(|_| Error::internal("a digest in the database is not 32 bytes long"))?;
    Ok(keyward_core::Digest::from_bytes(bytes))
}
