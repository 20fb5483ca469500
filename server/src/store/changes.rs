//! The change log: what was committed, in the order it was committed, without a gap.

use keyward_core::protocol::{Head, Incarnation, Nonce};
use keyward_core::{ApiId, EnvId, KeyId, OrgCode, UserId};
use sqlx::QueryBuilder;

use super::life::{self, with_life};
use super::write::Touched;
use super::{Conn, Store, row, rows, run};
use crate::error::{Error, Result};

/// Changes that a follower reads at once.
pub(crate) const PAGE: i64 = 1_000;

/// A change row about to be written.
pub(crate) struct NewChange {
    pub(crate) seq: i64,
    /// Tells this change from one with the same number in another life of the database.
    pub(crate) nonce: [u8; 16],
    pub(crate) env: EnvId,
    pub(crate) touched: Vec<Touched>,
    pub(crate) at: i64,
}

/// A change as a follower reads it.
pub(crate) struct Change {
    pub(crate) seq: i64,
    pub(crate) nonce: Nonce,
    pub(crate) env: EnvId,
    pub(crate) node: Vec<u8>,
    pub(crate) touched: Vec<Touched>,
}

/// Where both logs stand, in which life of the database.
pub(crate) struct Heads {
    pub(crate) seq: i64,
    pub(crate) audit_no: i64,
    pub(crate) incarnation: Incarnation,
}

/// Reads where both logs stand; in a write transaction, under its lock.
pub(crate) async fn heads(conn: &mut Conn) -> Result<Heads> {
    type Row = (i64, i64, Option<String>, String, Option<String>);
    let found = with_life!(
        row,
        conn,
        Row,
        "select seq, (select coalesce(max(audit_no), 0) from audit_log), ",
        " from change_head where one = 1",
    )?;
    let (seq, audit_no, store, system, timeline) = found.ok_or_else(headless)?;
    let incarnation = life::incarnation(store, &system, timeline)?;
    Ok(Heads { seq, audit_no, incarnation })
}

/// Writes the changes of one transaction and moves the head to the last of them.
pub(crate) async fn insert(conn: &mut Conn, node: [u8; 16], changes: Vec<NewChange>) -> Result<()> {
    let Some(last) = changes.last().map(|change| change.seq) else {
        return Ok(());
    };
    macro_rules! insert {
        ($engine:ty, $c:expr, $page:expr) => {
            QueryBuilder::<$engine>::new(
                "insert into change_log (seq, nonce, env_id, touched, node_id, at) ",
            )
            .push_values($page, |mut row, change| {
                row.push_bind(change.seq)
                    .push_bind(change.nonce.to_vec())
                    .push_bind(change.env.bytes().to_vec())
                    .push_bind(text(&change.touched))
                    .push_bind(node.to_vec())
                    .push_bind(change.at);
            })
            .build()
            .execute(&mut **$c)
            .await
            .map(|_| ())
        };
    }
    for page in super::portions(&changes, 500) {
        match conn {
            Conn::Sqlite(c) => insert!(sqlx::Sqlite, c, page),
            Conn::Postgres(c) => insert!(sqlx::Postgres, c, page),
        }
        .map_err(super::failed)?;
    }
    run!(conn, "update change_head set seq = $1 where one = 1", last)?;
    Ok(())
}

/// Writes the head as it is.
pub(crate) async fn touch_head(conn: &mut Conn) -> Result<()> {
    run!(conn, "update change_head set seq = seq where one = 1")?;
    Ok(())
}

/// The number of the last committed change, the nonce of change `at` if the log has it, and the
/// life of the database that says so; all in one statement.
///
/// # Errors
/// `Unavailable` when the database is a standby, which must never be followed.
pub(crate) async fn head(conn: &mut Conn, at: i64) -> Result<Head> {
    type Row = (i64, Option<Vec<u8>>, Option<String>, String, Option<String>);
    let found = with_life!(
        row,
        conn,
        Row,
        "select seq, (select nonce from change_log where seq = $1), ",
        " from change_head where one = 1",
        at,
    )?;
    let (seq, nonce, store, system, timeline) = found.ok_or_else(headless)?;
    let nonce = nonce.map(|nonce| super::id16(&nonce).map(Nonce)).transpose()?;
    Ok(Head { seq, nonce, incarnation: life::incarnation(store, &system, timeline)? })
}

/// That the store lacks what every store has.
pub(super) fn headless() -> Error {
    Error::internal("the change head is missing")
}

/// The next changes after `applied`, at most [`PAGE`].
pub(crate) async fn after(conn: &mut Conn, applied: i64) -> Result<Vec<Change>> {
    type Row = (i64, Vec<u8>, Vec<u8>, String, Vec<u8>);
    let found = rows!(
        conn,
        Row,
        "select seq, nonce, env_id, touched, node_id from change_log
         where seq > $1 order by seq limit $2",
        applied,
        PAGE,
    )?;
    found
        .into_iter()
        .map(|(seq, nonce, env, touched, node)| {
            let env = super::id16(&env).map(EnvId::from_bytes)?;
            let nonce = super::id16(&nonce).map(Nonce)?;
            Ok(Change { seq, nonce, env, node, touched: parse(&touched)? })
        })
        .collect()
}

/// Forgets changes older than `before`; a follower that still needs them loads anew.
pub(crate) async fn prune(store: &Store, before: i64) -> Result<u64> {
    let mut conn = store.side().await?;
    run!(
        &mut conn,
        "delete from change_log where at < $1
         and seq < (select seq from change_head where one = 1)",
        before,
    )
}

/// One line for each object. Owners' ids hold no white space, so a space ends the kind.
fn text(touched: &[Touched]) -> String {
    let lines: Vec<String> = touched
        .iter()
        .map(|touched| match touched {
            Touched::Directory => "directory".to_owned(),
            Touched::Api(api) => format!("api {api}"),
            Touched::User(user) => format!("user {user}"),
            Touched::Organization(org) => format!("organization {org}"),
            Touched::Membership(org, user) => format!("membership {org} {user}"),
            Touched::Key(key) => format!("key {key}"),
        })
        .collect();
    lines.join("\n")
}

fn parse(text: &str) -> Result<Vec<Touched>> {
    text.lines()
        .map(|line| {
            let mut words = line.split(' ');
            let mut word = || words.next().unwrap_or("");
            let touched = match word() {
                "directory" => Some(Touched::Directory),
                "api" => ApiId::parse(word()).map(Touched::Api),
                "user" => UserId::parse(word()).map(Touched::User),
                "organization" => OrgCode::parse(word()).map(Touched::Organization),
                "membership" => OrgCode::parse(word())
                    .zip(UserId::parse(word()))
                    .map(|(org, user)| Touched::Membership(org, user)),
                "key" => KeyId::parse(word()).map(Touched::Key),
                _ => None,
            };
            touched.ok_or_else(|| Error::internal("a row of the change log cannot be read"))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_change_touched_is_read_back_as_it_was_written() {
        let user = UserId::parse("auth0|a:b").expect("valid");
        let org = OrgCode::parse("org_ü").expect("valid");
        let touched = vec![
            Touched::Directory,
            Touched::Api(ApiId::from_bytes([1; 16])),
            Touched::User(user.clone()),
            Touched::Organization(org.clone()),
            Touched::Membership(org, user),
            Touched::Key(KeyId::from_bytes([7; 16])),
        ];
        assert_eq!(parse(&text(&touched)).expect("parses"), touched);
    }
}
