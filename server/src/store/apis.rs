//! APIs and their scopes: what the operator protects, and what may be done there.

use keyward_core::{ApiId, EnvId, ScopeId};

use super::{Conn, id16, row, rows, run};
use crate::error::{Error, Result};

/// An API as it is stored.
#[derive(Debug, Clone)]
pub struct Api {
    /// Its id.
    pub api: ApiId,
    /// Its environment.
    pub env: EnvId,
    /// Its name.
    pub name: String,
    /// Its audience, unique in the environment.
    pub audience: String,
    /// Whether it is Keyward's own management API.
    pub is_management: bool,
    /// When it was made, µs since the epoch.
    pub created_at: i64,
    /// When it was deleted; its keys are revoked since then.
    pub deleted_at: Option<i64>,
    /// The last change.
    pub changed_seq: i64,
}

/// A scope as it is stored.
#[derive(Debug, Clone)]
pub struct Scope {
    /// Its id.
    pub scope: ScopeId,
    /// The API it belongs to.
    pub api: ApiId,
    /// What programs call it, such as `read:profile`.
    pub key: String,
    /// What it allows, for people.
    pub description: Option<String>,
}

#[derive(sqlx::FromRow)]
struct ApiRow {
    api_id: Vec<u8>,
    env_id: Vec<u8>,
    name: String,
    audience: String,
    is_management: i64,
    created_at: i64,
    deleted_at: Option<i64>,
    changed_seq: i64,
}

fn api(row: ApiRow) -> Result<Api> {
    Ok(Api {
        api: ApiId::from_bytes(id16(&row.api_id)?),
        env: EnvId::from_bytes(id16(&row.env_id)?),
        name: row.name,
        audience: row.audience,
        is_management: row.is_management != 0,
        created_at: row.created_at,
        deleted_at: row.deleted_at,
        changed_seq: row.changed_seq,
    })
}

#[derive(sqlx::FromRow)]
struct ScopeRow {
    scope_id: Vec<u8>,
    api_id: Vec<u8>,
    scope_key: String,
    description: Option<String>,
}

fn scope(row: ScopeRow) -> Result<Scope> {
    Ok(Scope {
        scope: ScopeId::from_bytes(id16(&row.scope_id)?),
        api: ApiId::from_bytes(id16(&row.api_id)?),
        key: row.scope_key,
        description: row.description,
    })
}

/// Every API of every environment, the deleted ones too, the oldest first.
pub(crate) async fn all_any_environment(conn: &mut Conn) -> Result<Vec<Api>> {
    rows!(
        conn,
        ApiRow,
        "select api_id, env_id, name, audience, is_management, created_at, deleted_at, changed_seq
         from apis order by api_id",
    )?
    .into_iter()
    .map(api)
    .collect()
}

/// The live APIs of `env`, the oldest first.
pub(crate) async fn all(conn: &mut Conn, env: EnvId) -> Result<Vec<Api>> {
    rows!(
        conn,
        ApiRow,
        "select api_id, env_id, name, audience, is_management, created_at, deleted_at, changed_seq
         from apis where env_id = $1 and deleted_at is null order by api_id",
        env.bytes().as_slice(),
    )?
    .into_iter()
    .map(api)
    .collect()
}

/// One API, deleted or not.
pub(crate) async fn find_or_deleted(conn: &mut Conn, env: EnvId, id: ApiId) -> Result<Option<Api>> {
    row!(
        conn,
        ApiRow,
        "select api_id, env_id, name, audience, is_management, created_at, deleted_at, changed_seq
         from apis where env_id = $1 and api_id = $2",
        env.bytes().as_slice(),
        id.bytes().as_slice(),
    )?
    .map(api)
    .transpose()
}

/// One live API.
pub(crate) async fn find(conn: &mut Conn, env: EnvId, id: ApiId) -> Result<Option<Api>> {
    Ok(find_or_deleted(conn, env, id).await?.filter(|api| api.deleted_at.is_none()))
}

/// The live API with this audience.
pub(crate) async fn by_audience(
    conn: &mut Conn,
    env: EnvId,
    audience: &str,
) -> Result<Option<Api>> {
    row!(
        conn,
        ApiRow,
        "select api_id, env_id, name, audience, is_management, created_at, deleted_at, changed_seq
         from apis where env_id = $1 and audience = $2 and deleted_at is null",
        env.bytes().as_slice(),
        audience,
    )?
    .map(api)
    .transpose()
}

/// Stores a new API.
pub(crate) async fn insert(conn: &mut Conn, a: &Api) -> Result<()> {
    run!(
        conn,
        "insert into apis
         (api_id, env_id, name, audience, is_management, rights, created_at, changed_seq)
         values ($1, $2, $3, $4, $5, 'key', $6, $7)",
        a.api.bytes().as_slice(),
        a.env.bytes().as_slice(),
        a.name.as_str(),
        a.audience.as_str(),
        i64::from(a.is_management),
        a.created_at,
        a.changed_seq,
    )
    .map(|_| ())
    .map_err(|error| {
        if super::breaks(&error, "apis_audience", "apis.audience") {
            let public = format!("an API with the audience `{}` exists already", a.audience);
            Error::conflict("AUDIENCE_TAKEN", public)
        } else {
            error
        }
    })
}

