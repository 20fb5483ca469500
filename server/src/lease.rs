//! The lease: how long this process may answer from memory, and what a change waits for.
//!
//! A node verifies from memory only while its lease holds. The lease runs from the moment at which
//! the follower *asked* the database for the head, never from the reply, so that a slow reply
//! makes it shorter and not longer. A narrowing change is acknowledged only when every node that
//! could still say yes has applied it or has lost its lease (consistency.md §3).
//!
//! All that is decided in `keyward_core::protocol`. Here is what its deadline looks like to those
//! who verify, and the asking on behalf of those who wait: servers for each other, and the command
//! line, which takes no lease itself, for all of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

pub use keyward_core::protocol::Settle;
use keyward_core::protocol::{Answer, Deadline, Incarnation, Own, Waiter};

use crate::clock::Clock;
use crate::error::{Error, Result};
use crate::store::nodes::{self, Rows};
use crate::store::{Store, Unfinished};

/// How long until the store is asked again whether the nodes have applied a change.
const ASK_AGAIN: Duration = Duration::from_millis(5);
/// The same when it could not be asked.
const TRY_AGAIN: Duration = Duration::from_millis(40);

/// This process's lease, as its readers see it. The follower's [`Node`](keyward_core::protocol)
/// decides how long it is.
#[derive(Debug)]
pub struct Lease {
    length_us: i64,
    deadline_boot: AtomicI64,
    deadline_wall: AtomicI64,
    /// The longest lease that was found in another's row.
    heard_of_us: AtomicI64,
}

impl Lease {
    /// A lease of `length` that is not held yet.
    pub fn new(length: Duration) -> Self {
        Self {
            length_us: i64::try_from(length.as_micros()).unwrap_or(i64::MAX / 4),
            deadline_boot: AtomicI64::new(i64::MIN),
            deadline_wall: AtomicI64::new(i64::MIN),
            heard_of_us: AtomicI64::new(0),
        }
    }

    /// Its length in µs.
    pub fn length_us(&self) -> i64 {
        self.length_us
    }

    /// Lets readers see a new deadline; one task does so at a time.
    pub(crate) fn publish(&self, deadline: Deadline) {
        let before = Deadline {
            boot_us: self.deadline_boot.load(Ordering::Acquire),
            wall_us: self.deadline_wall.load(Ordering::Acquire),
        };
        // In each state one of the two is what it was.
        for state in states(before, deadline) {
            self.deadline_boot.store(state.boot_us, Ordering::Release);
            self.deadline_wall.store(state.wall_us, Ordering::Release);
        }
    }

    /// Ends the lease at the end of the process.
    pub(crate) fn end(&self) {
        self.publish(Deadline::OVER);
    }

    /// Whether verification may answer from memory now. The wall clock can only shorten a lease:
    /// it catches a machine whose boot-time clock stood still.
    #[inline]
    pub fn is_held(&self, clock: &Clock) -> bool {
        clock.boot_us() < self.deadline_boot.load(Ordering::Acquire)
            && clock.wall_us() < self.deadline_wall.load(Ordering::Acquire)
    }

    /// What is left of the lease in µs; 0 when it is over.
    pub fn margin_us(&self, clock: &Clock) -> i64 {
        let boot = self.deadline_boot.load(Ordering::Acquire).saturating_sub(clock.boot_us());
        let wall = self.deadline_wall.load(Ordering::Acquire).saturating_sub(clock.wall_us());
        boot.min(wall).max(0)
    }

    /// Takes note of a lease that was found in another's row, for the follower.
    pub(crate) fn heard_of(&self, lease_us: i64) {
        self.heard_of_us.fetch_max(lease_us, Ordering::Relaxed);
    }

    /// The longest lease that was found in another's row, in µs; 0 if none was.
    pub(crate) fn heard_of_us(&self) -> i64 {
        self.heard_of_us.load(Ordering::Relaxed)
    }
}

/// What readers may find one after the other while `next` takes the place of `before`.
///
/// They read the boot-time value first and the other afterwards, and must never see a pair that
/// lasts longer than a deadline which was published meanwhile. By the boot-time clock a deadline is
/// later than all before it, or [`Deadline::OVER`]; but by a wall clock that was set back, the
/// later one can be the earlier. So the wall value goes down first and up last.
fn states(before: Deadline, next: Deadline) -> [Deadline; 3] {
    let wall_us = before.wall_us.min(next.wall_us);
    [Deadline { wall_us, ..before }, Deadline { wall_us, ..next }, next]
}

/// How far the nodes are, asked for many waiters at once: those of one commit all want to know it
/// at the same moment, and mostly there is no other node at all.
#[derive(Debug, Default)]
pub(crate) struct Others {
    /// How many questions were begun.
    begun: AtomicU64,
    last: tokio::sync::Mutex<Option<Heard>>,
}

#[derive(Debug)]
struct Heard {
    /// Which question it answers.
    question: u64,
    rows: Arc<Rows>,
}

