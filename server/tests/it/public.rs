//! Verification without a token, where an environment allows it: a yes or nothing at all.

use hyper::Request;
use keyward::lease::Settle;
use keyward::ops::Context;
use keyward::ops::environments::{self, EnvironmentPatch};
use serde_json::{Value, json};

use crate::world::{Answer, World, on_both_engines};

/// Allows verification to everybody.
async fn open(world: &World) {
    let app = world.app();
    let env = app.shared.directory.load().by_host("keys.test").expect("one").row.env;
    let patch = EnvironmentPatch { public_verification: Some(true), ..EnvironmentPatch::default() };
    let done = environments::update(&app.store, env, &Context::system("test"), patch).await;
    app.settle(done.expect("changed").stamp(), Settle::Narrowing).await.expect("in force");
}

async fn verify(world: &World, token: Option<&str>, body: Value) -> Answer {
    let mut request = Request::post("/api/v1/api_keys/verify")
        .header("host", "keys.test")
        .header("content-type", "application/json");
    if let Some(token) = token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    world.send(request.body(body.to_string().into()).expect("a request")).await
}

on_both_engines! {
    async fn without_a_token_nobody_verifies_unless_the_environment_allows_it(world: World) {
        let api = world.api("profiles", &[]).await;
        let (_, secret) = world.user_key(&api, "kp_1", &[]).await;
        let asked = || json!({ "api_key": secret });
        assert_eq!(verify(&world, None, asked()).await.refused(401).0, "NO_TOKEN");
        open(&world).await;
        let verified = verify(&world, None, asked()).await.expect(200);
        assert_eq!((&verified["is_valid"], &verified["user_id"]), (&json!(true), &json!("kp_1")));
        let bad = verify(&world, Some("nonsense"), asked()).await;
        assert_eq!(bad.refused(401).0, "INVALID_TOKEN", "who brings a token brings a good one");
        // Nothing else became public with it.
        let request = Request::get("/api/v1/api_keys").header("host", "keys.test");
        let list = world.send(request.body(Default::default()).expect("a request")).await;
        assert_eq!(list.refused(401).0, "NO_TOKEN");
        let request = Request::post("/api/v1/api_keys/verify_batch")
            .header("host", "keys.test")
            .header("content-type", "application/json");
        let batch = json!({ "verifications": [asked()] }).to_string();
        let batch = world.send(request.body(batch.into()).expect("a request")).await;
        assert_eq!(batch.refused(401).0, "NO_TOKEN");
    }
}

on_both_engines! {
    async fn without_a_token_every_refusal_looks_like_a_guess(world: World) {
        let api = world.api("profiles", &[]).await;
        open(&world).await;
        let guess = verify(&world, None, json!({ "api_key": "nonsense" })).await;
        for (what, method, body) in [
            ("revoked", "DELETE", None),
            ("rotated", "PUT", None),
            ("disabled", "PATCH", Some(json!({ "status": "inactive" }))),
        ] {
            let (id, secret) = world.user_key(&api, "kp_1", &[]).await;
            world.call(method, &format!("/api_keys/{id}"), body).await;
            let refused = verify(&world, None, json!({ "api_key": secret })).await;
            assert_eq!(refused.text, guess.text, "{what}");
            let known = world.verify(&secret).await;
            assert_eq!(known["key_id"], *id, "{what}: a caller with a token is told");
        }
        let (_, secret) = world.user_key(&api, "kp_1", &[]).await;
        let asked = json!({ "api_key": secret, "user_id": "kp_2" });
        assert_eq!(verify(&world, None, asked).await.text, guess.text);
        assert_eq!(guess.expect(200)["code"], "API_KEY_INVALID");
    }
}

on_both_engines! {
    async fn an_address_without_a_token_may_ask_only_so_often(world: World) {
        open(&world).await;
        let asked = || json!({ "api_key": "nonsense" });
        for _ in 0..20 {
            verify(&world, None, asked()).await.expect(200);
        }
        let refused = verify(&world, None, asked()).await;
        assert_eq!(refused.headers["retry-after"], "1");
        let message = "too many verifications without a token from this address";
        assert_eq!(refused.refused(429), ("TOO_MANY_REQUESTS".to_owned(), message.to_owned()));
        verify(&world, Some(&world.token), asked()).await.expect(200);
        world.pass_seconds(1).await;
        for _ in 0..2 {
            verify(&world, None, asked()).await.expect(200);
        }
        verify(&world, None, asked()).await.expect(429);
    }
}
