//! One HTTP exchange with Keyward: the pooled connections, their TLS, and how much patience a call
//! has.
//!
//! What an answer means is left to `token` and `verdict`.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::header::{HeaderMap, RETRY_AFTER};
use hyper::{Request, StatusCode, Uri};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tokio::time::Instant;

use crate::error::{BuildError, Error};

/// A verdict with 4 KiB of metadata is under 8 KiB; 8 times that is certainly not one.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// An idle connection is dropped before most servers and proxies would drop it (60 s and more), so
/// that a call seldom finds a connection that was just closed at the other end.
const IDLE_MAX: Duration = Duration::from_secs(30);

/// The pooled connections to one Keyward.
pub(crate) struct Transport {
    pool: hyper_util::client::legacy::Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
}

/// An answer, read whole.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) body: Bytes,
    retry_after: Option<Duration>,
}

impl Transport {
    /// With `roots` only those authorities are trusted, else the machine's own.
    pub(crate) fn new(
        is_https: bool,
        roots: &[Vec<u8>],
        connect_timeout: Duration,
    ) -> Result<Self, BuildError> {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(connect_timeout));
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls(is_https, roots)?)
            .https_or_http()
            .enable_http1()
            .wrap_connector(tcp);
        let pool = hyper_util::client::legacy::Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_MAX)
            .build(connector);
        Ok(Self { pool })
    }

    /// Sends one request; on a 503 that names a time to wait, waits and sends it once more, if that
    /// time lies before the deadline. Nothing else is repeated: an exchange that broke half way may
    /// have been counted.
    pub(crate) async fn send(
        &self,
        request: impl Fn() -> Result<Request<Full<Bytes>>, Error>,
        deadline: Instant,
    ) -> Result<Answer, Error> {
        let first = self.send_once(request()?).await?;
        let Some(wait) = first.retry_after.filter(|_| first.is_unavailable()) else {
            return Ok(first);
        };
        if Instant::now().checked_add(wait).is_none_or(|then| then >= deadline) {
            return Ok(first);
        }
        tokio::time::sleep(wait).await;
        self.send_once(request()?).await
    }

    async fn send_once(&self, request: Request<Full<Bytes>>) -> Result<Answer, Error> {
        let response = self
            .pool
            .request(request)
            .await
            .map_err(|cause| Error::unavailable("the exchange failed").caused_by(cause))?;
        let (head, body) = response.into_parts();
        let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await.map_err(|cause| {
            if cause.is::<http_body_util::LengthLimitError>() {
                Error::bad_reply(format!("the answer is over {ANSWER_BYTES_MAX} bytes"))
            } else {
                Error::unavailable("the answer broke off").caused_by(cause)
            }
        })?;
        let retry_after = seconds_to_wait(&head.headers);
        Ok(Answer { status: head.status, body: body.to_bytes(), retry_after })
    }
}

impl fmt::Debug for Transport {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Transport").finish_non_exhaustive()
    }
}

impl Answer {
    fn is_unavailable(&self) -> bool {
        self.status == StatusCode::SERVICE_UNAVAILABLE
    }

    /// What an answer that is neither a 200 nor a matter of credentials means.
    pub(crate) fn into_error(self) -> Error {
        let told = self.told();
        if self.status.is_server_error() || self.status == StatusCode::TOO_MANY_REQUESTS {
            Error::unavailable(told).retry_after(self.retry_after)
        } else {
            Error::bad_reply(told)
        }
    }

    /// The status and, where the body is one of Keyward's error bodies, its code and message. Cut
    /// short, and without control characters, because it ends up in logs.
    pub(crate) fn told(&self) -> String {
        let body: serde_json::Value = serde_json::from_slice(&self.body).unwrap_or_default();
        let errors = body.get("errors");
        let error = errors.and_then(|errors| errors.get(0)).or(errors);
        let words = [
            error.and_then(|error| error.get("code")),
            error.and_then(|error| error.get("message")),
            body.get("error"),
            body.get("error_description"),
        ];
        let mut told = format!("it answered {}", self.status);
        for word in words.into_iter().flatten().filter_map(serde_json::Value::as_str) {
            told.push_str(": ");
            told.extend(word.chars().filter(|character| !character.is_control()).take(200));
        }
        told
    }
}

