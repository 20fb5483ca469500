//! Idempotency keys: the same write asked twice is done once.
//!
//! The key is reserved inside the transaction of the change it belongs to, so a crash can leave
//! neither a change without its key nor a key without its change. The reply is stored afterwards;
//! until then, and forever if the process died in between, a repeat is told that the change was
//! made and to what, but cannot read the reply again.

use keyward_core::EnvId;

use super::{Conn, Store, row, run};
use crate::error::{Error, Result};

/// How long a key is kept, in µs: 24 hours.
pub(crate) const LIFE_US: i64 = 24 * 3_600 * 1_000_000;

/// An `Idempotency-Key` in its scope.
#[derive(Clone, Debug)]
pub struct IdempotencyKey {
    /// Who asked: the application's id.
    pub caller: String,
    /// What was asked: method and path.
    pub call: String,
    /// SHA-256 of what the caller named it, in hex.
    pub key: String,
    /// SHA-256 of the request's body: another body under the same key is a mistake.
    pub body_hash: [u8; 32],
}

/// What is stored of an earlier use.
#[derive(Debug)]
pub(crate) enum Earlier {
    /// Another body was sent under the same key.
    OtherBody,
    /// The change was made to this object; its reply is not there (yet), or held a secret.
    Done { target: String },
    /// The change was made and answered so.
    Answered { status: u16, reply: String },
}

/// Looks for a use of `key` in the 24 hours before `now`.
pub(crate) async fn earlier(
    conn: &mut Conn,
    env: EnvId,
    key: &IdempotencyKey,
    now: i64,
) -> Result<Option<Earlier>> {
    type Row = (Vec<u8>, String, Option<i64>, Option<String>);
    let found = row!(
        conn,
        Row,
        "select body_hash, target_id, status, reply from idempotency_keys
         where env_id = $1 and caller = $2 and call = $3 and idempotency_key = $4
               and created_at > $5",
        env.bytes().as_slice(),
        key.caller.as_str(),
        key.call.as_str(),
        key.key.as_str(),
        now - LIFE_US,
    )?;
    Ok(found.map(|(hash, target, status, reply)| {
        if hash != key.body_hash {
            return Earlier::OtherBody;
        }
        match (status.and_then(|s| u16::try_from(s).ok()), reply) {
            (Some(status), Some(reply)) => Earlier::Answered { status, reply },
            (None | Some(_), None) | (None, Some(_)) => Earlier::Done { target },
        }
    }))
}

/// Stops a change whose key was used before. The caller looks the earlier answer up again.
pub(super) async fn refuse_replay(
    conn: &mut Conn,
    env: EnvId,
    key: &IdempotencyKey,
    now: i64,
) -> Result<()> {
    match earlier(conn, env, key, now).await? {
        None => Ok(()),
        Some(_) => Err(Error::conflict(
            "IDEMPOTENT_REPLAY",
            "a request with this Idempotency-Key was already carried out",
        )),
    }
}

/// Takes `key` in the transaction of its change; what is left of a use that is forgotten gives way.
pub(super) async fn reserve(
    conn: &mut Conn,
    env: EnvId,
    key: &IdempotencyKey,
    target: &str,
    now: i64,
) -> Result<()> {
    run!(
        conn,
        "insert into idempotency_keys
         (env_id, caller, call, idempotency_key, body_hash, target_id, created_at)
         values ($1, $2, $3, $4, $5, $6, $7)
         on conflict (env_id, caller, call, idempotency_key) do update
         set body_hash = excluded.body_hash, target_id = excluded.target_id,
             created_at = excluded.created_at, status = null, reply = null",
        env.bytes().as_slice(),
        key.caller.as_str(),
        key.call.as_str(),
        key.key.as_str(),
        key.body_hash.as_slice(),
        target,
        now,
    )?;
    Ok(())
}

/// Keeps the reply to `key`, for repeats. A reply that carried a secret is never kept.
pub(crate) async fn keep_reply(
    store: &Store,
    env: EnvId,
    key: &IdempotencyKey,
    status: u16,
    reply: &str,
) -> Result<()> {
    let mut conn = store.side().await?;
    run!(
        &mut conn,
        "update idempotency_keys set status = $5, reply = $6
         where env_id = $1 and caller = $2 and call = $3 and idempotency_key = $4",
        env.bytes().as_slice(),
        key.caller.as_str(),
        key.call.as_str(),
        key.key.as_str(),
        i64::from(status),
        reply,
    )?;
    Ok(())
}

/// Forgets keys older than 24 hours.
pub(crate) async fn prune_any_environment(store: &Store, now: i64) -> Result<u64> {
    let mut conn = store.side().await?;
    run!(&mut conn, "delete from idempotency_keys where created_at <= $1", now - LIFE_US)
}
