//! Verification: whose key is this, and what may it do right now?
//!
//! Everything between a request's arrival and its answer happens in memory: the caller's token is
//! recognised, the body parsed in place, the verdict taken from the table under its read lock, the
//! use counted in the counter file, the answer written into one buffer. No await but for the
//! socket, no database, no lock across an await. `server/tests/it/allocations.rs` holds the number
//! of allocations.

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, PoisonError};

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::{HeaderMap, Response, StatusCode};
use keyward_core::{
    Decision, Digest, EnvId, KeyId, Kind, Known, Question, Refusal, ScopesAsked, Status,
};
use serde::de::{Deserialize, Deserializer, Error as _, SeqAccess, Visitor};

use super::auth::{self, Connection};
use super::body::{self, Unreadable};
use super::call::{Answer, Call, Reply};
use super::json::{push_opt, push_str, push_u64};
use super::{error, fields, routes};
use crate::App;
use crate::clock::write_rfc3339;
use crate::directory::{Directory, Tenant};
use crate::error::{Error, Result};
use crate::ops::{Action, Actor, Context};
use crate::scope::Scope;
use crate::store::audit::NewRecord;

/// Most verifications in one batch.
const BATCH_MAX: usize = 100;
/// Most scopes that one verification can ask for.
const SCOPES_MAX: usize = 256;
/// Room for an answer without metadata; a larger one grows once.
const ANSWER_BYTES: usize = 768;

/// A text borrowed from the body unless it holds an escape.
#[derive(Debug)]
struct Text<'a>(Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Borrow;
        impl<'de> Visitor<'de> for Borrow {
            type Value = Text<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text")
            }
            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Borrowed(text)))
            }
            fn visit_str<E>(self, text: &str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(Borrow)
    }
}

/// A list of texts; `null` is an empty one.
#[derive(Debug, Default)]
struct Texts<'a>(Vec<Cow<'a, str>>);

impl<'de: 'a, 'a> Deserialize<'de> for Texts<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct List;
        impl<'de> Visitor<'de> for List {
            type Value = Texts<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of texts")
            }
            fn visit_unit<E>(self) -> Result<Texts<'de>, E> {
                Ok(Texts::default())
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Texts<'de>, A::Error> {
                let mut texts = Vec::new();
                while let Some(Text(text)) = seq.next_element()? {
                    if texts.len() == SCOPES_MAX {
                        return Err(A::Error::custom("too many"));
                    }
                    texts.push(text);
                }
                Ok(Texts(texts))
            }
        }
        deserializer.deserialize_any(List)
    }
}

/// What a verification asks. Unknown fields are ignored; it has no `Debug`, since it holds a
/// secret.
#[derive(serde::Deserialize)]
struct Asked<'a> {
    #[serde(borrow)]
    api_key: Text<'a>,
    #[serde(borrow, default)]
    api_id: Option<Text<'a>>,
    #[serde(borrow, default)]
    audience: Option<Text<'a>>,
    #[serde(borrow, default)]
    scopes: Texts<'a>,
    #[serde(borrow, default)]
    user_id: Option<Text<'a>>,
    #[serde(borrow, default)]
    org_code: Option<Text<'a>>,
    #[serde(borrow, default)]
    ip: Option<Text<'a>>,
    /// What the key holder called with and what they touched: checked here, kept by nobody yet.
    #[serde(borrow, default, rename = "user_agent")]
    _user_agent: Option<Text<'a>>,
    #[serde(borrow, default, rename = "resource")]
    _resource: Option<Text<'a>>,
}

/// An imported secret that was seen for the first time and should be stored under a pepper.
#[derive(Debug)]
pub(crate) struct Rehash {
    pub(crate) env: EnvId,
    pub(crate) key: KeyId,
    /// The hash that may be stored, and the digest to put in its place; the first that fits.
    pub(crate) candidates: Vec<(Digest, Digest)>,
    pub(crate) pepper_id: u32,
}

