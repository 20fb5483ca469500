//! Lists of keys: order, pages and filters.

use serde_json::{Value, json};

use crate::world::{World, on_both_engines};

/// The ids on a page, in its order.
fn ids(page: &Value) -> Vec<String> {
    let keys = page["api_keys"].as_array().expect("a list");
    keys.iter().map(|key| key["id"].as_str().expect("an id").to_owned()).collect()
}

/// The ids that a filter leaves.
async fn found(world: &World, query: &str) -> Vec<String> {
    ids(&world.get(&format!("/api_keys?{query}")).await.expect(200))
}

on_both_engines! {
    async fn pages_hold_every_key_once_and_the_newest_first(world: World) {
        let api = world.api("profiles", &[]).await;
        let mut issued = Vec::new();
        for _ in 0..7 {
            world.pass_seconds(1).await;
            issued.insert(0, world.user_key(&api, "kp_1", &[]).await.0);
        }
        assert_eq!(found(&world, "").await, issued);
        let (mut seen, mut cursor) = (Vec::new(), String::new());
        for has_more in [true, true, false] {
            let page = world.get(&format!("/api_keys?page_size=3{cursor}")).await.expect(200);
            assert_eq!(page["has_more"], has_more);
            seen.extend(ids(&page));
            cursor = format!("&starting_after={}", seen.last().expect("a key"));
        }
        assert_eq!(seen, issued);
        let after_last = world.get(&format!("/api_keys?page_size=3{cursor}")).await.expect(200);
        assert_eq!((ids(&after_last).len(), &after_last["has_more"]), (0, &json!(false)));
    }
}

on_both_engines! {
    async fn a_page_that_ends_with_the_last_key_says_that_there_is_no_more(world: World) {
        let api = world.api("profiles", &[]).await;
        for _ in 0..4 {
            world.user_key(&api, "kp_1", &[]).await;
        }
        let page = world.get("/api_keys?page_size=4").await.expect(200);
        assert_eq!((ids(&page).len(), &page["has_more"]), (4, &json!(false)));
    }
}

on_both_engines! {
    async fn each_filter_leaves_exactly_the_keys_it_names(world: World) {
        let (api, other) = (world.api("profiles", &[]).await, world.api("billing", &[]).await);
        let org = json!({ "name": "Acme", "code": "org_acme" });
        world.post("/organization", org).await.expect(200);
        let (active, _) = world.user_key(&api, "kp_1", &[]).await;
        world.pass_seconds(1).await;
        let (inactive, _) = world
            .key(json!({
                "name": "nightly export", "api_id": other, "user_id": "kp_2",
                "expires_on": "2026-12-01T00:00:00Z",
            }))
            .await;
        world.pass_seconds(1).await;
        let (revoked, _) = world.user_key(&api, "kp_2", &[]).await;
        world.pass_seconds(1).await;
        let (of_org, _) =
            world.key(json!({ "name": "k", "api_id": api, "org_code": "org_acme" })).await;
        world.pass_seconds(1).await;
        let (of_env, _) =
            world.key(json!({ "name": "k", "api_id": api, "type": "environment" })).await;
        let inactivate = json!({ "status": "inactive" });
        world.patch(&format!("/api_keys/{inactive}"), inactivate).await.expect(200);
        world.delete(&format!("/api_keys/{revoked}")).await.expect(200);

        let all = [&of_env, &of_org, &revoked, &inactive, &active];
        for (query, expected) in [
            ("", all.as_slice()),
            ("key_type=null&status=&user_id=null", &all),
            ("status=active", &[&of_env, &of_org, &active]),
            ("status=inactive", &[&inactive]),
            ("status=revoked", &[&revoked]),
            ("key_type=user", &[&revoked, &inactive, &active]),
            ("key_type=organization", &[&of_org]),
            ("user_id=kp_2", &[&revoked, &inactive]),
            ("user_id=kp_2&status=revoked", &[&revoked]),
            ("user_id=kp_nobody", &[]),
            ("org_code=org_acme", &[&of_org]),
            ("name=nightly+export", &[&inactive]),
            ("expiring_before=2026-12-01T00:00:01Z", &[&inactive]),
            ("expiring_before=2026-12-01T00:00:00Z", &[]),
        ] {
            assert_eq!(found(&world, query).await.iter().collect::<Vec<_>>(), expected, "{query}");
        }
        assert_eq!(found(&world, &format!("api_id={other}")).await, [inactive]);
    }
}

on_both_engines! {
    /// Keys that nobody revoked by name count as revoked where they are listed, too.
    async fn keys_that_died_with_their_owner_or_api_are_listed_as_revoked(world: World) {
        let (api, other) = (world.api("profiles", &[]).await, world.api("billing", &[]).await);
        let (of_user, _) = world.user_key(&api, "kp_1", &[]).await;
        world.pass_seconds(1).await;
        let (of_api, _) = world.user_key(&other, "kp_2", &[]).await;
        world.delete("/user?id=kp_1").await.expect(200);
        world.delete(&format!("/apis/{other}")).await.expect(200);
        assert_eq!(found(&world, "status=revoked").await, [of_api.clone(), of_user]);
        assert!(found(&world, "status=active").await.is_empty());
        assert_eq!(found(&world, &format!("api_id={other}")).await, [of_api]);
    }
}

on_both_engines! {
    /// The clock stands still, so every key is of one instant, as after an import.
    async fn keys_of_one_instant_are_paged_one_by_one_in_one_order(world: World) {
        let api = world.api("profiles", &[]).await;
        let mut issued = Vec::new();
        for _ in 0..30 {
            issued.push(world.user_key(&api, "kp_1", &[]).await);
        }
        for (at, (_, secret)) in issued.iter().enumerate().skip(27) {
            for _ in 27..=at {
                assert_eq!(world.verify(secret).await["is_valid"], true);
            }
        }
        let whole = world.get("/api_keys?page_size=500").await.expect(200);
        let order = ids(&whole);
        let mut sorted = order.clone();
        sorted.sort_unstable_by(|a, b| b.cmp(a));
        assert_eq!(order, sorted, "the id decides between keys of one instant");
        for filter in ["", "&user_id=kp_1", "&status=active&name=a+key"] {
            let (mut seen, mut cursor) = (Vec::new(), String::new());
            loop {
                let query = format!("/api_keys?page_size=1{filter}{cursor}");
                let page = world.get(&query).await.expect(200);
                let key = &page["api_keys"][0];
                let in_whole = &whole["api_keys"][seen.len()];
                assert_eq!(key, in_whole, "it looks the same on every page");
                seen.extend(ids(&page));
                if page["has_more"] == false {
                    break;
                }
                cursor = format!("&starting_after={}", seen.last().expect("a key"));
            }
            assert_eq!(seen, order, "{filter}");
        }
        for (at, (id, _)) in issued.iter().enumerate() {
            let place = order.iter().position(|one| one == id).expect("in the list");
            let count = at.saturating_sub(26);
            assert_eq!(whole["api_keys"][place]["verification_count"], count);
        }
    }
}
