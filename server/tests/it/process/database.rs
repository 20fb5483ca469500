//! A database that goes away while a server runs: verification goes on for as long as the lease
//! lasts and not longer, writes answer 503, nothing is half done, and all comes back by itself.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};

use super::*;

/// How long a server with `--lease strict` may answer from memory.
const LEASE: Duration = Duration::from_secs(5);

/// A PostgreSQL server of a test's own, which can be stopped and started again.
struct Cluster {
    folder: PathBuf,
    url: String,
    _parent: tempfile::TempDir,
}

impl Cluster {
    fn start() -> Self {
        Self::start_with("-c fsync=off")
    }

    fn start_with(options: &str) -> Self {
        use std::os::unix::fs::PermissionsExt;
        let parent = tempfile::tempdir().expect("a folder");
        // PostgreSQL refuses to run as root; as root it runs as another user, who must get there.
        let open = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(parent.path(), open).expect("chmod");
        let folder = parent.path().join("cluster");
        let output = Self::script("start", &folder)
            .env("SCRATCH_POSTGRES_OPTIONS", options)
            .output()
            .expect("bash is installed");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "no scratch PostgreSQL: {said}");
        let url = String::from_utf8(output.stdout).expect("a URL").trim().to_owned();
        Self { folder, url, _parent: parent }
    }

    fn script(verb: &str, folder: &Path) -> Command {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/scratch-postgres");
        let mut command = Command::new(script);
        command.arg(verb).arg(folder).stdin(Stdio::null());
        command
    }

    /// The first lines of `postmaster.pid` are the server's id, folder, start time and port.
    fn fact(&self, line: usize) -> Option<String> {
        let text = std::fs::read_to_string(self.folder.join("data/postmaster.pid")).ok()?;
        text.lines().nth(line).map(str::to_owned)
    }

    /// Runs a statement as its owner.
    fn run(&self, sql: &'static str) {
        use sqlx::{Connection, PgConnection};
        block_on(async {
            let mut conn = PgConnection::connect(&self.url).await?;
            sqlx::raw_sql(sql).execute(&mut conn).await?;
            conn.close().await
        })
        .expect("it runs");
    }

    /// Stops it without a word to its clients.
    fn crash(&self) {
        let pid = self.fact(0).and_then(|text| text.parse().ok()).and_then(Pid::from_raw);
        kill_process(pid.expect("a running server"), Signal::QUIT).expect("it is there");
        until("the database has stopped", || self.fact(0).is_none().then_some(()));
    }

    /// Starts it again where it was.
    fn start_again(&self) {
        let port = self.url.rsplit([':', '/']).nth(1).expect("a port");
        let options = format!(
            "-c listen_addresses=127.0.0.1 -p {port} -k {} -c max_connections=100 -c fsync=off",
            self.folder.display()
        );
        let installed = std::fs::read_dir("/usr/lib/postgresql").expect("PostgreSQL is installed");
        let newest = installed.filter_map(|entry| Some(entry.ok()?.path())).max();
        let pg_ctl = newest.expect("PostgreSQL is installed").join("bin/pg_ctl");
        let mut command = if rustix::process::getuid().is_root() {
            let mut command = Command::new("runuser");
            command.args(["-u", "postgres", "--"]).arg(pg_ctl);
            command
        } else {
            Command::new(pg_ctl)
        };
        command.arg("-D").arg(self.folder.join("data")).args(["-w", "-l"]);
        command.arg(self.folder.join("server.log")).args(["start", "-o", &options]);
        let status = command.stdin(Stdio::null()).stdout(Stdio::null()).status();
        assert!(status.expect("pg_ctl runs").success());
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // OK to ignore: it may be stopped, and the folder goes away all the same.
        let _ = Self::script("stop", &self.folder).stderr(Stdio::null()).status();
    }
}

/// Creates keys over HTTP until it is told to stop.
struct Writer {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<Written>,
}

/// What a [`Writer`] heard.
#[derive(Default)]
struct Written {
    /// Keys that were acknowledged.
    created: Vec<String>,
    /// Answers that left open whether the key exists.
    unconfirmed: i64,
    /// Answers that said that nothing was changed.
    refused: i64,
    longest: Duration,
}

