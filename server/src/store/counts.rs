//! Verification counts as the database knows them: cumulative, a row for each key and counter file.

use std::collections::HashMap;

use keyward_core::{EnvId, KeyId};
use sqlx::QueryBuilder;

use super::{Conn, Unfinished, id16, row, rows, run};
use crate::error::Result;

/// What one counter file knows of one key; all numbers are totals, so storing twice is harmless.
#[derive(Debug, Clone)]
pub(crate) struct Count {
    pub(crate) env: EnvId,
    pub(crate) key: KeyId,
    /// Answers `Valid`.
    pub(crate) verified: u64,
    /// Answers `Refused`, by reason, in core's order after `Invalid`.
    pub(crate) refused: [u64; 12],
    /// The last success, µs since the epoch; 0 for never.
    pub(crate) last_at: i64,
    /// The address that came with it.
    pub(crate) last_address: Option<String>,
}

/// A counter file as the database knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FileState {
    pub(crate) generation: i64,
    pub(crate) closed: bool,
}

/// What the database knows of the file `id`.
pub(crate) async fn file(conn: &mut Conn, id: [u8; 16]) -> Result<Option<FileState>> {
    Ok(row!(
        conn,
        (i64, Option<i64>),
        "select generation, closed_at from counter_files where file_id = $1",
        id.as_slice(),
    )?
    .map(|(generation, closed)| FileState { generation, closed: closed.is_some() }))
}

/// Advances the generation of a file, or makes the file known; false when somebody else did.
pub(crate) async fn advance(
    conn: &mut Conn,
    id: [u8; 16],
    from: Option<i64>,
    to: i64,
    now: i64,
) -> Result<bool> {
    let touched = match from {
        None => run!(
            conn,
            "insert into counter_files (file_id, generation, opened_at) values ($1, $2, $3)",
            id.as_slice(),
            to,
            now,
        ),
        Some(from) => run!(
            conn,
            "update counter_files set generation = $3, opened_at = $4
             where file_id = $1 and generation = $2 and closed_at is null",
            id.as_slice(),
            from,
            to,
            now,
        ),
    }?;
    Ok(touched > 0)
}

/// Stores totals of the file `id`; a total never goes down.
pub(crate) async fn store(conn: &mut Conn, id: [u8; 16], counts: &[Count]) -> Result<()> {
    // Sorted, so that two files never wait for each other's rows.
    let mut counts: Vec<&Count> = counts.iter().collect();
    counts.sort_by_key(|count| count.key);
    for count in counts {
        let refused: Vec<u8> = count.refused.iter().flat_map(|n| n.to_be_bytes()).collect();
        run!(
            conn,
            "insert into key_usage
             (key_id, file_id, env_id, verified, refused, last_at, last_address)
             values ($1, $2, $3, $4, $5, $6, $7)
             on conflict (key_id, file_id) do update
             set verified = excluded.verified, refused = excluded.refused,
                 last_at = excluded.last_at, last_address = excluded.last_address
             where excluded.verified >= key_usage.verified",
            count.key.bytes().as_slice(),
            id.as_slice(),
            count.env.bytes().as_slice(),
            i64::try_from(count.verified).unwrap_or(i64::MAX),
            refused,
            count.last_at,
            count.last_address.as_deref(),
        )?;
    }
    Ok(())
}

/// Whether the file `id` is still the generation that this process opened.
pub(crate) async fn still_ours(conn: &mut Conn, id: [u8; 16], generation: i64) -> Result<bool> {
    let expected = FileState { generation, closed: false };
    Ok(file(conn, id).await? == Some(expected))
}

/// A page of what the database knows of the file `id`, beginning after the key `after`.
pub(crate) async fn totals_of_file_any_environment(
    conn: &mut Conn,
    id: [u8; 16],
    after: [u8; 16],
    size: i64,
) -> Result<Vec<Count>> {
    type Row = (Vec<u8>, Vec<u8>, i64, Vec<u8>, i64, Option<String>);
    rows!(
        conn,
        Row,
        "select key_id, env_id, verified, refused, last_at, last_address
         from key_usage where file_id = $1 and key_id > $2 order by key_id limit $3",
        id.as_slice(),
        after.as_slice(),
        size,
    )?
    .into_iter()
    .map(|(key, env, verified, refused, last_at, last_address)| {
        let mut by_reason = [0; 12];
        for (to, from) in by_reason.iter_mut().zip(refused.as_chunks::<8>().0) {
            *to = u64::from_be_bytes(*from);
        }
        Ok(Count {
            env: EnvId::from_bytes(id16(&env)?),
            key: KeyId::from_bytes(id16(&key)?),
            verified: u64::try_from(verified).unwrap_or(0),
            refused: by_reason,
            last_at,
            last_address,
        })
    })
    .collect()
}

/// What the database knows of one key's use: total, last success and the address that came with it.
#[derive(Debug, Clone, Default)]
pub struct Use {
    /// Answers `Valid` over all counter files.
    pub verified: u64,
    /// The last success, µs since the epoch; 0 for never.
    pub last_at: i64,
    /// The address that came with it.
    pub last_address: Option<String>,
}

/// Most keys in one statement: twice the longest page of a list, and far from SQLite's limit of
/// 32,766 arguments.
const KEYS_MAX: usize = 1_000;

