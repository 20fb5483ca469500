//! A server of a test's own.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use keyward::App;
use keyward::clock::{Clock, Entropy};
use keyward::config::Config;
use keyward::serve::Server;
use serde_json::{Value, json};
use tokio::net::TcpStream;

/// 2026-11-22T21:24:03.512Z, where every test's clock stands at first, in µs since the epoch.
pub(crate) const START_US: i64 = 1_795_382_643_512_000;

/// Which database a test runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Engine {
    /// The embedded default.
    Sqlite,
    /// A fresh database on the server that `KEYWARD_TEST_POSTGRES` names.
    Postgres,
}

/// Makes a test of `$name` on each engine. The body gets a fresh `World`.
macro_rules! on_both_engines {
    ($(#[$doc:meta])* async fn $name:ident($world:ident: World $(,)?) $body:block) => {
        $(#[$doc])*
        async fn $name($world: crate::world::World) $body

        mod $name {
            use crate::world::{Engine, World};

            #[tokio::test]
            async fn sqlite() {
                super::$name(World::start(Engine::Sqlite).await).await;
            }

            #[tokio::test]
            async fn postgres() {
                super::$name(World::start(Engine::Postgres).await).await;
            }
        }
    };
}
pub(crate) use on_both_engines;

/// A running server, and what its operator knows.
pub(crate) struct World {
    pub(crate) clock: Clock,
    pub(crate) config: Config,
    pub(crate) client_id: String,
    pub(crate) client_secret: String,
    /// A management token with every scope.
    pub(crate) token: String,
    /// The database's address, on PostgreSQL.
    pub(crate) database_url: Option<String>,
    server: Option<Server>,
    /// Kept so that the folder lives as long as the test.
    _folder: tempfile::TempDir,
    seed: u64,
}

/// An answer as a test looks at it.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: hyper::HeaderMap,
    pub(crate) text: String,
}

impl Answer {
    /// The body as JSON.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text)
            .unwrap_or_else(|error| panic!("no JSON ({error}): {}", self.text))
    }

    /// The body, which must come with this status.
    #[track_caller]
    pub(crate) fn expect(self, status: u16) -> Value {
        assert_eq!(self.status.as_u16(), status, "{}", self.text);
        self.json()
    }

    /// The error that the answer consists of, which must come with this status.
    #[track_caller]
    pub(crate) fn refused(self, status: u16) -> (String, String) {
        let body = self.expect(status);
        let errors = &body["errors"];
        let one = if status == 404 { errors } else { &errors[0] };
        let text = |name: &str| one[name].as_str().expect("a text").to_owned();
        (text("code"), text("message"))
    }

    /// The code of the first error.
    pub(crate) fn error_code(&self) -> String {
        let body = self.json();
        let errors = &body["errors"];
        let one = errors.as_array().and_then(|all| all.first()).unwrap_or(errors);
        one["code"].as_str().unwrap_or("").to_owned()
    }
}