impl Writer {
    fn start(process: &Process, token: &str, api: &str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let body = format!(
            "{{\"name\":\"w\",\"api_id\":\"{api}\",\"type\":\"user\",\"user_id\":\"writer\"}}"
        );
        let (mut wire, token) = (process.wire(), token.to_owned());
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut written = Written::default();
            while !stopped.load(Ordering::Relaxed) {
                let began = Instant::now();
                let reply = wire.ask("POST", "/api/v1/api_keys", Some(&token), &body);
                let reply = reply.expect("an answer");
                written.longest = written.longest.max(began.elapsed());
                match reply.status {
                    201 => {
                        let id = reply.json()["api_key"]["id"].as_str().expect("an id").to_owned();
                        written.created.push(id);
                    }
                    503 if reply.body.contains("UNCONFIRMED") => written.unconfirmed += 1,
                    503 => written.refused += 1,
                    other => panic!("{other}: {}", reply.body),
                }
            }
            written
        });
        Self { stop, thread }
    }

    fn end(self) -> Written {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("a client")
    }
}

/// Every change has its row, its audit record and its place in the log, or none of them; and what
/// was acknowledged is there.
fn nothing_is_half_done(site: &Site, before: i64, written: &[Written]) {
    let keys = site.number("select count(*) from api_keys");
    let acknowledged: usize = written.iter().map(|one| one.created.len()).sum();
    let unconfirmed: i64 = written.iter().map(|one| one.unconfirmed).sum();
    let least = before + i64::try_from(acknowledged).expect("few");
    assert!((least..=least + unconfirmed).contains(&keys), "{keys}, {least}, {unconfirmed}");
    let audited = "select count(*) from audit_log where target_id like 'api_key_%'
                   and action like '%issue%'";
    assert_eq!(site.number(audited), keys);
    let secrets = "select count(*) from key_secrets where key_id in (select key_id from api_keys)";
    assert_eq!(site.number(secrets), keys);
    let gaps = "select count(*) - max(seq) + min(seq) - 1 from change_log";
    assert_eq!(site.number(gaps), 0);
    let head = "select seq - (select max(seq) from change_log) from change_head";
    assert_eq!(site.number(head), 0);
    for one in written {
        for id in one.created.iter().rev().take(3) {
            site.json(&["key", "show", id]);
        }
    }
}

