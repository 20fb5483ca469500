//! The life of a key: issued, shown, used, rotated, disabled, expired, revoked.

use serde_json::json;

use crate::world::{Engine, World, on_both_engines};

on_both_engines! {
    /// Promise 6: a secret is seen once.
    async fn a_new_key_is_shown_with_everything_but_its_secret(world: World) {
        let api = world.api("profiles", &["read:profile", "write:profile"]).await;
        let body = json!({
            "name": " nightly ", "api_id": api, "type": "user", "user_id": "kp_1",
            "scope_ids": ["write:profile", "read:profile"], "description": "for the export",
            "metadata": { "team": "Büro 😀" }, "not_before": "2026-11-22T20:00:00Z",
            "expires_on": "2027-01-01T00:00:00+01:00",
        });
        let created = world.post("/api_keys", body).await;
        assert_eq!(created.headers["cache-control"], "no-store");
        let created = created.expect(201);
        assert_eq!(created["code"], "API_KEY_CREATED");
        let (id, secret) = (&created["api_key"]["id"], created["api_key"]["key"].as_str());
        let secret = secret.expect("a secret");
        assert_eq!(created["api_key"].as_object().expect("an object").len(), 2);
        assert!(secret.starts_with("k_live_") && secret.len() == 56, "a secret of wire.md §3");

        let id = id.as_str().expect("an id");
        let shown = world.get(&format!("/api_keys/{id}")).await;
        assert!(!shown.text.contains(secret));
        let shown = shown.expect(200);
        let expected = json!({
            "code": "OK", "message": "Success",
            "api_key": {
                "id": id, "name": "nightly", "description": "for the export", "type": "user",
                "status": "active", "key_prefix": "k_live", "key_suffix": &secret[52..],
                "created_on": "2026-11-22T21:24:03.512Z", "created_by": world.client_id,
                "last_verified_on": null, "last_verified_ip": null, "verification_count": 0,
                "organization_id": null, "user_id": "kp_1", "api_ids": [api],
                "scopes": ["read:profile", "write:profile"],
                "expires_on": "2026-12-31T23:00:00.000Z",
                "not_before": "2026-11-22T20:00:00.000Z", "metadata": { "team": "Büro 😀" },
            }
        });
        assert_eq!(shown, expected);
        let listed = world.get("/api_keys").await.expect(200);
        assert_eq!(listed["api_keys"], json!([expected["api_key"]]));
    }
}

on_both_engines! {
    async fn every_kind_of_owner_is_told_apart_and_inferred(world: World) {
        let api = world.api("profiles", &[]).await;
        let org = json!({ "name": "Acme", "code": "org_acme" });
        world.post("/organization", org).await.expect(200);
        let members = json!({ "users": [{ "id": "kp_2" }] });
        world.post("/user", json!({ "id": "kp_2" })).await.expect(200);
        world.post("/organizations/org_acme/users", members).await.expect(200);
        for (asked, kind, user, org) in [
            (json!({ "user_id": "kp_1" }), "user", json!("kp_1"), json!(null)),
            (json!({ "org_code": "org_acme" }), "organization", json!(null), json!("org_acme")),
            (
                json!({ "user_id": "kp_2", "org_code": "org_acme" }),
                "user",
                json!("kp_2"),
                json!("org_acme"),
            ),
            (json!({ "type": "environment" }), "environment", json!(null), json!(null)),
        ] {
            let mut body = json!({ "name": "a key", "api_id": api });
            let fields = body.as_object_mut().expect("an object");
            fields.extend(asked.as_object().expect("an object").clone());
            let (id, secret) = world.key(body).await;
            let verified = world.verify(&secret).await;
            assert_eq!(verified["is_valid"], true, "{asked}");
            assert_eq!(verified["type"], kind);
            assert_eq!((&verified["user_id"], &verified["org_code"]), (&user, &org));
            let shown = world.get(&format!("/api_keys/{id}")).await.expect(200);
            assert_eq!(shown["api_key"]["type"], kind);
            assert_eq!(shown["api_key"]["user_id"], user);
            assert_eq!(shown["api_key"]["organization_id"], org);
        }
    }
}

on_both_engines! {
    /// Nodes' clocks differ by what their questions to the database take.
    async fn a_rotated_secret_ends_with_the_change_whatever_a_clock_says(world: World) {
        world.pass_seconds(60).await;
        let api = world.api("profiles", &[]).await;
        let (id, old) = world.user_key(&api, "kp_1", &[]).await;
        assert_eq!(world.verify(&old).await["code"], "API_KEY_VERIFIED");
        world.put(&format!("/api_keys/{id}")).await.expect(201);
        // As on a node whose clock is behind the one that carried the rotation out.
        world.advance_seconds(-30);
        assert_eq!(world.verify(&old).await["code"], "API_KEY_ROTATED");
    }
}

