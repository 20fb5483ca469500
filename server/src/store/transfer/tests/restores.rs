//! Restore: goes back in time with everything but what was taken away.

use super::*;
use crate::ops::environments::RESTORE_PENDING;
use crate::ops::keys::KeyPatch;
use crate::ops::organizations::OrganizationPatch;
use crate::ops::users::UserPatch;
use crate::store::applications;

/// Suspends or restores a user.
async fn suspend(world: &World, user: &str, suspended: bool) {
    let patch = UserPatch { suspended: Some(suspended), ..UserPatch::default() };
    ops::users::update(&world.store, world.env, &world.context, user_id(user), patch)
        .await
        .expect("changed");
}

async fn patch_key(world: &World, key: KeyId, patch: KeyPatch) {
    ops::keys::update(&world.store, world.env, &world.context, key, patch).await.expect("changed");
}

#[tokio::test]
async fn a_restore_does_not_revive_what_was_revoked_after_the_backup() {
    for engine in engines() {
        let world = World::found(engine, 10).await;
        let (store, env, context) = (&world.store, world.env, &world.context);
        world.organization("org_left", &["leaver"]).await;
        let deleted_org = world.organization("org_deleted", &["member"]).await;
        let suspended_org = world.organization("org_suspended", &[]).await;
        let (good, good_secret) = world.issue_to("good").await;
        let (revoked, revoked_secret) = world.issue_to("u1").await;
        let (disabled, disabled_secret) = world.issue_to("u2").await;
        let (shortened, shortened_secret) = world.issue_to("u3").await;
        let (postponed, postponed_secret) = world.issue_to("u4").await;
        let (rotated, rotated_secret) = world.issue_to("u5").await;
        let (_, suspended_secret) = world.issue_to("suspended").await;
        let (_, deleted_secret) = world.issue_to("deleted").await;
        let (_, again_secret) = world.issue_to("again").await;
        let inside = |user: &str, org: &str| NewOwner::User(user_id(user), Some(org_code(org)));
        let (_, left_secret) = world.issue(inside("leaver", "org_left")).await;
        let (_, member_secret) = world.issue(inside("member", "org_deleted")).await;
        let (_, org_secret) = world.issue(NewOwner::Org(suspended_org.clone())).await;
        let bare = world.import("u6", "imported_secret_1").await;
        let rehashed = world.import("u6", "imported_secret_2").await;
        let ended = world.import("u6", "imported_secret_3").await;

        let backup = world.backup("b.db").await;

        world.revoke(revoked).await;
        patch_key(&world, disabled, KeyPatch { enabled: Some(false), ..KeyPatch::default() }).await;
        let soon = world.clock().now_us() + DAY_US;
        let patch = KeyPatch { expires_at: Some(Some(soon)), ..KeyPatch::default() };
        patch_key(&world, shortened, patch).await;
        let patch = KeyPatch { not_before: Some(Some(soon * 2)), ..KeyPatch::default() };
        patch_key(&world, postponed, patch).await;
        world.rotate(rotated).await;
        suspend(&world, "suspended", true).await;
        ops::users::delete(store, env, context, user_id("deleted")).await.expect("deleted");
        ops::users::delete(store, env, context, user_id("again")).await.expect("deleted");
        let anew = ops::users::NewUser { user: Some(user_id("again")), ..Default::default() };
        ops::users::create(store, env, context, anew).await.expect("made again");
        let leaver = user_id("leaver");
        ops::organizations::remove_member(store, env, context, org_code("org_left"), leaver)
            .await
            .expect("left");
        ops::organizations::delete(store, env, context, deleted_org).await.expect("deleted");
        let patch = OrganizationPatch { suspended: Some(true), ..OrganizationPatch::default() };
        ops::organizations::update(store, env, context, suspended_org, patch)
            .await
            .expect("suspended");
        for (key, text) in [(rehashed, "imported_secret_2"), (ended, "imported_secret_3")] {
            let digests = vec![(sha256(text.as_bytes()), world.pepper.digest(text.as_bytes()))];
            ops::keys::rehash(store, env, key, digests, world.pepper.id()).await.expect("done");
        }
        world.rotate(ended).await;
        world.clock().advance(2 * DAY_US);

        assert_eq!(world.verdict("imported_secret_3").await, "API_KEY_ROTATED", "{engine:?}");
        let refused = [
            (&revoked_secret, "API_KEY_REVOKED"),
            (&disabled_secret, "API_KEY_INACTIVE"),
            (&shortened_secret, "API_KEY_EXPIRED"),
            (&postponed_secret, "API_KEY_NOT_YET_VALID"),
            (&rotated_secret, "API_KEY_ROTATED"),
            (&suspended_secret, "API_KEY_OWNER_SUSPENDED"),
            (&deleted_secret, "API_KEY_REVOKED"),
            (&again_secret, "API_KEY_REVOKED"),
            (&left_secret, "API_KEY_OWNER_SUSPENDED"),
            (&member_secret, "API_KEY_REVOKED"),
            (&org_secret, "API_KEY_OWNER_SUSPENDED"),
        ];
        for (secret, code) in &refused {
            assert_eq!(world.verdict(secret.expose()).await, *code, "{engine:?}, before");
        }
        let (world, report) = world.restore(&backup).await;
        for (secret, code) in &refused {
            assert_eq!(world.verdict(secret.expose()).await, *code, "{engine:?}, after");
        }
        assert_eq!(world.verdict("imported_secret_3").await, "API_KEY_ROTATED", "{engine:?}");
        for text in [good_secret.expose(), "imported_secret_1", "imported_secret_2"] {
            assert_eq!(world.verdict(text).await, "valid", "{engine:?}");
        }
        assert_ne!((good, bare), (rehashed, rehashed));
        assert_eq!(report.revocations_unknown_since, None);
        assert_eq!(report.keys_without_secret, 2, "the rotated ones");
        assert_eq!(report.kept.keys, 4);
        assert_eq!(report.kept.secrets, 2);
        assert!(report.kept.memberships > 0);
    }
}