#[test]
fn without_postgresql_verification_goes_on_for_the_lease_and_all_comes_back_by_itself() {
    let cluster = Cluster::start();
    let site = Site::with_database(Some(cluster.url.clone()));
    let process = site.serve_with(&["--lease", "strict"]);
    let token = site.token(&process);
    let api = site.api();
    let key = site.key("ann");
    let keys_before = site.number("select count(*) from api_keys");
    let writers = [0, 1].map(|_| Writer::start(&process, &token, &api));
    let mut wire = process.wire();
    let mut ask = || wire.verify(&token, &key.secret).expect("an answer");
    until("some keys were written", || {
        assert!(ask().is_valid());
        (site.number("select count(*) from api_keys") > keys_before + 20).then_some(())
    });

    cluster.crash();
    let gone = Instant::now();
    let mut last_valid = gone;
    let mut verified = 0;
    until("the lease has run out", || {
        let asked = Instant::now();
        let reply = ask();
        if reply.status == 503 {
            assert!(reply.head.contains("retry-after"), "{}", reply.head);
            return Some(());
        }
        assert!(reply.is_valid());
        (last_valid, verified) = (asked, verified + 1);
        None
    });
    let lasted = last_valid - gone;
    // The server asked the database every 40 ms, so nearly the whole lease was left; and the crash
    // took a moment to be noticed here.
    assert!(lasted > LEASE - Duration::from_secs(1), "only {lasted:?}");
    assert!(lasted <= LEASE, "{lasted:?}");
    let ready = process.wire().ask("GET", "/readyz", None, "").expect("an answer");
    assert_eq!(ready.status, 503);
    let read = process.wire().ask("GET", "/api/v1/apis", Some(&token), "").expect("an answer");
    assert_eq!(read.status, 503, "{}", read.body);
    let alive = process.wire().ask("GET", "/healthz", None, "").expect("an answer");
    assert_eq!(alive.status, 200);

    cluster.start_again();
    let back = Instant::now();
    until("verification is back", || (ask().status == 200).then_some(()));
    let recovered = back.elapsed();
    let path = "/api/v1/api_keys";
    let body =
        format!("{{\"name\":\"w\",\"api_id\":\"{api}\",\"type\":\"user\",\"user_id\":\"writer\"}}");
    let created = until("writing is back", || {
        let reply = process.wire().ask("POST", path, Some(&token), &body).expect("an answer");
        (reply.status == 201).then_some(reply)
    });
    let mut written: Vec<Written> = writers.into_iter().map(Writer::end).collect();
    let id = created.json()["api_key"]["id"].as_str().expect("an id").to_owned();
    written.push(Written { created: vec![id], ..Written::default() });
    let longest = written.iter().map(|one| one.longest).max().expect("two");
    nothing_is_half_done(&site, keys_before, &written);
    // What was counted without the database is there.
    let revoked = site.json(&["key", "revoke", &key.id]);
    assert_eq!(revoked["id"], key.id);
    assert_eq!(ask().verdict(), "API_KEY_REVOKED");
    println!(
        "verification lasted {lasted:?} ({verified} answers), was back after {recovered:?}; \
         a write took at most {longest:?}; {} unconfirmed, {} refused",
        written.iter().map(|one| one.unconfirmed).sum::<i64>(),
        written.iter().map(|one| one.refused).sum::<i64>(),
    );
    assert!(longest < Duration::from_secs(15), "{longest:?}");

    // A server ends in order without its database too, and its counts are in the counter file.
    let count = ask().json()["verification_count"].as_u64();
    cluster.crash();
    let began = Instant::now();
    process.terminate();
    println!("without its database the server took {:?} to end", began.elapsed());
    assert!(began.elapsed() < Duration::from_secs(12), "{:?}", began.elapsed());
    // A start without it says so, in a sentence.
    let output = site.serve_command(&[]).output().expect("runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("keyward: the database"), "{said}");
    cluster.start_again();
    let process = site.serve();
    let now = process.verify(&token, &key.secret).json()["verification_count"].as_u64();
    assert_eq!(now, count);
}

/// A commit whose wait for a standby is cancelled comes back as a success with a warning, but a
/// failover may lose it.
#[test]
fn a_commit_that_may_not_be_replicated_is_not_reported_as_done() {
    let cluster = Cluster::start();
    let site = Site::with_database(Some(cluster.url.clone()));
    let process = site.serve();
    let token = site.token(&process);
    site.api();
    let path = format!("/api/v1/api_keys/{}", site.key("ann").id);
    for sql in ["alter system set synchronous_standby_names = 'nobody'", "select pg_reload_conf()"]
    {
        cluster.run(sql);
    }
    until("commits wait for a standby", || {
        let sql = "select cast(count(*) as bigint) from pg_settings
                   where name = 'synchronous_standby_names' and setting = 'nobody'";
        (site.number(sql) == 1).then_some(())
    });
    let revoke = || {
        let (mut wire, token, path) = (process.wire(), token.clone(), path.clone());
        let began = Instant::now();
        let asking = std::thread::spawn(move || {
            wire.ask("DELETE", &path, Some(&token), "").expect("an answer")
        });
        // An operator who loses patience, or a role with a time limit for statements.
        while !asking.is_finished() {
            site.column::<bool>(
                "select pg_cancel_backend(pid) from pg_stat_activity where wait_event = 'SyncRep'",
            );
        }
        // It is the warning that is heard, and not a silence that lasts too long.
        assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
        asking.join().expect("a client")
    };
    // Whoever asks again finds the key revoked, by a change that may be lost all the same.
    for _ in 0..2 {
        let reply = revoke();
        assert_eq!(reply.status, 503, "{}", reply.body);
        assert!(reply.body.contains("UNCONFIRMED"), "{}", reply.body);
    }
    let log = process.log();
    assert!(log.contains("canceling wait for synchronous replication"), "{log}");
    cluster.run("alter system reset synchronous_standby_names");
    cluster.run("select pg_reload_conf()");
    until("nobody is waited for", || (revoke().status == 200).then_some(()));
    process.terminate();
}

/// Stands between a server and its database, and can fall silent without a word to either: what
/// a cut network looks like.
struct Passage {
    port: u16,
    silent: Arc<AtomicBool>,
    /// Connections of an earlier life stay silent for ever.
    life: Arc<AtomicU64>,
}

impl Passage {
    fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let passage = Self {
            port: listener.local_addr().expect("an address").port(),
            silent: Arc::default(),
            life: Arc::default(),
        };
        let (silent, life) = (Arc::clone(&passage.silent), Arc::clone(&passage.life));
        // Ends with the process; nothing waits for it.
        std::thread::spawn(move || {
            for near in listener.incoming().flatten() {
                let far = TcpStream::connect(("127.0.0.1", port)).expect("a database");
                let born = life.load(Ordering::Relaxed);
                for (from, to) in [(&near, &far), (&far, &near)] {
                    let mut from = from.try_clone().expect("a socket");
                    let mut to = to.try_clone().expect("a socket");
                    let (silent, life) = (Arc::clone(&silent), Arc::clone(&life));
                    std::thread::spawn(move || {
                        let mut piece = [0; 16_384];
                        while let Ok(length @ 1..) = from.read(&mut piece) {
                            let cut = silent.load(Ordering::Relaxed)
                                || life.load(Ordering::Relaxed) != born;
                            if !cut && to.write_all(&piece[..length]).is_err() {
                                break;
                            }
                        }
                    });
                }
            }
        });
        passage
    }

    fn cut(&self) {
        self.silent.store(true, Ordering::Relaxed);
        self.life.fetch_add(1, Ordering::Relaxed);
    }

    fn heal(&self) {
        self.life.fetch_add(1, Ordering::Relaxed);
        self.silent.store(false, Ordering::Relaxed);
    }
}

