//! What the client promises, against a small Keyward made for these tests: its routes, its tokens
//! and its moods, but nobody's keys. The real server's own tests ask it the real questions.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, RETRY_AFTER};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use keyward_client::{Builder, Client, ErrorKind, Owner, Presented, Reason, Verdict};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::Notify;

/// One answer that the server has been told to give.
#[derive(Clone)]
struct Scripted {
    status: u16,
    retry_after: Option<&'static str>,
    body: String,
}

fn answer(status: u16, body: Value) -> Scripted {
    Scripted { status, retry_after: None, body: body.to_string() }
}

fn unavailable(retry_after: &'static str) -> Scripted {
    let body = json!({ "errors": [{ "code": "UNAVAILABLE", "message": "No lease." }] });
    Scripted { retry_after: Some(retry_after), ..answer(503, body) }
}

fn token(name: &str, expires_in: Value) -> Scripted {
    let body = json!({ "access_token": name, "token_type": "bearer", "expires_in": expires_in });
    answer(200, body)
}

fn refused_token() -> Scripted {
    answer(401, json!({ "errors": [{ "code": "UNAUTHENTICATED", "message": "Token ended." }] }))
}

fn valid() -> Value {
    json!({
        "code": "API_KEY_VERIFIED", "message": "API key verified", "is_valid": true,
        "key_id": "api_key_1", "status": "active", "scopes": ["read:reports"],
        "org_code": null, "user_id": "kp_1", "last_verified_on": "2026-11-22T21:24:03.512Z",
        "verification_count": 1, "api_id": "a1", "type": "user",
    })
}

/// What the server was asked, in order.
#[derive(Debug, Clone)]
struct Asked {
    path: String,
    authorization: Option<String>,
    body: String,
}

#[derive(Default)]
struct Script {
    tokens: VecDeque<Scripted>,
    verdicts: VecDeque<Scripted>,
    asked: Vec<Asked>,
    connections: usize,
}

/// The server: answers from its script, and with the last entry of it for ever.
#[derive(Clone)]
struct Keyward {
    address: SocketAddr,
    script: Arc<Mutex<Script>>,
    /// While set, the token endpoint waits for it before each answer.
    hold_tokens: Arc<Mutex<Option<Arc<Notify>>>>,
    token_arrived: Arc<Notify>,
}

impl Keyward {
    async fn new(tokens: Vec<Scripted>, verdicts: Vec<Scripted>) -> Self {
        Self::serve(tokens, verdicts, None).await
    }

