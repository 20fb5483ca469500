//! Issue, change, rotate, revoke: what can happen to a key.
//!
//! New keys are made in `issue`, and what they refer to is checked in `prepare`; keys made
//! elsewhere come by `import`.

use keyward_core::{Digest, EnvId, KeyId, Owner, Pepper, Prefix, Secret};
use serde_json::{Value, json};

use super::{Action, Actor, Context};
use crate::clock::rfc3339;
use crate::error::{Error, Result};
use crate::lease::Settle;
use crate::store::keys::Key;
use crate::store::{Committed, Fact, Outcome, Store, Touched, Tx, environments, keys};

mod import;
mod issue;
mod prepare;

pub use import::{IMPORT_MAX, ImportedKey, import};
pub(crate) use issue::{Issue, Issuing};
pub use prepare::{NewKey, NewOwner};

/// A key and its secret, which nobody will see again.
#[derive(Debug)]
pub struct Issued {
    /// The key.
    pub key: KeyId,
    /// The plain text.
    pub secret: Secret,
}

/// Issues a key.
///
/// # Errors
/// `Invalid` when the API, a scope or the organization does not exist, when the user is unknown
/// and may not be registered, or was deleted; `Conflict` when the owner is suspended.
pub async fn issue(
    store: &Store,
    env: EnvId,
    context: &Context,
    pepper: Pepper,
    new: NewKey,
) -> Result<Committed<Issued>> {
    store.issue(Issue { env, context: context.clone(), pepper, new }).await
}

/// What changes of a key; `None` leaves a field as it is, `Some(None)` clears it.
#[derive(Debug, Default, Clone)]
pub struct KeyPatch {
    /// Another name.
    pub name: Option<String>,
    /// Another description.
    pub description: Option<Option<String>>,
    /// Other metadata, as JSON text.
    pub metadata: Option<Option<String>>,
    /// Enabled or disabled.
    pub enabled: Option<bool>,
    /// Not good before, µs since the epoch.
    pub not_before: Option<Option<i64>>,
    /// Not good from then on.
    pub expires_at: Option<Option<i64>>,
}

impl KeyPatch {
    /// How long the change is waited for. Metadata can hold rights of the caller's own, and dates
    /// can come nearer: all that is sure to take nothing away is enabling.
    pub fn settle(&self) -> Settle {
        let may_narrow =
            self.metadata.is_some() || self.not_before.is_some() || self.expires_at.is_some();
        if self.enabled == Some(true) && !may_narrow { Settle::Widening } else { Settle::Narrowing }
    }
}

/// Changes a key. It never widens its scopes, and never revives a revoked key.
///
/// # Errors
/// `NotFound`; `Invalid` when the key is revoked or the dates make no sense.
pub async fn update(
    store: &Store,
    env: EnvId,
    context: &Context,
    id: KeyId,
    patch: KeyPatch,
) -> Result<Committed<()>> {
    store
        .write(env, context, Action::KeyUpdated, move |tx| {
            Box::pin(async move {
                let mut key = existing(tx, env, id).await?;
                if key.status == "revoked" {
                    let public = "a revoked key cannot be changed; issue a new one";
                    return Err(Error::invalid("KEY_REVOKED", public));
                }
                let mut fact = fact_of(&key);
                fact.before = Some(snapshot(&key));
                if patch.expires_at.flatten().is_some_and(|at| at <= tx.now) {
                    let public = "`expires_on` must be in the future; to end a key, revoke it";
                    return Err(Error::invalid("EXPIRES_IN_PAST", public));
                }
                let unchanged = snapshot(&key);
                key.name = patch.name.unwrap_or(key.name);
                key.description = patch.description.unwrap_or(key.description);
                key.metadata = patch.metadata.unwrap_or(key.metadata);
                key.not_before = patch.not_before.unwrap_or(key.not_before);
                key.expires_at = patch.expires_at.unwrap_or(key.expires_at);
                match patch.enabled {
                    Some(true) => key.disabled_at = None,
                    Some(false) => key.disabled_at = key.disabled_at.or(Some(tx.now)),
                    None => {}
                }
                if let (Some(from), Some(to)) = (key.not_before, key.expires_at)
                    && from >= to
                {
                    let public = "`not_before` must be earlier than `expires_on`";
                    return Err(Error::invalid("NEVER_VALID", public));
                }
                fact.after = Some(snapshot(&key));
                if fact.after.as_ref() == Some(&unchanged) {
                    return Ok(Outcome::Reached((), key.changed_seq));
                }
                key.changed_seq = tx.seq();
                keys::update(&mut tx.conn, &key).await?;
                fact.touched.push(Touched::Key(id));
                Ok(Outcome::Changed((), fact))
            })
        })
        .await
}

