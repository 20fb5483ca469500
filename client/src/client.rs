//! The client that a program holds, and how it is built.
//!
//! Tokens are left to `token`, connections and patience to `transport`, the meaning of an answer to
//! `verdict`. Here is the order in which they are used, and what a refused token leads to.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, StatusCode, Uri};
use tokio::time::Instant;

use crate::error::{BuildError, Error};
use crate::presented::Presented;
use crate::secret::Secret;
use crate::token::{Token, Tokens};
use crate::transport::{Base, Transport};
use crate::verdict::{self, Verdict};

/// How this program names itself to Keyward.
pub(crate) const USER_AGENT: &str = concat!("keyward-client/", env!("CARGO_PKG_VERSION"));

/// A longer timeout is none, and a clock's reading plus `Duration::MAX` has no value.
const TIMEOUT_MAX: Duration = Duration::from_secs(3600);

/// Asks one Keyward server for verdicts.
///
/// Build it once and share it: it is cheap to clone, and all clones use the same connections and
/// the same access token. It needs a Tokio runtime. Why it keeps no verdict is told at the head of
/// this crate.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
}

struct Shared {
    base: Base,
    verify_uri: Uri,
    audience: Option<String>,
    timeout: Duration,
    transport: Arc<Transport>,
    tokens: Tokens,
}

impl Client {
    /// Begins a client for the Keyward at this address: `https://keys.example.com`.
    ///
    /// `http://` is taken for this machine only, unless [`Builder::allow_plain_http`] says
    /// otherwise.
    pub fn builder(base_url: impl Into<String>) -> Builder {
        Builder {
            base_url: base_url.into(),
            identity: None,
            token_audience: None,
            audience: None,
            timeout: Duration::from_secs(3),
            connect_timeout: Duration::from_secs(1),
            roots: Vec::new(),
            allow_plain_http: false,
        }
    }

    /// Asks whose key this is and whether it is good for what was asked.
    ///
    /// Asks the server each time; nothing is cached. Takes at most the builder's
    /// [`timeout`](Builder::timeout), the time for a new access token included. A token that
    /// Keyward does not accept any more is renewed once; a 503 that names a time to wait within the
    /// timeout is waited out once.
    ///
    /// # Errors
    ///
    /// Only where the verdict cannot be known. A bad key is not an error but
    /// [`Verdict::Refused`], and an error is never a yes.
    pub async fn verify(&self, presented: &Presented) -> Result<Verdict, Error> {
        let deadline = Instant::now() + self.shared.timeout;
        match tokio::time::timeout_at(deadline, self.shared.verify(presented, deadline)).await {
            Ok(verdict) => verdict,
            Err(_) => Err(Error::unavailable(format!(
                "no answer within {} ms",
                self.shared.timeout.as_millis()
            ))),
        }
    }
}

impl Shared {
    async fn verify(&self, presented: &Presented, deadline: Instant) -> Result<Verdict, Error> {
        // A question of its own only where the builder's audience has to join it.
        let asks_for_no_api = presented.api_id.is_none() && presented.audience.is_none();
        let joined = match &self.audience {
            Some(audience) if asks_for_no_api => Some(presented.clone().audience(audience)),
            Some(_) | None => None,
        };
        let asked = joined.as_ref().unwrap_or(presented);
        let body = serde_json::to_vec(asked)
            .map(Bytes::from)
            .map_err(|cause| Error::bad_reply("the question").caused_by(cause))?;

        let mut token = self.tokens.current(deadline).await?;
        let mut answer = self.transport.send(|| self.request(&token, &body), deadline).await?;
        if answer.status == StatusCode::UNAUTHORIZED
            && let Some(other) = self.tokens.replace_refused(&token, deadline).await?
        {
            token = other;
            answer = self.transport.send(|| self.request(&token, &body), deadline).await?;
        }
        match answer.status {
            StatusCode::OK => verdict::read(&answer.body, asked),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                Err(Error::unauthenticated(answer.told()))
            }
            _ => Err(answer.into_error()),
        }
    }

    fn request(&self, token: &Token, body: &Bytes) -> Result<Request<Full<Bytes>>, Error> {
        Request::builder()
            .method(Method::POST)
            .uri(self.verify_uri.clone())
            .header(AUTHORIZATION, &token.authorization)
            .header(CONTENT_TYPE, HeaderValue::from_static("application/json"))
            .header(ACCEPT, HeaderValue::from_static("application/json"))
            .header(hyper::header::USER_AGENT, HeaderValue::from_static(USER_AGENT))
            .body(Full::new(body.clone()))
            .map_err(|cause| Error::bad_reply("the question").caused_by(cause))
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Client")
            .field("base_url", &self.shared.base.as_str())
            .field("audience", &self.shared.audience)
            .field("timeout", &self.shared.timeout)
            .finish_non_exhaustive()
    }
}

