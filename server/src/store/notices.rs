//! What PostgreSQL says beside its answers, where an answer cannot be understood without it.
//!
//! A COMMIT whose wait for a standby is cancelled succeeds with a warning: "canceling wait for
//! synchronous replication due to user request. The transaction has already committed locally, but
//! might not have been replicated to the standby". Such a commit may be lost with a failover, so it
//! is *unknown* and no success. The client library keeps no notice, but tells each to `tracing`
//! while its connection is polled; here somebody listens for as long as that takes. Warnings are
//! told apart by their level alone: their text is in the language of the server.

use std::cell::Cell;
use std::fmt;
use std::sync::LazyLock;

use tracing::field::{Field, Visit};
use tracing::instrument::WithSubscriber;
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::{Dispatch, Event, Level, Metadata, Subscriber};

use crate::error::{Error, Result};

/// Under which name the client library tells of notices.
const TARGET: &str = "sqlx::postgres::notice";

thread_local! {
    /// The warning that was heard while this thread last polled a commit.
    static HEARD: Cell<Option<String>> = const { Cell::new(None) };
}

/// Listens on whatever thread it is asked on; one for all, because a new one makes `tracing` ask
/// every place of the program again whether anybody listens.
static LISTENER: LazyLock<Dispatch> = LazyLock::new(|| Dispatch::new(Listener));

/// Carries out `work`, which is no success if the server warned meanwhile.
///
/// # Errors
/// Those of `work`, or `Unavailable`.
pub(super) async fn without_warning<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let mut warning = None;
    let mut work = std::pin::pin!(work.with_subscriber(LISTENER.clone()));
    let done = std::future::poll_fn(|context| {
        HEARD.take();
        let polled = work.as_mut().poll(context);
        // Told after it was heard, so that the log has it too.
        if let Some(text) = HEARD.take() {
            tracing::error!("the database warns: {text}");
            warning = Some(text);
        }
        polled
    })
    .await;
    match warning {
        None => done,
        Some(warning) => {
            let public = "the database could not confirm that the change is with its standbys";
            Err(Error::unavailable(public).because(warning))
        }
    }
}

struct Listener;

impl Subscriber for Listener {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == TARGET && *metadata.level() <= Level::WARN
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(LevelFilter::WARN)
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut text = Text(String::new());
        event.record(&mut text);
        HEARD.set(Some(text.0));
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// What an event says.
struct Text(String);

impl Visit for Text {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            value.clone_into(&mut self.0);
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.0 = format!("{value:?}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::transfer::tests::{Engine, World, engines};

    #[tokio::test]
    async fn what_the_server_warned_of_is_no_success() {
        if !engines().contains(&Engine::Postgres) {
            return;
        }
        let world = World::found(Engine::Postgres, 40).await;
        let mut conn = world.store.side().await.expect("a connection");
        let quiet = "do $$ begin raise notice 'all is well'; end $$";
        without_warning(conn.raw(quiet)).await.expect("a notice is no warning");
        let warning = "do $$ begin raise warning 'perhaps not replicated'; end $$";
        let error = without_warning(conn.raw(warning)).await.expect_err("a warning");
        assert!(error.chain().contains("perhaps not replicated"), "{}", error.chain());
        without_warning(conn.raw("select 1")).await.expect("a warning is told once");
    }
}
