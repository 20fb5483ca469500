//! What a restore keeps of the store that it replaces: everything that had been taken away.
//!
//! Before the tables are emptied, what may matter is set down in temporary tables ([`remember`]);
//! after the backup is in them, it is applied to what the backup knows ([`apply`]). Only ever to
//! narrow: nothing that the backup has revoked, disabled or shortened comes back because the
//! replaced store had it otherwise.
//!
//! Most facts say so by a time (`revoked_at`, `left_at` …) and count whatever store they come
//! from. Some are told by absence: a scope that an application no longer holds, a signing key that
//! was removed. Absence says something only if the replaced store *continues* the backup, that is,
//! if it is the same store at a later moment; a store that never heard of a thing has not taken it
//! away. [`continues`] tells which.

use super::copying;
use super::tables::TABLES;
use crate::error::{Error, Result};
use crate::store::{Conn, row, run};

/// How many restrictions of the replaced store a restore kept, by what they concern.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Kept {
    /// Of keys: revoked, disabled, or with narrower dates.
    pub(crate) keys: u64,
    /// Secrets of keys that a rotation had ended.
    pub(crate) secrets: u64,
    /// Of users and organizations: suspended, deleted, their keys revoked.
    pub(crate) owners: u64,
    /// Memberships that had ended.
    pub(crate) memberships: u64,
    /// APIs and scopes that were deleted.
    pub(crate) apis: u64,
    /// Of applications: deleted, disabled, secrets or tokens ended, scopes taken.
    pub(crate) applications: u64,
    /// Audit records newer than the backup.
    pub(crate) audit_records: u64,
}

/// Whether the store of `replaced` is the one that the backup was taken of, at that moment or
/// later: whether the backup's last audit record is there under the same number, in every column.
pub(super) async fn continues(replaced: &mut Conn, backup: &mut Conn) -> Result<bool> {
    let table = TABLES
        .iter()
        .find(|table| table.name == "audit_log")
        .ok_or_else(|| Error::internal("the audit log is not in the list of tables"))?;
    let last = row!(backup, (i64,), "select coalesce(max(audit_no), 0) from audit_log")?;
    let key = [copying::Value::Number(last.map(|(number,)| number))];
    let ours = copying::find(backup, table, &key).await?;
    Ok(ours.is_some() && ours == copying::find(replaced, table, &key).await?)
}

/// Sets down what the store of `conn` has taken away, in the transaction that will replace it.
pub(super) async fn remember(conn: &mut Conn) -> Result<()> {
    conn.raw(
        "create temporary table replaced_environments as
         select env_id, user_registration, public_verification, token_life_us from environments;
         create temporary table replaced_signing_keys as
         select kid, env_id, public_n, public_e, private_sealed, created_at, retired_at
         from signing_keys;
         create temporary table replaced_apis as
         select api_id, deleted_at from apis where deleted_at is not null;
         create temporary table replaced_scopes as
         select scope_id, deleted_at from api_scopes where deleted_at is not null;
         create temporary table replaced_applications as
         select app_id, disabled_at, deleted_at from applications;
         create temporary table replaced_application_secrets as
         select app_id, digest, expires_at, generation from application_secrets;
         create temporary table replaced_application_apis as
         select app_id, api_id from application_apis;
         create temporary table replaced_application_scopes as
         select app_id, scope_id from application_scopes;
         create temporary table replaced_users as
         select env_id, user_id, created_at, suspended_at, deleted_at, revoked_up_to, changed_seq
         from users
         where suspended_at is not null or deleted_at is not null or revoked_up_to > 0;
         create temporary table replaced_organizations as
         select env_id, org_code, name, created_at, suspended_at, deleted_at, revoked_up_to,
                changed_seq
         from organizations
         where suspended_at is not null or deleted_at is not null or revoked_up_to > 0;
         create temporary table replaced_memberships as
         select env_id, org_code, user_id, left_at from memberships where left_at is not null;
         create temporary table replaced_keys as
         select key_id, not_before, expires_at, disabled_at, revoked_at, revoke_reason
         from api_keys;
         create temporary table replaced_secrets as
         select env_id, digest, key_id, created_at, superseded_at from key_secrets;
         create index replaced_keys_key on replaced_keys (key_id);
         create index replaced_secrets_digest on replaced_secrets (env_id, digest);
         create index replaced_secrets_key on replaced_secrets (key_id);
         create index replaced_application_secrets_app on replaced_application_secrets (app_id);
         create index replaced_application_scopes_app on replaced_application_scopes (app_id);
         create index replaced_application_apis_app on replaced_application_apis (app_id);",
    )
    .await
}