    async fn serve(
        tokens: Vec<Scripted>,
        verdicts: Vec<Scripted>,
        tls: Option<tokio_rustls::TlsAcceptor>,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port on loopback");
        let keyward = Self {
            address: listener.local_addr().expect("a bound address"),
            script: Arc::new(Mutex::new(Script {
                tokens: tokens.into(),
                verdicts: verdicts.into(),
                ..Script::default()
            })),
            hold_tokens: Arc::default(),
            token_arrived: Arc::default(),
        };
        let server = keyward.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                server.script.lock().unwrap().connections += 1;
                let (server, tls) = (server.clone(), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        None => server.converse(stream).await,
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                server.converse(stream).await;
                            }
                        }
                    }
                });
            }
        });
        keyward
    }

    async fn converse(&self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        let service = service_fn(|request| self.reply(request));
        // A client that leaves in the middle is what some tests are about.
        let _left = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
    }

    async fn reply(&self, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
        let (head, body) = request.into_parts();
        let body = body.collect().await.expect("a whole request").to_bytes();
        let path = head.uri.path().to_owned();
        let authorization =
            head.headers.get(AUTHORIZATION).map(|value| value.to_str().unwrap().to_owned());
        let body = String::from_utf8(body.to_vec()).expect("a text");
        let is_token = path == "/oauth2/token";
        self.script.lock().unwrap().asked.push(Asked { path, authorization, body });
        if is_token {
            self.token_arrived.notify_one();
            let hold = self.hold_tokens.lock().unwrap().clone();
            if let Some(hold) = hold {
                hold.notified().await;
            }
        }
        let mut script = self.script.lock().unwrap();
        let answers = if is_token { &mut script.tokens } else { &mut script.verdicts };
        let scripted = match answers.len() {
            0 => answer(404, json!({ "errors": { "code": "NOT_FOUND", "message": "Nothing." } })),
            1 => answers[0].clone(),
            _ => answers.pop_front().unwrap(),
        };
        let mut response =
            Response::builder().status(scripted.status).header(CONTENT_TYPE, "application/json");
        if let Some(retry_after) = scripted.retry_after {
            response = response.header(RETRY_AFTER, retry_after);
        }
        Ok(response.body(Full::new(Bytes::from(scripted.body))).unwrap())
    }

    fn builder(&self) -> Builder {
        Client::builder(format!("http://{}", self.address)).credentials("id-1", "canary-secret")
    }

    fn client(&self) -> Client {
        self.builder().build().expect("a client")
    }

    fn asked(&self, path: &str) -> Vec<Asked> {
        let script = self.script.lock().unwrap();
        script.asked.iter().filter(|asked| asked.path == path).cloned().collect()
    }

    fn tokens_asked(&self) -> usize {
        self.asked("/oauth2/token").len()
    }

    fn verdicts_asked(&self) -> usize {
        self.asked("/api/v1/api_keys/verify").len()
    }

    fn last_authorization(&self) -> String {
        let last = self.asked("/api/v1/api_keys/verify").pop().expect("a question");
        last.authorization.expect("a token")
    }

    fn connections(&self) -> usize {
        self.script.lock().unwrap().connections
    }
}

fn key() -> Presented {
    Presented::new("k_live_canary")
}

