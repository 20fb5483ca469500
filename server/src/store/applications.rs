//! Applications: machine-to-machine clients of the management API, their secrets and grants.

use keyward_core::{ApiId, AppId, Digest, EnvId, ScopeId};

use super::{Conn, id16, row, rows, run};
use crate::error::Result;

/// An application as it is stored.
#[derive(Debug, Clone)]
pub struct Application {
    /// Its id, which is also its `client_id`.
    pub app: AppId,
    /// Its environment.
    pub env: EnvId,
    /// Its name.
    pub name: String,
    /// When it was made, µs since the epoch.
    pub created_at: i64,
    /// Since when it may not act.
    pub disabled_at: Option<i64>,
    /// The last change.
    pub changed_seq: i64,
}

#[derive(sqlx::FromRow)]
struct Row {
    app_id: Vec<u8>,
    env_id: Vec<u8>,
    name: String,
    created_at: i64,
    disabled_at: Option<i64>,
    changed_seq: i64,
}

fn application(row: Row) -> Result<Application> {
    Ok(Application {
        app: AppId::from_bytes(id16(&row.app_id)?),
        env: EnvId::from_bytes(id16(&row.env_id)?),
        name: row.name,
        created_at: row.created_at,
        disabled_at: row.disabled_at,
        changed_seq: row.changed_seq,
    })
}

/// The live applications of every environment.
pub(crate) async fn all_any_environment(conn: &mut Conn) -> Result<Vec<Application>> {
    rows!(
        conn,
        Row,
        "select app_id, env_id, name, created_at, disabled_at, changed_seq
         from applications where deleted_at is null order by app_id",
    )?
    .into_iter()
    .map(application)
    .collect()
}

/// A page of the live applications of `env`, after `after`, the oldest first.
pub(crate) async fn page(
    conn: &mut Conn,
    env: EnvId,
    after: [u8; 16],
    size: i64,
) -> Result<Vec<Application>> {
    rows!(
        conn,
        Row,
        "select app_id, env_id, name, created_at, disabled_at, changed_seq
         from applications where env_id = $1 and app_id > $2 and deleted_at is null
         order by app_id limit $3",
        env.bytes().as_slice(),
        after.as_slice(),
        size,
    )?
    .into_iter()
    .map(application)
    .collect()
}

/// One live application.
pub(crate) async fn find(conn: &mut Conn, env: EnvId, app: AppId) -> Result<Option<Application>> {
    row!(
        conn,
        Row,
        "select app_id, env_id, name, created_at, disabled_at, changed_seq
         from applications where env_id = $1 and app_id = $2 and deleted_at is null",
        env.bytes().as_slice(),
        app.bytes().as_slice(),
    )?
    .map(application)
    .transpose()
}

/// Stores a new application.
pub(crate) async fn insert(conn: &mut Conn, a: &Application) -> Result<()> {
    run!(
        conn,
        "insert into applications (app_id, env_id, name, created_at, disabled_at, changed_seq)
         values ($1, $2, $3, $4, $5, $6)",
        a.app.bytes().as_slice(),
        a.env.bytes().as_slice(),
        a.name.as_str(),
        a.created_at,
        a.disabled_at,
        a.changed_seq,
    )?;
    Ok(())
}

/// Stores what may change of an application.
pub(crate) async fn update(conn: &mut Conn, a: &Application) -> Result<()> {
    run!(
        conn,
        "update applications set name = $3, disabled_at = $4, changed_seq = $5
         where env_id = $1 and app_id = $2",
        a.env.bytes().as_slice(),
        a.app.bytes().as_slice(),
        a.name.as_str(),
        a.disabled_at,
        a.changed_seq,
    )?;
    Ok(())
}

/// Deletes an application for good; its secrets go with it.
pub(crate) async fn delete(
    conn: &mut Conn,
    env: EnvId,
    app: AppId,
    now: i64,
    seq: i64,
) -> Result<()> {
    run!(
        conn,
        "update applications set deleted_at = $3, changed_seq = $4
         where env_id = $1 and app_id = $2 and deleted_at is null",
        env.bytes().as_slice(),
        app.bytes().as_slice(),
        now,
        seq,
    )?;
    run!(conn, "delete from application_secrets where app_id = $1", app.bytes().as_slice())?;
    run!(conn, "delete from application_apis where app_id = $1", app.bytes().as_slice())?;
    run!(conn, "delete from application_scopes where app_id = $1", app.bytes().as_slice())?;
    Ok(())
}

