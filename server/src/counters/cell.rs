//! What a cell of the counter file looks like and how it is changed so that a process killed
//! between any two instructions leaves its last whole state. Who may change it, and when, is
//! `Counters`' business: everything here expects the cell's stripe to be locked.
//!
//! A cell is 192 bytes, three cache lines of 64:
//!
//! ```text
//!   0  valid      u64      successes; the commit point, its parity selects the current `last`
//!   8  last[0]    i64 + 16 time (µs since 1970) and address of the last success, even counts
//!  32  last[1]    i64 + 16 the same, odd counts
//!  56  state      u64      low half: 0 nobody's, 1 a key's; high half: fingerprint of env, key
//!  64  refused    12 × u64 one count for each refusal
//! 160  env        16       the environment's id
//! 176  key        16       the key's id
//! ```
//!
//! Counting a success touches the first line only. A line lies within one sector of a disk (512
//! is a multiple of 64), so that a power failure, too, sees it whole as far as disks write
//! sectors whole.
//!
//! A page of 4,096 bytes holds 21 cells (21 × 192 = 4,032) and 64 unused bytes, so that no cell
//! lies on two pages, which may reach the disk seconds apart. A segment is 256 pages, 1 MiB, and
//! 256 × 21 = 5,376 cells, or 195 bytes for each. Integers have the machine's byte order; the
//! header's magic number tells a file of the other one.
//!
//! A success number n + 1 (a killed process leaves a prefix of these stores):
//!
//! ```text
//! last[(n + 1) & 1] := time, address     readers and the next process still take last[n & 1]
//! valid := n + 1                         from here on they take the new one
//! ```
//!
//! Power failure is different: pages reach the disk in any order, and a page of eight sectors
//! may be half old, half new. Each word then holds *some* value it had since the last sync, the
//! counts of one cell may be of slightly different moments, and a cell whose identity and state
//! are of different moments fails its fingerprint and is skipped.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicU64, Ordering, compiler_fence};

/// Bytes of a page of the format, whatever the system's page size is.
pub(super) const PAGE_BYTES: usize = 4096;
pub(super) const PAGES_PER_SEGMENT: usize = 256;
pub(super) const CELLS_PER_PAGE: usize = 21;
/// 256 × 21 = 5,376, a multiple of 64 for the bitmaps.
pub(super) const CELLS_PER_SEGMENT: usize = PAGES_PER_SEGMENT * CELLS_PER_PAGE;
pub(super) const CELL_BYTES: usize = 192;

/// How many kinds of refusal a cell counts.
pub const REFUSALS: usize = 12;

/// Low half of the state word of a cell that belongs to a key.
const KIND_KEY: u64 = 1;
const FINGERPRINT: u64 = !0xFFFF_FFFF;

#[repr(C)]
pub(super) struct Page {
    cells: [Cell; CELLS_PER_PAGE],
    _unused: [AtomicU64; 8],
}

#[repr(C, align(64))]
pub(super) struct Cell {
    valid: AtomicU64,
    last: [Last; 2],
    state: AtomicU64,
    refused: [AtomicU64; REFUSALS],
    env: Id,
    key: Id,
}

/// One version of the last success. An address is IPv4-mapped or IPv6; all zero is none.
#[repr(C)]
struct Last {
    at_us: AtomicU64,
    address: Id,
}

/// Sixteen bytes as two words.
#[repr(C)]
struct Id([AtomicU64; 2]);

const _: () = assert!(size_of::<Page>() == PAGE_BYTES);
const _: () = assert!(size_of::<Cell>() == CELL_BYTES);
const _: () = assert!(std::mem::offset_of!(Cell, state) == 56);
const _: () = assert!(std::mem::offset_of!(Cell, key) == 176);
const _: () = assert!(CELLS_PER_SEGMENT.is_multiple_of(64));

