//! The contract with the terminal, tried with the real binary: what goes to standard output, exit
//! codes, and a second process on the store of a running server.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;

use crate::world::{Engine, fresh_postgres};

/// A data folder, its database, and perhaps a server on it, all by the binary.
struct Shell {
    folder: tempfile::TempDir,
    database: Option<String>,
    server: Option<Child>,
}

impl Drop for Shell {
    fn drop(&mut self) {
        if let Some(mut server) = self.server.take() {
            // OK to ignore: a server that ended by itself cannot be killed.
            let _ = server.kill();
            let _ = server.wait();
        }
    }
}

/// What a command did.
struct Ran {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Ran {
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

impl Shell {
    async fn new(engine: Engine) -> Self {
        let database = match engine {
            Engine::Sqlite => None,
            Engine::Postgres => Some(fresh_postgres().await),
        };
        Self { folder: tempfile::tempdir().expect("a folder"), database, server: None }
    }

    /// A store with an API and its scopes.
    async fn initialised(engine: Engine) -> Self {
        let shell = Self::new(engine).await;
        shell.run(&["init"]).json();
        let api = ["api", "create", "https://api.test", "--scope", "read", "--scope", "write"];
        shell.run(&api).json();
        shell
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_string_lossy().into_owned()
    }

    /// The binary, on this store and with nothing of the test's own environment.
    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_keyward"));
        command.env_clear().args(words).arg("--data").arg(self.data());
        if let Some(database) = &self.database {
            command.args(["--database", database]);
        }
        command
    }

    /// Runs a command with `--json`.
    fn run(&self, words: &[&str]) -> Ran {
        self.run_with(words, "")
    }

    fn run_with(&self, words: &[&str], input: &str) -> Ran {
        let mut command = self.command(words);
        command.arg("--json").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the binary starts");
        let mut stdin = child.stdin.take().expect("a pipe");
        // OK to ignore: a command that reads no input may have ended.
        let _ = stdin.write_all(input.as_bytes());
        drop(stdin);
        ran(child.wait_with_output().expect("the binary ends"))
    }

    /// Starts a server on a free port and waits until it says that it serves; its address.
    fn serve(&mut self, words: &[&str]) -> String {
        let mut command = self.command(&["serve", "--listen", "127.0.0.1:0"]);
        command.args(words).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the binary starts");
        let mut lines = BufReader::new(child.stderr.take().expect("a pipe")).lines();
        let address = lines.find_map(|line| {
            let line = line.expect("readable");
            let rest = line.split_once("serving at http://")?.1;
            rest.split(|c: char| c != '.' && c != ':' && !c.is_ascii_digit())
                .next()
                .map(str::to_owned)
        });
        // The log goes on, and nobody may block the server by not reading it.
        std::thread::spawn(move || lines.for_each(drop));
        self.server = Some(child);
        address.expect("the server starts")
    }

    /// Ends the server with a signal; its exit code, unless the signal was what ended it.
    fn end(&mut self, signal: rustix::process::Signal) -> Option<i32> {
        let mut server = self.server.take().expect("a server");
        let id = i32::try_from(server.id()).expect("a process id");
        let id = rustix::process::Pid::from_raw(id).expect("a process id");
        rustix::process::kill_process(id, signal).expect("the server is there");
        server.wait().expect("it ends").code()
    }

    /// Issues a key; its id and its secret.
    fn issue(&self, words: &[&str]) -> (String, String) {
        let key = self.run(&[&["key", "issue", "a key"], words].concat()).json();
        let text = |name: &str| key[name].as_str().expect("text").to_owned();
        (text("id"), text("key"))
    }

    /// The code that verifying `secret` comes to.
    fn verify(&self, secret: &str) -> String {
        let verdict = self.verdict(secret);
        verdict["code"].as_str().expect("a code").to_owned()
    }

