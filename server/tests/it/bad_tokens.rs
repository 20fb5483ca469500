//! Tokens that are none of ours, or none any longer: always 401, whatever they claim.

use aws_lc_rs::hmac;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair, KeySize};
use aws_lc_rs::signature::RSA_PKCS1_SHA256;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hyper::Request;
use keyward::lease::Settle;
use keyward::ops::{Context, environments};
use serde_json::{Value, json};

use crate::world::{START_US, World, on_both_engines};

/// A part of a JWT: header or claims.
fn part(value: &Value) -> String {
    URL_SAFE_NO_PAD.encode(value.to_string())
}

/// The parts of the world's own token: header, claims, signature.
fn taken_apart(token: &str) -> (Value, Value, String) {
    let parts: Vec<&str> = token.split('.').collect();
    let read = |text: &str| {
        let bytes = URL_SAFE_NO_PAD.decode(text).expect("base64");
        serde_json::from_slice(&bytes).expect("JSON")
    };
    (read(parts[0]), read(parts[1]), parts[2].to_owned())
}

fn signed(header: &Value, claims: &Value, pair: &KeyPair) -> String {
    let text = format!("{}.{}", part(header), part(claims));
    let mut signature = vec![0; pair.public_modulus_len()];
    pair.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), text.as_bytes(), &mut signature)
        .expect("signs");
    format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature))
}

/// A call with this Authorization header, on a management route and on verify.
async fn turned_away(world: &World, what: &str, authorization: &str) {
    for (method, path, body) in [
        ("GET", "/api/v1/api_keys", ""),
        ("POST", "/api/v1/api_keys/verify", "{\"api_key\":\"x\"}"),
    ] {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "keys.test")
            .header("content-type", "application/json")
            .header("authorization", authorization);
        let answer = world.send(request.body(body.to_owned().into()).expect("a request")).await;
        assert_eq!(answer.status.as_u16(), 401, "{what}: {}", answer.text);
        let challenge = answer.headers["www-authenticate"].to_str().expect("a text").to_owned();
        assert!(challenge.starts_with("Bearer realm=\"keyward\""), "{what}: {challenge}");
        let (code, message) = answer.refused(401);
        let known = match code.as_str() {
            "NO_TOKEN" => "a bearer token is needed",
            "INVALID_TOKEN" => {
                "the token is not good here: expired, of another issuer, or its application was \
                 stopped; get a new one from /oauth2/token"
            }
            _ => panic!("{what}: {code}"),
        };
        assert_eq!(message, known, "{what}");
        assert_eq!(code == "INVALID_TOKEN", challenge.contains("invalid_token"), "{what}");
    }
}

on_both_engines! {
    async fn a_token_that_this_environment_did_not_sign_is_refused(world: World) {
        let (header, claims, signature) = taken_apart(&world.token);
        let foreign = KeyPair::generate(KeySize::Rsa2048).expect("a key");
        let jwks = Request::get("/.well-known/jwks.json").header("host", "keys.test");
        let jwks = world.send(jwks.body(Default::default()).expect("a request")).await.expect(200);
        let modulus = jwks["keys"][0]["n"].as_str().expect("n").to_owned();
        let mut other_kid = header.clone();
        other_kid["kid"] = json!("unknown");
        let mut none = header.clone();
        none["alg"] = json!("none");
        let mut hs256 = header.clone();
        hs256["alg"] = json!("HS256");
        let mut critical = header.clone();
        critical["crit"] = json!(["exp"]);
        let mut wider = claims.clone();
        wider["azp"] = json!("00000000000000000000000000000000");
        let unsigned = format!("{}.{}", part(&none), part(&claims));
        let by_public_key = {
            let text = format!("{}.{}", part(&hs256), part(&claims));
            let key = hmac::Key::new(hmac::HMAC_SHA256, modulus.as_bytes());
            let tag = hmac::sign(&key, text.as_bytes());
            format!("{text}.{}", URL_SAFE_NO_PAD.encode(tag))
        };
        let good = &world.token;
        for (what, token) in [
            ("a foreign key under our key's name", signed(&header, &claims, &foreign)),
            ("a foreign key under another name", signed(&other_kid, &claims, &foreign)),
            ("alg none, no signature", format!("{unsigned}.")),
            ("alg none, no dot", unsigned.clone()),
            ("alg none, our signature", format!("{unsigned}.{signature}")),
            ("HS256 with the public key", by_public_key),
            (
                "another header, our signature",
                format!("{}.{}.{signature}", part(&critical), part(&claims)),
            ),
            (
                "other claims, our signature",
                format!("{}.{}.{signature}", part(&header), part(&wider)),
            ),
            ("truncated", good[..good.len() - 1].to_owned()),
            ("a signature of nothing", format!("{}.{}.", part(&header), part(&claims))),
            ("two dots", "..".to_owned()),
            ("no JWT", "canary".to_owned()),
            ("a client secret", world.client_secret.clone()),
            ("empty", String::new()),
            ("long", "a".repeat(9_000)),
            ("with a space within", format!("{good} {good}")),
        ] {
            turned_away(&world, what, &format!("Bearer {token}")).await;
        }
        turned_away(&world, "another scheme", &format!("Basic {good}")).await;
        turned_away(&world, "no scheme", good).await;
        turned_away(&world, "a lone scheme", "Bearer").await;
        // The scheme's name is read in any case (RFC 9110 §11.1).
        let request = Request::get("/api/v1/api_keys").header("host", "keys.test");
        let request = request.header("authorization", format!("bearer {good}"));
        world.send(request.body(Default::default()).expect("a request")).await.expect(200);
    }
}

