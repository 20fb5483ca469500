//! Copying tables from one connection to another, page after page, and comparing what arrived.
//!
//! Both connections are in a transaction of the caller's: the source in one snapshot, the target
//! in one that is committed when everything has arrived.

use keyward_core::sha256;
use sqlx::{ColumnIndex, Database, Decode, Encode, QueryBuilder, Row, Type};

use super::tables::{Kind, Table};
use crate::error::Result;
use crate::progress::Progress;
use crate::store::{Conn, failed};

/// Most rows in a page.
const PAGE_ROWS: usize = 1_000;
/// Most values in a page: SQLite binds up to 32,766 in a statement, PostgreSQL 65,535.
const PAGE_VALUES: usize = 30_000;

/// A value of any column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    Number(Option<i64>),
    Text(Option<String>),
    Bytes(Option<Vec<u8>>),
}

/// What a table holds, in a form that does not depend on the order of its rows: their number, and
/// the sum of their SHA-256 digests, each taken as four numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Sum {
    pub(super) table: &'static str,
    pub(super) rows: u64,
    lanes: [u64; 4],
}

impl Sum {
    fn of_nothing(table: &'static str) -> Self {
        Self { table, rows: 0, lanes: [0; 4] }
    }

    fn add(&mut self, row: &[Value]) {
        let mut bytes = Vec::with_capacity(256);
        for value in row {
            let (tag, content) = match value {
                Value::Number(number) => (1, number.map(|n| n.to_be_bytes().to_vec())),
                Value::Text(text) => (2, text.as_ref().map(|text| text.as_bytes().to_vec())),
                Value::Bytes(bytes) => (3, bytes.clone()),
            };
            // A null is told from an empty value by its length, which no value can have.
            let length = content.as_ref().map_or(u64::MAX, |content| content.len() as u64);
            bytes.push(tag);
            bytes.extend_from_slice(&length.to_be_bytes());
            bytes.extend(content.unwrap_or_default());
        }
        let digest = sha256(&bytes);
        for (lane, part) in self.lanes.iter_mut().zip(digest.bytes().as_chunks::<8>().0) {
            *lane = lane.wrapping_add(u64::from_be_bytes(*part));
        }
        self.rows += 1;
    }
}

/// How many rows are in `sums`' table `name`.
pub(super) fn rows_in(sums: &[Sum], name: &str) -> u64 {
    sums.iter().find(|sum| sum.table == name).map_or(0, |sum| sum.rows)
}

/// Empties `tables`.
pub(super) async fn clear<'t>(
    conn: &mut Conn,
    tables: impl Iterator<Item = &'t Table>,
) -> Result<()> {
    for table in tables {
        conn.raw_text(sqlx::AssertSqlSafe(format!("delete from {}", table.name))).await?;
    }
    Ok(())
}

/// How many rows `tables` hold together.
pub(super) async fn count<'t>(
    conn: &mut Conn,
    tables: impl Iterator<Item = &'t Table>,
) -> Result<i64> {
    let mut total = 0;
    for table in tables {
        macro_rules! count {
            ($engine:ty, $c:expr) => {
                QueryBuilder::<$engine>::new(format!("select count(*) from {}", table.name))
                    .build_query_scalar::<i64>()
                    .fetch_one(&mut **$c)
                    .await
            };
        }
        total += match conn {
            Conn::Sqlite(c) => count!(sqlx::Sqlite, c),
            Conn::Postgres(c) => count!(sqlx::Postgres, c),
        }
        .map_err(failed)?;
    }
    Ok(total)
}

/// Copies `tables` into their empty namesakes; what was copied, table by table.
pub(super) async fn copy<'t>(
    from: &mut Conn,
    to: &mut Conn,
    tables: impl Iterator<Item = &'t Table>,
    progress: &Progress,
) -> Result<Vec<Sum>> {
    let mut sums = Vec::new();
    for table in tables {
        let mut sum = Sum::of_nothing(table.name);
        let mut after = None;
        loop {
            let page = read(from, table, after.as_deref()).await?;
            let Some(last) = page.last() else { break };
            after = last.get(..table.key().len()).map(<[Value]>::to_vec);
            page.iter().for_each(|row| sum.add(row));
            insert(to, table, &page).await?;
            progress.advance(page.len());
        }
        sums.push(sum);
    }
    Ok(sums)
}

/// What `tables` hold.
pub(super) async fn sums<'t>(
    conn: &mut Conn,
    tables: impl Iterator<Item = &'t Table>,
    progress: &Progress,
) -> Result<Vec<Sum>> {
    let mut sums = Vec::new();
    for table in tables {
        let mut sum = Sum::of_nothing(table.name);
        let mut after = None;
        loop {
            let page = read(conn, table, after.as_deref()).await?;
            let Some(last) = page.last() else { break };
            after = last.get(..table.key().len()).map(<[Value]>::to_vec);
            page.iter().for_each(|row| sum.add(row));
            progress.advance(page.len());
        }
        sums.push(sum);
    }
    Ok(sums)
}