#[tokio::test]
async fn a_good_key_is_valid_and_says_whose_it_is() {
    let keyward = Keyward::new(vec![token("t1", json!(3600))], vec![answer(200, valid())]).await;
    let verdict = keyward.client().verify(&key()).await.expect("a verdict");
    let grant = verdict.grant().expect("a grant");
    assert_eq!(grant.owner, Owner::User { user_id: "kp_1".to_owned(), org_code: None });
    let asked = &keyward.asked("/api/v1/api_keys/verify")[0];
    assert_eq!(asked.authorization.as_deref(), Some("Bearer t1"));
    assert_eq!(asked.body, r#"{"api_key":"k_live_canary"}"#);
    let form = &keyward.asked("/oauth2/token")[0].body;
    assert!(form.starts_with("grant_type=client_credentials&client_id=id-1&client_secret=canary"));
    let audience = format!("&audience=http%3A%2F%2F127.0.0.1%3A{}%2Fapi", keyward.address.port());
    assert!(form.ends_with(&audience), "{form}");
}

#[tokio::test]
async fn a_refused_key_is_an_answer_with_its_reason() {
    let refusal = json!({
        "code": "API_KEY_INSUFFICIENT_SCOPE", "message": "Not enough.", "is_valid": false,
        "key_id": "api_key_1", "status": "active", "scopes": [], "org_code": null,
        "user_id": "kp_1", "last_verified_on": null, "verification_count": 0,
        "refusal": { "reason": "insufficient_scope", "missing_scopes": ["write:reports"] },
    });
    let keyward = Keyward::new(vec![token("t1", json!(3600))], vec![answer(200, refusal)]).await;
    let verdict = keyward.client().verify(&key().scope("write:reports")).await.expect("a verdict");
    let Verdict::Refused(refusal) = verdict else { panic!("{verdict:?}") };
    assert_eq!(refusal.reason, Reason::InsufficientScope);
    assert_eq!(refusal.missing_scopes, ["write:reports"]);
    assert_eq!(refusal.user_id.as_deref(), Some("kp_1"));
}

#[tokio::test]
async fn every_question_goes_to_the_server_over_a_connection_that_stays_open() {
    let keyward = Keyward::new(vec![token("t1", json!(3600))], vec![answer(200, valid())]).await;
    let client = keyward.client();
    for _ in 0..5 {
        client.verify(&key()).await.expect("a verdict");
    }
    assert_eq!(keyward.verdicts_asked(), 5);
    assert_eq!(keyward.tokens_asked(), 1);
    assert_eq!(keyward.connections(), 1);
}

#[tokio::test]
async fn a_revoked_key_is_refused_by_the_very_next_question() {
    let revoked = json!({ "code": "API_KEY_REVOKED", "is_valid": false });
    let keyward = Keyward::new(
        vec![token("t1", json!(3600))],
        vec![answer(200, valid()), answer(200, revoked)],
    )
    .await;
    let client = keyward.client();
    assert!(client.verify(&key()).await.expect("a verdict").grant().is_some());
    assert!(client.verify(&key()).await.expect("a verdict").grant().is_none());
}

#[tokio::test]
async fn all_that_was_said_about_the_call_is_asked() {
    let keyward = Keyward::new(vec![token("t1", json!(3600))], vec![answer(200, valid())]).await;
    let client = keyward.builder().audience("https://api.example").build().expect("a client");
    let presented = key()
        .scopes(["read:reports"])
        .user_id("kp_1")
        .ip("2001:db8::7".parse().expect("an address"))
        .resource("GET /reports/7")
        .user_agent("curl/8");
    client.verify(&presented).await.expect("a verdict");
    client.verify(&key().api_id("a1")).await.expect("a verdict");
    let bodies: Vec<Value> = keyward
        .asked("/api/v1/api_keys/verify")
        .iter()
        .map(|asked| serde_json::from_str(&asked.body).expect("JSON"))
        .collect();
    assert_eq!(
        bodies,
        [
            json!({
                "api_key": "k_live_canary", "audience": "https://api.example",
                "scopes": ["read:reports"], "user_id": "kp_1", "ip": "2001:db8::7",
                "resource": "GET /reports/7", "user_agent": "curl/8",
            }),
            json!({ "api_key": "k_live_canary", "api_id": "a1" }),
        ]
    );
}

#[tokio::test]
async fn a_hundred_first_calls_ask_for_one_token() {
    let keyward = Keyward::new(vec![token("t1", json!(3600))], vec![answer(200, valid())]).await;
    let client = keyward.client();
    let calls: Vec<_> = (0..100)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move { client.verify(&key()).await })
        })
        .collect();
    for call in calls {
        assert!(call.await.expect("no panic").expect("a verdict").grant().is_some());
    }
    assert_eq!(keyward.tokens_asked(), 1);
    assert_eq!(keyward.verdicts_asked(), 100);
}

#[tokio::test]
async fn calls_that_waited_for_one_token_share_its_failure() {
    let wrong = json!({ "error": "invalid_client", "error_description": "Unknown." });
    let keyward = Keyward::new(vec![answer(401, wrong)], vec![answer(200, valid())]).await;
    let release = Arc::new(Notify::new());
    *keyward.hold_tokens.lock().unwrap() = Some(Arc::clone(&release));
    let client = keyward.client();
    let (one, two, three) = (client.clone(), client.clone(), client.clone());
    let (asked, other, another) = (key(), key(), key());
    let (first, second, third, ()) =
        tokio::join!(one.verify(&asked), two.verify(&other), three.verify(&another), async {
            // All three have been polled once before the token's answer is let go.
            keyward.token_arrived.notified().await;
            release.notify_one();
        });
    for outcome in [first, second, third] {
        let error = outcome.expect_err("nobody knows");
        assert_eq!(error.kind(), ErrorKind::Unauthenticated);
        assert!(error.to_string().contains("invalid_client"), "{error}");
    }
    assert_eq!(keyward.tokens_asked(), 1);
    assert_eq!(keyward.verdicts_asked(), 0);
}

