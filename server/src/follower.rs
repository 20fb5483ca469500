//! The follower: turns committed changes into the table that verification reads.
//!
//! The only one who writes the table and the directory. It begins with a load from one snapshot of
//! the store and then reads the change log, change after change, whoever made them: this process,
//! the command line, another node. What it does next, and how long this process may answer from
//! memory, is decided by [`Node`], which knows neither a clock nor a database; here its steps are
//! carried out, and what came of them is told to it and, by [`Follower::publish`], to those who
//! verify and those who wait. A commit of this process wakes it at once; everything else is found
//! by asking every [`POLL`]. Whenever it cannot ask, the lease runs out by itself.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, RwLock, RwLockWriteGuard};
use std::time::Duration;

use arc_swap::ArcSwap;
use keyward_core::protocol::{
    Moment, Node, NodeId, Page, Snapshot, Standing, Step, Tell, Terms, Told,
};
use keyward_core::{ApiRow, EnvId, KeyRow, MembershipRow, OrgRow, Table, UserRow};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use crate::clock::Clock;
use crate::directory::Directory;
use crate::error::{Error, Result};
use crate::lease::Lease;
use crate::load::{self, api_row, environment_rows};
use crate::progress::Progress;
use crate::secrets::Keyring;
use crate::store::{
    Conn, Store, Touched, Unfinished, apis, changes, hints, keys, life, nodes, owners,
};

/// How often the store is asked for changes of other processes. The command line's changes must be
/// followed within 100 ms; asking an idle store costs about 50 µs.
const POLL: Duration = Duration::from_millis(40);
/// How long the store may take to answer before another connection is tried: one that was cut
/// without a word never answers.
const SILENCE_MAX: Duration = Duration::from_secs(4);
/// The same for a load, which takes 3 s for a million keys.
const LOAD_MAX: Duration = Duration::from_secs(300);
/// How long others are left not knowing that this process applied changes of its own, in µs. They
/// wait for that only when they repeat such a change, and a write for each would be dear.
const TELL_OWN_US: i64 = 200_000;

/// What the follower keeps up to date, shared with those who read it.
pub struct Shared {
    /// Keys and what decides about them.
    pub table: RwLock<Table>,
    /// Environments and applications.
    pub directory: ArcSwap<Directory>,
    /// How long both may be answered from.
    pub lease: Lease,
    /// How far the table is.
    pub followed: watch::Sender<Followed>,
    /// Whether the database could not be written when that was last tried.
    pub unwritable: AtomicBool,
    /// Whether a failover of the database could lose changes that were acknowledged.
    pub loses_changes: AtomicBool,
}

/// How far the table is, and what waiting for a change begins with; both of the same life of the
/// database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Followed {
    /// The last change that is in the table; -1 while the table is not one that changes are put
    /// into, because everything must be loaded anew.
    pub applied: i64,
    /// None before the first load.
    pub standing: Option<Standing>,
}

impl Shared {
    /// Nothing is known yet.
    pub fn new(lease: Lease) -> Self {
        Self {
            table: RwLock::new(Table::new()),
            directory: ArcSwap::from_pointee(Directory::default()),
            lease,
            followed: watch::Sender::new(Followed { applied: -1, standing: None }),
            unwritable: AtomicBool::new(false),
            loses_changes: AtomicBool::new(false),
        }
    }

    fn write_table(&self) -> RwLockWriteGuard<'_, Table> {
        self.table.write().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// What the database said the time was, and when it was asked.
struct Time {
    asked_boot_us: i64,
    database_us: i64,
}

/// Follows the store.
pub(crate) struct Follower {
    pub(crate) store: Store,
    pub(crate) shared: Arc<Shared>,
    pub(crate) keyring: Arc<Keyring>,
    /// The counter file of this process; totals of other files are the base of each key's count.
    pub(crate) counter_file: [u8; 16],
    /// Decides what is done, and how long the lease is.
    node: Node,
    /// How often the directory was read.
    generation: u64,
    /// The connection between two steps without a pause.
    idle: Option<Conn>,
    /// A row of the lease table that is being written, on SQLite.
    telling: Option<JoinHandle<Result<Told>>>,
}

impl Follower {
    /// A follower that has read nothing.
    pub(crate) fn new(
        store: Store,
        shared: Arc<Shared>,
        keyring: Arc<Keyring>,
        counter_file: [u8; 16],
    ) -> Self {
        let lease_us = shared.lease.length_us();
        let terms = Terms {
            lease_us,
            tell_every_us: lease_us / 3,
            tell_own_us: TELL_OWN_US,
            poll_every_us: i64::try_from(POLL.as_micros()).unwrap_or(i64::MAX),
            is_sole: store.is_sqlite(),
        };
        let node = Node::new(NodeId(store.node()), terms);
        Self {
            store,
            shared,
            keyring,
            counter_file,
            node,
            generation: 0,
            idle: None,
            telling: None,
        }
    }

