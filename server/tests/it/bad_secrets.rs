//! What is presented as a key and is none: always a verdict, never a 4xx, and no hint for guessers.

use keyward_core::{Prefix, Secret};
use serde_json::json;

use crate::world::on_both_engines;

/// The answer to a guess.
fn nothing_known() -> serde_json::Value {
    json!({
        "code": "API_KEY_INVALID", "message": "This is not an API key of this environment",
        "is_valid": false, "key_id": null, "status": null, "scopes": [], "org_code": null,
        "user_id": null, "last_verified_on": null, "verification_count": 0, "api_id": null,
        "name": null, "type": null, "expires_on": null, "metadata": null,
        "refusal": { "reason": "invalid", "missing_scopes": [] },
    })
}

on_both_engines! {
    async fn what_is_no_key_of_ours_is_invalid_and_teaches_nothing(world: World) {
        let api = world.api("profiles", &["read:profile"]).await;
        let (_, good) = world.user_key(&api, "kp_1", &["read:profile"]).await;
        let own = Prefix::parse("k_live").expect("a prefix");
        let foreign = Prefix::parse("sk_test").expect("a prefix");
        let unknown = Secret::mint(&own, &[7; 32]);
        let elsewhere = Secret::mint(&foreign, &[7; 32]);
        let mut mistyped = good.clone();
        let last = if mistyped.pop() == Some('0') { '1' } else { '0' };
        mistyped.push(last);
        let swapped = good.replacen("k_live", "k_test", 1);
        let spaced = format!(" {good}");
        for (what, text) in [
            ("empty", ""),
            ("malformed", "not a key"),
            ("control characters", "k_live_\u{0}\u{7f}\n"),
            ("4-byte characters", "k_live_😀😀😀😀"),
            ("truncated", &good[..good.len() - 1]),
            ("only the prefix", "k_live_"),
            ("only the scheme", "secret-token:"),
            ("longer", &format!("{good}0")),
            ("over-long", &"k".repeat(513)),
            ("over-long after a good start", &format!("{good}{}", "0".repeat(600))),
            ("wrong checksum", &mistyped),
            ("another prefix", &swapped),
            ("spaces", &spaced),
            ("upper case", &good.to_uppercase()),
            ("well-formed and unknown", unknown.expose()),
            ("foreign prefix, good checksum", elsewhere.expose()),
            ("the key's id", "api_key_01a205250b387a72bad776000ddd1240"),
        ] {
            assert_eq!(world.verify(text).await, nothing_known(), "{what}");
        }
        assert_eq!(world.verify(&good).await["verification_count"], 1, "guesses do not count");
    }
}

on_both_engines! {
    /// RFC 8959: the scheme may stand in front of a secret, where tools put it for scanners.
    async fn a_secret_is_known_with_the_scheme_in_front(world: World) {
        let api = world.api("profiles", &[]).await;
        let (id, secret) = world.user_key(&api, "kp_1", &[]).await;
        let verified = world.verify(&format!("secret-token:{secret}")).await;
        assert_eq!((&verified["is_valid"], &verified["key_id"]), (&json!(true), &json!(id)));
    }
}

