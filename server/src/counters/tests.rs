//! What the counter file promises, short of a process being killed for real (`tests/kill.rs`).

mod identity;
mod kill;

use std::fs::{self, File, OpenOptions};
use std::net::IpAddr;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Barrier, OnceLock};
use std::thread;

use tempfile::TempDir;

use super::cell::{CELL_BYTES, CELLS_PER_SEGMENT};
use super::segment::offset;
use super::{
    Claimed, Counters, FileId, FlushCursor, Generation, NO_CELL, Opened, REFUSALS, Totals,
};

const ENV: [u8; 16] = [0xE0; 16];
const NO_LIMIT: u64 = u64::MAX;

/// Distinct ids, also between the processes of one test.
fn random() -> [u8; 16] {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    let both = u128::from(std::process::id()) << 64 | u128::from(n);
    both.wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835).to_ne_bytes()
}

fn key(n: u64) -> [u8; 16] {
    let mut key = [0; 16];
    key.iter_mut().zip(n.to_be_bytes()).for_each(|(byte, from)| *byte = from);
    key
}

fn address(text: &str) -> Option<IpAddr> {
    Some(text.parse().expect("the test writes addresses"))
}

/// A folder, and the row that the database would keep for its file.
struct World {
    folder: TempDir,
    row: Option<(FileId, Generation)>,
}

impl World {
    fn new() -> World {
        World { folder: tempfile::tempdir().expect("a temporary folder"), row: None }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn file(&self) -> PathBuf {
        self.path().join("counters")
    }

    fn claim(&self) -> Claimed<fn() -> [u8; 16]> {
        let opened = Opened::open(self.path(), NO_LIMIT, random as fn() -> [u8; 16]);
        let row = self.row.filter(|(file_id, _)| opened.file_id() == Some(*file_id));
        opened.claim(row.map(|(_, generation)| generation))
    }

    /// Opens the file as a server does.
    fn open(&mut self) -> (Counters, FlushCursor) {
        let claimed = self.claim();
        self.row = Some((claimed.file_id(), claimed.next()));
        claimed.confirm()
    }

    fn write_at(&self, at: u64, bytes: &[u8]) {
        let file = OpenOptions::new().write(true).open(self.file()).expect("the counter file");
        file.write_all_at(bytes, at).expect("it is writable");
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.path()).expect("the folder");
        let name = |entry: std::io::Result<fs::DirEntry>| entry.expect("an entry").file_name();
        let mut names: Vec<_> =
            entries.map(|entry| name(entry).to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }
}

fn fresh_handle() -> AtomicU32 {
    AtomicU32::new(NO_CELL)
}

fn count(counters: &Counters, n: u64) -> u64 {
    counters.count_valid(&fresh_handle(), &ENV, &key(n), 1, None)
}

fn totals(counters: &Counters, n: u64) -> Totals {
    let cell = counters.cell_of(&ENV, &key(n)).expect("the key was counted");
    counters.read(cell).expect("the cell is a key's")
}

fn sum_of_valid(counters: &Counters) -> u64 {
    counters.existing().map(|(_, _, _, totals)| totals.valid).sum()
}

/// Where a field of a cell of the first page lies in the file.
fn field_at(cell: u64, field: u64) -> u64 {
    offset(0) + cell * CELL_BYTES as u64 + field
}

#[test]
fn every_verdict_is_counted_and_read_back_after_a_restart() {
    let mut world = World::new();
    let (counters, _) = world.open();
    let handle = fresh_handle();
    assert_eq!(counters.count_valid(&handle, &ENV, &key(1), 10, address("192.0.2.1")), 1);
    assert_eq!(counters.count_valid(&handle, &ENV, &key(1), 20, address("2001:db8::1")), 2);
    for refusal in 0..=u8::MAX {
        for _ in 0..refusal {
            counters.count_refused(&handle, &ENV, &key(1), refusal);
        }
    }
    let expected = Totals {
        valid: 2,
        refused: [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12],
        last_at_us: Some(20),
        last_address: address("2001:db8::1"),
    };
    assert_eq!(totals(&counters, 1), expected);
    drop(counters);
    let (counters, _) = world.open();
    let all: Vec<_> = counters.existing().collect();
    assert_eq!(all, [(0, ENV, key(1), expected)]);
    assert_eq!(count(&counters, 1), 3);
    assert!(!counters.health().counts_at_risk());
}

#[test]
fn counts_of_many_threads_add_up() {
    const THREADS: u64 = 8;
    const EACH: u64 = 20_000;
    let mut world = World::new();
    let (counters, _) = world.open();
    let handles = [const { AtomicU32::new(NO_CELL) }; 3];
    thread::scope(|scope| {
        for thread in 0..THREADS {
            let (counters, handles) = (&counters, &handles);
            scope.spawn(move || {
                for (n, handle) in (0..EACH).flat_map(|_| (0..).zip(handles)) {
                    counters.count_valid(handle, &ENV, &key(n), thread as i64, None);
                    counters.count_refused(handle, &ENV, &key(n), 12);
                }
            });
        }
    });
    for n in 0..3 {
        let totals = totals(&counters, n);
        assert_eq!(
            (totals.valid, totals.refused.last()),
            (THREADS * EACH, Some(&(THREADS * EACH)))
        );
        assert_eq!(totals.last_at_us, Some(THREADS as i64 - 1));
    }
}

#[test]
fn the_answers_to_one_key_are_each_number_once() {
    let mut world = World::new();
    let (counters, _) = world.open();
    let handle = fresh_handle();
    let answers = thread::scope(|scope| {
        let count =
            || (0..10_000).map(|_| counters.count_valid(&handle, &ENV, &key(1), 1, None)).collect();
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(count)).collect();
        let joined = threads.into_iter().map(|thread| thread.join().expect("it counts"));
        let mut answers: Vec<u64> = joined.flat_map(|answers: Vec<u64>| answers).collect();
        answers.sort_unstable();
        answers
    });
    assert!(answers.into_iter().eq(1..=40_000));
}

