//! Applications over HTTP (wire.md §4): the machine-to-machine clients of the management API.

use keyward_core::AppId;
use serde_json::{Value, json};

use super::call::{Call, Reply};
use super::fields::wrong;
use super::json::put;
use super::keys::NAME_MAX;
use super::page::{self, decode_token, encode_token};
use crate::clock::rfc3339;
use crate::error::{Error, Result};
use crate::lease::Settle;
use crate::ops::applications as ops;
use crate::store::applications::{self as store, Application};

/// Seconds for which the present secret stays good after a rotation, unless said otherwise: a day.
const GRACE_SECONDS: i64 = 86_400;
/// The most of it: a week.
const GRACE_SECONDS_MAX: i64 = 604_800;
/// What Kinde's published API lets an application be changed with and Keyward does not use.
const UNUSED_IN_CHANGES: &[&str] = &[
    "language_key",
    "logout_uris",
    "redirect_uris",
    "login_uri",
    "homepage_uri",
    "is_allow_faceless_auth",
    "is_ask_for_name",
    "has_marketing_consent",
    "has_sign_in_link_on_sign_up_page",
    "has_register_link_on_sign_in_page",
    "has_sign_in_with_sso_button",
    "use_gravatar_fallback",
    "is_access_control_enabled",
];

fn app_id(call: &Call) -> Result<AppId> {
    AppId::parse(call.path("application_id")).ok_or_else(|| Error::not_found("application"))
}

fn application(app: &Application) -> Value {
    json!({ "id": app.app.to_string(), "name": app.name, "type": "m2m" })
}

/// `GET /applications`
pub(crate) async fn list(call: Call) -> Result<Reply> {
    let mut query = call.query()?;
    query.ignore(&["sort"]);
    let size = query.page_size(10)?;
    let token = query.take_str("next_token", 1_400)?;
    query.finish()?;
    let after = match token {
        None => [0; 16],
        Some(token) => {
            let last = AppId::parse(&decode_token(&token)?);
            *last.ok_or_else(page::bad_token)?.bytes()
        }
    };
    let mut conn = call.app.store.read().await?;
    let mut found = store::page(&mut conn, call.env, after, size + 1).await?;
    let has_more = found.len() as i64 > size;
    found.truncate(usize::try_from(size).unwrap_or(0));
    let next = found.last().filter(|_| has_more).map(|app| encode_token(&app.app.to_string()));
    let shown: Vec<Value> = found.iter().map(application).collect();
    Ok(Reply::ok(json!({
        "code": "OK",
        "message": "Success",
        "applications": shown,
        "next_token": next,
    })))
}

/// `POST /applications`
pub(crate) async fn create(call: Call) -> Result<Reply> {
    let mut body = call.body()?;
    let name = body.need_name("name", NAME_MAX)?;
    let kind = body.need_str("type", 20)?;
    body.ignore(&["org_code"]);
    body.finish()?;
    if kind != "m2m" {
        return Err(wrong("type", "must be m2m"));
    }
    let app = &call.app;
    let done = ops::create(&app.store, call.env, &call.context, app.pepper(), name).await?;
    app.settle(done.stamp(), Settle::Widening).await?;
    let (id, secret) = &done.value;
    Ok(Reply::created(json!({
        "code": "OK",
        "message": "Success",
        "application": {
            "id": id.to_string(),
            "client_id": id.to_string(),
            "client_secret": secret.as_str(),
        },
    }))
    .seq(done.seq)
    .secret())
}

/// `GET /applications/{application_id}`
pub(crate) async fn show(call: Call) -> Result<Reply> {
    let id = app_id(&call)?;
    let mut conn = call.app.store.read().await?;
    let found = store::find(&mut conn, call.env, id).await?;
    let found = found.ok_or_else(|| Error::not_found("application"))?;
    let mut value = application(&found);
    put(&mut value, "client_id", json!(id.to_string()));
    put(&mut value, "is_active", json!(found.disabled_at.is_none()));
    put(&mut value, "created_on", json!(rfc3339(found.created_at)));
    Ok(Reply::ok(json!({ "code": "OK", "message": "Success", "application": value })))
}

/// `PATCH /applications/{application_id}`
pub(crate) async fn update(call: Call) -> Result<Reply> {
    let id = app_id(&call)?;
    let mut body = call.body()?;
    body.refuse_null(&["name", "is_active"])?;
    let name = body.take_name("name", NAME_MAX)?;
    let enabled = body.take_bool("is_active")?;
    body.ignore(UNUSED_IN_CHANGES);
    body.finish()?;
    let app = &call.app;
    let done = ops::update(&app.store, call.env, &call.context, id, name, enabled).await?;
    let settle = if enabled == Some(true) { Settle::Widening } else { Settle::Narrowing };
    app.settle(done.stamp(), settle).await?;
    Ok(Reply::ok(json!({ "code": "OK", "message": "Success" })).seq(done.seq))
}

/// `DELETE /applications/{application_id}`
pub(crate) async fn delete(call: Call) -> Result<Reply> {
    let id = app_id(&call)?;
    let app = &call.app;
    let done = ops::delete(&app.store, call.env, &call.context, id).await?;
    app.settle(done.stamp(), Settle::Narrowing).await?;
    Ok(Reply::ok(json!({ "code": "OK", "message": "Success" })).seq(done.seq))
}

/// `POST /applications/{application_id}/secret`
pub(crate) async fn rotate_secret(call: Call) -> Result<Reply> {
    let id = app_id(&call)?;
    let mut body = call.body()?;
    let grace = body.take_int("grace_period_seconds", 0..=GRACE_SECONDS_MAX)?;
    body.finish()?;
    let overlap_us = grace.unwrap_or(GRACE_SECONDS) * 1_000_000;
    let app = &call.app;
    let now = app.clock().now_us();
    let pepper = app.pepper();
    let done =
        ops::rotate_secret(&app.store, call.env, &call.context, pepper, id, overlap_us).await?;
    app.settle(done.stamp(), Settle::Narrowing).await?;
    Ok(Reply::created(json!({
        "code": "APPLICATION_SECRET_ROTATED",
        "message": "Application secret rotated",
        "application": {
            "id": id.to_string(),
            "client_id": id.to_string(),
            "client_secret": done.value.as_str(),
        },
        "previous_secret_expires_on": (overlap_us > 0).then(|| rfc3339(now + overlap_us)),
    }))
    .seq(done.seq)
    .secret())
}