/// Gives a key a new secret; the present one ends at once.
///
/// # Errors
/// `NotFound`; `Invalid` when the key is revoked.
pub async fn rotate(
    store: &Store,
    env: EnvId,
    context: &Context,
    pepper: Pepper,
    id: KeyId,
) -> Result<Committed<Issued>> {
    store
        .write(env, context, Action::KeyRotated, move |tx| {
            Box::pin(async move {
                let key = existing(tx, env, id).await?;
                if key.status == "revoked" {
                    let public = "a revoked key cannot be rotated; issue a new one";
                    return Err(Error::invalid("KEY_REVOKED", public));
                }
                let environment = environments::find(&mut tx.conn, env)
                    .await?
                    .ok_or_else(|| Error::not_found("environment"))?;
                let prefix = environment.key_prefixes.first().and_then(|text| Prefix::parse(text));
                let prefix =
                    prefix.ok_or_else(|| Error::internal("the environment has no key prefix"))?;
                let secret = Secret::mint(&prefix, &tx.entropy.bytes());
                let digest = pepper.digest(secret.expose().as_bytes());
                let ends = (secret.first6(), secret.last4());
                let seq = tx.seq();
                keys::supersede_secrets(&mut tx.conn, env, id, ends, seq).await?;
                keys::insert_secret(&mut tx.conn, env, id, &digest, pepper.id(), tx.now).await?;
                let mut fact = fact_of(&key);
                fact.before = Some(json!({ "key_suffix": key.key_suffix }));
                fact.after = Some(json!({ "key_suffix": secret.last4() }));
                fact.touched.push(Touched::Key(id));
                Ok(Outcome::Changed(Issued { key: id, secret }, fact))
            })
        })
        .await
}

/// Revokes a key for good. A repeated call is told of the change that did it.
///
/// # Errors
/// `NotFound`.
pub async fn revoke(
    store: &Store,
    env: EnvId,
    context: &Context,
    id: KeyId,
    reason: Option<String>,
) -> Result<Committed<()>> {
    store
        .write(env, context, Action::KeyRevoked, move |tx| {
            Box::pin(async move {
                let key = existing(tx, env, id).await?;
                let (now, seq) = (tx.now, tx.seq());
                let revoked =
                    keys::revoke(&mut tx.conn, env, id, reason.as_deref(), now, seq).await?;
                if !revoked {
                    return Ok(Outcome::Reached((), key.changed_seq));
                }
                let mut fact = fact_of(&key);
                fact.before = Some(json!({ "status": key.status }));
                fact.after = Some(json!({ "status": "revoked", "revoked_at": rfc3339(now) }));
                fact.reason = reason;
                fact.touched.push(Touched::Key(id));
                Ok(Outcome::Changed((), fact))
            })
        })
        .await
}

/// Puts a peppered digest in the place of an imported hash, after its secret was first seen.
///
/// # Errors
/// `Unavailable` when the store does not answer; the hash then stays and is tried again later.
pub async fn rehash(
    store: &Store,
    env: EnvId,
    id: KeyId,
    candidates: Vec<(Digest, Digest)>,
    pepper_id: u32,
) -> Result<Committed<()>> {
    let context = Context::system("rehash");
    store
        .write(env, &context, Action::KeyRehashed, move |tx| {
            Box::pin(async move {
                let key = existing(tx, env, id).await?;
                let mut done = false;
                for (from, to) in &candidates {
                    done = done
                        || keys::rehash_secret(&mut tx.conn, env, id, from, to, pepper_id).await?;
                }
                if !done {
                    return Ok(Outcome::Reached((), key.changed_seq));
                }
                let mut fact = fact_of(&key);
                fact.touched.push(Touched::Key(id));
                Ok(Outcome::Changed((), fact))
            })
        })
        .await
}

async fn existing(tx: &mut Tx, env: EnvId, id: KeyId) -> Result<Key> {
    keys::find(&mut tx.conn, env, id).await?.ok_or_else(|| Error::not_found("API key"))
}

fn fact_of(key: &Key) -> Fact {
    let (user, org) = match &key.owner {
        Owner::User(user) => (Some(user.to_string()), None),
        Owner::UserInOrg(user, org) => (Some(user.to_string()), Some(org.to_string())),
        Owner::Org(org) => (None, Some(org.to_string())),
        Owner::Environment => (None, None),
    };
    Fact { target_kind: "key", target_id: key.key.to_string(), user, org, ..Fact::default() }
}

/// What the audit log keeps of a key's state. No secret and no digest is part of it.
fn snapshot(key: &Key) -> Value {
    let scopes: Vec<String> = key.scopes.iter().map(ToString::to_string).collect();
    json!({
        "name": key.name,
        "description": key.description,
        "metadata": key.metadata,
        "api_id": key.api.to_string(),
        "scope_ids": scopes,
        "not_before": key.not_before.map(rfc3339),
        "expires_on": key.expires_at.map(rfc3339),
        "enabled": key.disabled_at.is_none(),
    })
}

fn created_by(context: &Context) -> Option<String> {
    match &context.actor {
        Actor::Application(app) => Some(app.to_string()),
        Actor::Operator(name) => Some(name.clone()),
        Actor::System | Actor::Stranger => None,
    }
}