#[tokio::test]
async fn a_restore_does_not_give_back_what_applications_and_apis_have_lost() {
    for engine in engines() {
        let world = World::found(engine, 11).await;
        let (store, env, context) = (&world.store, world.env, &world.context);
        let (_, doomed_secret) = world.issue_to("u1").await;
        let other = ops::apis::create(store, env, context, "Other".into(), "other".into())
            .await
            .expect("an API")
            .value;
        let scope = ops::apis::create_scope(store, env, context, other, "x".into(), None)
            .await
            .expect("a scope")
            .value;
        let new = |name: &str| {
            ops::applications::create(store, env, context, world.pepper.clone(), name.into())
        };
        let (disabled, _) = new("disabled").await.expect("made").value;
        let (deleted, _) = new("deleted").await.expect("made").value;
        let (stripped, _) = new("stripped").await.expect("made").value;
        let (parted, _) = new("parted").await.expect("made").value;
        let wishes = vec![(stripped, true), (parted, true)];
        ops::apis::connect(store, env, context, other, wishes).await.expect("connected");
        for app in [stripped, parted] {
            ops::apis::grant(store, env, context, (other, app, scope), true)
                .await
                .expect("granted");
        }
        let secrets = Secrets::read(&world.secrets_path()).expect("secrets");
        let first_kid = {
            let mut conn = store.read().await.expect("a connection");
            store::sealed::signing_keys_any_environment(&mut conn).await.expect("keys")[0]
                .kid
                .clone()
        };
        let backup = world.backup("b.db").await;

        ops::applications::update(store, env, context, disabled, None, Some(false))
            .await
            .expect("disabled");
        ops::applications::delete(store, env, context, deleted).await.expect("deleted");
        ops::apis::grant(store, env, context, (other, stripped, scope), false)
            .await
            .expect("taken");
        ops::apis::connect(store, env, context, other, vec![(parted, false)])
            .await
            .expect("parted");
        ops::applications::rotate_secret(store, env, context, world.pepper.clone(), world.app, 0)
            .await
            .expect("rotated");
        ops::apis::delete(store, env, context, world.api).await.expect("deleted");
        ops::environments::rotate_signing_key(store, env, context, &secrets)
            .await
            .expect("rotated");
        ops::environments::remove_signing_key(store, env, context, first_kid.clone())
            .await
            .expect("removed");
        let patch = ops::environments::EnvironmentPatch {
            user_registration: Some(false),
            ..Default::default()
        };
        ops::environments::update(store, env, context, patch).await.expect("changed");

        let (world, report) = world.restore(&backup).await;
        let mut conn = world.store.read().await.expect("a connection");
        assert!(applications::find(&mut conn, env, deleted).await.expect("asked").is_none());
        let found = applications::find(&mut conn, env, disabled).await.expect("asked");
        assert!(found.expect("there").disabled_at.is_some());
        let grants = applications::grants_any_environment(&mut conn).await.expect("asked");
        assert!(!grants.iter().any(|grant| grant.api == other), "{engine:?}");
        let connected = applications::connected(&mut conn, env, other).await.expect("asked");
        let connected: Vec<AppId> = connected.iter().map(|one| one.app).collect();
        assert_eq!(connected, [stripped]);
        let keys = store::sealed::signing_keys_any_environment(&mut conn).await.expect("asked");
        assert_eq!(keys.len(), 1);
        assert_ne!(keys[0].kid, first_kid);
        let environment = store::environments::find(&mut conn, env).await.expect("asked");
        assert!(!environment.expect("there").user_registration);
        drop(conn);
        assert_eq!(world.verdict(doomed_secret.expose()).await, "API_KEY_REVOKED");
        assert_eq!(report.applications_without_secret, 1);
    }
}

