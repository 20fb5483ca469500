//! A server that is stopped and wakes up later: it does not answer from what it knew before.

use super::*;

on_each_engine! {
    fn a_server_that_slept_through_a_revocation_never_says_yes_when_it_wakes(engine) {
        let site = Site::new(engine);
        let process = site.serve_with(&["--lease", "strict"]);
        let token = site.token(&process);
        site.api();
        let key = site.key("ann");
        let others: Vec<Key> = (0..3).map(|_| site.key("bob")).collect();
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
        let fresh = woke.elapsed();
        println!("{engine:?}: waited {waited:?}; first answers {answers:?}; fresh after {fresh:?}");
        // Nobody forgot the server meanwhile: the next commands wait for it again, and not long.
        for key in &others {
            let began = Instant::now();
            site.json(&["key", "revoke", &key.id]);
            let reply = wires[1].verify(&token, &key.secret).expect("an answer");
            assert_eq!(reply.verdict(), "API_KEY_REVOKED");
            assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
        }
        process.terminate();
    }
}
