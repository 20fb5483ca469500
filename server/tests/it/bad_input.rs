//! Requests that are wrong: each is told what is wrong, and no answer repeats what could be a
//! secret in the wrong place.

use http_body_util::Full;
use hyper::Request;
use keyward::lease::Settle;
use keyward::ops::Context;
use keyward::ops::environments::{self, EnvironmentPatch};
use serde_json::{Value, json};

use crate::world::{World, on_both_engines};

/// Asks for a key with these fields on top of good ones.
async fn issue(world: &World, api: &str, fields: Value) -> crate::world::Answer {
    let mut body = json!({ "name": "a key", "api_id": api, "type": "user", "user_id": "kp_1" });
    body.as_object_mut().expect("an object").extend(fields.as_object().expect("one").clone());
    world.post("/api_keys", body).await
}

fn told(code: &str, message: &str) -> (String, String) {
    (code.to_owned(), message.to_owned())
}

on_both_engines! {
    async fn a_body_that_is_no_json_object_is_a_400_that_says_where(world: World) {
        let deep = format!("{{\"name\":{}{}}}", "[".repeat(200), "]".repeat(200));
        for (body, message) in [
            ("", "the body must be a JSON object"),
            ("canary", "the body is not JSON (line 1, column 1)"),
            ("{\"name\":\n\"canary\",}", "the body is not JSON (line 2, column 10)"),
            ("{\"name\": canary}", "the body is not JSON (line 1, column 10)"),
            ("[\"canary\"]", "the body must be a JSON object"),
            ("\"canary\"", "the body must be a JSON object"),
            ("null", "the body must be a JSON object"),
            (&deep, "the body is nested too deeply (line 1, column 135)"),
        ] {
            for (method, path) in
                [("POST", "/api_keys"), ("POST", "/apis"), ("POST", "/organization")]
            {
                let answer = world.raw(method, path, "application/json", body.to_owned()).await;
                assert!(!answer.text.contains("canary"), "{}", answer.text);
                assert_eq!(answer.refused(400), told("BAD_BODY", message), "{path} {body}");
            }
        }
        let answer =
            world.raw("POST", "/api_keys", "application/json", b"{\"\xff\":1}".as_slice()).await;
        assert_eq!(answer.refused(400).0, "BAD_BODY");
        let answer = world.raw("POST", "/api_keys", "text/plain", "{}").await;
        let message = "send the body as application/json";
        assert_eq!(answer.refused(415), told("UNSUPPORTED_MEDIA_TYPE", message));
        let answer = world.raw("POST", "/api_keys", "application/json; charset=utf-8", "{}").await;
        assert_eq!(answer.refused(400), told("MISSING_FIELD", "`name` is missing"));
        let answer = world.raw("DELETE", "/user?id=kp_1", "application/json", "{}").await;
        assert_eq!(answer.refused(400), told("BAD_BODY", "this route takes no body"));
    }
}

on_both_engines! {
    async fn a_body_over_the_limit_is_a_413(world: World) {
        let body = |bytes: usize| format!("{{\"name\":\"{}\"}}", "x".repeat(bytes - 11));
        let answer = world.raw("POST", "/apis", "application/json", body(64 * 1024)).await;
        assert_eq!(answer.refused(400).0, "BAD_FIELD", "it was read");
        let answer = world.raw("POST", "/apis", "application/json", body(64 * 1024 + 1)).await;
        let message = "the body is larger than 65536 bytes";
        assert_eq!(answer.refused(413), told("BODY_TOO_LARGE", message));
        let path = "/api_keys/import";
        let answer = world.raw("POST", path, "application/json", body((4 << 20) + 1)).await;
        let message = "the body is larger than 4194304 bytes";
        assert_eq!(answer.refused(413), told("BODY_TOO_LARGE", message));
    }
}