on_both_engines! {
    async fn a_token_is_good_for_its_life_and_not_longer(world: World) {
        let (_, claims, _) = taken_apart(&world.token);
        assert_eq!(claims["exp"].as_i64(), Some(START_US / 1_000_000 + 86_400));
        world.pass_seconds(86_399).await;
        world.get("/api_keys").await.expect(200);
        world.pass_seconds(1).await;
        turned_away(&world, "expired", &format!("Bearer {}", world.token)).await;
    }
}

on_both_engines! {
    async fn a_token_for_another_api_is_no_management_token(world: World) {
        let api = world.api("profiles", &["read:api_keys"]).await;
        let connect = json!({ "applications": [{ "id": world.client_id }] });
        world.patch(&format!("/apis/{api}/applications"), connect).await.expect(200);
        let scopes = world.get(&format!("/apis/{api}/scopes")).await.expect(200);
        let scope = scopes["scopes"][0]["id"].as_str().expect("an id");
        let path = format!("/apis/{api}/applications/{}/scopes/{scope}", world.client_id);
        world.call("POST", &path, None).await.expect(200);
        let form = form_urlencoded::Serializer::new(String::new())
            .append_pair("grant_type", "client_credentials")
            .append_pair("client_id", &world.client_id)
            .append_pair("client_secret", &world.client_secret)
            .append_pair("audience", "https://profiles.example.com")
            .finish();
        let request = Request::post("/oauth2/token")
            .header("host", "keys.test")
            .header("content-type", "application/x-www-form-urlencoded");
        let token = world.send(request.body(form.into()).expect("a request")).await.expect(200);
        assert_eq!(token["scope"], "read:api_keys");
        let token = token["access_token"].as_str().expect("a token");
        assert_eq!(taken_apart(token).1["aud"], json!(["https://profiles.example.com"]));
        turned_away(&world, "another audience", &format!("Bearer {token}")).await;
    }
}

on_both_engines! {
    /// Rotation is without downtime; removal is what ends the tokens of a key that leaked.
    async fn tokens_of_a_rotated_signing_key_stay_good_until_the_key_is_removed(world: World) {
        let app = world.app();
        let env = app.shared.directory.load().by_host("keys.test").expect("one").row.env;
        let (old, context) = (world.token.clone(), Context::system("test"));
        let old_kid = taken_apart(&old).0["kid"].as_str().expect("a kid").to_owned();
        let still = environments::remove_signing_key(&app.store, env, &context, old_kid.clone());
        assert_eq!(still.await.expect_err("it signs").code, "NOT_FOUND");
        let secrets = app.keyring.secrets();
        world.pass_seconds(1).await;
        let rotated = environments::rotate_signing_key(&app.store, env, &context, &secrets).await;
        let rotated = rotated.expect("rotated");
        app.settle(rotated.stamp(), Settle::Narrowing).await.expect("in force");
        let new = world.token_for(&[]).await;
        assert_eq!(taken_apart(&new).0["kid"], rotated.value);
        let jwks = Request::get("/.well-known/jwks").header("host", "keys.test");
        let jwks = world.send(jwks.body(Default::default()).expect("a request")).await.expect(200);
        let kids: Vec<&Value> =
            jwks["keys"].as_array().expect("a list").iter().map(|key| &key["kid"]).collect();
        assert_eq!(kids, [&json!(rotated.value), &json!(old_kid)], "current, then retired");
        for token in [&old, &new] {
            world.call_as(token, "GET", "/api_keys", None).await.expect(200);
        }
        let removed = environments::remove_signing_key(&app.store, env, &context, old_kid).await;
        app.settle(removed.expect("removed").stamp(), Settle::Narrowing).await.expect("in force");
        turned_away(&world, "a removed key", &format!("Bearer {old}")).await;
        world.call_as(&new, "GET", "/api_keys", None).await.expect(200);
    }
}
