//! What a change waits for before it is acknowledged: every node has it, or can no longer answer
//! without it.
//!
//! A call that finds its state already reached, or repeats another, waits in the same way for the
//! change that reached it. The rows are read by others, again and again; here is decided what they
//! amount to. Rows may be read with the own one or without; how far the own table is, is known in
//! memory.

use super::node::Standing;
use super::{Incarnation, NodeId, with_margin};

/// How long a widening change waits for acknowledgements, in µs: so that a key works on every node
/// when its creator first uses it, and no node that is away can hold up more.
const WIDENING_WAIT_US: i64 = 250_000;

/// What a change does to what keys may do, which decides how long it waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Settle {
    /// It takes something away: no verification that starts afterwards may still have it.
    Narrowing,
    /// It gives something: it should work at once, but nobody is harmed if it does not.
    Widening,
}

/// The change that is waited for, after its commit was acknowledged or its effect was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Commit {
    /// Its number.
    pub seq: i64,
    /// The life of the database, read in its transaction.
    pub incarnation: Incarnation,
    /// When that was known, µs since boot by the clock of whoever waits.
    pub at_us: i64,
}

/// A row of the lease table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LeaseRow {
    /// Whose.
    pub node: NodeId,
    /// Which attempt wrote it; a row that moved on meanwhile must not be reaped.
    pub generation: i64,
    /// How far that node says it is.
    pub acked_seq: i64,
    /// How long its lease is, in µs.
    pub lease_us: i64,
}

/// The node in the process that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Own {
    /// Its row is not looked at.
    pub node: NodeId,
    /// How far its table is.
    pub applied_seq: i64,
    /// How long its lease is, in µs.
    pub lease_us: i64,
}

/// What the rows amount to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Answer {
    /// The change is in force: acknowledge it.
    Done,
    /// Read the rows again.
    AskAgain,
    /// The change is in force because those that lack it can no longer answer. Acknowledge it, and
    /// reap what [`Waiter::behind`] names, so that the next change need not wait for them.
    WaitedOut,
    /// It gives something and has waited long enough: acknowledge it, reap nobody.
    LeftBehind,
    /// The database is not the one that the change was committed to, which may have lost it. Never
    /// report it as done.
    Unconfirmed,
}

/// One change's wait.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Waiter {
    settle: Settle,
    commit: Commit,
    quarantine_until_us: i64,
    /// The longest lease of those that were found behind, in µs.
    longest_us: i64,
    is_fed: bool,
}

impl Waiter {
    /// Begins to wait for a change. `standing` is that of this process's node; a process without
    /// one makes it up from what its own transaction read.
    #[must_use]
    pub fn begin(settle: Settle, commit: Commit, standing: &Standing) -> Self {
        let mut quarantine_until_us = standing.quarantine_until_us;
        let mut longest_us = 0;
        if standing.incarnation != commit.incarnation {
            let until_us = commit.at_us.saturating_add(with_margin(standing.longest_us));
            quarantine_until_us = quarantine_until_us.max(until_us);
        }
        if quarantine_until_us > commit.at_us {
            longest_us = standing.longest_us;
        }
        Self { settle, commit, quarantine_until_us, longest_us, is_fed: false }
    }

    /// Takes in all rows as they were read, in a statement begun after [`Commit::at_us`], from the
    /// database with this `incarnation`.
    pub fn hear(
        &mut self,
        now_us: i64,
        incarnation: Incarnation,
        own: Option<Own>,
        rows: &[LeaseRow],
    ) -> Answer {
        if incarnation != self.commit.incarnation {
            return Answer::Unconfirmed;
        }
        self.is_fed = true;
        let own_behind = own.filter(|own| own.applied_seq < self.commit.seq);
        let rows_behind = self.behind(own, rows).map(|row| row.lease_us);
        let Some(longest_us) = rows_behind.chain(own_behind.map(|own| own.lease_us)).max() else {
            // A row that was lost with a failover cannot say that its node lacks the change.
            let is_known = self.settle == Settle::Widening || now_us >= self.quarantine_until_us;
            return if is_known { Answer::Done } else { self.waited_out(now_us) };
        };
        self.longest_us = self.longest_us.max(longest_us);
        self.waited_out(now_us)
    }

    /// What is known although the rows cannot be read now. Before they were read once, nothing is:
    /// the database may have lost the change, or a lease may be longer than is known.
    #[must_use]
    pub fn unheard(&self, now_us: i64) -> Answer {
        if !self.is_fed {
            return Answer::AskAgain;
        }
        match self.waited_out(now_us) {
            // Nobody can be named who should be reaped.
            Answer::WaitedOut => Answer::Done,
            answer @ (Answer::Done
            | Answer::AskAgain
            | Answer::LeftBehind
            | Answer::Unconfirmed) => answer,
        }
    }

    /// Those of `rows` that lack the change; after [`Answer::WaitedOut`], those to be reaped.
    pub fn behind<'r>(
        &self,
        own: Option<Own>,
        rows: &'r [LeaseRow],
    ) -> impl Iterator<Item = &'r LeaseRow> + use<'r> {
        let seq = self.commit.seq;
        let is_own = move |row: &LeaseRow| own.is_some_and(|own| own.node == row.node);
        rows.iter().filter(move |row| row.acked_seq < seq && !is_own(row))
    }

    /// The change that is waited for.
    #[must_use]
    pub fn seq(&self) -> i64 {
        self.commit.seq
    }

    /// When the wait began, µs since boot.
    #[must_use]
    pub fn begun_us(&self) -> i64 {
        self.commit.at_us
    }

    /// The longest lease that was found, in µs; for [`Node::heard_of_lease`](super::Node).
    #[must_use]
    pub fn longest_us(&self) -> i64 {
        self.longest_us
    }

    fn waited_out(&self, now_us: i64) -> Answer {
        let waited_us = now_us.saturating_sub(self.commit.at_us);
        match self.settle {
            Settle::Narrowing if waited_us >= with_margin(self.longest_us) => Answer::WaitedOut,
            Settle::Widening if waited_us >= WIDENING_WAIT_US.min(self.longest_us) => {
                Answer::LeftBehind
            }
            Settle::Narrowing | Settle::Widening => Answer::AskAgain,
        }
    }
}

/// For the model, which keeps every instant relative to now.
#[cfg(test)]
impl Waiter {
    /// Lets `us` pass, and forgets what can make no difference any more, leases being no longer
    /// than `longest_us`.
    pub(super) fn age(&mut self, us: i64, longest_us: i64) {
        self.commit.at_us = (self.commit.at_us - us).max(-longest_us);
        let until_us = self.quarantine_until_us;
        self.quarantine_until_us = if until_us <= us { i64::MIN } else { until_us - us };
    }
}
