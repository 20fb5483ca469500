//! What Keyward promises of its processes, tried with the real binary: that counts survive a kill,
//! that a second process is followed, what happens when a disk or a database goes away.
//!
//! [`Site`] is an initialised store with the credentials of its first application; [`Process`] is a
//! server on it, and ends with the value. `wire` speaks to servers. Nothing here waits for a length
//! of time: [`until`] asks again until something is so, and gives up loudly.

#![expect(clippy::disallowed_methods, reason = "processes live in the time of the machine")]
#![expect(clippy::indexing_slicing, reason = "a test says with a panic what went wrong")]

use std::fs::File;
use std::io::Write as _;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::world::{Engine, fresh_postgres, fresh_postgres_with};
use room::Room;
use wire::{Reply, Wire};

mod cli;
mod counting;
mod database;
mod folder;
mod following;
mod init;
mod lease;
mod lifecycle;
mod nodes;
mod privacy;
mod room;
mod tls;
mod wire;

/// The binary under test.
const KEYWARD: &str = env!("CARGO_BIN_EXE_keyward");
/// The host name that the environment `default` answers under.
const HOST: &str = "keys.test";
/// How long anything may take on a slow machine before a test gives up.
const PATIENCE: Duration = Duration::from_secs(60);

/// Makes a test of `$name` on each engine.
macro_rules! on_each_engine {
    ($(#[$doc:meta])* fn $name:ident($engine:ident) $body:block) => {
        $(#[$doc])*
        mod $name {
            use super::*;

            fn run($engine: Engine) $body

            #[test]
            fn sqlite() {
                run(Engine::Sqlite);
            }

            #[test]
            fn postgres() {
                run(Engine::Postgres);
            }
        }
    };
}
use on_each_engine;

/// Runs a future of the database's client to its end.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(future)
}

/// Asks again until there is an answer; `what` is what a failure is called.
#[track_caller]
fn until<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(began.elapsed() < PATIENCE, "waited too long until {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The binary with no settings but those that a test gives.
fn keyward() -> Command {
    alone(KEYWARD)
}

/// A program with nothing of this process's environment.
fn alone(program: &str) -> Command {
    let mut command = Command::new(program);
    command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").stdin(Stdio::null());
    command
}

/// An address on loopback that nobody uses, below the range from which the kernel takes ports for
/// outgoing connections, so that it is still free when a server comes back to it.
fn free_address() -> SocketAddr {
    /// Tests are threads of one process or processes of their own.
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let first = std::process::id().wrapping_mul(37);
    let bound = until("a port is free", || {
        let offset = first.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % 12_000;
        let port = u16::try_from(18_000 + offset).expect("below 30000");
        TcpListener::bind(("127.0.0.1", port)).ok()
    });
    bound.local_addr().expect("an address")
}

/// A store that `keyward init` made, and what its operator knows.
struct Site {
    folder: PathBuf,
    database: Option<String>,
    client_id: String,
    client_secret: String,
    address: SocketAddr,
    /// The disk of a test's own that the folder lies on, if it does.
    room: Option<Room>,
    /// Kept so that the folder lives as long as the test.
    parent: tempfile::TempDir,
}

/// What a command did.
struct Ran {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Ran {
    fn of(output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
        Self { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
    }

    /// The one JSON document that it printed, after succeeding.
    #[track_caller]
    fn json(&self) -> Value {
        assert_eq!(self.code, Some(0), "{}", self.err);
        serde_json::from_str(&self.out).expect("one JSON document on standard output")
    }

    /// The code of the failure that it told on standard error, in the form for programs.
    #[track_caller]
    fn failure(&self) -> String {
        assert_eq!((self.code, self.out.as_str()), (Some(1), ""), "{}", self.err);
        let told = self.err.lines().last().expect("a failure is told");
        let told: Value = serde_json::from_str(told).expect("JSON in the last line");
        told["error"]["code"].as_str().expect("a code").to_owned()
    }
}

/// A key as its holder knows it.
#[derive(Clone, Debug)]
struct Key {
    id: String,
    secret: String,
}

impl Site {
    /// Makes a store on a fresh database.
    fn new(engine: Engine) -> Self {
        let mut site = Self::empty_on(engine);
        site.init();
        site
    }

    /// A fresh database with nothing in it yet.
    fn empty_on(engine: Engine) -> Self {
        Self::empty((engine == Engine::Postgres).then(|| block_on(fresh_postgres())))
    }

    fn with_database(database: Option<String>) -> Self {
        let mut site = Self::empty(database);
        site.init();
        site
    }

    /// A folder and a database with nothing in them yet.
    fn empty(database: Option<String>) -> Self {
        let parent = tempfile::tempdir().expect("a folder");
        Self {
            folder: parent.path().join("data"),
            database,
            client_id: String::new(),
            client_secret: String::new(),
            address: free_address(),
            room: None,
            parent,
        }
    }

    /// Runs `keyward init`.
    fn init(&mut self) {
        let made = self.json(&["init", "--public-url", &format!("http://{HOST}")]);
        self.client_id = made["client_id"].as_str().expect("an id").to_owned();
        self.client_secret = made["client_secret"].as_str().expect("a secret").to_owned();
    }

    /// A command on this store.
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.room.as_ref().map_or_else(keyward, Room::keyward);
        command.args(arguments).arg("--data").arg(&self.folder);
        if let Some(database) = &self.database {
            command.args(["--database", database]);
        }
        command
    }

    /// `keyward serve` on this store.
    fn serve_command(&self, flags: &[&str]) -> Command {
        let mut command = self.command(&["serve", "--listen", &self.address.to_string()]);
        command.args(flags);
        command
    }

    /// Runs a command to its end.
    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("the binary runs")
    }

    /// Runs a command in the form for programs.
    fn ran(&self, arguments: &[&str]) -> Ran {
        self.ran_with(arguments, "")
    }

    /// The same, with something on its standard input.
    fn ran_with(&self, arguments: &[&str], input: &str) -> Ran {
        until("the command has done it", || {
            let mut command = self.command(arguments);
            command.arg("--json").stdin(Stdio::piped());
            command.stdout(Stdio::piped()).stderr(Stdio::piped());
            let mut child = command.spawn().expect("the binary runs");
            // OK to ignore: a command that reads no input may have ended.
            let _ = child.stdin.take().expect("a pipe").write_all(input.as_bytes());
            let ran = Ran::of(child.wait_with_output().expect("the binary ends"));
            // What PostgreSQL is told to do to a client that a busy machine stops for a second in
            // the middle of a change.
            (!ran.err.contains("nothing was changed, try again")).then_some(ran)
        })
    }

    /// Runs a command that must succeed, and returns what it printed.
    #[track_caller]
    fn json(&self, arguments: &[&str]) -> Value {
        self.ran(arguments).json()
    }

    /// Starts a server and waits until it is ready.
    fn serve(&self) -> Process {
        self.serve_with(&[])
    }

    /// Starts a server with further flags and waits until it is ready.
    fn serve_with(&self, flags: &[&str]) -> Process {
        let log = self.parent.path().join("log");
        let mut process = Process::spawn(self.serve_command(flags), self.address, &log);
        process.wait_until_ready();
        process
    }

    /// A management token with every scope.
    fn token(&self, process: &Process) -> String {
        let form = form_urlencoded::Serializer::new(String::new())
            .append_pair("grant_type", "client_credentials")
            .append_pair("client_id", &self.client_id)
            .append_pair("client_secret", &self.client_secret)
            .append_pair("audience", &format!("http://{HOST}/api"))
            .finish();
        let reply = process.wire().form("/oauth2/token", &form).expect("an answer");
        reply.expect(200)["access_token"].as_str().expect("a token").to_owned()
    }

    /// An API with the scope `read:x`, made by the command line.
    fn api(&self) -> String {
        let made = self.json(&["api", "create", "https://orders.example", "--scope", "read:x"]);
        made["id"].as_str().expect("an id").to_owned()
    }

    /// A key of `user`, issued by the command line.
    fn key(&self, user: &str) -> Key {
        Key::of(&self.json(&["key", "issue", "a key", "--user", user, "--scope", "read:x"]))
    }

    /// The first column of the first row of a query.
    fn number(&self, sql: &'static str) -> i64 {
        self.column(sql).first().copied().expect("a row")
    }

    /// The first column of every row of a query.
    fn column<T>(&self, sql: &'static str) -> Vec<T>
    where
        T: Send + Unpin,
        (T,): for<'r> sqlx::FromRow<'r, sqlx::postgres::PgRow>,
        (T,): for<'r> sqlx::FromRow<'r, sqlx::sqlite::SqliteRow>,
    {
        use sqlx::{Connection, PgConnection, SqliteConnection};
        let rows: Vec<(T,)> = block_on(async {
            if let Some(url) = &self.database {
                let mut conn = PgConnection::connect(url).await?;
                let rows = sqlx::query_as(sql).fetch_all(&mut conn).await;
                conn.close().await?;
                rows
            } else {
                let path = format!("sqlite:{}", self.folder.join("keyward.db").display());
                let mut conn = SqliteConnection::connect(&path).await?;
                let rows = sqlx::query_as(sql).fetch_all(&mut conn).await;
                // Closed here, so that its end changes no file later on.
                conn.close().await?;
                rows
            }
        })
        .expect("rows");
        rows.into_iter().map(|(value,)| value).collect()
    }
}

impl Key {
    /// The key that `keyward key issue` or `rotate` printed.
    fn of(printed: &Value) -> Self {
        let text = |name: &str| printed[name].as_str().expect("a text").to_owned();
        Self { id: text("id"), secret: text("key") }
    }
}

/// Verifies a key so many times; the count in the last answer.
fn verify_times(process: &Process, token: &str, key: &Key, times: u64) -> u64 {
    let mut wire = process.wire();
    let mut count = 0;
    for _ in 0..times {
        let body = wire.verify(token, &key.secret).expect("an answer").expect(200);
        count = body["verification_count"].as_u64().expect("a count");
    }
    count
}

/// A running `keyward serve`.
struct Process {
    child: Child,
    address: SocketAddr,
    log: PathBuf,
}

impl Process {
    /// Starts `command`, with what it says on both outputs going to the end of `log`.
    fn spawn(mut command: Command, address: SocketAddr, log: &Path) -> Self {
        let file = File::options().create(true).append(true).open(log).expect("a log");
        command.stdout(file.try_clone().expect("a log")).stderr(file);
        let child = command.spawn().expect("the binary runs");
        Self { child, address, log: log.to_path_buf() }
    }

    /// Waits until the server can answer a verification.
    #[track_caller]
    fn wait_until_ready(&mut self) {
        until("the server is ready", || {
            if let Some(status) = self.child.try_wait().expect("a child") {
                panic!("the server ended with {status}: {}", self.log());
            }
            let reply = Wire::connect(self.address).ok()?.ask("GET", "/readyz", None, "").ok()?;
            (reply.status == 200).then_some(())
        });
    }

    /// A connection of its own.
    fn wire(&self) -> Wire {
        Wire::connect(self.address).expect("connects")
    }

    /// Verifies `secret` over a connection of its own.
    fn verify(&self, token: &str, secret: &str) -> Reply {
        self.wire().verify(token, secret).expect("an answer")
    }

    /// What the server said so far, and the servers on the same store before it.
    fn log(&self) -> String {
        std::fs::read_to_string(&self.log).expect("a log")
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).expect("the process is there");
    }

    /// Kills the process where it stands.
    fn kill_dash_nine(mut self) {
        self.signal(Signal::KILL);
        let status = self.child.wait().expect("a child");
        assert_eq!(status.signal(), Some(9), "it ended before it was killed: {}", self.log());
    }

    /// Ends the process in order.
    #[track_caller]
    fn terminate(mut self) {
        self.signal(Signal::TERM);
        let status = self.wait();
        assert_eq!(status.code(), Some(0), "{}", self.log());
    }

    /// Waits until the process has ended.
    #[track_caller]
    fn wait(&mut self) -> ExitStatus {
        until("the process has ended", || self.child.try_wait().expect("a child"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // OK to ignore: it may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
