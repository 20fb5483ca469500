//! The running server's parts, put together: what a request handler can reach.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use keyward_core::Pepper;
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
use crate::store::Store;
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

    /// Waits until change `seq` is in force: in this process's table, and with every other node
    /// that could still say yes. To be called before a change is acknowledged.
    ///
    /// # Errors
    /// `Unavailable` with the code `UNCONFIRMED` when that cannot be confirmed of a change that
    /// takes something away; the change stands all the same. One that gives something is never
    /// taken back for it: its reply may hold a secret that nobody could see again.
    pub async fn settle(&self, seq: i64, settle: Settle) -> Result<()> {
        match (self.wait_until_in_force(seq, settle).await, settle) {
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

    async fn wait_until_in_force(&self, seq: i64, settle: Settle) -> Result<()> {
        let mut applied = self.shared.applied.subscribe();
        let longest = Duration::from_micros(self.shared.lease.length_us().unsigned_abs());
        let own = tokio::time::timeout(longest, applied.wait_for(|applied| *applied >= seq));
        if !matches!(own.await, Ok(Ok(_))) {
            // This node's lease, extended at most until the change was committed, is over by now.
            if self.shared.lease.is_held(self.clock()) {
                return Err(Error::unavailable("this server has not followed it yet"));
            }
        }
        // The server that holds an SQLite store's folder is the only one that verifies from it.
        if self.store.is_sqlite() {
            return Ok(());
        }
        if self.others.have_applied(&self.store, seq).await? {
            return Ok(());
        }
        lease::wait_for_others(&self.store, Some(self.store.node()), seq, settle).await
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
