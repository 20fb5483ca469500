//! Hints that something was committed, so that a node need not ask to find out.
//!
//! PostgreSQL hands a notification on to whoever listens, within a millisecond of the commit. It is
//! lost while a connection is made anew, and a pooler between here and the database may swallow it;
//! so nothing relies on it, and the follower goes on asking. SQLite has none.

use std::time::Duration;

use sqlx::postgres::{PgListener, PgPoolOptions};
use tokio::sync::watch;

use super::{ACQUIRE_MAX, Pools, Store};

/// The channel's name, which `write` uses too.
const CHANNEL: &str = "keyward";
/// How long until a lost connection is made again, beside what the client library tries itself.
const TRY_AGAIN: Duration = Duration::from_secs(5);

/// Listens until nobody takes the hints any more, or the task is dropped. Each is the number of a
/// change.
pub(crate) async fn listen(store: Store, heard: watch::Sender<i64>) {
    let Pools::Postgres { write, .. } = &store.pools else { return };
    // A connection of its own, which is never given back.
    let pool = PgPoolOptions::new()
        .max_connections(1)
        .max_lifetime(None)
        .idle_timeout(None)
        .acquire_timeout(ACQUIRE_MAX)
        .connect_lazy_with(write.connect_options().as_ref().clone());
    loop {
        if let Err(error) = hear(&pool, &heard).await {
            tracing::debug!("notifications are not heard: {error}");
        }
        tokio::select! {
            () = heard.closed() => return,
            () = tokio::time::sleep(TRY_AGAIN) => {}
        }
    }
}

async fn hear(pool: &sqlx::PgPool, heard: &watch::Sender<i64>) -> sqlx::Result<()> {
    let mut listener = PgListener::connect_with(pool).await?;
    listener.listen(CHANNEL).await?;
    while !heard.is_closed() {
        // What is no number is not from us.
        if let Ok(seq) = listener.recv().await?.payload().parse() {
            heard.send_replace(seq);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::transfer::tests::{Engine, World, engines};

    #[tokio::test]
    async fn whoever_listens_hears_the_number_of_a_commit() {
        if !engines().contains(&Engine::Postgres) {
            return;
        }
        let world = World::found(Engine::Postgres, 50).await;
        let (heard, mut hints) = watch::channel(-1);
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(listen(world.store.clone(), heard));
        let listens = "select count(*) from pg_stat_activity
                       where datname = current_database() and query like 'LISTEN%'";
        while world.number(listens).await == 0 {}
        let (key, _) = world.issue_to("ann").await;
        world.revoke(key).await;
        let head = world.number("select seq from change_head").await;
        let hint = hints.wait_for(|seq| *seq == head).await;
        assert_eq!(*hint.expect("somebody listens"), head);
    }
}
