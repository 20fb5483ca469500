//! A deterministic simulation of nodes, leases and revocations: the shipped state machines and the
//! shipped table under chance, from a seed that repeats every step.
//!
//! It covers what the exhaustive model does not: drifting clocks, wall clocks that jump, restarts,
//! database restarts, failovers that lose changes, duplicated replies, and schedules of any length.
//! `KEYWARD_SIM_SEED=N` replays one seed and prints what happens; `KEYWARD_SIM_SEEDS=N` runs that
//! many, from `KEYWARD_SIM_FROM` on. A failure prints its seed.

#![expect(clippy::indexing_slicing, reason = "places are given out here and never taken back")]

mod chance;
mod database;
mod keys;
mod world;

use world::{Mistake, World};

/// Without optimization a seed takes about ten times as long.
const SEEDS: u64 = if cfg!(debug_assertions) { 1_000 } else { 5_000 };
/// A mistake must be found within that many.
const SEEDS_FOR_A_MISTAKE: u64 = if cfg!(debug_assertions) { 200 } else { 5_000 };

#[expect(clippy::disallowed_methods, reason = "whoever runs a test chooses its seeds")]
fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is not a number: {text}")))
}

fn run(seed: u64, is_told: bool) -> World {
    let mut world = World::new(seed, None);
    world.is_told = is_told;
    world.run();
    if let Some(broken) = &world.broken {
        panic!("{broken}, at {} us; replay with KEYWARD_SIM_SEED={seed}", world.now_us);
    }
    world
}

#[test]
fn no_seed_brings_a_stale_yes_or_a_wait_without_end() {
    if let Some(seed) = number("KEYWARD_SIM_SEED") {
        run(seed, true);
        return;
    }
    let from = number("KEYWARD_SIM_FROM").unwrap_or(0);
    let seeds = number("KEYWARD_SIM_SEEDS").unwrap_or(SEEDS);
    let (mut yes, mut no) = (0, 0);
    for seed in from..from + seeds {
        let world = run(seed, false);
        yes += world.yes;
        no += world.no;
    }
    println!("{seeds} seeds from {from}: {yes} times yes, {no} times no");
    // A simulation in which nobody may answer would prove nothing.
    assert!(u64::from(no) > seeds * 8, "too few answers: {no}");
    assert!(u64::from(yes) > seeds / 2, "too few answers: {yes}");
}

#[test]
fn a_seed_replays_exactly() {
    let trace = |seed| World::new(seed, None).run();
    for seed in 0..20 {
        assert_eq!(trace(seed), trace(seed), "seed {seed}");
    }
    assert_ne!(trace(1), trace(2));
}

#[track_caller]
fn is_found(mistake: Mistake) {
    for seed in 0..SEEDS_FOR_A_MISTAKE {
        let mut world = World::new(seed, Some(mistake));
        world.run();
        // What does not heal is not what is looked for here.
        if let Some(broken) = world.broken.filter(|broken| broken.starts_with("P2")) {
            println!("{mistake:?} with seed {seed}: {broken}");
            return;
        }
    }
    panic!("{mistake:?} was not found with {SEEDS_FOR_A_MISTAKE} seeds");
}

#[test]
fn each_mistake_is_found() {
    for mistake in [
        Mistake::DeadlineFromReply,
        Mistake::AcknowledgedBeforeApplied,
        Mistake::ShortWait,
        Mistake::StoppedClock,
        Mistake::NoQuarantine,
        Mistake::RetryNotWaiting,
        Mistake::MissingRowIgnored,
    ] {
        is_found(mistake);
    }
    // Those take a rare coincidence; without optimization, that takes too long.
    if !cfg!(debug_assertions) {
        is_found(Mistake::HeadOutsideLock);
        is_found(Mistake::WaitSetBeforeCommit);
        is_found(Mistake::LateTellCounts);
        is_found(Mistake::LifeUnchecked);
    }
}
