//! What keys that are issued together guarantee each other, on both engines.

use keyward_core::OrgCode;
use tokio::task::{JoinHandle, yield_now};

use super::*;
use crate::ops;
use crate::ops::keys::{NewKey, NewOwner};
use crate::store::idempotency::IdempotencyKey;
use crate::store::transfer::tests::{World, engines, user_id};

type Answer = Result<Committed<Issued>>;

/// Has `wishes` issued together: while the writer is held up, all of them come to wait.
async fn together(world: &World, wishes: Vec<(Context, NewKey)>) -> Vec<Answer> {
    let (store, env) = (world.store.clone(), world.env);
    let (release, held) = oneshot::channel::<()>();
    let holder = {
        let store = store.clone();
        tokio::spawn(async move {
            let hold: Result<()> = store
                .writer
                .submit(move |_| {
                    Box::pin(async move {
                        held.await.map_err(Error::internal)?;
                        Ok(())
                    })
                })
                .await;
            hold.expect("held up");
        })
    };
    yield_now().await;
    let mut waiting: Vec<JoinHandle<Answer>> = Vec::new();
    for (context, new) in wishes {
        let (store, pepper) = (store.clone(), world.pepper.clone());
        waiting.push(tokio::spawn(async move {
            ops::keys::issue(&store, env, &context, pepper, new).await
        }));
        // One thread runs all tasks in turn, so this one is in the queue before the next.
        yield_now().await;
    }
    release.send(()).expect("somebody is held up");
    holder.await.expect("no panic");
    let mut answers = Vec::new();
    for one in waiting {
        answers.push(one.await.expect("no panic"));
    }
    answers
}

fn wish(world: &World, name: &str, owner: NewOwner) -> (Context, NewKey) {
    let mut new = world.new_key(owner);
    name.clone_into(&mut new.name);
    (world.context.clone(), new)
}

fn of_user(user: &str) -> NewOwner {
    NewOwner::User(user_id(user), None)
}

fn code(answer: &Answer) -> &'static str {
    match answer {
        Ok(_) => "issued",
        Err(error) => error.code,
    }
}

/// The log of changes has no gap, and each change an audit record.
async fn assert_complete_log(world: &World) {
    let head = world.number("select seq from change_head").await;
    assert_eq!(world.number("select count(*) from change_log").await, head);
    let recorded = "select count(distinct change_seq) from audit_log";
    assert_eq!(world.number(recorded).await, head);
    let keys = "select count(*) from api_keys k join audit_log a
                on a.change_seq = k.issued_seq and a.action = 'key.issued'";
    assert_eq!(world.number(keys).await, world.number("select count(*) from api_keys").await);
}

#[tokio::test]
async fn keys_issued_together_have_each_their_change_and_their_record() {
    for engine in engines() {
        let world = World::found(engine, 81).await;
        let wishes =
            (0..20).map(|n| wish(&world, "key", of_user(&format!("u{}", n % 7)))).collect();
        let before = world.number("select seq from change_head").await;
        let answers = together(&world, wishes).await;
        let seqs: Vec<i64> =
            answers.iter().map(|answer| answer.as_ref().expect("issued").seq).collect();
        assert_eq!(seqs, (before + 1..=before + 20).collect::<Vec<_>>(), "{engine:?}");
        assert_complete_log(&world).await;
        assert_eq!(world.number("select count(*) from users").await, 7, "{engine:?}");
        assert_eq!(world.number("select count(*) from key_secrets").await, 20, "{engine:?}");
        let told = "select count(*) from change_log where touched like 'user u_%key api_key_%'";
        assert_eq!(world.number(told).await, 7, "{engine:?}: the first key of each user names it");
    }
}

#[tokio::test]
async fn a_key_that_cannot_be_issued_leaves_its_neighbours_alone_and_no_user_behind() {
    for engine in engines() {
        let world = World::found(engine, 82).await;
        let org = world.organization("org", &[]).await;
        let nowhere = OrgCode::parse("nowhere").expect("an organization's code");
        let stranger = NewOwner::User(user_id("stranger"), Some(org));
        let answers = together(
            &world,
            vec![
                wish(&world, "first", of_user("u1")),
                wish(&world, "of a stranger", stranger),
                wish(&world, "second", of_user("u2")),
                wish(&world, "of nobody", NewOwner::Org(nowhere)),
                wish(&world, "third", of_user("u1")),
            ],
        )
        .await;
        let codes: Vec<_> = answers.iter().map(code).collect();
        let expected = ["issued", "NOT_A_MEMBER", "issued", "UNKNOWN_ORGANIZATION", "issued"];
        assert_eq!(codes, expected, "{engine:?}");
        assert_complete_log(&world).await;
        assert_eq!(world.number("select count(*) from api_keys").await, 3, "{engine:?}");
        assert_eq!(world.number("select count(*) from users").await, 2, "{engine:?}");
    }
}

#[tokio::test]
async fn a_key_whose_statement_fails_fails_alone() {
    for engine in engines() {
        let world = World::found(engine, 83).await;
        let index = "create unique index once on api_keys (name) where name = 'once'";
        world.store.side().await.expect("a connection").raw(index).await.expect("an index");
        let names = ["a", "once", "b", "once", "c"];
        let wishes = names.iter().map(|name| wish(&world, name, of_user(name))).collect();
        let answers = together(&world, wishes).await;
        let codes: Vec<_> = answers.iter().map(code).collect();
        assert_eq!(codes, ["issued", "issued", "issued", "CONSTRAINT", "issued"], "{engine:?}");
        assert_complete_log(&world).await;
        assert_eq!(world.number("select count(*) from api_keys").await, 4, "{engine:?}");
        assert_eq!(world.number("select count(*) from key_secrets").await, 4, "{engine:?}");
    }
}

#[tokio::test]
async fn of_two_keys_with_one_idempotency_key_issued_together_one_is_issued() {
    for engine in engines() {
        let world = World::found(engine, 84).await;
        let key = IdempotencyKey {
            caller: "app".to_owned(),
            call: "POST /api/v1/api_keys".to_owned(),
            key: "once".to_owned(),
            body_hash: [7; 32],
        };
        let context = Context { idempotency: Some(key), ..world.context.clone() };
        let wishes = ["a", "b", "c"].map(|name| {
            let context = if name == "b" { world.context.clone() } else { context.clone() };
            (context, wish(&world, name, of_user(name)).1)
        });
        let answers = together(&world, wishes.into()).await;
        let codes: Vec<_> = answers.iter().map(code).collect();
        assert_eq!(codes, ["issued", "issued", "IDEMPOTENT_REPLAY"], "{engine:?}");
        assert_complete_log(&world).await;
        assert_eq!(world.number("select count(*) from users").await, 2, "{engine:?}");
    }
}
