//! Move: nothing is lost, and there is never more than one store to serve from.

use super::*;

/// What the tables hold that a move adds nothing to: it leaves its own record and its own change.
async fn carried(world: &World) -> Vec<Sum> {
    let mut sums = world.sums().await;
    sums.retain(|sum| !["audit_log", "change_log", "change_head"].contains(&sum.table));
    sums
}

/// A world with something in every table that `ops` can fill, and more than one page of keys.
async fn full(engine: Engine, seed: u64) -> (World, Secret) {
    let world = World::found(engine, seed).await;
    let (key, secret) = world.issue_to("u1").await;
    let (revoked, _) = world.issue_to("Ünïcödé|🔑").await;
    world.revoke(revoked).await;
    world.rotate(world.issue_to("u2").await.0).await;
    world.organization("org", &["u1", "u2"]).await;
    world.import("u3", "imported_secret").await;
    let new = || world.new_key(NewOwner::User(user_id("many"), None));
    for batch in 0..2_u32 {
        let many = (0..700_u32)
            .map(|n| ImportedKey {
                new: new(),
                digest: sha256(format!("many {batch} {n}").as_bytes()),
            })
            .collect();
        ops::keys::import(&world.store, world.env, &world.context, many).await.expect("imported");
    }
    world.count([7; 16], key, 41).await;
    (world, secret)
}

#[tokio::test]
async fn a_move_to_another_engine_and_back_loses_nothing() {
    if !engines().contains(&Engine::Postgres) {
        return;
    }
    let (world, secret) = full(Engine::Sqlite, 40).await;
    let key_count = world.number("select count(*) from api_keys").await;
    let before = carried(&world).await;
    let folder = world.path().to_path_buf();
    let server = empty_place(Engine::Postgres, &folder).await;
    let report = world.try_move(&server).await.expect("moved");
    assert!(report.to.starts_with("postgres://"), "{}", report.to);
    assert_eq!(i64::try_from(report.keys), Ok(key_count));
    assert_eq!(usize::try_from(report.tables), Ok(TABLES.len()));
    let world = world.moved(&server).await;
    assert_eq!(carried(&world).await, before, "there");
    assert_eq!(world.verdict(secret.expose()).await, "valid");
    let file = empty_place(Engine::Sqlite, &folder).await;
    let report = world.try_move(&file).await.expect("moved back");
    // The old file was in the way; it had been moved away, so it was put aside.
    assert!(report.set_aside.is_some_and(|path| path.exists()));
    let world = world.moved(&file).await;
    assert_eq!(carried(&world).await, before, "back again");
    assert_eq!(world.verdict(secret.expose()).await, "valid");
    world.issue_to("u9").await;
}

#[tokio::test]
async fn a_moved_store_is_refused_and_says_where_it_is() {
    for engine in engines() {
        let world = World::found(engine, 41).await;
        let other = tempfile::tempdir().expect("a folder");
        let to = empty_place(Engine::Sqlite, other.path()).await;
        let mut conn = world.store.read().await.expect("a connection");
        refuse_if_moved(&mut conn).await.expect("it is here");
        world.try_move(&to).await.expect("moved");
        let error = refuse_if_moved(&mut conn).await.expect_err("it is there");
        assert_eq!(error.code, "STORE_MOVED");
        assert!(error.public.contains("sqlite:"), "{}", error.public);
        let dest = world.path().join("b.db");
        let silent = Progress::silent();
        let error = backup(&world.store, &dest, None, &silent).await.expect_err("it is there");
        assert_eq!(error.code, "STORE_MOVED");
        let third = tempfile::tempdir().expect("a folder");
        let third = empty_place(Engine::Sqlite, third.path()).await;
        let error = world.try_move(&third).await.expect_err("it is there");
        assert_eq!(error.code, "STORE_MOVED", "{engine:?}");
    }
}

#[tokio::test]
async fn a_password_is_never_part_of_where_a_store_is() {
    let url = ServerUrl::new("postgres://keyward:geheim@db.example:6432/keys?sslmode=require");
    assert_eq!(place(&Location::Server(url)), "postgres://db.example:6432/keys");
}

#[tokio::test]
async fn a_move_replaces_nothing() {
    for engine in engines() {
        let world = World::found(Engine::Sqlite, 42).await;
        let target = World::found(engine, 43).await;
        let before = target.sums().await;
        let error = world.try_move(&target.location).await.expect_err("not empty");
        assert_eq!(error.code, "TARGET_NOT_EMPTY", "{engine:?}");
        assert_eq!(target.sums().await, before);
        let mut conn = world.store.read().await.expect("a connection");
        refuse_if_moved(&mut conn).await.expect("it is still here");
    }
}