    fn clock(&self) -> &Clock {
        &self.store.clock
    }

    /// Reads both clocks; to be called *before* asking.
    fn moment(&self) -> Moment {
        Moment { boot_us: self.clock().boot_us(), wall_us: self.clock().wall_us() }
    }

    /// Lets others see what the node says; after every event, and after the table has it.
    ///
    /// What waits begin with and how far the table is change together: a number that is applied
    /// means nothing without the life that it is of.
    fn publish(&self) {
        self.shared.lease.publish(self.node.deadline());
        let applied = if self.node.must_load() { -1 } else { self.node.applied_seq() };
        let now = Followed { applied, standing: self.node.standing() };
        if applied < 0 && self.shared.followed.borrow().applied >= 0 {
            tracing::warn!(
                "the store does not continue what was applied, or this server was waited out; \
                 loading anew"
            );
        }
        self.shared.followed.send_if_modified(|before| std::mem::replace(before, now) != now);
    }

    /// Loads and follows until verifications may be answered.
    ///
    /// # Errors
    /// The first failure: whoever starts a server wants to hear of it.
    pub(crate) async fn start(&mut self, progress: &Progress) -> Result<()> {
        while !self.node.deadline().is_held(self.moment()) {
            if self.step(progress).await?.is_some() {
                if self.telling.is_some() {
                    let told = ended(&mut self.telling).await;
                    self.hear(told)?;
                } else {
                    tokio::time::sleep(POLL).await;
                }
                self.node.wake();
            }
        }
        Ok(())
    }

    /// Follows until `stop` is set.
    pub(crate) async fn run(mut self, mut stop: watch::Receiver<bool>) {
        let mut committed = self.store.committed();
        // What the lease was when something failed for the first time.
        let mut failing = None;
        let silent = Progress::silent();
        let (heard, mut hints) = watch::channel(-1);
        // Ends with this function.
        let mut listening = JoinSet::new();
        listening.spawn(hints::listen(self.store.clone(), heard));
        loop {
            let stepped = self.step(&silent).await;
            failing = failing.filter(|before| *before == self.node.deadline());
            let pause = match stepped {
                Ok(None) => continue,
                Ok(Some(pause)) => pause,
                // Said once, at the edge, until it works again.
                Err(error) if failing.is_none() => {
                    failing = Some(self.node.deadline());
                    let margin_us = self.shared.lease.margin_us(self.clock());
                    tracing::error!(
                        cause = error.chain(),
                        margin_us,
                        "the store cannot be followed: {error}"
                    );
                    POLL
                }
                Err(_) => POLL,
            };
            drop(self.idle.take());
            tokio::select! {
                _ = committed.changed() => {}
                () = tokio::time::sleep(pause) => {}
                told = ended(&mut self.telling) => self.hear_in_background(told),
                // A hint at what this process has done itself is no news.
                Ok(()) = hints.changed() => {
                    if *hints.borrow_and_update() <= self.node.applied_seq() {
                        continue;
                    }
                }
                _ = stop.changed() => return,
            }
            self.node.wake();
        }
    }

    /// Does what the node wants done next, and tells it what came of it. For how long there is
    /// nothing to do, if there is not.
    ///
    /// It may be given up at any await: what was applied is applied, and no lease was extended.
    async fn step(&mut self, progress: &Progress) -> Result<Option<Duration>> {
        self.node.heard_of_lease(self.shared.lease.heard_of_us());
        let asked = self.moment();
        let done = match self.node.next(asked) {
            Step::Load => {
                self.begin_load();
                in_time(LOAD_MAX, self.load(progress)).await
            }
            Step::Poll => in_time(SILENCE_MAX, self.poll(asked)).await,
            Step::Fetch { after } => in_time(SILENCE_MAX, self.fetch(after)).await,
            Step::Tell => {
                let Some(tell) = self.node.tell(asked) else { return Ok(None) };
                let told = tell_in_time(self.store.clone(), tell);
                if self.store.is_sqlite() {
                    // In the background: there the row is only what commands wait for. Nobody
                    // removes it while this process holds the folder's lock, so the lease does not
                    // depend on it; and a disk that is full, or a program that holds the write
                    // lock, must not keep the follower from reading.
                    self.telling = Some(tokio::spawn(told));
                    return Ok(None);
                }
                let told = told.await;
                return self.hear(told).map(|()| None);
            }
            Step::Wait { until_boot_us } => {
                let left_us = until_boot_us.saturating_sub(asked.boot_us).max(0);
                return Ok(Some(Duration::from_micros(left_us.unsigned_abs()).min(POLL)));
            }
        };
        if done.is_err() {
            let now = self.moment();
            self.node.failed(now);
        }
        self.publish();
        done.map(|()| None)
    }

