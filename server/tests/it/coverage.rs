//! What must hold for every route, tried for each row of the route table.
//!
//! A new route fails here until [`example`] knows a good request for it.

use std::collections::{BTreeMap, BTreeSet};

use hyper::Request;
use keyward::http::OPENAPI;
use keyward::http::routes::{Access, Payload, ROUTES, Route};
use keyward::lease::Settle;
use keyward::ops::Context;
use keyward::ops::environments::{self, NewEnvironment};
use keyward::scope::Scope;
use keyward_core::Prefix;
use serde_json::{Value, json};

use crate::world::{Answer, World, on_both_engines};

/// The words of the scopes of which a route needs one; none for a public route.
fn scopes(route: &Route) -> Vec<&'static str> {
    match route.access {
        Access::Public => Vec::new(),
        Access::Scopes(scopes) => scopes.iter().map(|scope| scope.word()).collect(),
    }
}

/// The routes that ask who is there.
fn guarded() -> impl Iterator<Item = &'static Route> {
    ROUTES.iter().filter(|route| route.access != Access::Public)
}

/// A path with well-formed ids of nothing in the place of its parameters.
fn of_nothing(route: &Route) -> String {
    let none = "00000000000000000000000000000000";
    route
        .path
        .replace("{key_id}", &format!("api_key_{none}"))
        .replace("{api_id}", none)
        .replace("{application_id}", none)
        .replace("{scope_id}", &format!("api_scope_{none}"))
        .replace("{org_code}", "org_none")
        .replace("{user_id}", "kp_none")
}

/// A request to `host` as `token`; JSON where the route takes a body.
async fn ask(
    world: &World,
    (host, token): (&str, Option<&str>),
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
    world.send(request.body(body.into()).expect("a request")).await
}

/// Fresh objects that an example is about.
struct Objects {
    api: String,
    scope: String,
    management: String,
    management_scope: String,
    application: String,
    key: String,
    secret: String,
    org: String,
    user: String,
}

async fn objects(world: &World, number: usize) -> Objects {
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    let api = world.api(&format!("api{number}"), &["read:profile"]).await;
    let scopes = world.get(&format!("/apis/{api}/scopes")).await.expect(200);
    let apis = world.get("/apis?expand=scopes").await.expect(200);
    let mut apis = apis["apis"].as_array().expect("a list").iter();
    let management = apis.find(|api| api["is_management_api"] == true).expect("one");
    let application = json!({ "name": "second", "type": "m2m" });
    let application = world.post("/applications", application).await.expect(201);
    let application = text(&application["application"]["id"]);
    let connect = json!({ "applications": [{ "id": application }] });
    let path = format!("/apis/{}/applications", text(&management["id"]));
    world.patch(&path, connect).await.expect(200);
    let (user, org) = (format!("kp_{number}"), format!("org_{number}"));
    world.post("/user", json!({ "id": user })).await.expect(200);
    world.post("/organization", json!({ "name": "Acme", "code": org })).await.expect(200);
    let members = json!({ "users": [{ "id": user }] });
    world.post(&format!("/organizations/{org}/users"), members).await.expect(200);
    let (key, secret) = world.user_key(&api, &user, &["read:profile"]).await;
    Objects {
        scope: text(&scopes["scopes"][0]["id"]),
        management: text(&management["id"]),
        management_scope: text(&management["scopes"][0]["id"]),
        api,
        application,
        key,
        secret,
        org,
        user,
    }
}

