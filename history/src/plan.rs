//! What will be done to the nodes and the database, and when: the same for the same seed.

use std::time::Duration;

use crate::chance::Chance;

/// Something that is done to a node or to the database, and undone again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// `kill -9`, and started again so much later.
    Kill { down: Duration },
    /// SIGSTOP, and SIGCONT so much later: shorter or longer than L.
    Stop { pause: Duration },
    /// The same at the moment when the node holds the lock of all changes.
    StopAtLock { pause: Duration },
    /// The same between the commit and its acknowledgement.
    StopAtCommit { pause: Duration },
    /// The node's connections to the database are closed, and refused for so long.
    Cut { refuse: Duration },
    /// Nothing is carried between node and database, and nothing is closed.
    Stall { stall: Duration },
    /// Every piece is late.
    Delay { by: Duration, during: Duration },
    /// For so long, each connection is cut between a commit and its acknowledgement.
    SwallowCommits { during: Duration },
    /// The database is restarted, in order (`fast`) or by a crash (`immediate`).
    ///
    /// The promotion of a standby will stand beside this: like it, it concerns no single node.
    RestartDatabase { immediate: bool },
}

/// A fault with its time and its node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    /// Since the clients began.
    pub(crate) at: Duration,
    pub(crate) node: usize,
    pub(crate) fault: Fault,
}

impl Fault {
    /// Its name in the history.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Fault::Kill { .. } => "kill",
            Fault::Stop { .. } => "stop",
            Fault::StopAtLock { .. } => "stop_at_lock",
            Fault::StopAtCommit { .. } => "stop_at_commit",
            Fault::Cut { .. } => "cut",
            Fault::Stall { .. } => "stall",
            Fault::Delay { .. } => "delay",
            Fault::SwallowCommits { .. } => "swallow_commits",
            Fault::RestartDatabase { immediate: true } => "database_immediate",
            Fault::RestartDatabase { immediate: false } => "database_fast",
        }
    }

    /// About how long it lasts.
    fn length(self) -> Duration {
        /// What a start or a restart takes.
        const START: Duration = Duration::from_millis(1_500);
        match self {
            Fault::Kill { down } => down + START,
            Fault::Stop { pause } => pause,
            Fault::StopAtLock { pause } | Fault::StopAtCommit { pause } => pause + START / 3,
            Fault::Cut { refuse } => refuse,
            Fault::Stall { stall } => stall,
            Fault::Delay { during, .. } | Fault::SwallowCommits { during } => during,
            Fault::RestartDatabase { .. } => START,
        }
    }
}

/// The schedule of a run. Mostly one fault at a time with a pause after it, sometimes a second one
/// on another node meanwhile. Every kind comes before one comes again.
pub(crate) fn plan(seed: u64, length: Duration, nodes: usize, lease: Duration) -> Vec<Step> {
    let mut chance = Chance::of(seed, 1);
    let mut steps = Vec::new();
    // By then there are keys.
    let mut at = chance.ms(1_500, 2_500);
    let mut bag: Vec<usize> = Vec::new();
    let mut last_node = 0;
    while at < length {
        if bag.is_empty() {
            bag = (0..KINDS).collect();
        }
        let kind = bag.swap_remove(chance.below(bag.len()));
        let fault = draw(kind, &mut chance, lease);
        let node = (last_node + 1 + chance.below(nodes.saturating_sub(1).max(1))) % nodes;
        last_node = node;
        steps.push(Step { at, node, fault });
        at += if chance.percent(25) {
            chance.ms(100, 800)
        } else {
            fault.length() + chance.ms(300, 1_500)
        };
    }
    steps
}

/// How many kinds [`draw`] knows.
const KINDS: usize = 11;

fn draw(kind: usize, chance: &mut Chance, lease: Duration) -> Fault {
    let lease_ms = u64::try_from(lease.as_millis()).unwrap_or(u64::MAX);
    match kind {
        0 => Fault::Kill { down: chance.ms(0, 2_000) },
        1 => Fault::Stop { pause: chance.ms(200, lease_ms * 4 / 5) },
        // Long enough that changes are acknowledged meanwhile and their keys asked for: a change
        // waits for L from its own commit, which comes after the stop.
        2 => Fault::Stop { pause: chance.ms(lease_ms + 1_000, lease_ms + 3_500) },
        3 => Fault::StopAtLock { pause: chance.ms(300, lease_ms + 2_500) },
        4 => Fault::StopAtCommit { pause: chance.ms(300, lease_ms + 2_500) },
        5 => Fault::Cut { refuse: chance.ms(0, 2_500) },
        6 => Fault::Stall { stall: chance.ms(500, lease_ms + 2_000) },
        // Not longer: the lock of all changes is held for about ten round trips of a change, and
        // whoever waits for it has still to keep its promise.
        7 => Fault::Delay { by: chance.ms(5, 60), during: chance.ms(1_000, 4_000) },
        8 => Fault::SwallowCommits { during: chance.ms(200, 1_500) },
        9 => Fault::RestartDatabase { immediate: true },
        _ => Fault::RestartDatabase { immediate: false },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(5);

    #[test]
    fn a_seed_gives_one_schedule_and_another_seed_another() {
        let of = |seed| plan(seed, Duration::from_secs(60), 3, LEASE);
        assert_eq!(of(1), of(1));
        assert_ne!(of(1), of(2));
        assert!(of(1).is_sorted_by_key(|step| step.at));
        assert!(of(1).iter().all(|step| step.node < 3 && step.at < Duration::from_secs(60)));
    }

    #[test]
    fn every_kind_comes_within_a_long_run_and_pauses_are_shorter_and_longer_than_the_lease() {
        let steps = plan(1, Duration::from_secs(600), 3, LEASE);
        let mut names: Vec<_> = steps.iter().map(|step| step.fault.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), KINDS - 1, "two kinds share the name `stop`: {names:?}");
        let pauses: Vec<_> = steps
            .iter()
            .filter(|step| step.fault.name() == "stop")
            .map(|step| step.fault.length() > LEASE)
            .collect();
        assert!(pauses.contains(&true) && pauses.contains(&false));
    }

    #[test]
    fn one_node_is_enough_for_a_schedule() {
        assert!(plan(1, Duration::from_secs(60), 1, LEASE).iter().all(|step| step.node == 0));
    }
}
