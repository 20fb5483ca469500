//! The promise itself: a process that counts at full speed is killed with SIGKILL, several
//! times, and the file holds every count that was acknowledged and none that was not begun.
//!
//! The process is this test binary again, running the same test, told by one more argument
//! which folder to count in. It acknowledges each count with one byte on standard error, in one
//! system call, after the count returned.

use std::io::{Read, Write};
use std::net::Ipv6Addr;
use std::os::fd::AsFd;
use std::process::{Command, Stdio};

use super::*;

const THREADS: u64 = 4;
const KEYS: u8 = 7;
const ROUNDS: u64 = 6;
const CHILD: &str = "count-in=";

/// The folder to count in, if this process is a child.
fn child_folder() -> Option<PathBuf> {
    std::env::args().find_map(|arg| arg.strip_prefix(CHILD).map(PathBuf::from))
}

/// Opens the counters in `folder`, whose `database` file stands for the database.
fn open(folder: &Path) -> Counters {
    let database = folder.join("database");
    let row = fs::read_to_string(&database).ok();
    let row = row.map(|text| Generation::from_database(text.parse().expect("a generation")));
    let claimed = Opened::open(folder, NO_LIMIT, random).claim(row);
    assert_eq!(claimed.previous(), row, "the file was not set aside: {:?}", claimed.notices());
    let unfinished = folder.join("database.new");
    fs::write(&unfinished, claimed.next().to_database().to_string()).expect("a full disk?");
    fs::rename(unfinished, database).expect("the folder is writable");
    claimed.confirm().0
}

/// Counts on all threads, and maintains and syncs, until somebody kills the process.
fn count_until_killed(folder: &Path, count: impl Fn(&Counters, u64, u64) -> u8 + Sync) {
    let counters = open(folder);
    let (counters, count) = (&counters, &count);
    thread::scope(|scope| {
        for thread in 0..THREADS {
            scope.spawn(move || {
                let pipe = std::io::stderr().as_fd().try_clone_to_owned().expect("a descriptor");
                let mut pipe = File::from(pipe);
                for n in 0.. {
                    let acknowledged = count(counters, thread, n);
                    // The pipe breaks when the killer is gone; then nobody needs this process.
                    if pipe.write_all(&[acknowledged]).is_err() {
                        std::process::exit(1);
                    }
                }
            });
        }
        scope.spawn(|| {
            loop {
                counters.maintain();
                counters.sync().expect("the disk works");
            }
        });
    });
}

/// Runs this test in a process of its own, kills that after `count` acknowledgements, and
/// returns all that it gave.
fn acknowledged_by_child(test: &str, folder: &Path, count: usize) -> Vec<u8> {
    let (_, module) = module_path!().split_once("::").expect("a module in a crate");
    let mut child = Command::new(std::env::current_exe().expect("the test binary"))
        .args(["--exact", "--nocapture", &format!("{module}::{test}")])
        .arg(format!("{CHILD}{}", folder.display()))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the test binary runs");
    let mut pipe = child.stderr.take().expect("it is piped");
    let mut acknowledged = vec![0; count];
    let begun = pipe.read_exact(&mut acknowledged);
    child.kill().expect("it is our child");
    child.wait().expect("it is our child");
    pipe.read_to_end(&mut acknowledged).expect("the pipe ends with the child");
    assert!(begun.is_ok(), "it ended by itself: {}", String::from_utf8_lossy(&acknowledged));
    acknowledged
}

