//! The one way to change the store: a queue, a transaction, a change row and an audit record.
//!
//! A change is a closure that receives a [`Tx`] and returns an [`Outcome`]. The writer task takes
//! queued changes in order and runs as many as are waiting in one transaction (group commit), a
//! savepoint each, so that a change that fails takes only itself along; keys to be issued share one
//! (see `together`). At the end it writes one row of the change log and one audit record for each,
//! moves the head and commits; only then does anybody hear of success.
//!
//! The sequence is gapless and in commit order because the head is read and moved under a lock
//! that is held until the commit: `begin immediate` on SQLite, an advisory lock in a statement of
//! its own on PostgreSQL (consistency.md §2 tells why each of those words matters). Nobody may
//! hold that lock for long, so a batch ends after [`BATCH_MAX`] changes or [`BATCH_TIME`], and
//! PostgreSQL ends a transaction that its client has forgotten.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use keyward_core::protocol::Incarnation;
use keyward_core::{ApiId, EnvId, KeyId, OrgCode, UserId};
use serde_json::Value;
use tokio::sync::{mpsc, oneshot, watch};

use super::{Conn, Pools, Store, Unfinished, audit, changes, idempotency};
use crate::clock::{Clock, Entropy};
use crate::error::{Error, Kind, Result, UNCONFIRMED};
use crate::ops::keys::{Issue, Issued};
use crate::ops::{Action, Context};
use together::Asked;

mod together;

/// Most changes in one transaction.
const BATCH_MAX: usize = 64;
/// Longest time that a batch goes on taking further changes.
const BATCH_TIME: Duration = Duration::from_millis(20);
/// What a caller reads whose change was given up before its commit.
const NOT_CHANGED: &str = "the database does not answer; nothing was changed, try again";
/// Changes that may wait; one more is refused with 503.
const QUEUE_MAX: usize = 4096;

/// What a change touched, so that followers know which rows to read again.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Touched {
    /// Environments, signing keys, applications and their scopes: the directory as a whole.
    Directory,
    /// An API and its scopes.
    Api(ApiId),
    /// A user.
    User(UserId),
    /// An organization.
    Organization(OrgCode),
    /// A membership.
    Membership(OrgCode, UserId),
    /// A key and its secrets.
    Key(KeyId),
}

/// What an audit record says of a change, beyond who and when.
#[derive(Debug, Default)]
pub struct Fact {
    /// The kind of the thing that was changed, in the vocabulary's word.
    pub target_kind: &'static str,
    /// Its id.
    pub target_id: String,
    /// The user concerned, if one is.
    pub user: Option<String>,
    /// The organization concerned, if one is.
    pub org: Option<String>,
    /// The state before; never a secret.
    pub before: Option<Value>,
    /// The state after; never a secret.
    pub after: Option<Value>,
    /// Why, as the actor said it.
    pub reason: Option<String>,
    /// What followers must read again.
    pub touched: Vec<Touched>,
}

/// What a change came to.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "one at a time, and gone at the end of its change")]
pub enum Outcome<T> {
    /// Something was written under the sequence number [`Tx::seq`].
    Changed(T, Fact),
    /// The state was reached before, by the change with this number: nothing was written.
    Reached(T, i64),
}

/// A result together with the change that it must not be told before.
#[derive(Debug, Clone)]
pub struct Committed<T> {
    /// What the change returned.
    pub value: T,
    /// The change's place in the change log.
    pub seq: i64,
    /// The life of the database that the change log is of.
    pub incarnation: Incarnation,
}

/// What is waited for before a change is acknowledged: its number, and the life of the database in
/// which that number means this change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// The change's place in the change log.
    pub seq: i64,
    /// The life of the database.
    pub incarnation: Incarnation,
}

impl<T> Committed<T> {
    /// What is to be waited for.
    pub fn stamp(&self) -> Stamp {
        Stamp { seq: self.seq, incarnation: self.incarnation }
    }