/// What the tokens carry that the world's application gets now.
async fn generation(world: &World) -> i64 {
    let mut conn = world.store.read().await.expect("a connection");
    let secrets = applications::secrets_any_environment(&mut conn).await.expect("asked");
    secrets.into_iter().find(|secret| secret.app == world.app).expect("a secret").generation
}

#[tokio::test]
async fn a_restore_does_not_give_back_tokens_that_had_ended() {
    for engine in engines() {
        let world = World::found(engine, 19).await;
        let before = generation(&world).await;
        let backup = world.backup("b.db").await;
        for enabled in [false, true] {
            let (store, context) = (&world.store, &world.context);
            ops::applications::update(store, world.env, context, world.app, None, Some(enabled))
                .await
                .expect("changed");
        }
        let after = generation(&world).await;
        assert!(after > before);
        let (world, report) = world.restore(&backup).await;
        assert_eq!(generation(&world).await, after, "{engine:?}");
        assert_eq!(report.kept.applications, 1);
    }
}

#[tokio::test]
async fn what_the_backup_had_revoked_stays_revoked() {
    let world = World::found(Engine::Sqlite, 12).await;
    let (revoked, secret) = world.issue_to("u1").await;
    let (disabled, other) = world.issue_to("u2").await;
    world.revoke(revoked).await;
    patch_key(&world, disabled, KeyPatch { enabled: Some(false), ..KeyPatch::default() }).await;
    let backup = world.backup("b.db").await;
    patch_key(&world, disabled, KeyPatch { enabled: Some(true), ..KeyPatch::default() }).await;
    let (world, _) = world.restore(&backup).await;
    assert_eq!(world.verdict(secret.expose()).await, "API_KEY_REVOKED");
    assert_eq!(world.verdict(other.expose()).await, "API_KEY_INACTIVE");
}

#[tokio::test]
async fn an_imported_key_stays_ended_even_if_everything_happened_at_once() {
    // The clock stands still: the imported secret, its digest and its successor have one date.
    let world = World::found(Engine::Sqlite, 33).await;
    let key = world.import("u1", "imported_secret").await;
    let dest = world.path().join("b.db");
    backup(&world.store, &dest, None, &Progress::silent()).await.expect("backed up");
    let text = b"imported_secret";
    let digests = vec![(sha256(text), world.pepper.digest(text))];
    let id = world.pepper.id();
    ops::keys::rehash(&world.store, world.env, key, digests, id).await.expect("done");
    world.rotate(key).await;
    let (world, _) = world.restore(&dest).await;
    assert_eq!(world.verdict("imported_secret").await, "API_KEY_ROTATED");
}

#[tokio::test]
async fn a_deleted_user_is_not_registered_again_by_a_restore() {
    let world = World::found(Engine::Sqlite, 13).await;
    let backup = world.backup("b.db").await;
    let (_, _) = world.issue_to("late").await;
    ops::users::delete(&world.store, world.env, &world.context, user_id("late"))
        .await
        .expect("deleted");
    let (world, _) = world.restore(&backup).await;
    let new = world.new_key(NewOwner::User(user_id("late"), None));
    let pepper = world.pepper.clone();
    let error = ops::keys::issue(&world.store, world.env, &world.context, pepper, new)
        .await
        .expect_err("deleted");
    assert_eq!(error.code, "DELETED_USER");
}