/// A good request to `route` about `o`: its path and its body.
fn example(route: &Route, o: &Objects, number: usize) -> (String, Option<Value>) {
    let grants = route.path.contains("/applications/{application_id}/scopes");
    let (api, scope) =
        if grants { (&o.management, &o.management_scope) } else { (&o.api, &o.scope) };
    let mut path = route
        .path
        .replace("{key_id}", &o.key)
        .replace("{api_id}", api)
        .replace("{application_id}", &o.application)
        .replace("{scope_id}", scope)
        .replace("{org_code}", &o.org)
        .replace("{user_id}", &o.user);
    let short = route.path.strip_prefix("/api/v1").unwrap_or(route.path);
    if matches!((route.method.as_str(), short), ("GET" | "PATCH" | "DELETE", "/user")) {
        path = format!("{path}?id={}", o.user);
    }
    if short == "/organization" && route.method == "GET" {
        path = format!("{path}?code={}", o.org);
    }
    let key = json!({ "name": "k", "api_id": o.api, "user_id": o.user });
    let mut imported = key.clone();
    imported["hash"] = json!(format!("{number:064x}"));
    let question = json!({ "api_key": o.secret });
    let body = match (route.method.as_str(), short) {
        ("POST", "/api_keys") => key,
        ("POST", "/api_keys/import") => json!({ "keys": [imported] }),
        ("POST", "/api_keys/verify") => question,
        ("POST", "/api_keys/verify_batch") => json!({ "verifications": [question] }),
        ("PATCH", "/api_keys/{key_id}") => json!({ "name": "another" }),
        ("POST", "/apis") => json!({ "name": "A", "audience": format!("urn:{number}") }),
        ("POST", "/apis/{api_id}/scopes") => json!({ "key": "write:profile" }),
        ("PATCH", "/apis/{api_id}/scopes/{scope_id}") => json!({ "description": "d" }),
        ("PATCH", "/apis/{api_id}/applications") => {
            json!({ "applications": [{ "id": o.application }] })
        }
        ("POST", "/applications") => json!({ "name": "A", "type": "m2m" }),
        ("PATCH", "/applications/{application_id}") => json!({ "name": "another" }),
        ("POST", "/user") => json!({ "profile": { "given_name": "Ada" } }),
        ("PATCH", "/user") => json!({ "given_name": "Ada" }),
        ("POST", "/organization") => json!({ "name": "Acme" }),
        ("PATCH", "/organization/{org_code}") => json!({ "name": "Acme & Co." }),
        ("POST", "/organizations/{org_code}/users") => json!({ "users": [{ "id": "kp_new" }] }),
        ("PATCH", "/organizations/{org_code}/users") => {
            json!({ "users": [{ "id": o.user, "operation": "delete" }] })
        }
        (_, _) => {
            let bare = matches!(route.payload, Payload::None | Payload::Optional);
            assert!(bare, "{} {} has no example here", route.method, route.path);
            return (path, None);
        }
    };
    (path, Some(body))
}

on_both_engines! {
    /// Whoever is nobody learns nothing: not even whether their request was well-formed.
    async fn a_stranger_is_turned_away_from_every_guarded_route(world: World) {
        for route in guarded() {
            let call = (route.method.as_str(), of_nothing(route));
            for body in [None, Some(json!("nonsense"))] {
                for token in [None, Some("nonsense")] {
                    let asked = ask(&world, ("keys.test", token), (call.0, &call.1), body.clone());
                    let answer = asked.await;
                    assert_eq!(answer.status, 401, "{call:?}");
                    let challenge = answer.headers["www-authenticate"].to_str().expect("text");
                    assert!(challenge.starts_with("Bearer realm=\"keyward\""), "{call:?}");
                    let code = if token.is_some() { "INVALID_TOKEN" } else { "NO_TOKEN" };
                    assert_eq!(answer.refused(401).0, code, "{call:?}");
                }
            }
        }
    }
}

on_both_engines! {
    async fn every_guarded_route_needs_its_scope_and_no_other(world: World) {
        for route in guarded() {
            let needed = scopes(route);
            let others: Vec<&str> =
                Scope::ALL.iter().map(|s| s.word()).filter(|w| !needed.contains(w)).collect();
            let call = (route.method.as_str(), of_nothing(route));
            let without = world.token_for(&others).await;
            let asked = ("keys.test", Some(without.as_str()));
            let answer = ask(&world, asked, (call.0, &call.1), None).await;
            assert_eq!(answer.status, 403, "{call:?} without {needed:?}");
            let challenge = "Bearer realm=\"keyward\", error=\"insufficient_scope\"";
            assert_eq!(answer.headers["www-authenticate"], challenge);
            assert_eq!(answer.refused(403).0, "INSUFFICIENT_SCOPE");
            for one in needed {
                let with = world.token_for(&[one]).await;
                let asked = ("keys.test", Some(with.as_str()));
                let status = ask(&world, asked, (call.0, &call.1), None).await.status.as_u16();
                assert!(!matches!(status, 401 | 403), "{call:?} with {one}: {status}");
            }
        }
    }
}

