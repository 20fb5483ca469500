//! `keyward verify`: judges a key from standard input.
//!
//! The running server is asked, so that the verification counts. Where none runs, the store is
//! opened and judged by the same table; nothing is counted then.

use std::io::Read;
use std::sync::{Arc, PoisonError};

use keyward_core::{Decision, Kind, Known, Question, Refusal, ScopesAsked, Status};
use serde_json::{Map, Value, json};
use zeroize::Zeroizing;

use super::session::Session;
use super::socket::{self, Request};
use crate::clock::rfc3339;
use crate::error::{Error, Result};
use crate::follower::{Follower, Shared};
use crate::lease::Lease;
use crate::progress::Progress;

/// Longest standard input in bytes; a key is at most 512.
const INPUT_BYTES_MAX: u64 = 4_096;

/// What is asked about the key.
#[derive(clap::Args)]
pub(super) struct VerifyFlags {
    /// The id of the API that asks
    #[arg(long)]
    api_id: Option<String>,
    /// The audience of the API that asks
    #[arg(long)]
    audience: Option<String>,
    /// A scope that is needed (repeatable)
    #[arg(long)]
    scope: Vec<String>,
    /// The user whose key it must be
    #[arg(long, value_name = "USER_ID")]
    user: Option<String>,
    /// The organization whose key it must be
    #[arg(long, value_name = "CODE")]
    org: Option<String>,
    /// The address that the key's holder calls from
    #[arg(long)]
    ip: Option<std::net::IpAddr>,
}

/// Verifies the key on standard input; whether it is good.
pub(super) async fn run(flags: VerifyFlags, session: &Session) -> Result<bool> {
    let secret = read()?;
    let answer = match socket::connect(&session.folder).await {
        Some(stream) => {
            let body = Zeroizing::new(question(&flags, &secret).to_string());
            let request = Request {
                method: "POST",
                path: "/api/v1/api_keys/verify",
                host: &session.environment.host,
                content_type: Some("application/json"),
                body: body.as_bytes(),
            };
            let answer = socket::ask(stream, &request).await?;
            if answer.status != 200 {
                return Err(socket::failure(&answer));
            }
            answer.body
        }
        None => {
            let silent = session.folder.lock().is_err();
            session.out.note(if silent {
                "the server on this folder cannot be asked by this account; nothing is counted"
            } else {
                "no server runs on this folder; nothing is counted"
            });
            judge(&flags, &secret, session).await?
        }
    };
    let text = |name: &str| answer.get(name).and_then(Value::as_str);
    let sentence = match (text("code"), text("message"), text("key_id")) {
        (Some("API_KEY_VERIFIED"), _, Some(key)) => {
            let owner = text("user_id").or(text("org_code")).unwrap_or("the environment");
            format!("The key {key} is good and belongs to {owner}.")
        }
        (Some(code), Some(message), _) => format!("{message} ({code})."),
        (_, _, _) => return Err(Error::internal("the answer is no verdict")),
    };
    session.out.done(&answer, &sentence)?;
    Ok(answer.get("is_valid") == Some(&Value::Bool(true)))
}

/// Reads the key, without the end of its line.
fn read() -> Result<Zeroizing<String>> {
    let mut text = Zeroizing::new(String::with_capacity(1_024));
    std::io::stdin().take(INPUT_BYTES_MAX).read_to_string(&mut text).map_err(|_| {
        Error::invalid("BAD_INPUT", "standard input must be a key and nothing else")
    })?;
    let trimmed = Zeroizing::new(text.trim().to_owned());
    if trimmed.is_empty() {
        return Err(Error::invalid("BAD_INPUT", "put the key on standard input"));
    }
    Ok(trimmed)
}

fn question(flags: &VerifyFlags, secret: &str) -> Value {
    let mut body = Map::new();
    body.insert("api_key".to_owned(), secret.into());
    for (name, value) in [
        ("api_id", &flags.api_id),
        ("audience", &flags.audience),
        ("user_id", &flags.user),
        ("org_code", &flags.org),
        ("ip", &flags.ip.map(|ip| ip.to_string())),
    ] {
        body.extend(value.as_ref().map(|value| (name.to_owned(), value.as_str().into())));
    }
    body.insert("scopes".to_owned(), json!(flags.scope));
    Value::Object(body)
}

/// Judges the key by a table that is loaded for this one question.
async fn judge(flags: &VerifyFlags, secret: &str, session: &Session) -> Result<Value> {
    let store = &session.store;
    let keyring = Arc::new(session.keyring().await?);
    let shared = Arc::new(Shared::new(Lease::new(std::time::Duration::ZERO)));
    // No counter file is this process's own, so that the totals of all of them are the base.
    let own_file = [0xff; 16];
    let mut follower = Follower::new(store.clone(), Arc::clone(&shared), keyring, own_file);
    // No lease is taken, so nobody waits for a process that answers once and ends.
    follower.load(&Progress::on_terminal()).await?;
    let scopes: Vec<&str> = flags.scope.iter().map(String::as_str).collect();
    let question = Question {
        env: session.env(),
        secret,
        now: store.clock.now_us(),
        api: flags.api_id.as_deref(),
        audience: flags.audience.as_deref(),
        scopes: ScopesAsked::Strs(&scopes),
        user: flags.user.as_deref(),
        org: flags.org.as_deref(),
        address: flags.ip,
    };
    let table = shared.table.read().unwrap_or_else(PoisonError::into_inner);
    match table.decide(&question) {
        Decision::Valid(key) => Ok(verdict("API_KEY_VERIFIED", "API key verified", Some(key))),
        Decision::Refused(key, refusal) => {
            Ok(verdict(refusal.code(), "The API key is refused", Some(key)))
        }
        Decision::Unknown => {
            let message = "This is not an API key of this environment";
            Ok(verdict(Refusal::Invalid.code(), message, None))
        }
        Decision::Withheld => {
            let public = "this store was restored and waits for `keyward restore --confirm`";
            Err(Error::unavailable(public))
        }
    }
}

/// A verdict with the fields of the HTTP answer. The count is what it was before.
fn verdict(code: &str, message: &str, key: Option<Known<'_>>) -> Value {
    let is_valid = code == "API_KEY_VERIFIED";
    let status = key.map(|key| match key.status() {
        Status::Active => "active",
        Status::Inactive => "inactive",
        Status::Revoked => "revoked",
    });
    let kind = key.map(|key| match key.kind() {
        Kind::User => "user",
        Kind::Organization => "organization",
        Kind::Environment => "environment",
    });
    let scopes: Vec<&str> = key.map(|key| key.scopes().collect()).unwrap_or_default();
    let verified_at = key.map(Known::base_verified_at).filter(|at| *at > 0);
    json!({
        "code": code,
        "message": message,
        "is_valid": is_valid,
        "key_id": key.map(|key| key.key_id().to_string()),
        "status": status,
        "scopes": scopes,
        "org_code": key.and_then(Known::org),
        "user_id": key.and_then(Known::user),
        "last_verified_on": verified_at.map(rfc3339),
        "verification_count": key.map_or(0, Known::base_count),
        "api_id": key.map(|key| key.api_id().to_string()),
        "name": key.map(Known::name),
        "type": kind,
        "expires_on": key.and_then(Known::expires_at).map(rfc3339),
    })
}
