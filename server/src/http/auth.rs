//! Who is asking: the token of a management call, or the operator's own socket.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use hyper::HeaderMap;
use hyper::header::AUTHORIZATION;

use super::tokens::{Bearer, Remembered};
use super::turn::Turn;
use crate::App;
use crate::directory::{Directory, Tenant};
use crate::error::{Error, Result};
use crate::ops::Actor;
use crate::scope::Scopes;

/// What is known of a connection.
#[derive(Debug)]
pub(crate) struct Connection {
    /// The other end, unless it is the operator's socket.
    pub(crate) address: Option<IpAddr>,
    /// Who is at the other end of the socket in the data folder, which only its owner can open.
    pub(crate) operator: Option<String>,
    /// The token that came last on it. OK to lock: one connection has one request at a time, or a
    /// few over HTTP/2, and the lock is held for a clone.
    last: Mutex<Option<Arc<Remembered>>>,
    /// Whose turn it is on it.
    pub(crate) turn: Turn,
    /// Whether many requests can be under way on it at once.
    pub(crate) is_shared: bool,
}

impl Connection {
    /// A connection from `address`; `is_shared` when many requests can be under way at once.
    pub(crate) fn from(address: IpAddr, is_shared: bool) -> Self {
        Self::new(Some(address.to_canonical()), None, is_shared)
    }

    /// A connection by the operator's socket, of the account `uid`.
    pub(crate) fn operator(uid: u32) -> Self {
        Self::new(None, Some(format!("uid {uid}")), false)
    }

    fn new(address: Option<IpAddr>, operator: Option<String>, is_shared: bool) -> Self {
        Self { address, operator, last: Mutex::default(), turn: Turn::default(), is_shared }
    }
}

/// Somebody who may ask something.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    pub(crate) actor: Actor,
    pub(crate) scopes: Option<Scopes>,
}

impl Caller {
    /// Whether the caller may do what one of `scopes` allows; the operator may do everything.
    pub(crate) fn may(&self, scopes: &[crate::scope::Scope]) -> bool {
        self.scopes.is_none_or(|held| held.has_one_of(scopes))
    }
}

/// The token of a request.
pub(crate) fn bearer_token(headers: &HeaderMap) -> Result<&[u8]> {
    let none = || Error::unauthenticated("NO_TOKEN", "a bearer token is needed");
    let value = headers.get(AUTHORIZATION).ok_or_else(none)?.as_bytes();
    let (scheme, token) = value.split_at_checked(7).ok_or_else(none)?;
    if !scheme.eq_ignore_ascii_case(b"bearer ") {
        return Err(none());
    }
    Ok(token.trim_ascii())
}

/// The bearer of a request's token.
///
/// # Errors
/// `Unauthenticated` for a missing, foreign, expired or stopped token.
pub(crate) fn bearer(
    app: &App,
    connection: &Connection,
    directory: &Directory,
    tenant: &Tenant,
    headers: &HeaderMap,
) -> Result<Bearer> {
    let token = bearer_token(headers)?;
    let (env, now) = (tenant.row.env, app.clock().now_us());
    let mut last = connection.last.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(last) = &*last
        && let Some(bearer) = last.recognises(token, env, directory.generation, now)
    {
        return Ok(bearer);
    }
    let checked = app.tokens.check(directory, tenant, token, app.clock());
    let bearer =
        checked.as_ref().and_then(|known| known.recognises(token, env, directory.generation, now));
    *last = checked;
    bearer.ok_or_else(|| {
        let public = "the token is not good here: expired, of another issuer, or its application \
                      was stopped; get a new one from /oauth2/token";
        Error::unauthenticated("INVALID_TOKEN", public)
    })
}

/// Who is asking on this connection.
///
/// # Errors
/// As [`bearer`].
pub(crate) fn caller(
    app: &App,
    connection: &Connection,
    directory: &Directory,
    tenant: &Tenant,
    headers: &HeaderMap,
) -> Result<Caller> {
    if let Some(name) = &connection.operator {
        return Ok(Caller { actor: Actor::Operator(name.clone()), scopes: None });
    }
    let bearer = bearer(app, connection, directory, tenant, headers)?;
    Ok(Caller { actor: Actor::Application(bearer.app), scopes: Some(bearer.scopes) })
}