#[tokio::test]
async fn a_restore_goes_back_in_time_with_everything_else() {
    for engine in engines() {
        let world = World::found(engine, 14).await;
        let (key, secret) = world.issue_to("u1").await;
        let backup = world.backup("b.db").await;
        let (_, late) = world.issue_to("u2").await;
        let patch = KeyPatch { name: Some("renamed".into()), ..KeyPatch::default() };
        patch_key(&world, key, patch).await;
        let (world, report) = world.restore(&backup).await;
        assert_eq!(world.verdict(secret.expose()).await, "valid");
        assert_eq!(world.verdict(late.expose()).await, "API_KEY_INVALID", "{engine:?}");
        let renamed = "select count(*) from api_keys where name = 'renamed'";
        assert_eq!(world.number(renamed).await, 0);
        assert_eq!(report.keys, 1);
        if engine == Engine::Sqlite {
            assert_eq!(report.backup_taken_at, "2026-01-01T00:00:00.000Z");
        }
        assert_eq!(report.backup_version, env!("CARGO_PKG_VERSION"));
        assert_eq!(world.meta("backup_taken_at").await, None);
    }
}

#[tokio::test]
async fn without_the_old_store_keys_are_refused_until_the_operator_confirms() {
    for engine in engines() {
        let mut world = World::found(engine, 15).await;
        let (_, secret) = world.issue_to("u1").await;
        let backup = world.backup("b.db").await;
        world.location = empty_place(engine, &world.path().join("elsewhere")).await;
        std::fs::create_dir(world.path().join("elsewhere")).expect("a folder");
        let (world, report) = world.restore(&backup).await;
        assert_eq!(report.replaced, None);
        assert_eq!(report.revocations_unknown_since, Some(report.backup_taken_at));
        assert_eq!(world.verdict(secret.expose()).await, "withheld", "{engine:?}");
        ops::environments::confirm_restore(&world.store, world.env, &world.context)
            .await
            .expect("confirmed");
        assert_eq!(world.verdict(secret.expose()).await, "valid");
    }
}

#[tokio::test]
async fn an_unrelated_or_older_store_in_the_place_knows_no_revocations() {
    for engine in engines() {
        let world = World::found(engine, 16).await;
        let early = world.backup("early.db").await;
        let (_, secret) = world.issue_to("u1").await;
        let late = world.backup("late.db").await;
        let stranger = World::found(engine, 17).await;
        std::fs::copy(world.secrets_path(), stranger.secrets_path()).expect("copied");
        let stranger = World { env: world.env, ..stranger };
        let (stranger, report) = stranger.restore(&late).await;
        assert!(report.revocations_unknown_since.is_some(), "{engine:?}, unrelated");
        assert!(report.replaced.is_some_and(|path| path.exists()));
        assert_eq!(stranger.verdict(secret.expose()).await, "withheld");

        let fresh = World::found(engine, 18).await;
        std::fs::copy(world.secrets_path(), fresh.secrets_path()).expect("copied");
        let fresh = World { env: world.env, ..fresh };
        fresh.clock().advance(DAY_US);
        let (fresh, _) = fresh.restore(&early).await;
        ops::environments::confirm_restore(&fresh.store, fresh.env, &fresh.context)
            .await
            .expect("confirmed");
        fresh.clock().advance(DAY_US);
        let (fresh, report) = fresh.restore(&late).await;
        assert!(report.revocations_unknown_since.is_some(), "{engine:?}, older");
        assert_eq!(fresh.verdict(secret.expose()).await, "withheld");
    }
}

