//! Issue, import, change, rotate, revoke: what can happen to a key.

use keyward_core::{
    ApiId, Digest, EnvId, KeyId, OrgCode, Owner, Pepper, Prefix, ScopeId, Secret, UserId,
};
use serde_json::{Value, json};

use super::{Action, Actor, Context};
use crate::clock::rfc3339;
use crate::error::{Error, Result};
use crate::store::keys::{Key, UNPEPPERED};
use crate::store::{
    Committed, Fact, Outcome, Store, Touched, Tx, apis, environments, keys, owners,
};

/// Most keys in one import: a change must not hold the store's lock for long.
pub const IMPORT_MAX: usize = 1_000;

/// Whom a new key is for, as asked.
#[derive(Debug, Clone)]
pub enum NewOwner {
    /// A user, perhaps inside an organization.
    User(UserId, Option<OrgCode>),
    /// An organization.
    Org(OrgCode),
    /// The environment itself.
    Environment,
}

/// What a new key shall be.
#[derive(Debug, Clone)]
pub struct NewKey {
    /// Its name.
    pub name: String,
    /// What it is for.
    pub description: Option<String>,
    /// A JSON object of strings, as text.
    pub metadata: Option<String>,
    /// Whom it is for.
    pub owner: NewOwner,
    /// The API it is for.
    pub api: ApiId,
    /// Ids or keys of that API's scopes.
    pub scopes: Vec<String>,
    /// Not good before, µs since the epoch.
    pub not_before: Option<i64>,
    /// Not good from then on.
    pub expires_at: Option<i64>,
}

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
    let created_by = created_by(context);
    store
        .write(env, context, Action::KeyIssued, move |tx| {
            Box::pin(async move {
                let mut fact = Fact { target_kind: "key", ..Fact::default() };
                let (mut key, prefix) = prepare(tx, env, new, created_by, &mut fact).await?;
                let secret = Secret::mint(&prefix, &tx.entropy.bytes());
                key.key_prefix = secret.first6().to_owned();
                key.key_suffix = secret.last4().to_owned();
                let digest = pepper.digest(secret.expose().as_bytes());
                keys::insert(&mut tx.conn, &key).await?;
                keys::insert_secret(&mut tx.conn, env, key.key, &digest, pepper.id(), tx.now)
                    .await?;
                fact.target_id = key.key.to_string();
                fact.touched.push(Touched::Key(key.key));
                fact.after = Some(snapshot(&key));
                Ok(Outcome::Changed(Issued { key: key.key, secret }, fact))
            })
        })
        .await
}

/// A key made elsewhere, known by an unpeppered SHA-256 of its secret.
#[derive(Debug, Clone)]
pub struct ImportedKey {
    /// What the key shall be.
    pub new: NewKey,
    /// SHA-256 of the secret.
    pub digest: Digest,
}

/// Imports keys made elsewhere, all or none of them; at most [`IMPORT_MAX`].
///
/// # Errors
/// As [`issue`]; `Conflict` when a hash is there already. The message says which key it was.
pub async fn import(
    store: &Store,
    env: EnvId,
    context: &Context,
    imported: Vec<ImportedKey>,
) -> Result<Committed<Vec<KeyId>>> {
    let created_by = created_by(context);
    store
        .write(env, context, Action::KeysImported, move |tx| {
            Box::pin(async move {
                let mut fact = Fact { target_kind: "keys", ..Fact::default() };
                let mut ids = Vec::with_capacity(imported.len());
                for (position, one) in imported.into_iter().enumerate() {
                    let id = import_one(tx, env, one, created_by.clone(), &mut fact)
                        .await
                        .map_err(|mut error| {
                            error.public = format!("keys[{position}]: {}", error.public);
                            error
                        })?;
                    ids.push(id);
                }
                fact.target_id = ids.first().map(ToString::to_string).unwrap_or_default();
                let text: Vec<String> = ids.iter().map(ToString::to_string).collect();
                fact.after = Some(json!({ "key_ids": text }));
                Ok(Outcome::Changed(ids, fact))
            })
        })
        .await
}

async fn import_one(
    tx: &mut Tx,
    env: EnvId,
    one: ImportedKey,
    created_by: Option<String>,
    fact: &mut Fact,
) -> Result<KeyId> {
    let (mut key, _) = prepare(tx, env, one.new, created_by, fact).await?;
    key.imported = true;
    keys::insert(&mut tx.conn, &key).await?;
    keys::insert_secret(&mut tx.conn, env, key.key, &one.digest, UNPEPPERED, tx.now).await?;
    fact.touched.push(Touched::Key(key.key));
    Ok(key.key)
}