#[test]
fn a_kill_loses_no_acknowledged_count_and_invents_none() {
    if let Some(folder) = child_folder() {
        let handles = [const { AtomicU32::new(NO_CELL) }; KEYS as usize];
        let started = std::time::SystemTime::UNIX_EPOCH.elapsed().expect("after 1970");
        let clock = AtomicU64::new(started.as_micros() as u64);
        count_until_killed(&folder, |counters, thread, n| {
            let which = (n % u64::from(KEYS)) as u8;
            let handle = handles.get(usize::from(which)).expect("one for each key");
            if (n + thread) % 3 == 0 {
                counters.count_refused(handle, &ENV, &key(which.into()), 1 + which);
                return 0x80 | which;
            }
            // The address repeats the time, so that a pair of two successes is found out.
            let at_us = clock.fetch_add(1, Ordering::Relaxed);
            let address = Ipv6Addr::from(u128::from(at_us) << 64 | u128::from(!at_us));
            let address = Some(IpAddr::from(address));
            counters.count_valid(handle, &ENV, &key(which.into()), at_us as i64, address);
            which
        });
    }
    let test = "a_kill_loses_no_acknowledged_count_and_invents_none";
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut before = [[0; 2]; KEYS as usize];
    for round in 0..ROUNDS {
        let count = 5_000 + 7_919 * round as usize;
        let acknowledged = acknowledged_by_child(test, folder.path(), count);
        let counters = open(folder.path());
        let mut in_flight = 0;
        for (which, before) in (0..KEYS).zip(&mut before) {
            let read = totals(&counters, which.into());
            let refused = *read.refused.get(usize::from(which)).expect("one of twelve");
            let counts = [(read.valid, which), (refused, 0x80 | which)];
            for ((now, byte), before) in counts.into_iter().zip(before) {
                let told = acknowledged.iter().filter(|told| **told == byte).count() as u64;
                let counted = now - *before;
                assert!(counted >= told, "round {round}: {told} acknowledged, {counted} counted");
                in_flight += counted - told;
                *before = now;
            }
            let at_us = read.last_at_us.expect("it was valid") as u64;
            let address = Ipv6Addr::from(u128::from(at_us) << 64 | u128::from(!at_us));
            assert_eq!(read.last_address, Some(IpAddr::from(address)));
        }
        assert!(in_flight <= THREADS, "{in_flight} counts more than acknowledged");
        assert!(acknowledged.iter().all(|byte| byte & 0x7F < KEYS));
    }
}

#[test]
fn a_kill_while_new_keys_get_their_cells_loses_none_of_them() {
    if let Some(folder) = child_folder() {
        let run = u64::from(std::process::id()) << 40;
        count_until_killed(&folder, |counters, thread, n| {
            count(counters, run | thread << 32 | n);
            b'.'
        });
    }
    let test = "a_kill_while_new_keys_get_their_cells_loses_none_of_them";
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (mut valid_before, mut unusable_before) = (0, 0);
    for round in 0..ROUNDS {
        let count = 3_000 + 2_003 * round as usize;
        let acknowledged = acknowledged_by_child(test, folder.path(), count);
        let counters = open(folder.path());
        let valid = sum_of_valid(&counters);
        let counted = valid - valid_before;
        let told = acknowledged.len() as u64;
        assert!((told..=told + THREADS).contains(&counted), "{told} told, {counted} counted");
        assert!(counters.existing().all(|(_, _, _, totals)| totals.valid <= 1));
        let unusable = counters.health().unusable_cells;
        assert!(u64::from(unusable - unusable_before) <= THREADS);
        (valid_before, unusable_before) = (valid, unusable);
    }
    assert!(valid_before > CELLS_PER_SEGMENT as u64, "segments were made meanwhile");
}

#[test]
fn a_kill_between_any_two_instructions_leaves_a_whole_success() {
    if let Some(folder) = child_folder() {
        let counters = open(&folder);
        let handle = fresh_handle();
        let first = 1 + counters.existing().map(|(_, _, _, totals)| totals.valid).sum::<u64>();
        std::io::stderr().write_all(b".").expect("the killer listens");
        for n in first.. {
            // Number, time and address are the same, so that any mixture is found out.
            let address = Some(IpAddr::from(Ipv6Addr::from(u128::from(n) << 64 | u128::from(n))));
            counters.count_valid(&handle, &ENV, &key(1), n as i64, address);
            if n - first > 100_000_000 {
                return;
            }
        }
    }
    let test = "a_kill_between_any_two_instructions_leaves_a_whole_success";
    let folder = tempfile::tempdir().expect("a temporary folder");
    for _ in 0..40 {
        acknowledged_by_child(test, folder.path(), 1);
        let counters = open(folder.path());
        let Some(cell) = counters.cell_of(&ENV, &key(1)) else {
            continue;
        };
        let read = counters.read(cell).expect("the cell is a key's");
        if read.valid > 0 {
            let n = read.valid;
            let address = IpAddr::from(Ipv6Addr::from(u128::from(n) << 64 | u128::from(n)));
            assert_eq!((read.last_at_us, read.last_address), (Some(n as i64), Some(address)));
        }
    }
    assert!(sum_of_valid(&open(folder.path())) > 0, "something was counted");
}
