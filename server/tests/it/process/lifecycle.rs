//! How a server starts, ends, and makes room for the next one; and exit codes.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};

use super::*;

/// A verification whose body the server has asked for and not received yet.
fn half_a_verification(process: &Process, token: &str, secret: &str) -> (Wire, Vec<u8>) {
    let request = wire::verification(token, secret);
    let end = request.windows(4).position(|four| four == b"\r\n\r\n").expect("a head") + 2;
    let (head, rest) = request.split_at(end);
    let mut wire = process.wire();
    wire.write(head).expect("writable");
    wire.write(b"Expect: 100-continue\r\n\r\n").expect("writable");
    // The server says this when it begins to read the body: the request is in flight.
    assert_eq!(wire.read().expect("an answer").status, 100);
    (wire, rest[2..].to_vec())
}

#[test]
fn a_request_in_flight_is_finished_before_the_server_ends_with_0() {
    let site = Site::new(Engine::Sqlite);
    let mut process = site.serve();
    let token = site.token(&process);
    site.api();
    let key = site.key("ann");
    let (mut wire, body) = half_a_verification(&process, &token, &key.secret);
    process.signal(Signal::TERM);
    until("nobody listens any more", || TcpStream::connect(process.address).is_err().then_some(()));
    wire.write(&body).expect("writable");
    assert!(wire.read().expect("an answer").is_valid());
    assert_eq!(process.wait().code(), Some(0), "{}", process.log());
    // And it was counted.
    let shown = site.json(&["key", "show", &key.id]);
    assert_eq!(shown["verification_count"], 1);
}

#[test]
fn connections_that_ask_nothing_do_not_hold_up_the_end() {
    let site = Site::new(Engine::Sqlite);
    let process = site.serve();
    let silent = process.wire();
    let mut idle = process.wire();
    assert_eq!(idle.ask("GET", "/healthz", None, "").expect("an answer").status, 200);
    let mut slow = process.wire();
    slow.write(b"GET /healthz HT").expect("writable");
    let began = Instant::now();
    process.terminate();
    // Requests in flight may take 10 s.
    assert!(began.elapsed() < Duration::from_secs(3), "it took {:?}", began.elapsed());
    drop((silent, idle, slow));
}

#[test]
fn a_request_that_never_ends_is_cut_off_after_the_grace() {
    let site = Site::new(Engine::Sqlite);
    let mut command = site.serve_command(&[]);
    command.env("KEYWARD_SHUTDOWN_GRACE_SECONDS", "1");
    let mut process = Process::spawn(command, site.address, &site.parent.path().join("log"));
    process.wait_until_ready();
    let token = site.token(&process);
    let held = half_a_verification(&process, &token, "k_live_x");
    let began = Instant::now();
    process.terminate();
    assert!(began.elapsed() >= Duration::from_secs(1));
    drop(held);
}

#[test]
fn sigint_ends_a_server_in_order_too() {
    let site = Site::new(Engine::Sqlite);
    let mut process = site.serve();
    process.signal(Signal::INT);
    assert_eq!(process.wait().code(), Some(0), "{}", process.log());
}

on_each_engine! {
    fn port_and_folder_are_free_at_once_after_any_end(engine) {
        let site = Site::new(engine);
        for round in 0..4 {
            let process = site.serve();
            // A connection that the server closes first keeps the port in TIME_WAIT.
            let mut wire = process.wire();
            assert_eq!(wire.ask("GET", "/healthz", None, "").expect("an answer").status, 200);
            if round % 2 == 0 {
                process.kill_dash_nine();
            } else {
                process.terminate();
            }
        }
    }
}

on_each_engine! {
    fn a_second_server_on_a_folder_ends_with_1_and_says_why(engine) {
        let site = Site::new(engine);
        let process = site.serve();
        let other = free_address().to_string();
        let second = site.run(&["serve", "--listen", &other, "--public-url", "http://other.test"]);
        let said = String::from_utf8_lossy(&second.stderr);
        assert_eq!(second.status.code(), Some(1), "{said}");
        assert!(said.contains("another Keyward server is using the data folder"), "{said}");
        assert!(said.contains(&*site.folder.to_string_lossy()), "{said}");
        // `init` says the same, and neither disturbed the first.
        let init = site.run(&["init", "--json"]);
        assert_eq!(init.status.code(), Some(1));
        assert!(init.stdout.is_empty());
        let token = site.token(&process);
        let env = process.wire().ask("GET", "/.well-known/openid-configuration", None, "");
        let issuer = env.expect("an answer").expect(200)["issuer"].clone();
        assert_eq!(issuer, format!("http://{HOST}"));
        assert!(!process.verify(&token, "k_live_x").is_valid());
        process.terminate();
    }
}

#[test]
fn a_port_in_use_is_named_and_ends_with_1() {
    let site = Site::new(Engine::Sqlite);
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address").to_string();
    let output = site.run(&["serve", "--listen", &address]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains(&address), "{said}");
}

#[test]
fn exit_codes_are_0_for_success_1_for_failure_and_2_for_usage() {
    let site = Site::new(Engine::Sqlite);
    let code = |arguments: &[&str]| site.run(arguments).status.code();
    assert_eq!(code(&["key", "list"]), Some(0));
    assert_eq!(keyward().arg("--version").output().expect("runs").status.code(), Some(0));
    assert_eq!(keyward().arg("--help").output().expect("runs").status.code(), Some(0));
    assert_eq!(code(&["key", "show", "api_key_00000000000000000000000000000000"]), Some(1));
    assert_eq!(code(&["key", "list", "--env", "nowhere"]), Some(1));
    for usage in [&["key", "frobnicate"][..], &["serve", "--port", "1"], &["key", "revoke"], &[]] {
        assert_eq!(code(usage), Some(2), "{usage:?}");
    }
}

#[test]
fn a_client_that_sends_half_and_goes_away_harms_nobody() {
    let site = Site::new(Engine::Sqlite);
    let process = site.serve();
    let token = site.token(&process);
    let mut wires = Vec::new();
    for length in [1, 20, 200, 400] {
        let request = wire::verification(&token, "k_live_x");
        let wire = process.wire();
        let mut stream = wire.stream().try_clone().expect("a socket");
        stream.write_all(&request[..length.min(request.len() - 1)]).expect("writable");
        stream.shutdown(Shutdown::Write).expect("a socket");
        // OK to ignore what comes: an error answer or nothing, but the connection ends.
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest);
        wires.push(wire);
    }
    assert!(!process.verify(&token, "k_live_x").is_valid());
    process.terminate();
}

#[test]
fn a_server_raises_its_limit_of_file_descriptors_to_the_most_it_may_have() {
    let site = Site::new(Engine::Sqlite);
    let serve = site.serve_command(&[]);
    let mut command = alone("sh");
    command.args(["-c", "ulimit -Sn 300 && ulimit -Hn 700 && exec \"$@\"", "sh"]);
    command.arg(serve.get_program()).args(serve.get_args());
    let log = site.parent.path().join("log");
    let mut process = Process::spawn(command, site.address, &log);
    process.wait_until_ready();
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", process.child.id()));
    let limits = limits.expect("a process");
    let line = limits.lines().find(|line| line.starts_with("Max open files")).expect("a line");
    let words: Vec<&str> = line.split_whitespace().collect();
    assert_eq!(words[3..5], ["700", "700"], "{line}");
    let said = process.log();
    assert!(said.contains("700 file descriptors can be open"), "{said}");
    assert!(said.contains("too few for connections_max = 10000"), "{said}");
    process.terminate();
}