#[tokio::test]
async fn a_failed_move_leaves_the_source_in_service_and_no_target() {
    let world = World::found(Engine::Sqlite, 44).await;
    let mut conn = world.store.side().await.expect("a connection");
    conn.raw("update api_scopes set created_at = 'no number'").await.expect("damaged");
    let other = tempfile::tempdir().expect("a folder");
    let to = empty_place(Engine::Sqlite, other.path()).await;
    world.try_move(&to).await.expect_err("unreadable");
    refuse_if_moved(&mut conn).await.expect("it is still here");
    assert_eq!(std::fs::read_dir(other.path()).expect("a folder").count(), 0);
}

#[tokio::test]
async fn an_interrupted_move_is_finished_by_the_same_command() {
    for engine in engines() {
        let (world, secret) = full(Engine::Sqlite, 45).await;
        let before = carried(&world).await;
        let other = tempfile::tempdir().expect("a folder");
        let to = empty_place(engine, other.path()).await;
        // The source was marked and its process died before the target was committed.
        let mut conn = world.store.side().await.expect("a connection");
        schema::set_meta(&mut conn, MOVED_TO, &place(&to)).await.expect("marked");
        drop(conn);
        let report = world.try_move(&to).await.expect("finished");
        assert!(!report.already_moved);
        let again = world.try_move(&to).await.expect("nothing to do");
        assert!(again.already_moved);
        let world = world.moved(&to).await;
        assert_eq!(carried(&world).await, before, "{engine:?}");
        assert_eq!(world.meta(MOVED_TO).await, None);
        assert_eq!(world.verdict(secret.expose()).await, "valid");
    }
}

#[tokio::test]
async fn a_store_is_not_moved_under_a_running_server() {
    let world = World::found(Engine::Sqlite, 46).await;
    let _server = Folder::existing(world.path()).lock().expect("free");
    let other = tempfile::tempdir().expect("a folder");
    let to = empty_place(Engine::Sqlite, other.path()).await;
    let error = world.try_move(&to).await.expect_err("in use");
    assert_eq!(error.code, "FOLDER_IN_USE");
}

#[tokio::test]
async fn a_move_waits_for_the_change_that_is_being_written_and_carries_it() {
    // SQLite has one writer at a time and does not say who waits, so that this is for PostgreSQL.
    if !engines().contains(&Engine::Postgres) {
        return;
    }
    let world = World::found(Engine::Postgres, 47).await;
    let other = tempfile::tempdir().expect("a folder");
    let to = empty_place(Engine::Sqlite, other.path()).await;
    let mut writing = world.store.side().await.expect("a connection");
    begin_exclusive(&mut writing).await.expect("alone");
    schema::set_meta(&mut writing, "written_meanwhile", "1").await.expect("written");
    let somebody_waits = async {
        while world
            .number(
                "select count(*) from pg_locks l join pg_database d on d.oid = l.database
                 where d.datname = current_database() and l.locktype = 'advisory'
                   and not l.granted",
            )
            .await
            == 0
        {
            tokio::task::yield_now().await;
        }
    };
    let mut moving = Box::pin(world.try_move(&to));
    tokio::select! {
        moved = &mut moving => unreachable!("it did not wait: {moved:?}"),
        () = somebody_waits => writing.raw("commit").await.expect("committed"),
    }
    moving.await.expect("moved");
    let world = world.moved(&to).await;
    assert_eq!(world.meta("written_meanwhile").await.as_deref(), Some("1"));
}

#[tokio::test]
async fn a_moved_store_knows_who_moved_it_and_from_where() {
    for engine in engines() {
        let world = World::found(Engine::Sqlite, 48).await;
        let records = "select count(*) from audit_log";
        let (before, from) = (world.number(records).await, place(&world.location));
        let other = tempfile::tempdir().expect("a folder");
        let to = empty_place(engine, other.path()).await;
        world.try_move(&to).await.expect("moved");
        assert_eq!(world.number(records).await, before, "the source is left as it was");
        // A second run finds the work done, and leaves no second record.
        assert!(world.try_move(&to).await.expect("nothing to do").already_moved);
        let world = world.moved(&to).await;
        assert_eq!(world.number(records).await, before + 1);
        let mut conn = world.store.read().await.expect("a connection");
        let (actor, before_state, after_state, seq) = store::row!(
            &mut conn,
            (String, String, String, i64),
            "select actor_kind, before_state, after_state, change_seq from audit_log
             where action = 'store.moved'",
        )
        .expect("selects")
        .expect("a record");
        drop(conn);
        assert_eq!(actor, "system", "as the world's own context says");
        let state = |place: String| serde_json::json!({ "database": place }).to_string();
        assert_eq!((before_state, after_state), (state(from), state(place(&to))));
        // The log goes on without a gap, so that followers can.
        assert_eq!(world.number("select seq from change_head").await, seq);
        assert_eq!(world.number("select max(seq) from change_log").await, seq);
        world.issue_to("u9").await;
        assert_eq!(world.number("select seq from change_head").await, seq + 1);
    }
}