/// Applies what was remembered to the tables, which hold the backup by now, and forgets it.
pub(super) async fn apply(conn: &mut Conn, continued: bool, now: i64) -> Result<Kept> {
    let mut kept = Kept {
        apis: apis(conn).await?,
        applications: applications(conn).await?,
        owners: owners(conn).await?,
        memberships: memberships(conn).await?,
        keys: keys(conn).await?,
        secrets: ended_secrets(conn).await?,
        audit_records: 0,
    };
    if continued {
        environments(conn).await?;
        signing_keys(conn).await?;
        kept.applications += absent_from_applications(conn).await?;
        kept.keys += absent_keys(conn, now).await?;
        kept.secrets += absent_secrets(conn).await?;
    }
    conn.raw(
        "drop table replaced_environments; drop table replaced_signing_keys;
         drop table replaced_apis; drop table replaced_scopes; drop table replaced_applications;
         drop table replaced_application_secrets; drop table replaced_application_apis;
         drop table replaced_application_scopes; drop table replaced_users;
         drop table replaced_organizations; drop table replaced_memberships;
         drop table replaced_keys; drop table replaced_secrets;",
    )
    .await?;
    Ok(kept)
}

async fn apis(conn: &mut Conn) -> Result<u64> {
    let apis = run!(
        conn,
        "update apis set deleted_at = r.deleted_at from replaced_apis as r
         where r.api_id = apis.api_id and apis.deleted_at is null",
    )?;
    let scopes = run!(
        conn,
        "update api_scopes set deleted_at = r.deleted_at from replaced_scopes as r
         where r.scope_id = api_scopes.scope_id and api_scopes.deleted_at is null",
    )?;
    run!(
        conn,
        "delete from application_apis
         where api_id in (select api_id from apis where deleted_at is not null)",
    )?;
    run!(
        conn,
        "delete from application_scopes
         where api_id in (select api_id from apis where deleted_at is not null)
            or scope_id in (select scope_id from api_scopes where deleted_at is not null)",
    )?;
    Ok(apis + scopes)
}

async fn applications(conn: &mut Conn) -> Result<u64> {
    let mut touched = run!(
        conn,
        "update applications set disabled_at = r.disabled_at from replaced_applications as r
         where r.app_id = applications.app_id and applications.disabled_at is null
           and r.disabled_at is not null",
    )?;
    touched += run!(
        conn,
        "update applications set deleted_at = r.deleted_at from replaced_applications as r
         where r.app_id = applications.app_id and applications.deleted_at is null
           and r.deleted_at is not null",
    )?;
    touched += run!(
        conn,
        "update application_secrets set expires_at = r.expires_at
         from replaced_application_secrets as r
         where r.app_id = application_secrets.app_id and r.digest = application_secrets.digest
           and r.expires_at is not null
           and (application_secrets.expires_at is null
                or application_secrets.expires_at > r.expires_at)",
    )?;
    touched += run!(
        conn,
        "update application_secrets set generation = r.generation
         from replaced_application_secrets as r
         where r.app_id = application_secrets.app_id and r.digest = application_secrets.digest
           and r.generation > application_secrets.generation",
    )?;
    conn.raw(
        "delete from application_secrets
         where app_id in (select app_id from applications where deleted_at is not null);
         delete from application_apis
         where app_id in (select app_id from applications where deleted_at is not null);
         delete from application_scopes
         where app_id in (select app_id from applications where deleted_at is not null);",
    )
    .await?;
    Ok(touched)
}