#[tokio::test]
async fn a_token_that_is_refused_is_renewed_once_and_the_question_asked_again() {
    let keyward = Keyward::new(
        vec![token("t1", json!(3600)), token("t2", json!(3600))],
        vec![refused_token(), answer(200, valid())],
    )
    .await;
    assert!(keyward.client().verify(&key()).await.expect("a verdict").grant().is_some());
    let headers: Vec<_> = keyward
        .asked("/api/v1/api_keys/verify")
        .into_iter()
        .map(|asked| asked.authorization.expect("a token"))
        .collect();
    assert_eq!(headers, ["Bearer t1", "Bearer t2"]);
}

#[tokio::test]
async fn an_application_that_stays_refused_is_an_error_and_does_not_storm_the_token_endpoint() {
    let keyward = Keyward::new(vec![token("t1", json!(3600))], vec![refused_token()]).await;
    let client = keyward.client();
    for _ in 0..2 {
        let error = client.verify(&key()).await.expect_err("nobody knows");
        assert_eq!(error.kind(), ErrorKind::Unauthenticated);
        assert!(error.to_string().contains("Token ended."), "{error}");
    }
    assert_eq!(keyward.tokens_asked(), 2);
}

#[tokio::test]
async fn a_given_token_that_is_refused_is_an_error_at_once() {
    let keyward = Keyward::new(vec![token("t1", json!(3600))], vec![refused_token()]).await;
    let client = keyward.builder().token("given").build().expect("a client");
    let error = client.verify(&key()).await.expect_err("nobody knows");
    assert_eq!(error.kind(), ErrorKind::Unauthenticated);
    assert_eq!((keyward.tokens_asked(), keyward.verdicts_asked()), (0, 1));
    let asked = &keyward.asked("/api/v1/api_keys/verify")[0];
    assert_eq!(asked.authorization.as_deref(), Some("Bearer given"));
}

#[tokio::test]
async fn a_missing_scope_of_this_program_is_an_error_and_not_a_refusal_of_the_key() {
    let forbidden = json!({ "errors": [{ "code": "insufficient_scope", "message": "No." }] });
    let keyward = Keyward::new(vec![token("t1", json!(3600))], vec![answer(403, forbidden)]).await;
    let error = keyward.client().verify(&key()).await.expect_err("nobody knows");
    assert_eq!(error.kind(), ErrorKind::Unauthenticated);
    assert_eq!(keyward.tokens_asked(), 1);
}

/// Moves the client's clock on, without waiting.
async fn later(by: Duration) {
    tokio::time::pause();
    tokio::time::advance(by).await;
    tokio::time::resume();
}

#[tokio::test]
async fn a_token_near_its_end_is_renewed_while_calls_go_on_with_it() {
    let keyward = Keyward::new(
        vec![token("t1", json!(100)), token("t2", json!(100))],
        vec![answer(200, valid())],
    )
    .await;
    let client = keyward.client();
    client.verify(&key()).await.expect("a verdict");
    keyward.token_arrived.notified().await;
    later(Duration::from_secs(79)).await;
    client.verify(&key()).await.expect("a verdict");
    assert_eq!(keyward.tokens_asked(), 1);

    let release = Arc::new(Notify::new());
    *keyward.hold_tokens.lock().unwrap() = Some(Arc::clone(&release));
    later(Duration::from_secs(2)).await;
    client.verify(&key()).await.expect("a verdict while the renewal is held");
    client.verify(&key()).await.expect("a verdict while the renewal is held");
    keyward.token_arrived.notified().await;
    assert_eq!(keyward.tokens_asked(), 2);
    assert_eq!(keyward.last_authorization(), "Bearer t1");

    release.notify_one();
    let renewed = async {
        while keyward.last_authorization() != "Bearer t2" {
            client.verify(&key()).await.expect("a verdict");
        }
    };
    tokio::time::timeout(Duration::from_secs(5), renewed).await.expect("the renewed token");
    assert_eq!(keyward.tokens_asked(), 2);
}