/// The row of `table` with the key `key`.
pub(super) async fn find(
    conn: &mut Conn,
    table: &Table,
    key: &[Value],
) -> Result<Option<Vec<Value>>> {
    macro_rules! find {
        ($engine:ty, $c:expr) => {{
            let mut query = selection::<$engine>(table, "=", Some(key));
            let found = query.build().fetch_optional(&mut **$c).await.map_err(failed)?;
            found.map(|row| values(&row, &table.columns())).transpose()
        }};
    }
    match conn {
        Conn::Sqlite(c) => find!(sqlx::Sqlite, c),
        Conn::Postgres(c) => find!(sqlx::Postgres, c),
    }
}

/// A page of `table` in the order of its key, beginning after the key `after`.
async fn read(conn: &mut Conn, table: &Table, after: Option<&[Value]>) -> Result<Vec<Vec<Value>>> {
    macro_rules! page {
        ($engine:ty, $c:expr) => {{
            let mut query = selection::<$engine>(table, ">", after);
            let names: Vec<&str> = table.key().iter().map(|(name, _)| *name).collect();
            let size = page_rows(table);
            query.push(format_args!(" order by {} limit {size}", names.join(", ")));
            let found = query.build().fetch_all(&mut **$c).await.map_err(failed)?;
            let columns = table.columns();
            found.iter().map(|row| values(row, &columns)).collect()
        }};
    }
    match conn {
        Conn::Sqlite(c) => page!(sqlx::Sqlite, c),
        Conn::Postgres(c) => page!(sqlx::Postgres, c),
    }
}

fn page_rows(table: &Table) -> usize {
    PAGE_ROWS.min(PAGE_VALUES / table.columns().len())
}

/// `select` every column of `table` where its key compares with `key` as `comparison` says.
fn selection<DB: Database>(
    table: &Table,
    comparison: &str,
    key: Option<&[Value]>,
) -> QueryBuilder<DB>
where
    DB::Arguments: Default,
    for<'v> Option<i64>: Encode<'v, DB> + Type<DB>,
    for<'v> Option<String>: Encode<'v, DB> + Type<DB>,
    for<'v> Option<Vec<u8>>: Encode<'v, DB> + Type<DB>,
{
    let names: Vec<&str> = table.columns().iter().map(|(name, _)| *name).collect();
    let mut query = QueryBuilder::new(format!("select {} from {}", names.join(", "), table.name));
    if let Some(key) = key {
        let names: Vec<&str> = table.key().iter().map(|(name, _)| *name).collect();
        query.push(format_args!(" where ({}) {comparison} (", names.join(", ")));
        for (position, value) in key.iter().enumerate() {
            if position > 0 {
                query.push(", ");
            }
            match value {
                Value::Number(number) => query.push_bind(*number),
                Value::Text(text) => query.push_bind(text.clone()),
                Value::Bytes(bytes) => query.push_bind(bytes.clone()),
            };
        }
        query.push(")");
    }
    query
}

fn values<R: Row>(row: &R, columns: &[(&str, Kind)]) -> Result<Vec<Value>>
where
    usize: ColumnIndex<R>,
    for<'r> Option<i64>: Decode<'r, R::Database> + Type<R::Database>,
    for<'r> Option<String>: Decode<'r, R::Database> + Type<R::Database>,
    for<'r> Option<Vec<u8>>: Decode<'r, R::Database> + Type<R::Database>,
{
    columns
        .iter()
        .enumerate()
        .map(|(position, (_, kind))| {
            match kind {
                Kind::Number => row.try_get(position).map(Value::Number),
                Kind::Text => row.try_get(position).map(Value::Text),
                Kind::Bytes => row.try_get(position).map(Value::Bytes),
            }
            .map_err(failed)
        })
        .collect()
}

async fn insert(conn: &mut Conn, table: &Table, page: &[Vec<Value>]) -> Result<()> {
    let names: Vec<&str> = table.columns().iter().map(|(name, _)| *name).collect();
    let head = format!("insert into {} ({}) ", table.name, names.join(", "));
    macro_rules! insert {
        ($engine:ty, $c:expr) => {
            QueryBuilder::<$engine>::new(head)
                .push_values(page, |mut tuple, row| {
                    for value in row {
                        match value {
                            Value::Number(number) => tuple.push_bind(*number),
                            Value::Text(text) => tuple.push_bind(text.as_deref()),
                            Value::Bytes(bytes) => tuple.push_bind(bytes.as_deref()),
                        };
                    }
                })
                .build()
                .execute(&mut **$c)
                .await
                .map(|_| ())
        };
    }
    match conn {
        Conn::Sqlite(c) => insert!(sqlx::Sqlite, c),
        Conn::Postgres(c) => insert!(sqlx::Postgres, c),
    }
    .map_err(failed)
}
