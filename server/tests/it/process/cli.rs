//! The contract with the terminal, tried with the real binary: what goes to standard output, exit
//! codes, and a second process on the store of a running server.

use std::io::BufReader;

use super::*;

/// A store with an API and its scopes.
fn initialised(engine: Engine) -> Site {
    let site = Site::new(engine);
    let api = ["api", "create", "https://api.test", "--scope", "read", "--scope", "write"];
    site.json(&api);
    site
}

/// Issues a key; its id and its secret.
fn issue(site: &Site, words: &[&str]) -> (String, String) {
    let key = Key::of(&site.json(&[&["key", "issue", "a key"], words].concat()));
    (key.id, key.secret)
}

/// The code that verifying `secret` comes to.
fn verify(site: &Site, secret: &str) -> String {
    verdict(site, secret)["code"].as_str().expect("a code").to_owned()
}

fn verdict(site: &Site, secret: &str) -> Value {
    let ran = site.ran_with(&["verify"], &format!("{secret}\n"));
    let verdict: Value = serde_json::from_str(&ran.out).expect("a verdict");
    let expected = if verdict["is_valid"] == true { 0 } else { 1 };
    assert_eq!(ran.code, Some(expected), "{}", ran.err);
    verdict
}

on_each_engine! {
    fn init_prints_one_object_and_refuses_an_initialised_store(engine) {
        let site = Site::empty_on(engine);
        std::fs::create_dir(&site.folder).expect("an empty folder is fine");
        let made = site.ran(&["init", "--public-url", "https://keys.test/"]).json();
        assert_eq!(made["issuer"], "https://keys.test");
        let secret = made["client_secret"].as_str().expect("a secret");
        assert_eq!((secret.len(), secret.chars().all(|c| c.is_ascii_alphanumeric())), (48, true));
        assert_eq!(made["client_id"].as_str().map(str::len), Some(32));
        assert_eq!(site.ran(&["init"]).failure(), "ALREADY_INITIALISED");
    }
}

on_each_engine! {
    fn serve_initialises_an_empty_store_and_ends_cleanly(engine) {
        let site = Site::empty_on(engine);
        let process = site.serve();
        let environments = site.ran(&["env", "list"]).json();
        let public_url = format!("http://{}", site.address);
        assert_eq!(environments["environments"][0]["public_url"], public_url);
        process.terminate();
        // The lock is free and the port can be bound again, at once.
        drop(TcpListener::bind(site.address).expect("the port is free"));
        let _process = site.serve_with(&["--public-url", "https://other.test"]);
        let environments = site.ran(&["env", "list"]).json();
        assert_eq!(environments["environments"][0]["public_url"], "https://other.test");
    }
}

on_each_engine! {
    fn a_change_by_the_command_line_is_in_force_when_it_returns(engine) {
        let site = initialised(engine);
        let (id, secret) = issue(&site, &["--user", "alice", "--scope", "read"]);
        let _process = site.serve();
        let verdict = verdict(&site, &secret);
        assert_eq!(verdict["user_id"], "alice");
        assert_eq!(verdict["verification_count"], 1);
        assert_eq!(site.ran(&["key", "show", &id]).json()["verification_count"], 1);
        site.ran(&["key", "disable", &id]).json();
        assert_eq!(verify(&site, &secret), "API_KEY_INACTIVE");
        site.ran(&["key", "enable", &id]).json();
        site.ran(&["user", "suspend", "alice"]).json();
        assert_eq!(verify(&site, &secret), "API_KEY_OWNER_SUSPENDED");
        site.ran(&["user", "restore", "alice"]).json();
        let rotated = site.ran(&["key", "rotate", &id]).json();
        assert_eq!(verify(&site, &secret), "API_KEY_ROTATED");
        let secret = rotated["key"].as_str().expect("a secret");
        assert_eq!(verify(&site, secret), "API_KEY_VERIFIED");
        let revoked = site.ran(&["key", "revoke", &id, "--reason", "leaked"]).json();
        assert_eq!(revoked["status"], "revoked");
        assert_eq!(verify(&site, secret), "API_KEY_REVOKED");
    }
}

on_each_engine! {
    fn without_a_server_the_store_itself_is_asked_and_nothing_is_counted(engine) {
        let site = initialised(engine);
        let (id, secret) = issue(&site, &["--type", "environment"]);
        for _ in 0..2 {
            let verdict = verdict(&site, &secret);
            assert_eq!(verdict["code"], "API_KEY_VERIFIED");
            assert_eq!(verdict["key_id"], id);
            assert_eq!(verdict["verification_count"], 0);
        }
        let ran = site.ran_with(&["verify", "--scope", "read"], &secret);
        assert!(ran.out.contains("API_KEY_INSUFFICIENT_SCOPE"), "{}", ran.out);
        assert!(ran.err.contains("no server runs"), "{}", ran.err);
        assert_eq!(verify(&site, "k_live_guess"), "API_KEY_INVALID");
    }
}

on_each_engine! {
    fn a_new_pepper_is_used_at_once_and_old_secrets_stay_good(engine) {
        let site = initialised(engine);
        let (_, old) = issue(&site, &["--user", "alice"]);
        let _process = site.serve();
        site.ran(&["env", "add-pepper"]).json();
        let (_, new) = issue(&site, &["--user", "alice"]);
        assert_eq!(verify(&site, &old), "API_KEY_VERIFIED");
        assert_eq!(verify(&site, &new), "API_KEY_VERIFIED");
        assert_eq!(site.ran(&["env", "remove-pepper", "1"]).failure(), "PEPPER_IN_USE");
        assert_eq!(site.ran(&["env", "remove-pepper", "2"]).failure(), "PEPPER_IN_USE");
    }
}

