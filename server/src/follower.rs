//! The follower: turns committed changes into the table that verification reads.
//!
//! The only one who writes the table and the directory. It begins with a load from one snapshot of
//! the store and then reads the change log, change after change, whoever made them: this process,
//! the command line, another node. A commit of this process wakes it at once; everything else is
//! found by asking every [`POLL`]. Whenever it has applied all that the store knew when it asked,
//! it extends the lease; whenever it cannot ask, the lease runs out by itself.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, RwLock, RwLockWriteGuard};
use std::time::Duration;

use arc_swap::ArcSwap;
use keyward_core::{ApiRow, EnvId, KeyRow, MembershipRow, OrgRow, Table, UserRow};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::clock::Clock;
use crate::directory::Directory;
use crate::error::{Error, Result};
use crate::lease::{Asked, Lease};
use crate::load::{self, api_row, environment_rows};
use crate::progress::Progress;
use crate::secrets::Keyring;
use crate::store::{Conn, Store, Touched, Unfinished, apis, changes, keys, nodes, owners, schema};

/// How often the store is asked for changes of other processes. The command line's changes must be
/// followed within 100 ms; asking an idle store costs about 50 µs.
const POLL: Duration = Duration::from_millis(40);
/// How long the store may take to answer a poll before another connection is tried: one that was
/// cut without a word never answers.
const SILENCE_MAX: Duration = Duration::from_secs(4);
/// The same for a load, which takes 3 s for a million keys.
const LOAD_MAX: Duration = Duration::from_secs(300);
/// How often the lease row is renewed for others to see, in µs.
const REGISTER_EVERY_US: i64 = 5_000_000;
/// How long others are left not knowing that this process applied changes of its own, in µs. They
/// wait for that only when they repeat such a change, and a write for each would be dear.
const OWN_CHANGES_TOLD_EVERY_US: i64 = 200_000;

/// What the follower keeps up to date, shared with those who read it.
pub struct Shared {
    /// Keys and what decides about them.
    pub table: RwLock<Table>,
    /// Environments and applications.
    pub directory: ArcSwap<Directory>,
    /// How long both may be answered from.
    pub lease: Lease,
    /// The last applied change.
    pub applied: watch::Sender<i64>,
    /// Whether the database could not be written when that was last tried.
    pub unwritable: AtomicBool,
    /// Whether a failover of the database could lose changes that were acknowledged.
    pub loses_changes: AtomicBool,
}