#[tokio::test]
async fn a_store_that_waits_for_confirmation_cannot_be_confirmed_by_backup_and_restore() {
    let mut world = World::found(Engine::Sqlite, 19).await;
    let (_, secret) = world.issue_to("u1").await;
    let backup = world.backup("b.db").await;
    std::fs::create_dir(world.path().join("elsewhere")).expect("a folder");
    world.location = empty_place(Engine::Sqlite, &world.path().join("elsewhere")).await;
    let (world, first) = world.restore(&backup).await;
    let again = world.backup("again.db").await;
    let (world, second) = world.restore(&again).await;
    assert_eq!(second.revocations_unknown_since, first.revocations_unknown_since);
    assert_eq!(world.verdict(secret.expose()).await, "withheld");
    assert!(world.meta(RESTORE_PENDING).await.is_some());
    // Elsewhere, too, it waits since the same moment and not since its own backup.
    let elsewhere = world.path().join("yet_elsewhere");
    std::fs::create_dir(&elsewhere).expect("a folder");
    let world = World { location: empty_place(Engine::Sqlite, &elsewhere).await, ..world };
    let (_, third) = world.restore(&again).await;
    assert_eq!(third.revocations_unknown_since, first.revocations_unknown_since);
}

#[tokio::test]
async fn a_damaged_store_is_kept_and_its_revocations_are_unknown() {
    let world = World::found(Engine::Sqlite, 20).await;
    let (_, secret) = world.issue_to("u1").await;
    let backup = world.backup("b.db").await;
    let database = Folder::existing(world.path()).database();
    close_for_good(&world).await;
    let mut bytes = std::fs::read(&database).expect("there");
    let rest = bytes.split_off(4_096);
    bytes.extend(rest.iter().map(|_| 0xa5));
    std::fs::write(&database, &bytes).expect("damaged");
    let (world, report) = world.restore(&backup).await;
    assert!(report.replaced_unreadable);
    let kept = report.replaced.expect("kept");
    assert_eq!(std::fs::read(kept).expect("there"), bytes);
    assert_eq!(world.verdict(secret.expose()).await, "withheld");
}

#[tokio::test]
async fn a_failed_restore_over_a_damaged_store_puts_it_back() {
    let world = World::found(Engine::Sqlite, 31).await;
    let broken = world.backup("broken.db").await;
    break_inside(&world, &broken).await;
    let database = Folder::existing(world.path()).database();
    std::fs::write(&database, [0xa5; 10_000]).expect("damaged");
    let files = listing(world.path());
    world.try_restore(&broken).await.expect_err("fails half way");
    assert_eq!(std::fs::read(&database).expect("there"), [0xa5; 10_000]);
    assert_eq!(listing(world.path()), files);
}

#[tokio::test]
async fn a_backup_is_not_restored_to_where_the_store_no_longer_is() {
    let world = World::found(Engine::Sqlite, 32).await;
    let backup = world.backup("b.db").await;
    let other = tempfile::tempdir().expect("a folder");
    let to = empty_place(Engine::Sqlite, other.path()).await;
    world.try_move(&to).await.expect("moved");
    let error = world.try_restore(&backup).await.expect_err("it is elsewhere");
    assert_eq!(error.code, "STORE_MOVED");
}

/// Makes a backup that looks well until its last table is read.
async fn break_inside(world: &World, backup: &Path) {
    let location = Location::File(backup.to_path_buf());
    let (clock, entropy) = (world.clock().clone(), Entropy::seeded(1));
    let store = Store::open(&location, false, clock, entropy).await.expect("opens");
    let mut conn = store.side().await.expect("a connection");
    conn.raw("update change_log set at = 'no number'").await.expect("broken");
    drop(conn);
    close(store).await;
}

/// Brings everything into the SQLite file itself, as a clean end does.
async fn close_for_good(world: &World) {
    let mut conn = world.store.side().await.expect("a connection");
    conn.raw("pragma wal_checkpoint(truncate)").await.expect("everything is in the file");
}

#[tokio::test]
async fn the_kept_store_can_be_restored_in_its_turn() {
    for engine in engines() {
        let world = World::found(engine, 21).await;
        let backup = world.backup("b.db").await;
        let (_, late) = world.issue_to("u1").await;
        let (world, report) = world.restore(&backup).await;
        assert_eq!(world.verdict(late.expose()).await, "API_KEY_INVALID");
        let kept = report.replaced.expect("kept");
        world.clock().advance(DAY_US);
        let (world, report) = world.restore(&kept).await;
        // The key was forgotten by the restore in between, which counts as a revocation.
        assert_eq!(world.verdict(late.expose()).await, "API_KEY_REVOKED", "{engine:?}");
        assert_eq!(report.revocations_unknown_since, None);
    }
}