on_both_engines! {
    /// Promise 2, for a rotation without an overlap.
    async fn a_rotated_secret_is_refused_and_the_count_goes_on(world: World) {
        let api = world.api("profiles", &[]).await;
        let (id, old) = world.user_key(&api, "kp_1", &[]).await;
        world.verify(&old).await;
        world.verify(&old).await;
        let rotated = world.put(&format!("/api_keys/{id}")).await.expect(201);
        assert_eq!(rotated["code"], "API_KEY_ROTATED");
        assert_eq!(rotated["api_key"]["id"], *id);
        let new = rotated["api_key"]["key"].as_str().expect("a secret");
        assert_ne!(new, old);

        let refused = world.verify(&old).await;
        assert_eq!(refused["code"], "API_KEY_ROTATED");
        assert_eq!(refused["is_valid"], false);
        assert_eq!(refused["status"], "active");
        assert_eq!(refused["key_id"], *id);
        assert_eq!(refused["verification_count"], 2, "a refusal does not count");
        assert_eq!(refused["refusal"]["reason"], "rotated");
        let verified = world.verify(new).await;
        assert_eq!((&verified["key_id"], &verified["verification_count"]), (&json!(id), &json!(3)));
        let shown = world.get(&format!("/api_keys/{id}")).await.expect(200);
        assert_eq!(shown["api_key"]["key_suffix"], new[52..]);
        assert_eq!(shown["api_key"]["verification_count"], 3);
    }
}

on_both_engines! {
    /// A published client retries a DELETE that timed out; it must wait like the first.
    async fn a_key_is_revoked_once_and_every_repeat_is_told_of_that_change(world: World) {
        let api = world.api("profiles", &["read:profile"]).await;
        let (id, secret) = world.user_key(&api, "kp_1", &["read:profile"]).await;
        let path = format!("/api_keys/{id}");
        let first = world.delete(&path).await.expect(200);
        assert_eq!(first["code"], "API_KEY_DELETED");
        let verified = world.verify(&secret).await;
        assert_eq!(verified["code"], "API_KEY_REVOKED");
        assert_eq!(
            (&verified["status"], &verified["user_id"]),
            (&json!("revoked"), &json!("kp_1"))
        );
        // Something else changes in between; the repeat is still told of the first change.
        world.user_key(&api, "kp_1", &[]).await;
        let second = world.delete(&path).await.expect(200);
        assert_eq!(first["seq"], second["seq"]);
        assert_eq!(world.get(&path).await.expect(200)["api_key"]["status"], "revoked");
        assert_eq!(world.put(&path).await.expect(400)["errors"][0]["code"], "KEY_REVOKED");
        let renamed = world.patch(&path, json!({ "name": "again" })).await.expect(400);
        assert_eq!(renamed["errors"][0]["code"], "KEY_REVOKED");
    }
}

on_both_engines! {
    async fn a_disabled_key_is_refused_until_it_is_enabled(world: World) {
        let api = world.api("profiles", &[]).await;
        let (id, secret) = world.user_key(&api, "kp_1", &[]).await;
        let path = format!("/api_keys/{id}");
        let disabled = world.patch(&path, json!({ "status": "inactive" })).await.expect(200);
        assert_eq!(disabled["code"], "API_KEY_UPDATED");
        let refused = world.verify(&secret).await;
        assert_eq!(refused["code"], "API_KEY_INACTIVE");
        assert_eq!(refused["status"], "inactive");
        assert_eq!(world.get(&path).await.expect(200)["api_key"]["status"], "inactive");
        let again = world.patch(&path, json!({ "status": "inactive" })).await.expect(200);
        assert_eq!(again["seq"], disabled["seq"], "nothing changed, so there is no new change");
        world.patch(&path, json!({ "status": "active" })).await.expect(200);
        assert_eq!(world.verify(&secret).await["code"], "API_KEY_VERIFIED");
    }
}

on_both_engines! {
    /// Both ends of a key's life are exact: good at `not_before`, refused at `expires_on`.
    async fn a_key_is_good_from_its_first_instant_to_its_last(world: World) {
        let api = world.api("profiles", &[]).await;
        let (_, secret) = world
            .key(json!({
                "name": "a key", "api_id": api, "user_id": "kp_1",
                "not_before": "2026-11-22T21:24:13.512Z", "expires_on": "2026-11-22T22:24:13.512Z",
            }))
            .await;
        world.pass_seconds(9).await;
        let early = world.verify(&secret).await;
        assert_eq!(
            (&early["code"], &early["status"]),
            (&json!("API_KEY_NOT_YET_VALID"), &json!("active"))
        );
        world.pass_seconds(1).await;
        let good = world.verify(&secret).await;
        assert_eq!(good["code"], "API_KEY_VERIFIED");
        assert_eq!(good["expires_on"], "2026-11-22T22:24:13.512Z");
        world.pass_seconds(3_599).await;
        assert_eq!(world.verify(&secret).await["verification_count"], 2);
        world.pass_seconds(1).await;
        let late = world.verify(&secret).await;
        assert_eq!((&late["code"], &late["status"]), (&json!("API_KEY_EXPIRED"), &json!("active")));
        assert_eq!(late["last_verified_on"], "2026-11-22T22:24:12.512Z", "the last success");
    }
}

