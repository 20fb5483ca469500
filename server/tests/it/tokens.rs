//! Management tokens: how applications get them, what they carry, and when they stop.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use hyper::Request;
use serde_json::{Value, json};

use crate::world::{Answer, World, on_both_engines};

/// Asks for a token with these parameters, and HTTP Basic credentials if some are given.
async fn ask(world: &World, parameters: &[(&str, &str)], basic: Option<&str>) -> Answer {
    let mut form = form_urlencoded::Serializer::new(String::new());
    form.extend_pairs(parameters);
    let mut request = Request::post("/oauth2/token")
        .header("host", "keys.test")
        .header("content-type", "application/x-www-form-urlencoded; charset=UTF-8");
    if let Some(basic) = basic {
        request = request.header("authorization", format!("Basic {}", STANDARD.encode(basic)));
    }
    world.send(request.body(form.finish().into()).expect("a request")).await
}

fn claims(token: &Value) -> Value {
    let token = token["access_token"].as_str().expect("a token");
    let claims = token.split('.').nth(1).expect("claims");
    let claims = URL_SAFE_NO_PAD.decode(claims).expect("base64");
    serde_json::from_slice(&claims).expect("JSON")
}

/// A second application with these management scopes: its id and secret.
async fn application(world: &World, scopes: &[&str]) -> (String, String) {
    let body = json!({ "name": "second", "type": "m2m" });
    let made = world.post("/applications", body).await.expect(201)["application"].take();
    let text = |name: &str| made[name].as_str().expect("a text").to_owned();
    let (id, secret) = (text("client_id"), text("client_secret"));
    let management = management(world).await;
    let connect = json!({ "applications": [{ "id": id }] });
    world.patch(&format!("/apis/{management}/applications"), connect).await.expect(200);
    for scope in scopes {
        let path = grant_path(world, &id, scope).await;
        world.call("POST", &path, None).await.expect(200);
    }
    (id, secret)
}

/// The management API's id.
async fn management(world: &World) -> String {
    let apis = world.get("/apis").await.expect(200);
    let mut apis = apis["apis"].as_array().expect("a list").iter();
    let management = apis.find(|api| api["is_management_api"] == true).expect("one");
    management["id"].as_str().expect("an id").to_owned()
}

/// The path by which an application is given a management scope, and by which it is taken away.
async fn grant_path(world: &World, application: &str, scope: &str) -> String {
    let api = management(world).await;
    let scopes = world.get(&format!("/apis/{api}/scopes")).await.expect(200);
    let mut scopes = scopes["scopes"].as_array().expect("a list").iter();
    let id = scopes.find(|one| one["key"] == scope).expect("a scope")["id"].as_str();
    format!("/apis/{api}/applications/{application}/scopes/{}", id.expect("an id"))
}

on_both_engines! {
    async fn credentials_are_taken_from_the_body_or_from_http_basic(world: World) {
        let (id, secret) = (world.client_id.as_str(), world.client_secret.as_str());
        assert!(secret.len() == 48 && secret.bytes().all(|b| b.is_ascii_alphanumeric()));
        let grant = ("grant_type", "client_credentials");
        let body = [grant, ("client_id", id), ("client_secret", secret)];
        let answer = ask(&world, &body, None).await;
        assert_eq!(answer.headers["cache-control"], "no-store");
        let token = answer.expect(200);
        assert_eq!(token.as_object().expect("an object").len(), 4);
        assert_eq!(
            (&token["expires_in"], &token["token_type"]),
            (&json!(86_400), &json!("bearer"))
        );
        let basic = format!("{id}:{secret}");
        ask(&world, &[grant], Some(&basic)).await.expect(200);
        ask(&world, &[grant, ("client_id", id)], Some(&basic)).await.expect(200);

        let claims = claims(&token);
        assert_eq!(claims["iss"], "http://keys.test");
        assert_eq!(claims["aud"], json!(["http://keys.test/api"]), "the default audience");
        assert_eq!((&claims["azp"], &claims["gty"]), (&json!(id), &json!(["client_credentials"])));
        assert_eq!(
            (&claims["iat"], &claims["exp"]),
            (&json!(1_795_382_643), &json!(1_795_469_043))
        );
        assert_eq!((&claims["scope"], claims["jti"].is_string()), (&token["scope"], true));
    }
}