#[test]
fn threads_that_meet_a_new_key_at_once_make_one_cell() {
    const THREADS: usize = 4;
    let mut world = World::new();
    let (counters, _) = world.open();
    for n in 0..500 {
        let (barrier, handle) = (Barrier::new(THREADS), fresh_handle());
        thread::scope(|scope| {
            for thread in 0..THREADS {
                let (barrier, handle, counters) = (&barrier, &handle, &counters);
                scope.spawn(move || {
                    // Half of them come with a handle of their own, as after a reload.
                    let own = fresh_handle();
                    barrier.wait();
                    let handle = if thread % 2 == 0 { handle } else { &own };
                    counters.count_valid(handle, &ENV, &key(n), 1, None);
                });
            }
        });
        assert_eq!(totals(&counters, n).valid, THREADS as u64);
    }
    assert_eq!(counters.health().cells, 500);
}

#[test]
fn a_lost_or_foreign_handle_still_counts_for_the_right_key() {
    let mut world = World::new();
    let (counters, _) = world.open();
    let (one, two) = (fresh_handle(), fresh_handle());
    counters.count_valid(&one, &ENV, &key(1), 1, None);
    counters.count_valid(&two, &ENV, &key(2), 1, None);
    one.store(NO_CELL, Ordering::Relaxed);
    assert_eq!(counters.count_valid(&one, &ENV, &key(1), 1, None), 2);
    one.store(two.load(Ordering::Relaxed), Ordering::Relaxed);
    assert_eq!(counters.count_valid(&one, &ENV, &key(1), 1, None), 3);
    one.store(4_000, Ordering::Relaxed);
    assert_eq!(counters.count_valid(&one, &ENV, &key(1), 1, None), 4);
    // The same key id in another environment is another key.
    assert_eq!(counters.count_valid(&one, &[0xE1; 16], &key(1), 1, None), 1);
    assert_eq!(totals(&counters, 2).valid, 1);
    assert_eq!(counters.health().cells, 3);
}

#[test]
fn the_time_of_the_last_success_never_goes_back() {
    let mut world = World::new();
    let (counters, _) = world.open();
    let handle = fresh_handle();
    counters.count_valid(&handle, &ENV, &key(1), 500, address("192.0.2.5"));
    assert_eq!(counters.count_valid(&handle, &ENV, &key(1), 400, address("192.0.2.4")), 2);
    let read = totals(&counters, 1);
    assert_eq!((read.last_at_us, read.last_address), (Some(500), address("192.0.2.5")));
    counters.count_valid(&handle, &ENV, &key(1), 600, None);
    let read = totals(&counters, 1);
    assert_eq!((read.valid, read.last_at_us, read.last_address), (3, Some(600), None));
}

