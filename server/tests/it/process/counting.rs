//! Counts are the answers that were given, whatever the process died of (consistency.md §4).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::*;
use keyward_core::Refusal;

/// Answers after which each server is killed.
const ANSWERS_A_LIFE: u64 = 7_000;

/// What one connection asks for.
#[derive(Clone)]
struct Question {
    /// Counted under this name.
    about: String,
    request: Vec<u8>,
    code: &'static str,
}

/// What the clients of a server heard before it died.
#[derive(Default, Debug)]
struct Heard {
    /// Answers in full, by the key's id and the verdict.
    answers: BTreeMap<(String, &'static str), u64>,
    /// Requests that were sent and not answered.
    in_flight: BTreeMap<(String, &'static str), u64>,
    /// The last success of each key.
    last_at: BTreeMap<String, String>,
}

impl Heard {
    fn add(&mut self, other: Heard) {
        for (key, count) in other.answers {
            *self.answers.entry(key).or_default() += count;
        }
        for (key, count) in other.in_flight {
            *self.in_flight.entry(key).or_default() += count;
        }
        for (key, at) in other.last_at {
            let last = self.last_at.entry(key).or_default();
            *last = at.max(std::mem::take(last));
        }
    }

    fn of(counts: &BTreeMap<(String, &'static str), u64>, about: &str, code: &'static str) -> u64 {
        counts.get(&(about.to_owned(), code)).copied().unwrap_or(0)
    }
}

/// Asks `question` over and over on one connection until the server dies or no questions are
/// `left`; one at a time, so that at most one is in flight.
fn ask_on(
    address: SocketAddr,
    question: &Question,
    left: &AtomicU64,
    answered: &AtomicU64,
) -> Heard {
    let mut heard = Heard::default();
    let Ok(mut wire) = Wire::connect(address) else { return heard };
    let mut count_before = 0;
    let name = (question.about.clone(), question.code);
    while left
        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1))
        .is_ok()
    {
        let Ok(reply) = wire.send(&question.request) else {
            *heard.in_flight.entry(name).or_default() += 1;
            return heard;
        };
        assert_eq!(reply.status, 200, "{}", reply.body);
        assert!(reply.body.contains(question.code), "{}", reply.body);
        *heard.answers.entry(name.clone()).or_default() += 1;
        answered.fetch_add(1, Ordering::Relaxed);
        if question.code == "API_KEY_VERIFIED" {
            let field = |name: &str| {
                let (_, rest) = reply.body.split_once(name).expect("the field");
                rest.split([',', '}']).next().expect("a value").trim_matches('"').to_owned()
            };
            let count: u64 = field("\"verification_count\":").parse().expect("a number");
            assert!(count > count_before, "{count} after {count_before}");
            count_before = count;
            let last_at = heard.last_at.entry(question.about.clone()).or_default();
            *last_at = field("\"last_verified_on\":").max(std::mem::take(last_at));
        }
    }
    heard
}

/// Puts every question on a connection of its own. With `fatal`, the server is killed once the
/// answers are that many, in the middle of others; without, it lives and `left` ends it.
fn load(
    process: Process,
    questions: &[Question],
    answers: u64,
    fatal: bool,
) -> (Heard, Option<Process>) {
    let left = Arc::new(AtomicU64::new(if fatal { u64::MAX } else { answers }));
    let answered = Arc::new(AtomicU64::new(0));
    let threads: Vec<_> = questions
        .iter()
        .cloned()
        .map(|question| {
            let (left, answered) = (Arc::clone(&left), Arc::clone(&answered));
            let address = process.address;
            std::thread::spawn(move || ask_on(address, &question, &left, &answered))
        })
        .collect();
    let process = if fatal {
        until("enough was answered", || {
            (answered.load(Ordering::Relaxed) >= answers).then_some(())
        });
        process.kill_dash_nine();
        None
    } else {
        Some(process)
    };
    let mut heard = Heard::default();
    for thread in threads {
        heard.add(thread.join().expect("a client"));
    }
    (heard, process)
}

/// Two keys that are each verified on two connections, one on a single connection, one that lacks
/// a scope now and then, and one that is disabled.
fn questions(site: &Site, process: &Process, token: &str) -> (Vec<Key>, Vec<Question>) {
    site.api();
    let keys: Vec<Key> = ["ann", "bob", "cyd", "dan"].iter().map(|user| site.key(user)).collect();
    site.json(&["key", "disable", &keys[3].id]);
    assert!(process.verify(token, &keys[0].secret).is_valid());
    let ask = |key: &Key, body: String, code| Question {
        about: key.id.clone(),
        request: wire::request(
            "POST",
            "/api/v1/api_keys/verify",
            Some(token),
            "application/json",
            &body,
        ),
        code,
    };
    let plain = |key: &Key| format!("{{\"api_key\":\"{}\"}}", key.secret);
    let mut questions = Vec::new();
    for key in [0, 0, 1, 1, 2] {
        questions.push(ask(&keys[key], plain(&keys[key]), "API_KEY_VERIFIED"));
    }
    let body = format!("{{\"api_key\":\"{}\",\"scopes\":[\"write:x\"]}}", keys[2].secret);
    questions.push(ask(&keys[2], body, "API_KEY_INSUFFICIENT_SCOPE"));
    questions.push(ask(&keys[3], plain(&keys[3]), "API_KEY_INACTIVE"));
    (keys, questions)
}

/// The key as the management API shows it: its count and its last success.
fn shown(process: &Process, token: &str, key: &Key) -> (u64, String) {
    let path = format!("/api/v1/api_keys/{}", key.id);
    let body = process.wire().ask("GET", &path, Some(token), "").expect("an answer").expect(200);
    let count = body["api_key"]["verification_count"].as_u64().expect("a count");
    (count, body["api_key"]["last_verified_on"].as_str().unwrap_or("").to_owned())
}

/// The refusals of all keys for one reason, as the database has them.
fn refused(site: &Site, refusal: Refusal) -> u64 {
    let at = (refusal as usize - 1) * 8;
    let number = |row: Vec<u8>| u64::from_be_bytes(row[at..at + 8].try_into().expect("8 bytes"));
    site.column("select refused from key_usage").into_iter().map(number).sum()
}

on_each_engine! {
    /// Four servers, three of them killed at full load and one stopped in order in between.
    fn counts_are_the_answers_given_across_kill_9(engine) {
        let site = Site::new(engine);
        let process = site.serve();
        let token = site.token(&process);
        let (keys, questions) = questions(&site, &process, &token);
        let mut heard = Heard::default();
        *heard.answers.entry((keys[0].id.clone(), "API_KEY_VERIFIED")).or_default() += 1;
        let mut process = Some(process);
        for fatal in [true, true, false, true] {
            let running = process.take().unwrap_or_else(|| site.serve());
            let (more, alive) = load(running, &questions, ANSWERS_A_LIFE, fatal);
            heard.add(more);
            if let Some(alive) = alive {
                alive.terminate();
            }
        }
        let process = site.serve();
        let answers: u64 = heard.answers.values().sum();
        let in_flight: u64 = heard.in_flight.values().sum();
        assert!(answers >= 4 * ANSWERS_A_LIFE, "only {answers}");
        let mut more = 0;
        for key in &keys {
            let (count, last_at) = shown(&process, &token, key);
            let least = Heard::of(&heard.answers, &key.id, "API_KEY_VERIFIED");
            let most = least + Heard::of(&heard.in_flight, &key.id, "API_KEY_VERIFIED");
            assert!((least..=most).contains(&count), "{count} is not in {least}..={most}");
            more += count - least;
            let last = heard.last_at.get(&key.id).cloned().unwrap_or_default();
            assert!(last_at >= last, "{last_at} is before {last}");
            if count == least {
                assert_eq!(last_at, last);
            }
        }
        process.terminate();
        for (refusal, code) in [
            (Refusal::Inactive, "API_KEY_INACTIVE"),
            (Refusal::InsufficientScope, "API_KEY_INSUFFICIENT_SCOPE"),
        ] {
            let sum = |counts: &BTreeMap<(String, &'static str), u64>| -> u64 {
                counts.iter().filter(|((_, of), _)| *of == code).map(|(_, count)| count).sum()
            };
            let (count, least) = (refused(&site, refusal), sum(&heard.answers));
            let most = least + sum(&heard.in_flight);
            assert!((least..=most).contains(&count), "{code}: {count}, not {least}..={most}");
            more += count - least;
        }
        println!("{engine:?}: {answers} answers, {in_flight} cut off, of which {more} counted");
    }
}

on_each_engine! {
    fn a_stop_in_order_takes_every_count_to_the_database(engine) {
        let site = Site::new(engine);
        let process = site.serve();
        let token = site.token(&process);
        let (keys, questions) = questions(&site, &process, &token);
        let (heard, alive) = load(process, &questions, 2_000, false);
        alive.expect("alive").terminate();
        assert!(heard.in_flight.is_empty());
        let verified: u64 = keys
            .iter()
            .map(|key| Heard::of(&heard.answers, &key.id, "API_KEY_VERIFIED"))
            .sum();
        let stored = site.number("select cast(sum(verified) as bigint) from key_usage");
        // The one more is the verification before the load.
        assert_eq!(u64::try_from(stored), Ok(verified + 1));
        // What the command line shows while no server runs is the same.
        let shown = site.json(&["key", "show", &keys[1].id]);
        let count = Heard::of(&heard.answers, &keys[1].id, "API_KEY_VERIFIED");
        assert_eq!(shown["verification_count"].as_u64(), Some(count));
    }
}

on_each_engine! {
    fn counts_go_on_when_the_counter_file_is_deleted(engine) {
        let site = Site::new(engine);
        let process = site.serve();
        let token = site.token(&process);
        site.api();
        let key = site.key("ann");
        assert_eq!(verify_times(&process, &token, &key, 30), 30);
        process.terminate();
        std::fs::remove_file(site.folder.join("counters")).expect("a counter file");
        let process = site.serve();
        assert_eq!(shown(&process, &token, &key).0, 30);
        assert_eq!(verify_times(&process, &token, &key, 5), 35);
        // Killed, so that the new file and the old row of the database must be added up.
        process.kill_dash_nine();
        let process = site.serve();
        assert_eq!(verify_times(&process, &token, &key, 1), 36);
    }
}

#[test]
fn a_counter_file_of_another_store_is_set_aside_and_counts_nothing_here() {
    let (here, there) = (Site::new(Engine::Sqlite), Site::new(Engine::Sqlite));
    let mut sites = Vec::new();
    for (site, times) in [(&here, 11), (&there, 70)] {
        let process = site.serve();
        let token = site.token(&process);
        site.api();
        let key = site.key("ann");
        assert_eq!(verify_times(&process, &token, &key, times), times);
        process.terminate();
        sites.push((token, key));
    }
    std::fs::copy(there.folder.join("counters"), here.folder.join("counters")).expect("copied");
    let process = here.serve();
    assert!(process.log().contains("set aside"), "{}", process.log());
    let (token, key) = &sites[0];
    assert_eq!(verify_times(&process, token, key, 1), 12);
    process.terminate();
    // The store that the copy came from goes on with its own.
    let process = there.serve();
    let (token, key) = &sites[1];
    assert_eq!(verify_times(&process, token, key, 1), 71);
}

#[test]
fn an_older_database_put_back_sets_the_counter_file_aside_and_counts_go_on_from_what_it_knows() {
    let site = Site::new(Engine::Sqlite);
    let process = site.serve();
    let token = site.token(&process);
    site.api();
    let key = site.key("ann");
    assert_eq!(verify_times(&process, &token, &key, 20), 20);
    process.terminate();
    let (database, older) = (site.folder.join("keyward.db"), site.parent.path().join("older.db"));
    std::fs::copy(&database, &older).expect("copied");
    let process = site.serve();
    assert_eq!(verify_times(&process, &token, &key, 4), 24);
    process.terminate();
    std::fs::copy(&older, &database).expect("copied");
    let process = site.serve();
    assert!(process.log().contains("set aside"), "{}", process.log());
    assert_eq!(verify_times(&process, &token, &key, 2), 22);
    process.kill_dash_nine();
    let process = site.serve();
    assert_eq!(verify_times(&process, &token, &key, 1), 23);
}
