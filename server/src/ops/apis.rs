//! APIs, their scopes, and which applications may use them.

use keyward_core::{ApiId, AppId, EnvId, ScopeId};
use serde_json::json;

use super::{Action, Actor, Context};
use crate::error::{Error, Result};
use crate::store::apis::{Api, Scope};
use crate::store::{Committed, Fact, Outcome, Store, Touched, Tx, apis, applications};

fn fact(api: ApiId) -> Fact {
    Fact {
        target_kind: "api",
        target_id: api.to_string(),
        touched: vec![Touched::Api(api), Touched::Directory],
        ..Fact::default()
    }
}

/// Registers an API.
///
/// # Errors
/// `Conflict` when the audience is taken; `Invalid` when it holds white space.
pub async fn create(
    store: &Store,
    env: EnvId,
    context: &Context,
    name: String,
    audience: String,
) -> Result<Committed<ApiId>> {
    if audience.chars().any(char::is_whitespace) {
        return Err(Error::invalid("BAD_FIELD", "`audience` must not hold white space"));
    }
    store
        .write(env, context, Action::ApiCreated, move |tx| {
            Box::pin(async move {
                let api = ApiId::from_bytes(tx.entropy.id(tx.now));
                let row = Api {
                    api,
                    env,
                    name,
                    audience,
                    is_management: false,
                    created_at: tx.now,
                    deleted_at: None,
                    changed_seq: tx.seq(),
                };
                apis::insert(&mut tx.conn, &row).await?;
                let after = json!({ "name": row.name, "audience": row.audience });
                Ok(Outcome::Changed(api, Fact { after: Some(after), ..fact(api) }))
            })
        })
        .await
}

/// Deletes an API for good; its keys are revoked by that.
///
/// # Errors
/// `NotFound`; `Invalid` for the management API.
pub async fn delete(
    store: &Store,
    env: EnvId,
    context: &Context,
    id: ApiId,
) -> Result<Committed<()>> {
    store
        .write(env, context, Action::ApiDeleted, move |tx| {
            Box::pin(async move {
                let api = existing(tx, env, id).await?;
                refuse_management(&api)?;
                let (now, seq) = (tx.now, tx.seq());
                apis::delete(&mut tx.conn, env, id, now, seq).await?;
                let before = json!({ "name": api.name, "audience": api.audience });
                Ok(Outcome::Changed((), Fact { before: Some(before), ..fact(id) }))
            })
        })
        .await
}

/// Adds a scope to an API.
///
/// # Errors
/// `NotFound` for the API, `Conflict` when it has the scope, `Invalid` for the management API or
/// a key that is no scope-token of RFC 6749 §3.3.
pub async fn create_scope(
    store: &Store,
    env: EnvId,
    context: &Context,
    api: ApiId,
    key: String,
    description: Option<String>,
) -> Result<Committed<ScopeId>> {
    // Tokens name scopes in one text with spaces between.
    if !key.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'"' | b'\\')) {
        let public = "`key` must be visible ASCII characters without `\"` and `\\`";
        return Err(Error::invalid("BAD_FIELD", public));
    }
    store
        .write(env, context, Action::ScopeCreated, move |tx| {
            Box::pin(async move {
                refuse_management(&existing(tx, env, api).await?)?;
                let scope = ScopeId::from_bytes(tx.entropy.id(tx.now));
                let row = Scope { scope, api, key, description };
                let (now, seq) = (tx.now, tx.seq());
                apis::insert_scope(&mut tx.conn, env, &row, now, seq).await?;
                let after = json!({ "key": row.key, "description": row.description });
                Ok(Outcome::Changed(scope, scope_fact(api, scope, None, Some(after))))
            })
        })
        .await
}

/// Describes a scope anew; without a wish (`None`) it stays as it is.
///
/// # Errors
/// `NotFound` for the API or the scope.
pub async fn describe_scope(
    store: &Store,
    env: EnvId,
    context: &Context,
    api: ApiId,
    id: ScopeId,
    wish: Option<Option<String>>,
) -> Result<Committed<()>> {
    store
        .write(env, context, Action::ScopeUpdated, move |tx| {
            Box::pin(async move {
                let found = existing(tx, env, api).await?;
                let scope = existing_scope(tx, env, api, id).await?;
                let description = match wish {
                    Some(description) if description != scope.description => description,
                    Some(_) | None => return Ok(Outcome::Reached((), found.changed_seq)),
                };
                let seq = tx.seq();
                apis::describe_scope(&mut tx.conn, env, id, description.as_deref(), seq).await?;
                let before = json!({ "description": scope.description });
                let after = json!({ "description": description });
                Ok(Outcome::Changed((), scope_fact(api, id, Some(before), Some(after))))
            })
        })
        .await
}

/// Deletes a scope for good; no key and no application holds it any longer.
///
/// # Errors
/// `NotFound` for the API or the scope, `Invalid` for the management API.
pub async fn delete_scope(
    store: &Store,
    env: EnvId,
    context: &Context,
    api: ApiId,
    id: ScopeId,
) -> Result<Committed<()>> {
    store
        .write(env, context, Action::ScopeDeleted, move |tx| {
            Box::pin(async move {
                refuse_management(&existing(tx, env, api).await?)?;
                let scope = existing_scope(tx, env, api, id).await?;
                let (now, seq) = (tx.now, tx.seq());
                apis::delete_scope(&mut tx.conn, env, id, now, seq).await?;
                let before = json!({ "key": scope.key, "description": scope.description });
                Ok(Outcome::Changed((), scope_fact(api, id, Some(before), None)))
            })
        })
        .await
}

