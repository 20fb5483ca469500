//! The command line is a second process on the store, and a running server follows it: a
//! verification that begins after a command has returned knows what the command did.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::*;

/// How often each pair of commands is tried on each engine.
const ROUNDS: usize = 4;

/// Keeps a server busy with verifications of a key that stays good.
struct Busy {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<u64>,
}

impl Busy {
    fn with(process: &Process, token: &str, secret: &str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, mut wire) = (Arc::clone(&stop), process.wire());
        let request = wire::verification(token, secret);
        let thread = std::thread::spawn(move || {
            let mut answers = 0;
            while !stopped.load(Ordering::Relaxed) {
                assert!(wire.send(&request).expect("an answer").is_valid());
                answers += 1;
            }
            answers
        });
        Self { stop, thread }
    }

    fn end(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("a client")
    }
}

on_each_engine! {
    /// Under load, with the connection already open, so that nothing lies between the end of the
    /// command and the verification.
    fn what_a_command_changed_is_in_force_when_it_returns(engine) {
        let site = Site::new(engine);
        let process = site.serve();
        let token = site.token(&process);
        site.api();
        let other = site.key("busy");
        let busy = Busy::with(&process, &token, &other.secret);
        let (mut wire, mut second) = (process.wire(), process.wire());
        let mut took = Vec::new();
        let mut expect = |arguments: &[&str], secret: &str, code: &str| {
            let began = Instant::now();
            let printed = site.json(arguments);
            took.push(began.elapsed());
            let reply = wire.verify(&token, secret).expect("an answer");
            assert_eq!(reply.verdict(), code, "right after {arguments:?}");
            printed
        };
        for round in 0..ROUNDS {
            let user = format!("user{round}");
            let key = site.key(&user);
            let good = "API_KEY_VERIFIED";
            expect(&["key", "rename", &key.id, "renamed"], &key.secret, good);
            expect(&["key", "disable", &key.id], &key.secret, "API_KEY_INACTIVE");
            expect(&["key", "enable", &key.id], &key.secret, good);
            expect(&["user", "suspend", &user], &key.secret, "API_KEY_OWNER_SUSPENDED");
            expect(&["user", "restore", &user], &key.secret, good);
            let rotated = expect(&["key", "rotate", &key.id], &key.secret, "API_KEY_ROTATED");
            let new = rotated["key"].as_str().expect("a secret");
            expect(&["key", "revoke", &key.id], new, "API_KEY_REVOKED");
            // A second time is answered only when the first is in force, too.
            expect(&["key", "revoke", &key.id], new, "API_KEY_REVOKED");
            let issued = site.key(&user);
            assert!(second.verify(&token, &issued.secret).expect("an answer").is_valid());
            expect(&["user", "delete", &user], &issued.secret, "API_KEY_REVOKED");
        }
        let answers = busy.end();
        took.sort();
        println!(
            "{engine:?}: {} commands beside {answers} verifications; median {:?}, longest {:?}",
            took.len(),
            took[took.len() / 2],
            took[took.len() - 1],
        );
        process.terminate();
    }
}

on_each_engine! {
    /// A revocation over HTTP that the command line repeats at once waits for the same change.
    fn a_command_that_repeats_what_the_server_did_does_not_wait_for_a_lease(engine) {
        let site = Site::new(engine);
        let process = site.serve();
        let token = site.token(&process);
        site.api();
        for _ in 0..3 {
            let key = site.key("ann");
            let path = format!("/api/v1/api_keys/{}", key.id);
            let mut wire = process.wire();
            let revoked = wire.ask("DELETE", &path, Some(&token), "").expect("an answer");
            assert!(revoked.status < 300, "{}", revoked.body);
            let began = Instant::now();
            site.json(&["key", "revoke", &key.id]);
            assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
            let answer = wire.verify(&token, &key.secret).expect("an answer");
        assert_eq!(answer.verdict(), "API_KEY_REVOKED");
        }
    }
}

#[test]
fn commands_on_the_folder_of_a_killed_server_do_not_wait_and_the_next_server_knows() {
    let site = Site::new(Engine::Sqlite);
    let process = site.serve();
    let token = site.token(&process);
    site.api();
    let keys: Vec<Key> = (0..3).map(|_| site.key("ann")).collect();
    process.kill_dash_nine();
    for key in &keys {
        let began = Instant::now();
        site.json(&["key", "revoke", &key.id]);
        assert!(began.elapsed() < Duration::from_secs(3), "it waited {:?}", began.elapsed());
    }
    let process = site.serve();
    for key in &keys {
        assert_eq!(process.verify(&token, &key.secret).verdict(), "API_KEY_REVOKED");
    }
}

#[test]
fn a_server_on_the_folder_of_a_killed_one_does_not_wait_for_the_lease_of_the_dead() {
    let site = Site::new(Engine::Postgres);
    let process = site.serve();
    let token = site.token(&process);
    site.api();
    let keys = [site.key("ann"), site.key("bob")];
    process.kill_dash_nine();
    let process = site.serve();
    let began = Instant::now();
    let path = format!("/api/v1/api_keys/{}", keys[0].id);
    process.wire().ask("DELETE", &path, Some(&token), "").expect("an answer").expect(200);
    site.json(&["key", "revoke", &keys[1].id]);
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    for key in &keys {
        assert_eq!(process.verify(&token, &key.secret).verdict(), "API_KEY_REVOKED");
    }
}

/// A supervisor starts a killed server again at once, whatever commands run meanwhile.
#[test]
fn a_command_never_keeps_a_server_from_starting() {
    let site = Arc::new(Site::new(Engine::Sqlite));
    site.api();
    let stop = Arc::new(AtomicBool::new(false));
    let commands: Vec<_> = (0..2)
        .map(|number| {
            let (site, stop) = (Arc::clone(&site), Arc::clone(&stop));
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    site.key(&format!("user{number}"));
                }
            })
        })
        .collect();
    for _ in 0..6 {
        site.serve().kill_dash_nine();
    }
    stop.store(true, Ordering::Relaxed);
    for command in commands {
        command.join().expect("commands work");
    }
}
