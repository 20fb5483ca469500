//! Promise 5, as far as it always holds: a suspended, deleted or departed owner's keys are refused.

use serde_json::{Value, json};

use crate::world::{World, on_both_engines};

/// A user `kp_1` who is a member of `org_acme`, an API, and one key of each kind of owner:
/// of the user, of the user inside the organization, of the organization.
struct Acme {
    api: String,
    user: String,
    inside: String,
    org: String,
}

async fn acme(world: &World) -> Acme {
    let api = world.api("profiles", &[]).await;
    let org = json!({ "name": "Acme", "code": "org_acme" });
    world.post("/organization", org).await.expect(200);
    world.post("/user", json!({ "id": "kp_1" })).await.expect(200);
    join(world).await;
    let mut secrets = Vec::new();
    for owner in [
        json!({ "user_id": "kp_1" }),
        json!({ "user_id": "kp_1", "org_code": "org_acme" }),
        json!({ "org_code": "org_acme" }),
    ] {
        let mut body = json!({ "name": "a key", "api_id": api });
        let fields = body.as_object_mut().expect("an object");
        fields.extend(owner.as_object().expect("an object").clone());
        secrets.push(world.key(body).await.1);
    }
    let [user, inside, org] = secrets.try_into().expect("three");
    let acme = Acme { api, user, inside, org };
    expect(world, &acme, ["VERIFIED", "VERIFIED", "VERIFIED"]).await;
    acme
}

async fn join(world: &World) {
    let members = json!({ "users": [{ "id": "kp_1" }] });
    world.post("/organizations/org_acme/users", members).await.expect(200);
}

/// The verdicts of the three keys, without `API_KEY_`.
async fn expect(world: &World, acme: &Acme, words: [&str; 3]) {
    let secrets = [&acme.user, &acme.inside, &acme.org];
    for ((secret, word), owner) in secrets.into_iter().zip(words).zip(["user", "inside", "org"]) {
        assert_eq!(world.verify(secret).await["code"], format!("API_KEY_{word}"), "{owner}");
    }
}

async fn issue(world: &World, acme: &Acme, owner: Value) -> crate::world::Answer {
    let mut body = json!({ "name": "another", "api_id": acme.api });
    body.as_object_mut().expect("an object").extend(owner.as_object().expect("one").clone());
    world.post("/api_keys", body).await
}

on_both_engines! {
    async fn keys_of_a_suspended_user_are_refused_until_the_user_is_restored(world: World) {
        let acme = acme(&world).await;
        let suspend = |flag: bool| json!({ "is_suspended": flag });
        let done = world.patch("/user?id=kp_1", suspend(true)).await.expect(200);
        assert_eq!(done["is_suspended"], true);
        expect(&world, &acme, ["OWNER_SUSPENDED", "OWNER_SUSPENDED", "VERIFIED"]).await;
        assert_eq!(world.verify(&acme.user).await["status"], "active", "suspension is no status");
        let answer = issue(&world, &acme, json!({ "user_id": "kp_1" })).await;
        assert_eq!(
            (answer.status.as_u16(), answer.error_code().as_str()),
            (409, "OWNER_SUSPENDED")
        );
        let again = world.patch("/user?id=kp_1", suspend(true)).await.expect(200);
        assert_eq!(again["seq"], done["seq"]);
        world.patch("/user?id=kp_1", suspend(false)).await.expect(200);
        expect(&world, &acme, ["VERIFIED", "VERIFIED", "VERIFIED"]).await;
    }
}

on_both_engines! {
    async fn keys_of_a_suspended_organization_are_refused_until_it_is_restored(world: World) {
        let acme = acme(&world).await;
        let suspend = |flag: bool| json!({ "is_suspended": flag });
        world.patch("/organization/org_acme", suspend(true)).await.expect(200);
        expect(&world, &acme, ["VERIFIED", "OWNER_SUSPENDED", "OWNER_SUSPENDED"]).await;
        let answer = issue(&world, &acme, json!({ "org_code": "org_acme" })).await;
        assert_eq!(
            (answer.status.as_u16(), answer.error_code().as_str()),
            (409, "OWNER_SUSPENDED")
        );
        world.patch("/organization/org_acme", suspend(false)).await.expect(200);
        expect(&world, &acme, ["VERIFIED", "VERIFIED", "VERIFIED"]).await;
    }
}

on_both_engines! {
    async fn a_lost_membership_refuses_the_keys_inside_the_organization(world: World) {
        let acme = acme(&world).await;
        let left = world.delete("/organizations/org_acme/users/kp_1").await.expect(200);
        expect(&world, &acme, ["VERIFIED", "OWNER_SUSPENDED", "VERIFIED"]).await;
        let inside = json!({ "user_id": "kp_1", "org_code": "org_acme" });
        let answer = issue(&world, &acme, inside).await;
        assert_eq!((answer.status.as_u16(), answer.error_code().as_str()), (400, "NOT_A_MEMBER"));
        join(&world).await;
        expect(&world, &acme, ["VERIFIED", "VERIFIED", "VERIFIED"]).await;
        assert!(left["seq"].is_i64());
        let removal = json!({ "users": [{ "id": "kp_1", "operation": "delete" }] });
        let removed = world.patch("/organizations/org_acme/users", removal).await.expect(200);
        assert_eq!(removed["users_removed"], json!(["kp_1"]));
        expect(&world, &acme, ["VERIFIED", "OWNER_SUSPENDED", "VERIFIED"]).await;
    }
}