on_both_engines! {
    async fn unknown_missing_and_wrong_fields_are_told_by_name(world: World) {
        let api = world.api("profiles", &[]).await;
        let none = "00000000000000000000000000000000";
        let scope = format!("api_scope_{none}");
        let text = "`name` must be 1 to 255 characters without control characters";
        let visible = "must be 1 to 255 visible characters";
        for (fields, code, message) in [
            (json!({ "nmae": "x" }), "UNKNOWN_FIELD", "unknown field `nmae`"),
            (json!({ "a\nb": 1 }), "UNKNOWN_FIELD", "unknown field `a\\nb`"),
            (json!({ "prefix": "x" }), "UNKNOWN_FIELD", "unknown field `prefix`"),
            (json!({ "name": null }), "MISSING_FIELD", "`name` is missing"),
            (json!({ "name": 7 }), "BAD_FIELD", "`name` must be a text"),
            (json!({ "name": "" }), "BAD_FIELD", text),
            (json!({ "api_id": null }), "MISSING_FIELD", "`api_id` is missing"),
            (json!({ "api_id": "x" }), "BAD_FIELD", "`api_id` must be the id of an API"),
            (
                json!({ "api_id": none }),
                "UNKNOWN_API",
                &format!("`api_id`: there is no API {none}"),
            ),
            (
                json!({ "type": "robot" }),
                "BAD_FIELD",
                "`type` must be user, organization or environment",
            ),
            (json!({ "user_id": null }), "MISSING_FIELD", "`user_id` is missing"),
            (json!({ "type": null, "user_id": null }), "MISSING_FIELD", "`type` is missing"),
            (json!({ "user_id": "a b" }), "BAD_FIELD", &format!("`user_id` {visible}")),
            (json!({ "user_id": "\u{a0}" }), "BAD_FIELD", &format!("`user_id` {visible}")),
            (
                json!({ "type": "organization" }),
                "BAD_FIELD",
                "`user_id` does not go with a key of an organization",
            ),
            (
                json!({ "type": "organization", "user_id": null }),
                "MISSING_FIELD",
                "`org_code` is missing",
            ),
            (
                json!({ "type": "environment" }),
                "BAD_FIELD",
                "`type` a key of the environment has neither user nor organization",
            ),
            (
                json!({ "org_code": "org_none" }),
                "UNKNOWN_ORGANIZATION",
                "`org_code`: there is no such organization",
            ),
            (json!({ "scope_ids": "x" }), "BAD_FIELD", "`scope_ids` must be a list of at most 256"),
            (json!({ "scope_ids": [7] }), "BAD_FIELD", "`scope_ids` must be a text"),
            (
                json!({ "scope_ids": [scope] }),
                "UNKNOWN_SCOPE",
                "`scope_ids[0]`: this API has no such scope",
            ),
        ] {
            let answer = issue(&world, &api, fields.clone()).await;
            assert_eq!(answer.refused(400), told(code, message), "{fields}");
        }
    }
}

on_both_engines! {
    async fn scopes_of_another_api_are_refused_by_id_and_by_key(world: World) {
        let api = world.api("profiles", &["read:profile"]).await;
        let other = world.api("billing", &["read:bills"]).await;
        let scopes = world.get(&format!("/apis/{other}/scopes")).await.expect(200);
        for scope in [&scopes["scopes"][0]["id"], &scopes["scopes"][0]["key"]] {
            let answer = issue(&world, &api, json!({ "scope_ids": ["read:profile", scope] })).await;
            let message = "`scope_ids[1]`: this API has no such scope";
            assert_eq!(answer.refused(400), told("UNKNOWN_SCOPE", message));
        }
        let management = world.get("/apis").await.expect(200)["apis"][0]["id"].take();
        let answer =
            issue(&world, &api, json!({ "api_id": management, "scope_ids": ["read:profile"] }));
        assert_eq!(answer.await.refused(400).0, "UNKNOWN_SCOPE");
    }
}

