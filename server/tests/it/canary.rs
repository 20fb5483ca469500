//! Promise 6, searched for: no secret is anywhere but in the one answer that shows it.
//!
//! The real binary runs with the most verbose log and is asked everything that touches a secret,
//! rightly and wrongly. Then database, counter file, backup, log, metrics and all other answers are
//! searched for each secret, as it is, in hex and in base64.

use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use hyper::Request;
use keyward_core::sha256;
use serde_json::{Value, json};

use crate::world::{Answer, World, on_both_engines, send_to};

/// A key's name, which is kept in plain text: the search must find it.
const KEY_NAME: &str = "a name that is found where keys are kept";

/// Something that is searched. Bytes that are no text are replaced, which no needle minds.
struct Place {
    name: String,
    text: String,
}

impl Place {
    fn new(name: impl Into<String>, bytes: impl AsRef<[u8]>) -> Self {
        Self { name: name.into(), text: String::from_utf8_lossy(bytes.as_ref()).into_owned() }
    }
}

/// The ways in which a secret could be written down. A piece from its middle is enough: its ends
/// are stored on purpose, and a leak can be cut short.
fn needles(secret: &str) -> Vec<String> {
    let piece = &secret[secret.len() / 3..][..16];
    let (mut lower, mut upper) = (String::new(), String::new());
    for byte in piece.bytes() {
        write!(lower, "{byte:02x}").expect("a string");
        write!(upper, "{byte:02X}").expect("a string");
    }
    let mut needles = vec![piece.to_owned(), lower, upper];
    for engine in [&STANDARD_NO_PAD, &URL_SAFE_NO_PAD] {
        // Where a group of three bytes begins is not known; the middle is the same either way.
        for before in 0..3 {
            let text = engine.encode([vec![0; before], piece.as_bytes().to_vec()].concat());
            needles.push(text[4..20].to_owned());
        }
    }
    needles
}

/// Where `secret` is found in `places`.
fn found<'a>(secret: &str, places: &'a [Place]) -> Vec<&'a str> {
    let needles = needles(secret);
    let holds = |text: &str| needles.iter().any(|needle| text.contains(needle));
    places.iter().filter(|place| holds(&place.text)).map(|place| place.name.as_str()).collect()
}

/// Every file under `folder`.
fn files(folder: &Path, places: &mut Vec<Place>) {
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            files(&path, places);
        } else if path.is_file() {
            let bytes = std::fs::read(&path).expect("a file");
            places.push(Place::new(path.display().to_string(), bytes));
        }
    }
}

/// Every row of every table on PostgreSQL, as text; bytes come in hex.
async fn tables(url: &str, places: &mut Vec<Place>) {
    use sqlx::Connection as _;
    let mut c = sqlx::PgConnection::connect(url).await.expect("the server");
    let sql = "select tablename::text from pg_tables where schemaname = 'public'";
    let names: Vec<(String,)> = sqlx::query_as(sql).fetch_all(&mut c).await.expect("tables");
    assert!(names.len() > 15, "{names:?}");
    for (name,) in names {
        let sql = sqlx::AssertSqlSafe(format!("select t::text from {name} t"));
        let rows: Vec<(String,)> = sqlx::query_as(sql).fetch_all(&mut c).await.expect("rows");
        let text: Vec<String> = rows.into_iter().map(|(row,)| row).collect();
        places.push(Place::new(format!("table {name}"), text.join("\n")));
    }
}

/// The binary as a server on the world's store, with everything it logs.
struct Verbose {
    child: Child,
    address: SocketAddr,
    log: std::thread::JoinHandle<Vec<u8>>,
}

/// The binary on the world's store.
fn keyward(world: &World, command: &[&str]) -> Command {
    let mut binary = Command::new(env!("CARGO_BIN_EXE_keyward"));
    binary.args(command).arg("--data").arg(world.folder()).env("KEYWARD_LOG", "trace");
    if let Some(url) = &world.database_url {
        binary.args(["--database", url]);
    }
    binary
}

impl Verbose {
    fn start(world: &World) -> Self {
        let mut child = keyward(world, &["serve", "--listen", "127.0.0.1:0"])
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        let mut log = BufReader::new(child.stderr.take().expect("a pipe"));
        let (serving, waiting) = mpsc::channel();
        let log = std::thread::spawn(move || {
            let mut all = Vec::new();
            loop {
                let began = all.len();
                if log.read_until(b'\n', &mut all).expect("the log") == 0 {
                    return all;
                }
                let line = String::from_utf8_lossy(&all[began..]).into_owned();
                if let Some((_, rest)) = line.split_once("serving at http://") {
                    let address = rest.split_whitespace().next().unwrap_or("").to_owned();
                    // OK to ignore: a second such line would have no listener.
                    let _ = serving.send(address);
                }
            }
        });
        let address = waiting.recv().expect("it serves");
        let address = address.trim_matches(|c: char| !c.is_ascii_digit());
        Self { child, address: address.parse().expect("an address"), log }
    }

