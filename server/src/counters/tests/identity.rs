//! Which file may go on counting under its id, and which is set aside.

use super::*;

#[test]
fn a_file_is_accepted_wherever_the_opening_of_it_was_cut_short() {
    let mut world = World::new();
    // Cut short before the database had a row: the file may be claimed as new again.
    let file_id = world.claim().file_id();
    let claimed = world.claim();
    assert_eq!((claimed.file_id(), claimed.previous()), (file_id, None));
    // After it had one, before the file was told.
    world.row = Some((file_id, claimed.next()));
    drop(claimed);
    let (counters, _) = world.open();
    assert_eq!((counters.file_id(), count(&counters, 1)), (file_id, 1));
    drop(counters);
    // Then the same with a generation after the first.
    let before = world.row;
    let claimed = world.claim();
    assert_eq!(claimed.previous(), before.map(|(_, generation)| generation));
    drop(claimed);
    let claimed = world.claim();
    assert_eq!((claimed.file_id(), claimed.previous()), (file_id, before.map(|row| row.1)));
    world.row = Some((file_id, claimed.next()));
    drop(claimed);
    let (counters, _) = world.open();
    assert_eq!((counters.file_id(), count(&counters, 1)), (file_id, 2));
    assert_eq!(Some((counters.file_id(), counters.generation())), world.row);
    assert_eq!(world.names(), ["counters"]);
}

#[test]
fn a_copy_of_the_file_is_set_aside() {
    let mut world = World::new();
    let (counters, _) = world.open();
    count(&counters, 1);
    let copy = world.path().join("copy");
    fs::copy(world.file(), &copy).expect("a file can be copied");
    drop(counters);
    let (counters, _) = world.open();
    let file_id = counters.file_id();
    count(&counters, 1);
    drop(counters);
    fs::rename(&copy, world.file()).expect("the copy takes its place");
    let claimed = world.claim();
    assert_ne!(claimed.file_id(), file_id);
    assert_eq!(claimed.previous(), None);
    let hex: String = file_id.bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(world.names(), ["counters".to_owned(), format!("counters.aside-{hex}-1")]);
    assert!(claimed.notices().iter().any(|notice| notice.contains("set aside")));
    let (counters, _) = claimed.confirm();
    assert_eq!(count(&counters, 1), 1);
}

#[test]
fn a_copy_that_died_while_it_lost_the_race_is_not_taken_for_the_winner() {
    let (mut winner, mut loser) = (World::new(), World::new());
    drop(winner.open());
    fs::copy(winner.file(), loser.file()).expect("a file can be copied");
    loser.row = winner.row;
    // Both write down that generation 2 is to be next; the winner gets the row.
    drop(loser.claim());
    drop(winner.open());
    loser.row = winner.row;
    let claimed = loser.claim();
    assert_ne!(Some(claimed.file_id()), winner.row.map(|(file_id, _)| file_id));
    assert_eq!(loser.names().len(), 2);
}

#[test]
fn a_file_whose_row_was_lost_to_another_is_set_aside() {
    let mut world = World::new();
    drop(world.open());
    let claimed = world.claim();
    let file_id = claimed.file_id();
    let claimed = claimed.refused("another node has it");
    assert_ne!(claimed.file_id(), file_id);
    assert_eq!(claimed.previous(), None);
    assert!(claimed.notices().iter().any(|notice| notice.contains("another node has it")));
    let (counters, _) = claimed.confirm();
    assert!(!counters.health().counts_at_risk());
}

#[test]
fn a_file_that_the_database_does_not_know_or_knows_otherwise_is_set_aside() {
    let mut world = World::new();
    drop(world.open());
    let row = world.row.take();
    let file_id = row.map(|(file_id, _)| file_id);
    let claimed = world.claim();
    assert_ne!(Some(claimed.file_id()), file_id);
    world.row =
        Some((claimed.file_id(), Generation::from_database(claimed.next().to_database() ^ 1)));
    drop(claimed);
    let claimed = world.claim();
    assert_ne!(world.row.map(|(file_id, _)| file_id), Some(claimed.file_id()));
    assert_eq!(world.names().len(), 3);
}

