//! What a load reads is what the follower reads, on both engines.

use keyward_core::{KeyId, sha256};

use super::*;
use crate::ops;
use crate::ops::keys::{ImportedKey, KeyPatch, NewOwner};
use crate::ops::users::UserPatch;
use crate::store::transfer::tests::{World, engines, user_id};

/// Names and metadata in which a reader of words could lose its way.
const TEXTS: &[(&str, Option<&str>)] = &[
    ("plain", None),
    ("with two  spaces ", Some("{}")),
    (" - 1 2 3", Some(r#"{"a b":"c\nd"}"#)),
    ("two\nlines and a tab\t", Some("")),
    ("ü 🔑 -", Some("-")),
    ("", None),
    ("", Some(" ")),
];

/// Keys of every kind of owner and in every state.
async fn populate(world: &World) {
    let org = world.organization("org", &["member", "left"]).await;
    let owners = [
        NewOwner::User(user_id("ada@example.com"), None),
        NewOwner::User(user_id("-"), None),
        NewOwner::User(user_id("member"), Some(org.clone())),
        NewOwner::Org(org),
        NewOwner::Environment,
    ];
    let (store, env, context) = (&world.store, world.env, &world.context);
    for (number, (name, metadata)) in TEXTS.iter().enumerate() {
        let owner = owners.get(number % owners.len()).expect("an owner").clone();
        let mut new = world.new_key(owner);
        (new.name, new.metadata) = ((*name).to_owned(), metadata.map(str::to_owned));
        new.scopes.truncate(number % 2);
        new.not_before = (number % 3 == 0).then_some(-5);
        new.expires_at = (number % 4 == 0).then_some(i64::MAX);
        let digest = sha256(format!("text {number}").as_bytes());
        let one = ImportedKey { new, digest };
        ops::keys::import(store, env, context, vec![one]).await.expect("imported");
    }
    let (key, _) = world.issue_to("often").await;
    world.rotate(key).await;
    world.rotate(key).await;
    world.revoke(world.issue_to("revoked").await.0).await;
    let (key, _) = world.issue_to("disabled").await;
    let patch = KeyPatch { enabled: Some(false), ..KeyPatch::default() };
    ops::keys::update(store, env, context, key, patch).await.expect("disabled");
    for (user, patch) in [
        ("suspended", UserPatch { suspended: Some(true), ..UserPatch::default() }),
        ("not suspended", UserPatch::default()),
    ] {
        let user = user_id(&user.replace(' ', "_"));
        world.issue_to(user.as_str()).await;
        ops::users::update(store, env, context, user, patch).await.expect("updated");
    }
    world.issue_to("deleted").await;
    ops::users::delete(store, env, context, user_id("deleted")).await.expect("deleted");
}

/// A key's secrets come in no particular order.
fn sorted(mut keys: Vec<KeyRow>) -> Vec<KeyRow> {
    for key in &mut keys {
        key.secrets.sort_by_key(|secret| *secret.digest.bytes());
    }
    keys
}

/// Every page of `size` rows, put together.
macro_rules! all {
    ($from:ty, $rows:ident, |$after:ident| $page:expr) => {{
        let mut rows = Vec::new();
        let mut from = Some(<$from>::default());
        while let Some($after) = from.take() {
            let (page, next) = $page.await.expect("a page");
            rows.extend(page.$rows().expect("can be read"));
            from = next;
        }
        rows
    }};
}

#[tokio::test]
async fn pages_of_any_size_hold_what_the_follower_reads_of_each_row() {
    for engine in engines() {
        let world = World::found(engine, 71).await;
        populate(&world).await;
        let conn = &mut world.store.read().await.expect("a connection");
        for size in [1, 2, 3, 1_000] {
            let keys = all!(KeyMark, keys, |after| keys_any_environment(conn, &after, size));
            assert_eq!(keys.len(), TEXTS.len() + 6, "{engine:?}, {size} rows in a page");
            let ids: Vec<KeyId> = keys.iter().map(|key| key.key).collect();
            let alone = crate::store::keys::load_some(conn, &ids).await.expect("the keys");
            assert_eq!(sorted(keys), sorted(alone), "{engine:?}, {size} rows in a page");

            let users = all!(OwnerMark, users, |after| users_any_environment(conn, &after, size));
            assert!(users.iter().any(|user| user.suspended), "{engine:?}");
            assert!(users.iter().any(|user| user.deleted && user.revoked_up_to > 0), "{engine:?}");
            assert_eq!(
                users.len() as i64,
                world.number("select count(*) from users").await,
                "{engine:?}, {size} rows in a page",
            );
            for user in &users {
                let alone = owners::user_row(conn, world.env, &user.user).await.expect("the user");
                assert_eq!(Some(user), alone.as_ref(), "{engine:?}");
            }

            let orgs = all!(OwnerMark, orgs, |after| orgs_any_environment(conn, &after, size));
            assert_eq!(orgs.len(), 1, "{engine:?}");
            for org in &orgs {
                let alone = owners::org_row(conn, world.env, &org.org).await.expect("the org");
                assert_eq!(Some(org), alone.as_ref(), "{engine:?}");
            }

            let memberships = all!(MembershipMark, memberships, |after| {
                memberships_any_environment(conn, &after, size)
            });
            assert_eq!(memberships.len(), 2, "{engine:?}");
            for one in &memberships {
                let alone = owners::membership_row(conn, world.env, &one.org, &one.user);
                assert_eq!(Some(one), alone.await.expect("it").as_ref(), "{engine:?}");
            }
        }
    }
}

#[tokio::test]
async fn totals_are_sums_over_all_counter_files_but_one() {
    for engine in engines() {
        let world = World::found(engine, 72).await;
        let (one, _) = world.issue_to("one").await;
        let (other, _) = world.issue_to("other").await;
        for (file, key, verified) in
            [([1; 16], one, 5), ([2; 16], one, 7), ([3; 16], one, 100), ([3; 16], other, 200)]
        {
            world.count(file, key, verified).await;
        }
        let conn = &mut world.store.read().await.expect("a connection");
        for size in [1, 2, 3, 1_000] {
            let totals = all!(KeyMark, totals, |after| {
                totals_of_others_any_environment(conn, [3; 16], &after, size)
            });
            let found: Vec<_> = totals.iter().map(|total| (total.key, total.verified)).collect();
            assert_eq!(found, [(one, 12)], "{engine:?}, {size} rows in a page");
        }
    }
}