    /// Ends the server in order; its whole log.
    fn stop(mut self) -> Vec<u8> {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("it lives");
        assert!(self.child.wait().expect("it ends").success());
        self.log.join().expect("the log")
    }
}

/// Asks the server as its operator, and keeps what it answered.
struct Asker {
    address: SocketAddr,
    token: String,
    answers: Vec<Place>,
}

impl Asker {
    async fn send(&mut self, call: (&str, &str), body: Option<Value>) -> Answer {
        let mut request = Request::builder()
            .method(call.0)
            .uri(format!("/api/v1{}", call.1))
            .header("host", "keys.test")
            .header("authorization", format!("Bearer {}", self.token))
            .header("idempotency-key", "canary")
            .header("user-agent", "canary/1.0");
        if body.is_some() {
            request = request.header("content-type", "application/json");
        }
        let body = body.map(|body| body.to_string()).unwrap_or_default();
        send_to(self.address, request.body(body.into()).expect("a request")).await
    }

    /// A call whose answer must hold no secret.
    async fn ask(&mut self, call: (&str, &str), body: Option<Value>) -> Value {
        let answer = self.send(call, body).await;
        let name =
            format!("answer {} {} to {} {}", self.answers.len(), answer.status, call.0, call.1);
        self.answers.push(Place::new(name, &answer.text));
        self.answers.push(Place::new("headers", format!("{:?}", answer.headers)));
        serde_json::from_str(&answer.text).unwrap_or(Value::Null)
    }

    async fn ask_token(&mut self, id: &str, secret: &str) -> Answer {
        let form = form_urlencoded::Serializer::new(String::new())
            .append_pair("grant_type", "client_credentials")
            .append_pair("client_id", id)
            .append_pair("client_secret", secret)
            .finish();
        let request = Request::post("/oauth2/token")
            .header("host", "keys.test")
            .header("content-type", "application/x-www-form-urlencoded");
        send_to(self.address, request.body(form.into()).expect("a request")).await
    }

    async fn metrics(&self) -> String {
        let request = Request::get("/metrics")
            .header("host", "keys.test")
            .header("authorization", format!("Bearer {}", self.token));
        let request = request.body(Default::default()).expect("a request");
        send_to(self.address, request).await.text
    }

    /// Puts `secret` wherever a caller could put one by mistake.
    async fn misplace(&mut self, secret: &str) {
        let value = json!(secret);
        for path in ["/api_keys", "/apis", "/applications", "/user", "/organization"] {
            for field in
                ["name", "api_id", "user_id", "org_code", "audience", "code", "type", secret]
            {
                let mut body = json!({ field: value });
                body["unknown"] = value.clone();
                self.ask(("POST", path), Some(body)).await;
            }
        }
        for path in [
            format!("/api_keys/{secret}"),
            format!("/apis/{secret}"),
            format!("/organizations/{secret}/users/{secret}"),
            format!("/{secret}"),
            format!("/user?id={secret}"),
            format!("/api_keys?{secret}={secret}"),
            format!("/users?next_token={secret}"),
        ] {
            self.ask(("GET", &path), None).await;
            self.ask(("DELETE", &path), None).await;
        }
        for question in [
            json!({ "api_key": secret, "ip": secret }),
            json!({ "api_key": secret, "user_id": secret, "scopes": [secret] }),
            json!({ "api_key": format!("{secret}0") }),
            json!({ "api_key": [secret] }),
            json!(secret),
        ] {
            self.ask(("POST", "/api_keys/verify"), Some(question.clone())).await;
            let batch = json!({ "verifications": [question] });
            self.ask(("POST", "/api_keys/verify_batch"), Some(batch)).await;
        }
        let answer = self.ask_token(secret, secret).await;
        self.answers.push(Place::new("a failed sign-in", answer.text));
    }
}

#[test]
fn the_search_finds_a_secret_however_it_is_written() {
    let secret = "k_live_0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijkl";
    let hex = |text: &str| text.bytes().map(|byte| format!("{byte:02x}")).collect::<String>();
    for (what, written) in [
        ("raw", format!("x{secret}y")),
        ("hex", hex(&format!("x{secret}y"))),
        ("HEX", hex(secret).to_uppercase()),
        ("base64", STANDARD_NO_PAD.encode(secret)),
        ("base64, one byte later", STANDARD_NO_PAD.encode(format!("x{secret}y"))),
        ("base64, two bytes later", URL_SAFE_NO_PAD.encode(format!("xy{secret}"))),
        ("cut short", secret[..40].to_owned()),
    ] {
        let places = [Place::new("here", written)];
        assert_eq!(found(secret, &places), ["here"], "{what}");
    }
    let other = secret.replace("0123", "3210").replace("KLMN", "NMLK");
    assert!(found(secret, &[Place::new("here", other)]).is_empty());
}

