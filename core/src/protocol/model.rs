//! The lease protocol, explored exhaustively: what it promises holds in every state, and each
//! mistake that would break it is found.
//!
//! The promises are P2, that nobody who may answer lacks a change that was acknowledged, and P3,
//! that no acknowledgement takes longer than a lease. The scopes are small and each is explored to
//! its end, over unlimited time; `world.rs` says what a step is. Without debug assertions, in
//! `cargo test --release`, they are larger. Not covered are clocks at different rates, restarts,
//! lost changes, and what needs more slow steps than a scope has; the simulation meets those by
//! chance. This is a unit test because it forgets instants inside [`Node`](super::Node) that make
//! no difference any more, and only so are the states finite in number.

mod explore;
mod world;

use explore::explore;
use world::{Mistake, Scope};

/// Whether there is time for the larger scopes.
const IS_DEEP: bool = !cfg!(debug_assertions);
const STATES_MAX: usize = 30_000_000;

/// Two nodes with a lease, one change, nothing slow.
const CALM: Scope = Scope {
    leases: &[1, 1],
    settled: 2,
    calls: &[(0, 0)],
    slow: 0,
    holds: 0,
    reads: 0,
    losses: 0,
    crashes: 0,
    pauses: 0,
    failovers: 0,
    is_sole: false,
    mistake: None,
};

#[track_caller]
fn holds(scope: Scope) {
    let explored = explore(&scope, STATES_MAX);
    println!("{} states, {} steps deep: {scope:?}", explored.states, explored.depth);
    assert!(explored.violation.is_none(), "{:#?}", explored.violation);
}

/// That the mistake breaks a promise in `scope`, which without it does not.
#[track_caller]
fn is_caught(mistake: Mistake, scope: Scope) {
    let explored = explore(&Scope { mistake: Some(mistake), ..scope }, STATES_MAX);
    let Some((promise, trace)) = explored.violation else {
        panic!("{mistake:?} is not noticed in {} states", explored.states)
    };
    println!("{mistake:?}, {} states: {promise} after {trace:?}", explored.states);
    holds(scope);
}

/// A node that has yet to load, a change and its repetition by the other node.
#[test]
fn a_node_that_registers_while_a_change_and_its_retry_are_under_way_has_it() {
    let calls = &[(0, 0), (0, 1)];
    let (slow, losses, reads) = (1, 1, u8::from(IS_DEEP));
    holds(Scope { settled: 1, calls, slow, holds: 1, losses, reads, ..CALM });
}

#[test]
fn three_nodes_and_two_changes_with_one_holder_of_the_lock_stopped() {
    let calls = &[(0, 0), (1, 1)];
    holds(Scope { leases: &[1, 1, 1], settled: 3, calls, holds: 1, crashes: 1, ..CALM });
}

#[test]
fn two_changes_of_which_one_is_repeated_on_another_node() {
    let leases: &[i64] = if IS_DEEP { &[1, 1, 1] } else { &[1, 1] };
    let calls = &[(0, 0), (1, 1), (0, 1)];
    holds(Scope { leases, settled: leases.len(), calls, holds: 1, ..CALM });
}

#[test]
fn three_nodes_and_a_change_that_is_repeated_on_another() {
    let (slow, losses) = (1, u8::from(IS_DEEP));
    let calls = &[(0, 0), (0, 1)];
    holds(Scope { leases: &[1, 1, 1], settled: 3, calls, slow, losses, ..CALM });
}

#[test]
fn nodes_with_leases_of_different_lengths() {
    let calls = &[(0, 0), (1, 0)];
    holds(Scope { leases: &[1, 2], calls, slow: 1, ..CALM });
}

#[test]
fn a_primary_that_lost_lease_rows_costs_no_promise() {
    let calls = &[(0, 0), (0, 1)];
    let slow = u8::from(IS_DEEP);
    holds(Scope { calls, settled: 1, slow, failovers: 1, ..CALM });
}

#[test]
fn a_sole_server_and_a_command_beside_it() {
    let calls: &[(usize, usize)] = if IS_DEEP { &[(0, 1), (1, 0)] } else { &[(0, 1)] };
    holds(Scope { is_sole: true, calls, slow: 1, reads: 1, losses: 1, ..CALM });
}

#[test]
fn a_deadline_counted_from_the_reply_is_caught() {
    is_caught(Mistake::DeadlineFromReply, Scope { slow: 1, ..CALM });
}

#[test]
fn a_head_read_outside_the_lock_is_caught() {
    is_caught(Mistake::HeadOutsideLock, Scope { settled: 1, slow: 1, ..CALM });
}

#[test]
fn a_head_read_in_the_statement_that_waits_for_the_lock_is_caught() {
    is_caught(Mistake::HeadReadWithTheLock, Scope { calls: &[(0, 0), (1, 1)], ..CALM });
}

#[test]
fn a_wait_set_read_before_the_commit_is_caught() {
    is_caught(Mistake::WaitSetBeforeCommit, Scope { settled: 1, ..CALM });
}

#[test]
fn an_acknowledgement_before_applying_is_caught() {
    is_caught(Mistake::AcknowledgedBeforeApplied, CALM);
}

#[test]
fn waiting_for_less_than_a_lease_is_caught() {
    is_caught(Mistake::ShortWait, Scope { leases: &[2, 2], ..CALM });
}

#[test]
fn a_clock_that_stops_while_its_node_does_is_caught() {
    is_caught(Mistake::StoppedClock, Scope { pauses: 1, ..CALM });
}

#[test]
fn a_failover_that_loses_lease_rows_without_quarantine_is_caught() {
    is_caught(Mistake::NoQuarantine, Scope { failovers: 1, ..CALM });
}

#[test]
fn a_retry_that_does_not_wait_is_caught() {
    is_caught(Mistake::RetryNotWaiting, Scope { calls: &[(0, 0), (0, 0)], ..CALM });
}

#[test]
fn a_node_that_does_not_notice_that_its_row_is_gone_is_caught() {
    is_caught(Mistake::MissingRowIgnored, Scope { calls: &[(0, 0), (1, 0)], ..CALM });
}

#[test]
fn a_telling_that_is_carried_out_late_and_counts_is_caught() {
    let calls = &[(0, 0), (1, 0)];
    is_caught(Mistake::LateTellCounts, Scope { calls, slow: 1, losses: 1, ..CALM });
}