on_both_engines! {
    async fn times_in_the_past_and_impossible_lives_are_refused(world: World) {
        let api = world.api("profiles", &[]).await;
        let time = "must be a time such as 2026-11-22T21:24:03Z";
        let past = "`expires_on` must be in the future";
        let never = "`not_before` must be earlier than `expires_on`";
        let days = "`expires_in_days` must be a whole number from 1 to 36500";
        for (fields, code, message) in [
            (json!({ "expires_on": "2026-11-22T21:24:03.512Z" }), "EXPIRES_IN_PAST", past),
            (json!({ "expires_on": "1970-01-01T00:00:00Z" }), "EXPIRES_IN_PAST", past),
            (json!({ "expires_on": "tomorrow" }), "BAD_FIELD", &format!("`expires_on` {time}")),
            (
                json!({ "expires_on": "2027-02-30T00:00:00Z" }),
                "BAD_FIELD",
                &format!("`expires_on` {time}"),
            ),
            (
                json!({ "expires_on": "2027-01-01T00:00:00" }),
                "BAD_FIELD",
                &format!("`expires_on` {time}"),
            ),
            (
                json!({ "expires_on": "-000001-01-01T00:00:00Z" }),
                "BAD_FIELD",
                &format!("`expires_on` {time}"),
            ),
            (json!({ "expires_on": 1_800_000_000 }), "BAD_FIELD", &format!("`expires_on` {time}")),
            (json!({ "not_before": "soon" }), "BAD_FIELD", &format!("`not_before` {time}")),
            (
                json!({ "not_before": "2027-01-02T00:00Z", "expires_on": "2027-01-02T00:00Z" }),
                "NEVER_VALID",
                never,
            ),
            (json!({ "expires_in_days": 0 }), "BAD_FIELD", days),
            (json!({ "expires_in_days": -1 }), "BAD_FIELD", days),
            (json!({ "expires_in_days": 1.5 }), "BAD_FIELD", days),
            (json!({ "expires_in_days": 36_501 }), "BAD_FIELD", days),
            (json!({ "expires_in_days": "7" }), "BAD_FIELD", days),
            (json!({ "expires_in_days": 1e300 }), "BAD_FIELD", days),
            (
                json!({ "expires_in_days": 1, "expires_on": "2027-01-01T00:00:00Z" }),
                "BAD_FIELD",
                "`expires_on` does not go with `expires_in_days`",
            ),
        ] {
            let answer = issue(&world, &api, fields.clone()).await;
            assert_eq!(answer.refused(400), told(code, message), "{fields}");
        }
        issue(&world, &api, json!({ "expires_on": "2026-11-22T21:24:03.513Z" })).await.expect(201);
    }
}

on_both_engines! {
    async fn an_unknown_user_is_refused_where_registration_is_off(world: World) {
        let api = world.api("profiles", &[]).await;
        world.user_key(&api, "kp_known", &[]).await;
        let app = world.app();
        let env = app.shared.directory.load().by_host("keys.test").expect("one").row.env;
        let patch =
            EnvironmentPatch { user_registration: Some(false), ..EnvironmentPatch::default() };
        let done = environments::update(&app.store, env, &Context::system("test"), patch).await;
        app.settle(done.expect("changed").stamp(), Settle::Narrowing).await.expect("in force");
        let answer = issue(&world, &api, json!({ "user_id": "kp_stranger" })).await;
        let message = "`user_id`: there is no such user";
        assert_eq!(answer.refused(400), told("UNKNOWN_USER", message));
        world.user_key(&api, "kp_known", &[]).await;
        world.post("/user", json!({ "id": "kp_stranger" })).await.expect(200);
        world.user_key(&api, "kp_stranger", &[]).await;
    }
}