/// Connects applications to an API and parts others from it; each list names what changed.
///
/// # Errors
/// `NotFound` for the API, `Invalid` for an unknown application.
pub async fn connect(
    store: &Store,
    env: EnvId,
    context: &Context,
    api: ApiId,
    wishes: Vec<(AppId, bool)>,
) -> Result<Committed<(Vec<AppId>, Vec<AppId>)>> {
    store
        .write(env, context, Action::ApiApplicationsUpdated, move |tx| {
            Box::pin(async move {
                let found = existing(tx, env, api).await?;
                let (mut connected, mut parted) = (Vec::new(), Vec::new());
                for (app, wanted) in wishes {
                    if applications::find(&mut tx.conn, env, app).await?.is_none() {
                        let public = format!("`applications`: there is no application {app}");
                        return Err(Error::invalid("UNKNOWN_APPLICATION", public));
                    }
                    if wanted {
                        if applications::connect(&mut tx.conn, env, app, api, tx.now).await? {
                            connected.push(app);
                        }
                    } else if applications::disconnect(&mut tx.conn, app, api).await? {
                        parted.push(app);
                    }
                }
                if connected.is_empty() && parted.is_empty() {
                    // A connection has no number of its own; the head is never too early.
                    let seq = (tx.seq() - 1).max(found.changed_seq);
                    return Ok(Outcome::Reached((connected, parted), seq));
                }
                let words = |apps: &[AppId]| apps.iter().map(AppId::to_string).collect::<Vec<_>>();
                let after = json!({
                    "connected": words(&connected),
                    "disconnected": words(&parted),
                });
                let fact = Fact { after: Some(after), ..fact(api) };
                Ok(Outcome::Changed((connected, parted), fact))
            })
        })
        .await
}

/// Gives an application a scope of an API, or takes it away.
///
/// # Errors
/// `NotFound` for the API, the application or the scope; `Invalid` when they are not connected;
/// `Forbidden` when an application gives away a management scope that it does not hold.
pub async fn grant(
    store: &Store,
    env: EnvId,
    context: &Context,
    (api, app, id): (ApiId, AppId, ScopeId),
    wanted: bool,
) -> Result<Committed<()>> {
    let action =
        if wanted { Action::ApplicationScopeGranted } else { Action::ApplicationScopeTaken };
    let actor = context.actor.clone();
    store
        .write(env, context, action, move |tx| {
            Box::pin(async move {
                let found = existing(tx, env, api).await?;
                if applications::find(&mut tx.conn, env, app).await?.is_none() {
                    return Err(Error::not_found("application"));
                }
                let scope = existing_scope(tx, env, api, id).await?;
                if let Actor::Application(caller) = actor
                    && wanted
                    && found.is_management
                    && !applications::holds(&mut tx.conn, caller, id).await?
                {
                    let public = "an application can give away only management scopes it holds";
                    return Err(Error::forbidden("INSUFFICIENT_SCOPE", public));
                }
                let changed = if wanted {
                    let connected = applications::connected(&mut tx.conn, env, api).await?;
                    if !connected.iter().any(|one| one.app == app) {
                        let public = "the application is not connected to this API";
                        return Err(Error::invalid("NOT_CONNECTED", public));
                    }
                    applications::grant(&mut tx.conn, env, app, api, id).await?
                } else {
                    applications::ungrant(&mut tx.conn, app, id).await?
                };
                if !changed {
                    // The grant has no number of its own; the head is never too early.
                    return Ok(Outcome::Reached((), (tx.seq() - 1).max(found.changed_seq)));
                }
                let state = Some(json!({ "scope": scope.key, "api_id": api.to_string() }));
                let (before, after) = if wanted { (None, state) } else { (state, None) };
                let fact = Fact {
                    target_kind: "application",
                    target_id: app.to_string(),
                    before,
                    after,
                    touched: vec![Touched::Directory],
                    ..Fact::default()
                };
                Ok(Outcome::Changed((), fact))
            })
        })
        .await
}

fn scope_fact(
    api: ApiId,
    scope: ScopeId,
    before: Option<serde_json::Value>,
    after: Option<serde_json::Value>,
) -> Fact {
    Fact { target_kind: "scope", target_id: scope.to_string(), before, after, ..fact(api) }
}

async fn existing(tx: &mut Tx, env: EnvId, id: ApiId) -> Result<Api> {
    apis::find(&mut tx.conn, env, id).await?.ok_or_else(|| Error::not_found("API"))
}

async fn existing_scope(tx: &mut Tx, env: EnvId, api: ApiId, id: ScopeId) -> Result<Scope> {
    apis::find_scope(&mut tx.conn, env, api, id).await?.ok_or_else(|| Error::not_found("scope"))
}

fn refuse_management(api: &Api) -> Result<()> {
    if api.is_management {
        let public = "the management API and its scopes are Keyward's own and stay as they are";
        return Err(Error::invalid("MANAGEMENT_API", public));
    }
    Ok(())
}