/// Answers `POST /api/v1/api_keys/verify`.
pub(crate) async fn answer_for(
    app: &Arc<App>,
    connection: &Connection,
    directory: &Directory,
    tenant: &Tenant,
    headers: &HeaderMap,
    body: Incoming,
) -> Answer {
    let discreet = match permit(app, connection, directory, tenant, headers) {
        Ok(discreet) => discreet,
        Err(denied) => return error::answer(&denied),
    };
    let max = app.limits.body_bytes_max;
    let body = match body::read(connection, body, max, app.limits.idle_timeout).await {
        Ok(body) => body,
        Err(Unreadable::TooLarge) => return routes::too_large(max),
        Err(Unreadable::Broken) => {
            return error::answer(&Error::invalid("BAD_BODY", "the body did not arrive whole"));
        }
    };
    if !routes::is_json(headers) {
        let message = "send the body as application/json";
        let status = StatusCode::UNSUPPORTED_MEDIA_TYPE;
        return error::plain(status, "UNSUPPORTED_MEDIA_TYPE", message);
    }
    let mut out = Vec::with_capacity(ANSWER_BYTES);
    match decide(app, tenant, &body, discreet, &mut out) {
        Ok(()) => verdict(out),
        Err(failure) => error::answer(&failure),
    }
}

fn verdict(out: Vec<u8>) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::from(out)));
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}

/// Whether the caller may verify: `false` for one with a token, `true` for one without where the
/// environment allows it, who then learns nothing about a refused key.
fn permit(
    app: &App,
    connection: &Connection,
    directory: &Directory,
    tenant: &Tenant,
    headers: &HeaderMap,
) -> Result<bool> {
    let caller = match auth::caller(app, connection, directory, tenant, headers) {
        Ok(caller) => caller,
        Err(error) if error.code == "NO_TOKEN" && tenant.row.public_verification => {
            app.public.admit(connection.address, app.clock().boot_us())?;
            return Ok(true);
        }
        Err(error) => return Err(denied(app, connection, tenant, Actor::Stranger, error)),
    };
    if caller.may(&[Scope::ReadApiKeys, Scope::VerifyApiKeys]) {
        return Ok(false);
    }
    let public = "this needs the scope verify:api_keys or read:api_keys";
    let error = Error::forbidden("INSUFFICIENT_SCOPE", public);
    Err(denied(app, connection, tenant, caller.actor, error))
}

fn denied(
    app: &App,
    connection: &Connection,
    tenant: &Tenant,
    actor: Actor,
    error: Error,
) -> Error {
    let context = Context { actor, address: connection.address, ..Context::system("verification") };
    app.metrics.denied.push(NewRecord::of_access(
        tenant.row.env,
        app.clock().now_us(),
        &context,
        Action::CallDenied,
        "route",
        "POST /api/v1/api_keys/verify".to_owned(),
        Some(error.code.to_owned()),
    ));
    error
}

/// `POST /api/v1/api_keys/verify_batch`: up to [`BATCH_MAX`] verifications, answered in order.
pub(crate) async fn batch(call: Call) -> Result<Reply> {
    /// The parts are kept as text, so that each is parsed by the same code as a single one.
    #[derive(serde::Deserialize)]
    struct Batch<'a> {
        #[serde(borrow)]
        verifications: Vec<&'a serde_json::value::RawValue>,
    }
    let wrong = || fields::wrong("verifications", "must be a list of 1 to 100 verifications");
    let batch: Batch<'_> = serde_json::from_slice(&call.body).map_err(|_| wrong())?;
    if is_list(&call.body) || !(1..=BATCH_MAX).contains(&batch.verifications.len()) {
        return Err(wrong());
    }
    // All are read before the first is counted: a batch is answered as a whole or not at all.
    for (position, one) in batch.verifications.iter().enumerate() {
        parse(one.get().as_bytes()).map_err(|mut error| {
            error.public = format!("verifications[{position}]: {}", error.public);
            error
        })?;
    }
    let mut out = Vec::with_capacity(ANSWER_BYTES * batch.verifications.len());
    out.extend_from_slice(b"{\"code\":\"OK\",\"message\":\"Success\",\"results\":[");
    for (position, one) in batch.verifications.iter().enumerate() {
        if position > 0 {
            out.push(b',');
        }
        decide(&call.app, &call.tenant, one.get().as_bytes(), false, &mut out)?;
    }
    out.extend_from_slice(b"]}");
    let text = String::from_utf8(out).map_err(Error::internal)?;
    Ok(Reply::text("application/json", text).secret())
}

/// Whether a body is a JSON list, which would be read as the fields' values in their order.
fn is_list(body: &[u8]) -> bool {
    body.trim_ascii_start().starts_with(b"[")
}