#[test]
fn a_network_that_is_cut_without_a_word_is_noticed_and_another_connection_is_made() {
    let direct = block_on(fresh_postgres());
    let (front, name) = direct.rsplit_once('/').expect("a database");
    let (front, port) = front.rsplit_once(':').expect("a port");
    let passage = Passage::to(port.parse().expect("a number"));
    let mut site = Site::with_database(Some(format!("{front}:{}/{name}", passage.port)));
    let process = site.serve_with(&["--lease", "strict"]);
    let token = site.token(&process);
    // Commands go to the database directly.
    site.database = Some(direct.clone());
    site.api();
    let (key, other) = (site.key("ann"), site.key("bob"));
    let mut wire = process.wire();
    let mut ask = |key: &Key| wire.verify(&token, &key.secret).expect("an answer");
    assert!(ask(&key).is_valid() && ask(&other).is_valid());
    passage.cut();
    let began = Instant::now();
    // Nobody can tell the server, so the command waits for the lease, and is right to return then.
    site.json(&["key", "revoke", &key.id]);
    let waited = began.elapsed();
    assert!(waited < Duration::from_secs(8), "{waited:?}");
    assert_eq!(ask(&key).status, 503);
    passage.heal();
    let began = Instant::now();
    until("the server is fresh again", || {
        let reply = ask(&key);
        assert!(reply.status == 503 || reply.verdict() == "API_KEY_REVOKED", "{}", reply.body);
        (reply.status == 200).then_some(())
    });
    let fresh = began.elapsed();
    assert!(fresh < Duration::from_secs(10), "{fresh:?}");
    assert!(ask(&other).is_valid());
    // Writing comes back too, and what the server does is heard of by others at once again.
    until("writing is back", || {
        let body = "{\"name\":\"more\",\"audience\":\"https://more.example\"}";
        let reply = process.wire().ask("POST", "/api/v1/apis", Some(&token), body);
        (reply.expect("an answer").status != 503).then_some(())
    });
    let writing = began.elapsed();
    println!("the command waited {waited:?}; fresh after {fresh:?}, writing after {writing:?}");
    let began = Instant::now();
    site.json(&["key", "revoke", &other.id]);
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    assert_eq!(ask(&other).verdict(), "API_KEY_REVOKED");
    process.terminate();
}