#[test]
fn a_reader_sees_all_counts_of_one_moment() {
    let mut world = World::new();
    let (counters, _) = world.open();
    let handle = fresh_handle();
    count(&counters, 1);
    counters.count_refused(&handle, &ENV, &key(1), 12);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            for at in 2..200_000_u32 {
                let address = Some(IpAddr::from(at.to_be_bytes()));
                counters.count_valid(&handle, &ENV, &key(1), at.into(), address);
                counters.count_refused(&handle, &ENV, &key(1), 12);
            }
            done.store(true, Ordering::Relaxed);
        });
        while !done.load(Ordering::Relaxed) {
            let read = totals(&counters, 1);
            let refused = read.refused.iter().sum::<u64>();
            assert!(refused == read.valid || refused + 1 == read.valid, "{read:?}");
            assert_eq!(read.last_at_us, Some(read.valid as i64));
            if read.valid > 1 {
                assert_eq!(
                    read.last_address,
                    Some(IpAddr::from((read.valid as u32).to_be_bytes()))
                );
            }
        }
    });
}

#[test]
fn the_file_grows_by_segments_and_keeps_every_key() {
    let keys = 3 * CELLS_PER_SEGMENT as u64 + 7;
    let mut world = World::new();
    let (counters, _) = world.open();
    for n in 0..keys {
        if n % 1_000 == 0 {
            counters.maintain();
        }
        assert_eq!(count(&counters, n), 1);
    }
    drop(counters);
    let (counters, _) = world.open();
    assert_eq!(counters.existing().count() as u64, keys);
    for n in 0..keys {
        assert_eq!(count(&counters, n), 2);
    }
    let health = counters.health();
    assert_eq!((u64::from(health.cells), health.unusable_cells), (keys, 0));
    assert!(!health.counts_at_risk());
}

#[test]
fn every_byte_of_the_file_has_its_block_before_it_is_used() {
    use std::os::unix::fs::MetadataExt;
    let mut world = World::new();
    let (counters, _) = world.open();
    (0..=CELLS_PER_SEGMENT as u64).for_each(|n| _ = count(&counters, n));
    let metadata = fs::metadata(world.file()).expect("the counter file");
    assert!(metadata.len() >= offset(2));
    // Between the header and the first segment there is a hole that is never mapped.
    assert!(metadata.blocks() * 512 >= metadata.len() - offset(0));
}

#[test]
fn a_full_disk_stops_no_count_and_room_makes_all_of_them_safe() {
    let keys = 2 * CELLS_PER_SEGMENT as u64;
    let mut world = World::new();
    let opened = Opened::open(world.path(), offset(1), random);
    let claimed = opened.claim(None);
    world.row = Some((claimed.file_id(), claimed.next()));
    let (mut counters, mut cursor) = claimed.confirm();
    (0..CELLS_PER_SEGMENT as u64).for_each(|n| assert_eq!(count(&counters, n), 1));
    assert!(!counters.health().counts_at_risk());
    assert!(counters.health().cause.is_some(), "no room for the next segment is worth a word");
    (CELLS_PER_SEGMENT as u64..keys).for_each(|n| assert_eq!(count(&counters, n), 1));
    counters.maintain();
    let health = counters.health();
    assert!(health.counts_at_risk() && health.has_file);
    assert_eq!((health.segments_in_memory, health.uncounted), (1, 0));
    assert!(health.cause.is_some_and(|cause| cause.contains("may not grow")));
    assert_eq!(counters.take_changed(&mut cursor, usize::MAX).changed().len() as u64, keys);

    counters.folder.file_bytes_max = NO_LIMIT;
    counters.maintain();
    assert!(!counters.health().counts_at_risk());
    assert_eq!(counters.health().cause, None);
    assert_eq!(count(&counters, keys - 1), 2);
    drop(counters);
    let (counters, _) = world.open();
    assert_eq!(sum_of_valid(&counters), keys + 1);
    assert_eq!(totals(&counters, keys - 1).valid, 2);
}