/// What a key's cell counts. All of it is cumulative and only grows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Verifications answered valid.
    pub valid: u64,
    /// Verifications refused, by `Refusal as usize - 1`.
    pub refused: [u64; REFUSALS],
    /// When the latest success was, in µs since 1970. Of two successes the later *time* counts,
    /// not the later call: a wall clock that was set back does not take it back.
    pub last_at_us: Option<i64>,
    /// Whence that success was asked for, if that was known.
    pub last_address: Option<IpAddr>,
}

/// A hash of a key's identity. It is part of the format: its high half is the fingerprint in the
/// cell's state. It needs no secret, since ids are of our making and not a caller's choice.
pub(super) fn identity_hash(env: &[u8; 16], key: &[u8; 16]) -> u64 {
    // Two independent 64 × 64 → 128 bit products, folded, and one to mix them (wyhash's way);
    // the constants are the fractional digits of √2, √3, √5, √7 and of the golden ratio.
    let [env_a, env_b] = words(*env);
    let [key_a, key_b] = words(*key);
    let a = folded(env_a ^ 0x6A09_E667_F3BC_C908, key_a ^ 0xBB67_AE85_84CA_A73B);
    let b = folded(env_b ^ 0x3C6E_F372_FE94_F82B, key_b ^ 0xA54F_F53A_5F1D_36F1);
    folded(a ^ b.rotate_left(32), 0x9E37_79B9_7F4A_7C15)
}

fn folded(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    (product as u64) ^ ((product >> 64) as u64)
}

fn words(bytes: [u8; 16]) -> [u64; 2] {
    let all = u128::from_ne_bytes(bytes);
    [all as u64, (all >> 64) as u64]
}

fn bytes([low, high]: [u64; 2]) -> [u8; 16] {
    (u128::from(low) | (u128::from(high) << 64)).to_ne_bytes()
}

/// A caller's address as a cell keeps it.
pub(super) fn address_words(address: Option<IpAddr>) -> [u64; 2] {
    match address {
        None => [0, 0],
        Some(IpAddr::V4(v4)) => words(v4.to_ipv6_mapped().octets()),
        Some(IpAddr::V6(v6)) => words(v6.octets()),
    }
}

fn address_of(stored: [u64; 2]) -> Option<IpAddr> {
    (stored != [0, 0]).then(|| Ipv6Addr::from(bytes(stored)).to_canonical())
}

// Relaxed is enough inside a cell: threads are ordered by the stripe's lock, and of a killed
// process exactly the stores before the instruction it died at happen. Only the compiler could
// reorder them; `commit` lets no store pass it, neither upwards nor downwards.
fn load(word: &AtomicU64) -> u64 {
    word.load(Ordering::Relaxed)
}

fn store(word: &AtomicU64, value: u64) {
    word.store(value, Ordering::Relaxed);
}

fn commit(word: &AtomicU64, value: u64) {
    word.store(value, Ordering::Release);
    compiler_fence(Ordering::Release);
}

impl Page {
    #[inline]
    pub(super) fn cell(&self, slot: usize) -> Option<&Cell> {
        self.cells.get(slot)
    }
}

impl Id {
    fn load(&self) -> [u64; 2] {
        let [low, high] = &self.0;
        [load(low), load(high)]
    }

    fn store(&self, [new_low, new_high]: [u64; 2]) {
        let [low, high] = &self.0;
        store(low, new_low);
        store(high, new_high);
    }
}

impl Last {
    fn load(&self) -> (i64, [u64; 2]) {
        (load(&self.at_us).cast_signed(), self.address.load())
    }

    fn store(&self, (at_us, address): (i64, [u64; 2])) {
        store(&self.at_us, at_us.cast_unsigned());
        self.address.store(address);
    }
}

impl Cell {
    /// Whether the cell belongs to a key whose identity hashes to `hash`. Another key's cell
    /// passes once in 2³² times, so this guards against a stale handle; it does not find cells.
    #[inline]
    pub(super) fn is_of(&self, hash: u64) -> bool {
        load(&self.state) == (hash & FINGERPRINT) | KIND_KEY
    }