on_both_engines! {
    async fn an_object_in_the_path_that_is_not_here_or_no_id_is_a_404(world: World) {
        let api = world.api("profiles", &[]).await;
        let none = "00000000000000000000000000000000";
        for id in [none, "x", "%00", "%ff", "..%2f", "api_key_x", "k_live_canary"] {
            for (method, path) in [
                ("GET", format!("/api_keys/{id}")),
                ("GET", format!("/api_keys/api_key_{id}")),
                ("PUT", format!("/api_keys/api_key_{id}")),
                ("DELETE", format!("/api_keys/api_key_{id}")),
                ("GET", format!("/apis/{id}")),
                ("DELETE", format!("/apis/{id}")),
                ("GET", format!("/apis/{id}/scopes")),
                ("GET", format!("/apis/{api}/scopes/api_scope_{id}")),
                ("DELETE", format!("/apis/{api}/scopes/api_scope_{id}")),
                ("GET", format!("/applications/{id}")),
                ("DELETE", format!("/applications/{id}")),
                ("DELETE", format!("/organization/{id}")),
                ("GET", format!("/organizations/{id}/users")),
            ] {
                let answer = world.call(method, &path, None).await;
                assert!(!answer.text.contains("canary"));
                assert_eq!(answer.refused(404).0, "NOT_FOUND", "{method} {path}");
            }
        }
        let routes = ["/", "/nothing", "/api_keys/x/y", "/api_keys/"];
        for path in routes {
            assert_eq!(
                world.get(path).await.refused(404),
                told("NOT_FOUND", "there is no such route")
            );
        }
    }
}

on_both_engines! {
    async fn bad_pages_and_cursors_are_a_400(world: World) {
        let api = world.api("profiles", &[]).await;
        world.user_key(&api, "kp_1", &[]).await;
        let lists = ["/api_keys", "/applications", "/users", "/organizations"];
        let size = "`page_size` must be a whole number from 1 to 500";
        for list in lists {
            for bad in ["0", "-1", "501", "1000000000", "1e3", "x", "99999999999999999999", "+"] {
                let answer = world.get(&format!("{list}?page_size={bad}")).await;
                assert_eq!(answer.refused(400), told("BAD_FIELD", size), "{list} {bad}");
            }
            world.get(&format!("{list}?page_size=500")).await.expect(200);
            let answer = world.get(&format!("{list}?canary=1")).await;
            assert_eq!(
                answer.refused(400),
                told("UNKNOWN_FIELD", "unknown query parameter `canary`")
            );
            assert_eq!(
                world.get(&format!("{list}?page_size=%ff")).await.refused(400).0,
                "BAD_QUERY"
            );
        }
        // `MTo` is a cursor before the id, `MTp4` one with an id that is none.
        for list in &lists[1..] {
            for bad in ["x", "MTo", "e30", "MTogIA", "%F0%9F%98%80", &"A".repeat(5_000)] {
                let answer = world.get(&format!("{list}?next_token={bad}")).await;
                let (code, message) = answer.refused(400);
                assert!(["BAD_CURSOR", "BAD_FIELD"].contains(&code.as_str()), "{list} {bad}");
                assert!(message.starts_with("`next_token`"), "{message}");
            }
        }
        for bad in ["x", "api_key_00000000000000000000000000000000", "%00"] {
            let (code, message) =
                world.get(&format!("/api_keys?starting_after={bad}")).await.refused(400);
            assert!(["BAD_FIELD", "UNKNOWN_KEY"].contains(&code.as_str()), "{code}");
            assert!(message.starts_with("`starting_after`"), "{message}");
        }
        for bad in ["org_none", "%F0%9F%98%80"] {
            let answer = world.get(&format!("/api_keys?org_code={bad}")).await;
            let message = "`org_code`: there is no such organization";
            assert_eq!(answer.refused(400), told("UNKNOWN_ORGANIZATION", message));
        }
        for (query, message) in [
            ("key_type=robot", "`key_type` must be organization or user"),
            ("status=asleep", "`status` must be active, inactive or revoked"),
            ("api_id=x", "`api_id` must be the id of an API"),
            ("expiring_before=x", "`expiring_before` must be a time such as 2026-11-22T21:24:03Z"),
        ] {
            let answer = world.get(&format!("/api_keys?{query}")).await;
            assert_eq!(answer.refused(400), told("BAD_FIELD", message), "{query}");
        }
    }
}