/// `Retry-After` in seconds. Its other form, a date, is not understood: it would tie the wait to
/// two clocks.
fn seconds_to_wait(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}

fn tls(is_https: bool, roots: &[Vec<u8>]) -> Result<rustls::ClientConfig, BuildError> {
    let mut trusted = rustls::RootCertStore::empty();
    for pem in roots {
        let certificates = CertificateDer::pem_slice_iter(pem)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|cause| BuildError::new(format!("the root certificate: {cause}")))?;
        if certificates.is_empty() {
            return Err(BuildError::new("the root certificate: no certificate in this PEM text"));
        }
        for certificate in certificates {
            trusted
                .add(certificate)
                .map_err(|cause| BuildError::new(format!("the root certificate: {cause}")))?;
        }
    }
    if is_https && roots.is_empty() {
        let found = rustls_native_certs::load_native_certs();
        trusted.add_parsable_certificates(found.certs);
        if trusted.is_empty() {
            return Err(BuildError::new(format!(
                "this machine has no trusted authorities ({} errors while reading them); name one \
                 with `root_certificate`",
                found.errors.len()
            )));
        }
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|cause| BuildError::new(format!("TLS: {cause}")))?
        .with_root_certificates(trusted)
        .with_no_client_auth();
    Ok(config)
}

/// The base URL, taken apart once.
#[derive(Debug, Clone)]
pub(crate) struct Base {
    text: String,
    pub(crate) is_https: bool,
}

impl Base {
    /// `allow_plain`: whether `http://` may leave this machine.
    pub(crate) fn parse(text: &str, allow_plain: bool) -> Result<Self, BuildError> {
        let text = text.trim_end_matches('/');
        let wrong = |why: &str| Err(BuildError::new(format!("the base URL {text:?} {why}")));
        let Ok(uri) = text.parse::<Uri>() else {
            return wrong("is not a URL");
        };
        let Some(host) = uri.host() else {
            return wrong("names no host");
        };
        if uri.query().is_some() || text.contains('@') {
            return wrong("may have neither a query nor credentials");
        }
        let is_https = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return wrong("is neither https:// nor http://"),
        };
        if !is_https && !allow_plain && !is_loopback(host) {
            return wrong("would send keys in plain text; use https:// or `allow_plain_http`");
        }
        Ok(Self { text: text.to_owned(), is_https })
    }

    /// The URL of one route.
    pub(crate) fn join(&self, path: &str) -> Result<Uri, BuildError> {
        format!("{}{path}", self.text)
            .parse()
            .map_err(|cause| BuildError::new(format!("the base URL: {cause}")))
    }

    /// The audience of the management API, as a Keyward reached by its public URL names it.
    pub(crate) fn token_audience(&self) -> String {
        format!("{}/api", self.text)
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.text
    }
}

fn is_loopback(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost"
        || address.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_http_stays_on_this_machine_unless_it_was_allowed() {
        for url in ["http://localhost:8787", "http://127.0.0.1", "http://[::1]:1/", "https://k.io"]
        {
            assert!(Base::parse(url, false).is_ok(), "{url}");
        }
        for url in ["http://10.0.0.7", "http://keyward", "http://localhost.evil.example"] {
            assert!(Base::parse(url, false).is_err(), "{url}");
            assert!(Base::parse(url, true).is_ok(), "{url}");
        }
    }

    #[test]
    fn what_is_not_a_base_url_is_told_when_the_client_is_built() {
        for url in ["", "keyward", "/api", "ftp://k.io", "https://k.io?x=1", "https://a:b@k.io"] {
            assert!(Base::parse(url, true).is_err(), "{url:?}");
        }
    }

    #[test]
    fn the_audience_and_the_routes_follow_the_base_url_without_its_last_slash() {
        let base = Base::parse("https://k.io/keys/", false).expect("a base URL");
        assert_eq!(base.token_audience(), "https://k.io/keys/api");
        assert_eq!(base.join("/x").expect("a URL").to_string(), "https://k.io/keys/x");
    }
}