    /// Takes in the outcome of a telling that ended in the background.
    fn hear_in_background(&mut self, told: Result<Told>) {
        self.shared.unwritable.store(told.is_err(), Ordering::Relaxed);
        if let Err(error) = self.hear(told) {
            tracing::warn!(cause = error.chain(), "the lease row could not be renewed");
        }
    }

    /// Takes in the outcome of a telling.
    fn hear(&mut self, told: Result<Told>) -> Result<()> {
        let now = self.moment();
        let heard = match told {
            Ok(told) => {
                self.node.told(now, &told);
                Ok(())
            }
            Err(error) => {
                self.node.tell_failed(now);
                Err(error)
            }
        };
        self.publish();
        heard
    }

    /// Nothing that is loaded counts any more, and nobody may find out otherwise.
    fn begin_load(&mut self) {
        // What it writes late changes nothing: the row is made anew after the load.
        drop(self.telling.take());
        drop(self.idle.take());
        self.node.end();
        self.publish();
    }

    /// Loads everything from one snapshot. Nothing is served from it before it is complete, and
    /// not before the first telling has found out what was committed since.
    pub(crate) async fn load(&mut self, progress: &Progress) -> Result<()> {
        let mut conn = Unfinished::of(self.store.follow().await?);
        conn.begin_snapshot().await?;
        self.generation += 1;
        let (keyring, file) = (&self.keyring, self.counter_file);
        let loaded = load::load(&mut conn, keyring, file, self.generation, progress).await;
        conn.raw("rollback").await?;
        let loaded = loaded?;
        let time = self.ask_time(&mut conn).await?;
        conn.finish();
        let lease_us = self.shared.lease.length_us();
        let past = life::note(&self.store, loaded.head.incarnation, lease_us).await?;
        *self.shared.write_table() = loaded.table;
        self.shared.directory.store(Arc::new(loaded.directory));
        self.clock().set_database_time(time.database_us, time.asked_boot_us);
        self.node.heard_of_lease(past.longest_us);
        let quarantine_left_us = past.quarantine_left_us;
        let now = self.moment();
        self.node.loaded(now, &Snapshot { head: loaded.head, quarantine_left_us });
        self.publish();
        Ok(())
    }

    /// Asks what time it is. Not dated by the whole poll, let alone by a load: however long those
    /// take, that much would the clock be ahead.
    async fn ask_time(&self, conn: &mut Conn) -> Result<Time> {
        let asked_boot_us = self.clock().boot_us();
        let database_us = conn.now_us(self.clock()).await?;
        Ok(Time { asked_boot_us, database_us })
    }

    async fn connection(&mut self) -> Result<Unfinished> {
        Ok(Unfinished::of(match self.idle.take() {
            Some(conn) => conn,
            None => self.store.follow().await?,
        }))
    }

    /// Asks for the head, and what time it is.
    async fn poll(&mut self, asked: Moment) -> Result<()> {
        let mut conn = self.connection().await?;
        let head = changes::head(&mut conn, self.node.applied_seq()).await?;
        let time = self.ask_time(&mut conn).await?;
        self.idle = Some(conn.keep());
        let now = self.moment();
        self.node.polled(asked, now, &head);
        if !self.node.must_load() {
            self.clock().set_database_time(time.database_us, time.asked_boot_us);
        }
        Ok(())
    }

    /// Applies the next page of changes.
    async fn fetch(&mut self, after: i64) -> Result<()> {
        let mut conn = self.connection().await?;
        let changes = changes::after(&mut conn, after).await?;
        let Some(last) = changes.last().map(|last| (last.seq, last.nonce)) else {
            self.node.follows([]);
            return Ok(());
        };
        if !self.node.follows(changes.iter().map(|change| change.seq)) {
            return Ok(());
        }
        let is_waited_for = changes.iter().any(|change| change.node != self.store.node());
        let touched: HashSet<(EnvId, Touched)> = changes
            .into_iter()
            .flat_map(|change| change.touched.into_iter().map(move |t| (change.env, t)))
            .collect();
        let fresh = self.read_again(&mut conn, &touched).await?;
        self.idle = Some(conn.keep());
        let mut table = self.shared.write_table();
        fresh.put_into(&mut table, &self.keyring);
        drop(table);
        if let Some(directory) = fresh.directory {
            self.shared.directory.store(Arc::new(directory));
        }
        let (seq, nonce) = last;
        self.node.applied(&Page { seq, nonce, is_waited_for });
        Ok(())
    }