#[test]
fn counts_that_come_in_while_memory_moves_to_the_file_are_kept() {
    let world = World::new();
    let folder = world.path().join("not yet");
    let opened = Opened::open(&folder, NO_LIMIT, random);
    let claimed = opened.claim(None);
    assert_eq!(claimed.notices().len(), 1);
    let (file_id, generation) = (claimed.file_id(), claimed.next());
    let (counters, _) = claimed.confirm();
    assert!(counters.health().counts_at_risk() && !counters.health().has_file);
    let moved = AtomicBool::new(false);
    let counted: u64 = thread::scope(|scope| {
        let count_on = |thread: u64| {
            let (counters, moved) = (&counters, &moved);
            move || {
                let handle = fresh_handle();
                let mut more = 1_000;
                let mut counted = 0;
                while more > 0 {
                    counters.count_valid(&handle, &ENV, &key(thread), 1, None);
                    counters.count_refused(&handle, &ENV, &key(thread), 1);
                    counted += 1;
                    more -= u64::from(moved.load(Ordering::Relaxed));
                }
                counted
            }
        };
        let threads: Vec<_> = (0..3).map(|thread| scope.spawn(count_on(thread))).collect();
        while sum_of_valid(&counters) < 1_000 {
            thread::yield_now();
        }
        fs::create_dir(&folder).expect("the folder appears");
        counters.maintain();
        moved.store(true, Ordering::Relaxed);
        threads.into_iter().map(|thread| thread.join().expect("it counts")).sum()
    });
    assert!(!counters.health().counts_at_risk());
    counters.sync().expect("the file is there now");
    drop(counters);
    let opened = Opened::open(&folder, NO_LIMIT, random);
    assert_eq!(opened.file_id(), Some(file_id));
    let (counters, _) = opened.claim(Some(generation)).confirm();
    assert_eq!(sum_of_valid(&counters), counted);
    let refused = |totals: Totals| totals.refused.iter().sum::<u64>();
    assert_eq!(counters.existing().map(|(_, _, _, totals)| refused(totals)).sum::<u64>(), counted);
}

#[test]
fn when_cells_run_out_verification_goes_on_and_health_says_so() {
    let mut world = World::new();
    let (counters, _) = world.open();
    count(&counters, 1);
    counters.next_cell.store(super::CELLS_MAX, Ordering::Relaxed);
    assert_eq!(count(&counters, 2), 0);
    counters.count_refused(&fresh_handle(), &ENV, &key(2), 1);
    assert_eq!(count(&counters, 1), 2);
    counters.maintain();
    assert_eq!(counters.health().uncounted, 2);
    assert!(counters.health().counts_at_risk());
}

#[test]
fn changing_the_last_success_leaves_the_version_before_it_whole() {
    let mut world = World::new();
    let (counters, _) = world.open();
    let handle = fresh_handle();
    let versions = || {
        let file = File::open(world.file()).expect("the counter file");
        [8, 32].map(|field| {
            let mut at_us = [0; 8];
            file.read_exact_at(&mut at_us, field_at(0, field)).expect("the first cell");
            i64::from_ne_bytes(at_us)
        })
    };
    counters.count_valid(&handle, &ENV, &key(1), 100, None);
    assert_eq!(versions(), [0, 100]);
    counters.count_valid(&handle, &ENV, &key(1), 200, None);
    assert_eq!(versions(), [200, 100]);
    // From 2 to 4, both even: by way of 3, so that 200 is not written over while it is current.
    let known = Totals { valid: 4, last_at_us: Some(300), ..Totals::default() };
    counters.raise(&handle, &ENV, &key(1), &known);
    assert_eq!(versions(), [300, 300]);
}

#[test]
fn a_success_killed_before_its_commit_leaves_the_one_before() {
    let mut world = World::new();
    let (counters, _) = world.open();
    counters.count_valid(&fresh_handle(), &ENV, &key(1), 77, address("192.0.2.7"));
    drop(counters);
    // Number 2 would write the version for even counts: a time, and half an address.
    world.write_at(field_at(0, 8), &99_i64.to_ne_bytes());
    world.write_at(field_at(0, 16), &[0xFF; 8]);
    let (counters, _) = world.open();
    let read = totals(&counters, 1);
    assert_eq!((read.valid, read.last_at_us), (1, Some(77)));
    assert_eq!(read.last_address, address("192.0.2.7"));
}