on_both_engines! {
    async fn a_life_in_days_ends_when_the_days_are_over(world: World) {
        let mut world = world;
        let api = world.api("profiles", &[]).await;
        let (id, secret) = world
            .key(json!({ "name": "k", "api_id": api, "user_id": "kp_1", "expires_in_days": 2 }))
            .await;
        let shown = world.get(&format!("/api_keys/{id}")).await.expect(200);
        assert_eq!(shown["api_key"]["expires_on"], "2026-11-24T21:24:03.512Z");
        world.pass_seconds(2 * 86_400 - 1).await;
        world.sign_in().await;
        assert_eq!(world.verify(&secret).await["code"], "API_KEY_VERIFIED");
        world.pass_seconds(1).await;
        assert_eq!(world.verify(&secret).await["code"], "API_KEY_EXPIRED");
    }
}

on_both_engines! {
    /// Promise 4, as far as one process goes; the processes that are killed are elsewhere.
    async fn counts_and_the_last_use_are_the_same_in_verify_show_list_and_after_a_restart(
        world: World,
    ) {
        let mut world = world;
        let api = world.api("profiles", &[]).await;
        let (id, secret) = world.user_key(&api, "kp_1", &[]).await;
        let body = json!({ "api_key": secret, "ip": "2001:db8::7" });
        for count in 1..=3 {
            world.pass_seconds(1).await;
            let verified = world.post("/api_keys/verify", body.clone()).await.expect(200);
            assert_eq!(verified["verification_count"], count);
        }
        world.pass_seconds(1).await;
        let refused = json!({ "api_key": secret, "user_id": "kp_2" });
        let refused = world.post("/api_keys/verify", refused).await.expect(200);
        assert_eq!(
            (&refused["code"], &refused["verification_count"]),
            (&json!("API_KEY_WRONG_OWNER"), &json!(3))
        );
        assert_eq!(refused["last_verified_on"], "2026-11-22T21:24:06.512Z");
        for _ in 0..2 {
            let shown = world.get(&format!("/api_keys/{id}")).await.expect(200);
            let listed = world.get("/api_keys").await.expect(200);
            for key in [&shown["api_key"], &listed["api_keys"][0]] {
                assert_eq!(key["verification_count"], 3);
                assert_eq!(key["last_verified_on"], "2026-11-22T21:24:06.512Z");
                assert_eq!(key["last_verified_ip"], "2001:db8::7");
            }
            world.stop().await;
            world.start_again().await;
        }
        assert_eq!(world.verify(&secret).await["verification_count"], 4);
        let shown = world.get(&format!("/api_keys/{id}")).await.expect(200);
        assert_eq!(shown["api_key"]["last_verified_ip"], json!(null), "none was given");
    }
}

/// The files are those of processes that are gone: one whose sum was made before, and one whose
/// totals are added to it by the next start.
#[tokio::test]
async fn folded_counts_keep_the_later_use() {
    let mut world = World::start(Engine::Sqlite).await;
    let api = world.api("profiles", &[]).await;
    let key = async |name: &str| {
        let body = json!({ "name": name, "api_id": api, "type": "user", "user_id": "kp_1" });
        world.key(body).await.0
    };
    let (sum_later, file_later) = (key("sum").await, key("file").await);
    world.stop().await;
    for sql in [
        "insert into counter_files (file_id, generation, opened_at)
         values (x'00112233445566778899aabbccddeeff', 1, 0)",
        "insert into key_usage (key_id, file_id, env_id, verified, refused, last_at, last_address)
         select key_id, zeroblob(16), env_id, 2, zeroblob(96),
                1795382700000000 + case name when 'sum' then 50000000 else 0 end, '203.0.113.1'
         from api_keys",
        "insert into key_usage (key_id, file_id, env_id, verified, refused, last_at, last_address)
         select key_id, x'00112233445566778899aabbccddeeff', env_id, 3, zeroblob(96),
                1795382720000000, '203.0.113.2'
         from api_keys",
    ] {
        world.rows::<(i64,)>(sql).await;
    }
    world.start_again().await;
    let left = "select count(*) from key_usage
                where file_id = x'00112233445566778899aabbccddeeff'";
    assert_eq!(world.rows::<(i64,)>(left).await, [(0,)], "it was folded");
    for (id, on, ip) in [
        (sum_later, "2026-11-22T21:25:50.000Z", "203.0.113.1"),
        (file_later, "2026-11-22T21:25:20.000Z", "203.0.113.2"),
    ] {
        let key = world.get(&format!("/api_keys/{id}")).await.expect(200)["api_key"].take();
        assert_eq!(key["verification_count"], 5);
        assert_eq!((&key["last_verified_on"], &key["last_verified_ip"]), (&json!(on), &json!(ip)));
    }
}
