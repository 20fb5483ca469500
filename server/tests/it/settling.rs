//! What an answer waits for: every process that could still say yes.
//!
//! The clock stands still here, so that no lease runs out by itself: an answer that waits for
//! another node goes on waiting until the test lets that node acknowledge.

use std::pin::pin;

use serde_json::{Value, json};

use crate::world::{Engine, World};

/// The length of a lease in µs.
const LEASE_US: i64 = 15_000_000;

/// Another node that verifies from the same database and has heard of nothing yet.
async fn silent_node(world: &World) {
    let sql = "insert into node_lease (node_id, gen, acked_seq, lease_us, renewed_at)
               values (decode(repeat('ab', 16), 'hex'), 1, 0, 15000000, 0)";
    world.rows::<(i64,)>(sql).await;
}

/// The number of the last change.
async fn head(world: &World) -> i64 {
    world.rows::<(i64,)>("select seq from change_head").await[0].0
}

/// Asks twice for the same narrowing, hanging up on the first call once its change is committed.
/// The second must not be answered before the silent node has acknowledged.
async fn repeated(world: &World, method: &str, path: &str, body: Option<Value>) -> u16 {
    let before = head(world).await;
    let mut first = pin!(world.call(method, path, body.clone()));
    let committed = async { while head(world).await == before {} };
    tokio::select! {
        answer = &mut first => panic!("{method} {path}: {} before all knew", answer.text),
        () = committed => {}
    }
    let mut second = pin!(world.call(method, path, body));
    let meanwhile = async {
        for _ in 0..20 {
            world.get("/apis").await.expect(200);
        }
    };
    tokio::select! {
        answer = &mut second => panic!("{method} {path}: {} before all knew", answer.text),
        () = meanwhile => {}
    }
    let sql = "update node_lease set acked_seq = (select seq from change_head)";
    world.rows::<(i64,)>(sql).await;
    first.await.expect(200);
    second.await.status.as_u16()
}

#[tokio::test]
async fn a_repeated_narrowing_is_not_acknowledged_before_the_first() {
    let world = World::start(Engine::Postgres).await;
    let api = world.api("profiles", &["read:profile"]).await;
    let scopes = world.get(&format!("/apis/{api}/scopes")).await.expect(200);
    let scope = scopes["scopes"][0]["id"].as_str().expect("an id").to_owned();
    let (key, _) = world.user_key(&api, "kp_1", &[]).await;
    let made = world.post("/applications", json!({ "name": "a", "type": "m2m" })).await.expect(201);
    let app = made["application"]["id"].as_str().expect("an id").to_owned();
    let connect = json!({ "applications": [{ "id": app }] });
    world.patch(&format!("/apis/{api}/applications"), connect).await.expect(200);
    let grant = format!("/apis/{api}/applications/{app}/scopes/{scope}");
    world.call("POST", &grant, None).await.expect(200);
    let made = world.post("/organization", json!({ "name": "o" })).await.expect(200);
    let org = made["organization"]["code"].as_str().expect("a code").to_owned();
    let members = format!("/organizations/{org}/users");
    world.post(&members, json!({ "users": [{ "id": "kp_1" }] })).await.expect(200);
    silent_node(&world).await;
    let status = json!({ "status": "inactive" });
    let suspended = json!({ "is_suspended": true });
    for (method, path, body, repeat) in [
        ("PATCH", format!("/api_keys/{key}"), Some(status), 200),
        ("DELETE", format!("/api_keys/{key}"), None, 200),
        ("DELETE", grant, None, 200),
        ("DELETE", format!("/apis/{api}/scopes/{scope}"), None, 404),
        ("PATCH", format!("/applications/{app}"), Some(json!({ "is_active": false })), 200),
        ("DELETE", format!("/applications/{app}"), None, 404),
        ("DELETE", format!("{members}/kp_1"), None, 200),
        ("PATCH", "/user?id=kp_1".to_owned(), Some(suspended.clone()), 200),
        ("DELETE", "/user?id=kp_1".to_owned(), None, 200),
        ("PATCH", format!("/organization/{org}"), Some(suspended), 200),
        ("DELETE", format!("/organization/{org}"), None, 200),
        ("DELETE", format!("/apis/{api}"), None, 404),
    ] {
        assert_eq!(repeated(&world, method, &path, body).await, repeat, "{method} {path}");
    }
}