/// Gives the management API another audience, when the environment's base URL changes.
pub(crate) async fn set_management_audience(
    conn: &mut Conn,
    env: EnvId,
    audience: &str,
    seq: i64,
) -> Result<()> {
    run!(
        conn,
        "update apis set audience = $2, changed_seq = $3 where env_id = $1 and is_management = 1",
        env.bytes().as_slice(),
        audience,
        seq,
    )?;
    Ok(())
}

/// Deletes an API for good: its keys are revoked by that.
pub(crate) async fn delete(
    conn: &mut Conn,
    env: EnvId,
    id: ApiId,
    now: i64,
    seq: i64,
) -> Result<()> {
    run!(
        conn,
        "update apis set deleted_at = $3, changed_seq = $4
         where env_id = $1 and api_id = $2 and deleted_at is null",
        env.bytes().as_slice(),
        id.bytes().as_slice(),
        now,
        seq,
    )?;
    run!(conn, "delete from application_apis where api_id = $1", id.bytes().as_slice())?;
    run!(conn, "delete from application_scopes where api_id = $1", id.bytes().as_slice())?;
    Ok(())
}

/// The live scopes of every API, in the order in which answers name them.
pub(crate) async fn scopes_any_environment(conn: &mut Conn) -> Result<Vec<Scope>> {
    rows!(
        conn,
        ScopeRow,
        "select scope_id, api_id, scope_key, description
         from api_scopes where deleted_at is null order by scope_id",
    )?
    .into_iter()
    .map(scope)
    .collect()
}

/// The live scopes of one API, in the order in which answers name them.
pub(crate) async fn scopes(conn: &mut Conn, env: EnvId, id: ApiId) -> Result<Vec<Scope>> {
    rows!(
        conn,
        ScopeRow,
        "select scope_id, api_id, scope_key, description
         from api_scopes where env_id = $1 and api_id = $2 and deleted_at is null
         order by scope_id",
        env.bytes().as_slice(),
        id.bytes().as_slice(),
    )?
    .into_iter()
    .map(scope)
    .collect()
}

/// One live scope of an API.
pub(crate) async fn find_scope(
    conn: &mut Conn,
    env: EnvId,
    api: ApiId,
    id: ScopeId,
) -> Result<Option<Scope>> {
    row!(
        conn,
        ScopeRow,
        "select scope_id, api_id, scope_key, description
         from api_scopes
         where env_id = $1 and api_id = $2 and scope_id = $3 and deleted_at is null",
        env.bytes().as_slice(),
        api.bytes().as_slice(),
        id.bytes().as_slice(),
    )?
    .map(scope)
    .transpose()
}

/// Stores a new scope.
pub(crate) async fn insert_scope(
    conn: &mut Conn,
    env: EnvId,
    s: &Scope,
    now: i64,
    seq: i64,
) -> Result<()> {
    run!(
        conn,
        "insert into api_scopes
         (scope_id, env_id, api_id, scope_key, description, created_at, changed_seq)
         values ($1, $2, $3, $4, $5, $6, $7)",
        s.scope.bytes().as_slice(),
        env.bytes().as_slice(),
        s.api.bytes().as_slice(),
        s.key.as_str(),
        s.description.as_deref(),
        now,
        seq,
    )
    .map(|_| ())
    .map_err(|error| {
        if super::breaks(&error, "api_scopes_key", "api_scopes.scope_key") {
            let public = format!("this API has a scope `{}` already", s.key);
            Error::conflict("SCOPE_TAKEN", public)
        } else {
            error
        }
    })
}

/// Describes a scope anew.
pub(crate) async fn describe_scope(
    conn: &mut Conn,
    env: EnvId,
    id: ScopeId,
    description: Option<&str>,
    seq: i64,
) -> Result<()> {
    run!(
        conn,
        "update api_scopes set description = $3, changed_seq = $4
         where env_id = $1 and scope_id = $2 and deleted_at is null",
        env.bytes().as_slice(),
        id.bytes().as_slice(),
        description,
        seq,
    )?;
    Ok(())
}

/// Deletes a scope for good: no key and no application holds it any longer.
pub(crate) async fn delete_scope(
    conn: &mut Conn,
    env: EnvId,
    id: ScopeId,
    now: i64,
    seq: i64,
) -> Result<()> {
    run!(
        conn,
        "update api_scopes set deleted_at = $3, changed_seq = $4
         where env_id = $1 and scope_id = $2 and deleted_at is null",
        env.bytes().as_slice(),
        id.bytes().as_slice(),
        now,
        seq,
    )?;
    run!(conn, "delete from application_scopes where scope_id = $1", id.bytes().as_slice())?;
    Ok(())
}