on_both_engines! {
    async fn names_are_trimmed_and_hold_every_character_but_control_ones(world: World) {
        let api = world.api("profiles", &[]).await;
        let longest = "😀".repeat(255);
        for (given, kept) in [
            (" Anaïs 😀 ", "Anaïs 😀"),
            ("\u{3000}a\u{a0}", "a"),
            (&longest, &longest),
            ("a'; drop table api_keys; --", "a'; drop table api_keys; --"),
            ("<script>\"&\\", "<script>\"&\\"),
            ("\u{202e}abc", "\u{202e}abc"),
        ] {
            let answer = issue(&world, &api, json!({ "name": given })).await.expect(201);
            let id = answer["api_key"]["id"].as_str().expect("an id");
            let shown = world.get(&format!("/api_keys/{id}")).await.expect(200);
            assert_eq!(shown["api_key"]["name"], kept);
            let secret = answer["api_key"]["key"].as_str().expect("a secret");
            assert_eq!(world.verify(secret).await["name"], kept);
        }
        let control = "`name` must be 1 to 255 characters without control characters";
        let spaces = "`name` must be 1 to 255 characters, not only spaces";
        for (bad, message) in [
            ("a\u{0}b", control),
            ("a\nb", control),
            ("\u{7f}", control),
            ("\u{85}", control),
            ("   ", spaces),
            (&"😀".repeat(256), control),
        ] {
            let answer = issue(&world, &api, json!({ "name": bad })).await;
            assert_eq!(answer.refused(400), told("BAD_FIELD", message), "{bad:?}");
            let answer = world.post("/organization", json!({ "name": bad })).await;
            assert_eq!(answer.refused(400), told("BAD_FIELD", message), "{bad:?}");
        }
    }
}

on_both_engines! {
    /// A secret that was put into the wrong field must not come back in an answer or its log.
    async fn no_refusal_repeats_what_was_sent(world: World) {
        let api = world.api("profiles", &["read:profile"]).await;
        let (key, secret) = world.user_key(&api, "kp_1", &[]).await;
        let application = &world.client_id;
        let mut tried = 0;
        for (method, path, fields) in [
            (
                "POST",
                "/api_keys".to_owned(),
                "name api_id type user_id org_code scope_ids \
                description metadata not_before expires_on expires_in_days",
            ),
            ("PATCH", format!("/api_keys/{key}"), "status not_before expires_on"),
            ("POST", "/api_keys/import".to_owned(), "keys"),
            ("POST", "/apis".to_owned(), "name"),
            ("PATCH", format!("/apis/{api}/applications"), "applications"),
            ("POST", "/applications".to_owned(), "name type"),
            ("PATCH", format!("/applications/{application}"), "is_active"),
            ("POST", format!("/applications/{application}/secret"), "grace_period_seconds"),
            ("POST", "/user".to_owned(), "organization_code profile identities"),
            ("PATCH", "/user?id=kp_1".to_owned(), "is_suspended"),
            ("PATCH", "/organizations/org_none/users".to_owned(), "users"),
        ] {
            for field in fields.split_ascii_whitespace() {
                for value in [
                    json!(secret),
                    json!([secret]),
                    json!([{ "id": secret }]),
                    json!({ "id": secret }),
                    json!({ secret.as_str(): secret }),
                ] {
                    let mut body = json!({ field: value });
                    if path == "/api_keys" {
                        let good = json!({ "name": "k", "api_id": api, "scope_ids": [secret] });
                        let body = body.as_object_mut().expect("an object");
                        for (name, value) in good.as_object().expect("an object") {
                            body.entry(name).or_insert(value.clone());
                        }
                    }
                    let answer = world.call(method, &path, Some(body)).await;
                    assert!(answer.status.is_client_error(), "{path} {field}: {}", answer.text);
                    assert!(!answer.text.contains(&secret), "{path} {field}: {}", answer.text);
                    tried += 1;
                }
            }
        }
        for path in [
            format!("/user?id={secret}"),
            format!("/organization?code={secret}"),
            format!("/api_keys?status={secret}"),
            format!("/api_keys?starting_after={secret}"),
            format!("/users?next_token={secret}"),
            format!("/api_keys?{secret}=1"),
            format!("/api_keys/{secret}"),
            format!("/{secret}"),
        ] {
            let answer = world.get(&path).await;
            assert!(answer.status.is_client_error(), "{path}");
            assert!(!answer.text.contains(&secret), "{path}: {}", answer.text);
            tried += 1;
        }
        assert!(tried > 100, "{tried} ways were tried");
    }
}

