//! The token endpoint: `POST /oauth2/token` with `grant_type=client_credentials` (RFC 6749 §4.4).
//!
//! Every token and every failed sign-in leaves a record. A token's record is stored before the
//! token is given out; failures are recorded in the background, so that guessing does not become a
//! way to keep the store busy.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyper::header::{AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::{HeaderMap, StatusCode};
use keyward_core::{ApiId, AppId};
use serde_json::json;
use zeroize::Zeroizing;

use super::call::{Answer, Call, json_answer};
use super::error::oauth;
use super::jwt::{self, Audience, Claims};
use crate::directory::Client;
use crate::error::Error;
use crate::ops::{Action, Actor};
use crate::store::audit::NewRecord;

/// What a token request says.
#[derive(Default)]
struct Asked {
    grant_type: Option<String>,
    client_id: Option<String>,
    client_secret: Option<Zeroizing<String>>,
    audiences: Vec<String>,
    scope: Option<String>,
}

/// A refusal: status, RFC 6749's word, and a sentence.
struct Refused(StatusCode, &'static str, String);

fn bad(error: &'static str, why: impl Into<String>) -> Refused {
    Refused(StatusCode::BAD_REQUEST, error, why.into())
}

/// Answers a token request.
pub(crate) async fn issue(call: Call, headers: &HeaderMap) -> Answer {
    let asked = match read(&call, headers) {
        Ok(asked) => asked,
        Err(refused) => return refuse(&call, refused, None),
    };
    let id = asked.client_id.clone();
    let mut answer = match grant(&call, asked).await {
        Ok(answer) => answer,
        Err(refused) => refuse(&call, refused, id),
    };
    answer.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}

fn refuse(call: &Call, refused: Refused, client_id: Option<String>) -> Answer {
    let Refused(status, error, description) = refused;
    if status == StatusCode::UNAUTHORIZED {
        // Only an id that could be one of ours is kept: what was typed may be a secret.
        let known = client_id.as_deref().and_then(AppId::parse);
        let target = known.map(|app| app.to_string()).unwrap_or_default();
        let mut context = call.context.clone();
        context.actor = known.map_or(Actor::Stranger, Actor::Application);
        call.app.metrics.sign_in_failed();
        call.app.metrics.denied.push(NewRecord::of_access(
            call.env,
            call.app.clock().now_us(),
            &context,
            Action::SignInFailed,
            "application",
            target,
            Some(error.to_owned()),
        ));
    }
    oauth(status, error, &description)
}

fn read(call: &Call, headers: &HeaderMap) -> Result<Asked, Refused> {
    let content_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let media_type = content_type.and_then(|text| text.split(';').next()).unwrap_or("");
    if !media_type.trim().eq_ignore_ascii_case("application/x-www-form-urlencoded") {
        let why = "send application/x-www-form-urlencoded";
        return Err(Refused(StatusCode::UNSUPPORTED_MEDIA_TYPE, "invalid_request", why.to_owned()));
    }
    let mut asked = Asked::default();
    for (name, value) in form_urlencoded::parse(&call.body) {
        let slot = match &*name {
            "grant_type" => &mut asked.grant_type,
            "client_id" => &mut asked.client_id,
            "scope" => &mut asked.scope,
            "client_secret" => {
                if asked.client_secret.replace(Zeroizing::new(value.into_owned())).is_some() {
                    return Err(bad("invalid_request", "`client_secret` is given twice"));
                }
                continue;
            }
            "audience" => {
                asked.audiences.push(value.into_owned());
                continue;
            }
            _ => continue,
        };
        if slot.replace(value.into_owned()).is_some() {
            return Err(bad("invalid_request", "a parameter is given twice"));
        }
    }
    if let Some((id, secret)) = basic(headers)? {
        if asked.client_secret.is_some() {
            return Err(bad("invalid_request", "credentials are given twice"));
        }
        if asked.client_id.as_ref().is_some_and(|other| *other != id) {
            return Err(bad("invalid_request", "two different clients are named"));
        }
        asked.client_id = Some(id);
        asked.client_secret = Some(secret);
    }
    Ok(asked)
}

/// Credentials by HTTP Basic, each part form-encoded as RFC 6749 §2.3.1 wants it.
fn basic(headers: &HeaderMap) -> Result<Option<(String, Zeroizing<String>)>, Refused> {
    let Some(value) = headers.get(AUTHORIZATION).map(HeaderValue::as_bytes) else {
        return Ok(None);
    };
    let wrong = || bad("invalid_request", "the Authorization header is not HTTP Basic");
    let (scheme, text) = value.split_at_checked(6).ok_or_else(wrong)?;
    if !scheme.eq_ignore_ascii_case(b"basic ") {
        return Err(wrong());
    }
    let plain = STANDARD.decode(text.trim_ascii()).map_err(|_| wrong())?;
    let plain = Zeroizing::new(String::from_utf8(plain).map_err(|_| wrong())?);
    let (id, secret) = plain.split_once(':').ok_or_else(wrong)?;
    let decode = |text: &str| {
        let spaced = text.replace('+', " ");
        percent_encoding::percent_decode_str(&spaced)
            .decode_utf8()
            .map(std::borrow::Cow::into_owned)
    };
    let id = decode(id).map_err(|_| wrong())?;
    let secret = decode(secret).map_err(|_| wrong())?;
    Ok(Some((id, Zeroizing::new(secret))))
}

async fn grant(call: &Call, asked: Asked) -> Result<Answer, Refused> {
    match asked.grant_type.as_deref() {
        Some("client_credentials") => {}
        Some(_) => {
            return Err(bad("unsupported_grant_type", "only client_credentials is supported"));
        }
        None => return Err(bad("invalid_request", "`grant_type` is missing")),
    }
    let directory = call.app.shared.directory.load();
    let stranger = || {
        let why = "unknown client or wrong secret".to_owned();
        Refused(StatusCode::UNAUTHORIZED, "invalid_client", why)
    };
    let app = asked.client_id.as_deref().and_then(AppId::parse);
    let client = app.and_then(|app| directory.client(call.env, app)).ok_or_else(stranger)?;
    let secret = asked.client_secret.unwrap_or_default();
    let now = call.app.clock().now_us();
    let known = client.knows(&secret, &call.app.keyring.secrets(), now);
    let generation = known.filter(|_| client.enabled).ok_or_else(stranger)?;
    let (audiences, held) = audiences(call, client, &asked.audiences)?;
    let wanted = asked.scope.unwrap_or_default();
    let wanted: Vec<&str> = wanted.split_ascii_whitespace().collect();
    let scope: Vec<String> = held
        .into_iter()
        .filter(|scope| wanted.is_empty() || wanted.contains(&scope.as_str()))
        .collect();
    let life_us = call.tenant.row.token_life_us;
    let claims = Claims {
        iss: call.tenant.row.public_url.clone(),
        aud: Audience::Several(audiences),
        azp: client.app.to_string(),
        iat: now / 1_000_000,
        exp: (now + life_us) / 1_000_000,
        jti: uuid::Uuid::from_bytes(call.app.store.entropy.id(now)).to_string(),
        scope: scope.join(" "),
        gty: vec!["client_credentials".to_owned()],
        generation,
    };
    record(call, client, &claims).await.map_err(failed)?;
    call.app.metrics.token_issued();
    let token = jwt::sign(&call.tenant, &claims).map_err(failed)?;
    Ok(json_answer(
        StatusCode::OK,
        &json!({
            "access_token": token,
            "expires_in": life_us / 1_000_000,
            "scope": claims.scope,
            "token_type": "bearer",
        }),
    ))
}

/// Which audiences the token is for, and the scopes that the application holds there. Without an
/// audience it is the management API's, as some published clients expect.
fn audiences(
    call: &Call,
    client: &Client,
    asked: &[String],
) -> Result<(Vec<String>, Vec<String>), Refused> {
    let management = format!("{}/api", call.tenant.row.public_url);
    let mut audiences: Vec<String> = Vec::new();
    let mut held: Vec<String> = Vec::new();
    let given: Vec<&str> = asked.iter().map(String::as_str).filter(|a| !a.is_empty()).collect();
    let given = if given.is_empty() { vec![management.as_str()] } else { given };
    // Scopes of two APIs in one token could not be told apart by either of them.
    if given.iter().any(|audience| Some(audience) != given.first()) {
        return Err(bad("invalid_request", "ask for one `audience` at a time"));
    }
    for audience in given {
        if audiences.iter().any(|one| one == audience) {
            continue;
        }
        let api: Option<&ApiId> = call.tenant.audiences.get(audience);
        let Some(scopes) = api.and_then(|api| client.scopes.get(api)) else {
            let why = "`audience` is no API that this application is connected to";
            return Err(bad("invalid_request", why));
        };
        audiences.push(audience.to_owned());
        held.extend(
            scopes.iter().filter(|scope| !held.contains(scope)).cloned().collect::<Vec<_>>(),
        );
    }
    Ok((audiences, held))
}

async fn record(call: &Call, client: &Client, claims: &Claims) -> Result<(), Error> {
    let mut context = call.context.clone();
    context.actor = Actor::Application(client.app);
    let record = NewRecord::of_access(
        call.env,
        call.app.clock().now_us(),
        &context,
        Action::TokenIssued,
        "token",
        claims.jti.clone(),
        None,
    );
    call.app.store.record(vec![record]).await
}

fn failed(error: Error) -> Refused {
    tracing::error!(cause = error.chain(), "a token could not be issued");
    let why = "tokens cannot be issued right now; try again".to_owned();
    Refused(StatusCode::SERVICE_UNAVAILABLE, "temporarily_unavailable", why)
}
