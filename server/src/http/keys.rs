//! API keys over HTTP (wire.md §2): list, issue, import, show, change, rotate, revoke.

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};
use keyward_core::{ApiId, Digest, KeyId, OrgCode};
use serde_json::{Value, json};

use super::call::{Call, Reply};
use super::fields::{Fields, missing, wrong};
use super::users::{parse_org, parse_user};
use super::wire::{self, ScopeNames};
use crate::error::{Error, Result};
use crate::lease::Settle;
use crate::ops::keys::{self as ops, ImportedKey, KeyPatch, NewKey, NewOwner};
use crate::store::keys::{self as store, Filter};
use crate::store::{apis, owners};

/// Most characters in a name.
pub(crate) const NAME_MAX: usize = 255;
/// Most characters in a description.
pub(crate) const DESCRIPTION_MAX: usize = 1_000;
/// Most scopes that one key can be asked to have.
const SCOPES_MAX: usize = 256;
/// Most bytes of metadata, as JSON text.
const METADATA_BYTES_MAX: usize = 4 * 1024;
/// Longest life that can be given in days: a hundred years.
const DAYS_MAX: i64 = 36_500;
/// A day in µs.
const DAY_US: i64 = 24 * 3_600 * 1_000_000;

/// `GET /api_keys`
pub(crate) async fn list(call: Call) -> Result<Reply> {
    let mut query = call.query()?;
    let size = query.page_size(50)?;
    let after = query.take_str("starting_after", 64)?;
    let of_users = match query.take_str("key_type", 20)?.as_deref() {
        None => None,
        Some("user") => Some(true),
        Some("organization") => Some(false),
        Some(_) => return Err(wrong("key_type", "must be organization or user")),
    };
    let status = query.take_str("status", 20)?;
    if status.as_deref().is_some_and(|word| !matches!(word, "active" | "inactive" | "revoked")) {
        return Err(wrong("status", "must be active, inactive or revoked"));
    }
    let filter = Filter {
        of_users,
        status,
        user: query
            .take_str("user_id", NAME_MAX)?
            .map(|user| parse_user("user_id", &user).map(|user| user.to_string()))
            .transpose()?,
        org: query
            .take_str("org_code", NAME_MAX)?
            .map(|org| parse_org("org_code", &org).map(|org| org.to_string()))
            .transpose()?,
        api: take_api_id(&mut query, "api_id")?,
        name: query.take_name("name", NAME_MAX)?,
        expiring_before: query.take_time("expiring_before")?,
    };
    query.finish()?;
    let mut conn = call.app.store.read().await?;
    let after = match after {
        None => None,
        Some(text) => {
            let malformed = || wrong("starting_after", "must be the id of a key");
            let id = KeyId::parse(&text).ok_or_else(malformed)?;
            let found = store::find(&mut conn, call.env, id).await?;
            let unknown = || {
                let public = format!("`starting_after`: there is no key {id}");
                Error::invalid("UNKNOWN_KEY", public)
            };
            Some(found.ok_or_else(unknown)?.key)
        }
    };
    if let Some(org) = &filter.org {
        let known = match OrgCode::parse(org) {
            Some(org) => owners::find_org(&mut conn, call.env, &org).await?,
            None => None,
        };
        known.ok_or_else(|| {
            let public = "`org_code`: there is no such organization";
            Error::invalid("UNKNOWN_ORGANIZATION", public)
        })?;
    }
    if let Some(api) = filter.api {
        let known = apis::find_or_deleted(&mut conn, call.env, api).await?;
        known.ok_or_else(|| {
            Error::invalid("UNKNOWN_API", format!("`api_id`: there is no API {api}"))
        })?;
    }
    let mut keys = store::page(&mut conn, call.env, &filter, after, size + 1).await?;
    let has_more = keys.len() as i64 > size;
    keys.truncate(usize::try_from(size).unwrap_or(0));
    let names = ScopeNames::of(&mut conn, &keys).await?;
    let uses = wire::uses_of(&call.app, &mut conn, call.env, &keys).await?;
    let each = keys.iter().zip(&uses);
    let shown: Vec<Value> = each.map(|(key, used)| wire::key(key, used, &names)).collect();
    Ok(Reply::ok(json!({
        "code": "OK",
        "message": "Success",
        "has_more": has_more,
        "api_keys": shown,
    })))
}

/// `GET /api_keys/{key_id}`
pub(crate) async fn show(call: Call) -> Result<Reply> {
    let id = key_id(&call)?;
    let mut conn = call.app.store.read().await?;
    let key = store::find(&mut conn, call.env, id).await?.ok_or_else(not_found)?;
    let names = ScopeNames::of(&mut conn, std::slice::from_ref(&key)).await?;
    let used = wire::use_of(&call.app, &mut conn, &key).await?;
    Ok(Reply::ok(json!({
        "code": "OK",
        "message": "Success",
        "api_key": wire::key(&key, &used, &names),
    })))
}

