//! APIs, their scopes and their applications over HTTP (wire.md §4).

use keyward_core::{ApiId, AppId, ScopeId};
use serde_json::{Value, json};

use super::call::{Call, Reply};
use super::fields::{Fields, missing, wrong};
use super::json::put;
use super::keys::{DESCRIPTION_MAX, NAME_MAX};
use crate::error::{Error, Result};
use crate::lease::Settle;
use crate::ops::apis as ops;
use crate::store::apis::{self as store, Api, Scope};
use crate::store::{Conn, applications};

/// Most applications in one call.
const APPLICATIONS_MAX: usize = 500;

fn api_id(call: &Call) -> Result<ApiId> {
    ApiId::parse(call.path("api_id")).ok_or_else(|| Error::not_found("API"))
}

fn scope_id(call: &Call) -> Result<ScopeId> {
    ScopeId::parse(call.path("scope_id")).ok_or_else(|| Error::not_found("scope"))
}

async fn existing(call: &Call, conn: &mut Conn) -> Result<Api> {
    let id = api_id(call)?;
    store::find(conn, call.env, id).await?.ok_or_else(|| Error::not_found("API"))
}

fn api(api: &Api) -> Value {
    json!({
        "id": api.api.to_string(),
        "name": api.name,
        "audience": api.audience,
        "is_management_api": api.is_management,
    })
}

fn short(scopes: &[Scope]) -> Vec<Value> {
    scopes.iter().map(|s| json!({ "id": s.scope.to_string(), "key": s.key })).collect()
}

fn scope(scope: &Scope) -> Value {
    json!({
        "id": scope.scope.to_string(),
        "key": scope.key,
        "description": scope.description,
    })
}

/// `GET /apis`
pub(crate) async fn list(call: Call) -> Result<Reply> {
    let mut query = call.query()?;
    let expand = query.take_str("expand", NAME_MAX)?;
    query.finish()?;
    let with_scopes = expand.is_some_and(|text| text.split(',').any(|word| word == "scopes"));
    let mut conn = call.app.store.read().await?;
    let mut shown = Vec::new();
    for one in store::all(&mut conn, call.env).await? {
        let mut value = api(&one);
        if with_scopes {
            let scopes = store::scopes(&mut conn, call.env, one.api).await?;
            put(&mut value, "scopes", Value::Array(short(&scopes)));
        }
        shown.push(value);
    }
    let body = json!({ "code": "OK", "message": "Success", "next_token": null, "apis": shown });
    Ok(Reply::ok(body))
}

/// `POST /apis`
pub(crate) async fn create(call: Call) -> Result<Reply> {
    let mut body = call.body()?;
    let name = body.need_name("name", NAME_MAX)?;
    let audience = body.need_str("audience", NAME_MAX)?;
    body.finish()?;
    let app = &call.app;
    let done = ops::create(&app.store, call.env, &call.context, name, audience).await?;
    app.settle(done.stamp(), Settle::Widening).await?;
    let body = json!({
        "code": "OK",
        "message": "Success",
        "api": { "id": done.value.to_string() },
    });
    Ok(Reply::ok(body).seq(done.seq))
}

/// `GET /apis/{api_id}`
pub(crate) async fn show(call: Call) -> Result<Reply> {
    let mut conn = call.app.store.read().await?;
    let found = existing(&call, &mut conn).await?;
    let scopes = store::scopes(&mut conn, call.env, found.api).await?;
    let connected = applications::connected(&mut conn, call.env, found.api).await?;
    let mut value = api(&found);
    put(&mut value, "scopes", Value::Array(short(&scopes)));
    let applications = connected
        .iter()
        .map(|app| {
            json!({
                "id": app.app.to_string(),
                "name": app.name,
                "type": "Machine to machine (M2M)",
                "is_active": app.disabled_at.is_none(),
            })
        })
        .collect();
    put(&mut value, "applications", applications);
    Ok(Reply::ok(json!({ "code": "OK", "message": "Success", "api": value })))
}

/// `DELETE /apis/{api_id}`: its keys are revoked by that.
pub(crate) async fn delete(call: Call) -> Result<Reply> {
    let id = api_id(&call)?;
    let app = &call.app;
    let done = ops::delete(&app.store, call.env, &call.context, id).await?;
    app.settle(done.stamp(), Settle::Narrowing).await?;
    let body = json!({ "code": "API_DELETED", "message": "API deleted and its keys revoked" });
    Ok(Reply::ok(body).seq(done.seq))
}

/// `GET /apis/{api_id}/scopes`
pub(crate) async fn list_scopes(call: Call) -> Result<Reply> {
    let mut conn = call.app.store.read().await?;
    let found = existing(&call, &mut conn).await?;
    let scopes = store::scopes(&mut conn, call.env, found.api).await?;
    let shown: Vec<Value> = scopes.iter().map(scope).collect();
    Ok(Reply::ok(json!({ "code": "OK", "message": "Success", "scopes": shown })))
}

