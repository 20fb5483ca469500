//! The lease and revocation protocol as a state machine: what a node may do, and when a change is
//! in force everywhere.
//!
//! A node answers verifications from memory only until a deadline that it counted from *before* it
//! asked the database for news; a change that takes something away is acknowledged only when every
//! node has applied it or is past its deadline. [`Node`] is the side that verifies, [`Waiter`] the
//! side that waits. Neither does I/O or reads a clock: what was asked, what was answered and what
//! time it was are arguments, so that the server, the exhaustive model and the seeded simulation
//! run this very code. Transactions, retries, the table and the reading of pages are left to them.
//!
//! What the protocol demands of a store, and the server has to keep:
//!
//! - Changes are numbered without a gap in commit order, under a lock K held until the commit.
//! - A [`Tell`] is carried out in one transaction that holds K shared, taken in a statement of its
//!   own; in further statements it reads the [`Head`], and writes the row only if
//!   [`Tell::continues`] and under the conditions that [`Tell`] names.
//! - A [`Waiter`] is fed with rows that were read in a statement begun after the commit was
//!   acknowledged.
//! - Reaping deletes a row only if its generation is still the one that was read.
//!
//! Clocks of two machines are never compared. They may run at different rates: the lease of one,
//! measured by its own clock, must end before another has counted 1 % more. Two clocks that err by
//! at most 0.49 % each, in opposite directions, satisfy that.

#[cfg(test)]
mod model;
mod node;
mod waiter;

pub use node::{Node, Page, Snapshot, Standing, Step, Tell, Terms, Told};
pub use waiter::{Answer, Commit, LeaseRow, Own, Settle, Waiter};

/// Names a process that verifies; fresh for each start of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub [u8; 16]);

/// Tells a change from one with the same number in another life of the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Nonce(pub [u8; 16]);

/// Names one life of a database: a digest of its system identifier, its timeline and the random id
/// that a restore changes. Two that differ share no history that could be relied on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Incarnation(pub [u8; 32]);

/// One instant by both clocks of a machine, in µs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Moment {
    /// Since boot, suspend included.
    pub boot_us: i64,
    /// Since the Unix epoch, as this machine believes.
    pub wall_us: i64,
}

/// Until when a lease holds, by both clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Deadline {
    /// Over from this on, µs since boot.
    pub boot_us: i64,
    /// Over from this on, too, µs since the Unix epoch.
    pub wall_us: i64,
}

impl Deadline {
    /// A lease that is not held.
    pub const OVER: Self = Self { boot_us: i64::MIN, wall_us: i64::MIN };

    /// Whether a lease with this deadline is held at `now`. The wall clock can only shorten it: it
    /// catches a machine whose boot-time clock stood still.
    #[must_use]
    pub const fn is_held(self, now: Moment) -> bool {
        now.boot_us < self.boot_us && now.wall_us < self.wall_us
    }
}

/// What one statement read of the change log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Head {
    /// The number of the last committed change.
    pub seq: i64,
    /// The nonce of the change that the asking node has applied last, if the log still has it.
    pub nonce: Option<Nonce>,
    /// The life of the database that answered.
    pub incarnation: Incarnation,
}

/// `lease_us` and 1 % more, for clocks that run at different rates.
const fn with_margin(lease_us: i64) -> i64 {
    lease_us.saturating_add(lease_us / 100)
}
