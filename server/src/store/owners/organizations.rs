//! Organizations as people see them, and the statements that change them.

use keyward_core::{EnvId, OrgCode};

use super::org_code;
use crate::error::{Error, Result};
use crate::store::{Conn, breaks, id16, row, rows, run};

/// An organization as it is stored.
#[derive(Debug, Clone)]
pub struct Organization {
    /// Its environment.
    pub env: EnvId,
    /// Its code.
    pub org: OrgCode,
    /// Its name.
    pub name: String,
    /// A short public name, unique among the live organizations of the environment.
    pub handle: Option<String>,
    /// An id of another system, unique in the same way.
    pub external_id: Option<String>,
    /// When it was made, the last time if several; µs since the epoch.
    pub created_at: i64,
    /// Its keys, and its members' keys inside it, are refused since then.
    pub suspended_at: Option<i64>,
    /// When it was deleted.
    pub deleted_at: Option<i64>,
    /// Every such key issued up to this sequence number is revoked; 0 for none.
    pub revoked_up_to: i64,
    /// The last change.
    pub changed_seq: i64,
}

#[derive(sqlx::FromRow)]
struct Row {
    env_id: Vec<u8>,
    org_code: String,
    name: String,
    handle: Option<String>,
    external_id: Option<String>,
    created_at: i64,
    suspended_at: Option<i64>,
    deleted_at: Option<i64>,
    revoked_up_to: i64,
    changed_seq: i64,
}

fn organization(row: Row) -> Result<Organization> {
    Ok(Organization {
        env: EnvId::from_bytes(id16(&row.env_id)?),
        org: org_code(&row.org_code)?,
        name: row.name,
        handle: row.handle,
        external_id: row.external_id,
        created_at: row.created_at,
        suspended_at: row.suspended_at,
        deleted_at: row.deleted_at,
        revoked_up_to: row.revoked_up_to,
        changed_seq: row.changed_seq,
    })
}

/// One organization, deleted or not.
pub(crate) async fn find_org(
    conn: &mut Conn,
    env: EnvId,
    org: &OrgCode,
) -> Result<Option<Organization>> {
    row!(
        conn,
        Row,
        "select env_id, org_code, name, handle, external_id, created_at, suspended_at, deleted_at,
                revoked_up_to, changed_seq
         from organizations where env_id = $1 and org_code = $2",
        env.bytes().as_slice(),
        org.as_str(),
    )?
    .map(organization)
    .transpose()
}

/// A page of the live organizations of `env` by code, beginning after `after`.
pub(crate) async fn orgs_page(
    conn: &mut Conn,
    env: EnvId,
    after: &str,
    size: i64,
) -> Result<Vec<Organization>> {
    rows!(
        conn,
        Row,
        "select env_id, org_code, name, handle, external_id, created_at, suspended_at, deleted_at,
                revoked_up_to, changed_seq
         from organizations where env_id = $1 and deleted_at is null and org_code > $2
         order by org_code limit $3",
        env.bytes().as_slice(),
        after,
        size,
    )?
    .into_iter()
    .map(organization)
    .collect()
}

/// Stores an organization whose code was never seen before.
pub(crate) async fn insert_org(conn: &mut Conn, o: &Organization) -> Result<()> {
    run!(
        conn,
        "insert into organizations
         (env_id, org_code, name, handle, external_id, created_at, revoked_up_to, changed_seq)
         values ($1, $2, $3, $4, $5, $6, 0, $7)",
        o.env.bytes().as_slice(),
        o.org.as_str(),
        o.name.as_str(),
        o.handle.as_deref(),
        o.external_id.as_deref(),
        o.created_at,
        o.changed_seq,
    )
    .map(|_| ())
    .map_err(|error| taken(error, o))
}

/// Makes a deleted organization anew. `revoked_up_to` stays: no key from before comes back.
pub(crate) async fn restore_org(conn: &mut Conn, o: &Organization) -> Result<()> {
    run!(
        conn,
        "update organizations
         set name = $3, handle = $4, external_id = $5, created_at = $6, suspended_at = null,
             deleted_at = null, changed_seq = $7
         where env_id = $1 and org_code = $2 and deleted_at is not null",
        o.env.bytes().as_slice(),
        o.org.as_str(),
        o.name.as_str(),
        o.handle.as_deref(),
        o.external_id.as_deref(),
        o.created_at,
        o.changed_seq,
    )
    .map(|_| ())
    .map_err(|error| taken(error, o))
}

/// Stores what may change of a live organization.
pub(crate) async fn update_org(conn: &mut Conn, o: &Organization) -> Result<()> {
    run!(
        conn,
        "update organizations
         set name = $3, handle = $4, external_id = $5, suspended_at = $6, changed_seq = $7
         where env_id = $1 and org_code = $2 and deleted_at is null",
        o.env.bytes().as_slice(),
        o.org.as_str(),
        o.name.as_str(),
        o.handle.as_deref(),
        o.external_id.as_deref(),
        o.suspended_at,
        o.changed_seq,
    )
    .map(|_| ())
    .map_err(|error| taken(error, o))
}

/// Deletes an organization and revokes every key issued for it up to `seq`; false when it was
/// deleted before. What it owns is not touched, as in
/// [`delete_user`](super::users::delete_user).
pub(crate) async fn delete_org(
    conn: &mut Conn,
    env: EnvId,
    org: &OrgCode,
    now: i64,
    seq: i64,
) -> Result<bool> {
    let touched = run!(
        conn,
        "update organizations
         set deleted_at = $3, revoked_up_to = $4, changed_seq = $4
         where env_id = $1 and org_code = $2 and deleted_at is null",
        env.bytes().as_slice(),
        org.as_str(),
        now,
        seq,
    )?;
    Ok(touched > 0)
}

/// Tells in words which of the organization's unique values another one has.
fn taken(error: Error, o: &Organization) -> Error {
    if breaks(&error, "organizations_handle", "organizations.handle") {
        let value = o.handle.as_deref().unwrap_or_default();
        let public = format!("another organization has the handle `{value}`");
        Error::conflict("HANDLE_TAKEN", public)
    } else if breaks(&error, "organizations_external_id", "organizations.external_id") {
        let value = o.external_id.as_deref().unwrap_or_default();
        let public = format!("another organization has the external id `{value}`");
        Error::conflict("EXTERNAL_ID_TAKEN", public)
    } else {
        error
    }
}