fn parse(body: &[u8]) -> Result<(Asked<'_>, Option<IpAddr>)> {
    if is_list(body) {
        return Err(Error::invalid("BAD_BODY", "the body must be a JSON object"));
    }
    // OK to drop serde's message: it can quote a value, and the value can be a secret.
    let asked: Asked<'_> =
        serde_json::from_slice(body).map_err(|error| match error.classify() {
            serde_json::error::Category::Data => {
                let (line, column) = (error.line(), error.column());
                let public = format!(
                    "the body must be an object with a text `api_key`, and every other field as \
                     documented (wrong near line {line}, column {column})"
                );
                Error::invalid("BAD_BODY", public)
            }
            serde_json::error::Category::Io
            | serde_json::error::Category::Syntax
            | serde_json::error::Category::Eof => fields::not_json(&error),
        })?;
    let address = match &asked.ip {
        None => None,
        Some(Text(text)) => {
            let parsed = text.parse::<IpAddr>();
            Some(parsed.map_err(|_| fields::wrong("ip", "must be an IPv4 or IPv6 address"))?)
        }
    };
    Ok((asked, address.map(|address| address.to_canonical())))
}

/// Takes the verdict, counts it and writes the answer.
fn decide(
    app: &App,
    tenant: &Tenant,
    body: &[u8],
    discreet: bool,
    out: &mut Vec<u8>,
) -> Result<()> {
    let (asked, address) = parse(body)?;
    let clock = app.clock();
    if !app.shared.lease.is_held(clock) {
        app.metrics.unavailable();
        return Err(Error::unavailable("this server has no fresh view of the keys; try again"));
    }
    let env = tenant.row.env;
    let now = clock.now_us();
    let scopes = ScopesAsked::Cows(&asked.scopes.0);
    let question = Question {
        env,
        secret: &asked.api_key.0,
        now,
        api: asked.api_id.as_ref().map(|text| &*text.0),
        audience: asked.audience.as_ref().map(|text| &*text.0),
        scopes,
        user: asked.user_id.as_ref().map(|text| &*text.0),
        org: asked.org_code.as_ref().map(|text| &*text.0),
        address,
    };
    let table = app.shared.table.read().unwrap_or_else(PoisonError::into_inner);
    match table.decide(&question) {
        Decision::Valid(key) => {
            let count = app.counting.valid(env, key, now, address);
            app.metrics.verified();
            if key.matched_sha256() {
                rehash(app, env, key, &asked.api_key.0);
            }
            push_verdict(out, "API_KEY_VERIFIED", "API key verified", true);
            push_key(out, key, now, count);
            out.extend_from_slice(b",\"refusal\":null}");
        }
        Decision::Refused(key, refusal) => {
            app.counting.refused(env, key, refusal);
            app.metrics.refused(refusal);
            if discreet {
                push_unknown(out);
            } else {
                push_verdict(out, refusal.code(), sentence(refusal), false);
                let used = app.counting.of_key(env, key.key_id());
                let last_at = used.last_at.max(key.base_verified_at());
                push_key(out, key, last_at, key.base_count() + used.verified);
                push_refusal(out, refusal, key.missing_scopes(scopes));
            }
        }
        Decision::Unknown => {
            app.metrics.refused(Refusal::Invalid);
            push_unknown(out);
        }
        Decision::Withheld => {
            app.metrics.unavailable();
            let public = "this store was restored and waits for `keyward restore --confirm`";
            return Err(Error::unavailable(public));
        }
    }
    Ok(())
}

/// Has an imported secret stored under the current pepper, in the background. Only digests travel.
///
/// A secret that was made elsewhere may itself begin like RFC 8959's scheme, so both readings are
/// tried.
fn rehash(app: &App, env: EnvId, key: Known<'_>, secret: &str) {
    let pepper = app.pepper();
    let stripped = keyward_core::strip_scheme(secret);
    let candidates = [stripped, secret]
        .map(|text| (keyward_core::sha256(text.as_bytes()), pepper.digest(text.as_bytes())))
        .to_vec();
    let wish = Rehash { env, key: key.key_id(), candidates, pepper_id: pepper.id() };
    // OK to lose when the queue is full: the next use of the key asks again.
    let _ = app.rehashes.try_send(wish);
}

fn push_verdict(out: &mut Vec<u8>, code: &str, message: &str, valid: bool) {
    out.extend_from_slice(b"{\"code\":\"");
    out.extend_from_slice(code.as_bytes());
    out.extend_from_slice(b"\",\"message\":\"");
    out.extend_from_slice(message.as_bytes());
    out.extend_from_slice(if valid { b"\",\"is_valid\":true" } else { b"\",\"is_valid\":false" });
}

