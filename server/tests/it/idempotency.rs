//! `Idempotency-Key`: a write that is asked for twice is done once.

use bytes::Bytes;
use http_body_util::Full;
use hyper::Request;
use serde_json::{Value, json};

use crate::world::{Answer, World, on_both_engines};

/// A write with an idempotency key.
async fn write(world: &World, key: &str, call: (&str, &str), body: Option<&Value>) -> Answer {
    let mut request = Request::builder()
        .method(call.0)
        .uri(format!("/api/v1{}", call.1))
        .header("host", "keys.test")
        .header("authorization", format!("Bearer {}", world.token))
        .header("idempotency-key", key);
    if body.is_some() {
        request = request.header("content-type", "application/json");
    }
    let body = body.map(Value::to_string).unwrap_or_default();
    world.send(request.body(Full::new(Bytes::from(body))).expect("a request")).await
}

/// How many keys there are.
async fn keys(world: &World) -> usize {
    let listed = world.get("/api_keys?page_size=500").await.expect(200);
    listed["api_keys"].as_array().expect("a list").len()
}

fn new_key(api: &str) -> Value {
    json!({ "name": "a key", "api_id": api, "user_id": "kp_1" })
}

on_both_engines! {
    /// Promise 6 over a replay: the key exists once, its secret was shown once.
    async fn a_repeated_create_is_told_of_the_key_and_not_its_secret(world: World) {
        let api = world.api("profiles", &[]).await;
        let (call, body) = (("POST", "/api_keys"), new_key(&api));
        let first = write(&world, "one", call, Some(&body)).await.expect(201);
        let again = write(&world, "one", call, Some(&body)).await;
        assert!(!again.text.contains(first["api_key"]["key"].as_str().expect("a secret")));
        let again = again.expect(409);
        assert_eq!(again["api_key"], json!({ "id": first["api_key"]["id"] }));
        assert_eq!(again["errors"][0]["code"], "IDEMPOTENT_REPLAY");
        assert_eq!(keys(&world).await, 1);
        write(&world, "two", call, Some(&body)).await.expect(201);
        assert_eq!(keys(&world).await, 2);

        let id = first["api_key"]["id"].as_str().expect("an id");
        let path = format!("/api_keys/{id}");
        let rotated = write(&world, "one", ("PUT", &path), None).await.expect(201);
        let again = write(&world, "one", ("PUT", &path), None).await.expect(409);
        assert_eq!(again["api_key"]["id"], first["api_key"]["id"]);
        let secret = rotated["api_key"]["key"].as_str().expect("a secret");
        assert_eq!(world.verify(secret).await["is_valid"], true, "it was rotated once");
    }
}

on_both_engines! {
    async fn the_same_key_with_another_body_is_a_422(world: World) {
        let api = world.api("profiles", &[]).await;
        let mut body = new_key(&api);
        write(&world, "one", ("POST", "/api_keys"), Some(&body)).await.expect(201);
        body["name"] = json!("another");
        let other = write(&world, "one", ("POST", "/api_keys"), Some(&body)).await;
        assert_eq!(other.refused(422).0, "IDEMPOTENCY_KEY_REUSED");
        assert_eq!(keys(&world).await, 1);
    }
}

on_both_engines! {
    async fn an_answer_without_a_secret_is_replayed_as_it_was(world: World) {
        let api = world.api("profiles", &["read:profile"]).await;
        let (id, _) = world.user_key(&api, "kp_1", &[]).await;
        let key = format!("/api_keys/{id}");
        let import = json!({ "keys": [{
            "name": "k", "api_id": api, "user_id": "kp_1", "hash": "ab".repeat(32),
        }] });
        for (call, body) in [
            (("POST", "/apis"), Some(json!({ "name": "A", "audience": "https://a.example.com" }))),
            (("POST", "/user"), Some(json!({ "profile": { "given_name": "Ada" } }))),
            (("POST", "/organization"), Some(json!({ "name": "Acme" }))),
            (("POST", "/api_keys/import"), Some(import)),
            (("PATCH", key.as_str()), Some(json!({ "name": "renamed" }))),
            (("DELETE", key.as_str()), None),
        ] {
            let first = write(&world, "one", call, body.as_ref()).await;
            assert_eq!(first.status, 200, "{call:?}: {}", first.text);
            // Somebody else's change in between is not undone by the replay.
            world.user_key(&api, "kp_2", &[]).await;
            let again = write(&world, "one", call, body.as_ref()).await;
            assert_eq!((again.status, &again.text), (first.status, &first.text), "{call:?}");
        }
        assert_eq!(
            world.get("/users").await.expect(200)["users"].as_array().map(Vec::len),
            Some(3)
        );
    }
}

on_both_engines! {
    /// A retry that overtakes its first try must not do the change again.
    async fn twenty_duplicates_at_once_are_one_change(world: World) {
        let api = world.api("profiles", &[]).await;
        let body = new_key(&api);
        let call = ("POST", "/api_keys");
        let all = (0..20).map(|_| write(&world, "one", call, Some(&body)));
        let mut issued = 0;
        let mut ids = Vec::new();
        for answer in futures_join(all).await {
            issued += usize::from(answer.status == 201);
            assert!(answer.status == 201 || answer.status == 409, "{}", answer.text);
            ids.push(answer.json()["api_key"]["id"].clone());
        }
        assert_eq!((issued, keys(&world).await), (1, 1));
        assert!(ids.iter().all(|id| *id == ids[0] && id.is_string()), "{ids:?}");

        let body = json!({ "name": "Acme" });
        let call = ("POST", "/organization");
        let all = (0..20).map(|_| write(&world, "one", call, Some(&body)));
        for answer in futures_join(all).await {
            assert!(answer.status == 200 || answer.status == 409, "{}", answer.text);
            assert!(answer.json().get("api_key").is_none(), "{}", answer.text);
        }
        let listed = world.get("/organizations").await.expect(200);
        assert_eq!(listed["organizations"].as_array().map(Vec::len), Some(1));
    }
}