    /// The same change with another result.
    pub fn map<U>(self, result: impl FnOnce(T) -> U) -> Committed<U> {
        let Self { value, seq, incarnation } = self;
        Committed { value: result(value), seq, incarnation }
    }

    /// The later of two changes: whoever waited for it need not wait for the other.
    #[must_use]
    pub fn or_later(self, other: Self) -> Self {
        if other.seq > self.seq { other } else { self }
    }
}

/// A write transaction, as one change sees it.
pub struct Tx {
    pub(crate) conn: Conn,
    /// The time of this change, µs since the epoch.
    pub(crate) now: i64,
    /// Where ids and secrets come from.
    pub(crate) entropy: Entropy,
    /// The life of the database, read under the lock.
    incarnation: Incarnation,
    /// Whether a caller will be told of a change that an earlier transaction made.
    tells_of_earlier: bool,
    head: i64,
    audit_head: i64,
    changes: Vec<changes::NewChange>,
    audits: Vec<audit::NewRecord>,
}

impl Tx {
    /// The sequence number that this change has if it changes anything.
    pub(crate) fn seq(&self) -> i64 {
        self.head + 1
    }

    /// A result of change `seq`, which is one of this database.
    fn committed<T>(&self, value: T, seq: i64) -> Committed<T> {
        Committed { value, seq, incarnation: self.incarnation }
    }
}

/// A future that borrows the transaction.
pub(crate) type Step<'t, T> = Pin<Box<dyn Future<Output = T> + Send + 't>>;
/// Tells the caller, once it is known whether the transaction was committed.
type Tell = Box<dyn FnOnce(Result<()>) + Send>;
type Job = Box<dyn for<'t> FnOnce(&'t mut Tx) -> Step<'t, Ran> + Send>;

/// How a job went, and how its caller hears of it.
struct Ran {
    /// Whether what it wrote may be kept.
    keep: bool,
    tell: Tell,
}

impl Ran {
    fn new<T: Send + 'static>(result: Result<T>, answer: oneshot::Sender<Result<T>>) -> Self {
        let keep = result.is_ok();
        // What fails before the commit has changed nothing, and the caller should know.
        let result = result.map_err(|error| {
            if error.kind == Kind::Unavailable {
                Error::unavailable(NOT_CHANGED).because(error)
            } else {
                error
            }
        });
        // Also a refusal counts only when the batch is committed: it can rest on what another
        // change of the batch wrote. OK to ignore a caller that has gone away: what was done stands
        // all the same.
        let tell: Tell = Box::new(move |committed| {
            let _ = answer.send(committed.and(result));
        });
        Self { keep, tell }
    }
}

/// What the writer task is told.
enum Message {
    /// Carry out a change.
    Run(Job),
    /// Issue a key.
    Issue(Box<Asked>),
    /// Give the connection back and end, then say so.
    End(oneshot::Sender<()>),
}

/// The queue in front of the writer task.
#[derive(Clone)]
pub(super) struct Queue {
    messages: mpsc::Sender<Message>,
    committed: watch::Receiver<i64>,
}

impl Queue {
    /// Starts the writer task; it ends when the last `Queue` is dropped.
    pub(super) fn start(pools: Pools, node: [u8; 16], clock: Clock, entropy: Entropy) -> Self {
        let (messages, inbox) = mpsc::channel(QUEUE_MAX);
        let (announce, committed) = watch::channel(0);
        tokio::spawn(
            Writer { pools, node, clock, entropy, announce, idle: None, held: None }.run(inbox),
        );
        Self { messages, committed }
    }

    async fn submit<T, F>(&self, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: for<'t> FnOnce(&'t mut Tx) -> Step<'t, Result<T>> + Send + 'static,
    {
        let (answer, wait) = oneshot::channel();
        let job: Job =
            Box::new(move |tx| Box::pin(async move { Ran::new(work(tx).await, answer) }));
        self.send(Message::Run(job), wait).await
    }

