//! Counting verifications: the counter file on one side, the database on the other.
//!
//! A verification is counted in the mapped counter file (see `counters`) and nowhere else; the
//! flusher carries changed totals to the database now and then. Totals are cumulative, so a flush
//! that is repeated does no harm, and a process that is killed loses nothing: the next one opens
//! the same file. What the two sides hold of each other is the file's id and generation.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use keyward_core::{EnvId, KeyId, Known, Refusal};
use tokio::sync::Mutex;

use crate::counters::{Counters, FlushCursor, Generation, Opened, Totals};
use crate::error::{Error, Result};
use crate::store::{Store, counts};

/// How often totals go to the database: consistency.md §4.
const FLUSH_EVERY: Duration = Duration::from_secs(10);
/// How often the file is synced: what a power failure can take is this long.
const SYNC_EVERY: Duration = Duration::from_secs(1);
/// How many times as long as a batch took nothing is stored after it.
const REST: u32 = 3;
/// Most rows in one flush transaction.
const FLUSH_ROWS_MAX: usize = 1_000;
/// Largest counter file: 16 GiB, about 85 million verified keys.
const FILE_BYTES_MAX: u64 = 16 << 30;

/// The counts of this process.
pub struct Counting {
    counters: Arc<Counters>,
    cursor: Mutex<FlushCursor>,
    /// Counting can be switched off to measure what it costs; never in service.
    enabled: bool,
}

impl Counting {
    /// Opens the counter file of the folder and makes it this process's in file and database.
    ///
    /// # Errors
    /// `Unavailable` when the database cannot be asked whose the file is.
    pub async fn open(path: &Path, store: &Store, enabled: bool) -> Result<Self> {
        let entropy = store.entropy.clone();
        let random = move || entropy.bytes::<16>();
        let opened = Opened::open(path, FILE_BYTES_MAX, random);
        let mut conn = store.side().await?;
        let known = match opened.file_id() {
            Some(id) => counts::file(&mut conn, *id.bytes()).await?,
            None => None,
        };
        let database = known
            .filter(|file| !file.closed)
            .map(|file| Generation::from_database(file.generation));
        let mut claimed = opened.claim(database);
        for _ in 0..2 {
            for notice in claimed.notices() {
                tracing::warn!("counter file: {notice}");
            }
            let id = *claimed.file_id().bytes();
            let from = claimed.previous().map(Generation::to_database);
            let to = claimed.next().to_database();
            if counts::advance(&mut conn, id, from, to, store.clock.now_us()).await? {
                let (counters, cursor) = claimed.confirm();
                let this =
                    Self { counters: Arc::new(counters), cursor: Mutex::new(cursor), enabled };
                drop(conn);
                this.raise(store).await?;
                this.close_others(store).await?;
                return Ok(this);
            }
            claimed = claimed.refused("the database knows a later generation");
        }
        Err(Error::unavailable("another process keeps taking the counter file"))
    }

    /// Folds the totals of files that nobody will open again into one sum for each key.
    ///
    /// On SQLite whoever holds the folder's lock is the only server, so every other file is such a
    /// file: one that was lost, replaced or set aside. On a server, another node may have it.
    async fn close_others(&self, store: &Store) -> Result<()> {
        if !store.is_sqlite() {
            return Ok(());
        }
        counts::close_all_but(store, self.file_id(), store.clock.now_us()).await
    }

    /// Lifts cells to what the database knows of this file, for a machine that lost its last
    /// second.
    async fn raise(&self, store: &Store) -> Result<()> {
        let mut conn = store.read().await?;
        let mut after = [0; 16];
        loop {
            let file = self.file_id();
            let page =
                counts::totals_of_file_any_environment(&mut conn, file, after, 10_000).await?;
            let Some(last) = page.last() else { return Ok(()) };
            after = *last.key.bytes();
            for count in page {
                let totals = Totals {
                    valid: count.verified,
                    refused: count.refused,
                    last_at_us: (count.last_at != 0).then_some(count.last_at),
                    last_address: count.last_address.and_then(|text| text.parse().ok()),
                };
                let handle = AtomicU32::new(u32::MAX);
                self.counters.raise(&handle, count.env.bytes(), count.key.bytes(), &totals);
            }
        }
    }

    /// The counter file's id.
    pub fn file_id(&self) -> [u8; 16] {
        *self.counters.file_id().bytes()
    }