/// `POST /api_keys`
pub(crate) async fn issue(call: Call) -> Result<Reply> {
    let mut body = call.body()?;
    let new = new_key(&mut body, call.app.clock().now_us())?;
    body.finish()?;
    let app = &call.app;
    let issued = ops::issue(&app.store, call.env, &call.context, app.pepper(), new).await?;
    app.settle(issued.stamp(), Settle::Widening).await?;
    let (id, secret) = (issued.value.key, issued.value.secret.expose());
    let body = wire::shown_once("API_KEY_CREATED", "API key created", id, secret);
    Ok(Reply::created(body).seq(issued.seq).secret())
}

/// `POST /api_keys/import`
pub(crate) async fn import(call: Call) -> Result<Reply> {
    let mut body = call.body()?;
    let asked = body.take_array("keys", ops::IMPORT_MAX)?.ok_or_else(|| missing("keys"))?;
    body.finish()?;
    if asked.is_empty() {
        return Err(wrong("keys", "must hold at least one key"));
    }
    let now = call.app.clock().now_us();
    let mut imported = Vec::with_capacity(asked.len());
    for (position, value) in asked.into_iter().enumerate() {
        let one = imported_key(value, now).map_err(|mut error| {
            error.public = format!("keys[{position}]: {}", error.public);
            error
        })?;
        imported.push(one);
    }
    let app = &call.app;
    let done = ops::import(&app.store, call.env, &call.context, imported).await?;
    app.settle(done.stamp(), Settle::Widening).await?;
    let ids: Vec<Value> = done.value.iter().map(|id| json!({ "id": id.to_string() })).collect();
    Ok(Reply::ok(json!({
        "code": "API_KEYS_IMPORTED",
        "message": "API keys imported",
        "imported": ids.len(),
        "api_keys": ids,
    }))
    .seq(done.seq))
}

/// `PUT /api_keys/{key_id}`: another secret for the same key.
pub(crate) async fn rotate(call: Call) -> Result<Reply> {
    let id = key_id(&call)?;
    call.body()?.finish()?;
    let app = &call.app;
    let rotated = ops::rotate(&app.store, call.env, &call.context, app.pepper(), id).await?;
    app.settle(rotated.stamp(), Settle::Narrowing).await?;
    let secret = rotated.value.secret.expose();
    let body = wire::shown_once("API_KEY_ROTATED", "API key rotated", id, secret);
    Ok(Reply::created(body).seq(rotated.seq).secret())
}

/// `PATCH /api_keys/{key_id}`
pub(crate) async fn update(call: Call) -> Result<Reply> {
    let id = key_id(&call)?;
    let mut body = call.body()?;
    body.refuse_null(&["name", "status"])?;
    let clears = ["description", "metadata", "not_before", "expires_on"].map(|n| body.was_null(n));
    let [no_description, no_metadata, no_start, no_end] = clears;
    let patch = KeyPatch {
        name: body.take_name("name", NAME_MAX)?,
        description: or_clear(no_description, body.take_text("description", DESCRIPTION_MAX)?),
        metadata: or_clear(no_metadata, take_metadata(&mut body)?),
        enabled: match body.take_str("status", 20)?.as_deref() {
            None => None,
            Some("active") => Some(true),
            Some("inactive") => Some(false),
            Some(_) => return Err(wrong("status", "must be active or inactive")),
        },
        not_before: or_clear(no_start, body.take_time("not_before")?),
        expires_at: or_clear(no_end, body.take_time("expires_on")?),
    };
    body.finish()?;
    let (app, settle) = (&call.app, patch.settle());
    let done = ops::update(&app.store, call.env, &call.context, id, patch).await?;
    app.settle(done.stamp(), settle).await?;
    Ok(Reply::ok(json!({
        "code": "API_KEY_UPDATED",
        "message": "API key updated",
        "api_key": { "id": id.to_string() },
    }))
    .seq(done.seq))
}

/// What a field of a change asks for: nothing, to be cleared, or another value.
fn or_clear<T>(clears: bool, value: Option<T>) -> Option<Option<T>> {
    if clears { Some(None) } else { value.map(Some) }
}

/// `DELETE /api_keys/{key_id}`: revokes.
pub(crate) async fn revoke(call: Call) -> Result<Reply> {
    let id = key_id(&call)?;
    let app = &call.app;
    let done = ops::revoke(&app.store, call.env, &call.context, id, None).await?;
    app.settle(done.stamp(), Settle::Narrowing).await?;
    let body = json!({ "code": "API_KEY_DELETED", "message": "API key revoked" });
    Ok(Reply::ok(body).seq(done.seq))
}

fn not_found() -> Error {
    Error::not_found("API key")
}

fn key_id(call: &Call) -> Result<KeyId> {
    KeyId::parse(call.path("key_id")).ok_or_else(not_found)
}

fn take_api_id(fields: &mut Fields, name: &str) -> Result<Option<ApiId>> {
    let Some(text) = fields.take_str(name, 64)? else { return Ok(None) };
    ApiId::parse(&text).map(Some).ok_or_else(|| wrong(name, "must be the id of an API"))
}