    /// Reads the present state of what was touched. It may be newer than the change that is being
    /// applied; that is harmless, because a later change then finds nothing new.
    async fn read_again(
        &mut self,
        conn: &mut Conn,
        touched: &HashSet<(EnvId, Touched)>,
    ) -> Result<Fresh> {
        let mut fresh = Fresh::default();
        for (env, touched) in touched {
            match touched {
                Touched::Directory => {}
                Touched::Key(key) => fresh.asked_keys.push((*env, *key)),
                Touched::Api(api) => {
                    if let Some(found) = apis::find_or_deleted(conn, *env, *api).await? {
                        let scopes = apis::scopes(conn, *env, *api).await?;
                        fresh.apis.push(api_row(found, scopes));
                    }
                }
                Touched::User(user) => {
                    fresh.users.extend(owners::user_row(conn, *env, user).await?);
                }
                Touched::Organization(org) => {
                    fresh.orgs.extend(owners::org_row(conn, *env, org).await?);
                }
                Touched::Membership(org, user) => {
                    let row = owners::membership_row(conn, *env, org, user).await?;
                    fresh.memberships.extend(row);
                }
            }
        }
        let ids: Vec<_> = fresh.asked_keys.iter().map(|(_, key)| *key).collect();
        fresh.keys = keys::load_some(conn, &ids).await?;
        if touched.iter().any(|(_, touched)| *touched == Touched::Directory) {
            self.keyring.check(conn).await?;
            self.generation += 1;
            let secrets = self.keyring.secrets();
            fresh.directory = Some(Directory::load(conn, &secrets, self.generation).await?);
        }
        Ok(fresh)
    }
}

/// Does what asks the store, but waits no longer than `longest` for its answers.
async fn in_time<T>(longest: Duration, work: impl Future<Output = Result<T>>) -> Result<T> {
    let silent = |_| Err(Error::unavailable("the database leaves questions unanswered"));
    tokio::time::timeout(longest, work).await.unwrap_or_else(silent)
}

/// The outcome of what is being told in the background; never, if nothing is.
async fn ended(telling: &mut Option<JoinHandle<Result<Told>>>) -> Result<Told> {
    let Some(task) = telling else { return std::future::pending().await };
    let told = task.await.unwrap_or_else(|panic| Err(Error::internal(panic)));
    *telling = None;
    told
}

/// Tells others how far this process is. SQLite always answers, and giving up there would leave a
/// transaction open.
async fn tell_in_time(store: Store, tell: Tell) -> Result<Told> {
    if store.is_sqlite() {
        return nodes::tell(&store, &tell).await;
    }
    in_time(SILENCE_MAX, nodes::tell(&store, &tell)).await
}

/// The present state of what some changes touched.
#[derive(Default)]
struct Fresh {
    directory: Option<Directory>,
    apis: Vec<ApiRow>,
    users: Vec<UserRow>,
    orgs: Vec<OrgRow>,
    memberships: Vec<MembershipRow>,
    keys: Vec<KeyRow>,
    asked_keys: Vec<(EnvId, keyward_core::KeyId)>,
}

impl Fresh {
    fn put_into(&self, table: &mut Table, keyring: &Keyring) {
        if let Some(directory) = &self.directory {
            table.set_peppers(keyring.peppers());
            for row in environment_rows(directory) {
                table.put_environment(row);
            }
        }
        for row in &self.apis {
            table.put_api(row.clone());
        }
        for row in &self.users {
            table.put_user(row.clone());
        }
        for row in &self.orgs {
            table.put_org(row.clone());
        }
        for row in &self.memberships {
            table.put_membership(row.clone());
        }
        let mut gone: HashSet<_> = self.asked_keys.iter().copied().collect();
        for row in &self.keys {
            gone.remove(&(row.env, row.key));
            let mut row = row.clone();
            // What other counter files know of a key is no part of its row.
            if let Some(known) = table.key(row.env, row.key) {
                row.base_count = known.base_count();
                row.base_verified_at = known.base_verified_at();
            }
            table.put_key(row);
        }
        for (env, key) in gone {
            table.remove_key(env, key);
        }
    }
}
