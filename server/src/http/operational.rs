//! Operational routes (wire.md §6): health, readiness, metrics, and the document of all routes.

use std::sync::atomic::Ordering;
use std::sync::{Arc, LazyLock};

use bytes::Bytes;
use serde_json::{Value, json};

use super::call::{Call, Reply};
use super::{OPENAPI, reference};
use crate::App;
use crate::error::{Error, Result};
use crate::ops::Actor;
use crate::ops::environments::FIRST_ENVIRONMENT;

/// Reading the document once is enough: it is part of the binary.
static DOCUMENT: LazyLock<Value> = LazyLock::new(|| {
    serde_json::from_str(OPENAPI).expect("the OpenAPI document that is compiled in is JSON")
});

static REFERENCE: LazyLock<Bytes> = LazyLock::new(|| Bytes::from(reference::page(&DOCUMENT)));

/// `GET /healthz`: the process answers.
pub(crate) async fn health(_call: Call) -> Result<Reply> {
    Ok(healthy())
}

/// That the process answers.
pub(crate) fn healthy() -> Reply {
    Reply::ok(json!({ "status": "ok" }))
}

/// `GET /readyz`: a verification can be answered.
pub(crate) async fn ready(call: Call) -> Result<Reply> {
    readiness(&call.app)
}

/// Whether a verification can be answered, and what should worry the operator.
pub(crate) fn readiness(app: &Arc<App>) -> Result<Reply> {
    if !app.is_ready() {
        return Err(Error::unavailable("not ready: this server has no fresh view of the keys"));
    }
    let directory = app.shared.directory.load();
    if directory.tenants().any(|tenant| tenant.withheld) {
        let public = "not ready: this store was restored and waits for `keyward restore --confirm`";
        return Err(Error::unavailable(public));
    }
    let mut warnings = Vec::new();
    if app.counting.is_at_risk() {
        warnings.push("the counter file cannot be written: a crash now would lose counts");
    }
    if app.shared.unwritable.load(Ordering::Relaxed) {
        warnings.push("the database cannot be written: changes are refused until it can");
    }
    if app.shared.loses_changes.load(Ordering::Relaxed) {
        warnings.push("a standby is not synchronous: a failover to it can lose revocations");
    }
    Ok(Reply::ok(json!({ "status": "ready", "warnings": warnings })))
}

/// `GET /metrics`, in the Prometheus text format.
///
/// They are the whole process's, so that in any environment but the first a tenant would read how
/// much the others verify and how often they are refused.
pub(crate) async fn metrics(call: Call) -> Result<Reply> {
    let is_first = call.tenant.row.slug == FIRST_ENVIRONMENT;
    if !is_first && !matches!(call.context.actor, Actor::Operator(_)) {
        let public = "metrics are the whole server's: they are read in the environment `default`, \
                      or at the address given by --metrics-listen";
        return Err(Error::forbidden("METRICS_ELSEWHERE", public));
    }
    let text = call.app.metrics.render(&call.app);
    Ok(Reply::text("text/plain; version=0.0.4; charset=utf-8", text))
}

/// `GET /openapi.json`
pub(crate) async fn openapi(_call: Call) -> Result<Reply> {
    Ok(Reply::text("application/json", Bytes::from_static(OPENAPI.as_bytes())))
}

/// `GET /reference`: the same document for people.
pub(crate) async fn reference(_call: Call) -> Result<Reply> {
    Ok(Reply::text("text/html; charset=utf-8", REFERENCE.clone()))
}