#[test]
fn a_half_given_cell_is_nobodys_and_never_used_again() {
    let mut world = World::new();
    let (counters, _) = world.open();
    count(&counters, 1);
    drop(counters);
    // Killed after the ids and before the state.
    world.write_at(field_at(1, 160), &ENV);
    world.write_at(field_at(1, 176), &key(2));
    for _ in 0..2 {
        let (counters, _) = world.open();
        assert_eq!(counters.existing().map(|(number, ..)| number).next(), Some(0));
        assert_eq!(counters.cell_of(&ENV, &key(3)).unwrap_or(2), 2);
        count(&counters, 3);
        assert_eq!(counters.cell_of(&ENV, &key(2)), None);
        assert_eq!(counters.cell_of(&ENV, &key(3)), Some(2));
        assert_eq!(counters.health().unusable_cells, 1);
    }
}

#[test]
fn a_cell_torn_by_a_power_failure_is_not_taken_for_another_keys() {
    let mut world = World::new();
    let (counters, _) = world.open();
    (1..=3).for_each(|n| assert_eq!(count(&counters, n), 1));
    drop(counters);
    world.write_at(field_at(1, 176), &[0; 16]);
    let (counters, _) = world.open();
    let keys: Vec<_> = counters.existing().map(|(number, _, key, _)| (number, key)).collect();
    assert_eq!(keys, [(0, key(1)), (2, key(3))]);
    assert_eq!(counters.health().unusable_cells, 1);
    // The database knew of the second key: its count goes on from there.
    let known = Totals { valid: 1, last_at_us: Some(1), ..Totals::default() };
    counters.raise(&fresh_handle(), &ENV, &key(2), &known);
    assert_eq!(count(&counters, 2), 2);
}

#[test]
fn raising_is_the_maximum_of_both_and_loses_nothing_that_follows() {
    // A linear congruential generator with a fixed seed: the same cases in each run.
    let mut state = 42_u64;
    let mut below = move |limit: u64| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % limit
    };
    let mut world = World::new();
    let (counters, _) = world.open();
    for n in 0..2_000 {
        let handle = fresh_handle();
        let mut model = Totals::default();
        for _ in 0..below(4) {
            let at_us = 1 + below(9) as i64;
            counters.count_valid(&handle, &ENV, &key(n), at_us, address("192.0.2.1"));
            model.valid += 1;
            model.last_at_us = model.last_at_us.max(Some(at_us));
            model.last_address = address("192.0.2.1");
        }
        let valid = below(8);
        let known = Totals {
            valid,
            refused: [below(2); REFUSALS],
            last_at_us: (valid > 0).then(|| 1 + below(9) as i64),
            last_address: address("2001:db8::2").filter(|_| valid > 0),
        };
        if known.last_at_us > model.last_at_us {
            model.last_at_us = known.last_at_us;
            model.last_address = known.last_address;
        }
        model.valid = model.valid.max(known.valid);
        model.refused = known.refused;
        counters.raise(&handle, &ENV, &key(n), &known);
        assert_eq!(totals(&counters, n), model, "key {n}, raised to {known:?}");
        assert_eq!(counters.count_valid(&handle, &ENV, &key(n), 0, None), model.valid + 1);
        assert_eq!(totals(&counters, n), Totals { valid: model.valid + 1, ..model });
    }
}

#[test]
fn what_the_database_knows_already_is_not_flushed_again_after_a_restart() {
    let mut world = World::new();
    let (counters, _) = world.open();
    (0..100).for_each(|n| assert_eq!(count(&counters, n), 1));
    drop(counters);
    let (counters, mut cursor) = world.open();
    for n in 0..99 {
        let known = totals(&counters, n);
        counters.raise(&fresh_handle(), &ENV, &key(n), &known);
    }
    let batch = counters.take_changed(&mut cursor, 1_000);
    assert_eq!(batch.changed().iter().map(|changed| changed.key).collect::<Vec<_>>(), [key(99)]);
}

/// The keys of one round, in batches of `max`, all confirmed.
fn flush_round(counters: &Counters, cursor: &mut FlushCursor, max: usize) -> Vec<[u8; 16]> {
    let mut keys = Vec::new();
    loop {
        let batch = counters.take_changed(cursor, max);
        assert!(batch.changed().len() <= max);
        if batch.is_empty() {
            return keys;
        }
        keys.extend(batch.changed().iter().map(|changed| changed.key));
        batch.confirm();
    }
}