    async fn send<T>(&self, message: Message, wait: oneshot::Receiver<Result<T>>) -> Result<T> {
        self.messages
            .try_send(message)
            .map_err(|_| Error::unavailable("too many changes are waiting; try again"))?;
        // A job that was dropped unrun never reached the database.
        wait.await.unwrap_or_else(|_| Err(Error::unavailable(NOT_CHANGED)))
    }

    /// Waits until every queued change is done and the writer has ended.
    pub(super) async fn close(&self) {
        let (ended, wait) = oneshot::channel();
        if self.messages.send(Message::End(ended)).await.is_ok() {
            // OK to ignore: a writer that is gone has ended too.
            let _ = wait.await;
        }
    }
}

impl Store {
    /// Hears the sequence number of each commit of this process.
    pub(crate) fn committed(&self) -> watch::Receiver<i64> {
        self.writer.committed.clone()
    }

    /// Runs one change: one transaction, one row in the change log, one audit record.
    ///
    /// # Errors
    /// Whatever `change` returns, after which nothing of it is stored; `Conflict` with the code
    /// `IDEMPOTENT_REPLAY` when the caller's idempotency key was used before;
    /// `Unavailable` when the commit failed or its outcome is unknown.
    pub(crate) async fn write<T, F>(
        &self,
        env: EnvId,
        context: &Context,
        action: Action,
        change: F,
    ) -> Result<Committed<T>>
    where
        T: Send + 'static,
        F: for<'t> FnOnce(&'t mut Tx) -> Step<'t, Result<Outcome<T>>> + Send + 'static,
    {
        let context = context.clone();
        self.writer
            .submit(move |tx| {
                Box::pin(async move {
                    let replayed = context.idempotency.as_ref();
                    if let Some(key) = replayed {
                        idempotency::refuse_replay(&mut tx.conn, env, key, tx.now).await?;
                    }
                    let outcome = change(tx).await?;
                    if let Some(key) = replayed {
                        let target = match &outcome {
                            Outcome::Changed(_, fact) => fact.target_id.as_str(),
                            Outcome::Reached(..) => "",
                        };
                        idempotency::reserve(&mut tx.conn, env, key, target, tx.now).await?;
                    }
                    Ok(match outcome {
                        Outcome::Reached(value, seq) => {
                            tx.tells_of_earlier = true;
                            tx.committed(value, seq)
                        }
                        Outcome::Changed(value, fact) => {
                            let seq = tx.conclude(env, &context, action, fact);
                            tx.committed(value, seq)
                        }
                    })
                })
            })
            .await
    }

    /// Issues a key: a change like any other, which is made together with those of its kind that
    /// wait (see `together`).
    ///
    /// # Errors
    /// As [`Store::write`].
    pub(crate) async fn issue(&self, issue: Issue) -> Result<Committed<Issued>> {
        let (answer, wait) = oneshot::channel();
        self.writer.send(Message::Issue(Box::new(Asked { issue, answer })), wait).await
    }

    /// Stores records that are no change (a token issued, a call denied).
    pub(crate) async fn record(&self, records: Vec<audit::NewRecord>) -> Result<()> {
        self.writer
            .submit(move |tx| {
                Box::pin(async move {
                    tx.audits.extend(records);
                    Ok(())
                })
            })
            .await
    }
}

impl Tx {
    /// Gives the change its number and queues its row and its record for the end of the batch.
    fn conclude(&mut self, env: EnvId, context: &Context, action: Action, fact: Fact) -> i64 {
        self.head += 1;
        self.audits
            .push(audit::NewRecord::of_change(env, self.now, context, action, &fact, self.head));
        self.changes.push(changes::NewChange {
            seq: self.head,
            nonce: self.entropy.bytes(),
            env,
            touched: fact.touched,
            at: self.now,
        });
        self.head
    }
}

/// The task that owns the write connection.
struct Writer {
    pools: Pools,
    node: [u8; 16],
    clock: Clock,
    entropy: Entropy,
    announce: watch::Sender<i64>,
    /// The connection between two batches.
    idle: Option<Conn>,
    /// What was taken from the queue and was not for the batch that took it.
    held: Option<Message>,
}

