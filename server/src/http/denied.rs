//! Records of calls that were denied and sign-ins that failed, written off the request's path.
//!
//! Anybody on the network can make these records, so they must not become a way to keep the store
//! busy or to fill it: they wait in a bounded queue, are written many at a time, and what does not
//! fit is counted instead. Whoever proved nobody's identity has a queue apart and a small share, so
//! that no flood hides what a real application was denied; the same from the same address is
//! recorded once a minute. A crash loses what is still in the queues, about a second's worth of
//! applications' and at most a minute's worth of strangers'.

use std::collections::HashSet;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;

use crate::App;
use crate::store::audit::NewRecord;

/// Applications' records that may wait.
const QUEUE_MAX: usize = 10_000;
/// Applications' records written in one go, and so the most in a second.
const BATCH_MAX: usize = 100;
/// Strangers' records written in one go, and so the most in a second: 432,000 a day, some 100 MB.
const STRANGERS_BATCH_MAX: usize = 5;
/// Strangers' records that may wait: a minute's worth.
const STRANGERS_QUEUE_MAX: usize = 60 * STRANGERS_BATCH_MAX;
/// How often the queues are written.
const WRITE_EVERY: Duration = Duration::from_secs(1);
/// For how long the same from the same address is one record, in µs.
const SAME_FOR_US: i64 = 60_000_000;

/// The queues' entrance.
pub struct Denied {
    applications: mpsc::Sender<NewRecord>,
    strangers: mpsc::Sender<NewRecord>,
    seen: Mutex<Seen>,
    hasher: RandomState,
    dropped: AtomicU64,
}

/// Hashes of what strangers were recorded for in this minute.
#[derive(Default)]
struct Seen {
    minute: i64,
    hashes: HashSet<u64>,
}

/// The ends that [`write()`] empties.
pub(crate) struct Inbox {
    applications: mpsc::Receiver<NewRecord>,
    strangers: mpsc::Receiver<NewRecord>,
}

impl Denied {
    /// The queues, and the ends that [`write()`] empties.
    pub(crate) fn new() -> (Self, Inbox) {
        let (applications, applications_inbox) = mpsc::channel(QUEUE_MAX);
        let (strangers, strangers_inbox) = mpsc::channel(STRANGERS_QUEUE_MAX);
        let this = Self {
            applications,
            strangers,
            seen: Mutex::default(),
            hasher: RandomState::new(),
            dropped: AtomicU64::new(0),
        };
        (this, Inbox { applications: applications_inbox, strangers: strangers_inbox })
    }

    /// Leaves a record, or counts it when there is no room for it.
    pub(crate) fn push(&self, record: NewRecord) {
        let is_kept = if record.is_of_stranger() {
            self.is_news(&record) && self.strangers.try_send(record).is_ok()
        } else {
            self.applications.try_send(record).is_ok()
        };
        if !is_kept {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Whether nothing like `record` came in this minute.
    fn is_news(&self, record: &NewRecord) -> bool {
        let hash = self.hasher.hash_one(record.sameness());
        let minute = record.at().div_euclid(SAME_FOR_US);
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.minute != minute {
            *seen = Seen { minute, hashes: HashSet::new() };
        }
        // Twice what is written in a minute: what comes after that finds the queue full anyway.
        seen.hashes.len() < 2 * STRANGERS_QUEUE_MAX && seen.hashes.insert(hash)
    }

    /// How many records did not fit.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

impl Inbox {
    /// What is written in one go.
    fn take(&mut self) -> Vec<NewRecord> {
        let mut taken = Vec::new();
        for (queue, most) in
            [(&mut self.applications, BATCH_MAX), (&mut self.strangers, STRANGERS_BATCH_MAX)]
        {
            taken.extend(std::iter::from_fn(|| queue.try_recv().ok()).take(most));
        }
        taken.sort_by_key(NewRecord::at);
        taken
    }
}

/// Writes what is in the queues until the server stops, and once more then.
pub(crate) async fn write(app: Arc<App>, mut inbox: Inbox) {
    let mut stop = app.stopping.subscribe();
    loop {
        let stopping = *stop.borrow_and_update();
        let waiting = inbox.take();
        if !waiting.is_empty()
            && let Err(error) = app.store.record(waiting).await
        {
            tracing::error!(cause = error.chain(), "records of denied calls were lost");
        }
        if stopping {
            return;
        }
        tokio::select! {
            () = tokio::time::sleep(WRITE_EVERY) => {}
            _ = stop.changed() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use keyward_core::{AppId, EnvId};

    use super::*;
    use crate::ops::{Action, Actor, Context};

    fn denied(actor: Actor, action: Action, address: u32, at: i64) -> NewRecord {
        let address = Some(std::net::Ipv4Addr::from_bits(address).into());
        let context = Context { actor, address, ..Context::system("test") };
        let env = EnvId::from_bytes([1; 16]);
        NewRecord::of_access(env, at, &context, action, "route", "GET /x".to_owned(), None)
    }

    #[test]
    fn a_flood_of_strangers_hides_nothing_that_an_application_was_denied() {
        let (queues, mut inbox) = Denied::new();
        let app = Actor::Application(AppId::from_bytes([2; 16]));
        for address in 0..100_000 {
            // Anybody can name an application without being it.
            queues.push(denied(app.clone(), Action::SignInFailed, address, 0));
            queues.push(denied(Actor::Stranger, Action::CallDenied, address, 0));
        }
        queues.push(denied(app, Action::CallDenied, 7, 0));
        let written = inbox.take();
        assert_eq!(written.len(), 1 + STRANGERS_BATCH_MAX);
        assert_eq!(written.iter().filter(|record| !record.is_of_stranger()).count(), 1);
        assert_eq!(queues.dropped(), 200_000 - STRANGERS_QUEUE_MAX as u64);
    }

    #[test]
    fn the_same_from_the_same_address_is_recorded_once_a_minute() {
        let (queues, mut inbox) = Denied::new();
        for second in 0..180 {
            let at = second * 1_000_000;
            queues.push(denied(Actor::Stranger, Action::CallDenied, 7, at));
        }
        queues.push(denied(Actor::Stranger, Action::SignInFailed, 7, 179_000_000));
        assert_eq!(inbox.take().len(), 4);
    }
}