#[test]
fn a_round_of_flushing_offers_each_changed_key_once() {
    let many = CELLS_PER_SEGMENT as u64 + 500;
    let mut world = World::new();
    let (counters, mut cursor) = world.open();
    (0..many).for_each(|n| assert_eq!(count(&counters, n), 1));
    let all: Vec<_> = (0..many).map(key).collect();
    assert_eq!(flush_round(&counters, &mut cursor, 1_000), all);
    assert!(flush_round(&counters, &mut cursor, 1_000).is_empty());
    let few = [3, 64, 5_375, 5_376, 5_800];
    few.into_iter().for_each(|n| assert_eq!(count(&counters, n), 2));
    assert_eq!(flush_round(&counters, &mut cursor, 2), few.map(key));
    assert!(flush_round(&counters, &mut cursor, 2).is_empty());
}

#[test]
fn a_batch_that_was_not_confirmed_is_offered_again() {
    let mut world = World::new();
    let (counters, mut cursor) = world.open();
    (0..10).for_each(|n| assert_eq!(count(&counters, n), 1));
    counters.take_changed(&mut cursor, 3).confirm();
    assert_eq!(counters.take_changed(&mut cursor, 3).changed().len(), 3);
    let rest: Vec<_> = (3..10).map(key).collect();
    assert_eq!(flush_round(&counters, &mut cursor, 4), rest);
}

#[test]
fn a_count_during_a_flush_is_in_the_next_one() {
    let mut world = World::new();
    let (counters, mut cursor) = world.open();
    count(&counters, 1);
    let batch = counters.take_changed(&mut cursor, 10);
    assert_eq!(batch.changed().first().map(|changed| changed.totals.valid), Some(1));
    count(&counters, 1);
    batch.confirm();
    assert!(counters.take_changed(&mut cursor, 10).is_empty());
    let batch = counters.take_changed(&mut cursor, 10);
    assert_eq!(batch.changed().first().map(|changed| changed.totals.valid), Some(2));
}

#[test]
fn flushing_at_full_load_ends_with_the_exact_counts() {
    const EACH: u64 = 50_000;
    let mut world = World::new();
    let (counters, mut cursor) = world.open();
    let running = AtomicU32::new(3);
    let mut database = std::collections::BTreeMap::new();
    thread::scope(|scope| {
        for thread in 0..3 {
            let (counters, running) = (&counters, &running);
            scope.spawn(move || {
                for n in 0..EACH {
                    count(counters, (n * 7 + thread) % 100);
                }
                running.fetch_sub(1, Ordering::Release);
            });
        }
        loop {
            let was_running = running.load(Ordering::Acquire) > 0;
            loop {
                let batch = counters.take_changed(&mut cursor, 16);
                if batch.is_empty() {
                    break;
                }
                // Every third batch fails.
                if batch.changed().first().is_some_and(|changed| changed.totals.valid % 3 == 0)
                    && was_running
                {
                    break;
                }
                for changed in batch.changed() {
                    let before = database.insert(changed.key, changed.totals.valid);
                    assert!(before <= Some(changed.totals.valid));
                }
                batch.confirm();
            }
            if !was_running {
                break;
            }
        }
    });
    assert_eq!(database.values().sum::<u64>(), 3 * EACH);
}

#[test]
fn a_failed_sync_is_told_and_made_good_by_the_next() {
    let mut world = World::new();
    let (mut counters, _) = world.open();
    count(&counters, 1);
    let not_syncable = File::open("/dev/null").expect("every Linux has it");
    let good = std::mem::replace(&mut counters.file, OnceLock::from(not_syncable));
    counters.sync().expect_err("a device of characters has nothing to sync");
    assert!(counters.health().unsynced && counters.health().counts_at_risk());
    let segment = counters.segment(0).expect("it is in use");
    let unsynced = segment.take_unsynced();
    assert_eq!(unsynced, [1, 0, 0, 0]);
    segment.put_back_unsynced(&unsynced);
    counters.file = good;
    counters.sync().expect("the file can be synced");
    assert!(!counters.health().counts_at_risk());
    let segment = counters.segment(0).expect("it is in use");
    assert_eq!(segment.take_unsynced(), [0; 4]);
    count(&counters, 1);
    assert_eq!(segment.take_unsynced(), [1, 0, 0, 0]);
}