#[tokio::test]
async fn a_restore_never_repeats_a_sequence_number_and_is_another_life() {
    for engine in engines() {
        let world = World::found(engine, 22).await;
        let backup = world.backup("b.db").await;
        for user in ["u1", "u2", "u3"] {
            world.issue_to(user).await;
        }
        let head = world.number("select seq from change_head").await;
        let life = world.meta("incarnation").await;
        let (world, _) = world.restore(&backup).await;
        assert_eq!(world.number("select seq from change_head").await, head + 1, "{engine:?}");
        assert_eq!(world.number("select min(seq) from change_log").await, head + 1);
        assert_ne!(world.meta("incarnation").await, life);
        let (_, secret) = world.issue_to("u9").await;
        assert_eq!(world.number("select seq from change_head").await, head + 2);
        assert_eq!(world.verdict(secret.expose()).await, "valid");
    }
}

#[tokio::test]
async fn audit_records_and_counts_newer_than_the_backup_survive() {
    for engine in engines() {
        let world = World::found(engine, 23).await;
        let (key, _) = world.issue_to("u1").await;
        world.count([7; 16], key, 10).await;
        let backup = world.backup("b.db").await;
        let (late, _) = world.issue_to("u2").await;
        world.count([7; 16], key, 25).await;
        world.count([7; 16], late, 3).await;
        world.count([8; 16], key, 100).await;
        let records = world.number("select count(*) from audit_log").await;
        let (world, report) = world.restore(&backup).await;
        assert_eq!(report.kept.audit_records, 1);
        assert_eq!(world.number("select count(*) from audit_log").await, records + 1);
        assert_eq!(world.number("select max(audit_no) from audit_log").await, records + 1);
        let last = "select count(*) from audit_log where action = 'store.restored'
                    and audit_no = (select max(audit_no) from audit_log)
                    and change_seq = (select seq from change_head)";
        assert_eq!(world.number(last).await, 1, "{engine:?}");
        assert_eq!(world.counted(key).await, 125);
        assert_eq!(world.counted(late).await, 0);
        assert_eq!(world.number("select count(*) from counter_files").await, 2);
    }
}

#[tokio::test]
async fn a_failed_restore_leaves_the_old_store_whole() {
    for engine in engines() {
        let world = World::found(engine, 24).await;
        let (_, secret) = world.issue_to("u1").await;
        let good = world.backup("b.db").await;
        let broken = world.path().join("broken.db");
        std::fs::copy(&good, &broken).expect("copied");
        break_inside(&world, &broken).await;
        world.issue_to("u2").await;
        let before = world.sums().await;
        let files = listing(world.path());
        world.try_restore(&broken).await.expect_err("fails half way");
        let mut reopened = world.reopen().await;
        assert_eq!(reopened.sums().await, before, "{engine:?}");
        assert_eq!(reopened.verdict(secret.expose()).await, "valid");
        assert_eq!(listing(reopened.path()), files);
        let nowhere = tempfile::tempdir().expect("a folder");
        reopened.location = empty_place(engine, nowhere.path()).await;
        reopened.try_restore(&broken).await.expect_err("fails half way");
        assert_eq!(std::fs::read_dir(nowhere.path()).expect("a folder").count(), 0);
    }
}

/// The names in a folder, without what SQLite keeps beside an open file.
fn listing(path: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(path)
        .expect("a folder")
        .map(|entry| entry.expect("an entry").file_name().into_string().expect("text"))
        .filter(|name| !name.ends_with("-wal") && !name.ends_with("-shm") && name != "lock")
        .collect();
    names.sort();
    names
}

#[tokio::test]
async fn what_is_no_backup_of_this_store_is_refused_before_anything_is_touched() {
    let world = World::found(Engine::Sqlite, 25).await;
    let good = world.backup("b.db").await;
    let before = world.sums().await;
    let text = world.path().join("text");
    std::fs::write(&text, "no database at all, but a few more words than a header").expect("made");
    let damaged = world.path().join("damaged.db");
    let mut bytes = std::fs::read(&good).expect("there");
    let size = bytes.len();
    bytes.get_mut(size / 2..).expect("half").fill(0x5a);
    std::fs::write(&damaged, bytes).expect("made");
    close_for_good(&world).await;
    let raw = world.path().join("raw.db");
    std::fs::copy(Folder::existing(world.path()).database(), &raw).expect("copied");
    let missing = world.path().join("missing.db");
    for path in [&text, &damaged, &raw, &missing] {
        let error = world.try_restore(path).await.expect_err("no backup");
        assert_eq!(error.code, "NOT_A_BACKUP", "{}", path.display());
    }
    let stranger = World::found(Engine::Sqlite, 26).await;
    let foreign = stranger.backup("f.db").await;
    let error = world.try_restore(&foreign).await.expect_err("another store's secrets");
    assert_eq!(error.code, "WRONG_SECRETS_FILE");
    assert_eq!(world.sums().await, before);
}