/// What the database knows of the use of `keys`; one that was never used is absent.
pub(crate) async fn of_keys(
    conn: &mut Conn,
    env: EnvId,
    keys: &[KeyId],
) -> Result<HashMap<KeyId, Use>> {
    type Row = (Vec<u8>, i64, i64, Option<String>);
    let mut totals: HashMap<KeyId, Use> = HashMap::with_capacity(keys.len());
    for page in keys.chunks(KEYS_MAX) {
        macro_rules! load {
            ($engine:ty, $c:expr) => {{
                let mut query = QueryBuilder::<$engine>::new(
                    "select key_id, verified, last_at, last_address from key_usage where env_id = ",
                );
                query.push_bind(env.bytes().to_vec()).push(" and key_id in (");
                let mut list = query.separated(", ");
                for key in page {
                    list.push_bind(key.bytes().to_vec());
                }
                query.push(") order by last_at");
                query.build_query_as::<Row>().fetch_all(&mut **$c).await
            }};
        }
        let loaded = match conn {
            Conn::Sqlite(c) => load!(sqlx::Sqlite, c),
            Conn::Postgres(c) => load!(sqlx::Postgres, c),
        }
        .map_err(super::failed)?;
        for (key, verified, last_at, last_address) in loaded {
            let total = totals.entry(KeyId::from_bytes(id16(&key)?)).or_default();
            total.verified += u64::try_from(verified).unwrap_or(0);
            if last_at >= total.last_at {
                (total.last_at, total.last_address) = (last_at, last_address);
            }
        }
    }
    Ok(totals)
}

/// What the database knows of the use of one key.
pub(crate) async fn of_key(conn: &mut Conn, env: EnvId, key: KeyId) -> Result<Use> {
    Ok(of_keys(conn, env, &[key]).await?.remove(&key).unwrap_or_default())
}

/// Folds the totals of a file that will never be opened again into the sum of closed files
/// (`file_id` all zero), in the caller's transaction, and refuses the file ever after.
async fn close(conn: &mut Conn, id: [u8; 16], now: i64) -> Result<()> {
    const SUM: [u8; 16] = [0; 16];
    run!(
        conn,
        "update counter_files set closed_at = $2 where file_id = $1 and closed_at is null",
        id.as_slice(),
        now,
    )?;
    let mut after = [0; 16];
    loop {
        let page = totals_of_file_any_environment(conn, id, after, 1_000).await?;
        let Some(last) = page.last() else { break };
        after = *last.key.bytes();
        for count in &page {
            let known = row!(
                conn,
                (i64, Vec<u8>, i64, Option<String>),
                "select verified, refused, last_at, last_address from key_usage
                 where key_id = $1 and file_id = $2",
                count.key.bytes().as_slice(),
                SUM.as_slice(),
            )?;
            let mut sum = count.clone();
            if let Some((verified, refused, last_at, last_address)) = known {
                if last_at > sum.last_at {
                    (sum.last_at, sum.last_address) = (last_at, last_address);
                }
                sum.verified += u64::try_from(verified).unwrap_or(0);
                for (to, from) in sum.refused.iter_mut().zip(refused.as_chunks::<8>().0) {
                    *to += u64::from_be_bytes(*from);
                }
            }
            store(conn, SUM, std::slice::from_ref(&sum)).await?;
        }
    }
    run!(conn, "delete from key_usage where file_id = $1", id.as_slice())?;
    Ok(())
}

/// Stores totals of the file `id` in one transaction, if it is still the generation that this
/// process opened. A file that was opened by another process since must not be written for: the
/// two would overwrite each other's totals.
pub(crate) async fn flush(
    store: &super::Store,
    id: [u8; 16],
    generation: i64,
    counts: &[Count],
) -> Result<()> {
    // Given back only after the commit: one that failed, as on a full disk, leaves its transaction
    // open.
    let mut conn = Unfinished::of(store.side().await?);
    match &*conn {
        Conn::Sqlite(_) => conn.raw("begin immediate").await?,
        Conn::Postgres(_) => conn.raw("begin").await?,
    }
    if !still_ours(&mut conn, id, generation).await? {
        return Err(crate::error::Error::conflict(
            "COUNTER_FILE_TAKEN",
            "another process has opened this counter file",
        ));
    }
    self::store(&mut conn, id, counts).await?;
    conn.raw("commit").await?;
    conn.finish();
    Ok(())
}

/// Closes every open file but `ours`, in one transaction.
pub(crate) async fn close_all_but(store: &super::Store, ours: [u8; 16], now: i64) -> Result<()> {
    let mut conn = store.side().await?;
    let others = rows!(
        &mut conn,
        (Vec<u8>,),
        "select file_id from counter_files where file_id <> $1 and closed_at is null",
        ours.as_slice(),
    )?;
    if others.is_empty() {
        return Ok(());
    }
    conn.raw("begin immediate").await?;
    let closed = async {
        for (other,) in &others {
            close(&mut conn, id16(other)?, now).await?;
        }
        Ok(())
    }
    .await;
    match closed {
        Ok(()) => conn.raw("commit").await,
        Err(error) => {
            conn.raw("rollback").await?;
            Err(error)
        }
    }
}
