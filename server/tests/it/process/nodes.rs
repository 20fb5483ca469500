//! Several servers on one PostgreSQL database: what one is told is in force on all, and one that is
//! stopped, forgotten or held up is waited for as long as its lease, and not longer.

use super::*;

/// What a server with `--lease strict` may answer from memory, and what others wait for it.
const LEASE: Duration = Duration::from_secs(5);
/// What a machine with other work may add to a wait.
const SLACK: Duration = Duration::from_secs(3);

/// Two servers on one database, each with a folder of its own.
struct Pair {
    site: Site,
    first: Process,
    second: Process,
    token: String,
}

impl Pair {
    fn start() -> Self {
        let site = Site::new(Engine::Postgres);
        let first = site.serve_with(&["--lease", "strict"]);
        let other = Site {
            folder: site.parent.path().join("second"),
            database: site.database.clone(),
            address: free_address(),
            parent: tempfile::tempdir().expect("a folder"),
            ..Site::empty(None)
        };
        std::fs::create_dir(&other.folder).expect("a folder");
        let secrets = "secrets.toml";
        std::fs::copy(site.folder.join(secrets), other.folder.join(secrets)).expect("a copy");
        let log = site.parent.path().join("log of the second");
        let command = other.serve_command(&["--lease", "strict"]);
        let mut second = Process::spawn(command, other.address, &log);
        second.wait_until_ready();
        let token = site.token(&first);
        site.api();
        Self { site, first, second, token }
    }

    /// Revokes over HTTP at the first server; how long the answer took.
    fn revoke(&self, key: &Key) -> Duration {
        let began = Instant::now();
        let path = format!("/api/v1/api_keys/{}", key.id);
        let reply = self.first.wire().ask("DELETE", &path, Some(&self.token), "");
        reply.expect("an answer").expect(200);
        began.elapsed()
    }

    fn node_count(&self) -> i64 {
        self.site.number("select count(*) from node_lease")
    }
}

#[test]
fn what_one_node_revoked_no_node_verifies_and_nobody_waits_for_a_lease() {
    let pair = Pair::start();
    let mut wire = pair.second.wire();
    let mut longest = Duration::ZERO;
    for round in 0..8 {
        let key = pair.site.key(&format!("user{round}"));
        assert!(wire.verify(&pair.token, &key.secret).expect("an answer").is_valid());
        longest = longest.max(pair.revoke(&key));
        let reply = wire.verify(&pair.token, &key.secret).expect("an answer");
        assert_eq!(reply.verdict(), "API_KEY_REVOKED");
    }
    println!("a revocation that two nodes follow took at most {longest:?}");
    assert!(longest < Duration::from_secs(1), "{longest:?}");
}

#[test]
fn a_stopped_node_is_waited_out_and_reaped_and_loads_anew_before_it_verifies() {
    let pair = Pair::start();
    let (key, other) = (pair.site.key("ann"), pair.site.key("bob"));
    let mut wire = pair.second.wire();
    assert!(wire.verify(&pair.token, &key.secret).expect("an answer").is_valid());
    pair.second.signal(Signal::STOP);
    let waited = pair.revoke(&key);
    assert!(waited > LEASE - Duration::from_secs(2), "it did not wait: {waited:?}");
    assert!(waited < LEASE + SLACK, "{waited:?}");
    until("the stopped node is reaped", || (pair.node_count() == 1).then_some(()));
    // The next change need not wait for it.
    let next = pair.revoke(&other);
    assert!(next < Duration::from_secs(2), "{next:?}");
    wire.write(&wire::verification(&pair.token, &key.secret)).expect("writable");
    pair.second.signal(Signal::CONT);
    let reply = wire.read().expect("an answer");
    assert!(reply.status == 503 || reply.verdict() == "API_KEY_REVOKED", "{}", reply.body);
    until("the node is fresh again", || {
        let reply = wire.verify(&pair.token, &other.secret).expect("an answer");
        assert!(reply.status == 503 || reply.verdict() == "API_KEY_REVOKED", "{}", reply.body);
        (reply.status == 200).then_some(())
    });
    let log = pair.second.log();
    assert!(log.contains("loading anew"), "{log}");
    assert_eq!(pair.node_count(), 2);
    println!("waited {waited:?} for the stopped node, and then {next:?}");
}

/// Somebody stops between taking the lock of every change and the commit. The database ends that
/// transaction after a second, so that no lease runs out for it.
#[test]
fn a_process_that_stops_while_it_holds_the_lock_ends_nobodys_lease() {
    use sqlx::{Connection, PgConnection};
    let pair = Pair::start();
    let key = pair.site.key("ann");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("a runtime");
    let url = pair.site.database.clone().expect("a database");
    let mut stopped = runtime.block_on(PgConnection::connect(&url)).expect("connects");
    // As every change begins.
    let begun = sqlx::raw_sql(
        "begin; set local idle_in_transaction_session_timeout = '1s'; \
         select pg_advisory_xact_lock(7163001)",
    );
    runtime.block_on(begun.execute(&mut stopped)).expect("locked");
    let began = Instant::now();
    let mut wires = [pair.first.wire(), pair.second.wire()];
    until("every lease would have run out", || {
        for wire in &mut wires {
            assert!(wire.verify(&pair.token, &key.secret).expect("an answer").is_valid());
        }
        (began.elapsed() > LEASE + Duration::from_secs(1)).then_some(())
    });
    let waited = pair.revoke(&key);
    assert!(waited < Duration::from_secs(2), "{waited:?}");
    let ended = runtime.block_on(sqlx::raw_sql("commit").execute(&mut stopped));
    assert!(ended.is_err(), "the database did not end it");
}
