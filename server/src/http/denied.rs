//! Records of calls that were denied and sign-ins that failed, written off the request's path.
//!
//! Anybody on the network can make these records, so they must not become a way to keep the store
//! busy: they wait in a bounded queue, are written many at a time, and what does not fit is counted
//! instead. A crash loses what is still in the queue, about one second's worth.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::mpsc;

use crate::App;
use crate::store::audit::NewRecord;

/// Records that may wait.
const QUEUE_MAX: usize = 10_000;
/// Records written in one go, and so the most in a second.
const BATCH_MAX: usize = 100;
/// How often the queue is written.
const WRITE_EVERY: Duration = Duration::from_secs(1);

/// The queue's entrance.
pub struct Denied {
    queue: mpsc::Sender<NewRecord>,
    dropped: AtomicU64,
}

impl Denied {
    /// A queue, and the end that [`write()`] empties.
    pub(crate) fn new() -> (Self, mpsc::Receiver<NewRecord>) {
        let (queue, inbox) = mpsc::channel(QUEUE_MAX);
        (Self { queue, dropped: AtomicU64::new(0) }, inbox)
    }

    /// Leaves a record, or counts it when the queue is full.
    pub(crate) fn push(&self, record: NewRecord) {
        if self.queue.try_send(record).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How many records did not fit.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

/// Writes what is in the queue until the server stops, and once more then.
pub(crate) async fn write(app: Arc<App>, mut inbox: mpsc::Receiver<NewRecord>) {
    let mut stop = app.stopping.subscribe();
    let mut waiting = Vec::new();
    loop {
        let stopping = *stop.borrow_and_update();
        while waiting.len() < BATCH_MAX
            && let Ok(record) = inbox.try_recv()
        {
            waiting.push(record);
        }
        if !waiting.is_empty()
            && let Err(error) = app.store.record(std::mem::take(&mut waiting)).await
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