on_both_engines! {
    async fn objects_of_another_environment_are_a_404_on_every_route(world: World) {
        let o = objects(&world, 1).await;
        let app = world.app();
        let new = NewEnvironment {
            slug: "other".to_owned(),
            name: "Other".to_owned(),
            public_url: "http://other.test".to_owned(),
            key_prefix: Prefix::parse("k_live").expect("a prefix"),
        };
        let (secrets, context) = (app.keyring.secrets(), Context::system("test"));
        let made = environments::create(&app.store, &context, &secrets, new).await.expect("made");
        app.settle(made.stamp(), Settle::Narrowing).await.expect("in force");
        let form = form_urlencoded::Serializer::new(String::new())
            .append_pair("grant_type", "client_credentials")
            .append_pair("client_id", &made.value.app.to_string())
            .append_pair("client_secret", &made.value.client_secret)
            .finish();
        let request = Request::post("/oauth2/token")
            .header("host", "other.test")
            .header("content-type", "application/x-www-form-urlencoded");
        let token = world.send(request.body(form.into()).expect("a request")).await.expect(200);
        let token = token["access_token"].as_str().expect("a token");
        let mut tried = 0;
        for route in ROUTES.iter().filter(|route| route.path.contains('{')) {
            let (path, body) = example(route, &o, 1);
            let asked = ("other.test", Some(token));
            let answer = ask(&world, asked, (route.method.as_str(), &path), body).await;
            assert_eq!(answer.refused(404).0, "NOT_FOUND", "{} {path}", route.method);
            tried += 1;
        }
        assert!(tried > 20, "{tried} routes name an object");
        let shown = world.get(&format!("/api_keys/{}", o.key)).await.expect(200);
        assert_eq!(
            (&shown["api_key"]["status"], &shown["api_key"]["name"]),
            (&json!("active"), &json!("a key"))
        );
    }
}

on_both_engines! {
    async fn head_says_what_get_would_without_its_body(world: World) {
        let gets = ROUTES.iter().filter(|route| route.method == "GET");
        for path in gets.map(of_nothing).chain(["/no/such/route".to_owned()]) {
            for token in [None, Some("nonsense"), Some(world.token.as_str())] {
                let got = ask(&world, ("keys.test", token), ("GET", &path), None).await;
                let head = ask(&world, ("keys.test", token), ("HEAD", &path), None).await;
                assert_eq!(head.status, got.status, "{path}");
                assert_eq!(head.text, "", "{path}");
                for name in ["content-type", "cache-control", "www-authenticate"] {
                    assert_eq!(head.headers.get(name), got.headers.get(name), "{path}: {name}");
                }
                let length = head.headers["content-length"].to_str().expect("a text");
                // Metrics count the requests themselves.
                if path != "/metrics" {
                    assert_eq!(length, got.text.len().to_string(), "{path}");
                }
            }
        }
    }
}

on_both_engines! {
    async fn a_method_that_a_path_does_not_take_is_a_405_that_says_which_it_takes(world: World) {
        let mut paths: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for route in ROUTES {
            paths.entry(route.path).or_default().insert(route.method.as_str());
        }
        for (path, mut methods) in paths {
            if methods.contains("GET") {
                methods.insert("HEAD");
            }
            let route = ROUTES.iter().find(|route| route.path == path).expect("a route");
            for method in ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "QUERY"]
            {
                if methods.contains(method) {
                    continue;
                }
                let asked = ("keys.test", Some(world.token.as_str()));
                let answer = ask(&world, asked, (method, &of_nothing(route)), None).await;
                assert_eq!(answer.status, 405, "{method} {path}");
                let allow = answer.headers["allow"].to_str().expect("a text");
                let allow: BTreeSet<&str> = allow.split(", ").collect();
                assert_eq!(allow, methods, "{method} {path}");
                if method != "HEAD" {
                    assert_eq!(answer.refused(405).0, "METHOD_NOT_ALLOWED");
                }
            }
        }
    }
}

on_both_engines! {
    /// Promise 7: every change has an actor, and its record is there when the answer is.
    async fn every_write_leaves_exactly_one_record_of_who_did_what(world: World) {
        type Record = (String, String, String, String, Option<String>, String, Option<i64>);
        let mut actions = BTreeSet::new();
        for (number, route) in ROUTES.iter().filter(|route| route.is_write()).enumerate() {
            let o = objects(&world, number + 1).await;
            if route.path.ends_with("/scopes/{scope_id}")
                && route.path.contains("applications")
                && route.method == "DELETE"
            {
                let (path, _) = example(route, &o, number);
                let asked = ("keys.test", Some(world.token.as_str()));
                assert_eq!(ask(&world, asked, ("POST", &path), None).await.status, 200);
            }
            let (path, body) = example(route, &o, number);
            let before: Vec<(i64,)> = world.rows("select max(audit_no) from audit_log").await;
            let asked = ("keys.test", Some(world.token.as_str()));
            let answer = ask(&world, asked, (route.method.as_str(), &path), body).await;
            assert!(answer.status.is_success(), "{} {path}: {}", route.method, answer.text);
            let all: Vec<Record> = world
                .rows(
                    "select actor_kind, actor_id, action, target_id, address, request_id,
                            change_seq
                     from audit_log order by audit_no",
                )
                .await;
            let new = &all[usize::try_from(before[0].0).expect("a number")..];
            let [record] = new else { panic!("{} {path} left {new:?}", route.method) };
            let (kind, actor, action, target, address, request_id, seq) = record;
            assert_eq!((kind.as_str(), actor), ("application", &world.client_id));
            assert_eq!(address.as_deref(), Some("127.0.0.1"));
            assert_eq!(answer.headers["x-request-id"], request_id.as_str());
            assert_eq!(answer.json()["seq"], json!(seq), "{} {path}", route.method);
            assert!(!target.is_empty(), "{action} has a target");
            actions.insert(action.clone());
        }
        let expected = [
            "api.applications_updated",
            "api.created",
            "api.deleted",
            "application.created",
            "application.deleted",
            "application.scope_granted",
            "application.scope_taken",
            "application.secret_rotated",
            "application.updated",
            "key.imported",
            "key.issued",
            "key.revoked",
            "key.rotated",
            "key.updated",
            "organization.created",
            "organization.deleted",
            "organization.members_updated",
            "organization.updated",
            "scope.created",
            "scope.deleted",
            "scope.updated",
            "user.created",
            "user.deleted",
            "user.updated",
        ];
        assert_eq!(actions.iter().map(String::as_str).collect::<Vec<_>>(), expected);
    }
}