/// Another program that holds SQLite's write lock: verification does not notice.
#[test]
fn an_sqlite_file_that_another_program_holds_stops_writes_and_nothing_else() {
    use sqlx::{Connection, SqliteConnection};
    let site = Site::new(Engine::Sqlite);
    let process = site.serve_with(&["--lease", "strict"]);
    let token = site.token(&process);
    let api = site.api();
    let key = site.key("ann");
    let keys_before = site.number("select count(*) from api_keys");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("a runtime");
    let path = format!("sqlite:{}", site.folder.join("keyward.db").display());
    let mut foreign = runtime.block_on(SqliteConnection::connect(&path)).expect("opens");
    let begun = sqlx::raw_sql("begin immediate").execute(&mut foreign);
    runtime.block_on(begun).expect("locked");
    let writer = Writer::start(&process, &token, &api);
    let began = Instant::now();
    let mut wire = process.wire();
    until("the lease would have run out long ago", || {
        assert!(wire.verify(&token, &key.secret).expect("an answer").is_valid());
        (began.elapsed() > LEASE + Duration::from_secs(2)).then_some(())
    });
    runtime.block_on(sqlx::raw_sql("rollback").execute(&mut foreign)).expect("unlocked");
    until("writing is back", || {
        (site.number("select count(*) from api_keys") > keys_before).then_some(())
    });
    let written = writer.end();
    assert!(written.refused + written.unconfirmed > 0, "nobody was refused");
    assert!(written.longest < LEASE + Duration::from_secs(5), "{:?}", written.longest);
    nothing_is_half_done(&site, keys_before, &[written]);
    process.terminate();
}

/// Whoever receives the write-ahead log could become the primary; commits do not wait for this one.
#[test]
fn a_standby_that_commits_do_not_wait_for_is_warned_of() {
    let cluster = Cluster::start_with("-c fsync=on");
    let mut site = Site::empty(Some(cluster.url.clone()));
    site.init();
    let durability = || {
        let output = site.command(&["doctor", "--json"]).output().expect("runs");
        let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let checks = report["checks"].as_array().expect("a list");
        let found = checks.iter().find(|one| one["check"] == "durability").expect("a check");
        found["state"].as_str().expect("a text").to_owned()
    };
    let warnings = |process: &Process| {
        let reply = process.wire().ask("GET", "/readyz", None, "").expect("an answer");
        reply.expect(200)["warnings"].to_string()
    };
    assert_eq!(durability(), "ok");
    let process = site.serve();
    assert_eq!(warnings(&process), "[]");
    process.terminate();

    let archive = tempfile::tempdir().expect("a folder");
    let mut receiver = Command::new("pg_receivewal")
        .args(["--no-loop", "-d", &cluster.url, "-D"])
        .arg(archive.path())
        .stderr(Stdio::null())
        .spawn()
        .expect("it comes with PostgreSQL's client programs");
    until("the database has a standby", || (durability() == "warn").then_some(()));
    let process = site.serve();
    until("readiness names it", || warnings(&process).contains("not synchronous").then_some(()));
    assert!(process.log().contains("a failover to it can lose revocations"), "{}", process.log());
    process.terminate();
    receiver.kill().expect("it is there");
    receiver.wait().expect("it is ours");
}

#[test]
fn a_database_that_cannot_keep_every_name_is_refused() {
    let options = "encoding 'LATIN1' template template0 lc_collate 'C' lc_ctype 'C'";
    let site = Site::empty(Some(block_on(fresh_postgres_with(options))));
    let output = site.run(&["init", "--json"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("encoding LATIN1") && output.stdout.is_empty(), "{said}");
}
