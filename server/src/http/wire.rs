//! Keyward's objects in Kinde's words (wire.md §2): how a key looks from outside.

use keyward_core::{EnvId, KeyId, Owner};
use serde_json::{Map, Value, json};

use crate::App;
use crate::clock::rfc3339;
use crate::error::Result;
use crate::store::counts::{self, Use};
use crate::store::keys::Key;
use crate::store::{Conn, apis};

/// What the database and this process together know of the use of the keys on one page of `env`,
/// in their order. One question to the store, however many there are.
pub(crate) async fn uses_of(
    app: &App,
    conn: &mut Conn,
    env: EnvId,
    keys: &[Key],
) -> Result<Vec<Use>> {
    let ids: Vec<KeyId> = keys.iter().map(|key| key.key).collect();
    let mut stored = counts::of_keys(conn, env, &ids).await?;
    let of = |key: &Key| with_unflushed(app, key, stored.remove(&key.key).unwrap_or_default());
    Ok(keys.iter().map(of).collect())
}

/// What the database and this process together know of a key's use.
pub(crate) async fn use_of(app: &App, conn: &mut Conn, key: &Key) -> Result<Use> {
    let stored = counts::of_key(conn, key.env, key.key).await?;
    Ok(with_unflushed(app, key, stored))
}

/// Adds what this process has counted and not stored yet.
fn with_unflushed(app: &App, key: &Key, stored: Use) -> Use {
    let own = app.counting.of_key(key.env, key.key);
    let base = {
        let table = app.shared.table.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        table.key(key.env, key.key).map_or(0, keyward_core::Known::base_count)
    };
    let verified = stored.verified.max(base + own.verified);
    if own.last_at >= stored.last_at { Use { verified, ..own } } else { Use { verified, ..stored } }
}

/// The keys of scopes by id, for the keys on one page.
pub(crate) struct ScopeNames(Vec<apis::Scope>);

impl ScopeNames {
    /// Reads the scopes of every API that `keys` are for.
    pub(crate) async fn of(conn: &mut Conn, keys: &[Key]) -> Result<Self> {
        let mut seen = Vec::new();
        let mut names = Vec::new();
        for key in keys {
            if !seen.contains(&key.api) {
                seen.push(key.api);
                names.append(&mut apis::scopes(conn, key.env, key.api).await?);
            }
        }
        Ok(Self(names))
    }

    /// The scopes that `key` holds and that still exist, in the API's order.
    fn of_key(&self, key: &Key) -> Vec<&str> {
        self.0
            .iter()
            .filter(|scope| scope.api == key.api && key.scopes.contains(&scope.scope))
            .map(|scope| scope.key.as_str())
            .collect()
    }
}

/// A key as lists and `GET` show it.
pub(crate) fn key(key: &Key, used: &Use, names: &ScopeNames) -> Value {
    let (kind, user, org) = owner(&key.owner);
    json!({
        "id": key.key.to_string(),
        "name": key.name,
        "description": key.description,
        "type": kind,
        "status": key.status,
        "key_prefix": key.key_prefix,
        "key_suffix": key.key_suffix,
        "created_on": rfc3339(key.created_at),
        "created_by": key.created_by,
        "last_verified_on": (used.last_at > 0).then(|| rfc3339(used.last_at)),
        "last_verified_ip": used.last_address,
        "verification_count": used.verified,
        "organization_id": org,
        "user_id": user,
        "api_ids": [key.api.to_string()],
        "scopes": names.of_key(key),
        "expires_on": key.expires_at.map(rfc3339),
        "not_before": key.not_before.map(rfc3339),
        "metadata": metadata(key.metadata.as_deref()),
    })
}

/// `type`, `user_id` and `org_code` of an owner.
fn owner(owner: &Owner) -> (&'static str, Option<&str>, Option<&str>) {
    match owner {
        Owner::User(user) => ("user", Some(user.as_str()), None),
        Owner::UserInOrg(user, org) => ("user", Some(user.as_str()), Some(org.as_str())),
        Owner::Org(org) => ("organization", None, Some(org.as_str())),
        Owner::Environment => ("environment", None, None),
    }
}

/// Stored metadata as an object; an empty one when there is none.
fn metadata(text: Option<&str>) -> Value {
    let parsed = text.and_then(|text| serde_json::from_str(text).ok());
    parsed.unwrap_or_else(|| Value::Object(Map::new()))
}

/// A key and its secret, as the two routes that show one reply.
pub(crate) fn shown_once(code: &str, message: &str, id: KeyId, secret: &str) -> Value {
    json!({
        "code": code,
        "message": message,
        "api_key": { "id": id.to_string(), "key": secret },
    })
}