on_both_engines! {
    async fn a_body_where_none_belongs_is_a_400_however_large(world: World) {
        for body in ["{}".to_owned(), "x".repeat(70_000)] {
            let answer = world.raw("GET", "/apis", "application/json", body).await;
            assert_eq!(answer.refused(400), told("BAD_BODY", "this route takes no body"));
        }
    }
}

on_both_engines! {
    async fn public_questions_do_not_mind_what_probes_send_along(world: World) {
        for path in ["/healthz", "/readyz", "/openapi.json", "/.well-known/jwks.json"] {
            let request = Request::get(format!("{path}?probe=1"))
                .header("host", "keys.test")
                .body(Full::from("x".repeat(60_000)));
            world.send(request.expect("a request")).await.expect(200);
        }
    }
}

on_both_engines! {
    async fn the_token_endpoint_refuses_in_its_own_words(world: World) {
        let form = "application/x-www-form-urlencoded";
        for (query, kind, body, status) in [
            ("?canary=1", form, String::new(), 400),
            ("", form, "grant_type=password".to_owned(), 400),
            ("", form, "x".repeat(70_000), 413),
            ("", "application/json", "{}".to_owned(), 415),
        ] {
            let request = Request::post(format!("/oauth2/token{query}"))
                .header("host", "keys.test")
                .header("content-type", kind)
                .body(Full::from(body));
            let refusal = world.send(request.expect("a request")).await.expect(status);
            let words: Vec<&String> = refusal.as_object().expect("an object").keys().collect();
            assert_eq!(words, ["error", "error_description"], "{refusal}");
        }
    }
}

on_both_engines! {
    async fn a_parameter_that_comes_twice_is_a_400(world: World) {
        let answer = world.get("/users?page_size=1&page_size=2").await;
        let message = "query parameter `page_size` is given twice";
        assert_eq!(answer.refused(400), told("BAD_QUERY", message));
    }
}