/// Others wait for the lease that a node's row promises. While the node has applied changes that
/// its row does not tell of, it must not take a longer one.
#[tokio::test]
async fn a_lease_is_not_extended_while_others_do_not_know_what_was_applied() {
    let world = World::start(Engine::Postgres).await;
    let margin = || world.app().shared.lease.margin_us(&world.clock);
    assert_eq!(margin(), LEASE_US);
    world.api("first", &[]).await;
    // Half of the time for which a node keeps changes of its own to itself.
    world.clock.advance(100_000);
    // A change is answered once it is applied, and the next once that round has ended.
    world.api("second", &[]).await;
    world.api("third", &[]).await;
    assert_eq!(margin(), LEASE_US - 100_000);
    let told = "select acked_seq from node_lease";
    assert!(world.rows::<(i64,)>(told).await[0].0 < head(&world).await);
    world.clock.advance(100_000);
    while margin() < LEASE_US {
        tokio::task::yield_now().await;
    }
    assert_eq!(world.rows::<(i64,)>(told).await[0].0, head(&world).await);
}

/// Has the server find itself in another life of the database, as after a failover, and follow it.
async fn fail_over(world: &World, life: &'static str) {
    let standing = || world.app().shared.followed.borrow().standing.expect("loaded");
    let before = standing().incarnation;
    world.rows::<(i64,)>(life).await;
    while standing().incarnation == before || !world.app().is_ready() {
        tokio::task::yield_now().await;
    }
}

/// Revokes `key`. The answer must not come before the clock has moved by all of `steps_us`.
async fn revoked_after(world: &World, key: &str, steps_us: [i64; 2]) {
    let path = format!("/api_keys/{key}");
    let mut revoked = pin!(world.delete(&path));
    let before = head(world).await;
    let committed = async { while head(world).await == before {} };
    tokio::select! {
        answer = &mut revoked => panic!("{} while lease rows may be lost", answer.text),
        () = committed => {}
    }
    for moved_us in steps_us {
        let meanwhile = async {
            for _ in 0..20 {
                world.get("/apis").await.expect(200);
            }
        };
        tokio::select! {
            answer = &mut revoked => panic!("{} while lease rows may be lost", answer.text),
            () = meanwhile => world.clock.advance(moved_us),
        }
    }
    revoked.await.expect(200);
}

/// A failover can lose rows of the lease table, so that acknowledgements alone prove nothing.
#[tokio::test]
async fn after_a_failover_a_revocation_waits_for_leases_whose_rows_may_be_lost() {
    let mut world = World::start(Engine::Postgres).await;
    let api = world.api("profiles", &[]).await;
    let mut keys = Vec::new();
    for _ in 0..4 {
        keys.push(world.user_key(&api, "kp_1", &[]).await.0);
    }
    let deleted = format!("/api_keys/{}", keys[0]);
    world.delete(&deleted).await.expect(200);
    fail_over(&world, "update meta set value = 'second' where name = 'incarnation'").await;
    let quarantine_us = LEASE_US + LEASE_US / 100;
    revoked_after(&world, &keys[1], [quarantine_us - 1, 1]).await;
    // It is over by now.
    let deleted = format!("/api_keys/{}", keys[2]);
    world.delete(&deleted).await.expect(200);
    // A process that starts right after a failover reads of it in the store.
    fail_over(&world, "update meta set value = 'third' where name = 'incarnation'").await;
    world.stop().await;
    world.start_again().await;
    // By the database's clock, which does not stand still, some of it has passed.
    revoked_after(&world, &keys[3], [LEASE_US / 3, quarantine_us]).await;
}

/// Whoever waited this node out and removed its row has changed what it does not know of.
#[tokio::test]
async fn a_node_whose_row_was_reaped_does_not_verify_before_it_has_loaded_anew() {
    let world = World::start(Engine::Postgres).await;
    let api = world.api("profiles", &[]).await;
    let (_, secret) = world.user_key(&api, "kp_1", &[]).await;
    assert_eq!(world.verify(&secret).await["is_valid"], true);
    // Only a load finds this: the change log does not tell of it.
    world.rows::<(i64,)>("update api_keys set revoked_at = 1, revoke_reason = 'leaked'").await;
    world.rows::<(i64,)>("delete from node_lease").await;
    assert_eq!(world.verify(&secret).await["is_valid"], true);
    world.clock.advance(LEASE_US);
    let verified = loop {
        let answer = world.post("/api_keys/verify", json!({ "api_key": secret })).await;
        if answer.status == 200 {
            break answer.json();
        }
        assert_eq!(answer.status, 503, "{}", answer.text);
    };
    assert_eq!(verified["code"], "API_KEY_REVOKED");
    let told = "select acked_seq from node_lease";
    assert_eq!(world.rows::<(i64,)>(told).await, [(head(&world).await,)]);
}
