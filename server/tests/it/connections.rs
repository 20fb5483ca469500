//! What holds on a connection that goes on: what is remembered of a caller, and how bodies come.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{self, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body, Frame};
use hyper::client::conn::{http1, http2};
use hyper::{Request, Response, body::Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use keyward::lease::Settle;
use keyward::ops::Context;
use keyward::ops::environments::{self, NewEnvironment};
use keyward_core::Prefix;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};

use crate::world::{Engine, World, on_both_engines};

/// One HTTP/1.1 connection, used for one request after the other.
struct Line(http1::SendRequest<Full<Bytes>>);

async fn status_and_body(response: Response<Incoming>) -> (u16, Value) {
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.expect("a body").to_bytes();
    (status, serde_json::from_slice(&body).expect("JSON"))
}

/// A verification of `secret` for `host` as `token`.
fn verification(host: &str, token: &str, secret: &str) -> Request<Full<Bytes>> {
    Request::post(format!("http://{host}/api/v1/api_keys/verify"))
        .header("host", host)
        .header("content-type", "application/json")
        .header("authorization", format!("Bearer {token}"))
        .body(json!({ "api_key": secret }).to_string().into())
        .expect("a request")
}

impl Line {
    async fn to(world: &World) -> Self {
        let stream = TcpStream::connect(world.address()).await.expect("connects");
        let (sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.expect("speaks HTTP");
        tokio::spawn(connection);
        Self(sender)
    }

    async fn verify(&mut self, host: &str, token: &str, secret: &str) -> (u16, Value) {
        let request = verification(host, token, secret);
        status_and_body(self.0.send_request(request).await.expect("an answer")).await
    }
}

on_both_engines! {
    /// A connection remembers the last token it was good for, but not beyond any change.
    async fn a_remembered_token_is_judged_anew_after_every_change(world: World) {
        let api = world.api("profiles", &[]).await;
        let (_, secret) = world.user_key(&api, "kp_1", &[]).await;
        let made = world.post("/applications", json!({ "name": "a", "type": "m2m" })).await;
        let made = made.expect(201)["application"].take();
        let (id, its_secret) = (made["id"].as_str(), made["client_secret"].as_str());
        let (id, its_secret) = (id.expect("an id"), its_secret.expect("a secret"));
        let apis = world.get("/apis?expand=scopes").await.expect(200);
        let mut apis = apis["apis"].as_array().expect("a list").iter();
        let management = apis.find(|api| api["is_management_api"] == true).expect("one");
        let api = management["id"].as_str().expect("an id");
        let connect = json!({ "applications": [{ "id": id }] });
        world.patch(&format!("/apis/{api}/applications"), connect).await.expect(200);
        let scopes = management["scopes"].as_array().expect("a list");
        let scope = scopes.iter().find(|scope| scope["key"] == "verify:api_keys").expect("one");
        let scope = scope["id"].as_str().expect("an id");
        let grant = format!("/apis/{api}/applications/{id}/scopes/{scope}");
        world.call("POST", &grant, None).await.expect(200);
        let token = world.ask_token(id, its_secret, &[]).await.expect(200);
        let token = token["access_token"].as_str().expect("a token");

        let mut line = Line::to(&world).await;
        let mut status = async || line.verify("keys.test", token, &secret).await.0;
        assert_eq!((status().await, status().await), (200, 200));
        world.delete(&grant).await.expect(200);
        assert_eq!(status().await, 403);
        world.call("POST", &grant, None).await.expect(200);
        assert_eq!(status().await, 200);
        let path = format!("/applications/{id}");
        world.patch(&path, json!({ "is_active": false })).await.expect(200);
        assert_eq!(status().await, 401);
        world.patch(&path, json!({ "is_active": true })).await.expect(200);
        assert_eq!(status().await, 401, "stopped for good");
        let token = world.ask_token(id, its_secret, &[]).await.expect(200);
        let token = token["access_token"].as_str().expect("a token");
        let mut status = async || line.verify("keys.test", token, &secret).await.0;
        assert_eq!((status().await, status().await), (200, 200));
        let path = format!("{path}/secret");
        world.post(&path, json!({ "grace_period_seconds": 86_400 })).await.expect(201);
        assert_eq!(status().await, 200);
        world.post(&path, json!({ "grace_period_seconds": 60 })).await.expect(201);
        world.pass_seconds(59).await;
        assert_eq!(status().await, 200);
        world.pass_seconds(1).await;
        assert_eq!(status().await, 401, "the secret that it was got with has ended");
        world.pass_seconds(86_340).await;
        let status = line.verify("keys.test", &world.token, &secret).await.0;
        assert_eq!(status, 401, "expired");
    }
}

on_both_engines! {
    async fn a_remembered_token_is_good_in_its_environment_alone(world: World) {
        let app = world.app();
        let new = NewEnvironment {
            slug: "other".to_owned(),
            name: "Other".to_owned(),
            public_url: "http://other.test".to_owned(),
            key_prefix: Prefix::parse("k_live").expect("a prefix"),
        };
        let (secrets, context) = (app.keyring.secrets(), Context::system("test"));
        let made = environments::create(&app.store, &context, &secrets, new).await.expect("made");
        app.settle(made.stamp(), Settle::Narrowing).await.expect("in force");
        let mut line = Line::to(&world).await;
        for _ in 0..2 {
            assert_eq!(line.verify("keys.test", &world.token, "x").await.0, 200);
            assert_eq!(line.verify("other.test", &world.token, "x").await.0, 401);
        }
        let other = format!("{}x", world.token);
        assert_eq!(line.verify("keys.test", &other, "x").await.0, 401, "another token");
        assert_eq!(line.verify("keys.test", &world.token, "x").await.0, 200);
    }
}

on_both_engines! {
    async fn http_2_carries_many_verifications_at_once_and_each_is_counted(world: World) {
        let api = world.api("profiles", &[]).await;
        let (_, secret) = world.user_key(&api, "kp_1", &[]).await;
        let stream = TcpStream::connect(world.address()).await.expect("connects");
        let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .expect("speaks HTTP/2");
        tokio::spawn(connection);
        let mut asked = tokio::task::JoinSet::new();
        for _ in 0..100 {
            let mut sender = sender.clone();
            let request = verification("keys.test", &world.token, &secret);
            asked.spawn(async move {
                status_and_body(sender.send_request(request).await.expect("an answer")).await
            });
        }
        let mut counts: Vec<u64> = Vec::new();
        while let Some(answer) = asked.join_next().await {
            let (status, body) = answer.expect("asked");
            assert_eq!((status, &body["is_valid"]), (200, &json!(true)));
            counts.push(body["verification_count"].as_u64().expect("a count"));
        }
        counts.sort_unstable();
        assert_eq!(counts, (1..=100).collect::<Vec<_>>(), "each answer has a count of its own");
    }
}

#[tokio::test]
async fn head_has_no_body_over_http_2_either() {
    let world = World::start(Engine::Sqlite).await;
    let stream = TcpStream::connect(world.address()).await.expect("connects");
    let (mut sender, connection) =
        http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.expect("speaks HTTP/2");
    tokio::spawn(connection);
    let mut ask = async |method: &str| {
        let request = Request::builder().method(method).uri("http://keys.test/openapi.json");
        let request = request.body(Full::<Bytes>::default()).expect("a request");
        let response = sender.send_request(request).await.expect("an answer");
        let length = response.headers()["content-length"].to_str().expect("a text").to_owned();
        (length, response.into_body().collect().await.expect("a whole body").to_bytes().len())
    };
    let (length, got) = ask("GET").await;
    assert_eq!(ask("HEAD").await, (length, 0));
    assert!(got > 0);
}

#[tokio::test]
async fn on_http_2_a_host_other_than_the_authority_is_a_400() {
    let world = World::start(Engine::Sqlite).await;
    let stream = TcpStream::connect(world.address()).await.expect("connects");
    let (mut sender, connection) =
        http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.expect("speaks HTTP/2");
    tokio::spawn(connection);
    for (host, expected) in [("keys.test", 200), ("KEYS.test", 200), ("other.test", 400)] {
        let request = Request::builder().uri("http://keys.test/openapi.json").header("host", host);
        let request = request.body(Full::<Bytes>::default()).expect("a request");
        let answer = sender.send_request(request).await.expect("an answer");
        assert_eq!(answer.status().as_u16(), expected, "{host}");
    }
}

/// Sends bytes as they are; what comes back until the server closes or has said `enough`.
async fn raw(world: &World, bytes: &[u8], enough: &str) -> String {
    let mut stream = TcpStream::connect(world.address()).await.expect("connects");
    stream.write_all(bytes).await.expect("sent");
    let mut answer = Vec::new();
    let mut buffer = [0; 4_096];
    while !String::from_utf8_lossy(&answer).contains(enough) {
        // OK to ignore how it ended: what was said before is what is looked at.
        let Ok(read) = stream.read(&mut buffer).await else { break };
        if read == 0 {
            break;
        }
        answer.extend_from_slice(&buffer[..read]);
    }
    String::from_utf8(answer).expect("text")
}

on_both_engines! {
    async fn a_body_may_come_in_pieces_and_is_limited_all_the_same(world: World) {
        let head = format!(
            "POST /api/v1/api_keys/verify HTTP/1.1\r\nhost: keys.test\r\n\
             content-type: application/json\r\nauthorization: Bearer {}\r\n\
             transfer-encoding: chunked\r\n\r\n",
            world.token
        );
        let pieces = "3\r\n{\"a\r\n9\r\npi_key\":\"\r\n3\r\nx\"}\r\n0\r\n\r\n";
        let answer = raw(&world, format!("{head}{pieces}").as_bytes(), "}}").await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(answer.contains("\"code\":\"API_KEY_INVALID\""), "{answer}");
        let piece = format!("1000\r\n{}\r\n", "x".repeat(0x1000));
        let endless = format!("{head}{}", piece.repeat(17));
        let answer = raw(&world, endless.as_bytes(), "]}").await;
        assert!(answer.starts_with("HTTP/1.1 413 Payload Too Large\r\n"), "{answer}");
        let broken = format!("{head}3\r\n{{\"a\r\nnonsense\r\n");
        let answer = raw(&world, broken.as_bytes(), "]}").await;
        assert!(answer.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{answer}");
    }
}

on_both_engines! {
    async fn what_is_no_http_is_turned_away_and_the_server_goes_on(world: World) {
        let authorization = format!("authorization: Bearer {}\r\n", world.token);
        for bytes in [
            "GET /api/v1/api_keys HTTP/1.1\r\n\r\n".to_owned(),
            "nonsense\r\n\r\n".to_owned(),
            "GET / HTTP/9.9\r\n\r\n".to_owned(),
            "\u{0}\u{16}\u{3}\u{1}\r\n\r\n".to_owned(),
            format!("GET / HTTP/1.1\r\nhost: keys.test\r\nx: {}\r\n\r\n", "x".repeat(64 * 1024)),
            "POST /api/v1/apis HTTP/1.1\r\nhost: keys.test\r\ncontent-length: -1\r\n\r\n"
                .to_owned(),
            format!("POST /api/v1/apis HTTP/1.1\r\nhost: a\r\nhost: b\r\n{authorization}\r\n"),
        ] {
            let answer = raw(&world, bytes.as_bytes(), "\r\n\r\n").await;
            let status = answer.get(9..12).unwrap_or("");
            assert!(answer.is_empty() || status.starts_with('4'), "{bytes:?}: {answer}");
        }
        world.get("/api_keys").await.expect(200);
    }
}

/// A server that waits for what a client owes it for half a second, instead of a minute.
async fn impatient() -> World {
    let mut world = World::start(Engine::Sqlite).await;
    world.stop().await;
    world.config.limits.idle_timeout = Duration::from_millis(500);
    world.start_again().await;
    world
}

#[tokio::test]
async fn a_connection_on_which_nothing_is_said_is_closed() {
    let world = impatient().await;
    for began in ["", "PRI * HT", "GET /healthz HTTP/1.1\r\nhost: keys.test\r\n"] {
        // It ends at all: what is waited for is the end of the connection.
        let answer = raw(&world, began.as_bytes(), "nothing of the kind").await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 408"), "{began:?}: {answer}");
    }
}

/// Takes a few KiB at a time, far longer than a server waits for one who takes nothing.
#[tokio::test]
#[expect(clippy::disallowed_methods, reason = "the server's patience is real time")]
async fn a_slow_reader_who_goes_on_gets_the_whole_answer() {
    let world = impatient().await;
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_recv_buffer_size(4 * 1024).expect("a small buffer");
    let mut stream = socket.connect(world.address()).await.expect("connects");
    let asked = b"GET /reference HTTP/1.1\r\nhost: keys.test\r\n\r\n";
    stream.write_all(asked).await.expect("sent");
    let began = Instant::now();
    let mut answer = Vec::new();
    let mut buffer = vec![0; 4 * 1024];
    while !answer.ends_with(b"</html>\n") {
        let read = stream.read(&mut buffer).await.expect("the connection goes on");
        assert!(read > 0, "it ended after {} bytes", answer.len());
        answer.extend_from_slice(&buffer[..read]);
        tokio::time::sleep(Duration::from_millis(40)).await;
    }
    assert!(began.elapsed() > 2 * world.config.limits.idle_timeout, "it was no slow reader");
}

#[tokio::test]
async fn a_body_that_stops_in_the_middle_is_not_waited_for() {
    let world = impatient().await;
    for path in ["/api/v1/api_keys/verify", "/api/v1/apis", "/oauth2/token"] {
        let kind = if path == "/oauth2/token" { "x-www-form-urlencoded" } else { "json" };
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: keys.test\r\ncontent-type: application/{kind}\r\n\
             authorization: Bearer {}\r\ncontent-length: 100\r\n\r\n{{",
            world.token
        );
        // It ends, without an answer that the client could take for one to its whole request.
        assert_eq!(raw(&world, head.as_bytes(), "nothing of the kind").await, "", "{path}");
    }
}

/// A body of which one byte comes and no more.
struct Stuck(Option<Bytes>);

impl Body for Stuck {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut task::Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.take().map_or(Poll::Pending, |byte| Poll::Ready(Some(Ok(Frame::data(byte)))))
    }
}

#[tokio::test]
async fn on_http_2_a_body_that_stops_is_given_up_and_the_others_go_on() {
    let world = impatient().await;
    let stream = TcpStream::connect(world.address()).await.expect("connects");
    let (mut sender, connection) =
        http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.expect("speaks HTTP/2");
    tokio::spawn(connection);
    let request = verification("keys.test", &world.token, "x").map(|_| Stuck(Some("{".into())));
    let answer = sender.send_request(request).await.expect("an answer");
    let (status, body) = status_and_body(answer).await;
    assert_eq!((status, &body["errors"][0]["code"]), (400, &json!("BAD_BODY")));
}

#[tokio::test]
async fn pings_alone_do_not_keep_an_http_2_connection() {
    let world = impatient().await;
    let stream = TcpStream::connect(world.address()).await.expect("connects");
    let (mut sender, connection) = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(Duration::from_millis(50))
        .keep_alive_while_idle(true)
        .handshake(TokioIo::new(stream))
        .await
        .expect("speaks HTTP/2");
    let connection = tokio::spawn(connection);
    let request = verification("keys.test", &world.token, "x");
    let asked = sender.send_request(request).await.expect("an answer");
    assert_eq!(status_and_body(asked).await.0, 200);
    // It ends at all, while the sender is still there.
    let _ = connection.await.expect("no panic");
    assert!(sender.is_closed());
}

#[tokio::test]
async fn one_address_cannot_take_more_than_its_share_of_connections() {
    let mut world = World::start(Engine::Sqlite).await;
    world.stop().await;
    world.config.limits.connections_per_address_max = 3;
    world.start_again().await;
    let mut lines = Vec::new();
    for _ in 0..3 {
        let mut line = Line::to(&world).await;
        assert_eq!(line.verify("keys.test", &world.token, "x").await.0, 200);
        lines.push(line);
    }
    assert_eq!(raw(&world, b"GET /healthz HTTP/1.1\r\nhost: keys.test\r\n\r\n", "}").await, "");
    assert_eq!(lines[0].verify("keys.test", &world.token, "x").await.0, 200, "those there go on");
    drop(lines);
    let asked = "GET /metrics HTTP/1.1\r\nhost: keys.test\r\nauthorization: Bearer";
    let asked = format!("{asked} {}\r\n\r\n", world.token);
    let metrics = loop {
        // Until the server has seen that the others are gone.
        let answer = raw(&world, asked.as_bytes(), "keyward_counts_at_risk 0").await;
        if !answer.is_empty() {
            break answer;
        }
    };
    let refused = metrics.lines().find_map(|line| {
        line.strip_prefix("keyward_connections_refused_total ")?.parse::<u64>().ok()
    });
    assert!(refused.expect("a counter") >= 1, "{metrics}");
}