/// A stored client secret.
pub(crate) struct ClientSecret {
    pub(crate) app: AppId,
    pub(crate) digest: Digest,
    pub(crate) pepper_id: u32,
    /// The end of the overlap after a rotation, µs since the epoch.
    pub(crate) expires_at: Option<i64>,
    /// What tokens carry that were got with it.
    pub(crate) generation: i64,
}

/// The client secrets of every application.
pub(crate) async fn secrets_any_environment(conn: &mut Conn) -> Result<Vec<ClientSecret>> {
    type Row = (Vec<u8>, Vec<u8>, i64, Option<i64>, i64);
    rows!(
        conn,
        Row,
        "select app_id, digest, pepper_id, expires_at, generation from application_secrets",
    )?
    .into_iter()
    .map(|(app, digest, pepper, expires_at, generation)| {
        Ok(ClientSecret {
            app: AppId::from_bytes(id16(&app)?),
            digest: super::digest(&digest)?,
            pepper_id: u32::try_from(pepper).unwrap_or(0),
            expires_at,
            generation,
        })
    })
    .collect()
}

/// A generation that no secret of `app` has had. It begins with the time, so that neither a secret
/// that is gone by now nor a restored backup can make it come again.
async fn next_generation(conn: &mut Conn, app: AppId, now: i64) -> Result<i64> {
    let last = row!(
        conn,
        (i64,),
        "select coalesce(max(generation), 0) from application_secrets where app_id = $1",
        app.bytes().as_slice(),
    )?;
    Ok(last.map_or(now, |(last,)| now.max(last + 1)))
}

/// Ends every token of `app` that was issued so far; its secrets stay good.
pub(crate) async fn end_tokens(conn: &mut Conn, app: AppId, now: i64) -> Result<()> {
    let secrets = rows!(
        conn,
        (Vec<u8>,),
        "select digest from application_secrets where app_id = $1",
        app.bytes().as_slice(),
    )?;
    for (digest,) in secrets {
        let generation = next_generation(conn, app, now).await?;
        run!(
            conn,
            "update application_secrets set generation = $3 where app_id = $1 and digest = $2",
            app.bytes().as_slice(),
            digest.as_slice(),
            generation,
        )?;
    }
    Ok(())
}

/// Stores a client secret's digest.
pub(crate) async fn insert_secret(
    conn: &mut Conn,
    app: AppId,
    digest: &Digest,
    pepper_id: u32,
    now: i64,
) -> Result<()> {
    let generation = next_generation(conn, app, now).await?;
    run!(
        conn,
        "insert into application_secrets (app_id, digest, pepper_id, created_at, generation)
         values ($1, $2, $3, $4, $5)",
        app.bytes().as_slice(),
        digest.bytes().as_slice(),
        i64::from(pepper_id),
        now,
        generation,
    )?;
    Ok(())
}

/// Lets the present secrets of `app` end at `expires_at`, and drops those that ended before `now`.
pub(crate) async fn expire_secrets(
    conn: &mut Conn,
    app: AppId,
    expires_at: i64,
    now: i64,
) -> Result<()> {
    run!(
        conn,
        "delete from application_secrets where app_id = $1 and expires_at <= $2",
        app.bytes().as_slice(),
        now,
    )?;
    run!(
        conn,
        "update application_secrets set expires_at = $2
         where app_id = $1 and (expires_at is null or expires_at > $2)",
        app.bytes().as_slice(),
        expires_at,
    )?;
    Ok(())
}

/// A scope that an application holds on an API.
pub(crate) struct Grant {
    pub(crate) app: AppId,
    pub(crate) api: ApiId,
    pub(crate) scope_key: String,
}

/// Which applications are connected to which APIs, in every environment.
pub(crate) async fn connections_any_environment(conn: &mut Conn) -> Result<Vec<(AppId, ApiId)>> {
    type Row = (Vec<u8>, Vec<u8>);
    rows!(conn, Row, "select app_id, api_id from application_apis")?
        .into_iter()
        .map(|(app, api)| Ok((AppId::from_bytes(id16(&app)?), ApiId::from_bytes(id16(&api)?))))
        .collect()
}