/// Does everything that a secret is needed for; the secrets, each with a name for people.
async fn exercise(world: &World, asker: &mut Asker) -> Vec<(&'static str, String)> {
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    let token = asker.ask_token(&world.client_id, &world.client_secret).await.expect(200);
    asker.token = text(&token["access_token"]);
    let signature = asker.token.rsplit('.').next().expect("one").to_owned();
    let mut secrets = vec![("client", world.client_secret.clone()), ("token's", signature)];

    let api = json!({ "name": "Profiles", "audience": "https://profiles.example.com" });
    let api = asker.ask(("POST", "/apis"), Some(api)).await["api"]["id"].take();
    let key = json!({ "name": KEY_NAME, "api_id": api, "user_id": "kp_1" });
    let issued = asker.send(("POST", "/api_keys"), Some(key.clone())).await.expect(201);
    let issued_secret = text(&issued["api_key"]["key"]);
    // The same idempotency key: the answer must be shown no second time.
    asker.ask(("POST", "/api_keys"), Some(key)).await;
    asker.ask(("POST", "/api_keys/verify"), Some(json!({ "api_key": issued_secret }))).await;
    let path = format!("/api_keys/{}", text(&issued["api_key"]["id"]));
    let rotated = asker.send(("PUT", &path), None).await.expect(201);
    secrets.push(("issued", issued_secret));
    secrets.push(("rotated", text(&rotated["api_key"]["key"])));
    let legacy = "legacy-QmFzZTY0IGlzIG5vdCBlbmNyeXB0aW9u".to_owned();
    let hash: String =
        sha256(legacy.as_bytes()).bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    let import = json!({ "name": "l", "api_id": api, "user_id": "kp_1", "hash": hash });
    asker.ask(("POST", "/api_keys/import"), Some(json!({ "keys": [import] }))).await;
    secrets.push(("imported", legacy));
    let application = json!({ "name": "second", "type": "m2m" });
    let application = asker.send(("POST", "/applications"), Some(application)).await;
    let application = application.expect(201)["application"].take();
    let secret_path = format!("/applications/{}/secret", text(&application["id"]));
    let again = asker.send(("POST", &secret_path), None).await.expect(201);
    secrets.push(("second client's", text(&application["client_secret"])));
    secrets.push(("second client's next", text(&again["application"]["client_secret"])));
    for (_, secret) in &secrets {
        asker.ask(("POST", "/api_keys/verify"), Some(json!({ "api_key": secret }))).await;
        asker.misplace(secret).await;
    }
    for path in [&path, "/api_keys", "/applications", "/users"] {
        asker.ask(("GET", path), None).await;
    }
    asker.ask(("DELETE", &path), None).await;
    secrets
}

on_both_engines! {
    async fn a_secret_is_in_no_file_no_table_no_log_no_metric_and_no_second_answer(world: World) {
        let mut world = world;
        world.stop().await;
        let server = Verbose::start(&world);
        let mut asker =
            Asker { address: server.address, token: String::new(), answers: Vec::new() };
        let secrets = exercise(&world, &mut asker).await;
        let metrics = asker.metrics().await;
        assert!(metrics.contains("keyward_verifications_total{verdict=\"API_KEY_VERIFIED\"} 3"));
        let mut places = asker.answers;
        places.push(Place::new("metrics", metrics));

        let backup = tempfile::tempdir().expect("a folder");
        let destination = backup.path().join("backup");
        let made = keyward(&world, &["backup"]).arg(&destination).output().expect("runs");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        places.push(Place::new("the backup's log", made.stderr));
        // Once while the server runs, and once after its last words.
        files(world.folder(), &mut places);
        let log = server.stop();
        assert!(log.len() > 10_000, "the log is verbose");
        places.push(Place::new("log", log));
        files(world.folder(), &mut places);
        files(backup.path(), &mut places);
        if let Some(url) = &world.database_url {
            tables(url, &mut places).await;
        }
        // What is there to be found is found: the key's name, where keys are kept.
        let name = found(KEY_NAME, &places);
        assert!(name.iter().any(|place| place.contains("backup")), "{name:?}");
        for (what, secret) in &secrets {
            assert_eq!(found(secret, &places), [""; 0], "the {what} secret");
        }
    }
}