/// Everything about a key that is one of ours.
fn push_key(out: &mut Vec<u8>, key: Known<'_>, last_at: i64, count: u64) {
    out.extend_from_slice(b",\"key_id\":\"");
    key.key_id().write_to(out);
    out.extend_from_slice(b"\",\"status\":\"");
    out.extend_from_slice(match key.status() {
        Status::Active => b"active",
        Status::Inactive => b"inactive",
        Status::Revoked => b"revoked",
    });
    out.extend_from_slice(b"\",\"scopes\":[");
    for (position, scope) in key.scopes().enumerate() {
        if position > 0 {
            out.push(b',');
        }
        push_str(out, scope);
    }
    out.extend_from_slice(b"],\"org_code\":");
    push_opt(out, key.org());
    out.extend_from_slice(b",\"user_id\":");
    push_opt(out, key.user());
    out.extend_from_slice(b",\"last_verified_on\":");
    push_time(out, (last_at > 0).then_some(last_at));
    out.extend_from_slice(b",\"verification_count\":");
    push_u64(out, count);
    out.extend_from_slice(b",\"api_id\":\"");
    key.api_id().write_to(out);
    out.extend_from_slice(b"\",\"name\":");
    push_str(out, key.name());
    out.extend_from_slice(match key.kind() {
        Kind::User => b",\"type\":\"user\"".as_slice(),
        Kind::Organization => b",\"type\":\"organization\"",
        Kind::Environment => b",\"type\":\"environment\"",
    });
    out.extend_from_slice(b",\"expires_on\":");
    push_time(out, key.expires_at());
    out.extend_from_slice(b",\"metadata\":");
    // OK to copy: it was checked to be a JSON object when it was stored.
    out.extend_from_slice(key.metadata().unwrap_or("{}").as_bytes());
}

fn push_time(out: &mut Vec<u8>, at: Option<i64>) {
    match at {
        None => out.extend_from_slice(b"null"),
        Some(at) => {
            out.push(b'"');
            write_rfc3339(at, out);
            out.push(b'"');
        }
    }
}

fn push_refusal<'a>(out: &mut Vec<u8>, refusal: Refusal, missing: impl Iterator<Item = &'a str>) {
    let word = refusal.code().trim_start_matches("API_KEY_");
    out.extend_from_slice(b",\"refusal\":{\"reason\":\"");
    out.extend(word.bytes().map(|byte| byte.to_ascii_lowercase()));
    out.extend_from_slice(b"\",\"missing_scopes\":[");
    if refusal == Refusal::InsufficientScope {
        for (position, scope) in missing.enumerate() {
            if position > 0 {
                out.push(b',');
            }
            push_str(out, scope);
        }
    }
    out.extend_from_slice(b"]}}");
}

/// The answer about a text that is none of our secrets: a guess must not teach anything.
fn push_unknown(out: &mut Vec<u8>) {
    push_verdict(out, Refusal::Invalid.code(), sentence(Refusal::Invalid), false);
    out.extend_from_slice(
        b",\"key_id\":null,\"status\":null,\"scopes\":[],\"org_code\":null,\"user_id\":null,\
          \"last_verified_on\":null,\"verification_count\":0,\"api_id\":null,\"name\":null,\
          \"type\":null,\"expires_on\":null,\"metadata\":null,\
          \"refusal\":{\"reason\":\"invalid\",\"missing_scopes\":[]}}",
    );
}

/// A refusal in a sentence for the people who read the caller's log.
fn sentence(refusal: Refusal) -> &'static str {
    match refusal {
        Refusal::Invalid => "This is not an API key of this environment",
        Refusal::Revoked => "The API key was revoked",
        Refusal::Rotated => "The API key was rotated; this secret was replaced",
        Refusal::Inactive => "The API key is disabled",
        Refusal::NotYetValid => "The API key is not valid yet",
        Refusal::Expired => "The API key has expired",
        Refusal::OwnerSuspended => "The owner of the API key is suspended or no longer a member",
        Refusal::WrongApi => "The API key is for another API",
        Refusal::WrongOwner => "The API key belongs to another owner",
        Refusal::InsufficientScope => "The API key lacks a scope",
        Refusal::AddressNotAllowed => "The API key may not be used from this address",
        Refusal::RateLimited => "The API key is used too often",
        Refusal::QuotaExceeded => "The API key's quota is used up",
    }
}
