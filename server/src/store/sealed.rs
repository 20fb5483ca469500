//! What the database keeps of cryptographic keys: check values of peppers, sealed signing keys.

use keyward_core::EnvId;

use super::{Conn, id16, rows, run};
use crate::error::Result;

/// A pepper as the database knows it: never the pepper itself.
#[derive(sqlx::FromRow, Debug)]
pub(crate) struct PepperCheck {
    pub(crate) pepper_id: i64,
    pub(crate) check_value: Vec<u8>,
}

/// Every pepper under which something may be stored.
pub(crate) async fn peppers_any_environment(conn: &mut Conn) -> Result<Vec<PepperCheck>> {
    rows!(
        conn,
        PepperCheck,
        "select pepper_id, check_value from peppers where retired_at is null order by pepper_id",
    )
}

/// Remembers a pepper by its check value.
pub(crate) async fn insert_pepper(
    conn: &mut Conn,
    id: u32,
    check: &[u8; 32],
    now: i64,
) -> Result<()> {
    run!(
        conn,
        "insert into peppers (pepper_id, check_value, created_at) values ($1, $2, $3)",
        i64::from(id),
        check.as_slice(),
        now,
    )?;
    Ok(())
}

/// Marks a pepper as no longer needed.
pub(crate) async fn retire_pepper(conn: &mut Conn, id: u32, now: i64) -> Result<bool> {
    let touched = run!(
        conn,
        "update peppers set retired_at = $2 where pepper_id = $1 and retired_at is null",
        i64::from(id),
        now,
    )?;
    Ok(touched > 0)
}

/// How many live secrets (of keys, of applications) are stored under pepper `id`.
pub(crate) async fn secrets_under_pepper_any_environment(conn: &mut Conn, id: u32) -> Result<i64> {
    let found = super::row!(
        conn,
        (i64,),
        "select (select count(*) from key_secrets s join api_keys k on k.key_id = s.key_id
                 where s.pepper_id = $1 and k.revoked_at is null and s.superseded_at is null)
              + (select count(*) from application_secrets where pepper_id = $1)",
        i64::from(id),
    )?;
    Ok(found.map_or(0, |(count,)| count))
}

/// A signing key with its private half sealed.
#[derive(sqlx::FromRow, Debug)]
struct SigningRow {
    kid: String,
    env_id: Vec<u8>,
    public_n: Vec<u8>,
    public_e: Vec<u8>,
    private_sealed: Vec<u8>,
    retired_at: Option<i64>,
}

/// A signing key; the private half is sealed with the secrets file's key.
#[derive(Debug, Clone)]
pub(crate) struct SigningKey {
    pub(crate) kid: String,
    pub(crate) env: EnvId,
    /// RSA modulus, big-endian.
    pub(crate) n: Vec<u8>,
    /// RSA public exponent, big-endian.
    pub(crate) e: Vec<u8>,
    pub(crate) private_sealed: Vec<u8>,
    /// Signs no longer since then, but still verifies.
    pub(crate) retired_at: Option<i64>,
}

/// The signing keys of every environment, the newest first.
pub(crate) async fn signing_keys_any_environment(conn: &mut Conn) -> Result<Vec<SigningKey>> {
    rows!(
        conn,
        SigningRow,
        "select kid, env_id, public_n, public_e, private_sealed, retired_at
         from signing_keys order by created_at desc, kid",
    )?
    .into_iter()
    .map(|row| {
        Ok(SigningKey {
            kid: row.kid,
            env: EnvId::from_bytes(id16(&row.env_id)?),
            n: row.public_n,
            e: row.public_e,
            private_sealed: row.private_sealed,
            retired_at: row.retired_at,
        })
    })
    .collect()
}

/// Stores a new signing key.
pub(crate) async fn insert_signing_key(conn: &mut Conn, key: &SigningKey, now: i64) -> Result<()> {
    run!(
        conn,
        "insert into signing_keys (kid, env_id, public_n, public_e, private_sealed, created_at)
         values ($1, $2, $3, $4, $5, $6)",
        key.kid.as_str(),
        key.env.bytes().as_slice(),
        key.n.as_slice(),
        key.e.as_slice(),
        key.private_sealed.as_slice(),
        now,
    )?;
    Ok(())
}

/// Retires the signing keys of `env` that still sign, except `kid`.
pub(crate) async fn retire_signing_keys(
    conn: &mut Conn,
    env: EnvId,
    kid: &str,
    now: i64,
) -> Result<()> {
    run!(
        conn,
        "update signing_keys set retired_at = $3
         where env_id = $1 and kid <> $2 and retired_at is null",
        env.bytes().as_slice(),
        kid,
        now,
    )?;
    Ok(())
}

/// Removes a signing key: tokens that it signed are refused from then on.
pub(crate) async fn delete_signing_key(conn: &mut Conn, env: EnvId, kid: &str) -> Result<bool> {
    let touched = run!(
        conn,
        "delete from signing_keys
         where env_id = $1 and kid = $2 and retired_at is not null",
        env.bytes().as_slice(),
        kid,
    )?;
    Ok(touched > 0)
}
