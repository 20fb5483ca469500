//! An application cannot come by rights that it does not hold.

use serde_json::json;

use crate::world::on_both_engines;

on_both_engines! {
    async fn an_application_gives_away_and_takes_over_no_more_than_it_holds(world: World) {
        let first = world.client_id.clone();
        let apis = world.get("/apis?expand=scopes").await.expect(200);
        let apis = apis["apis"].as_array().expect("a list");
        let api = apis.iter().find(|api| api["is_management_api"] == true).expect("one");
        let (api_id, scopes) = (api["id"].as_str().expect("an id"), api["scopes"].as_array());
        let scope = |key: &str| {
            let found = scopes.expect("a list").iter().find(|scope| scope["key"] == key);
            found.and_then(|scope| scope["id"].as_str()).expect("an id").to_owned()
        };
        let made = world.post("/applications", json!({ "name": "weak", "type": "m2m" })).await;
        let made = made.expect(201)["application"].clone();
        let (weak, secret) = (made["id"].as_str().expect("an id"), made["client_secret"].as_str());
        let connect = json!({ "applications": [{ "id": weak }] });
        world.patch(&format!("/apis/{api_id}/applications"), connect).await.expect(200);
        let grant = |key: &str| {
            format!("/apis/{api_id}/applications/{weak}/scopes/{}", scope(key))
        };
        for held in ["update:applications", "create:api_application_scopes"] {
            world.call("POST", &grant(held), None).await.expect(200);
        }
        let token = world.ask_token(weak, secret.expect("a secret"), &[]).await.expect(200);
        let token = token["access_token"].as_str().expect("a token");

        let more = world.call_as(token, "POST", &grant("delete:api_keys"), None).await;
        assert_eq!(more.status.as_u16(), 403, "{}", more.text);
        let stolen = format!("/applications/{first}/secret");
        let stolen = world.call_as(token, "POST", &stolen, None).await;
        assert_eq!(stolen.status.as_u16(), 403, "{}", stolen.text);

        let own = format!("/applications/{weak}/secret");
        world.call_as(token, "POST", &own, None).await.expect(201);
        world.call_as(token, "POST", &grant("update:applications"), None).await.expect(200);
    }
}