/// Reads what a new key shall be, as wire.md §2 names it.
pub(crate) fn new_key(body: &mut Fields, now: i64) -> Result<NewKey> {
    let name = body.need_name("name", NAME_MAX)?;
    let api = take_api_id(body, "api_id")?.ok_or_else(|| missing("api_id"))?;
    let kind = body.take_str("type", 20)?;
    let user = body.take_str("user_id", NAME_MAX)?;
    let org = body.take_str("org_code", NAME_MAX)?;
    Ok(NewKey {
        name,
        api,
        owner: new_owner(kind.as_deref(), user.as_deref(), org.as_deref())?,
        scopes: body.take_strings("scope_ids", SCOPES_MAX, NAME_MAX)?.unwrap_or_default(),
        description: body.take_text("description", DESCRIPTION_MAX)?,
        metadata: take_metadata(body)?,
        not_before: body.take_time("not_before")?,
        expires_at: take_expiry(body, now)?,
    })
}

/// Whom a new key is for; without `type` it follows from the ids that are given.
fn new_owner(kind: Option<&str>, user: Option<&str>, org: Option<&str>) -> Result<NewOwner> {
    let user_id = |text| parse_user("user_id", text);
    let org_code = |text| parse_org("org_code", text);
    match (kind, user, org) {
        (Some("user") | None, Some(user), org) => {
            Ok(NewOwner::User(user_id(user)?, org.map(org_code).transpose()?))
        }
        (Some("user"), None, _) => Err(missing("user_id")),
        (Some("organization") | None, None, Some(org)) => Ok(NewOwner::Org(org_code(org)?)),
        (Some("organization"), None, None) => Err(missing("org_code")),
        (Some("organization"), Some(_), _) => {
            Err(wrong("user_id", "does not go with a key of an organization"))
        }
        (Some("environment"), None, None) => Ok(NewOwner::Environment),
        (Some("environment"), _, _) => {
            Err(wrong("type", "a key of the environment has neither user nor organization"))
        }
        (None, None, None) => Err(missing("type")),
        (Some(_), _, _) => Err(wrong("type", "must be user, organization or environment")),
    }
}

fn take_expiry(body: &mut Fields, now: i64) -> Result<Option<i64>> {
    let at = body.take_time("expires_on")?;
    let days = body.take_int("expires_in_days", 1..=DAYS_MAX)?;
    match (at, days) {
        (Some(_), Some(_)) => Err(wrong("expires_on", "does not go with `expires_in_days`")),
        (None, Some(days)) => Ok(Some(now + days * DAY_US)),
        (at, None) => Ok(at),
    }
}

/// An object of texts, as JSON.
pub(crate) fn take_metadata(body: &mut Fields) -> Result<Option<String>> {
    let Some(fields) = body.take_object("metadata")? else { return Ok(None) };
    let map = fields.into_map();
    let allowed = |c: char| !c.is_control() || matches!(c, '\t' | '\n' | '\r');
    let good = map.iter().all(|(name, value)| {
        (1..=128).contains(&name.chars().count())
            && !name.chars().any(char::is_control)
            && value.as_str().is_some_and(|text| text.chars().all(allowed))
    });
    let text = Value::Object(map).to_string();
    if good && text.len() <= METADATA_BYTES_MAX {
        return Ok(Some(text));
    }
    Err(wrong("metadata", "must be an object of texts, together at most 4 KiB"))
}

/// One key of an import: what it shall be, and the hash of its secret.
fn imported_key(value: Value, now: i64) -> Result<ImportedKey> {
    let Value::Object(values) = value else {
        return Err(Error::invalid("BAD_FIELD", "must be an object"));
    };
    let mut fields = Fields::of_object(values);
    let new = new_key(&mut fields, now)?;
    let hash = fields.need_str("hash", 128)?;
    let algorithm = fields.take_str("algorithm", 20)?;
    let encoding = fields.take_str("encoding", 20)?;
    fields.finish()?;
    let digest = read_hash(&hash, algorithm.as_deref(), encoding.as_deref())?;
    Ok(ImportedKey { new, digest })
}

/// A hash as it was written elsewhere: SHA-256, in hex or in base64 of either alphabet.
pub(crate) fn read_hash(
    hash: &str,
    algorithm: Option<&str>,
    encoding: Option<&str>,
) -> Result<Digest> {
    if algorithm.is_some_and(|word| word != "sha256") {
        return Err(wrong("algorithm", "must be sha256"));
    }
    let bytes = match encoding.unwrap_or("hex") {
        "hex" => from_hex(hash),
        "base64" => [&STANDARD, &STANDARD_NO_PAD, &URL_SAFE, &URL_SAFE_NO_PAD]
            .into_iter()
            .find_map(|engine| engine.decode(hash).ok()),
        _ => return Err(wrong("encoding", "must be hex or base64")),
    };
    let bytes = bytes.and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
    bytes
        .map(Digest::from_bytes)
        .ok_or_else(|| wrong("hash", "must be the 32 bytes of a SHA-256 in the encoding named"))
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    let byte = |pair: &[u8; 2]| {
        let pair = std::str::from_utf8(pair).ok().filter(|pair| !pair.starts_with('+'))?;
        u8::from_str_radix(pair, 16).ok()
    };
    rest.is_empty().then_some(())?;
    pairs.iter().map(byte).collect()
}