on_both_engines! {
    /// A deleted user is registered again only explicitly, and what was before stays dead.
    async fn keys_of_a_deleted_user_stay_dead_when_the_user_comes_back(world: World) {
        let acme = acme(&world).await;
        let done = world.delete("/user?id=kp_1").await.expect(200);
        expect(&world, &acme, ["REVOKED", "REVOKED", "VERIFIED"]).await;
        assert_eq!(world.delete("/user?id=kp_1").await.expect(200)["seq"], done["seq"]);
        assert_eq!(world.get("/user?id=kp_1").await.status.as_u16(), 400);
        let answer = issue(&world, &acme, json!({ "user_id": "kp_1" })).await;
        assert_eq!((answer.status.as_u16(), answer.error_code().as_str()), (400, "DELETED_USER"));

        world.post("/user", json!({ "id": "kp_1" })).await.expect(200);
        expect(&world, &acme, ["REVOKED", "REVOKED", "VERIFIED"]).await;
        let shown = world.get("/user?id=kp_1").await.expect(200);
        assert_eq!(shown["organizations"], json!([]), "memberships do not come back either");
        let new = issue(&world, &acme, json!({ "user_id": "kp_1" })).await.expect(201);
        let secret = new["api_key"]["key"].as_str().expect("a secret");
        assert_eq!(world.verify(secret).await["code"], "API_KEY_VERIFIED");
        expect(&world, &acme, ["REVOKED", "REVOKED", "VERIFIED"]).await;
        // The table says the same after it was loaded anew.
        let mut world = world;
        world.stop().await;
        world.start_again().await;
        expect(&world, &acme, ["REVOKED", "REVOKED", "VERIFIED"]).await;
        assert_eq!(world.verify(secret).await["code"], "API_KEY_VERIFIED");
    }
}

on_both_engines! {
    async fn keys_of_a_deleted_organization_or_api_are_revoked_for_good(world: World) {
        let acme = acme(&world).await;
        world.delete("/organization/org_acme").await.expect(200);
        expect(&world, &acme, ["VERIFIED", "REVOKED", "REVOKED"]).await;
        world.delete(&format!("/apis/{}", acme.api)).await.expect(200);
        expect(&world, &acme, ["REVOKED", "REVOKED", "REVOKED"]).await;
        let answer = issue(&world, &acme, json!({ "user_id": "kp_1" })).await;
        assert_eq!((answer.status.as_u16(), answer.error_code().as_str()), (400, "UNKNOWN_API"));
        // A new API of the same audience is another API.
        world.api("profiles", &[]).await;
        expect(&world, &acme, ["REVOKED", "REVOKED", "REVOKED"]).await;
    }
}

on_both_engines! {
    async fn a_deleted_scope_is_gone_from_every_key_at_once(world: World) {
        let api = world.api("profiles", &["read:profile", "write:profile"]).await;
        let (id, secret) = world.user_key(&api, "kp_1", &["read:profile", "write:profile"]).await;
        let scopes = world.get(&format!("/apis/{api}/scopes")).await.expect(200);
        let write = scopes["scopes"].as_array().expect("a list").iter();
        let write = write.clone().find(|scope| scope["key"] == "write:profile").expect("a scope");
        let path = format!("/apis/{api}/scopes/{}", write["id"].as_str().expect("an id"));
        world.delete(&path).await.expect(200);
        assert_eq!(world.verify(&secret).await["scopes"], json!(["read:profile"]));
        let asked = json!({ "api_key": secret, "scopes": ["read:profile", "write:profile"] });
        let refused = world.post("/api_keys/verify", asked).await.expect(200);
        assert_eq!(refused["code"], "API_KEY_INSUFFICIENT_SCOPE");
        assert_eq!(refused["refusal"]["missing_scopes"], json!(["write:profile"]));
        let shown = world.get(&format!("/api_keys/{id}")).await.expect(200);
        assert_eq!(shown["api_key"]["scopes"], json!(["read:profile"]));
        // The same word again is another scope, which no key was given.
        let again = json!({ "key": "write:profile" });
        world.post(&format!("/apis/{api}/scopes"), again).await.expect(200);
        assert_eq!(world.verify(&secret).await["scopes"], json!(["read:profile"]));
    }
}

on_both_engines! {
    async fn an_unknown_user_is_registered_on_first_use(world: World) {
        let api = world.api("profiles", &[]).await;
        world.user_key(&api, "auth0|5f7c", &[]).await;
        let shown = world.get("/user?id=auth0%7C5f7c").await.expect(200);
        assert_eq!((&shown["id"], &shown["is_suspended"]), (&json!("auth0|5f7c"), &json!(false)));
    }
}
