//! A data folder that will not do: what is wrong is said in one line, and nothing is changed.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;

use super::*;

/// What files hold, by name. Without the lock, and without what SQLite needs only while it runs.
fn contents(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let Ok(files) = std::fs::read_dir(folder) else { return BTreeMap::new() };
    files
        .map(|file| file.expect("an entry").path())
        .filter(|path| path.is_file())
        .map(|path| {
            let name = path.file_name().expect("a name").to_string_lossy().into_owned();
            let bytes = std::fs::read(&path).expect("readable");
            (name, bytes)
        })
        .filter(|(name, bytes)| {
            let is_helper = name.ends_with("-shm") || name.ends_with("-wal") && bytes.is_empty();
            name != "lock" && !is_helper
        })
        .collect()
}

/// Runs a command that must fail with one sentence that has all of `words` in it.
#[track_caller]
fn refused(mut command: Command, words: &[&str]) {
    let output = command.output().expect("runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(output.stdout.is_empty());
    let told: Vec<&str> = said.lines().filter(|line| line.starts_with("keyward: ")).collect();
    assert_eq!(told.len(), 1, "{said}");
    for word in words {
        assert!(told[0].contains(word), "`{word}` is missing: {said}");
    }
    assert!(!said.contains("panicked"), "{said}");
}

/// A server with another public URL, which would be a change if it came to that.
fn other_serve(site: &Site) -> Command {
    site.serve_command(&["--public-url", "http://other.test"])
}

on_each_engine! {
    fn a_server_without_the_right_secrets_file_does_not_start_and_changes_nothing(engine) {
        let site = Site::new(engine);
        let changes = site.number("select seq from change_head");
        let secrets = site.folder.join("secrets.toml");
        let right = std::fs::read(&secrets).expect("a file");
        let wrong = Site::new(Engine::Sqlite);
        let shown = secrets.to_string_lossy().into_owned();
        let before = contents(&site.folder);

        std::fs::remove_file(&secrets).expect("there");
        refused(other_serve(&site), &[&shown, "put the file back", "--secrets-file"]);
        assert!(!secrets.exists(), "another was made, with which no key is good");

        std::fs::copy(wrong.folder.join("secrets.toml"), &secrets).expect("copied");
        refused(other_serve(&site), &[&shown, "does not belong to this store", "--secrets-file"]);

        std::fs::write(&secrets, &right[..right.len() / 2]).expect("written");
        refused(other_serve(&site), &[&shown]);

        std::fs::write(&secrets, &right).expect("written");
        let open = std::fs::Permissions::from_mode(0o640);
        std::fs::set_permissions(&secrets, open).expect("chmod");
        refused(other_serve(&site), &[&shown, "chmod 600"]);

        let closed = std::fs::Permissions::from_mode(0o600);
        std::fs::set_permissions(&secrets, closed).expect("chmod");
        assert!(contents(&site.folder) == before, "the folder was changed");
        assert_eq!(site.number("select seq from change_head"), changes);
        site.serve().terminate();
    }
}

on_each_engine! {
    fn a_store_of_a_newer_version_is_left_alone(engine) {
        let site = Site::new(engine);
        let set = "update meta set value = '999' where name = 'schema_version' returning 1";
        let numbered = match engine {
            Engine::Sqlite => site.number(set),
            Engine::Postgres => site.number(
                "update meta set value = '999' where name = 'schema_version'
                 returning cast(1 as bigint)",
            ),
        };
        assert_eq!(numbered, 1);
        let before = contents(&site.folder);
    let changes = site.number("select seq from change_head");
        let words = ["newer Keyward", "schema 999", "start the newer binary"];
        refused(other_serve(&site), &words);
        refused(site.command(&["init"]), &words);
        refused(site.command(&["key", "list"]), &words);
        refused(site.command(&["backup", &site.parent.path().join("b").to_string_lossy()]), &words);
        assert!(contents(&site.folder) == before, "the folder was changed");
        assert_eq!(site.number("select seq from change_head"), changes);
    }
}

#[test]
fn a_file_that_is_no_database_of_keywards_is_left_alone() {
    use sqlx::{Connection, SqliteConnection};
    let noise: fn(&Site) = |site| {
        std::fs::create_dir(&site.folder).expect("a folder");
        std::fs::write(site.folder.join("keyward.db"), "minutes of the meeting\n".repeat(400))
            .expect("written");
    };
    let foreign: fn(&Site) = |site| {
        std::fs::create_dir(&site.folder).expect("a folder");
        let path = format!("sqlite:{}?mode=rwc", site.folder.join("keyward.db").display());
        block_on(async {
            let mut conn = SqliteConnection::connect(&path).await.expect("opens");
            let made = "create table invoices (number); insert into invoices values (7)";
            sqlx::raw_sql(made).execute(&mut conn).await.expect("made");
            conn.close().await.expect("closed");
        });
    };
    for (make, words) in [(noise, "is not an SQLite database"), (foreign, "not Keyward's")] {
        let site = Site::empty(None);
        make(&site);
        let before = contents(&site.folder);
        for arguments in [&["serve"][..], &["init"], &["key", "list"]] {
            let words: &[&str] = if arguments[0] == "key" { &[] } else { &[words] };
            refused(site.command(arguments), words);
        }
        assert!(contents(&site.folder) == before, "the folder was changed");
    }
}

#[test]
fn a_postgresql_database_with_other_tables_is_left_alone() {
    let site = Site::empty(Some(block_on(fresh_postgres())));
    let make = "create table invoices as select cast(7 as bigint) as number";
    block_on(async {
        use sqlx::{Connection, PgConnection};
        let url = site.database.as_deref().expect("a database");
        let mut conn = PgConnection::connect(url).await.expect("connects");
        sqlx::raw_sql(make).execute(&mut conn).await.expect("made");
    });
    refused(site.command(&["serve"]), &["not Keyward's", "empty database"]);
    refused(site.command(&["init"]), &["not Keyward's", "empty database"]);
    let tables = "select count(*) from information_schema.tables where table_schema = 'public'";
    assert_eq!(site.number(tables), 1);
    assert!(!site.folder.join("secrets.toml").exists());
}

#[test]
fn a_data_folder_that_is_a_file_is_named() {
    let site = Site::empty(None);
    std::fs::write(&site.folder, "a file").expect("written");
    let shown = site.folder.to_string_lossy().into_owned();
    refused(site.command(&["serve"]), &[&shown, "--data"]);
    refused(site.command(&["init"]), &[&shown, "--data"]);
}

on_each_engine! {
    fn a_folder_that_cannot_be_written_is_named_and_what_to_do(engine) {
        let mut site = Site::new(engine);
        let before = contents(&site.folder);
        let shown = site.folder.to_string_lossy().into_owned();
        site.room = Some(Room::read_only(&site.folder));
        refused(other_serve(&site), &[&shown, "cannot be written", "read-only"]);
        refused(site.command(&["init"]), &[&shown, "cannot be written", "read-only"]);
        if engine == Engine::Sqlite {
            refused(site.command(&["user", "create", "ann"]), &["cannot be written", "read-only"]);
        }
        site.room = None;
        assert!(contents(&site.folder) == before, "the folder was changed");
        site.serve().terminate();
    }
}

#[test]
fn a_store_is_made_whole_or_not_at_all_on_a_disk_that_is_too_small() {
    let mut site = Site::empty(None);
    let disk = site.parent.path().join("disk");
    site.folder = disk.join("data");
    site.room = Some(Room::of_kib(&disk, 16_384));
    site.room.as_ref().expect("a room").fill(64);
    refused(site.command(&["init", "--json"]), &["disk is full"]);
    refused(site.serve_command(&[]), &["disk is full"]);
    site.room.as_ref().expect("a room").clear();
    site.init();
    let process = site.serve();
    let token = site.token(&process);
    assert_eq!(process.verify(&token, "k_live_x").verdict(), "API_KEY_INVALID");
    process.terminate();
}

/// A disk that fills up under a running server, and one that has no room for the counts.
#[test]
fn verification_goes_on_on_a_full_disk_and_the_operator_is_told() {
    let mut site = Site::empty(None);
    let disk = site.parent.path().join("disk");
    site.folder = disk.join("data");
    site.room = Some(Room::of_kib(&disk, 16_384));
    site.init();
    site.api();
    let key = site.key("ann");
    let room = || site.room.as_ref().expect("a room");
    let warnings = |process: &Process| {
        let reply = process.wire().ask("GET", "/readyz", None, "").expect("an answer");
        reply.expect(200)["warnings"].to_string()
    };

    // Room for SQLite to write a page or two, and none for the counter file.
    room().fill(600);
    let process = site.serve_with(&["--lease", "strict"]);
    let token = site.token(&process);
    assert_eq!(verify_times(&process, &token, &key, 50), 50);
    assert!(warnings(&process).contains("counter file"), "{}", warnings(&process));
    room().clear();
    until("the counts are in a file", || (warnings(&process) == "[]").then_some(()));
    process.kill_dash_nine();
    let process = site.serve_with(&["--lease", "strict"]);
    assert_eq!(verify_times(&process, &token, &key, 1), 51);

    room().fill(0);
    let create = || {
        let body = "{\"name\":\"more\",\"audience\":\"https://more.example\"}";
        process.wire().ask("POST", "/api/v1/apis", Some(&token), body).expect("an answer")
    };
    // The write-ahead log may have room for some more.
    let refusal = until("writes are refused", || {
        let reply = create();
        (reply.status != 200 && reply.status != 400 && reply.status != 409).then_some(reply)
    });
    assert_eq!(refusal.status, 503, "{}", refusal.body);
    let began = Instant::now();
    let mut count = 51;
    until("the lease would have run out long ago", || {
        count += 1;
        assert_eq!(verify_times(&process, &token, &key, 1), count);
        (began.elapsed() > Duration::from_secs(6)).then_some(())
    });
    let warned = warnings(&process);
    assert!(warned.contains("the database cannot be written"), "{warned}");
    process.kill_dash_nine();
    room().clear();
    let process = site.serve();
    assert_eq!(verify_times(&process, &token, &key, 1), count + 1);
    assert_eq!(warnings(&process), "[]");
    process.terminate();
}