/// Drives all of them at once, on this thread.
async fn futures_join<T>(all: impl Iterator<Item = impl Future<Output = T>>) -> Vec<T> {
    let mut pending: Vec<_> = all.map(|one| (Box::pin(one), None)).collect();
    std::future::poll_fn(|context| {
        let mut ready = true;
        for (one, done) in &mut pending {
            if done.is_none() {
                match one.as_mut().poll(context) {
                    std::task::Poll::Ready(value) => *done = Some(value),
                    std::task::Poll::Pending => ready = false,
                }
            }
        }
        if ready { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
    pending.into_iter().filter_map(|(_, done)| done).collect()
}

on_both_engines! {
    /// A mistake is no change: it can be corrected under the same key.
    async fn a_refused_write_does_not_use_up_its_key(world: World) {
        let api = world.api("profiles", &[]).await;
        let mut body = new_key(&api);
        body["scope_ids"] = json!(["read:profile"]);
        let call = ("POST", "/api_keys");
        let refused = write(&world, "one", call, Some(&body)).await;
        assert_eq!(refused.refused(400).0, "UNKNOWN_SCOPE");
        let scope = json!({ "key": "read:profile" });
        world.post(&format!("/apis/{api}/scopes"), scope).await.expect(200);
        write(&world, "one", call, Some(&body)).await.expect(201);
        for bad in ["", &"x".repeat(256), "\u{e9}"] {
            let answer = write(&world, bad, call, Some(&body)).await;
            assert_eq!(answer.refused(400).0, "BAD_IDEMPOTENCY_KEY");
        }
    }
}

on_both_engines! {
    async fn a_key_is_of_one_application_and_one_path(world: World) {
        let api = world.api("profiles", &[]).await;
        let (call, body) = (("POST", "/api_keys"), new_key(&api));
        write(&world, "one", call, Some(&body)).await.expect(201);
        let org = json!({ "name": "Acme" });
        write(&world, "one", ("POST", "/organization"), Some(&org)).await.expect(200);
        let (a, b) =
            (world.user_key(&api, "kp_1", &[]).await.0, world.user_key(&api, "kp_1", &[]).await.0);
        for id in [a, b] {
            write(&world, "one", ("DELETE", &format!("/api_keys/{id}")), None).await.expect(200);
            assert_eq!(
                world.get(&format!("/api_keys/{id}")).await.expect(200)["api_key"]["status"],
                "revoked"
            );
        }
        let second = json!({ "name": "second", "type": "m2m" });
        let second = world.post("/applications", second).await.expect(201)["application"].take();
        let (id, secret) = (second["client_id"].as_str(), second["client_secret"].as_str());
        let apis = world.get("/apis?expand=scopes").await.expect(200)["apis"].take();
        let apis = apis.as_array().expect("a list");
        let management = apis.iter().find(|api| api["is_management_api"] == true).expect("one");
        let connect = json!({ "applications": [{ "id": id }] });
        let path = format!("/apis/{}", management["id"].as_str().expect("an id"));
        world.patch(&format!("{path}/applications"), connect).await.expect(200);
        let scopes = management["scopes"].as_array().expect("a list");
        let scope = scopes.iter().find(|scope| scope["key"] == "create:api_keys").expect("one");
        let (app, scope) = (id.expect("an id"), scope["id"].as_str().expect("an id"));
        let grant = format!("{path}/applications/{app}/scopes/{scope}");
        world.call("POST", &grant, None).await.expect(200);
        let token = world.ask_token(app, secret.expect("a secret"), &[]).await.expect(200);
        let mut world = world;
        world.token = token["access_token"].as_str().expect("a token").to_owned();
        write(&world, "one", call, Some(&body)).await.expect(201);
    }
}

on_both_engines! {
    async fn a_key_is_kept_for_a_day_and_then_forgotten(world: World) {
        let mut world = world;
        let api = world.api("profiles", &[]).await;
        let (call, body) = (("POST", "/api_keys"), new_key(&api));
        write(&world, "one", call, Some(&body)).await.expect(201);
        world.stop().await;
        world.start_again().await;
        world.pass_seconds(86_399).await;
        world.sign_in().await;
        write(&world, "one", call, Some(&body)).await.expect(409);
        world.pass_seconds(1).await;
        write(&world, "one", call, Some(&body)).await.expect(201);
        write(&world, "one", call, Some(&body)).await.expect(409);
        assert_eq!(keys(&world).await, 2);
    }
}

on_both_engines! {
    /// Callers have been seen to use what they have at hand, a secret too.
    async fn an_idempotency_key_is_not_stored_as_it_is(world: World) {
        let org = json!({ "name": "Acme" });
        write(&world, "canary", ("POST", "/organization"), Some(&org)).await.expect(200);
        let stored: Vec<(String,)> =
            world.rows("select idempotency_key from idempotency_keys").await;
        let [(stored,)] = &stored[..] else { panic!("{stored:?}") };
        assert!(!stored.contains("canary") && stored.len() == 64, "{stored}");
    }
}
