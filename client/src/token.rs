//! This program's own access token: obtained, kept, renewed.
//!
//! One flight at a time asks for a token, however many calls wait for it, and those that waited
//! share its failure too: a thousand calls do not ask a Keyward that is down a thousand times. A
//! token is renewed in the background from four fifths of its life on, so that no call waits for
//! it, and once when Keyward refuses it, because a token can be ended before its time.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{ACCEPT, CONTENT_TYPE, HeaderValue, USER_AGENT};
use hyper::{Method, Request, StatusCode, Uri};
use tokio::time::Instant;

use crate::error::{BuildError, Error};
use crate::secret::Secret;
use crate::transport::Transport;

/// Where a token reply does not say how long the token lives (RFC 6749 lets it): short enough to
/// be wrong cheaply.
const LIFETIME_UNTOLD: Duration = Duration::from_secs(300);

/// No token is trusted for longer than this, whatever the reply says.
const LIFETIME_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

/// A token is not used in its last seconds: it must still be good when the request arrives.
const EXPIRY_MARGIN: Duration = Duration::from_secs(10);

/// The pause after a renewal in the background that failed.
const BACKGROUND_PAUSE: Duration = Duration::from_secs(5);

/// A token that came from renewing a refused one, and is refused as well, is not renewed again
/// before this age: Keyward means the application then, not the token.
const REFUSED_AGAIN_AGE: Duration = Duration::from_secs(1);

/// How long one renewal in the background may take.
const BACKGROUND_TIMEOUT: Duration = Duration::from_secs(30);

/// Where access tokens come from.
#[derive(Debug)]
pub(crate) enum Tokens {
    /// One that was given and cannot be renewed.
    Given(Arc<Token>),
    /// The client_credentials grant (RFC 6749, §4.4).
    Granted(Arc<Granted>),
}

/// One access token.
pub(crate) struct Token {
    /// The whole header, built once, marked as sensitive.
    pub(crate) authorization: HeaderValue,
    obtained_at: Instant,
    renew_at: Instant,
    expires_at: Instant,
    replaces_refused: bool,
}

/// Tokens by client_credentials.
pub(crate) struct Granted {
    transport: Arc<Transport>,
    token_uri: Uri,
    form: Secret,
    held: RwLock<Option<Arc<Token>>>,
    /// Held while a token is being asked for; inside is what the last attempt failed with.
    flight: tokio::sync::Mutex<Option<Error>>,
    /// Attempts that ended. One that waited for the flight sees by it whether an attempt ended
    /// meanwhile, whose outcome is then also its own.
    attempts: AtomicU64,
    in_background: AtomicBool,
}

impl Tokens {
    /// A token that somebody else looks after.
    pub(crate) fn given(token: &Secret) -> Result<Self, BuildError> {
        let authorization = bearer(token.expose())
            .ok_or_else(|| BuildError::new("the token cannot stand in a header"))?;
        let now = Instant::now();
        Ok(Self::Given(Arc::new(Token {
            authorization,
            obtained_at: now,
            renew_at: now,
            expires_at: now,
            replaces_refused: false,
        })))
    }

    /// Tokens for this application.
    pub(crate) fn granted(
        transport: Arc<Transport>,
        token_uri: Uri,
        client_id: &str,
        client_secret: &Secret,
        audience: &str,
    ) -> Self {
        let mut form = "grant_type=client_credentials".to_owned();
        let fields = [
            ("client_id", client_id),
            ("client_secret", client_secret.expose()),
            ("audience", audience),
        ];
        for (name, value) in fields {
            form.push('&');
            form.push_str(name);
            form.push('=');
            push_encoded(&mut form, value);
        }
        Self::Granted(Arc::new(Granted {
            transport,
            token_uri,
            form: Secret::new(form),
            held: RwLock::new(None),
            flight: tokio::sync::Mutex::new(None),
            attempts: AtomicU64::new(0),
            in_background: AtomicBool::new(false),
        }))
    }

    /// A token to try. One that is held and good costs a read lock and no wait.
    pub(crate) async fn current(&self, deadline: Instant) -> Result<Arc<Token>, Error> {
        let granted = match self {
            Self::Given(token) => return Ok(Arc::clone(token)),
            Self::Granted(granted) => granted,
        };
        let now = Instant::now();
        match granted.held() {
            Some(token) if now < token.expires_at => {
                if now >= token.renew_at {
                    granted.renew_in_background(&token);
                }
                Ok(token)
            }
            _ => granted.renew(None, deadline).await,
        }
    }

    /// Another token in place of one that Keyward refused; `None` where there is no point in it.
    pub(crate) async fn replace_refused(
        &self,
        refused: &Arc<Token>,
        deadline: Instant,
    ) -> Result<Option<Arc<Token>>, Error> {
        let granted = match self {
            Self::Given(_) => return Ok(None),
            Self::Granted(granted) => granted,
        };
        if refused.replaces_refused && refused.obtained_at.elapsed() < REFUSED_AGAIN_AGE {
            return Ok(None);
        }
        granted.renew(Some(refused), deadline).await.map(Some)
    }
}