/// The settings of a [`Client`]. Secrets in it are not printed by `Debug`.
#[derive(Debug, Clone)]
#[must_use]
pub struct Builder {
    base_url: String,
    identity: Option<Identity>,
    token_audience: Option<String>,
    audience: Option<String>,
    timeout: Duration,
    connect_timeout: Duration,
    roots: Vec<Vec<u8>>,
    allow_plain_http: bool,
}

/// As whom this program asks.
#[derive(Debug, Clone)]
enum Identity {
    Credentials { client_id: String, client_secret: Secret },
    Token(Secret),
}

impl Builder {
    /// The application as which this program asks. It needs the scope `verify:api_keys` and should
    /// have no other. Replaces [`token`](Self::token).
    pub fn credentials(
        mut self,
        client_id: impl Into<String>,
        client_secret: impl Into<String>,
    ) -> Self {
        self.identity = Some(Identity::Credentials {
            client_id: client_id.into(),
            client_secret: Secret::new(client_secret),
        });
        self
    }

    /// An access token that somebody else renews; when it ends, every call fails as
    /// unauthenticated. Replaces [`credentials`](Self::credentials).
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.identity = Some(Identity::Token(Secret::new(token)));
        self
    }

    /// The audience of the API that this program protects. It is asked for with every question that
    /// names no API itself, so that a key of another API is refused. Strongly advised: without it a
    /// key made for any API of the environment is valid here too.
    pub fn audience(mut self, audience: impl Into<String>) -> Self {
        self.audience = Some(audience.into());
        self
    }

    /// The audience of the access token; `<base URL>/api` unless said otherwise. Needed where this
    /// program reaches Keyward by another address than its public URL.
    pub fn token_audience(mut self, audience: impl Into<String>) -> Self {
        self.token_audience = Some(audience.into());
        self
    }

    /// How long one [`Client::verify`] may take in all; 3 s unless said otherwise, an hour at most.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout.min(TIMEOUT_MAX);
        self
    }

    /// How long a new connection may take; 1 s unless said otherwise.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// An authority, in PEM, that the server's certificate may be from; may be said several times.
    /// Once one is named, the machine's own authorities are not trusted any more: Keyward's
    /// certificate has one origin, and no other should be able to stand in for it.
    pub fn root_certificate(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.roots.push(pem.into());
        self
    }

    /// Lets `http://` leave this machine. Keys and the access token can then be read by whoever
    /// sees the traffic; only for a network that is private in itself.
    pub fn allow_plain_http(mut self, allow: bool) -> Self {
        self.allow_plain_http = allow;
        self
    }

    /// The client. Nothing is sent before the first question.
    ///
    /// # Errors
    ///
    /// A base URL, a certificate or a token that cannot be used, and neither credentials nor a
    /// token.
    pub fn build(self) -> Result<Client, BuildError> {
        let base = Base::parse(&self.base_url, self.allow_plain_http)?;
        let transport = Arc::new(Transport::new(base.is_https, &self.roots, self.connect_timeout)?);
        let tokens = match &self.identity {
            None => {
                return Err(BuildError::new("neither credentials nor a token were given"));
            }
            Some(Identity::Token(token)) => Tokens::given(token)?,
            Some(Identity::Credentials { client_id, client_secret }) => Tokens::granted(
                Arc::clone(&transport),
                base.join("/oauth2/token")?,
                client_id,
                client_secret,
                &self.token_audience.unwrap_or_else(|| base.token_audience()),
            ),
        };
        let verify_uri = base.join("/api/v1/api_keys/verify")?;
        let (audience, timeout) = (self.audience, self.timeout);
        let shared = Shared { base, verify_uri, audience, timeout, transport, tokens };
        Ok(Client { shared: Arc::new(shared) })
    }
}