#[tokio::test]
async fn a_token_that_ended_is_never_sent() {
    let keyward = Keyward::new(
        vec![token("t1", json!(100)), token("t2", json!(100))],
        vec![answer(200, valid())],
    )
    .await;
    let client = keyward.client();
    client.verify(&key()).await.expect("a verdict");
    later(Duration::from_secs(100)).await;
    client.verify(&key()).await.expect("a verdict");
    assert_eq!(keyward.last_authorization(), "Bearer t2");
    assert_eq!((keyward.tokens_asked(), keyward.verdicts_asked()), (2, 2));
}

#[tokio::test]
async fn a_token_reply_of_an_odd_shape_still_gives_a_token() {
    for expires_in in [json!(null), json!("3600"), json!(-5), json!(1e300)] {
        let tokens = vec![token("t1", expires_in)];
        let keyward = Keyward::new(tokens, vec![answer(200, valid())]).await;
        assert!(keyward.client().verify(&key()).await.expect("a verdict").grant().is_some());
    }
}

#[tokio::test]
async fn a_503_that_names_a_time_within_the_deadline_is_waited_out_once() {
    let keyward = Keyward::new(
        vec![unavailable("0"), token("t1", json!(3600))],
        vec![unavailable("0"), answer(200, valid())],
    )
    .await;
    assert!(keyward.client().verify(&key()).await.expect("a verdict").grant().is_some());
    assert_eq!((keyward.tokens_asked(), keyward.verdicts_asked()), (2, 2));
}

#[tokio::test]
async fn a_second_503_is_an_error_that_says_when_to_come_back() {
    let keyward = Keyward::new(vec![token("t1", json!(3600))], vec![unavailable("0")]).await;
    let error = keyward.client().verify(&key()).await.expect_err("nobody knows");
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert_eq!(error.retry_after_hint(), Some(Duration::ZERO));
    assert_eq!(keyward.verdicts_asked(), 2);
}

#[tokio::test]
async fn a_503_that_names_a_time_beyond_the_deadline_is_not_waited_for() {
    let keyward = Keyward::new(vec![token("t1", json!(3600))], vec![unavailable("60")]).await;
    let error = keyward.client().verify(&key()).await.expect_err("nobody knows");
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert_eq!(error.retry_after_hint(), Some(Duration::from_secs(60)));
    assert_eq!(keyward.verdicts_asked(), 1);
}

#[tokio::test]
async fn a_503_without_a_time_and_every_other_failure_is_an_error_and_asked_once() {
    let body = json!({ "is_valid": true, "code": "API_KEY_VERIFIED", "key_id": "api_key_1" });
    for (status, kind) in [
        (500, ErrorKind::Unavailable),
        (502, ErrorKind::Unavailable),
        (503, ErrorKind::Unavailable),
        (504, ErrorKind::Unavailable),
        (429, ErrorKind::Unavailable),
        (201, ErrorKind::BadReply),
        (204, ErrorKind::BadReply),
        (302, ErrorKind::BadReply),
        (400, ErrorKind::BadReply),
        (404, ErrorKind::BadReply),
        (413, ErrorKind::BadReply),
        (421, ErrorKind::BadReply),
    ] {
        // Even a body that would be a grant is none under another status than 200.
        let verdicts = vec![answer(status, body.clone())];
        let keyward = Keyward::new(vec![token("t1", json!(3600))], verdicts).await;
        let error = keyward.client().verify(&key()).await.expect_err("nobody knows");
        assert_eq!(error.kind(), kind, "{status}");
        assert_eq!(keyward.verdicts_asked(), 1, "{status}");
    }
}

