//! The lease table: which processes verify from this database, and how far they have read.
//!
//! What the rows mean and when one may be written is decided in `keyward_core::protocol`; here are
//! the transactions that it demands.

use keyward_core::protocol::{Incarnation, LeaseRow, NodeId, Tell, Told};

use super::life::{self, with_life};
use super::{Conn, Store, Unfinished, changes, id16, rows, run};
use crate::error::Result;

/// Every row, and the life of the database that they are of.
#[derive(Clone, Debug)]
pub(crate) struct Rows {
    pub(crate) incarnation: Incarnation,
    pub(crate) rows: Vec<LeaseRow>,
}

/// Carries out a telling: writes this process's row, if the database is still the one that was
/// followed and nobody waited this process out.
///
/// K is shared with others who tell, and keeps a change from being committed between the head that
/// is read and the row that is written. It has a statement of its own: one that waits for it and
/// reads in one go sees a snapshot from before the wait. Nobody may hold it for long, so a process
/// that stops in here loses its transaction after 1 s, and one that waits gives up after a third of
/// its lease. The commit itself has no such limit: a server would end its wait for a standby with a
/// mere warning.
///
/// # Errors
/// `Unavailable` when it failed or its outcome is unknown; it may be carried out all the same.
pub(crate) async fn tell(store: &Store, tell: &Tell) -> Result<Told> {
    let mut conn = Unfinished::of(store.side().await?);
    match &*conn {
        Conn::Sqlite(_) => conn.raw("begin immediate").await?,
        Conn::Postgres(_) => {
            let wait_ms = (tell.lease_us / 3_000).max(1);
            conn.raw_text(sqlx::AssertSqlSafe(format!(
                "begin isolation level read committed; \
                 set local idle_in_transaction_session_timeout = '1s'; \
                 set local statement_timeout = {wait_ms}; \
                 set local synchronous_commit = on; select pg_advisory_xact_lock_shared(7163001)"
            )))
            .await?;
        }
    }
    let head = changes::head(&mut conn, tell.acked_seq).await?;
    let is_written = tell.continues(&head) && write(&mut conn, store, tell).await? > 0;
    match &*conn {
        Conn::Sqlite(_) => conn.raw("commit").await?,
        Conn::Postgres(_) => {
            conn.raw("set local statement_timeout = 0").await?;
            conn.commit().await?;
        }
    }
    conn.finish();
    Ok(Told { generation: tell.generation, head, is_written })
}

async fn write(conn: &mut Conn, store: &Store, tell: &Tell) -> Result<u64> {
    let (node, now) = (tell.node.0.as_slice(), store.clock.wall_us());
    match tell.confirmed {
        Some(confirmed) => run!(
            conn,
            "update node_lease set gen = $2, acked_seq = $3, lease_us = $4, renewed_at = $5
             where node_id = $1 and gen >= $6 and gen < $2",
            node,
            tell.generation,
            tell.acked_seq,
            tell.lease_us,
            now,
            confirmed,
        ),
        None => run!(
            conn,
            "insert into node_lease (node_id, gen, acked_seq, lease_us, renewed_at)
             values ($1, $2, $3, $4, $5)
             on conflict (node_id) do update
             set gen = excluded.gen, acked_seq = excluded.acked_seq,
                 lease_us = excluded.lease_us, renewed_at = excluded.renewed_at
             where node_lease.gen < excluded.gen",
            node,
            tell.generation,
            tell.acked_seq,
            tell.lease_us,
            now,
        ),
    }
}

/// All rows, in one statement.
pub(crate) async fn all(conn: &mut Conn) -> Result<Rows> {
    type Row = (
        Option<String>,
        String,
        Option<String>,
        Option<Vec<u8>>,
        Option<i64>,
        Option<i64>,
        Option<i64>,
    );
    let found = with_life!(
        rows,
        conn,
        Row,
        "select ",
        ", n.node_id, n.gen, n.acked_seq, n.lease_us
         from change_head h left join node_lease n on true where h.one = 1",
    )?;
    let mut incarnation = None;
    let mut rows = Vec::with_capacity(found.len());
    for (store, system, timeline, node, generation, acked_seq, lease_us) in found {
        incarnation = Some(life::incarnation(store, &system, timeline)?);
        // Without any node there is one row, and nothing of a node in it.
        if let (Some(node), Some(generation), Some(acked_seq), Some(lease_us)) =
            (node, generation, acked_seq, lease_us)
        {
            rows.push(LeaseRow { node: NodeId(id16(&node)?), generation, acked_seq, lease_us });
        }
    }
    let incarnation = incarnation.ok_or_else(changes::headless)?;
    Ok(Rows { incarnation, rows })
}

/// Removes nodes whose lease was waited out, unless they were heard of meanwhile.
pub(crate) async fn reap<'r>(
    store: &Store,
    nodes: impl Iterator<Item = &'r LeaseRow>,
) -> Result<()> {
    let mut conn = Unfinished::of(store.side().await?);
    for node in nodes {
        run!(
            &mut *conn,
            "delete from node_lease where node_id = $1 and gen = $2",
            node.node.0.as_slice(),
            node.generation,
        )?;
    }
    conn.finish();
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

#[cfg(test)]
mod tests;
