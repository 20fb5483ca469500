//! The lease: how long this process may answer from memory, and what a change waits for.
//!
//! A node verifies from memory only while its lease holds. The lease runs from the moment at which
//! the follower *asked* the database for the head, never from the reply, so that a slow reply
//! makes it shorter and not longer. A narrowing change is acknowledged only when every node that
//! could still say yes has applied it or has lost its lease (consistency.md §3).
//!
//! One server verifies here. Its own table is waited for in memory; the rows of `node_lease` are
//! for the other processes on the database, first of all the command line, which takes no lease
//! itself but must wait for the server's.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use crate::clock::Clock;
use crate::error::Result;
use crate::store::{Store, Unfinished, nodes};

/// How long the store is asked again whether the nodes have applied a change.
const ASK_AGAIN: Duration = Duration::from_millis(5);
/// How long a widening change waits for acknowledgements.
const WIDENING_WAIT_US: i64 = 250_000;

/// What a change does to what keys may do, which decides how long it waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settle {
    /// It takes something away: no verification that starts afterwards may still have it.
    Narrowing,
    /// It gives something: it should work at once, but nobody is harmed if it does not.
    Widening,
}

/// This process's lease.
#[derive(Debug)]
pub struct Lease {
    length_us: i64,
    deadline_boot: AtomicI64,
    deadline_wall: AtomicI64,
}

/// The moment at which the store was asked, by both clocks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked {
    pub(crate) boot_us: i64,
    pub(crate) wall_us: i64,
}

impl Asked {
    /// Reads both clocks; to be called *before* asking.
    pub(crate) fn now(clock: &Clock) -> Self {
        Self { boot_us: clock.boot_us(), wall_us: clock.wall_us() }
    }
}

impl Lease {
    /// A lease of `length` that is not held yet.
    pub fn new(length: Duration) -> Self {
        Self {
            length_us: i64::try_from(length.as_micros()).unwrap_or(i64::MAX / 4),
            deadline_boot: AtomicI64::new(i64::MIN),
            deadline_wall: AtomicI64::new(i64::MIN),
        }
    }

    /// Its length in µs.
    pub fn length_us(&self) -> i64 {
        self.length_us
    }

    /// Extends the lease; everything that the store knew when it was asked has been applied.
    pub(crate) fn renew(&self, asked: Asked) {
        self.deadline_boot.fetch_max(asked.boot_us + self.length_us, Ordering::Release);
        self.deadline_wall.fetch_max(asked.wall_us + self.length_us, Ordering::Release);
    }

    /// Ends the lease, for example because the store turned out to be another one.
    pub(crate) fn end(&self) {
        self.deadline_boot.store(i64::MIN, Ordering::Release);
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
}

/// How far the other nodes are, asked for many waiters at once: those of one commit all want to
/// know it at the same moment, and mostly there is no other node at all.
#[derive(Debug, Default)]
pub(crate) struct Others {
    /// How many questions were begun.
    begun: AtomicU64,
    last: tokio::sync::Mutex<Heard>,
}

#[derive(Debug, Default)]
struct Heard {
    /// Which question it answers.
    question: u64,
    /// Up to which change all other nodes have read; `None` without another.
    read_by_all: Option<i64>,
}

impl Others {
    /// Whether every other node has applied change `seq`, which is committed. What is told was
    /// asked after this was called: an older answer is of no use, since a node may have come back
    /// from a lease that was waited out, and numbers may have been given anew after a failover.
    pub(crate) async fn have_applied(&self, store: &Store, seq: i64) -> Result<bool> {
        let begun = self.begun.load(Ordering::SeqCst);
        // In time all together: those who wait for a question that is never answered do not wait
        // for the next ones, too.
        let answer = store.in_time(async {
            let mut last = self.last.lock().await;
            if last.question <= begun {
                let question = self.begun.fetch_add(1, Ordering::SeqCst) + 1;
                let mut conn = Unfinished::of(store.read().await?);
                let read_by_all = nodes::read_by_all_others(&mut conn, store.node()).await?;
                conn.finish();
                *last = Heard { question, read_by_all };
            }
            Ok(last.read_by_all)
        });
        Ok(answer.await?.is_none_or(|read| read >= seq))
    }
}

/// Waits until every other node has applied change `seq`, or its lease has run out.
///
/// # Errors
/// `Unavailable` when the store cannot be asked: the change stands, but cannot be confirmed.
pub(crate) async fn wait_for_others(
    store: &Store,
    own: Option<[u8; 16]>,
    seq: i64,
    settle: Settle,
) -> Result<()> {
    let began = store.clock.boot_us();
    loop {
        let mut conn = store.read().await?;
        let behind = nodes::behind(&mut conn, own, seq).await?;
        drop(conn);
        let Some(longest_us) = behind.iter().map(|node| node.lease_us).max() else {
            return Ok(());
        };
        // 1 % more than the longest lease, for clocks that run at different rates.
        let limit = match settle {
            Settle::Narrowing => longest_us + longest_us / 100,
            Settle::Widening => WIDENING_WAIT_US.min(longest_us),
        };
        if store.clock.boot_us() - began >= limit {
            // On SQLite a row stays for as long as its server lives: the server extends its lease
            // by reading alone, so that a full disk does not end it.
            if settle == Settle::Narrowing && !store.is_sqlite() {
                nodes::reap(store, &behind).await?;
            }
            return Ok(());
        }
        tokio::time::sleep(ASK_AGAIN).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_runs_from_the_question_and_ends_without_another() {
        let clock = Clock::manual(1_000_000_000);
        let lease = Lease::new(Duration::from_secs(15));
        assert!(!lease.is_held(&clock));
        let asked = Asked::now(&clock);
        clock.advance(10_000_000);
        lease.renew(asked);
        assert!(lease.is_held(&clock));
        clock.advance(4_999_999);
        assert!(lease.is_held(&clock));
        clock.advance(1);
        assert!(!lease.is_held(&clock));
        assert_eq!(lease.margin_us(&clock), 0);
    }

    #[test]
    fn a_late_reply_to_an_older_question_does_not_shorten_a_lease() {
        let clock = Clock::manual(1_000_000_000);
        let lease = Lease::new(Duration::from_secs(15));
        let older = Asked::now(&clock);
        clock.advance(5_000_000);
        lease.renew(Asked::now(&clock));
        let before = lease.margin_us(&clock);
        lease.renew(older);
        assert_eq!(lease.margin_us(&clock), before);
    }
}