impl Granted {
    fn held(&self) -> Option<Arc<Token>> {
        self.held.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Asks for a token, unless another call just did. `stale` is a token that must not come back.
    async fn renew(
        &self,
        stale: Option<&Arc<Token>>,
        deadline: Instant,
    ) -> Result<Arc<Token>, Error> {
        let attempts_seen = self.attempts.load(Ordering::Acquire);
        let mut flight = self.flight.lock().await;
        if let Some(token) = self.held() {
            let is_stale = stale.is_some_and(|stale| Arc::ptr_eq(stale, &token));
            if !is_stale && Instant::now() < token.expires_at {
                return Ok(token);
            }
        }
        if self.attempts.load(Ordering::Acquire) != attempts_seen
            && let Some(failure) = flight.as_ref()
        {
            return Err(failure.repeated());
        }
        let outcome = self.ask(stale.is_some(), deadline).await;
        self.attempts.fetch_add(1, Ordering::Release);
        match outcome {
            Ok(token) => {
                let token = Arc::new(token);
                *self.held.write().unwrap_or_else(PoisonError::into_inner) =
                    Some(Arc::clone(&token));
                *flight = None;
                Ok(token)
            }
            Err(error) => {
                *flight = Some(error.repeated());
                Err(error)
            }
        }
    }

    /// One renewal at a time, while calls go on with the token that is still good.
    fn renew_in_background(self: &Arc<Self>, aging: &Arc<Token>) {
        if self.in_background.swap(true, Ordering::AcqRel) {
            return;
        }
        let (granted, aging) = (Arc::clone(self), Arc::clone(aging));
        tokio::spawn(async move {
            let deadline = Instant::now() + BACKGROUND_TIMEOUT;
            let renewal = granted.renew(Some(&aging), deadline);
            let renewed = tokio::time::timeout_at(deadline, renewal).await;
            if !matches!(renewed, Ok(Ok(_))) {
                // Nobody is told: calls still succeed, and once the token ends they try themselves.
                tokio::time::sleep(BACKGROUND_PAUSE).await;
            }
            granted.in_background.store(false, Ordering::Release);
        });
    }

    async fn ask(&self, replaces_refused: bool, deadline: Instant) -> Result<Token, Error> {
        // Before sending, so that the token's life is counted from too early rather than too late.
        let obtained_at = Instant::now();
        let request = || {
            Request::builder()
                .method(Method::POST)
                .uri(self.token_uri.clone())
                .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
                .header(ACCEPT, "application/json")
                .header(USER_AGENT, crate::client::USER_AGENT)
                .body(Full::new(Bytes::copy_from_slice(self.form.expose().as_bytes())))
                .map_err(|cause| Error::bad_reply("the token request").caused_by(cause))
        };
        let answer = self.transport.send(request, deadline).await?;
        match answer.status {
            StatusCode::OK => {}
            StatusCode::BAD_REQUEST | StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                return Err(Error::unauthenticated(format!("no token, {}", answer.told())));
            }
            _ => return Err(answer.into_error()),
        }
        let reply: serde_json::Value = serde_json::from_slice(&answer.body)
            .map_err(|_| Error::bad_reply("the token reply is not JSON"))?;
        let authorization = reply
            .get("access_token")
            .and_then(serde_json::Value::as_str)
            .and_then(bearer)
            .ok_or_else(|| Error::bad_reply("the token reply holds no access token"))?;
        let lifetime = reply
            .get("expires_in")
            .and_then(serde_json::Value::as_f64)
            .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
            .unwrap_or(LIFETIME_UNTOLD)
            .min(LIFETIME_MAX);
        Ok(Token {
            authorization,
            obtained_at,
            renew_at: obtained_at + lifetime * 4 / 5,
            expires_at: obtained_at + lifetime - EXPIRY_MARGIN.min(lifetime / 10),
            replaces_refused,
        })
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Token").finish_non_exhaustive()
    }
}

impl fmt::Debug for Granted {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Granted")
            .field("token_uri", &self.token_uri)
            .finish_non_exhaustive()
    }
}

/// `Bearer <token>`; `None` where the token is empty or cannot stand in a header.
fn bearer(token: &str) -> Option<HeaderValue> {
    if token.is_empty() {
        return None;
    }
    let mut value = HeaderValue::from_str(&format!("Bearer {token}")).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// Percent-encodes all but RFC 3986's unreserved characters: every form decoder reads that alike,
/// while `+` for a space is read in two ways.
fn push_encoded(form: &mut String, value: &str) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    for byte in value.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            form.push(char::from(byte));
        } else {
            form.push('%');
            for nibble in [byte >> 4, byte & 15] {
                form.extend(HEX.get(usize::from(nibble)).copied().map(char::from));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_arrive_as_they_are_whatever_they_hold() {
        let mut form = String::new();
        push_encoded(&mut form, "a-Z_0.~ +&=%/ü");
        assert_eq!(form, "a-Z_0.~%20%2B%26%3D%25%2F%C3%BC");
    }

    #[test]
    fn a_token_that_cannot_stand_in_a_header_is_told_when_the_client_is_built() {
        assert!(Tokens::given(&Secret::new("a\nb")).is_err());
        assert!(Tokens::given(&Secret::new("")).is_err());
    }
}