    /// Counts a success; the key's total, this one included.
    #[inline]
    pub fn valid(&self, env: EnvId, key: Known<'_>, at: i64, address: Option<IpAddr>) -> u64 {
        if !self.enabled {
            return key.base_count();
        }
        let id = key.key_id();
        let own = self.counters.count_valid(key.cell(), env.bytes(), id.bytes(), at, address);
        key.base_count() + own
    }

    /// Counts a refusal of a key that exists.
    #[inline]
    pub fn refused(&self, env: EnvId, key: Known<'_>, refusal: Refusal) {
        if self.enabled {
            let id = key.key_id();
            self.counters.count_refused(key.cell(), env.bytes(), id.bytes(), refusal as u8);
        }
    }

    /// What this process's file knows of a key: successes, the last of them and its address.
    pub fn of_key(&self, env: EnvId, key: KeyId) -> counts::Use {
        let cell = self.counters.cell_of(env.bytes(), key.bytes());
        let totals = cell.and_then(|cell| self.counters.read(cell)).unwrap_or_default();
        counts::Use {
            verified: totals.valid,
            last_at: totals.last_at_us.unwrap_or(0),
            last_address: totals.last_address.map(|address| address.to_string()),
        }
    }

    /// Whether a crash now could lose counts, because the file cannot be written.
    pub fn is_at_risk(&self) -> bool {
        self.counters.health().counts_at_risk()
    }

    /// Carries every changed total to the database and the disk, at the end of the process.
    ///
    /// # Errors
    /// As [`Counting::flush`].
    pub async fn close(&self, store: &Store) -> Result<()> {
        self.cursor.lock().await.restart();
        let flushed = self.flush(store).await;
        let counters = Arc::clone(&self.counters);
        let synced = tokio::task::spawn_blocking(move || counters.sync());
        if let Ok(Err(cause)) = synced.await {
            tracing::warn!(%cause, "the counter file cannot be synced");
        }
        flushed
    }

    /// Carries every changed total to the database.
    ///
    /// # Errors
    /// `Unavailable` when the database does not answer; what was not stored is tried again.
    pub async fn flush(&self, store: &Store) -> Result<()> {
        while self.flush_some(store).await? {}
        Ok(())
    }

    /// Stores one batch of what has changed; false when there was nothing.
    async fn flush_some(&self, store: &Store) -> Result<bool> {
        let mut cursor = self.cursor.lock().await;
        let batch = self.counters.take_changed(&mut cursor, FLUSH_ROWS_MAX);
        if batch.is_empty() {
            return Ok(false);
        }
        let rows: Vec<counts::Count> = batch
            .changed()
            .iter()
            .map(|changed| counts::Count {
                env: EnvId::from_bytes(changed.env),
                key: KeyId::from_bytes(changed.key),
                verified: changed.totals.valid,
                refused: changed.totals.refused,
                last_at: changed.totals.last_at_us.unwrap_or(0),
                last_address: changed.totals.last_address.map(|a| a.to_string()),
            })
            .collect();
        let generation = self.counters.generation().to_database();
        store.in_time(counts::flush(store, self.file_id(), generation, &rows)).await?;
        batch.confirm();
        Ok(true)
    }

    /// Syncs and flushes until the server stops. Neither waits for the other: what a power failure
    /// can take must stay a second's worth however much there is to store.
    pub(crate) async fn run(app: Arc<crate::App>) {
        tokio::join!(sync(&app), follow(&app));
    }
}

/// Syncs the counter file each second until the server stops.
async fn sync(app: &crate::App) {
    while app.goes_on_for(SYNC_EVERY).await {
        let counters = Arc::clone(&app.counting.counters);
        // Syncing waits for the disk, which no request should.
        let synced = tokio::task::spawn_blocking(move || {
            counters.maintain();
            counters.sync()
        });
        if let Ok(Err(cause)) = synced.await {
            tracing::warn!(%cause, "the counter file cannot be synced");
        }
    }
}

/// Has the store follow the counter file until the server stops. Between batches it rests for as
/// long as [`REST`] says, so that a million used keys do not crowd out their next verifications.
async fn follow(app: &crate::App) {
    let clock = app.clock();
    while app.goes_on_for(FLUSH_EVERY).await {
        loop {
            let began_us = clock.boot_us();
            match app.counting.flush_some(&app.store).await {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => {
                    tracing::warn!(cause = error.chain(), "counts could not be stored yet");
                    break;
                }
            }
            let took = Duration::from_micros((clock.boot_us() - began_us).unsigned_abs());
            if !app.goes_on_for(took * REST).await {
                return;
            }
        }
    }
}