impl Writer {
    async fn run(mut self, mut inbox: mpsc::Receiver<Message>) {
        loop {
            let next = match self.held.take() {
                Some(held) => Some(held),
                None => inbox.recv().await,
            };
            let Some(message) = next else { return };
            if let Message::End(ended) = message {
                drop(self.idle.take());
                // OK to ignore: whoever asked may have stopped waiting.
                let _ = ended.send(());
                return;
            }
            let pools = self.pools.clone();
            match pools.in_time(self.begin()).await {
                Ok(tx) => self.batch(tx, message, &mut inbox).await,
                // Dropping the message tells its caller that nothing was changed.
                Err(error) => {
                    tracing::error!(cause = error.chain(), "a write transaction could not begin");
                }
            }
        }
    }

    /// Opens the transaction and takes the lock under which the head is read.
    async fn begin(&mut self) -> Result<Tx> {
        let conn = match self.idle.take() {
            Some(conn) => conn,
            None => self.pools.writing().await?,
        };
        let mut conn = Unfinished::of(conn);
        match &*conn {
            Conn::Sqlite(_) => conn.raw("begin immediate").await?,
            // The lock has a statement of its own: a statement that waits for it and reads in
            // one go sees a snapshot from before the wait. 7_163_001 is "K" of consistency.md.
            Conn::Postgres(_) => {
                conn.raw(
                    "begin isolation level read committed; \
                     set local idle_in_transaction_session_timeout = '1s'; \
                     set local synchronous_commit = on; set local statement_timeout = 0; \
                     select pg_advisory_xact_lock(7163001)",
                )
                .await?;
            }
        }
        let heads = changes::heads(&mut conn).await?;
        Ok(Tx {
            conn: conn.keep(),
            now: self.clock.now_us(),
            entropy: self.entropy.clone(),
            incarnation: heads.incarnation,
            tells_of_earlier: false,
            head: heads.seq,
            audit_head: heads.audit_no,
            changes: Vec::new(),
            audits: Vec::new(),
        })
    }

    /// Runs `first` and what waits behind it, for as long as a batch may take. What was taken from
    /// the queue and does not belong to this batch begins the next.
    async fn fill(
        &mut self,
        tx: &mut Tx,
        first: Message,
        inbox: &mut mpsc::Receiver<Message>,
        tells: &mut VecDeque<Tell>,
    ) -> Result<()> {
        let began = self.clock.boot_us();
        let longest = i64::try_from(BATCH_TIME.as_micros()).unwrap_or(0);
        self.held = Some(first);
        loop {
            match self.held.take() {
                Some(Message::Run(job)) => self.pools.in_time(run_one(tx, job, tells)).await?,
                Some(Message::Issue(first)) => {
                    let room = BATCH_MAX.saturating_sub(tells.len());
                    let (group, other) = together::gather(*first, room, inbox);
                    self.held = other;
                    self.pools.in_time(together::run(tx, group, tells)).await?;
                }
                end @ (Some(Message::End(_)) | None) => {
                    self.held = end;
                    return Ok(());
                }
            }
            if tells.len() >= BATCH_MAX || self.clock.boot_us() - began >= longest {
                return Ok(());
            }
            self.held = self.held.take().or_else(|| inbox.try_recv().ok());
        }
    }

