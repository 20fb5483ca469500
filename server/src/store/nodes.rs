//! The lease table: which processes verify from this database, and how far they have read.

use super::{Conn, Store, id16, row, rows, run};
use crate::error::Result;

/// A node that has not applied a change yet.
#[derive(Debug, Clone)]
pub(crate) struct Behind {
    pub(crate) node: [u8; 16],
    /// Its row's generation: a row that moved on meanwhile must not be reaped.
    pub(crate) generation: i64,
    pub(crate) lease_us: i64,
}

/// Makes or renews this process's row.
pub(crate) async fn register(
    conn: &mut Conn,
    node: [u8; 16],
    acked: i64,
    lease_us: i64,
    now: i64,
) -> Result<()> {
    run!(
        conn,
        "insert into node_lease (node_id, gen, acked_seq, lease_us, renewed_at)
         values ($1, 1, $2, $3, $4)
         on conflict (node_id) do update
         set gen = node_lease.gen + 1, acked_seq = excluded.acked_seq,
             lease_us = excluded.lease_us, renewed_at = excluded.renewed_at",
        node.as_slice(),
        acked,
        lease_us,
        now,
    )?;
    Ok(())
}

/// Says that this process has applied everything up to `seq`; false when its row was reaped.
pub(crate) async fn acknowledge(
    conn: &mut Conn,
    node: [u8; 16],
    seq: i64,
    now: i64,
) -> Result<bool> {
    let touched = run!(
        conn,
        "update node_lease set acked_seq = $2, renewed_at = $3, gen = gen + 1
         where node_id = $1",
        node.as_slice(),
        seq,
        now,
    )?;
    Ok(touched > 0)
}

/// The nodes other than `own` that have not applied `seq`.
pub(crate) async fn behind(
    conn: &mut Conn,
    own: Option<[u8; 16]>,
    seq: i64,
) -> Result<Vec<Behind>> {
    rows!(
        conn,
        (Vec<u8>, i64, i64),
        "select node_id, gen, lease_us from node_lease where acked_seq < $1 and node_id <> $2",
        seq,
        own.unwrap_or([0; 16]).as_slice(),
    )?
    .into_iter()
    .map(|(node, generation, lease_us)| Ok(Behind { node: id16(&node)?, generation, lease_us }))
    .collect()
}

/// Up to which change every node but `own` has read; `None` when there is no other.
pub(crate) async fn read_by_all_others(conn: &mut Conn, own: [u8; 16]) -> Result<Option<i64>> {
    let found = row!(
        conn,
        (Option<i64>,),
        "select min(acked_seq) from node_lease where node_id <> $1",
        own.as_slice(),
    )?;
    Ok(found.and_then(|(least,)| least))
}

/// Removes nodes whose lease was waited out, unless they were heard of meanwhile.
pub(crate) async fn reap(store: &Store, nodes: &[Behind]) -> Result<()> {
    let mut conn = store.side().await?;
    for node in nodes {
        run!(
            &mut conn,
            "delete from node_lease where node_id = $1 and gen = $2",
            node.node.as_slice(),
            node.generation,
        )?;
    }
    Ok(())
}

/// Removes one node, at the end of its process.
pub(crate) async fn remove(conn: &mut Conn, node: [u8; 16]) -> Result<()> {
    run!(conn, "delete from node_lease where node_id = $1", node.as_slice())?;
    Ok(())
}

/// Removes every node; only for one who holds the lock of an SQLite store's folder, under which
/// no other process can verify.
pub(crate) async fn remove_all(conn: &mut Conn) -> Result<()> {
    run!(conn, "delete from node_lease")?;
    Ok(())
}