on_both_engines! {
    async fn every_route_that_reads_answers_a_good_request(world: World) {
        let o = objects(&world, 1).await;
        for route in
            ROUTES.iter().filter(|route| !route.is_write() && route.path != "/oauth2/token")
        {
            let (path, body) = example(route, &o, 1);
            let asked = ("keys.test", Some(world.token.as_str()));
            let answer = ask(&world, asked, (route.method.as_str(), &path), body).await;
            assert_eq!(answer.status, 200, "{} {path}: {}", route.method, answer.text);
        }
    }
}

#[test]
fn every_route_is_documented_with_its_scope_and_nothing_else_is() {
    let document: Value = serde_json::from_str(OPENAPI).expect("JSON");
    let mut documented = BTreeMap::new();
    for (path, operations) in document["paths"].as_object().expect("an object") {
        for (method, operation) in operations.as_object().expect("an object") {
            if method == "parameters" {
                continue;
            }
            let scopes: Vec<String> = operation["x-required-scope"]
                .as_array()
                .unwrap_or_else(|| panic!("{method} {path} names its scopes"))
                .iter()
                .map(|scope| scope.as_str().expect("a text").to_owned())
                .collect();
            documented.insert((path.clone(), method.to_uppercase()), scopes);
        }
    }
    let mut built = BTreeMap::new();
    for route in ROUTES {
        let words = scopes(route).into_iter().map(str::to_owned).collect::<Vec<_>>();
        built.insert((route.path.to_owned(), route.method.to_string()), words);
    }
    assert_eq!(documented, built);
}

#[test]
fn the_document_tells_of_each_route_what_it_takes_and_how_it_refuses() {
    let document: Value = serde_json::from_str(OPENAPI).expect("JSON");
    for route in ROUTES {
        let operation = &document["paths"][route.path][route.method.as_str().to_lowercase()];
        let name = format!("{} {}", route.method, route.path);
        let parameters = operation["parameters"].as_array().cloned().unwrap_or_default();
        let parameters: Vec<Value> = parameters
            .into_iter()
            .map(|parameter| match parameter["$ref"].as_str() {
                Some(pointer) => document.pointer(&pointer[1..]).expect("a parameter").clone(),
                None => parameter,
            })
            .collect();
        let has = |place: &str| parameters.iter().any(|parameter| parameter["in"] == place);
        assert_eq!(has("query"), route.has_query, "{name}: query");
        assert_eq!(has("header"), route.is_write(), "{name}: Idempotency-Key");
        let body = match route.payload {
            Payload::None => Value::Null,
            Payload::Optional => json!(false),
            Payload::Required | Payload::Import | Payload::Form => json!(true),
        };
        assert_eq!(operation["requestBody"]["required"], body, "{name}: body");
        let tells = |status: &str| operation["responses"].get(status).is_some();
        let is_protected = route.access != Access::Public;
        let takes_body = route.payload != Payload::None;
        let names_object = route.path.contains('{');
        let is_probe = matches!(route.path, "/healthz" | "/readyz");
        for (status, expected) in [
            ("400", is_protected || takes_body),
            ("401", is_protected || route.payload == Payload::Form),
            ("403", is_protected),
            ("404", names_object),
            ("405", true),
            ("409", route.is_write()),
            ("413", takes_body),
            ("415", takes_body),
            ("421", !is_probe),
            ("422", route.is_write()),
            ("429", route.path == "/api/v1/api_keys/verify"),
            ("503", route.path != "/healthz"),
        ] {
            assert_eq!(tells(status), expected, "{name}: {status}");
        }
    }
}