impl World {
    /// Starts a server on a fresh store, with an environment `default` and its first application.
    pub(crate) async fn start(engine: Engine) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let data = folder.path().join("data");
        let mut flags = vec![
            ("data", data.to_string_lossy().into_owned()),
            ("listen", "127.0.0.1:0".to_owned()),
            ("public_url", "http://keys.test".to_owned()),
        ];
        let mut database_url = None;
        if engine == Engine::Postgres {
            let url = fresh_postgres().await;
            flags.push(("database", url.clone()));
            database_url = Some(url);
        }
        let config = Config::isolated(flags).expect("good settings");
        let clock = Clock::manual(START_US);
        let founded = keyward::cli::initialise_if_empty(&config, clock.clone(), Entropy::seeded(1))
            .await
            .expect("initialises")
            .expect("was empty");
        let mut world = Self {
            clock,
            config,
            client_id: founded.app.to_string(),
            client_secret: founded.client_secret.to_string(),
            token: String::new(),
            database_url,
            server: None,
            _folder: folder,
            seed: 2,
        };
        world.start_again().await;
        world.token = world.token_for(&[]).await;
        world
    }

    /// Starts the server on the store as it is.
    pub(crate) async fn start_again(&mut self) {
        let entropy = Entropy::seeded(self.seed);
        self.seed += 1;
        let server = Server::start(&self.config, self.clock.clone(), entropy).await;
        self.server = Some(server.expect("the server starts"));
    }

    /// Stops the server in order.
    pub(crate) async fn stop(&mut self) {
        self.server.take().expect("a running server").stop().await;
    }

    fn server(&self) -> &Server {
        self.server.as_ref().expect("a running server")
    }

    /// The server's parts.
    pub(crate) fn app(&self) -> &Arc<App> {
        &self.server().app
    }

    /// Where the server listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.server().address
    }

    /// The data folder.
    pub(crate) fn folder(&self) -> &Path {
        &self.config.folder
    }

    /// The database file, on SQLite.
    pub(crate) fn database_file(&self) -> PathBuf {
        self.config.folder.join("keyward.db")
    }

    /// Moves the clock.
    pub(crate) fn advance_seconds(&self, seconds: i64) {
        self.clock.advance(seconds * 1_000_000);
    }

    /// Moves the clock and waits until the server has renewed its lease at the new time.
    pub(crate) async fn pass_seconds(&self, seconds: i64) {
        self.advance_seconds(seconds);
        while !self.app().is_ready() {
            tokio::task::yield_now().await;
        }
    }

    /// Takes a fresh token, after the one before has expired.
    pub(crate) async fn sign_in(&mut self) {
        self.token = self.token_for(&[]).await;
    }

    /// What the database itself answers to `sql`.
    pub(crate) async fn rows<T>(&self, sql: &'static str) -> Vec<T>
    where
        T: for<'r> sqlx::FromRow<'r, sqlx::sqlite::SqliteRow>,
        T: for<'r> sqlx::FromRow<'r, sqlx::postgres::PgRow>,
        T: Send + Unpin,
    {
        use sqlx::Connection;
        match &self.database_url {
            None => {
                let options =
                    sqlx::sqlite::SqliteConnectOptions::new().filename(self.database_file());
                let mut c = sqlx::SqliteConnection::connect_with(&options).await.expect("the file");
                sqlx::query_as(sql).fetch_all(&mut c).await.expect("rows")
            }
            Some(url) => {
                let mut c = sqlx::PgConnection::connect(url).await.expect("the server");
                sqlx::query_as(sql).fetch_all(&mut c).await.expect("rows")
            }
        }
    }

    /// A token of the first application with these scopes, or with all of them.
    pub(crate) async fn token_for(&self, scopes: &[&str]) -> String {
        let body = self.ask_token(&self.client_id, &self.client_secret, scopes).await.expect(200);
        body["access_token"].as_str().expect("a token").to_owned()
    }

    /// Asks for a token.
    pub(crate) async fn ask_token(&self, id: &str, secret: &str, scopes: &[&str]) -> Answer {
        let form = form_urlencoded::Serializer::new(String::new())
            .append_pair("grant_type", "client_credentials")
            .append_pair("client_id", id)
            .append_pair("client_secret", secret)
            .append_pair("audience", "http://keys.test/api")
            .append_pair("scope", &scopes.join(" "))
            .finish();
        let request = Request::post("/oauth2/token")
            .header("host", "keys.test")
            .header("content-type", "application/x-www-form-urlencoded")
            .body(Full::from(form));
        self.send(request.expect("a request")).await
    }

    /// Sends a request as it is, over a connection of its own.
    pub(crate) async fn send(&self, request: Request<Full<Bytes>>) -> Answer {
        send_to(self.address(), request).await
    }

    /// A management request with the world's token, and a JSON body if one is given.
    pub(crate) async fn call(&self, method: &str, path: &str, body: Option<Value>) -> Answer {
        self.call_as(&self.token, method, path, body).await
    }

    /// A management request with `token`.
    pub(crate) async fn call_as(
        &self,
        token: &str,
        method: &str,
        path: &str,
        body: Option<Value>,
    ) -> Answer {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("/api/v1{path}"))
            .header("host", "keys.test")
            .header("authorization", format!("Bearer {token}"));
        if body.is_some() {
            request = request.header("content-type", "application/json");
        }
        let body = body.map(|body| body.to_string()).unwrap_or_default();
        self.send(request.body(Full::from(body)).expect("a request")).await
    }

    /// A management request with a body as it is.
    pub(crate) async fn raw(
        &self,
        method: &str,
        path: &str,
        content_type: &str,
        body: impl Into<Bytes>,
    ) -> Answer {
        let request = Request::builder()
            .method(method)
            .uri(format!("/api/v1{path}"))
            .header("host", "keys.test")
            .header("authorization", format!("Bearer {}", self.token))
            .header("content-type", content_type);
        self.send(request.body(Full::new(body.into())).expect("a request")).await
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.call("GET", path, None).await
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> Answer {
        self.call("POST", path, Some(body)).await
    }

    pub(crate) async fn patch(&self, path: &str, body: Value) -> Answer {
        self.call("PATCH", path, Some(body)).await
    }

    pub(crate) async fn put(&self, path: &str) -> Answer {
        self.call("PUT", path, None).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Answer {
        self.call("DELETE", path, None).await
    }

    /// Verifies a secret; the whole answer, which is always 200.
    pub(crate) async fn verify(&self, secret: &str) -> Value {
        self.post("/api_keys/verify", json!({ "api_key": secret })).await.expect(200)
    }

    /// An API with these scopes; its id.
    pub(crate) async fn api(&self, name: &str, scopes: &[&str]) -> String {
        let audience = format!("https://{name}.example.com");
        let body = self.post("/apis", json!({ "name": name, "audience": audience })).await;
        let api = body.expect(200)["api"]["id"].as_str().expect("an id").to_owned();
        for scope in scopes {
            let path = format!("/apis/{api}/scopes");
            self.post(&path, json!({ "key": scope })).await.expect(200);
        }
        api
    }

    /// A key of user `user` on `api` with these scopes: its id and its secret.
    pub(crate) async fn user_key(
        &self,
        api: &str,
        user: &str,
        scopes: &[&str],
    ) -> (String, String) {
        self.key(json!({
            "name": "a key", "api_id": api, "type": "user", "user_id": user, "scope_ids": scopes,
        }))
        .await
    }

    /// A key as `body` asks for it: its id and its secret.
    pub(crate) async fn key(&self, body: Value) -> (String, String) {
        let body = self.post("/api_keys", body).await.expect(201);
        let text = |name: &str| body["api_key"][name].as_str().expect("a text").to_owned();
        (text("id"), text("key"))
    }
}

/// Sends a request over a connection of its own.
pub(crate) async fn send_to(address: SocketAddr, request: Request<Full<Bytes>>) -> Answer {
    let stream = TcpStream::connect(address).await.expect("connects");
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("speaks HTTP");
    let connection = tokio::spawn(connection);
    let response = sender.send_request(request).await.expect("an answer");
    let (head, body) = response.into_parts();
    let body = body.collect().await.expect("a whole body").to_bytes();
    drop(sender);
    // OK to ignore how the connection ended: the answer is here.
    let _ = connection.await;
    Answer {
        status: head.status,
        headers: head.headers,
        text: String::from_utf8(body.to_vec()).expect("UTF-8"),
    }
}

/// A fresh database on the scratch server of the test command.
pub(crate) async fn fresh_postgres() -> String {
    fresh_postgres_with("").await
}

/// The same, made with `options` of `create database`.
pub(crate) async fn fresh_postgres_with(options: &str) -> String {
    #[expect(clippy::disallowed_methods, reason = "the test command says where its server is")]
    let server = std::env::var("KEYWARD_TEST_POSTGRES").expect(
        "tests on PostgreSQL need KEYWARD_TEST_POSTGRES, a postgres:// URL of a scratch server; \
         run them by ./test, which starts one",
    );
    use sqlx::Connection;
    let mut connection = sqlx::PgConnection::connect(&server).await.expect("a scratch server");
    let name = format!("t{}", Entropy::system().alphanumeric::<20>().to_lowercase());
    sqlx::raw_sql(sqlx::AssertSqlSafe(format!("create database {name} {options}")))
        .execute(&mut connection)
        .await
        .expect("a fresh database");
    let (base, _) = server.rsplit_once('/').expect("a URL with a database");
    format!("{base}/{name}")
}