on_both_engines! {
    async fn a_verification_that_is_no_question_is_a_400_that_repeats_nothing(world: World) {
        let not_json = |column: u32| format!("the body is not JSON (line 1, column {column})");
        let wrong = |column: u32| {
            format!(
                "the body must be an object with a text `api_key`, and every other field as \
                 documented (wrong near line 1, column {column})"
            )
        };
        for (body, message) in [
            ("", "the body is not JSON (line 1, column 0)".to_owned()),
            ("canary", not_json(1)),
            (r#"{"api_key":"canary""#, not_json(19)),
            (r#"{"api_key":"canary"} canary"#, not_json(22)),
            (r#" ["canary"]"#, "the body must be a JSON object".to_owned()),
            (r#""canary""#, wrong(8)),
            ("{}", wrong(2)),
            (r#"{"api_key":null}"#, wrong(15)),
            (r#"{"api_key":["canary"]}"#, wrong(11)),
            (r#"{"api_key":7}"#, wrong(12)),
            (r#"{"api_key":"canary","api_key":"canary"}"#, wrong(29)),
            (r#"{"api_key":"canary","scopes":"canary"}"#, wrong(37)),
            (r#"{"api_key":"canary","scopes":[7]}"#, wrong(31)),
            (r#"{"api_key":"canary","user_id":7}"#, wrong(31)),
            (r#"{"api_key":"\ud800"}"#, not_json(19)),
            (
                r#"{"api_key":"canary","ip":"canary"}"#,
                "`ip` must be an IPv4 or IPv6 address".to_owned(),
            ),
        ] {
            let answer = world.raw("POST", "/api_keys/verify", "application/json", body).await;
            assert!(!answer.text.contains("canary"), "{body}: {}", answer.text);
            assert_eq!(answer.refused(400).1, message, "{body}");
        }
        let bytes = b"{\"api_key\":\"\xff\xfe\"}".as_slice();
        let answer = world.raw("POST", "/api_keys/verify", "application/json", bytes).await;
        assert_eq!(answer.refused(400).0, "BAD_BODY");
        for content_type in ["text/plain", "application/x-www-form-urlencoded", ""] {
            let answer = world.raw("POST", "/api_keys/verify", content_type, "{}").await;
            assert_eq!(answer.refused(415).0, "UNSUPPORTED_MEDIA_TYPE", "{content_type}");
        }
    }
}

on_both_engines! {
    /// Verify alone ignores what it does not know, so that callers can be newer than servers.
    async fn unknown_and_null_fields_of_a_verification_are_ignored_however_deep(world: World) {
        let api = world.api("profiles", &[]).await;
        let (_, secret) = world.user_key(&api, "kp_1", &[]).await;
        let deep = format!("{}{}", "[".repeat(20_000), "]".repeat(20_000));
        let body = format!(
            "{{\"later\":{deep},\"api_key\":\"{secret}\",\"api_id\":null,\"audience\":null,\
             \"scopes\":null,\"user_id\":null,\"org_code\":null,\"ip\":null,\"resource\":null}}"
        );
        let answer = world.raw("POST", "/api_keys/verify", "application/json", body).await;
        assert_eq!(answer.expect(200)["is_valid"], true);
    }
}

on_both_engines! {
    async fn a_verification_over_the_limit_is_a_413_and_one_at_the_limit_is_read(world: World) {
        let api = world.api("profiles", &[]).await;
        let (_, secret) = world.user_key(&api, "kp_1", &[]).await;
        let body = |bytes: usize| {
            let head = format!("{{\"api_key\":\"{secret}\",\"resource\":\"");
            let fill = "x".repeat(bytes - head.len() - 2);
            format!("{head}{fill}\"}}")
        };
        let (path, json) = ("/api_keys/verify", "application/json");
        let largest = world.raw("POST", path, json, body(64 * 1024)).await.expect(200);
        assert_eq!(largest["is_valid"], true);
        let larger = world.raw("POST", path, json, body(64 * 1024 + 1)).await;
        assert_eq!(
            larger.refused(413),
            ("BODY_TOO_LARGE".to_owned(), "the body is larger than 65536 bytes".to_owned())
        );
    }
}

on_both_engines! {
    /// Each question a caller can add is answered by the first refusal in the contract's order.
    async fn a_key_is_refused_for_another_api_owner_or_scope_than_the_one_asked_for(world: World) {
        let api = world.api("profiles", &["read:profile"]).await;
        let other = world.api("billing", &["read:bills"]).await;
        let (id, secret) = world.user_key(&api, "kp_1", &["read:profile"]).await;
        for (asked, code) in [
            (json!({ "api_id": api, "audience": "https://profiles.example.com" }), "VERIFIED"),
            (json!({ "scopes": ["read:profile"], "user_id": "kp_1" }), "VERIFIED"),
            (json!({ "scopes": [] }), "VERIFIED"),
            (json!({ "api_id": other }), "WRONG_API"),
            (json!({ "api_id": "nonsense" }), "WRONG_API"),
            (json!({ "audience": "https://billing.example.com" }), "WRONG_API"),
            (json!({ "api_id": other, "user_id": "kp_2", "scopes": ["x"] }), "WRONG_API"),
            (json!({ "user_id": "kp_2" }), "WRONG_OWNER"),
            (json!({ "user_id": "kp_2", "scopes": ["x"] }), "WRONG_OWNER"),
            (json!({ "org_code": "org_acme" }), "WRONG_OWNER"),
            (json!({ "scopes": ["read:profile", "read:bills"] }), "INSUFFICIENT_SCOPE"),
        ] {
            let mut body = asked.clone();
            body["api_key"] = json!(secret);
            let verdict = world.post("/api_keys/verify", body).await.expect(200);
            assert_eq!(verdict["code"], format!("API_KEY_{code}"), "{asked}");
            assert_eq!(verdict["key_id"], *id, "the key is ours, so it is named");
        }
    }
}
