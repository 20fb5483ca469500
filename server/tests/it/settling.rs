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
