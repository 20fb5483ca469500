//! What the protocol demands of a telling, on both engines.

use keyward_core::protocol::{Head, Nonce};

use super::*;
use crate::store::transfer::tests::{Engine, World, engines};
use crate::store::{row, schema};

const NODE: NodeId = NodeId([7; 16]);

async fn head(world: &World) -> Head {
    let mut conn = world.store.read().await.expect("a connection");
    let head = changes::head(&mut conn, -1).await.expect("a head");
    changes::head(&mut conn, head.seq).await.expect("a head")
}

/// A first telling of a node that has applied all.
async fn telling(world: &World) -> Tell {
    let Head { seq, nonce, incarnation } = head(world).await;
    Tell {
        node: NODE,
        lease_us: 15_000_000,
        acked_seq: seq,
        nonce,
        incarnation,
        generation: 10,
        confirmed: None,
    }
}

async fn is_written(world: &World, telling: &Tell) -> bool {
    tell(&world.store, telling).await.expect("told").is_written
}

async fn rows_of(world: &World) -> Vec<LeaseRow> {
    let mut conn = world.store.read().await.expect("a connection");
    all(&mut conn).await.expect("rows").rows
}

#[tokio::test]
async fn a_telling_for_another_life_of_the_database_writes_nothing() {
    for engine in engines() {
        let world = World::found(engine, 40).await;
        let good = telling(&world).await;
        let strangers = [
            Tell { incarnation: Incarnation([1; 32]), ..good },
            Tell { nonce: Some(Nonce([1; 16])), ..good },
            Tell { nonce: None, ..good },
            Tell { acked_seq: good.acked_seq + 1, ..good },
        ];
        for stranger in &strangers {
            assert!(!is_written(&world, stranger).await, "{stranger:?}");
        }
        assert_eq!(rows_of(&world).await, []);
        assert!(is_written(&world, &good).await);
        // A restore or a promoted standby, while the row is there.
        let mut conn = world.store.side().await.expect("a connection");
        schema::set_meta(&mut conn, "incarnation", "another").await.expect("set");
        drop(conn);
        let next = Tell { generation: 11, confirmed: Some(10), ..good };
        assert!(!is_written(&world, &next).await);
        let generations: Vec<_> = rows_of(&world).await.iter().map(|row| row.generation).collect();
        assert_eq!(generations, [10]);
    }
}

#[tokio::test]
async fn a_telling_that_was_given_up_changes_nothing_when_it_is_carried_out_late() {
    for engine in engines() {
        let world = World::found(engine, 40).await;
        let first = telling(&world).await;
        let late = Tell { generation: 9, ..first };
        assert!(is_written(&world, &first).await);
        assert!(!is_written(&world, &late).await);
        assert!(!is_written(&world, &first).await);
        let second = Tell { generation: 20, confirmed: Some(10), ..first };
        assert!(is_written(&world, &second).await);
        let late = Tell { generation: 15, confirmed: Some(10), ..first };
        assert!(!is_written(&world, &late).await);
        // Another has taken the row since it was confirmed.
        let other = Tell { generation: 30, confirmed: Some(25), ..first };
        assert!(!is_written(&world, &other).await);
        let generations: Vec<_> = rows_of(&world).await.iter().map(|row| row.generation).collect();
        assert_eq!(generations, [20]);
    }
}

#[tokio::test]
async fn a_row_that_was_reaped_is_not_made_by_a_telling_that_takes_it_for_its_own() {
    for engine in engines() {
        let world = World::found(engine, 40).await;
        let first = telling(&world).await;
        assert!(is_written(&world, &first).await);
        let moved_on = Tell { generation: 11, confirmed: Some(10), ..first };
        let before = rows_of(&world).await;
        assert!(is_written(&world, &moved_on).await);
        reap(&world.store, before.iter()).await.expect("asked");
        let after = rows_of(&world).await;
        assert_eq!(after.len(), 1, "it was heard of meanwhile");
        reap(&world.store, after.iter()).await.expect("reaped");
        let next = Tell { generation: 12, confirmed: Some(11), ..first };
        assert!(!is_written(&world, &next).await);
        assert_eq!(rows_of(&world).await, []);
        assert!(is_written(&world, &Tell { confirmed: None, ..next }).await);
    }
}

/// The lock that every change is committed under keeps a head from being read before it.
#[tokio::test]
async fn a_telling_waits_for_a_change_that_is_being_committed_and_then_reads_it() {
    if !engines().contains(&Engine::Postgres) {
        return;
    }
    let world = World::found(Engine::Postgres, 40).await;
    let good = telling(&world).await;
    let mut holder = world.store.side().await.expect("a connection");
    holder.raw("begin; select pg_advisory_xact_lock(7163001)").await.expect("locked");
    holder.raw("update change_head set seq = seq + 1").await.expect("moved");
    let waits = "select count(*) from pg_locks where locktype = 'advisory' and not granted
                 and database = (select oid from pg_database where datname = current_database())";
    let mut telling = std::pin::pin!(tell(&world.store, &good));
    let waiting = async { while world.number(waits).await == 0 {} };
    tokio::select! {
        told = &mut telling => panic!("it did not wait: {told:?}"),
        () = waiting => {}
    }
    holder.raw("commit").await.expect("committed");
    assert_eq!(telling.await.expect("told").head.seq, good.acked_seq + 1);
}

#[tokio::test]
async fn a_life_is_named_by_system_timeline_and_store_together() {
    if !engines().contains(&Engine::Postgres) {
        return;
    }
    let world = World::found(Engine::Postgres, 40).await;
    let mut conn = world.store.read().await.expect("a connection");
    let found = row!(
        &mut conn,
        (String, String),
        "select cast(system_identifier as text), (select value from meta where name = 'incarnation')
         from pg_control_system()",
    );
    let (system, store) = found.expect("selects").expect("one");
    let first = "00000001".to_owned();
    let expected = life::incarnation(Some(store.clone()), &system, Some(first)).expect("a primary");
    assert_eq!(head(&world).await.incarnation, expected);
    let other = life::incarnation(Some(store.clone()), &system, Some("00000002".to_owned()));
    assert_ne!(other.expect("a primary"), expected);
    let standby = life::incarnation(Some(store), &system, None).expect_err("a standby");
    assert_eq!(standby.kind, crate::error::Kind::Unavailable);
}

/// A process that was not there when the database failed over learns of it from the store.
#[tokio::test]
async fn what_is_left_of_a_quarantine_is_on_record() {
    if !engines().contains(&Engine::Postgres) {
        return;
    }
    let world = World::found(Engine::Postgres, 40).await;
    let lease_us = 15_000_000;
    let first = life::note(&world.store, Incarnation([1; 32]), lease_us).await.expect("noted");
    assert_eq!((first.quarantine_left_us, first.longest_us), (0, lease_us));
    let again = life::note(&world.store, Incarnation([1; 32]), 5_000_000).await.expect("noted");
    assert_eq!((again.quarantine_left_us, again.longest_us), (0, lease_us));
    let other = life::note(&world.store, Incarnation([2; 32]), 5_000_000).await.expect("noted");
    assert_eq!(other.longest_us, lease_us);
    let all_us = lease_us + lease_us / 100;
    assert!((lease_us / 2..=all_us).contains(&other.quarantine_left_us), "{other:?}");
    let later = life::note(&world.store, Incarnation([2; 32]), 0).await.expect("noted");
    assert!((1..other.quarantine_left_us).contains(&later.quarantine_left_us), "{later:?}");
}
