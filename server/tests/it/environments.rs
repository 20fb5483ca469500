//! Promise 1, between tenants: nothing of one environment can be seen, named or verified from the
//! other.

use bytes::Bytes;
use http_body_util::Full;
use hyper::Request;
use keyward::lease::Settle;
use keyward::ops::Context;
use keyward::ops::environments::{self, Founded, NewEnvironment};
use keyward_core::{Prefix, sha256};
use serde_json::{Value, json};

use crate::world::{Answer, World, on_both_engines};

const OURS: &str = "keys.test";
const THEIRS: &str = "other.test:8443";

/// Makes a second environment, at `THEIRS`.
async fn found(world: &World) -> Founded {
    let app = world.app();
    let new = NewEnvironment {
        slug: "other".to_owned(),
        name: "Other".to_owned(),
        public_url: "https://other.test:8443".to_owned(),
        key_prefix: Prefix::parse("k_live").expect("a prefix"),
    };
    let secrets = app.keyring.secrets();
    let context = Context::system("test");
    let made = environments::create(&app.store, &context, &secrets, new).await.expect("made");
    app.settle(made.stamp(), Settle::Narrowing).await.expect("in force");
    made.value
}

/// A request to `host`, with a token if one is given.
async fn ask(
    world: &World,
    host: &str,
    token: Option<&str>,
    (method, path): (&str, &str),
    body: Option<Value>,
) -> Answer {
    let mut request = Request::builder().method(method).uri(path).header("host", host);
    if let Some(token) = token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    if body.is_some() {
        request = request.header("content-type", "application/json");
    }
    let body = body.map(|body| body.to_string()).unwrap_or_default();
    world.send(request.body(Full::new(Bytes::from(body))).expect("a request")).await
}

/// A token of the second environment's first application.
async fn their_token(world: &World, founded: &Founded) -> String {
    let form = form_urlencoded::Serializer::new(String::new())
        .append_pair("grant_type", "client_credentials")
        .append_pair("client_id", &founded.app.to_string())
        .append_pair("client_secret", &founded.client_secret)
        .finish();
    let request = Request::post("/oauth2/token")
        .header("host", THEIRS)
        .header("content-type", "application/x-www-form-urlencoded");
    let answer = world.send(request.body(form.into()).expect("a request")).await.expect(200);
    answer["access_token"].as_str().expect("a token").to_owned()
}

/// Both environments with their tokens, ours first.
struct Two {
    theirs: String,
}

impl Two {
    async fn of(world: &World) -> Self {
        let founded = found(world).await;
        Self { theirs: their_token(world, &founded).await }
    }

    /// A call with the environment's own token.
    async fn call(
        &self,
        world: &World,
        host: &str,
        call: (&str, &str),
        body: Option<Value>,
    ) -> Answer {
        let token = if host == OURS { &world.token } else { &self.theirs };
        let path = format!("/api/v1{}", call.1);
        ask(world, host, Some(token), (call.0, &path), body).await
    }

    async fn verify(&self, world: &World, host: &str, secret: &str) -> Value {
        let body = Some(json!({ "api_key": secret }));
        self.call(world, host, ("POST", "/api_keys/verify"), body).await.expect(200)
    }

    /// An API in an environment, with one scope; its id.
    async fn api(&self, world: &World, host: &str) -> String {
        let body = json!({ "name": "Profiles", "audience": "https://profiles.example.com" });
        let api = self.call(world, host, ("POST", "/apis"), Some(body)).await.expect(200);
        let api = api["api"]["id"].as_str().expect("an id").to_owned();
        let scope = Some(json!({ "key": "read:profile" }));
        let path = format!("/apis/{api}/scopes");
        self.call(world, host, ("POST", &path), scope).await.expect(200);
        api
    }

    /// A key of user `kp_1` in an environment: its id and secret.
    async fn key(&self, world: &World, host: &str, api: &str) -> (String, String) {
        let body = json!({
            "name": "a key", "api_id": api, "user_id": "kp_1", "scope_ids": ["read:profile"],
        });
        let key = self.call(world, host, ("POST", "/api_keys"), Some(body)).await.expect(201);
        let text = |name: &str| key["api_key"][name].as_str().expect("a text").to_owned();
        (text("id"), text("key"))
    }
}

