//! A server that is stopped and wakes up later: it does not answer from what it knew before.

use super::*;

on_each_engine! {
    fn a_server_that_slept_through_a_revocation_never_says_yes_when_it_wakes(engine) {
        let site = Site::new(engine);
        let process = site.serve_with(&["--lease", "strict"]);
        let token = site.token(&process);
        site.api();
        let (key, other) = (site.key("ann"), site.key("bob"));
        let mut wires = [process.wire(), process.wire(), process.wire()];
        for wire in &mut wires {
            assert!(wire.verify(&token, &key.secret).expect("an answer").is_valid());
        }
        process.signal(Signal::STOP);
        let began = Instant::now();
        let revoked = site.json(&["key", "revoke", &key.id]);
        let waited = began.elapsed();
        assert_eq!(revoked["status"], "revoked");
        // L × 1.01, and what it takes to start a command.
        assert!(waited > Duration::from_secs(4), "it did not wait for the lease: {waited:?}");
        assert!(waited < Duration::from_secs(8), "{waited:?}");
        // Asked after the acknowledgement, while the server sleeps: it will find these first.
        for wire in &mut wires {
            wire.write(&wire::verification(&token, &key.secret)).expect("writable");
        }
        process.signal(Signal::CONT);
        let mut answers = Vec::new();
        for wire in &mut wires {
            let reply = wire.read().expect("an answer");
            answers.push(reply.status);
            assert!(reply.status == 503 || reply.verdict() == "API_KEY_REVOKED", "{}", reply.body);
        }
        let woke = Instant::now();
        until("the server is fresh again", || {
            let reply = wires[0].verify(&token, &key.secret).expect("an answer");
            assert!(reply.status == 503 || reply.verdict() == "API_KEY_REVOKED", "{}", reply.body);
            (reply.status == 200).then_some(())
        });
        println!("{engine:?}: the command waited {waited:?}; first answers {answers:?}; fresh after {:?}", woke.elapsed());
        // Nobody forgot the server meanwhile: the next command waits for it again, and not long.
        let began = Instant::now();
        site.json(&["key", "revoke", &other.id]);
        assert_eq!(process.verify(&token, &other.secret).verdict(), "API_KEY_REVOKED");
        assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
        process.terminate();
    }
}

on_each_engine! {
    /// Commands right when the server wakes up, which is when it is not in the lease table.
    fn a_server_that_was_waited_out_is_waited_for_again_as_soon_as_it_answers(engine) {
        let site = Site::new(engine);
        let process = site.serve_with(&["--lease", "strict"]);
        let token = site.token(&process);
        site.api();
        let sleeper = site.key("ann");
        let keys: Vec<Key> = (0..6).map(|_| site.key("bob")).collect();
        process.signal(Signal::STOP);
        site.json(&["key", "revoke", &sleeper.id]);
        let mut wire = process.wire();
        process.signal(Signal::CONT);
        for key in &keys {
            site.json(&["key", "revoke", &key.id]);
            let reply = wire.verify(&token, &key.secret).expect("an answer");
            assert!(reply.status == 503 || reply.verdict() == "API_KEY_REVOKED", "{}", reply.body);
        }
        process.terminate();
    }
}