/// Suspended and deleted owners that the backup does not know get a row as well: one who was
/// deleted must not be registered again by a first use. What the row says beyond that stays out,
/// because somebody else may hold the same address or handle in the backup.
async fn owners(conn: &mut Conn) -> Result<u64> {
    let mut touched = 0;
    touched += run!(
        conn,
        "update users set suspended_at = r.suspended_at from replaced_users as r
         where r.env_id = users.env_id and r.user_id = users.user_id
           and users.suspended_at is null and r.suspended_at is not null",
    )?;
    touched += run!(
        conn,
        "update users
         set deleted_at = r.deleted_at, provided_id = null, email = null, username = null,
             given_name = null, family_name = null
         from replaced_users as r
         where r.env_id = users.env_id and r.user_id = users.user_id
           and users.deleted_at is null and r.deleted_at is not null",
    )?;
    touched += run!(
        conn,
        "update users set revoked_up_to = r.revoked_up_to from replaced_users as r
         where r.env_id = users.env_id and r.user_id = users.user_id
           and users.revoked_up_to < r.revoked_up_to",
    )?;
    touched += run!(
        conn,
        "insert into users
         (env_id, user_id, created_at, suspended_at, deleted_at, revoked_up_to, changed_seq)
         select r.env_id, r.user_id, r.created_at, r.suspended_at, r.deleted_at, r.revoked_up_to,
                r.changed_seq
         from replaced_users r
         where (r.suspended_at is not null or r.deleted_at is not null)
           and r.env_id in (select env_id from environments)
           and not exists (select 1 from users u
                           where u.env_id = r.env_id and u.user_id = r.user_id)",
    )?;
    touched += run!(
        conn,
        "update organizations set suspended_at = r.suspended_at from replaced_organizations as r
         where r.env_id = organizations.env_id and r.org_code = organizations.org_code
           and organizations.suspended_at is null and r.suspended_at is not null",
    )?;
    touched += run!(
        conn,
        "update organizations set deleted_at = r.deleted_at from replaced_organizations as r
         where r.env_id = organizations.env_id and r.org_code = organizations.org_code
           and organizations.deleted_at is null and r.deleted_at is not null",
    )?;
    touched += run!(
        conn,
        "update organizations set revoked_up_to = r.revoked_up_to
         from replaced_organizations as r
         where r.env_id = organizations.env_id and r.org_code = organizations.org_code
           and organizations.revoked_up_to < r.revoked_up_to",
    )?;
    touched += run!(
        conn,
        "insert into organizations
         (env_id, org_code, name, created_at, suspended_at, deleted_at, revoked_up_to, changed_seq)
         select r.env_id, r.org_code, r.name, r.created_at, r.suspended_at, r.deleted_at,
                r.revoked_up_to, r.changed_seq
         from replaced_organizations r
         where (r.suspended_at is not null or r.deleted_at is not null)
           and r.env_id in (select env_id from environments)
           and not exists (select 1 from organizations o
                           where o.env_id = r.env_id and o.org_code = r.org_code)",
    )?;
    Ok(touched)
}

async fn memberships(conn: &mut Conn) -> Result<u64> {
    run!(
        conn,
        "update memberships set left_at = r.left_at from replaced_memberships as r
         where r.env_id = memberships.env_id and r.org_code = memberships.org_code
           and r.user_id = memberships.user_id and memberships.left_at is null",
    )
}

async fn keys(conn: &mut Conn) -> Result<u64> {
    let mut touched = run!(
        conn,
        "update api_keys set revoked_at = r.revoked_at, revoke_reason = r.revoke_reason
         from replaced_keys as r
         where r.key_id = api_keys.key_id and api_keys.revoked_at is null
           and r.revoked_at is not null",
    )?;
    touched += run!(
        conn,
        "update api_keys set disabled_at = r.disabled_at from replaced_keys as r
         where r.key_id = api_keys.key_id and api_keys.disabled_at is null
           and r.disabled_at is not null",
    )?;
    touched += run!(
        conn,
        "update api_keys set expires_at = r.expires_at from replaced_keys as r
         where r.key_id = api_keys.key_id and r.expires_at is not null
           and (api_keys.expires_at is null or api_keys.expires_at > r.expires_at)",
    )?;
    touched += run!(
        conn,
        "update api_keys set not_before = r.not_before from replaced_keys as r
         where r.key_id = api_keys.key_id and r.not_before is not null
           and (api_keys.not_before is null or api_keys.not_before < r.not_before)",
    )?;
    Ok(touched)
}

