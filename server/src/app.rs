//! The running server's parts, put together: what a request handler can reach.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use keyward_core::Pepper;
use keyward_core::protocol::{Commit, NodeId, Own, Waiter};
use tokio::sync::{mpsc, watch};

use crate::clock::Clock;
use crate::config::Limits;
use crate::counting::Counting;
use crate::error::{Error, Result, UNCONFIRMED};
use crate::follower::Shared;
use crate::http::tokens::TokenCache;
use crate::http::verify::Rehash;
use crate::lease::{self, Others, Settle};
use crate::public::PublicCallers;
use crate::secrets::Keyring;
use crate::store::{Stamp, Store};
use crate::telemetry::Metrics;

/// Everything that a request handler can reach. Concrete, and one of it in a process.
pub struct App {
    /// The database.
    pub store: Store,
    /// What verification reads.
    pub shared: Arc<Shared>,
    /// The secrets file's contents.
    pub keyring: Arc<Keyring>,
    /// The counts of verifications.
    pub counting: Counting,
    /// Callers' tokens that were checked before.
    pub tokens: TokenCache,
    /// What is counted for operators.
    pub metrics: Metrics,
    /// Callers without a token, where an environment allows them.
    pub public: PublicCallers,
    /// How far other nodes are.
    pub(crate) others: Others,
    /// Imported secrets to be stored anew.
    pub(crate) rehashes: mpsc::Sender<Rehash>,
    /// The configured limits.
    pub limits: Limits,
    /// Becomes true when the server is told to end.
    pub stopping: watch::Sender<bool>,
}

impl App {
    /// The clocks.
    pub fn clock(&self) -> &Clock {
        &self.store.clock
    }

    /// The pepper that new secrets are stored under.
    pub fn pepper(&self) -> Pepper {
        self.keyring.secrets().current_pepper()
    }

    /// Waits until a change is in force: in this process's table, and with every other node
    /// that could still say yes. To be called before a change is acknowledged.
    ///
    /// # Errors
    /// `Unavailable` with the code `UNCONFIRMED` when that cannot be confirmed of a change that
    /// takes something away; the change stands all the same. One that gives something is never
    /// taken back for it: its reply may hold a secret that nobody could see again.
    pub async fn settle(&self, stamp: Stamp, settle: Settle) -> Result<()> {
        let seq = stamp.seq;
        match (self.wait_until_in_force(stamp, settle).await, settle) {
            (Ok(()), _) => Ok(()),
            (Err(error), Settle::Widening) => {
                tracing::warn!(cause = error.chain(), seq, "a change may take a moment: {error}");
                Ok(())
            }
            (Err(error), Settle::Narrowing) => {
                tracing::error!(cause = error.chain(), seq, "a change is not confirmed: {error}");
                let public =
                    format!("change {seq} is stored but could not be confirmed; ask for its state");
                Err(Error { code: UNCONFIRMED, public, ..error })
            }
        }
    }

    async fn wait_until_in_force(&self, stamp: Stamp, settle: Settle) -> Result<()> {
        let Stamp { seq, incarnation } = stamp;
        let at_us = self.clock().boot_us();
        let mut followed = self.shared.followed.subscribe();
        let standing = followed.borrow().standing;
        let standing = standing
            .ok_or_else(|| Error::unavailable("this server has not loaded its keys yet"))?;
        let mut waiter = Waiter::begin(settle, Commit { seq, incarnation, at_us }, &standing);
        // This process's own table is mostly the one that is waited for longest, and the others are
        // asked only once then. If it does not come, it counts like any other.
        let lease_us = self.shared.lease.length_us();
        let longest = Duration::from_micros(lease_us.unsigned_abs());
        // OK to ignore: it is asked again.
        let _ = tokio::time::timeout(longest, followed.wait_for(|it| it.applied >= seq)).await;
        // The server that holds an SQLite store's folder is the only one that verifies from it.
        let others = (!self.store.is_sqlite()).then_some(&self.others);
        let node = NodeId(self.store.node());
        let own = || {
            let applied_seq = self.shared.followed.borrow().applied;
            Some(Own { node, applied_seq, lease_us })
        };
        let waited = lease::wait(&self.store, others, own, incarnation, &mut waiter).await;
        self.shared.lease.heard_of(waiter.longest_us());
        waited
    }

    /// Waits for `time`, or until the server is told to end; false then.
    pub(crate) async fn goes_on_for(&self, time: Duration) -> bool {
        let mut stop = self.stopping.subscribe();
        // The sender lives as long as this.
        tokio::time::timeout(time, stop.wait_for(|stopping| *stopping)).await.is_err()
    }

    /// How many keys the table holds.
    pub fn key_count(&self) -> usize {
        self.shared.table.read().unwrap_or_else(PoisonError::into_inner).key_count()
    }

    /// Whether verification may answer now.
    pub fn is_ready(&self) -> bool {
        self.shared.lease.is_held(self.clock())
    }
}