    fn verdict(&self, secret: &str) -> Value {
        let ran = self.run_with(&["verify"], &format!("{secret}\n"));
        let verdict: Value = serde_json::from_str(&ran.out).expect("a verdict");
        let expected = if verdict["is_valid"] == true { 0 } else { 1 };
        assert_eq!(ran.code, Some(expected), "{}", ran.err);
        verdict
    }
}

fn ran(output: Output) -> Ran {
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    Ran { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
}

/// Makes a test of `$name` on each engine.
macro_rules! on_both {
    ($(#[$doc:meta])* async fn $name:ident($engine:ident) $body:block) => {
        $(#[$doc])*
        mod $name {
            use super::*;

            async fn run($engine: Engine) $body

            #[tokio::test]
            async fn sqlite() {
                run(Engine::Sqlite).await;
            }

            #[tokio::test]
            async fn postgres() {
                run(Engine::Postgres).await;
            }
        }
    };
}

on_both! {
    async fn init_prints_one_object_and_refuses_an_initialised_store(engine) {
        let shell = Shell::new(engine).await;
        std::fs::create_dir(shell.data()).expect("an empty folder is fine");
        let made = shell.run(&["init", "--public-url", "https://keys.test/"]).json();
        assert_eq!(made["issuer"], "https://keys.test");
        let secret = made["client_secret"].as_str().expect("a secret");
        assert_eq!((secret.len(), secret.chars().all(|c| c.is_ascii_alphanumeric())), (48, true));
        assert_eq!(made["client_id"].as_str().map(str::len), Some(32));
        assert_eq!(shell.run(&["init"]).failure(), "ALREADY_INITIALISED");
    }
}

on_both! {
    async fn serve_initialises_an_empty_store_and_ends_cleanly(engine) {
        let mut shell = Shell::new(engine).await;
        let address = shell.serve(&[]);
        let environments = shell.run(&["env", "list"]).json();
        assert_eq!(environments["environments"][0]["public_url"], "http://127.0.0.1:0");
        assert_eq!(shell.end(rustix::process::Signal::TERM), Some(0));
        // The lock is free and the port can be bound again, at once.
        std::net::TcpListener::bind(&address).expect("the port is free");
        shell.serve(&["--public-url", "https://other.test"]);
        let environments = shell.run(&["env", "list"]).json();
        assert_eq!(environments["environments"][0]["public_url"], "https://other.test");
    }
}

on_both! {
    async fn a_change_by_the_command_line_is_in_force_when_it_returns(engine) {
        let mut shell = Shell::initialised(engine).await;
        let (id, secret) = shell.issue(&["--user", "alice", "--scope", "read"]);
        shell.serve(&[]);
        let verdict = shell.verdict(&secret);
        assert_eq!(verdict["user_id"], "alice");
        assert_eq!(verdict["verification_count"], 1);
        assert_eq!(shell.run(&["key", "show", &id]).json()["verification_count"], 1);
        shell.run(&["key", "disable", &id]).json();
        assert_eq!(shell.verify(&secret), "API_KEY_INACTIVE");
        shell.run(&["key", "enable", &id]).json();
        shell.run(&["user", "suspend", "alice"]).json();
        assert_eq!(shell.verify(&secret), "API_KEY_OWNER_SUSPENDED");
        shell.run(&["user", "restore", "alice"]).json();
        let rotated = shell.run(&["key", "rotate", &id]).json();
        assert_eq!(shell.verify(&secret), "API_KEY_ROTATED");
        let secret = rotated["key"].as_str().expect("a secret");
        assert_eq!(shell.verify(secret), "API_KEY_VERIFIED");
        let revoked = shell.run(&["key", "revoke", &id, "--reason", "leaked"]).json();
        assert_eq!(revoked["status"], "revoked");
        assert_eq!(shell.verify(secret), "API_KEY_REVOKED");
    }
}

on_both! {
    async fn without_a_server_the_store_itself_is_asked_and_nothing_is_counted(engine) {
        let shell = Shell::initialised(engine).await;
        let (id, secret) = shell.issue(&["--type", "environment"]);
        for _ in 0..2 {
            let verdict = shell.verdict(&secret);
            assert_eq!(verdict["code"], "API_KEY_VERIFIED");
            assert_eq!(verdict["key_id"], id);
            assert_eq!(verdict["verification_count"], 0);
        }
        let ran = shell.run_with(&["verify", "--scope", "read"], &secret);
        assert!(ran.out.contains("API_KEY_INSUFFICIENT_SCOPE"), "{}", ran.out);
        assert!(ran.err.contains("no server runs"), "{}", ran.err);
        assert_eq!(shell.verify("k_live_guess"), "API_KEY_INVALID");
    }
}

on_both! {
    async fn a_new_pepper_is_used_at_once_and_old_secrets_stay_good(engine) {
        let mut shell = Shell::initialised(engine).await;
        let (_, old) = shell.issue(&["--user", "alice"]);
        shell.serve(&[]);
        shell.run(&["env", "add-pepper"]).json();
        let (_, new) = shell.issue(&["--user", "alice"]);
        assert_eq!(shell.verify(&old), "API_KEY_VERIFIED");
        assert_eq!(shell.verify(&new), "API_KEY_VERIFIED");
        assert_eq!(shell.run(&["env", "remove-pepper", "1"]).failure(), "PEPPER_IN_USE");
        assert_eq!(shell.run(&["env", "remove-pepper", "2"]).failure(), "PEPPER_IN_USE");
    }
}

on_both! {
    async fn an_import_names_the_line_that_stops_it_and_goes_on_from_there(engine) {
        let shell = Shell::initialised(engine).await;
        let digest = |n: usize| keyward_core::sha256(format!("old_{n}").as_bytes());
        let line = |n: usize| {
            let hash: String = digest(n).bytes().iter().map(|byte| format!("{byte:02x}")).collect();
            format!(
                "{{\"name\":\"key {n}\",\"user_id\":\"user_{}\",\"audience\":\"https://api.test\",\
                 \"hash\":\"{hash}\",\"algorithm\":\"sha256\",\"encoding\":\"hex\",\
                 \"scope_ids\":[\"read\"]}}",
                n % 10
            )
        };
        let mut lines: Vec<String> = (1..=2_500).map(line).collect();
        let whole = lines.join("\n");
        lines[1_199] = lines[1_099].clone();
        let file = shell.path("keys.ndjson");
        std::fs::write(&file, lines.join("\n")).expect("written");
        let ran = shell.run(&["key", "import", &file]);
        assert_eq!(ran.failure(), "SECRET_TAKEN");
        assert!(ran.err.contains("line 1200: "), "{}", ran.err);
        assert!(ran.err.contains("up to line 1000 is stored"), "{}", ran.err);
        assert!(ran.err.contains("--from-line 1001"), "{}", ran.err);
        std::fs::write(&file, &whole).expect("written");
        let rest = shell.run(&["key", "import", &file, "--from-line", "1001"]).json();
        assert_eq!((&rest["imported"], &rest["skipped"]), (&1_500.into(), &0.into()));
        let again = shell.run(&["key", "import", &file, "--skip-existing"]).json();
        assert_eq!((&again["imported"], &again["skipped"]), (&0.into(), &2_500.into()));
        let verdict = shell.verdict("old_2345");
        assert_eq!((&verdict["user_id"], &verdict["name"]), (&"user_5".into(), &"key 2345".into()));
    }
}

#[tokio::test]
async fn a_server_that_was_killed_does_not_hold_up_the_next_change() {
    let mut shell = Shell::initialised(Engine::Sqlite).await;
    let (id, secret) = shell.issue(&["--user", "alice"]);
    shell.serve(&[]);
    assert_eq!(shell.verify(&secret), "API_KEY_VERIFIED");
    assert_eq!(shell.end(rustix::process::Signal::KILL), None);
    // The lease of the dead server has 15 s to go; the folder's lock says that it is dead.
    let output = Command::new("timeout")
        .arg("10")
        .arg(env!("CARGO_BIN_EXE_keyward"))
        .args(["key", "revoke", &id, "--data"])
        .arg(shell.data())
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .output()
        .expect("it runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(shell.verify(&secret), "API_KEY_REVOKED");
}

#[tokio::test]
async fn no_secret_is_ever_logged_by_a_command() {
    let shell = Shell::initialised(Engine::Sqlite).await;
    let mut command = shell.command(&["key", "issue", "a key", "--user", "alice", "--json"]);
    let ran = ran(command.env("KEYWARD_LOG", "trace").output().expect("it runs"));
    let secret = ran.json()["key"].as_str().expect("a secret").to_owned();
    assert!(!ran.err.contains(&secret), "a secret was logged");
    // A secret in the place of an id is not repeated either.
    let misplaced = shell.run(&["key", "show", &secret]);
    assert_eq!(misplaced.failure(), "BAD_ID");
    assert!(!misplaced.err.contains(&secret), "{}", misplaced.err);
}

#[tokio::test]
async fn exit_codes_tell_failure_from_misuse() {
    let shell = Shell::new(Engine::Sqlite).await;
    assert_eq!(shell.run(&["key", "list"]).failure(), "NO_STORE");
    assert_eq!(shell.run(&["key", "frobnicate"]).code, Some(2));
    assert_eq!(shell.run(&["key", "list", "--limit", "0"]).code, Some(2));
    assert_eq!(shell.run(&["serve", "--listen", "nowhere"]).failure(), "BAD_CONFIGURATION");
    let doctor = shell.run(&["doctor"]);
    assert_eq!(doctor.code, Some(1), "{}", doctor.out);
    shell.run(&["init"]).json();
    assert_eq!(shell.run(&["--env", "nope", "key", "list"]).failure(), "NOT_FOUND");
    let doctor = shell.run(&["doctor"]).json();
    assert_eq!(doctor["is_healthy"], true, "{doctor}");
}

#[tokio::test]
async fn two_servers_cannot_use_one_folder() {
    let mut shell = Shell::initialised(Engine::Sqlite).await;
    shell.serve(&[]);
    assert_eq!(shell.run(&["serve", "--listen", "127.0.0.1:0"]).failure(), "FOLDER_IN_USE");
}

#[tokio::test]
async fn a_store_without_its_secrets_file_is_not_served() {
    let shell = Shell::initialised(Engine::Sqlite).await;
    std::fs::remove_file(shell.data().join("secrets.toml")).expect("removed");
    let ran = shell.run(&["serve", "--listen", "127.0.0.1:0"]);
    assert_eq!(ran.failure(), "BAD_SECRETS_FILE");
    assert!(ran.err.contains("secrets.toml"), "{}", ran.err);
}

#[tokio::test]
async fn the_demonstrations_command_works_when_pasted() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_keyward"));
    command.env_clear().args(["demo", "--json"]).stdout(Stdio::piped()).stderr(Stdio::null());
    let folder = tempfile::tempdir().expect("a folder");
    command.env("TMPDIR", folder.path());
    // A real store that is configured must not be touched.
    command.env("KEYWARD_DATABASE", "postgres://nobody@127.0.0.1:1/none");
    let mut child = command.spawn().expect("the binary starts");
    let stdout = BufReader::new(child.stdout.take().expect("a pipe"));
    let told: Value = serde_json::Deserializer::from_reader(stdout)
        .into_iter::<Value>()
        .next()
        .expect("one object")
        .expect("JSON");
    let pasted = told["verify_command"].as_str().expect("a command");
    let output = Command::new("sh").args(["-c", pasted]).output().expect("a shell");
    let verdict: Value = serde_json::from_slice(&output.stdout).expect("an answer; needs curl");
    assert_eq!((&verdict["is_valid"], &verdict["user_id"]), (&true.into(), &"demo_user".into()));
    let id = rustix::process::Pid::from_raw(i32::try_from(child.id()).expect("an id"));
    rustix::process::kill_process(id.expect("an id"), rustix::process::Signal::INT).expect("there");
    assert!(child.wait().expect("it ends").success());
    let left = std::fs::read_dir(folder.path()).expect("readable").count();
    assert_eq!(left, 0, "the demonstration removes its folder");
}