on_both_engines! {
    /// Published clients send an empty scope, repeat the audience, and ask for too much.
    async fn a_token_holds_what_is_asked_for_and_never_more_than_is_granted(world: World) {
        let (id, secret) = application(&world, &["read:api_keys", "read:users"]).await;
        let body = |audiences: &[&'static str], scope: Option<&'static str>| {
            let mut body = vec![("grant_type", "client_credentials".to_owned())];
            body.push(("client_id", id.clone()));
            body.push(("client_secret", secret.clone()));
            body.extend(audiences.iter().map(|one| ("audience", (*one).to_owned())));
            body.extend(scope.map(|scope| ("scope", scope.to_owned())));
            body
        };
        let api = "http://keys.test/api";
        for (audiences, scope, given) in [
            ([].as_slice(), None, "read:api_keys read:users"),
            (&[""], Some(""), "read:api_keys read:users"),
            (&[api], Some(""), "read:api_keys read:users"),
            (&[api, api], Some("  "), "read:api_keys read:users"),
            (&[api], Some("read:users"), "read:users"),
            (&[api], Some("delete:users read:users openid"), "read:users"),
            (&[api], Some("delete:users"), ""),
        ] {
            let body = body(audiences, scope);
            let body: Vec<(&str, &str)> = body.iter().map(|(n, v)| (*n, v.as_str())).collect();
            let token = ask(&world, &body, None).await.expect(200);
            assert_eq!(token["scope"], given, "{audiences:?} {scope:?}");
            assert_eq!(claims(&token)["scope"], given);
            assert_eq!(claims(&token)["aud"], json!([api]));
            let token = token["access_token"].as_str().expect("a token");
            let may = world.call_as(token, "GET", "/users", None).await.status.as_u16();
            assert_eq!(may, if given.contains("read:users") { 200 } else { 403 });
        }
    }
}

on_both_engines! {
    async fn a_bad_token_request_is_answered_in_the_words_of_rfc_6749(world: World) {
        let (id, secret) = (world.client_id.as_str(), world.client_secret.as_str());
        let grant = ("grant_type", "client_credentials");
        let (good_id, good_secret) = (("client_id", id), ("client_secret", secret));
        let none = "00000000000000000000000000000000";
        let unknown = "unknown client or wrong secret";
        let twice = "a parameter is given twice";
        let no_api = "`audience` is no API that this application is connected to";
        for (parameters, basic, status, error, description) in [
            (vec![], None, 400, "invalid_request", "`grant_type` is missing"),
            (
                vec![("grant_type", "password"), good_id, good_secret],
                None,
                400,
                "unsupported_grant_type",
                "only client_credentials is supported",
            ),
            (vec![grant], None, 401, "invalid_client", unknown),
            (vec![grant, good_id], None, 401, "invalid_client", unknown),
            (
                vec![grant, good_id, ("client_secret", "wrong")],
                None,
                401,
                "invalid_client",
                unknown,
            ),
            (vec![grant, good_id, ("client_secret", "")], None, 401, "invalid_client", unknown),
            (vec![grant, ("client_id", none), good_secret], None, 401, "invalid_client", unknown),
            (
                vec![grant, ("client_id", "canary"), good_secret],
                None,
                401,
                "invalid_client",
                unknown,
            ),
            (vec![grant], Some(format!("{id}:wrong")), 401, "invalid_client", unknown),
            (vec![grant, good_id, good_id, good_secret], None, 400, "invalid_request", twice),
            (
                vec![grant, good_id, good_secret, good_secret],
                None,
                400,
                "invalid_request",
                "`client_secret` is given twice",
            ),
            (
                vec![grant, good_id, good_secret],
                Some(format!("{id}:{secret}")),
                400,
                "invalid_request",
                "credentials are given twice",
            ),
            (
                vec![grant, ("client_id", none)],
                Some(format!("{id}:{secret}")),
                400,
                "invalid_request",
                "two different clients are named",
            ),
            (
                vec![grant],
                Some("no colon".to_owned()),
                400,
                "invalid_request",
                "the Authorization header is not HTTP Basic",
            ),
            (
                vec![grant, good_id, good_secret, ("audience", "https://canary.example.com")],
                None,
                400,
                "invalid_request",
                no_api,
            ),
        ] {
            let answer = ask(&world, &parameters, basic.as_deref()).await;
            assert_eq!(answer.headers["cache-control"], "no-store", "{parameters:?}");
            assert_eq!(answer.headers.contains_key("www-authenticate"), status == 401);
            assert!(!answer.text.contains(secret) && !answer.text.contains("canary"));
            let expected = json!({ "error": error, "error_description": description });
            assert_eq!(answer.expect(status), expected, "{parameters:?}");
        }
        let request = Request::post("/oauth2/token").header("host", "keys.test");
        let request = request.header("content-type", "application/json");
        let answer = world.send(request.body("{}".into()).expect("a request")).await;
        assert_eq!(answer.expect(415)["error"], "invalid_request");
    }
}

on_both_engines! {
    /// Promise 2, for applications: the token's signature is still good, its bearer is not.
    async fn a_stopped_applications_tokens_stop_at_once(world: World) {
        let (id, secret) = application(&world, &["read:api_keys", "verify:api_keys"]).await;
        let token = world.ask_token(&id, &secret, &[]).await.expect(200);
        let token = token["access_token"].as_str().expect("a token").to_owned();
        let read = || world.call_as(&token, "GET", "/api_keys", None);
        let verify =
            || world.call_as(&token, "POST", "/api_keys/verify", Some(json!({ "api_key": "x" })));
        read().await.expect(200);
        verify().await.expect(200);

        let path = format!("/applications/{id}");
        world.patch(&path, json!({ "is_active": false })).await.expect(200);
        assert_eq!(read().await.refused(401).0, "INVALID_TOKEN");
        assert_eq!(verify().await.refused(401).0, "INVALID_TOKEN");
        assert_eq!(world.ask_token(&id, &secret, &[]).await.expect(401)["error"], "invalid_client");
        world.patch(&path, json!({ "is_active": true })).await.expect(200);
        assert_eq!(read().await.refused(401).0, "INVALID_TOKEN", "it was stopped for good");
        assert_eq!(verify().await.refused(401).0, "INVALID_TOKEN");
        // In the same second, and good all the same.
        let token = world.ask_token(&id, &secret, &[]).await.expect(200);
        let token = token["access_token"].as_str().expect("a token").to_owned();
        let read = || world.call_as(&token, "GET", "/api_keys", None);
        let verify =
            || world.call_as(&token, "POST", "/api_keys/verify", Some(json!({ "api_key": "x" })));
        read().await.expect(200);
        world.patch(&path, json!({ "is_active": true, "name": "third" })).await.expect(200);
        read().await.expect(200);

        let grant = grant_path(&world, &id, "read:api_keys").await;
        world.delete(&grant).await.expect(200);
        assert_eq!(read().await.refused(403).0, "INSUFFICIENT_SCOPE");
        verify().await.expect(200);
        world.call("POST", &grant, None).await.expect(200);
        read().await.expect(200);

        world.delete(&path).await.expect(200);
        assert_eq!(read().await.refused(401).0, "INVALID_TOKEN");
        assert_eq!(verify().await.refused(401).0, "INVALID_TOKEN");
        assert_eq!(world.ask_token(&id, &secret, &[]).await.expect(401)["error"], "invalid_client");
    }
}

on_both_engines! {
    async fn an_application_that_is_parted_from_the_management_api_can_do_nothing(world: World) {
        let (id, secret) = application(&world, &["read:api_keys"]).await;
        let token = world.ask_token(&id, &secret, &[]).await.expect(200);
        let token = token["access_token"].as_str().expect("a token").to_owned();
        let path = format!("/apis/{}/applications", management(&world).await);
        let part = json!({ "applications": [{ "id": id, "operation": "delete" }] });
        let parted = world.patch(&path, part).await.expect(200);
        assert_eq!(parted["applications_disconnected"], json!([id]));
        let read = world.call_as(&token, "GET", "/api_keys", None).await;
        assert_eq!(read.refused(403).0, "INSUFFICIENT_SCOPE");
        let again = world.ask_token(&id, &secret, &[]).await.expect(400);
        assert_eq!(again["error"], "invalid_request");
        // Being connected again does not bring the scopes back.
        let connect = json!({ "applications": [{ "id": id }] });
        world.patch(&path, connect).await.expect(200);
        assert_eq!(world.ask_token(&id, &secret, &[]).await.expect(200)["scope"], "");
    }
}

on_both_engines! {
    async fn a_rotated_client_secret_stays_good_for_the_overlap_and_not_longer(world: World) {
        let (id, first) = application(&world, &["read:api_keys"]).await;
        let path = format!("/applications/{id}/secret");
        let rotated = world.post(&path, json!({ "grace_period_seconds": 60 })).await;
        assert_eq!(rotated.headers["cache-control"], "no-store");
        let mut rotated = rotated.expect(201);
        assert_eq!(rotated["previous_secret_expires_on"], "2026-11-22T21:25:03.512Z");
        let rotated = rotated["application"].take();
        let second = rotated["client_secret"].as_str().expect("a secret").to_owned();
        let status = async |secret: &str| world.ask_token(&id, secret, &[]).await.status.as_u16();
        assert_eq!((status(&first).await, status(&second).await), (200, 200));
        world.pass_seconds(59).await;
        assert_eq!((status(&first).await, status(&second).await), (200, 200));
        world.pass_seconds(1).await;
        assert_eq!((status(&first).await, status(&second).await), (401, 200));

        let third = world.post(&path, json!({ "grace_period_seconds": 0 })).await.expect(201);
        let third = third["application"]["client_secret"].as_str().expect("a secret").to_owned();
        assert_eq!((status(&second).await, status(&third).await), (401, 200));
        for bad in [json!(-1), json!(604_801), json!("60"), json!(true)] {
            let answer = world.post(&path, json!({ "grace_period_seconds": bad })).await;
            assert_eq!(answer.refused(400).0, "BAD_FIELD");
        }
    }
}

on_both_engines! {
    /// Scopes of two APIs in one token could not be told apart by either.
    async fn a_token_is_for_one_audience(world: World) {
        let api = world.api("profiles", &["read:profile"]).await;
        let connect = json!({ "applications": [{ "id": world.client_id }] });
        world.patch(&format!("/apis/{api}/applications"), connect).await.expect(200);
        let (management, profiles) = ("http://keys.test/api", "https://profiles.example.com");
        let with = async |audiences: &[&str]| {
            let mut body = vec![
                ("grant_type", "client_credentials"),
                ("client_id", world.client_id.as_str()),
                ("client_secret", world.client_secret.as_str()),
            ];
            body.extend(audiences.iter().map(|one| ("audience", *one)));
            ask(&world, &body, None).await
        };
        for audience in [management, profiles] {
            let token = with(&[audience, "", audience]).await.expect(200);
            assert_eq!(claims(&token)["aud"], json!([audience]));
        }
        let refused = json!({
            "error": "invalid_request",
            "error_description": "ask for one `audience` at a time",
        });
        assert_eq!(with(&[management, profiles]).await.expect(400), refused);
        assert_eq!(with(&[profiles, management]).await.expect(400), refused);
    }
}

on_both_engines! {
    /// The token endpoint, management routes and verify agree at every instant, on a connection
    /// that has seen the token before as on a fresh one.
    async fn a_token_ends_with_the_secret_that_it_was_got_with(world: World) {
        let (id, first) = application(&world, &["read:api_keys", "verify:api_keys"]).await;
        let path = format!("/applications/{id}/secret");
        let token = async |secret: &str| {
            let token = world.ask_token(&id, secret, &[]).await.expect(200);
            token["access_token"].as_str().expect("a token").to_owned()
        };
        let rotate = async |grace: i64| {
            let rotated = world.post(&path, json!({ "grace_period_seconds": grace })).await;
            let secret = rotated.expect(201)["application"]["client_secret"].take();
            secret.as_str().expect("a secret").to_owned()
        };
        let check = async |token: &str, status: u16| {
            let read = world.call_as(token, "GET", "/api_keys", None).await;
            assert_eq!(read.status.as_u16(), status, "{}", read.text);
            let body = Some(json!({ "api_key": "x" }));
            let verify = world.call_as(token, "POST", "/api_keys/verify", body).await;
            assert_eq!(verify.status.as_u16(), status, "{}", verify.text);
        };
        let of_first = token(&first).await;
        check(&of_first, 200).await;
        // All within one second, which is all that `iat` can tell.
        let second = rotate(0).await;
        check(&of_first, 401).await;
        let of_second = token(&second).await;
        check(&of_second, 200).await;

        let third = rotate(60).await;
        check(&of_second, 200).await;
        let (late, of_third) = (token(&second).await, token(&third).await);
        check(&late, 200).await;
        world.pass_seconds(59).await;
        check(&of_second, 200).await;
        world.pass_seconds(1).await;
        // Also the one that was got after the rotation, with the secret that was to end.
        for (token, status) in [(&of_first, 401), (&of_second, 401), (&late, 401), (&of_third, 200)]
        {
            check(token, status).await;
        }
    }
}

on_both_engines! {
    async fn discovery_names_the_issuer_and_its_keys(world: World) {
        let open = async |path: &str| {
            let request = Request::get(path).header("host", "keys.test");
            world.send(request.body(Default::default()).expect("a request")).await.expect(200)
        };
        let jwks = open("/.well-known/jwks.json").await;
        assert_eq!(open("/.well-known/jwks").await, jwks);
        let keys = jwks["keys"].as_array().expect("a list");
        assert_eq!(keys.len(), 1);
        let key = keys[0].as_object().expect("an object");
        let mut names: Vec<&str> = key.keys().map(String::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["alg", "e", "kid", "kty", "n", "use"], "nothing private");
        assert_eq!(
            (&key["kty"], &key["use"], &key["alg"]),
            (&json!("RSA"), &json!("sig"), &json!("RS256"))
        );
        assert!(key["kid"].as_str().expect("one").bytes().all(|b| b.is_ascii_alphanumeric()));
        assert_eq!(URL_SAFE_NO_PAD.decode(key["n"].as_str().expect("n")).expect("n").len(), 256);

        let metadata = open("/.well-known/openid-configuration").await;
        assert_eq!(open("/.well-known/oauth-authorization-server").await, metadata);
        assert_eq!(metadata["issuer"], "http://keys.test");
        assert_eq!(metadata["token_endpoint"], "http://keys.test/oauth2/token");
        assert_eq!(metadata["jwks_uri"], "http://keys.test/.well-known/jwks.json");
        assert_eq!(metadata["grant_types_supported"], json!(["client_credentials"]));
    }
}

on_both_engines! {
    /// Tokens issued, denied calls and failed sign-ins leave a record of who, what and why.
    async fn tokens_failed_sign_ins_and_denied_calls_leave_a_record(world: World) {
        let mut world = world;
        let (id, secret) = application(&world, &["read:users"]).await;
        let token = world.ask_token(&id, &secret, &[]).await.expect(200);
        let jti = claims(&token)["jti"].as_str().expect("a jti").to_owned();
        let token = token["access_token"].as_str().expect("a token").to_owned();
        world.ask_token(&id, "wrong", &[]).await.expect(401);
        world.ask_token("who knows", "wrong", &[]).await.expect(401);
        world.call_as(&token, "GET", "/api_keys/api_key_x", None).await.expect(403);
        let verification = Some(json!({ "api_key": "x" }));
        world.call_as(&token, "POST", "/api_keys/verify", verification.clone()).await.expect(403);
        world.call_as("nonsense", "DELETE", "/user?id=kp_1", None).await.expect(401);
        world.call_as("nonsense", "POST", "/api_keys/verify", verification).await.expect(401);
        world.stop().await;
        type Record = (String, String, String, String, Option<String>, Option<String>);
        let records: Vec<Record> = world
            .rows(
                "select actor_kind, actor_id, action, target_id, reason, address from audit_log
                 where action in ('token.issued', 'token.refused', 'call.denied')
                 order by audit_no",
            )
            .await;
        let record = |kind: &str, actor: &str, action: &str, target: &str, reason: Option<&str>| {
            let (kind, actor, action) = (kind.to_owned(), actor.to_owned(), action.to_owned());
            let address = Some("127.0.0.1".to_owned());
            (kind, actor, action, target.to_owned(), reason.map(str::to_owned), address)
        };
        let client = Some("invalid_client");
        let (scope, bad) = (Some("INSUFFICIENT_SCOPE"), Some("INVALID_TOKEN"));
        let verify = "POST /api/v1/api_keys/verify";
        let (first, rest) = records.split_first().expect("the world's own token");
        assert_eq!((&first.1, first.2.as_str()), (&world.client_id, "token.issued"));
        assert_eq!(
            rest,
            [
                record("application", &id, "token.issued", &jti, None),
                record("application", &id, "call.denied", "GET /api/v1/api_keys/{key_id}", scope),
                record("application", &id, "call.denied", verify, scope),
                // At the same instant, but of somebody who may be anybody: these come after.
                record("application", &id, "token.refused", &id, client),
                record("stranger", "", "token.refused", "", client),
                record("stranger", "", "call.denied", "DELETE /api/v1/user", bad),
                record("stranger", "", "call.denied", verify, bad),
            ]
        );
    }
}