#[tokio::test]
async fn a_body_that_is_no_verdict_or_too_long_is_an_error() {
    let long = json!({ "is_valid": true, "key_id": "x".repeat(70_000) }).to_string();
    for body in ["", "<html>", "[]", "{}", r#"{"is_valid":"yes"}"#, long.as_str()] {
        let verdict = Scripted { status: 200, retry_after: None, body: body.to_owned() };
        let keyward = Keyward::new(vec![token("t1", json!(3600))], vec![verdict]).await;
        let error = keyward.client().verify(&key()).await.expect_err("nobody knows");
        assert_eq!(error.kind(), ErrorKind::BadReply, "{}", body.len());
    }
}

#[tokio::test]
async fn a_server_that_does_not_answer_in_time_is_unavailable() {
    let keyward = Keyward::new(vec![token("t1", json!(3600))], vec![answer(200, valid())]).await;
    *keyward.hold_tokens.lock().unwrap() = Some(Arc::new(Notify::new()));
    let client = keyward.builder().timeout(Duration::from_millis(50)).build().expect("a client");
    let error = client.verify(&key()).await.expect_err("nobody knows");
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("within 50 ms"), "{error}");
}

#[tokio::test]
async fn a_server_that_is_not_there_is_unavailable() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port on loopback");
    let address = listener.local_addr().expect("a bound address");
    drop(listener);
    let client = Client::builder(format!("http://{address}")).token("t").build().expect("a client");
    let error = client.verify(&key()).await.expect_err("nobody knows");
    assert_eq!(error.kind(), ErrorKind::Unavailable);
}

#[tokio::test]
async fn no_secret_is_printed_whatever_goes_wrong() {
    let echo = json!({ "errors": [{ "code": "BAD", "message": "Wrong." }] });
    let keyward = Keyward::new(
        vec![token("canary-token", json!(3600))],
        vec![answer(200, valid()), answer(400, echo), unavailable("0"), answer(200, json!(7))],
    )
    .await;
    let builder = keyward.builder();
    let mut printed = format!("{builder:?}");
    let client = builder.build().expect("a client");
    for _ in 0..4 {
        match client.verify(&key()).await {
            Ok(verdict) => printed.push_str(&format!("{verdict:?}")),
            Err(error) => printed.push_str(&format!("{error} {error:?}")),
        }
    }
    printed.push_str(&format!("{client:?} {:?}", Client::builder("http://[::1]").token("canary")));
    assert!(!printed.contains("canary"), "{printed}");
}

/// A certificate for `localhost`, itself the authority, and a server that shows it.
fn tls() -> (String, tokio_rustls::TlsAcceptor) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    let key =
        tokio_rustls::rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der())
            .expect("a private key");
    let provider = Arc::new(tokio_rustls::rustls::crypto::aws_lc_rs::default_provider());
    let config = tokio_rustls::rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("TLS 1.2 and 1.3")
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .expect("a pair");
    (made.cert.pem(), tokio_rustls::TlsAcceptor::from(Arc::new(config)))
}

#[tokio::test]
async fn over_tls_only_the_named_authority_is_trusted() {
    let (authority, acceptor) = tls();
    let (stranger, _) = tls();
    let keyward =
        Keyward::serve(vec![token("t1", json!(3600))], vec![answer(200, valid())], Some(acceptor))
            .await;
    let base = format!("https://localhost:{}", keyward.address.port());
    let client = |root: &str| {
        let builder = Client::builder(&base).credentials("id-1", "canary-secret");
        builder.root_certificate(root).build().expect("a client")
    };
    let error = client(&stranger).verify(&key()).await.expect_err("nobody knows");
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert_eq!(keyward.tokens_asked(), 0);
    assert!(client(&authority).verify(&key()).await.expect("a verdict").grant().is_some());
}

#[test]
fn a_client_that_could_not_work_is_not_built() {
    let refused = |builder: Builder| builder.build().expect_err("no client").to_string();
    assert!(refused(Client::builder("https://k.example")).contains("neither credentials"));
    let plain = Client::builder("http://k.example").token("t");
    assert!(refused(plain).contains("plain text"));
    let rootless = Client::builder("https://k.example").token("t").root_certificate("no PEM");
    assert!(refused(rootless).contains("no certificate"));
}