impl Shared {
    /// Nothing is known yet.
    pub fn new(lease: Lease) -> Self {
        Self {
            table: RwLock::new(Table::new()),
            directory: ArcSwap::from_pointee(Directory::default()),
            lease,
            applied: watch::Sender::new(-1),
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
    applied: i64,
    nonce: Option<Vec<u8>>,
    incarnation: String,
    generation: u64,
    /// When the lease row was last written, and up to which change.
    registered_at: i64,
    acknowledged: i64,
    /// Whether the store is not the one that was followed, or its log no longer reaches back.
    must_load: bool,
    /// Whether another process waits for what was applied.
    is_waited_for: bool,
    /// A lease row that is being written, on SQLite.
    telling: Option<JoinHandle<Result<bool>>>,
}

impl Follower {
    /// A follower that has read nothing.
    pub(crate) fn new(
        store: Store,
        shared: Arc<Shared>,
        keyring: Arc<Keyring>,
        counter_file: [u8; 16],
    ) -> Self {
        Self {
            store,
            shared,
            keyring,
            counter_file,
            applied: -1,
            nonce: None,
            incarnation: String::new(),
            generation: 0,
            registered_at: i64::MIN,
            acknowledged: -1,
            must_load: false,
            is_waited_for: false,
            telling: None,
        }
    }

    fn clock(&self) -> &Clock {
        &self.store.clock
    }

    /// Loads everything from one snapshot. Nothing is served from it before it is complete.
    pub(crate) async fn load(&mut self, progress: &Progress) -> Result<()> {
        let asked = Asked::now(self.clock());
        let mut conn = Unfinished::of(self.store.follow().await?);
        conn.begin_snapshot().await?;
        self.generation += 1;
        let (keyring, file) = (&self.keyring, self.counter_file);
        let loaded = load::load(&mut conn, keyring, file, self.generation, progress).await;
        conn.raw("rollback").await?;
        let loaded = loaded?;
        let time = self.ask_time(&mut conn).await?;
        conn.finish();
        (self.applied, self.nonce) = (loaded.head, loaded.nonce);
        self.incarnation = loaded.incarnation;
        self.must_load = false;
        // Until the row is written, which can fail, no lease must be extended.
        self.is_waited_for = true;
        *self.shared.write_table() = loaded.table;
        self.shared.directory.store(Arc::new(loaded.directory));
        self.register(asked).await?;
        self.clock().set_database_time(time.database_us, time.asked_boot_us);
        self.shared.applied.send_replace(self.applied);
        // The lease begins with the first poll, which catches up with changes since the snapshot.
        Ok(())
    }

    /// Asks what time it is. Not dated by the whole poll, let alone by a load: however long those
    /// take, that much would the clock be ahead.
    async fn ask_time(&self, conn: &mut Conn) -> Result<Time> {
        let asked_boot_us = self.clock().boot_us();
        let database_us = conn.now_us(self.clock()).await?;
        Ok(Time { asked_boot_us, database_us })
    }

    async fn register(&mut self, asked: Asked) -> Result<()> {
        let mut conn = self.store.side().await?;
        let lease_us = self.shared.lease.length_us();
        let now = asked.wall_us;
        nodes::register(&mut conn, self.store.node(), self.applied, lease_us, now).await?;
        self.registered_at = asked.boot_us;
        self.acknowledged = self.applied;
        self.is_waited_for = false;
        Ok(())
    }

    /// Follows until `stop` is set.
    pub(crate) async fn run(mut self, mut stop: watch::Receiver<bool>) {
        let mut committed = self.store.committed();
        let mut failing = false;
        loop {
            match self.poll().await {
                Ok(()) => failing = false,
                // Said once, at the edge, until it works again.
                Err(error) if !failing => {
                    failing = true;
                    let margin_us = self.shared.lease.margin_us(self.clock());
                    tracing::error!(
                        cause = error.chain(),
                        margin_us,
                        "the store cannot be followed: {error}"
                    );
                }
                Err(_) => {}
            }
            tokio::select! {
                _ = committed.changed() => {}
                () = tokio::time::sleep(POLL) => {}
                _ = stop.changed() => return,
            }
        }
    }

    /// Asks for changes, applies all of them, tells the others, then extends the lease.
    pub(crate) async fn poll(&mut self) -> Result<()> {
        let silent = || Error::unavailable("the database leaves questions unanswered");
        loop {
            if self.must_load {
                tracing::warn!("the change log does not continue what was applied; loading anew");
                self.shared.lease.end();
                let progress = Progress::silent();
                let load = tokio::time::timeout(LOAD_MAX, self.load(&progress));
                load.await.map_err(|_| silent())??;
            }
            let asked = tokio::time::timeout(SILENCE_MAX, self.ask()).await;
            if asked.map_err(|_| silent())?? {
                return Ok(());
            }
        }
    }

    /// One round of [`Follower::poll`]; false when there must be another: because everything must
    /// be loaded anew, or because others had waited this node out. They know it again then, but
    /// only what it asks from now on counts: while its row was gone, nobody waited for it.
    ///
    /// It may be given up at any await: what was applied is applied, and no lease was extended.
    async fn ask(&mut self) -> Result<bool> {
        let asked = Asked::now(self.clock());
        let mut conn = Unfinished::of(self.store.follow().await?);
        let time = self.ask_time(&mut conn).await?;
        let (head, nonce) = changes::head_and_nonce(&mut conn, self.applied).await?;
        let incarnation = schema::meta(&mut conn, "incarnation").await?.unwrap_or_default();
        if head < self.applied || nonce != self.nonce || incarnation != self.incarnation {
            conn.finish();
            self.must_load = true;
            return Ok(false);
        }
        while self.applied < head {
            let page = changes::after(&mut conn, self.applied).await?;
            self.is_waited_for |= page.iter().any(|change| change.node != self.store.node());
            if !self.apply(&mut conn, page).await? {
                conn.finish();
                self.must_load = true;
                return Ok(false);
            }
        }
        conn.finish();
        self.clock().set_database_time(time.database_us, time.asked_boot_us);
        if self.is_sqlite_told(asked).await {
            self.shared.lease.renew(asked);
            return Ok(true);
        }
        if self.must_tell(asked) && !self.tell(asked).await? {
            return Ok(false);
        }
        // While others do not know yet how far this process is, somebody may be waiting for the
        // lease that its row promises, and no longer one may be taken.
        if self.applied == self.acknowledged {
            self.shared.lease.renew(asked);
        }
        Ok(true)
    }

    /// Whether others should hear how far this process is: at once when they wait for it, soon
    /// when it applied changes of its own, and otherwise now and then.
    fn must_tell(&self, asked: Asked) -> bool {
        let since_us = asked.boot_us.saturating_sub(self.registered_at);
        self.is_waited_for
            || (self.applied > self.acknowledged && since_us >= OWN_CHANGES_TOLD_EVERY_US)
            || since_us >= REGISTER_EVERY_US
    }

    /// Tells other processes how far this one is, before the lease is extended: a node whose row
    /// was waited out and removed must not verify while nobody waits for it. False when the row
    /// was gone, and is there again now.
    async fn tell(&mut self, asked: Asked) -> Result<bool> {
        let lease_us = self.shared.lease.length_us();
        let known = write_row(self.store.clone(), lease_us, self.applied, asked).await?;
        self.registered_at = asked.boot_us;
        self.acknowledged = self.applied;
        self.is_waited_for = false;
        Ok(known)
    }

    /// On SQLite, tells other processes in the background and returns true.
    ///
    /// There the row is only what commands wait for. Nobody removes it while this process holds the
    /// folder's lock, so the lease does not depend on it; and a disk that is full, or a program
    /// that holds the write lock, must not keep the follower from reading.
    async fn is_sqlite_told(&mut self, asked: Asked) -> bool {
        if !self.store.is_sqlite() {
            return false;
        }
        if let Some(telling) = self.telling.take_if(|telling| telling.is_finished()) {
            let told = telling.await;
            self.shared.unwritable.store(!matches!(told, Ok(Ok(_))), Ordering::Relaxed);
            match told {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => {
                    self.acknowledged = -1;
                    tracing::warn!(cause = error.chain(), "the lease row could not be renewed");
                }
                // OK to drop the cause: a task that panicked has said so.
                Err(_) => self.acknowledged = -1,
            }
        }
        if self.telling.is_none() && self.must_tell(asked) {
            let (store, lease_us) = (self.store.clone(), self.shared.lease.length_us());
            self.telling = Some(tokio::spawn(write_row(store, lease_us, self.applied, asked)));
            self.registered_at = asked.boot_us;
            self.acknowledged = self.applied;
            self.is_waited_for = false;
        }
        true
    }

    /// Applies a page of changes. False when a change is missing in between.
    async fn apply(&mut self, conn: &mut Conn, page: Vec<changes::Change>) -> Result<bool> {
        let Some(last) = page.last() else { return Ok(false) };
        let (last_seq, last_nonce) = (last.seq, last.nonce.clone());
        let gapless = page.iter().zip(self.applied + 1..).all(|(change, seq)| change.seq == seq);
        if !gapless {
            return Ok(false);
        }
        let touched: HashSet<(EnvId, Touched)> = page
            .into_iter()
            .flat_map(|change| change.touched.into_iter().map(move |t| (change.env, t)))
            .collect();
        let fresh = self.read_again(conn, &touched).await?;
        let mut table = self.shared.write_table();
        fresh.put_into(&mut table, &self.keyring);
        drop(table);
        if let Some(directory) = fresh.directory {
            self.shared.directory.store(Arc::new(directory));
        }
        (self.applied, self.nonce) = (last_seq, Some(last_nonce));
        self.shared.applied.send_replace(last_seq);
        Ok(true)
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

/// Writes this process's row of the lease table; false when it was gone and had to be made anew.
async fn write_row(store: Store, lease_us: i64, applied: i64, asked: Asked) -> Result<bool> {
    let (mut conn, node) = (Unfinished::of(store.side().await?), store.node());
    let known = nodes::acknowledge(&mut conn, node, applied, asked.wall_us).await?;
    if !known {
        nodes::register(&mut conn, node, applied, lease_us, asked.wall_us).await?;
    }
    conn.finish();
    Ok(known)
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