    pub(super) fn is_key(&self, env: &[u8; 16], key: &[u8; 16]) -> bool {
        self.env.load() == words(*env) && self.key.load() == words(*key)
    }

    /// Whose the cell is: environment and key. None if it is nobody's, was only half given away
    /// when the process died, or was torn by a power failure.
    pub(super) fn identity(&self) -> Option<([u8; 16], [u8; 16])> {
        let (env, key) = (bytes(self.env.load()), bytes(self.key.load()));
        self.is_of(identity_hash(&env, &key)).then_some((env, key))
    }

    /// Whether nothing was ever written here.
    pub(super) fn is_blank(&self) -> bool {
        let [even, odd] = &self.last;
        load(&self.valid) == 0
            && load(&self.state) == 0
            && even.load() == (0, [0, 0])
            && odd.load() == (0, [0, 0])
            && self.env.load() == [0, 0]
            && self.key.load() == [0, 0]
            && self.refused.iter().all(|count| load(count) == 0)
    }

    /// Gives a blank cell to a key, with `totals` to start from. The state is written last: a
    /// process that dies before leaves a cell that is nobody's, forever.
    pub(super) fn give(&self, env: &[u8; 16], key: &[u8; 16], totals: &Totals) {
        self.env.store(words(*env));
        self.key.store(words(*key));
        self.raise(totals);
        commit(&self.state, (identity_hash(env, key) & FINGERPRINT) | KIND_KEY);
    }

    /// Counts a success and returns how many there are now.
    #[inline]
    pub(super) fn count_valid(&self, at_us: i64, address: [u64; 2]) -> u64 {
        let valid = load(&self.valid);
        let before = self.last(valid).load();
        let last = if at_us >= before.0 { (at_us, address) } else { before };
        self.succeed(valid.wrapping_add(1), last);
        valid.wrapping_add(1)
    }

    /// Counts a refusal. One word, always whole.
    #[inline]
    pub(super) fn count_refused(&self, index: usize) {
        if let Some(count) = self.refused.get(index) {
            store(count, load(count).wrapping_add(1));
        }
    }

    /// Lifts every count to at least that of `totals`.
    pub(super) fn raise(&self, totals: &Totals) {
        for (mine, theirs) in self.refused.iter().zip(totals.refused) {
            store(mine, load(mine).max(theirs));
        }
        let valid = load(&self.valid);
        let mine = self.last(valid).load();
        let theirs = (totals.last_at_us.unwrap_or(0), address_words(totals.last_address));
        let last = if theirs.0 > mine.0 { theirs } else { mine };
        if totals.valid > valid {
            // Via valid + 1, whose version is surely not the current one; after that, the
            // version of totals.valid is either the other one again or already holds `last`.
            self.succeed(valid + 1, last);
            self.succeed(totals.valid, last);
        } else if last != mine {
            // A later time with no higher count does not come from a cell, so it may be
            // written in place: dying here leaves a time without an address, not a wrong one.
            let current = self.last(valid);
            current.address.store([0, 0]);
            commit(&current.at_us, last.0.cast_unsigned());
            current.address.store(last.1);
        }
    }

    /// The counts. The caller holds the stripe's lock, so they are of one moment.
    pub(super) fn totals(&self) -> Totals {
        let valid = load(&self.valid);
        let (at_us, address) = self.last(valid).load();
        let mut refused = [0; REFUSALS];
        for (copy, count) in refused.iter_mut().zip(&self.refused) {
            *copy = load(count);
        }
        Totals {
            valid,
            refused,
            last_at_us: (at_us != 0).then_some(at_us),
            last_address: address_of(address),
        }
    }

    fn succeed(&self, valid: u64, last: (i64, [u64; 2])) {
        self.last(valid).store(last);
        commit(&self.valid, valid);
    }

    #[inline]
    fn last(&self, valid: u64) -> &Last {
        let [even, odd] = &self.last;
        if valid & 1 == 0 { even } else { odd }
    }
}
