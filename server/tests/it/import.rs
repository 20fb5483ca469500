//! Keys made elsewhere: imported by their hash, good at once, stored as our own after first use.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};
use keyward_core::sha256;
use serde_json::{Value, json};

use crate::world::{World, on_both_engines};

fn hex(secret: &str) -> String {
    sha256(secret.as_bytes()).bytes().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A key to be imported for user `kp_1`.
fn key(api: &str, secret: &str) -> Value {
    json!({ "name": "legacy", "api_id": api, "user_id": "kp_1", "hash": hex(secret) })
}

/// Imports keys; their ids.
async fn import(world: &World, keys: Value) -> Vec<String> {
    let done = world.post("/api_keys/import", json!({ "keys": keys })).await.expect(200);
    assert_eq!(done["code"], "API_KEYS_IMPORTED");
    let ids = done["api_keys"].as_array().expect("a list");
    assert_eq!(done["imported"], ids.len());
    ids.iter().map(|key| key["id"].as_str().expect("an id").to_owned()).collect()
}

/// Pepper and digest of each stored secret.
async fn stored(world: &World) -> Vec<(i64, Vec<u8>)> {
    world.rows("select pepper_id, digest from key_secrets order by digest").await
}

/// Waits until every stored secret is under a pepper.
async fn rehashed(world: &World) -> Vec<(i64, Vec<u8>)> {
    loop {
        let secrets = stored(world).await;
        if secrets.iter().all(|(pepper, _)| *pepper != 0) {
            return secrets;
        }
        tokio::task::yield_now().await;
    }
}

on_both_engines! {
    async fn an_imported_key_works_in_each_way_a_hash_is_written(world: World) {
        let api = world.api("profiles", &["read:profile"]).await;
        let digest = |secret: &str| *sha256(secret.as_bytes()).bytes();
        let mut keys = Vec::new();
        let mut secrets = Vec::new();
        for (number, engine) in
            [&STANDARD, &STANDARD_NO_PAD, &URL_SAFE, &URL_SAFE_NO_PAD].into_iter().enumerate()
        {
            let secret = format!("legacy {number} ü");
            let mut one = key(&api, &secret);
            one["hash"] = json!(engine.encode(digest(&secret)));
            one["encoding"] = json!("base64");
            one["algorithm"] = json!("sha256");
            keys.push(one);
            secrets.push(secret);
        }
        let mut upper = key(&api, "LEGACY-upper");
        upper["hash"] = json!(hex("LEGACY-upper").to_uppercase());
        upper["scope_ids"] = json!(["read:profile"]);
        upper["metadata"] = json!({ "from": "the old table" });
        keys.push(upper);
        secrets.push("LEGACY-upper".to_owned());
        let ids = import(&world, json!(keys)).await;
        for (id, secret) in ids.iter().zip(&secrets) {
            let verified = world.verify(secret).await;
            assert_eq!((&verified["is_valid"], &verified["key_id"]), (&json!(true), &json!(id)));
            assert_eq!(verified["user_id"], "kp_1");
        }
        let verified = world.verify("LEGACY-upper").await;
        assert_eq!(verified["scopes"], json!(["read:profile"]));
        assert_eq!(verified["metadata"], json!({ "from": "the old table" }));
        assert_eq!(world.verify("legacy-upper").await["code"], "API_KEY_INVALID");
    }
}

on_both_engines! {
    /// An unpeppered hash of a weak secret can be guessed; it goes when its secret is first seen.
    async fn the_first_use_puts_an_imported_hash_under_the_pepper(world: World) {
        let mut world = world;
        let api = world.api("profiles", &[]).await;
        let ids = import(&world, json!([key(&api, "legacy")])).await;
        let hash = sha256(b"legacy").bytes().to_vec();
        assert_eq!(stored(&world).await, [(0, hash.clone())]);
        world.stop().await;
        world.start_again().await;
        assert_eq!(world.verify("legacy").await["verification_count"], 1);
        let secrets = rehashed(&world).await;
        assert_eq!(secrets.len(), 1);
        assert_ne!(secrets[0].1, hash, "the unpeppered hash is gone");
        let path = format!("/api_keys/{}", ids[0]);
        for count in 2..=3 {
            let verified = world.verify("legacy").await;
            assert_eq!(
                (&verified["key_id"], &verified["verification_count"]),
                (&json!(ids[0]), &json!(count))
            );
            world.stop().await;
            world.start_again().await;
        }
        assert_eq!(world.get(&path).await.expect(200)["api_key"]["verification_count"], 3);
        // Rotation makes it a key like any other.
        let rotated = world.put(&path).await.expect(201);
        let new = rotated["api_key"]["key"].as_str().expect("a secret");
        assert!(new.starts_with("k_live_"));
        assert_eq!(world.verify("legacy").await["code"], "API_KEY_ROTATED");
        assert_eq!(world.verify(new).await["verification_count"], 4);
        let records: Vec<(String, String)> = world
            .rows("select actor_kind, target_id from audit_log where action = 'key.rehashed'")
            .await;
        assert_eq!(records, [("system".to_owned(), ids[0].clone())]);
    }
}

on_both_engines! {
    async fn an_imported_secret_shows_neither_its_beginning_nor_its_end(world: World) {
        let api = world.api("profiles", &[]).await;
        let ids = import(&world, json!([key(&api, "legacy")])).await;
        let path = format!("/api_keys/{}", ids[0]);
        for _ in 0..2 {
            let shown = world.get(&path).await.expect(200);
            assert_eq!(
                (&shown["api_key"]["key_prefix"], &shown["api_key"]["key_suffix"]),
                (&json!(""), &json!(""))
            );
            world.verify("legacy").await;
            rehashed(&world).await;
        }
    }
}

on_both_engines! {
    async fn an_import_with_one_bad_key_imports_none_and_says_which(world: World) {
        let api = world.api("profiles", &[]).await;
        import(&world, json!([key(&api, "there already")])).await;
        let good = key(&api, "good");
        let with = |name: &str, value: Value| {
            let mut one = key(&api, "another");
            one[name] = value;
            one
        };
        let bytes = "`hash` must be the 32 bytes of a SHA-256 in the encoding named";
        for (bad, status, code, message) in [
            (
                key(&api, "there already"),
                409,
                "SECRET_TAKEN",
                "a key with this hash exists already",
            ),
            (good.clone(), 409, "SECRET_TAKEN", "a key with this hash exists already"),
            (with("hash", json!("ab")), 400, "BAD_FIELD", bytes),
            (with("hash", json!("xy".repeat(32))), 400, "BAD_FIELD", bytes),
            (with("hash", json!("+1".repeat(32))), 400, "BAD_FIELD", bytes),
            (with("hash", json!("ü".repeat(32))), 400, "BAD_FIELD", bytes),
            (with("hash", json!(null)), 400, "MISSING_FIELD", "`hash` is missing"),
            (with("algorithm", json!("md5")), 400, "BAD_FIELD", "`algorithm` must be sha256"),
            (
                with("encoding", json!("rot13")),
                400,
                "BAD_FIELD",
                "`encoding` must be hex or base64",
            ),
            (with("encoding", json!("base64")), 400, "BAD_FIELD", bytes),
            (with("secret", json!("canary")), 400, "UNKNOWN_FIELD", "unknown field `secret`"),
            (with("name", json!(null)), 400, "MISSING_FIELD", "`name` is missing"),
            (
                with("scope_ids", json!(["canary"])),
                400,
                "UNKNOWN_SCOPE",
                "`scope_ids[0]`: this API has no such scope",
            ),
            (
                with("expires_on", json!("2020-01-01T00:00:00Z")),
                400,
                "EXPIRES_IN_PAST",
                "`expires_on` must be in the future",
            ),
            (json!("canary"), 400, "BAD_FIELD", "must be an object"),
        ] {
            let body = json!({ "keys": [good, bad] });
            let answer = world.post("/api_keys/import", body).await;
            let expected = (code.to_owned(), format!("keys[1]: {message}"));
            assert_eq!(answer.refused(status), expected, "{bad}");
        }
        assert_eq!(world.verify("good").await["code"], "API_KEY_INVALID");
        assert_eq!(stored(&world).await.len(), 1);
        for (keys, message) in [
            (json!([]), "`keys` must hold at least one key"),
            (json!(vec![json!({}); 1_001]), "`keys` must be a list of at most 1000"),
            (json!({}), "`keys` must be a list of at most 1000"),
        ] {
            let answer = world.post("/api_keys/import", json!({ "keys": keys })).await;
            assert_eq!(answer.refused(400).1, message);
        }
    }
}

on_both_engines! {
    async fn a_thousand_keys_are_imported_in_one_call(world: World) {
        let api = world.api("profiles", &["read:profile"]).await;
        let secrets: Vec<String> = (0..1_000).map(|number| format!("legacy-{number}")).collect();
        let keys: Vec<Value> = secrets.iter().map(|secret| key(&api, secret)).collect();
        let ids = import(&world, json!(keys)).await;
        for number in [0, 499, 999] {
            assert_eq!(world.verify(&secrets[number]).await["key_id"], ids[number]);
        }
    }
}

on_both_engines! {
    async fn a_batch_is_answered_in_its_order_and_counts_each(world: World) {
        let api = world.api("profiles", &["read:profile"]).await;
        let (id, secret) = world.user_key(&api, "kp_1", &["read:profile"]).await;
        let questions = json!([
            { "api_key": secret },
            { "api_key": "nonsense" },
            { "api_key": secret, "scopes": ["write:profile"] },
            { "api_key": secret, "ip": "192.0.2.7" },
        ]);
        let asked = json!({ "verifications": questions });
        let answer = world.post("/api_keys/verify_batch", asked).await;
        assert_eq!(answer.headers["cache-control"], "no-store");
        let answer = answer.expect(200);
        let results = answer["results"].as_array().expect("a list");
        let seen: Vec<(&str, i64)> = results
            .iter()
            .map(|one| {
                (
                    one["code"].as_str().expect("a code"),
                    one["verification_count"].as_i64().expect("a count"),
                )
            })
            .collect();
        assert_eq!(
            seen,
            [
                ("API_KEY_VERIFIED", 1),
                ("API_KEY_INVALID", 0),
                ("API_KEY_INSUFFICIENT_SCOPE", 1),
                ("API_KEY_VERIFIED", 2),
            ]
        );
        assert_eq!(
            results[0].as_object().map(|o| o.len()),
            world.verify("x").await.as_object().map(|o| o.len())
        );
        let shown = world.get(&format!("/api_keys/{id}")).await.expect(200);
        assert_eq!(shown["api_key"]["last_verified_ip"], "192.0.2.7");
        let hundred = json!({ "verifications": vec![json!({ "api_key": secret }); 100] });
        let answer = world.post("/api_keys/verify_batch", hundred).await.expect(200);
        assert_eq!(answer["results"][99]["verification_count"], 102);
    }
}

on_both_engines! {
    /// One wrong entry and nothing is counted: the caller can send the batch again.
    async fn a_batch_with_a_wrong_entry_is_refused_as_a_whole(world: World) {
        let api = world.api("profiles", &[]).await;
        let (_, secret) = world.user_key(&api, "kp_1", &[]).await;
        let list = "`verifications` must be a list of 1 to 100 verifications";
        let good = json!({ "api_key": secret });
        for (body, message) in [
            (json!({}), list),
            (json!({ "verifications": [] }), list),
            (json!({ "verifications": vec![good.clone(); 101] }), list),
            (json!({ "verifications": "canary" }), list),
            (json!([[good]]), list),
            (
                json!({ "verifications": [good, { "api_key": secret, "ip": "canary" }] }),
                "verifications[1]: `ip` must be an IPv4 or IPv6 address",
            ),
            (
                json!({ "verifications": [good, ["canary"]] }),
                "verifications[1]: the body must be a JSON object",
            ),
        ] {
            let answer = world.post("/api_keys/verify_batch", body.clone()).await;
            assert!(!answer.text.contains("canary"));
            assert_eq!(answer.refused(400).1, message, "{body}");
        }
        let missing = json!({ "verifications": [good, {}] });
        let (_, message) = world.post("/api_keys/verify_batch", missing).await.refused(400);
        assert!(message.starts_with("verifications[1]: the body must be an object with a text"));
        assert_eq!(world.verify(&secret).await["verification_count"], 1);
    }
}