/// `POST /apis/{api_id}/scopes`
pub(crate) async fn create_scope(call: Call) -> Result<Reply> {
    let id = api_id(&call)?;
    let mut body = call.body()?;
    let key = body.need_str("key", NAME_MAX)?;
    let description = body.take_text("description", DESCRIPTION_MAX)?;
    body.finish()?;
    let app = &call.app;
    let done = ops::create_scope(&app.store, call.env, &call.context, id, key, description).await?;
    app.settle(done.stamp(), Settle::Widening).await?;
    let body = json!({
        "code": "OK",
        "message": "Success",
        "scope": { "id": done.value.to_string() },
    });
    Ok(Reply::ok(body).seq(done.seq))
}

/// `GET /apis/{api_id}/scopes/{scope_id}`
pub(crate) async fn show_scope(call: Call) -> Result<Reply> {
    let id = scope_id(&call)?;
    let mut conn = call.app.store.read().await?;
    let found = existing(&call, &mut conn).await?;
    let one = store::find_scope(&mut conn, call.env, found.api, id).await?;
    let one = one.ok_or_else(|| Error::not_found("scope"))?;
    Ok(Reply::ok(json!({ "code": "OK", "message": "Success", "scope": scope(&one) })))
}

/// `PATCH /apis/{api_id}/scopes/{scope_id}`
pub(crate) async fn update_scope(call: Call) -> Result<Reply> {
    let (api, id) = (api_id(&call)?, scope_id(&call)?);
    let mut body = call.body()?;
    let clears = body.was_null("description");
    let description = body.take_text("description", DESCRIPTION_MAX)?;
    body.finish()?;
    let app = &call.app;
    let wish = (description.is_some() || clears).then_some(description);
    let done = ops::describe_scope(&app.store, call.env, &call.context, api, id, wish).await?;
    app.settle(done.stamp(), Settle::Widening).await?;
    Ok(Reply::ok(json!({ "code": "OK", "message": "Success" })).seq(done.seq))
}

/// `DELETE /apis/{api_id}/scopes/{scope_id}`
pub(crate) async fn delete_scope(call: Call) -> Result<Reply> {
    let (api, id) = (api_id(&call)?, scope_id(&call)?);
    let app = &call.app;
    let done = ops::delete_scope(&app.store, call.env, &call.context, api, id).await?;
    app.settle(done.stamp(), Settle::Narrowing).await?;
    Ok(Reply::ok(json!({ "code": "OK", "message": "Success" })).seq(done.seq))
}

/// `PATCH /apis/{api_id}/applications`
pub(crate) async fn connect(call: Call) -> Result<Reply> {
    let id = api_id(&call)?;
    let mut body = call.body()?;
    let asked = body.take_array("applications", APPLICATIONS_MAX)?;
    let asked = asked.ok_or_else(|| missing("applications"))?;
    body.finish()?;
    let wishes = asked.into_iter().map(wish).collect::<Result<Vec<_>>>()?;
    let app = &call.app;
    let done = ops::connect(&app.store, call.env, &call.context, id, wishes).await?;
    app.settle(done.stamp(), Settle::Narrowing).await?;
    let words = |apps: &[AppId]| apps.iter().map(AppId::to_string).collect::<Vec<_>>();
    let (connected, parted) = &done.value;
    Ok(Reply::ok(json!({
        "code": "API_APPLICATIONS_UPDATED",
        "message": "API applications updated",
        "applications_connected": words(connected),
        "applications_disconnected": words(parted),
    }))
    .seq(done.seq))
}

/// One application, and whether it shall be connected.
fn wish(value: Value) -> Result<(AppId, bool)> {
    let Value::Object(values) = value else {
        return Err(wrong("applications", "must be a list of objects"));
    };
    let mut fields = Fields::of_object(values);
    let id = fields.need_str("id", 64)?;
    let operation = fields.take_str("operation", 20)?;
    fields.finish()?;
    let app = AppId::parse(&id);
    let app = app.ok_or_else(|| wrong("id", "must be the id of an application"))?;
    match operation.as_deref() {
        None => Ok((app, true)),
        Some("delete") => Ok((app, false)),
        Some(_) => Err(wrong("operation", "must be delete, or absent")),
    }
}

/// `POST /apis/{api_id}/applications/{application_id}/scopes/{scope_id}`
pub(crate) async fn grant(call: Call) -> Result<Reply> {
    set_grant(&call, true).await
}

/// `DELETE /apis/{api_id}/applications/{application_id}/scopes/{scope_id}`
pub(crate) async fn take(call: Call) -> Result<Reply> {
    set_grant(&call, false).await
}

async fn set_grant(call: &Call, wanted: bool) -> Result<Reply> {
    let application = AppId::parse(call.path("application_id"));
    let application = application.ok_or_else(|| Error::not_found("application"))?;
    let place = (api_id(call)?, application, scope_id(call)?);
    let app = &call.app;
    let done = ops::grant(&app.store, call.env, &call.context, place, wanted).await?;
    let settle = if wanted { Settle::Widening } else { Settle::Narrowing };
    app.settle(done.stamp(), settle).await?;
    Ok(Reply::ok(json!({ "code": "OK", "message": "Success" })).seq(done.seq))
}