on_both_engines! {
    async fn the_host_decides_which_environment_is_asked(world: World) {
        let health = ("GET", "/.well-known/openid-configuration");
        let anywhere = ask(&world, "whatever.test", None, health, None).await.expect(200);
        assert_eq!(anywhere["issuer"], "http://keys.test", "while there is only one");
        found(&world).await;
        for (host, issuer) in [
            (OURS, "http://keys.test"),
            ("KEYS.test", "http://keys.test"),
            ("keys.test:80", "http://keys.test"),
            (THEIRS, "https://other.test:8443"),
        ] {
            let metadata = ask(&world, host, None, health, None).await.expect(200);
            assert_eq!(metadata["issuer"], issuer, "{host}");
        }
        for host in ["whatever.test", "", "127.0.0.1", "other.test", "keys.test.", "keys.test:81"] {
            for call in [
                health,
                ("GET", "/api/v1/api_keys"),
                ("POST", "/api/v1/api_keys/verify"),
                ("POST", "/oauth2/token"),
                ("GET", "/openapi.json"),
                ("GET", "/metrics"),
            ] {
                let answer = ask(&world, host, Some(&world.token), call, None).await;
                assert_eq!(answer.refused(421).0, "UNKNOWN_HOST", "{host} {call:?}");
            }
            // Machines that ask these know no environment's name.
            ask(&world, host, None, ("GET", "/healthz"), None).await.expect(200);
            ask(&world, host, None, ("GET", "/readyz"), None).await.expect(200);
        }
    }
}

on_both_engines! {
    async fn a_token_of_one_environment_is_a_strangers_in_the_other(world: World) {
        let two = Two::of(&world).await;
        let verification = || Some(json!({ "api_key": "x" }));
        for (host, own, foreign) in
            [(OURS, &world.token, &two.theirs), (THEIRS, &two.theirs, &world.token)]
        {
            // The good token first: what is remembered of it must not help the other.
            for (call, body) in [
                (("GET", "/api/v1/api_keys"), None),
                (("POST", "/api/v1/api_keys/verify"), verification()),
            ] {
                ask(&world, host, Some(own), call, body.clone()).await.expect(200);
                let answer = ask(&world, host, Some(foreign), call, body).await;
                assert_eq!(answer.refused(401).0, "INVALID_TOKEN", "{host} {call:?}");
            }
        }
        let form = form_urlencoded::Serializer::new(String::new())
            .append_pair("grant_type", "client_credentials")
            .append_pair("client_id", &world.client_id)
            .append_pair("client_secret", &world.client_secret)
            .finish();
        let request = Request::post("/oauth2/token")
            .header("host", THEIRS)
            .header("content-type", "application/x-www-form-urlencoded");
        let answer = world.send(request.body(form.into()).expect("a request")).await;
        assert_eq!(answer.expect(401)["error"], "invalid_client");
    }
}

on_both_engines! {
    /// Metrics are counted for the whole process.
    async fn an_environment_does_not_read_what_the_others_do(world: World) {
        let metrics = ("GET", "/metrics");
        let alone = ask(&world, OURS, Some(&world.token), metrics, None).await;
        assert_eq!(alone.status, 200);
        let two = Two::of(&world).await;
        let refused = ask(&world, THEIRS, Some(&two.theirs), metrics, None).await;
        assert!(!refused.text.contains("keyward_"), "{}", refused.text);
        assert_eq!(refused.refused(403).0, "METRICS_ELSEWHERE");
        let first = ask(&world, OURS, Some(&world.token), metrics, None).await;
        assert!(first.text.contains("keyward_keys"), "{}", first.text);
    }
}

on_both_engines! {
    async fn a_key_of_one_environment_is_unknown_in_the_other(world: World) {
        let two = Two::of(&world).await;
        let ours = two.api(&world, OURS).await;
        // The same audience, the same scope and the same user's id are another's there.
        let theirs = two.api(&world, THEIRS).await;
        let (_, our_secret) = two.key(&world, OURS, &ours).await;
        let (_, their_secret) = two.key(&world, THEIRS, &theirs).await;
        for (host, secret, valid) in [
            (OURS, &our_secret, true),
            (THEIRS, &our_secret, false),
            (OURS, &their_secret, false),
            (THEIRS, &their_secret, true),
        ] {
            let verdict = two.verify(&world, host, secret).await;
            assert_eq!(verdict["is_valid"], valid);
            if !valid {
                assert_eq!(verdict["code"], "API_KEY_INVALID");
                assert_eq!(verdict["key_id"], json!(null));
            }
        }
        // The end of one user is not the end of the other of the same name.
        two.call(&world, OURS, ("DELETE", "/user?id=kp_1"), None).await.expect(200);
        assert_eq!(two.verify(&world, OURS, &our_secret).await["code"], "API_KEY_REVOKED");
        assert_eq!(two.verify(&world, THEIRS, &their_secret).await["is_valid"], true);
        let mut world = world;
        world.stop().await;
        world.start_again().await;
        assert_eq!(two.verify(&world, OURS, &our_secret).await["code"], "API_KEY_REVOKED");
        let verdict = two.verify(&world, THEIRS, &their_secret).await;
        assert_eq!(
            (&verdict["is_valid"], &verdict["verification_count"]),
            (&json!(true), &json!(3))
        );
    }
}

