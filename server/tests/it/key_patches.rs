//! What `PATCH` changes of a key: one field, and no other.

use serde_json::{Value, json};

use crate::world::{World, on_both_engines};

async fn shown(world: &World, id: &str) -> Value {
    world.get(&format!("/api_keys/{id}")).await.expect(200)["api_key"].take()
}

on_both_engines! {
    async fn each_field_is_changed_alone_and_cleared_by_null(world: World) {
        let api = world.api("profiles", &["read:profile"]).await;
        let (id, secret) = world
            .key(json!({
                "name": "a key", "api_id": api, "user_id": "kp_1", "scope_ids": ["read:profile"],
                "description": "before", "metadata": { "a": "1" },
            }))
            .await;
        for (field, value, seen) in [
            ("name", json!("another"), json!("another")),
            ("description", json!("after\nall"), json!("after\nall")),
            ("description", json!(null), json!(null)),
            ("metadata", json!({ "b": "2" }), json!({ "b": "2" })),
            ("metadata", json!(null), json!({})),
            ("not_before", json!("2026-11-01T00:00:00Z"), json!("2026-11-01T00:00:00.000Z")),
            ("not_before", json!(null), json!(null)),
            ("expires_on", json!("2026-12-01T00:00:00Z"), json!("2026-12-01T00:00:00.000Z")),
            ("expires_on", json!(null), json!(null)),
            ("status", json!("inactive"), json!("inactive")),
            ("status", json!("active"), json!("active")),
        ] {
            let mut expected = shown(&world, &id).await;
            expected[field] = seen;
            world.patch(&format!("/api_keys/{id}"), json!({ field: value })).await.expect(200);
            assert_eq!(shown(&world, &id).await, expected, "{field}: {value}");
        }
        let verified = world.verify(&secret).await;
        assert_eq!((&verified["is_valid"], &verified["name"]), (&json!(true), &json!("another")));
    }
}

on_both_engines! {
    async fn an_empty_change_changes_nothing_and_leaves_no_change_behind(world: World) {
        let api = world.api("profiles", &[]).await;
        let (id, _) = world.user_key(&api, "kp_1", &[]).await;
        let path = format!("/api_keys/{id}");
        let before = world.patch(&path, json!({ "name": "x" })).await.expect(200)["seq"].take();
        assert_eq!(world.patch(&path, json!({})).await.expect(200)["seq"], before);
        assert_eq!(world.patch(&path, json!({ "name": "x" })).await.expect(200)["seq"], before);
    }
}

on_both_engines! {
    /// A key never gets more than it was issued with.
    async fn a_change_takes_neither_scopes_nor_owner_nor_api(world: World) {
        let api = world.api("profiles", &["read:profile"]).await;
        let (id, _) = world.user_key(&api, "kp_1", &[]).await;
        for (field, value) in [
            ("scope_ids", json!(["read:profile"])),
            ("scopes", json!(["read:profile"])),
            ("user_id", json!("kp_2")),
            ("org_code", json!("org_acme")),
            ("api_id", json!(api)),
        ] {
            let answer = world.patch(&format!("/api_keys/{id}"), json!({ field: value })).await;
            assert_eq!(answer.error_code(), "UNKNOWN_FIELD", "{field}");
            answer.expect(400);
        }
        assert_eq!(shown(&world, &id).await["scopes"], json!([]));
    }
}

on_both_engines! {
    /// Moving an end into the past would hide a revocation from whoever reads the record.
    async fn an_expiry_moves_only_into_the_future(world: World) {
        let mut world = world;
        let api = world.api("profiles", &[]).await;
        let (id, secret) = world
            .key(json!({ "name": "k", "api_id": api, "user_id": "kp_1", "expires_in_days": 1 }))
            .await;
        let path = format!("/api_keys/{id}");
        for past in ["2026-11-22T21:24:03.512Z", "1999-01-01T00:00:00Z"] {
            let answer = world.patch(&path, json!({ "expires_on": past })).await;
            assert_eq!(answer.error_code(), "EXPIRES_IN_PAST");
            answer.expect(400);
        }
        let never = json!({ "not_before": "2026-12-01T00:00:00Z" });
        assert_eq!(world.patch(&path, never).await.error_code(), "NEVER_VALID");
        world.pass_seconds(86_400).await;
        world.sign_in().await;
        assert_eq!(world.verify(&secret).await["code"], "API_KEY_EXPIRED");
        let later = json!({ "expires_on": "2026-12-01T00:00:00Z" });
        world.patch(&path, later).await.expect(200);
        assert_eq!(world.verify(&secret).await["code"], "API_KEY_VERIFIED");
    }
}

on_both_engines! {
    async fn metadata_is_an_object_of_texts_of_at_most_4_kib(world: World) {
        let api = world.api("profiles", &[]).await;
        let body = |metadata: &Value| {
            let mut body = json!({ "name": "k", "api_id": api, "user_id": "kp_1" });
            body["metadata"] = metadata.clone();
            body
        };
        // `{"a":"…"}` is eight bytes around the text.
        let largest = json!({ "a": "x".repeat(4 * 1024 - 8) });
        for good in [json!({}), json!({ "a": "", "ü": "😀\n" }), largest.clone()] {
            let (id, secret) = world.key(body(&good)).await;
            assert_eq!(world.verify(&secret).await["metadata"], good);
            assert_eq!(shown(&world, &id).await["metadata"], good);
        }
        let (id, _) = world.key(body(&json!({}))).await;
        for bad in [
            json!({ "a": "x".repeat(4 * 1024 - 7) }),
            json!({ "a": 1 }),
            json!({ "a": null }),
            json!({ "a": { "b": "c" } }),
            json!({ "": "x" }),
            json!({ "a": "\u{0}" }),
            json!({ "\u{7}": "a" }),
            json!({ "x".repeat(129): "a" }),
            json!(["a"]),
            json!("a"),
        ] {
            let created = world.post("/api_keys", body(&bad)).await;
            assert_eq!(
                (created.status.as_u16(), created.error_code().as_str()),
                (400, "BAD_FIELD")
            );
            let patched = world.patch(&format!("/api_keys/{id}"), json!({ "metadata": bad })).await;
            assert_eq!(
                (patched.status.as_u16(), patched.error_code().as_str()),
                (400, "BAD_FIELD")
            );
        }
    }
}