async fn ended_secrets(conn: &mut Conn) -> Result<u64> {
    run!(
        conn,
        "update key_secrets set superseded_at = r.superseded_at from replaced_secrets as r
         where r.env_id = key_secrets.env_id and r.digest = key_secrets.digest
           and r.superseded_at is not null
           and (key_secrets.superseded_at is null
                or key_secrets.superseded_at > r.superseded_at)",
    )
}

/// What an environment had been forbidden stays forbidden.
async fn environments(conn: &mut Conn) -> Result<()> {
    conn.raw(
        "update environments set user_registration = 0 from replaced_environments as r
         where r.env_id = environments.env_id and r.user_registration = 0;
         update environments set public_verification = 0 from replaced_environments as r
         where r.env_id = environments.env_id and r.public_verification = 0;
         update environments set token_life_us = r.token_life_us from replaced_environments as r
         where r.env_id = environments.env_id and r.token_life_us < environments.token_life_us;",
    )
    .await
}

/// The signing keys are those of the replaced store: a removed one must not come back, and its
/// successor must be there to sign.
async fn signing_keys(conn: &mut Conn) -> Result<()> {
    conn.raw(
        "delete from signing_keys where env_id in (select env_id from replaced_environments);
         insert into signing_keys
         (kid, env_id, public_n, public_e, private_sealed, created_at, retired_at)
         select kid, env_id, public_n, public_e, private_sealed, created_at, retired_at
         from replaced_signing_keys where env_id in (select env_id from environments);",
    )
    .await
}

async fn absent_from_applications(conn: &mut Conn) -> Result<u64> {
    let mut touched = run!(
        conn,
        "delete from application_secrets
         where app_id in (select app_id from replaced_applications)
           and not exists (select 1 from replaced_application_secrets r
                           where r.app_id = application_secrets.app_id
                             and r.digest = application_secrets.digest)",
    )?;
    touched += run!(
        conn,
        "delete from application_scopes
         where app_id in (select app_id from replaced_applications)
           and not exists (select 1 from replaced_application_scopes r
                           where r.app_id = application_scopes.app_id
                             and r.scope_id = application_scopes.scope_id)",
    )?;
    touched += run!(
        conn,
        "delete from application_apis
         where app_id in (select app_id from replaced_applications)
           and not exists (select 1 from replaced_application_apis r
                           where r.app_id = application_apis.app_id
                             and r.api_id = application_apis.api_id)",
    )?;
    Ok(touched)
}

/// A key that the same store knew and knows no longer was dead for so long that it was forgotten.
async fn absent_keys(conn: &mut Conn, now: i64) -> Result<u64> {
    run!(
        conn,
        "update api_keys set revoked_at = $1, revoke_reason = 'forgotten after its revocation'
         where revoked_at is null
           and not exists (select 1 from replaced_keys r where r.key_id = api_keys.key_id)",
        now,
    )
}

/// A secret that the same store knows no longer was imported and got a peppered digest at its
/// first use, in the same row. It stays good while that row is, which its date tells; where two
/// rows have the date, one of them ended is enough to end it. When it ended is not looked up; a
/// time before every question does.
async fn absent_secrets(conn: &mut Conn) -> Result<u64> {
    run!(
        conn,
        "update key_secrets set superseded_at = created_at
         where superseded_at is null
           and not exists (select 1 from replaced_secrets r
                           where r.env_id = key_secrets.env_id and r.digest = key_secrets.digest)
           and (not exists (select 1 from replaced_secrets r
                            where r.key_id = key_secrets.key_id
                              and r.created_at = key_secrets.created_at
                              and r.superseded_at is null)
                or exists (select 1 from replaced_secrets r
                           where r.key_id = key_secrets.key_id
                             and r.created_at = key_secrets.created_at
                             and r.superseded_at is not null))",
    )
}
