//! Backup: whole, private, alone, and never in the place of another file.

use std::os::unix::fs::PermissionsExt;

use super::*;

/// Opens a backup as a store, to look into it.
async fn opened(world: &World, path: &Path) -> Store {
    let location = Location::File(path.to_path_buf());
    let (clock, entropy) = (world.clock().clone(), world.store.entropy.clone());
    Store::open(&location, false, clock, entropy).await.expect("opens")
}

#[tokio::test]
async fn a_backup_holds_everything_and_leaves_nothing_beside_it() {
    for engine in engines() {
        let world = World::found(engine, 2).await;
        let (key, _) = world.issue_to("u1").await;
        world.organization("org", &["u1", "u2"]).await;
        world.count([7; 16], key, 41).await;
        let before = world.sums().await;
        let out = tempfile::tempdir().expect("a folder");
        let dest = out.path().join("b.db");
        let report =
            backup(&world.store, &dest, None, &Progress::silent()).await.expect("backed up");
        assert_eq!(report.keys, 1);
        assert_eq!(report.taken_at > 0, report.bytes > 0);
        assert!(report.secrets.is_none());
        let names: Vec<_> = std::fs::read_dir(out.path())
            .expect("a folder")
            .map(|entry| entry.expect("an entry").file_name())
            .collect();
        assert_eq!(names, ["b.db"]);
        let mode = std::fs::metadata(&dest).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let copy = opened(&world, &dest).await;
        let mut conn = copy.read().await.expect("a connection");
        let carried = TABLES.iter().filter(|table| table.name != "meta");
        let after = copying::sums(&mut conn, carried, &Progress::silent()).await.expect("read");
        let before: Vec<_> = before.into_iter().filter(|sum| sum.table != "meta").collect();
        assert_eq!(after, before, "{engine:?}");
        assert!(after.iter().filter(|sum| sum.rows > 0).count() > 14, "{after:?}");
    }
}

#[tokio::test]
async fn a_backup_replaces_no_file() {
    let world = World::found(Engine::Sqlite, 3).await;
    let dest = world.backup("b.db").await;
    let size = std::fs::metadata(&dest).expect("there").len();
    let error = backup(&world.store, &dest, None, &Progress::silent()).await.expect_err("refused");
    assert_eq!(error.code, "BACKUP_EXISTS");
    assert_eq!(std::fs::metadata(&dest).expect("there").len(), size);
}

#[tokio::test]
async fn a_backup_that_fails_leaves_no_file() {
    let world = World::found(Engine::Sqlite, 4).await;
    let dest = world.path().join("b.db");
    let foreign = world.path().join("foreign.toml");
    Secrets::generate(&Entropy::seeded(99)).write_new(&foreign).expect("written");
    let error = backup(&world.store, &dest, Some(&foreign), &Progress::silent())
        .await
        .expect_err("another store's secrets");
    assert_eq!(error.code, "WRONG_SECRETS_FILE");
    let mut conn = world.store.side().await.expect("a connection");
    conn.raw("update api_scopes set created_at = 'no number'").await.expect("damaged");
    drop(conn);
    backup(&world.store, &dest, None, &Progress::silent()).await.expect_err("unreadable");
    for name in ["b.db", "b.db.partial", "b.db.partial-wal", "b.db.secrets.toml"] {
        assert!(!world.path().join(name).exists(), "{name}");
    }
}

#[tokio::test]
async fn the_secrets_file_goes_with_a_backup_only_when_asked_for() {
    let world = World::found(Engine::Sqlite, 5).await;
    let without = world.backup("without.db").await;
    assert!(!world.path().join("without.db.secrets.toml").exists());
    let bytes = std::fs::read(without).expect("there");
    let pepper = std::fs::read_to_string(world.secrets_path()).expect("there");
    let pepper = pepper.lines().find(|line| line.starts_with("key = ")).expect("a pepper");
    let pepper = pepper.trim_start_matches("key = ").trim_matches('"').as_bytes();
    assert!(!bytes.windows(pepper.len()).any(|window| window == pepper));
    let dest = world.path().join("with.db");
    let secrets = world.secrets_path();
    let report =
        backup(&world.store, &dest, Some(&secrets), &Progress::silent()).await.expect("backed up");
    let beside = report.secrets.expect("a copy");
    assert_eq!(beside, world.path().join("with.db.secrets.toml"));
    let mode = std::fs::metadata(&beside).expect("there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let check =
        |path: &Path| Secrets::check_value(&Secrets::read(path).expect("secrets").current_pepper());
    assert_eq!(check(&beside), check(&secrets));
}

#[tokio::test]
async fn a_backup_taken_while_keys_are_issued_is_one_moment() {
    for engine in engines() {
        let world = World::found(engine, 6).await;
        let issuing = async {
            for user in 0..40 {
                world.issue_to(&format!("u{user}")).await;
            }
        };
        let dest = world.path().join("b.db");
        let silent = Progress::silent();
        let (_, taken) = tokio::join!(issuing, backup(&world.store, &dest, None, &silent));
        taken.expect("backed up");
        let copy = opened(&world, &dest).await;
        let mut conn = copy.read().await.expect("a connection");
        // The head, the change log and the keys' own numbers tell the same moment.
        let moments = store::row!(
            &mut conn,
            (i64, i64, i64),
            "select (select seq from change_head), (select max(seq) from change_log),
                    (select coalesce(max(change_seq), 0) from audit_log)",
        )
        .expect("selects")
        .expect("one row");
        assert_eq!((moments.0, moments.0), (moments.1, moments.2), "{engine:?}");
        let halves = store::row!(
            &mut conn,
            (i64,),
            "select (select count(*) from api_keys) - (select count(*) from key_secrets)
                  + (select count(*) from api_keys) - (select count(*) from users)",
        );
        assert_eq!(halves.expect("selects"), Some((0,)), "{engine:?}");
    }
}