on_each_engine! {
    fn an_import_names_the_line_that_stops_it_and_goes_on_from_there(engine) {
        let site = initialised(engine);
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
        let file = site.parent.path().join("keys.ndjson");
        let file = file.to_str().expect("UTF-8");
        std::fs::write(file, lines.join("\n")).expect("written");
        let ran = site.ran(&["key", "import", file]);
        assert_eq!(ran.failure(), "SECRET_TAKEN");
        assert!(ran.err.contains("line 1200: "), "{}", ran.err);
        assert!(ran.err.contains("up to line 1000 is stored"), "{}", ran.err);
        assert!(ran.err.contains("--from-line 1001"), "{}", ran.err);
        std::fs::write(file, &whole).expect("written");
        let rest = site.ran(&["key", "import", file, "--from-line", "1001"]).json();
        assert_eq!((&rest["imported"], &rest["skipped"]), (&1_500.into(), &0.into()));
        let again = site.ran(&["key", "import", file, "--skip-existing"]).json();
        assert_eq!((&again["imported"], &again["skipped"]), (&0.into(), &2_500.into()));
        let verdict = verdict(&site, "old_2345");
        assert_eq!((&verdict["user_id"], &verdict["name"]), (&"user_5".into(), &"key 2345".into()));
    }
}

#[test]
fn a_server_that_was_killed_does_not_hold_up_the_next_change() {
    let site = initialised(Engine::Sqlite);
    let (id, secret) = issue(&site, &["--user", "alice"]);
    let process = site.serve();
    assert_eq!(verify(&site, &secret), "API_KEY_VERIFIED");
    process.kill_dash_nine();
    // The lease of the dead server has 15 s to go; the folder's lock says that it is dead.
    let output = Command::new("timeout")
        .arg("10")
        .arg(env!("CARGO_BIN_EXE_keyward"))
        .args(["key", "revoke", &id, "--data"])
        .arg(&site.folder)
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .output()
        .expect("it runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(verify(&site, &secret), "API_KEY_REVOKED");
}

#[test]
fn no_secret_is_ever_logged_by_a_command() {
    let site = initialised(Engine::Sqlite);
    let mut command = site.command(&["key", "issue", "a key", "--user", "alice", "--json"]);
    let ran = Ran::of(command.env("KEYWARD_LOG", "trace").output().expect("it runs"));
    let secret = ran.json()["key"].as_str().expect("a secret").to_owned();
    assert!(!ran.err.contains(&secret), "a secret was logged");
    // A secret in the place of an id is not repeated either.
    let misplaced = site.ran(&["key", "show", &secret]);
    assert_eq!(misplaced.failure(), "BAD_ID");
    assert!(!misplaced.err.contains(&secret), "{}", misplaced.err);
}

#[test]
fn exit_codes_tell_failure_from_misuse() {
    let site = Site::empty_on(Engine::Sqlite);
    assert_eq!(site.ran(&["key", "list"]).failure(), "NO_STORE");
    assert_eq!(site.ran(&["key", "frobnicate"]).code, Some(2));
    assert_eq!(site.ran(&["key", "list", "--limit", "0"]).code, Some(2));
    assert_eq!(site.ran(&["serve", "--listen", "nowhere"]).failure(), "BAD_CONFIGURATION");
    let doctor = site.ran(&["doctor"]);
    assert_eq!(doctor.code, Some(1), "{}", doctor.out);
    site.ran(&["init"]).json();
    assert_eq!(site.ran(&["--env", "nope", "key", "list"]).failure(), "NOT_FOUND");
    let doctor = site.ran(&["doctor"]).json();
    assert_eq!(doctor["is_healthy"], true, "{doctor}");
}

#[test]
fn two_servers_cannot_use_one_folder() {
    let site = initialised(Engine::Sqlite);
    let _process = site.serve();
    assert_eq!(site.ran(&["serve", "--listen", "127.0.0.1:0"]).failure(), "FOLDER_IN_USE");
}

#[test]
fn a_store_without_its_secrets_file_is_not_served() {
    let site = initialised(Engine::Sqlite);
    std::fs::remove_file(site.folder.join("secrets.toml")).expect("removed");
    let ran = site.ran(&["serve", "--listen", "127.0.0.1:0"]);
    assert_eq!(ran.failure(), "BAD_SECRETS_FILE");
    assert!(ran.err.contains("secrets.toml"), "{}", ran.err);
}

#[test]
fn the_demonstrations_command_works_when_pasted() {
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

on_each_engine! {
    fn a_restore_tells_everything_that_it_kept(engine) {
        let site = initialised(engine);
        let app = site.json(&["app", "create", "second"]);
        let app = app["client_id"].as_str().expect("an id");
        let (key, _) = issue(&site, &["--user", "alice"]);
        let backup = site.parent.path().join("backup.db");
        let backup = backup.to_str().expect("UTF-8");
        site.json(&["backup", backup]);
        site.json(&["app", "delete", app]);
        site.json(&["key", "revoke", &key]);
        let kept = site.json(&["restore", backup])["kept"].take();
        assert_eq!((&kept["applications"], &kept["keys"]), (&1.into(), &1.into()), "{kept}");
        assert_eq!(kept["audit_records"], 2, "{kept}");
        for none in ["secrets", "owners", "memberships", "apis"] {
            assert_eq!(kept[none], 0, "{kept}");
        }
    }
}