/// Checks what a new key refers to and makes its row, still without the ends of its secret.
async fn prepare(
    tx: &mut Tx,
    env: EnvId,
    new: NewKey,
    created_by: Option<String>,
    fact: &mut Fact,
) -> Result<(Key, Prefix)> {
    let environment = environments::find(&mut tx.conn, env)
        .await?
        .ok_or_else(|| Error::not_found("environment"))?;
    if new.expires_at.is_some_and(|at| at <= tx.now) {
        return Err(Error::invalid("EXPIRES_IN_PAST", "`expires_on` must be in the future"));
    }
    if let (Some(from), Some(to)) = (new.not_before, new.expires_at)
        && from >= to
    {
        let public = "`not_before` must be earlier than `expires_on`";
        return Err(Error::invalid("NEVER_VALID", public));
    }
    if apis::find(&mut tx.conn, env, new.api).await?.is_none() {
        let public = format!("`api_id`: there is no API {}", new.api);
        return Err(Error::invalid("UNKNOWN_API", public));
    }
    let scopes = resolve_scopes(tx, env, new.api, &new.scopes).await?;
    let owner = resolve_owner(tx, env, new.owner, environment.user_registration, fact).await?;
    let prefix = environment.key_prefixes.first().and_then(|text| Prefix::parse(text));
    let prefix = prefix.ok_or_else(|| Error::internal("the environment has no key prefix"))?;
    let key = Key {
        key: KeyId::from_bytes(tx.entropy.id(tx.now)),
        env,
        name: new.name,
        description: new.description,
        metadata: new.metadata,
        owner,
        api: new.api,
        scopes,
        issued_seq: tx.seq(),
        not_before: new.not_before,
        expires_at: new.expires_at,
        disabled_at: None,
        revoked_at: None,
        revoke_reason: None,
        imported: false,
        key_prefix: String::new(),
        key_suffix: String::new(),
        created_at: tx.now,
        created_by,
        changed_seq: tx.seq(),
        status: "active".to_owned(),
    };
    Ok((key, prefix))
}

/// Finds the scopes asked for, by id or by key, each once.
async fn resolve_scopes(
    tx: &mut Tx,
    env: EnvId,
    api: ApiId,
    asked: &[String],
) -> Result<Vec<ScopeId>> {
    if asked.is_empty() {
        return Ok(Vec::new());
    }
    let existing = apis::scopes(&mut tx.conn, env, api).await?;
    let mut found = Vec::with_capacity(asked.len());
    for text in asked {
        let id = ScopeId::parse(text);
        let scope = existing.iter().find(|scope| Some(scope.scope) == id || scope.key == *text);
        let Some(scope) = scope else {
            let public = format!("`scope_ids`: this API has no scope `{text}`");
            return Err(Error::invalid("UNKNOWN_SCOPE", public));
        };
        if !found.contains(&scope.scope) {
            found.push(scope.scope);
        }
    }
    Ok(found)
}

/// Finds the owner asked for; registers an unknown user where the environment allows it.
async fn resolve_owner(
    tx: &mut Tx,
    env: EnvId,
    asked: NewOwner,
    registration: bool,
    fact: &mut Fact,
) -> Result<Owner> {
    let (user, org) = match asked {
        NewOwner::Environment => return Ok(Owner::Environment),
        NewOwner::Org(org) => (None, Some(org)),
        NewOwner::User(user, org) => (Some(user), org),
    };
    if let Some(org) = &org {
        fact.org = Some(org.to_string());
        let found = owners::find_org(&mut tx.conn, env, org).await?;
        let Some(found) = found.filter(|org| org.deleted_at.is_none()) else {
            let public = format!("`org_code`: there is no organization `{org}`");
            return Err(Error::invalid("UNKNOWN_ORGANIZATION", public));
        };
        if found.suspended_at.is_some() {
            return Err(Error::conflict("OWNER_SUSPENDED", "the organization is suspended"));
        }
    }
    let Some(user) = user else {
        let org = org.ok_or_else(|| Error::internal("a key without an owner was asked for"))?;
        return Ok(Owner::Org(org));
    };
    fact.user = Some(user.to_string());
    match owners::find_user(&mut tx.conn, env, &user).await? {
        Some(found) if found.deleted_at.is_some() => {
            let public = "`user_id`: this user was deleted; create the user again first";
            return Err(Error::invalid("DELETED_USER", public));
        }
        Some(found) if found.suspended_at.is_some() => {
            return Err(Error::conflict("OWNER_SUSPENDED", "the user is suspended"));
        }
        Some(_) => {}
        None if registration => {
            let (now, seq) = (tx.now, tx.seq());
            owners::register_user(&mut tx.conn, env, &user, now, seq).await?;
            fact.touched.push(Touched::User(user.clone()));
        }
        None => {
            let public = format!("`user_id`: there is no user `{user}`");
            return Err(Error::invalid("UNKNOWN_USER", public));
        }
    }
    let Some(org) = org else {
        return Ok(Owner::User(user));
    };
    if !owners::is_member(&mut tx.conn, env, &org, &user).await? {
        let public = format!("`user_id`: `{user}` is not a member of `{org}`");
        return Err(Error::invalid("NOT_A_MEMBER", public));
    }
    Ok(Owner::UserInOrg(user, org))
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
                keys::supersede_secrets(&mut tx.conn, env, id, ends, tx.now, seq).await?;
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
    from: Digest,
    to: Digest,
    pepper_id: u32,
) -> Result<Committed<()>> {
    let context = Context::system("rehash");
    store
        .write(env, &context, Action::KeyRehashed, move |tx| {
            Box::pin(async move {
                let key = existing(tx, env, id).await?;
                if !keys::rehash_secret(&mut tx.conn, env, id, &from, &to, pepper_id).await? {
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