/// Every scope that an application holds, in every environment.
pub(crate) async fn grants_any_environment(conn: &mut Conn) -> Result<Vec<Grant>> {
    type Row = (Vec<u8>, Vec<u8>, String);
    rows!(
        conn,
        Row,
        "select g.app_id, g.api_id, s.scope_key
         from application_scopes g join api_scopes s on s.scope_id = g.scope_id
         where s.deleted_at is null",
    )?
    .into_iter()
    .map(|(app, api, scope_key)| {
        Ok(Grant {
            app: AppId::from_bytes(id16(&app)?),
            api: ApiId::from_bytes(id16(&api)?),
            scope_key,
        })
    })
    .collect()
}

/// The live applications connected to `api`.
pub(crate) async fn connected(conn: &mut Conn, env: EnvId, api: ApiId) -> Result<Vec<Application>> {
    rows!(
        conn,
        Row,
        "select a.app_id, a.env_id, a.name, a.created_at, a.disabled_at, a.changed_seq
         from application_apis c join applications a on a.app_id = c.app_id
         where c.api_id = $2 and a.env_id = $1 and a.deleted_at is null order by a.app_id",
        env.bytes().as_slice(),
        api.bytes().as_slice(),
    )?
    .into_iter()
    .map(application)
    .collect()
}

/// Connects `app` to `api`; false when it was before.
pub(crate) async fn connect(
    conn: &mut Conn,
    env: EnvId,
    app: AppId,
    api: ApiId,
    now: i64,
) -> Result<bool> {
    let touched = run!(
        conn,
        "insert into application_apis (env_id, app_id, api_id, connected_at)
         values ($1, $2, $3, $4) on conflict (app_id, api_id) do nothing",
        env.bytes().as_slice(),
        app.bytes().as_slice(),
        api.bytes().as_slice(),
        now,
    )?;
    Ok(touched > 0)
}

/// Parts `app` from `api` and takes its scopes there; false when it was not connected.
pub(crate) async fn disconnect(conn: &mut Conn, app: AppId, api: ApiId) -> Result<bool> {
    run!(
        conn,
        "delete from application_scopes where app_id = $1 and api_id = $2",
        app.bytes().as_slice(),
        api.bytes().as_slice(),
    )?;
    let touched = run!(
        conn,
        "delete from application_apis where app_id = $1 and api_id = $2",
        app.bytes().as_slice(),
        api.bytes().as_slice(),
    )?;
    Ok(touched > 0)
}

/// Grants `scope` to `app`; false when it held it before.
pub(crate) async fn grant(
    conn: &mut Conn,
    env: EnvId,
    app: AppId,
    api: ApiId,
    scope: ScopeId,
) -> Result<bool> {
    let touched = run!(
        conn,
        "insert into application_scopes (env_id, app_id, api_id, scope_id)
         values ($1, $2, $3, $4) on conflict (app_id, scope_id) do nothing",
        env.bytes().as_slice(),
        app.bytes().as_slice(),
        api.bytes().as_slice(),
        scope.bytes().as_slice(),
    )?;
    Ok(touched > 0)
}

/// Takes `scope` from `app`; false when it did not hold it.
pub(crate) async fn ungrant(conn: &mut Conn, app: AppId, scope: ScopeId) -> Result<bool> {
    let touched = run!(
        conn,
        "delete from application_scopes where app_id = $1 and scope_id = $2",
        app.bytes().as_slice(),
        scope.bytes().as_slice(),
    )?;
    Ok(touched > 0)
}

/// How many scopes of the management API `target` holds and `caller` does not.
pub(crate) async fn management_scopes_beyond(
    conn: &mut Conn,
    env: EnvId,
    target: AppId,
    caller: AppId,
) -> Result<i64> {
    let found = row!(
        conn,
        (i64,),
        "select count(*) from application_scopes t join apis a on a.api_id = t.api_id
         where t.env_id = $1 and t.app_id = $2 and a.is_management = 1 and not exists
             (select 1 from application_scopes c
              where c.app_id = $3 and c.scope_id = t.scope_id)",
        env.bytes().as_slice(),
        target.bytes().as_slice(),
        caller.bytes().as_slice(),
    )?;
    Ok(found.map_or(0, |(count,)| count))
}

/// Whether `app` holds the scope `scope`.
pub(crate) async fn holds(conn: &mut Conn, app: AppId, scope: ScopeId) -> Result<bool> {
    let found = row!(
        conn,
        (i64,),
        "select count(*) from application_scopes where app_id = $1 and scope_id = $2",
        app.bytes().as_slice(),
        scope.bytes().as_slice(),
    )?;
    Ok(found.is_some_and(|(count,)| count > 0))
}