on_both_engines! {
    /// One secret, made elsewhere, imported into both: each has its own key, owner and count.
    async fn the_same_hash_in_both_environments_is_two_keys(world: World) {
        let two = Two::of(&world).await;
        let hash: String =
            sha256(b"legacy-secret").bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        for (host, user) in [(OURS, "kp_ours"), (THEIRS, "kp_theirs")] {
            let api = two.api(&world, host).await;
            let key = json!({ "name": "k", "api_id": api, "user_id": user, "hash": hash });
            let body = Some(json!({ "keys": [key] }));
            two.call(&world, host, ("POST", "/api_keys/import"), body).await.expect(200);
        }
        for count in 1..=2 {
            for (host, user) in [(OURS, "kp_ours"), (THEIRS, "kp_theirs")] {
                let verdict = two.verify(&world, host, "legacy-secret").await;
                assert_eq!(verdict["user_id"], user);
                assert_eq!(verdict["verification_count"], count);
            }
        }
    }
}

on_both_engines! {
    async fn objects_of_one_environment_do_not_exist_in_the_other(world: World) {
        let two = Two::of(&world).await;
        let api = two.api(&world, OURS).await;
        let (key, _) = two.key(&world, OURS, &api).await;
        let path = format!("/apis/{api}/scopes");
        let scopes = two.call(&world, OURS, ("GET", &path), None).await;
        let scope = scopes.expect(200)["scopes"][0]["id"].take();
        let scope = scope.as_str().expect("an id");
        let org = Some(json!({ "name": "Acme", "code": "org_acme" }));
        two.call(&world, OURS, ("POST", "/organization"), org).await.expect(200);
        let their_api = two.api(&world, THEIRS).await;

        for list in ["/api_keys", "/users", "/organizations"] {
            let answer = two.call(&world, THEIRS, ("GET", list), None).await;
            for ours in [key.as_str(), "kp_1", "org_acme"] {
                assert!(!answer.text.contains(ours), "{list} shows {ours}");
            }
        }
        let apis = two.call(&world, THEIRS, ("GET", "/apis?expand=scopes"), None).await;
        assert!(!apis.text.contains(&api) && !apis.text.contains(scope));
        let applications = two.call(&world, THEIRS, ("GET", "/applications"), None).await;
        assert!(!applications.text.contains(&world.client_id));

        // Named only in a body or a query, it is a 400 like any other unknown id.
        let issue = |api: &str, more: Value| {
            let mut body = json!({ "name": "k", "api_id": api, "user_id": "kp_2" });
            body.as_object_mut().expect("one").extend(more.as_object().expect("one").clone());
            Some(body)
        };
        for (call, body, code) in [
            (("POST", "/api_keys".to_owned()), issue(&api, json!({})), "UNKNOWN_API"),
            (
                ("POST", "/api_keys".to_owned()),
                issue(&their_api, json!({ "scope_ids": [scope] })),
                "UNKNOWN_SCOPE",
            ),
            (
                ("POST", "/api_keys".to_owned()),
                issue(&their_api, json!({ "user_id": null, "org_code": "org_acme" })),
                "UNKNOWN_ORGANIZATION",
            ),
            (("GET", format!("/api_keys?starting_after={key}")), None, "UNKNOWN_KEY"),
            (("GET", format!("/api_keys?api_id={api}")), None, "UNKNOWN_API"),
            (("GET", "/api_keys?org_code=org_acme".to_owned()), None, "UNKNOWN_ORGANIZATION"),
            (("GET", "/user?id=kp_1".to_owned()), None, "UNKNOWN_USER"),
            (("DELETE", "/user?id=kp_1".to_owned()), None, "UNKNOWN_USER"),
            (("GET", "/organization?code=org_acme".to_owned()), None, "UNKNOWN_ORGANIZATION"),
            (
                ("PATCH", format!("/apis/{their_api}/applications")),
                Some(json!({ "applications": [{ "id": world.client_id }] })),
                "UNKNOWN_APPLICATION",
            ),
        ] {
            let answer = two.call(&world, THEIRS, (call.0, &call.1), body).await;
            assert_eq!(answer.refused(400).0, code, "{call:?}");
        }
        assert_eq!(two.call(&world, OURS, ("GET", "/user?id=kp_1"), None).await.status, 200);
    }
}

on_both_engines! {
    /// The base URL is the issuer: who was signed in under the old one must sign in again.
    async fn an_environment_that_moves_to_another_url_leaves_its_tokens_behind(world: World) {
        let app = world.app();
        let env = app.shared.directory.load().by_host(OURS).expect("one").row.env;
        let patch = environments::EnvironmentPatch {
            public_url: Some("https://new.test/".to_owned()),
            ..environments::EnvironmentPatch::default()
        };
        let done = environments::update(&app.store, env, &Context::system("test"), patch).await;
        app.settle(done.expect("changed").stamp(), Settle::Narrowing).await.expect("in force");
        let read = ("GET", "/api/v1/api_keys");
        let answer = ask(&world, "new.test", Some(&world.token), read, None).await;
        assert_eq!(answer.refused(401).0, "INVALID_TOKEN");
        let answer = world.ask_token(&world.client_id, &world.client_secret, &[]).await;
        assert_eq!(answer.expect(400)["error"], "invalid_request", "the old audience is gone");
    }
}