#[tokio::test]
async fn a_backup_of_a_newer_keyward_is_refused() {
    let world = World::found(Engine::Sqlite, 27).await;
    let backup = world.backup("b.db").await;
    let location = Location::File(backup.clone());
    let (clock, entropy) = (world.clock().clone(), Entropy::seeded(1));
    let store = Store::open(&location, false, clock, entropy).await.expect("opens");
    let mut conn = store.side().await.expect("a connection");
    let newer = (schema::VERSION + 1).to_string();
    schema::set_meta(&mut conn, "schema_version", &newer).await.expect("newer");
    drop(conn);
    close(store).await;
    let error = world.try_restore(&backup).await.expect_err("newer");
    assert_eq!(error.code, "NEWER_STORE");
}

#[tokio::test]
async fn a_lost_secrets_file_comes_back_from_beside_the_backup() {
    let mut world = World::found(Engine::Sqlite, 28).await;
    let (_, secret) = world.issue_to("u1").await;
    let dest = world.path().join("b.db");
    let secrets = world.secrets_path();
    backup(&world.store, &dest, Some(&secrets), &Progress::silent()).await.expect("backed up");
    let elsewhere = tempfile::tempdir().expect("a folder");
    let old = std::mem::replace(&mut world.folder, elsewhere);
    world.location = empty_place(Engine::Sqlite, world.path()).await;
    let source = old.path().join("b.db");
    let (world, report) = world.restore(&source).await;
    assert!(report.secrets_installed);
    ops::environments::confirm_restore(&world.store, world.env, &world.context)
        .await
        .expect("confirmed");
    assert_eq!(world.verdict(secret.expose()).await, "valid");
}

#[tokio::test]
async fn a_restore_is_refused_while_a_server_holds_the_folder() {
    let world = World::found(Engine::Sqlite, 29).await;
    let backup = world.backup("b.db").await;
    let _server = Folder::existing(world.path()).lock().expect("free");
    let error = world.try_restore(&backup).await.expect_err("in use");
    assert_eq!(error.code, "FOLDER_IN_USE");
}

#[tokio::test]
async fn a_restore_waits_for_the_leases_of_dead_servers_and_refuses_beside_a_live_one() {
    if !engines().contains(&Engine::Postgres) {
        return;
    }
    let world = World::found(Engine::Postgres, 30).await;
    let backup = world.backup("b.db").await;
    let node = [3u8; 16];
    let lease_us = 15_000_000_i64;
    let renew = async |world: &World| {
        let mut conn = world.store.side().await.expect("a connection");
        store::run!(
            &mut conn,
            "insert into node_lease (node_id, gen, acked_seq, lease_us, renewed_at)
             values ($1, 1, 1, $2, 0)
             on conflict (node_id) do update set gen = node_lease.gen + 1",
            node.as_slice(),
            lease_us,
        )
        .expect("renewed");
    };
    renew(&world).await;
    // Time passes in small steps; a live server renews its row in between.
    let live = async {
        loop {
            tokio::time::sleep(Duration::from_millis(5)).await;
            world.clock().advance(lease_us / 20);
            renew(&world).await;
        }
    };
    let refused = tokio::select! {
        () = live => unreachable!("it never ends"),
        refused = world.try_restore(&backup) => refused.expect_err("a server runs"),
    };
    assert_eq!(refused.code, "SERVER_RUNNING");
    let began = world.clock().boot_us();
    let dead = async {
        loop {
            tokio::time::sleep(Duration::from_millis(5)).await;
            world.clock().advance(lease_us / 20);
        }
    };
    let restored = tokio::select! {
        () = dead => unreachable!("it never ends"),
        restored = world.try_restore(&backup) => restored,
    };
    restored.expect("the lease has ended");
    assert!(world.clock().boot_us() - began >= lease_us);
}
