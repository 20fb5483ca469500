//! Writes over HTTP: each in a task of its own, and once for each `Idempotency-Key`.
//!
//! What makes a repeat harmless is stored by the change itself (see `store::idempotency`); here
//! the key is read, and a repeat is told what the first was told, as far as it may be.

use std::sync::Arc;

use hyper::{HeaderMap, Method, StatusCode};
use keyward_core::EnvId;
use keyward_core::protocol::Head;
use serde_json::{Value, json};

use super::call::{Answer, Call, Reply, json_answer, json_text};
use super::error;
use super::json::put;
use super::routes::{Answering, Route, finish};
use crate::App;
use crate::error::{Error, Kind, Result};
use crate::lease::Settle;
use crate::ops::{Actor, IdempotencyKey};
use crate::store::idempotency::{self, Earlier};
use crate::store::schema::hex;
use crate::store::{Stamp, changes};

/// Carries out a write, once for each idempotency key.
pub(crate) async fn write(
    route: &Route,
    handler: fn(Call) -> Answering,
    mut call: Call,
    headers: &HeaderMap,
) -> Answer {
    let key = match idempotency_key(route, &call, headers) {
        Ok(key) => key,
        Err(refused) => return error::answer(&refused),
    };
    let Some(key) = key else {
        // A task of its own: a caller who hangs up must not leave a change unacknowledged half-way.
        return finish(detached(handled(route, handler, call)).await);
    };
    let (app, env) = (Arc::clone(&call.app), call.env);
    match earlier(&app, env, &key).await {
        Ok(None) => {}
        Ok(Some(earlier)) => return replay(&app, route, &earlier).await,
        Err(failure) => return finish(Err(failure)),
    }
    call.context.idempotency = Some(key.clone());
    let (keeper, kept_key) = (Arc::clone(&app), key.clone());
    let handled = handled(route, handler, call);
    let done = detached(Box::pin(async move {
        let reply = handled.await?;
        keep(&keeper, env, &kept_key, &reply).await;
        Ok(reply)
    }));
    match done.await {
        Err(again) if again.code == "IDEMPOTENT_REPLAY" => match earlier(&app, env, &key).await {
            Ok(Some(earlier)) => replay(&app, route, &earlier).await,
            Ok(None) => finish(Err(again)),
            Err(failure) => finish(Err(failure)),
        },
        done => finish(done),
    }
}

/// What the handler replies. A DELETE that finds nothing may be the repeat of one whose answer was
/// cut off, and whoever is told that a thing is gone relies on it: the answer waits like the first.
fn handled(route: &Route, handler: fn(Call) -> Answering, call: Call) -> Answering {
    if route.method != Method::DELETE {
        return handler(call);
    }
    Box::pin(async move {
        let app = Arc::clone(&call.app);
        let replied = handler(call).await;
        if replied.as_ref().is_err_and(|error| error.kind == Kind::NotFound) {
            // Which change took it away is not looked up; the head is never too early.
            settle_all(&app).await?;
        }
        replied
    })
}

/// Keeps a reply for repeats, unless it held a secret. A failure is no failure of the write.
async fn keep(app: &App, env: EnvId, key: &IdempotencyKey, reply: &Reply) {
    if reply.is_secret {
        return;
    }
    let (status, text) = (reply.status.as_u16(), reply.body.to_string());
    if let Err(error) = idempotency::keep_reply(&app.store, env, key, status, &text).await {
        tracing::warn!(cause = error.chain(), "a reply could not be kept for repeats");
    }
}

async fn detached(handling: Answering) -> Result<Reply> {
    tokio::spawn(handling).await.unwrap_or_else(|panic| Err(Error::internal(panic)))
}

async fn earlier(app: &App, env: EnvId, key: &IdempotencyKey) -> Result<Option<Earlier>> {
    let mut conn = app.store.read().await?;
    idempotency::earlier(&mut conn, env, key, app.clock().now_us()).await
}

fn idempotency_key(
    route: &Route,
    call: &Call,
    headers: &HeaderMap,
) -> Result<Option<IdempotencyKey>> {
    let Some(value) = headers.get("idempotency-key") else { return Ok(None) };
    let text = value.to_str().ok().filter(|text| {
        (1..=255).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic())
    });
    let Some(text) = text else {
        let public = "`Idempotency-Key` must be 1 to 255 visible ASCII characters without spaces";
        return Err(Error::invalid("BAD_IDEMPOTENCY_KEY", public));
    };
    let caller = match &call.context.actor {
        Actor::Application(app) => app.to_string(),
        Actor::Operator(name) => name.clone(),
        Actor::System | Actor::Stranger => String::new(),
    };
    let path: Vec<&str> = call.parameters.iter().map(|(_, value)| value.as_str()).collect();
    let call_name =
        format!("{} {} {} {}", route.method, route.path, path.join(" "), call.query_text);
    let digest = keyward_core::sha256(&call.body);
    let body_hash = *digest.bytes();
    // Whatever callers use as a key, which has been a secret, is not stored.
    let key = hex(keyward_core::sha256(text.as_bytes()).bytes());
    Ok(Some(IdempotencyKey { caller, call: call_name, key, body_hash }))
}

/// Waits until everything that is committed now is in force.
async fn settle_all(app: &App) -> Result<()> {
    app.settle(head(app).await?, Settle::Narrowing).await
}

/// The last change, in the present life of the database.
async fn head(app: &App) -> Result<Stamp> {
    let mut conn = app.store.read().await?;
    let Head { seq, incarnation, .. } = changes::head(&mut conn, -1).await?;
    Ok(Stamp { seq, incarnation })
}

/// Waits for the change with the number that a kept reply tells. The reply was found in the
/// database as it is now, so the number is one of its present life.
async fn settle_again(app: &App, seq: i64) -> Result<()> {
    let stamp = Stamp { seq, ..head(app).await? };
    app.settle(stamp, Settle::Narrowing).await
}

/// What a repeated write is told. The first answer waited until its change was in force, and so
/// must every other.
async fn replay(app: &App, route: &Route, earlier: &Earlier) -> Answer {
    match earlier {
        Earlier::OtherBody => error::plain(
            StatusCode::UNPROCESSABLE_ENTITY,
            "IDEMPOTENCY_KEY_REUSED",
            "this Idempotency-Key was used with another body",
        ),
        Earlier::Answered { status, reply } => {
            let seq =
                serde_json::from_str::<Value>(reply).ok().and_then(|v| v.get("seq")?.as_i64());
            if let Some(seq) = seq
                && let Err(error) = settle_again(app, seq).await
            {
                return error::answer(&error);
            }
            let status = StatusCode::from_u16(*status).unwrap_or(StatusCode::OK);
            json_text(status, reply.clone())
        }
        Earlier::Done { target } => {
            // Its own number is not kept; the head is never too early.
            if let Err(error) = settle_all(app).await {
                return error::answer(&error);
            }
            let message = "this request was carried out before; its reply held a secret, which \
                           is shown only once, or is not ready yet";
            let one = json!({ "code": "IDEMPOTENT_REPLAY", "message": message });
            let mut body = json!({ "errors": [one] });
            // What those replies name that hold a secret; others can be asked for again.
            if target.starts_with("api_key_") {
                put(&mut body, "api_key", json!({ "id": target }));
            } else if route.path.starts_with("/api/v1/applications") {
                put(&mut body, "application", json!({ "id": target }));
            }
            json_answer(StatusCode::CONFLICT, &body)
        }
    }
}