on_both_engines! {
    /// Readers differ in which of the two they take; here it is neither, on every route.
    async fn a_field_that_comes_twice_is_a_400(world: World) {
        let json = "application/json";
        let (key, _) = world.user_key(&world.api("profiles", &[]).await, "kp_1", &[]).await;
        let at_key = format!("/api_keys/{key}");
        let message = "field `name` is given twice";
        for (method, path, body) in [
            ("POST", "/apis", r#"{"name":"a","audience":"b","name":"c"}"#),
            ("PATCH", at_key.as_str(), r#"{"name":"a","\u006eame":"a"}"#),
            ("POST", "/api_keys/import", r#"{"keys":[{"name":"a","name":"b"}]}"#),
            ("POST", "/user", r#"{"profile":{"name":"a","name":"b"}}"#),
        ] {
            let answer = world.raw(method, path, json, body).await;
            assert_eq!(answer.refused(400), told("BAD_BODY", message), "{method} {path}");
        }
        let secret = r#"{"k_live_0123456789abcdef":1,"k_live_0123456789abcdef":2}"#;
        let answer = world.raw("POST", "/apis", json, secret).await;
        assert!(!answer.text.contains("k_live"), "{}", answer.text);
        let twice = r#"{"api_key":"a","api_key":"b"}"#;
        let verify = world.raw("POST", "/api_keys/verify", json, twice).await;
        assert_eq!(verify.refused(400).0, "BAD_BODY");
    }
}

on_both_engines! {
    async fn null_does_not_clear_what_cannot_be_empty(world: World) {
        let user = world.post("/user", json!({})).await.expect(200);
        let org = world.post("/organization", json!({ "name": "Acme" })).await.expect(200);
        let app = world.post("/applications", json!({ "name": "Job", "type": "m2m" })).await;
        let (user, org) = (user["id"].clone(), org["organization"]["code"].clone());
        let app = app.expect(201)["application"]["id"].clone();
        let text = |value: &Value| value.as_str().expect("a text").to_owned();
        for (path, name) in [
            (format!("/user?id={}", text(&user)), "is_suspended"),
            (format!("/organization/{}", text(&org)), "name"),
            (format!("/organization/{}", text(&org)), "is_suspended"),
            (format!("/applications/{}", text(&app)), "name"),
            (format!("/applications/{}", text(&app)), "is_active"),
        ] {
            let answer = world.patch(&path, json!({ name: null })).await;
            let message = format!("`{name}` must not be null");
            assert_eq!(answer.refused(400), told("BAD_FIELD", &message), "{path}");
        }
    }
}

on_both_engines! {
    async fn a_scope_key_that_tokens_could_not_carry_is_a_400(world: World) {
        let api = world.api("profiles", &[]).await;
        for bad in ["read all", "read:\"all\"", "read\\all", "lesen:für", "\u{a0}"] {
            let answer = world.post(&format!("/apis/{api}/scopes"), json!({ "key": bad })).await;
            assert_eq!(answer.refused(400).0, "BAD_FIELD", "{bad}");
        }
        let body = json!({ "name": "x", "audience": "https://a b.example" });
        let message = "`audience` must not hold white space";
        assert_eq!(world.post("/apis", body).await.refused(400), told("BAD_FIELD", message));
    }
}

/// A question for all APIs with these headers.
async fn apis_with(world: &World, headers: &[(&str, &str)]) -> crate::world::Answer {
    let mut request = Request::get("/api/v1/apis");
    request = request.header("authorization", format!("Bearer {}", world.token));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    world.send(request.body(Full::default()).expect("a request")).await
}

on_both_engines! {
    async fn a_request_that_names_two_hosts_is_a_400(world: World) {
        for second in ["keys.test", "other.test"] {
            let answer = apis_with(&world, &[("host", "keys.test"), ("host", second)]).await;
            assert_eq!(answer.refused(400).0, "BAD_HOST");
        }
        apis_with(&world, &[("host", "keys.test")]).await.expect(200);
        let request = Request::post("/api/v1/api_keys/verify")
            .header("host", "keys.test")
            .header("host", "other.test")
            .header("content-type", "application/json")
            .header("authorization", format!("Bearer {}", world.token));
        let request = request.body(Full::from(r#"{"api_key":"x"}"#)).expect("a request");
        assert_eq!(world.send(request).await.refused(400).0, "BAD_HOST");
    }
}

on_both_engines! {
    async fn a_key_in_place_of_a_request_id_is_not_taken_over(world: World) {
        let prefix = keyward_core::Prefix::parse("k_live").expect("a prefix");
        let key = keyward_core::Secret::mint(&prefix, &[7; 32]);
        let headers = [("host", "keys.test"), ("x-request-id", key.expose())];
        let answer = apis_with(&world, &headers).await;
        assert_eq!(answer.status, 200);
        assert_ne!(answer.headers["x-request-id"], key.expose());
        let answer = apis_with(&world, &[("host", "keys.test"), ("x-request-id", "a-b.c")]).await;
        assert_eq!(answer.headers["x-request-id"], "a-b.c");
    }
}

on_both_engines! {
    async fn a_query_may_hold_every_character_and_no_broken_one(world: World) {
        let answer = world.get("/users?user_id=%EF%BF%BD").await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        for broken in ["%C3", "%C3&email=a", "%FF"] {
            let answer = world.get(&format!("/users?user_id={broken}")).await;
            assert_eq!(answer.refused(400), told("BAD_QUERY", "the query is not UTF-8"));
        }
    }
}