    /// Carries out a batch that begins with `first`, and tells everybody what came of it.
    async fn batch(&mut self, mut tx: Tx, first: Message, inbox: &mut mpsc::Receiver<Message>) {
        let mut tells = VecDeque::new();
        let filled = self.fill(&mut tx, first, inbox, &mut tells).await;
        // Whatever fails before the commit is sent takes everything along, and nothing is in doubt.
        let mut in_doubt = false;
        let result = match filled {
            Err(error) => Err(error),
            Ok(()) => {
                let mut result = self.pools.in_time(write_logs(&mut tx, self.node)).await;
                if result.is_ok() {
                    let commit = tx.conn.commit_change(tx.head);
                    result = self.pools.in_time(commit).await;
                    in_doubt = result.is_err();
                }
                result
            }
        };
        let mut broken_conn = None;
        match &result {
            Ok(()) => {
                let head = tx.head;
                self.announce.send_if_modified(|seq| std::mem::replace(seq, head) != head);
                self.idle = Some(tx.conn);
            }
            // The connection goes with the transaction: its state is not known.
            Err(error) => {
                tracing::error!(cause = error.chain(), "a write transaction failed");
                broken_conn = Some(tx.conn);
            }
        }
        for tell in tells {
            tell(match &result {
                Ok(()) => Ok(()),
                Err(_) if in_doubt => Err(Error {
                    code: UNCONFIRMED,
                    ..Error::unavailable(
                        "the change could not be confirmed; ask for its state before trying again",
                    )
                }),
                Err(_) => Err(Error::unavailable(NOT_CHANGED)),
            });
        }
        // After everybody has been told: saying goodbye over a network that was cut can take long.
        if let Some(conn) = broken_conn {
            tokio::spawn(discard(conn));
        }
    }
}

/// Where a change begins in its transaction.
struct Mark {
    changes: usize,
    audits: usize,
    head: i64,
}

impl Tx {
    async fn savepoint(&mut self) -> Result<Mark> {
        self.conn.raw("savepoint change").await?;
        Ok(Mark { changes: self.changes.len(), audits: self.audits.len(), head: self.head })
    }

    /// Undoes everything since the last savepoint, whose mark this is.
    async fn back_to(&mut self, mark: Mark) -> Result<()> {
        self.changes.truncate(mark.changes);
        self.audits.truncate(mark.audits);
        self.head = mark.head;
        self.conn.raw("rollback to savepoint change").await
    }
}

/// Runs one job behind a savepoint, so that a failed one takes only itself along.
async fn run_one(tx: &mut Tx, job: Job, tells: &mut VecDeque<Tell>) -> Result<()> {
    let mark = tx.savepoint().await?;
    // A defect in one change must not end the task that makes all others.
    let ran = unwinding(job(tx)).await?;
    tells.push_back(ran.tell);
    if ran.keep { Ok(()) } else { tx.back_to(mark).await }
}

/// Runs `step` to its end, or to its panic, which becomes an error. Whoever waits for it is told
/// that nothing was changed, which is true: the batch is rolled back.
async fn unwinding<T>(mut step: Step<'_, T>) -> Result<T> {
    poll_fn(|context| {
        let polled = catch_unwind(AssertUnwindSafe(|| step.as_mut().poll(context)));
        match polled {
            Ok(polled) => polled.map(Ok),
            Err(_) => Poll::Ready(Err(Error::internal("a change panicked"))),
        }
    })
    .await
}

/// Writes the change rows and the audit records of a batch.
async fn write_logs(tx: &mut Tx, node: [u8; 16]) -> Result<()> {
    let audit_head = tx.audit_head;
    audit::insert(&mut tx.conn, audit_head, std::mem::take(&mut tx.audits)).await?;
    let changes = std::mem::take(&mut tx.changes);
    if changes.is_empty() && tx.tells_of_earlier && matches!(tx.conn, Conn::Postgres(_)) {
        // What was reached may be a change whose commit was never confirmed. A commit that wrote
        // nothing would wait for no standby; one that wrote anything waits for all before it too.
        return changes::touch_head(&mut tx.conn).await;
    }
    changes::insert(&mut tx.conn, node, changes).await
}

/// Closes a connection instead of giving it back to the pool.
async fn discard(conn: Conn) {
    // OK to ignore: it is being thrown away because it may be broken.
    match conn {
        Conn::Sqlite(c) => drop(c.close().await),
        Conn::Postgres(c) => drop(c.close().await),
    }
}

#[cfg(test)]
mod tests;
