//! Applications: the machine-to-machine clients of the management API.

use keyward_core::{AppId, EnvId, Pepper};
use serde_json::json;
use zeroize::Zeroizing;

use super::{Action, Actor, Context};
use crate::error::{Error, Result};
use crate::store::applications::Application;
use crate::store::{Committed, Fact, Outcome, Store, Touched, Tx, applications};

/// Longest overlap after a client secret's rotation: 30 days in µs.
pub const OVERLAP_MAX_US: i64 = 30 * 24 * 3_600 * 1_000_000;

/// Mints a client secret: 48 characters, about 285 bits. Only its digest is stored.
pub(super) async fn new_client_secret(
    tx: &mut Tx,
    app: AppId,
    pepper: &Pepper,
) -> Result<Zeroizing<String>> {
    let secret = Zeroizing::new(tx.entropy.alphanumeric::<48>());
    let digest = pepper.digest(secret.as_bytes());
    applications::insert_secret(&mut tx.conn, app, &digest, pepper.id(), tx.now).await?;
    Ok(secret)
}

fn fact(app: AppId) -> Fact {
    Fact {
        target_kind: "application",
        target_id: app.to_string(),
        touched: vec![Touched::Directory],
        ..Fact::default()
    }
}

/// Makes an application without any scope; returns its secret, once.
///
/// # Errors
/// `Unavailable` when the store does not answer.
pub async fn create(
    store: &Store,
    env: EnvId,
    context: &Context,
    pepper: Pepper,
    name: String,
) -> Result<Committed<(AppId, Zeroizing<String>)>> {
    store
        .write(env, context, Action::ApplicationCreated, move |tx| {
            Box::pin(async move {
                let app = AppId::from_bytes(tx.entropy.id(tx.now));
                let row = Application {
                    app,
                    env,
                    name,
                    created_at: tx.now,
                    disabled_at: None,
                    changed_seq: tx.seq(),
                };
                applications::insert(&mut tx.conn, &row).await?;
                let secret = new_client_secret(tx, app, &pepper).await?;
                let after = json!({ "name": row.name });
                Ok(Outcome::Changed((app, secret), Fact { after: Some(after), ..fact(app) }))
            })
        })
        .await
}

/// Renames an application, disables or enables it. Its tokens stop for good when it is disabled;
/// once it is enabled again, its secret gets new ones.
///
/// # Errors
/// `NotFound`; `Forbidden` when an application enables one with more management scopes.
pub async fn update(
    store: &Store,
    env: EnvId,
    context: &Context,
    id: AppId,
    name: Option<String>,
    enabled: Option<bool>,
) -> Result<Committed<()>> {
    let actor = context.actor.clone();
    store
        .write(env, context, Action::ApplicationUpdated, move |tx| {
            Box::pin(async move {
                let mut row = existing(tx, env, id).await?;
                let state = |row: &Application| {
                    json!({ "name": row.name, "enabled": row.disabled_at.is_none() })
                };
                let before = state(&row);
                if enabled == Some(true) && row.disabled_at.is_some() {
                    refuse_more_powerful(tx, env, &actor, id).await?;
                }
                row.name = name.unwrap_or(row.name);
                match enabled {
                    Some(true) => row.disabled_at = None,
                    Some(false) if row.disabled_at.is_none() => {
                        row.disabled_at = Some(tx.now);
                        applications::end_tokens(&mut tx.conn, id, tx.now).await?;
                    }
                    Some(false) | None => {}
                }
                let after = state(&row);
                if before == after {
                    return Ok(Outcome::Reached((), row.changed_seq));
                }
                row.changed_seq = tx.seq();
                applications::update(&mut tx.conn, &row).await?;
                let fact = Fact { before: Some(before), after: Some(after), ..fact(id) };
                Ok(Outcome::Changed((), fact))
            })
        })
        .await
}

/// Deletes an application for good; its tokens stop at once.
///
/// # Errors
/// `NotFound`.
pub async fn delete(
    store: &Store,
    env: EnvId,
    context: &Context,
    id: AppId,
) -> Result<Committed<()>> {
    store
        .write(env, context, Action::ApplicationDeleted, move |tx| {
            Box::pin(async move {
                let row = existing(tx, env, id).await?;
                let (now, seq) = (tx.now, tx.seq());
                applications::delete(&mut tx.conn, env, id, now, seq).await?;
                let before = json!({ "name": row.name });
                Ok(Outcome::Changed((), Fact { before: Some(before), ..fact(id) }))
            })
        })
        .await
}

/// Gives an application a new client secret; the present one, and the tokens that were got with
/// it, stay good for `overlap_us`.
///
/// # Errors
/// `NotFound`; `Invalid` for an overlap beyond [`OVERLAP_MAX_US`]; `Forbidden` when an application
/// asks for the secret of one with more management scopes.
pub async fn rotate_secret(
    store: &Store,
    env: EnvId,
    context: &Context,
    pepper: Pepper,
    id: AppId,
    overlap_us: i64,
) -> Result<Committed<Zeroizing<String>>> {
    if !(0..=OVERLAP_MAX_US).contains(&overlap_us) {
        return Err(Error::invalid("BAD_OVERLAP", "the overlap is between 0 s and 30 days"));
    }
    let actor = context.actor.clone();
    store
        .write(env, context, Action::ApplicationSecretRotated, move |tx| {
            Box::pin(async move {
                let mut row = existing(tx, env, id).await?;
                refuse_more_powerful(tx, env, &actor, id).await?;
                let now = tx.now;
                // At once means with this change, and not at a time that every node would judge by
                // a clock of its own.
                let ends = if overlap_us == 0 { 0 } else { now + overlap_us };
                applications::expire_secrets(&mut tx.conn, id, ends, now).await?;
                let secret = new_client_secret(tx, id, &pepper).await?;
                row.changed_seq = tx.seq();
                applications::update(&mut tx.conn, &row).await?;
                let after = json!({ "overlap_seconds": overlap_us / 1_000_000 });
                Ok(Outcome::Changed(secret, Fact { after: Some(after), ..fact(id) }))
            })
        })
        .await
}

/// An application must not come by another's rights: by its secret, or by enabling it again.
async fn refuse_more_powerful(tx: &mut Tx, env: EnvId, actor: &Actor, target: AppId) -> Result<()> {
    let Actor::Application(caller) = actor else { return Ok(()) };
    let beyond = applications::management_scopes_beyond(&mut tx.conn, env, target, *caller).await?;
    if beyond == 0 {
        return Ok(());
    }
    let public = "that application holds management scopes which the caller does not hold";
    Err(Error::forbidden("INSUFFICIENT_SCOPE", public))
}

async fn existing(tx: &mut Tx, env: EnvId, id: AppId) -> Result<Application> {
    applications::find(&mut tx.conn, env, id).await?.ok_or_else(|| Error::not_found("application"))
}