#[test]
fn a_header_that_is_no_header_is_set_aside_and_said_so() {
    let garbage: [(&str, Vec<u8>); 4] = [
        ("empty", Vec::new()),
        ("short", vec![1; 100]),
        ("zero", vec![0; 100_000]),
        ("text", b"KWcount\n".repeat(10_000)),
    ];
    for (at, (name, bytes)) in garbage.into_iter().enumerate() {
        let world = World::new();
        fs::write(world.file(), &bytes).expect("the folder is writable");
        let opened = Opened::open(world.path(), NO_LIMIT, random);
        assert_eq!(opened.file_id(), None, "{name}");
        let claimed = opened.claim(None);
        assert_eq!(claimed.notices().len(), 1, "{name}");
        let (counters, _) = claimed.confirm();
        assert_eq!(count(&counters, at as u64), 1);
        assert_eq!(world.names(), ["counters", "counters.aside-unreadable"]);
        let aside = world.path().join("counters.aside-unreadable");
        assert_eq!(fs::read(aside).expect("it is kept"), bytes);
    }
}

#[test]
fn one_torn_copy_of_the_header_does_no_harm() {
    for torn in [0, 2_048] {
        let mut world = World::new();
        for expected in 1..=5 {
            let (counters, _) = world.open();
            assert_eq!(count(&counters, 1), expected);
            drop(counters);
            world.write_at(torn + 20, &[0xFF; 30]);
        }
        world.write_at(20, &[0xFF; 30]);
        world.write_at(2_048 + 20, &[0xFF; 30]);
        let (counters, _) = world.open();
        assert_eq!(count(&counters, 1), 1);
    }
}

#[test]
fn a_file_of_another_format_is_set_aside() {
    let mut world = World::new();
    drop(world.open());
    for at in [0, 2_048] {
        let mut header = [0; 64];
        let file = File::open(world.file()).expect("the counter file");
        file.read_exact_at(&mut header, at).expect("its header");
        let (before, rest) = header.split_at_mut(8);
        let (format, rest) = rest.split_at_mut(4);
        format.copy_from_slice(&2_u32.to_ne_bytes());
        let (between, checksum) = rest.split_at_mut(48);
        let checked = [&*before, &*format, &*between].concat();
        checksum.copy_from_slice(&crc32fast::hash(&checked).to_ne_bytes());
        world.write_at(at, &header);
    }
    let claimed = world.claim();
    assert!(claimed.notices().iter().any(|notice| notice.contains("format 2")));
    assert_eq!(claimed.previous(), None);
}

#[test]
fn a_file_that_cannot_be_opened_is_left_alone_and_counts_stay_in_memory() {
    let mut world = World::new();
    // Root may open any file, but not a folder for writing.
    fs::create_dir(world.file()).expect("the folder is writable");
    let claimed = world.claim();
    assert_eq!(claimed.notices().len(), 2);
    let (counters, _) = claimed.confirm();
    assert_eq!((count(&counters, 1), count(&counters, 1)), (1, 2));
    counters.maintain();
    counters.sync().expect("there is nothing to sync");
    assert!(counters.health().counts_at_risk() && !counters.health().has_file);
    assert!(counters.health().cause.is_some());
    assert_eq!(world.names(), ["counters"]);
    drop(counters);
    fs::remove_dir(world.file()).expect("it is empty");
    let (counters, _) = world.open();
    assert!(!counters.health().counts_at_risk());
}

#[test]
fn a_sparse_file_gets_its_blocks_back_before_it_is_mapped() {
    use std::os::unix::fs::MetadataExt;
    let mut world = World::new();
    let (counters, _) = world.open();
    count(&counters, 1);
    drop(counters);
    let holes = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
    let file = OpenOptions::new().write(true).open(world.file()).expect("the counter file");
    rustix::fs::fallocate(&file, holes, offset(0) + 4_096, offset(1) - offset(0) - 4_096)
        .expect("holes can be made here");
    let (counters, _) = world.open();
    assert_eq!(count(&counters, 1), 2);
    let metadata = file.metadata().expect("it is open");
    assert!(metadata.blocks() * 512 >= metadata.len() - offset(0));
}

#[test]
fn a_file_cut_off_in_the_middle_of_a_segment_keeps_its_whole_segments() {
    let keys = CELLS_PER_SEGMENT as u64 + 10;
    let mut world = World::new();
    let (counters, _) = world.open();
    (0..keys).for_each(|n| assert_eq!(count(&counters, n), 1));
    drop(counters);
    let file = OpenOptions::new().write(true).open(world.file()).expect("the counter file");
    file.set_len(offset(2) - 5_000).expect("it can be cut");
    let (counters, _) = world.open();
    assert_eq!(sum_of_valid(&counters), CELLS_PER_SEGMENT as u64);
    // The rest is as the database has it.
    let known = Totals { valid: 1, last_at_us: Some(1), ..Totals::default() };
    counters.raise(&fresh_handle(), &ENV, &key(keys - 1), &known);
    assert_eq!(count(&counters, keys - 1), 2);
}