impl Others {
    /// The rows of the lease table. They were asked for after this was called: an older answer is
    /// of no use, since a node may have come back from a lease that was waited out, and numbers may
    /// have been given anew after a failover.
    async fn rows(&self, store: &Store) -> Result<Arc<Rows>> {
        let begun = self.begun.load(Ordering::SeqCst);
        // In time all together: those who wait for a question that is never answered do not wait
        // for the next ones, too.
        let answer = store.in_time(async {
            let mut last = self.last.lock().await;
            if let Some(heard) = last.as_ref().filter(|heard| heard.question > begun) {
                return Ok(Arc::clone(&heard.rows));
            }
            let question = self.begun.fetch_add(1, Ordering::SeqCst) + 1;
            let mut conn = Unfinished::of(store.read().await?);
            let rows = Arc::new(nodes::all(&mut conn).await?);
            conn.finish();
            *last = Some(Heard { question, rows: Arc::clone(&rows) });
            Ok(rows)
        });
        answer.await
    }
}

/// Waits until the change of `waiter` is in force with every node, or with this process's `own`
/// alone where no other verifies and `others` is absent. `stamped` is the life of the change.
///
/// # Errors
/// `Unavailable` when that cannot be confirmed: the store cannot be asked, or is another one, which
/// may have lost the change.
pub(crate) async fn wait(
    store: &Store,
    others: Option<&Others>,
    own: impl Fn() -> Option<Own>,
    stamped: Incarnation,
    waiter: &mut Waiter,
) -> Result<()> {
    let mut is_fed = false;
    loop {
        let heard = match others {
            Some(others) => others.rows(store).await,
            None => Ok(Arc::new(Rows { incarnation: stamped, rows: Vec::new() })),
        };
        let now_us = store.clock.boot_us();
        let (answer, pause) = match &heard {
            Ok(heard) => {
                is_fed = true;
                (waiter.hear(now_us, heard.incarnation, own(), &heard.rows), ASK_AGAIN)
            }
            Err(_) => (waiter.unheard(now_us), TRY_AGAIN),
        };
        match (answer, heard) {
            (Answer::Done | Answer::LeftBehind, _) => return Ok(()),
            (Answer::WaitedOut, Ok(heard)) => {
                // On SQLite a row stays for as long as its server lives: the server extends its
                // lease by reading alone, so that a full disk does not end it.
                if others.is_some() && !store.is_sqlite() {
                    let behind = waiter.behind(own(), &heard.rows);
                    let reaped = store.in_time(nodes::reap(store, behind)).await;
                    // The change is in force; the next one will wait for them too, and try again.
                    if let Err(error) = reaped {
                        tracing::warn!(cause = error.chain(), "a dead node stays in the table");
                    }
                }
                return Ok(());
            }
            (Answer::WaitedOut, Err(_)) => return Ok(()),
            (Answer::Unconfirmed, _) => {
                let public = "the database is another one by now, which may lack the change";
                return Err(Error::unavailable(public));
            }
            (Answer::AskAgain, Err(error)) if !is_fed => return Err(error),
            (Answer::AskAgain, _) => tokio::time::sleep(pause).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn until(boot_us: i64, wall_us: i64) -> Deadline {
        Deadline { boot_us, wall_us }
    }

    #[test]
    fn a_lease_is_held_until_the_published_deadline_and_not_longer() {
        let clock = Clock::manual(1_000_000_000);
        let lease = Lease::new(Duration::from_secs(15));
        assert!(!lease.is_held(&clock));
        lease.publish(until(1_005_000_000, 1_005_000_000));
        clock.advance(4_999_999);
        assert!(lease.is_held(&clock));
        assert_eq!(lease.margin_us(&clock), 1);
        clock.advance(1);
        assert!(!lease.is_held(&clock));
        assert_eq!(lease.margin_us(&clock), 0);
        lease.publish(until(1_015_000_000, 1_015_000_000));
        assert!(lease.is_held(&clock));
        lease.end();
        assert!(!lease.is_held(&clock));
    }

    /// Whenever a reader reads the one value, and whenever the other.
    #[test]
    fn a_reader_never_sees_a_deadline_longer_than_those_that_were_published() {
        let published = [
            until(10, 1_010),
            until(20, 1_020),
            // The wall clock was set back, and forward again.
            until(30, 530),
            until(40, 1_540),
            Deadline::OVER,
            until(50, 550),
            until(60, 1_060),
        ];
        let mut seen = vec![(0, published[0])];
        for (place, pair) in published.windows(2).enumerate() {
            seen.extend(states(pair[0], pair[1]).map(|state| (place + 1, state)));
        }
        for (from, (first, boot)) in seen.iter().enumerate() {
            for (last, wall) in &seen[from..] {
                let read = until(boot.boot_us, wall.wall_us);
                let oldest = first.saturating_sub(1);
                let is_one = published[oldest..=*last].iter().any(|deadline| {
                    read.boot_us <= deadline.boot_us && read.wall_us <= deadline.wall_us
                });
                assert!(is_one, "{read:?}");
            }
        }
        let lease = Lease::new(Duration::from_secs(15));
        for deadline in published {
            lease.publish(deadline);
            let boot_us = lease.deadline_boot.load(Ordering::Acquire);
            assert_eq!(until(boot_us, lease.deadline_wall.load(Ordering::Acquire)), deadline);
        }
    }
}
