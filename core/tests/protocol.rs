//! What the lease protocol does in cases that neither the model nor the simulation tells apart:
//! by name, and with the server's own times.

use keyward_core::protocol::{
    Answer, Commit, Head, Incarnation, LeaseRow, Moment, Node, NodeId, Nonce, Page, Settle,
    Snapshot, Standing, Step, Terms, Told, Waiter,
};

const SECOND: i64 = 1_000_000;
const LIFE: Incarnation = Incarnation([1; 32]);
const TERMS: Terms = Terms {
    lease_us: 15 * SECOND,
    tell_every_us: 5 * SECOND,
    tell_own_us: 200_000,
    poll_every_us: 40_000,
    is_sole: false,
};

fn at(us: i64) -> Moment {
    Moment { boot_us: us, wall_us: 1_000 * SECOND + us }
}

fn head(seq: i64) -> Head {
    Head { seq, nonce: Some(Nonce([1; 16])), incarnation: LIFE }
}

/// Tells others at `us`, which takes no time.
fn tell(node: &mut Node, us: i64, seq: i64) {
    let tell = node.tell(at(us)).expect("it was loaded");
    let told = Told { generation: tell.generation, head: head(seq), is_written: true };
    node.told(at(us), &told);
}

/// A node that loaded change 1 and holds a lease from `us` on.
fn node(us: i64) -> Node {
    let mut node = Node::new(NodeId([1; 16]), TERMS);
    assert_eq!(node.next(at(us)), Step::Load);
    node.loaded(at(us), &Snapshot { head: head(1), quarantine_left_us: 0 });
    assert!(!node.deadline().is_held(at(us)));
    assert_eq!(node.next(at(us)), Step::Tell);
    tell(&mut node, us, 1);
    node
}

fn waiter(settle: Settle, quarantine_until_us: i64) -> Waiter {
    let standing = Standing { incarnation: LIFE, quarantine_until_us, longest_us: TERMS.lease_us };
    Waiter::begin(settle, Commit { seq: 2, incarnation: LIFE, at_us: 0 }, &standing)
}

fn row(acked_seq: i64) -> LeaseRow {
    LeaseRow { node: NodeId([2; 16]), generation: 1, acked_seq, lease_us: 15 * SECOND }
}

#[test]
fn a_lease_lasts_from_the_question_for_its_length_and_no_longer() {
    let node = node(SECOND);
    assert!(node.deadline().is_held(at(16 * SECOND - 1)));
    assert!(!node.deadline().is_held(at(16 * SECOND)));
}

#[test]
fn a_wall_clock_set_forward_ends_a_lease_and_the_node_tells_again() {
    let mut node = node(0);
    let later = Moment { boot_us: SECOND, wall_us: 9_000 * SECOND };
    assert!(!node.deadline().is_held(later));
    assert_eq!(node.next(later), Step::Tell);
    let tell = node.tell(later).expect("it was loaded");
    let told = Told { generation: tell.generation, head: head(1), is_written: true };
    node.told(later, &told);
    assert!(node.deadline().is_held(later));
}

#[test]
fn changes_of_others_are_told_at_once_and_own_ones_soon() {
    for (is_waited_for, expected) in [(true, true), (false, false)] {
        let mut node = node(0);
        node.polled(at(50_000), at(50_000), &Head { seq: 2, ..head(2) });
        assert_eq!(node.next(at(50_000)), Step::Fetch { after: 1 });
        assert!(node.follows([2]));
        node.applied(&Page { seq: 2, nonce: Nonce([1; 16]), is_waited_for });
        assert_eq!(node.next(at(50_000)) == Step::Tell, expected);
        assert_eq!(node.next(at(200_000)), Step::Tell);
    }
}

#[test]
fn a_page_with_a_gap_is_not_applied_and_everything_is_loaded_anew() {
    let mut node = node(0);
    assert!(!node.follows([2, 4]));
    assert!(!node.deadline().is_held(at(0)));
    assert_eq!(node.next(at(0)), Step::Load);
}

#[test]
fn a_failed_load_is_tried_again_and_not_at_once() {
    let mut node = Node::new(NodeId([1; 16]), TERMS);
    node.failed(at(0));
    assert_eq!(node.next(at(0)), Step::Wait { until_boot_us: 40_000 });
    assert_eq!(node.next(at(40_000)), Step::Load);
}

#[test]
fn a_widening_change_waits_for_a_quarter_of_a_second_at_most_and_reaps_nobody() {
    let mut waiter = waiter(Settle::Widening, i64::MIN);
    assert_eq!(waiter.hear(249_999, LIFE, None, &[row(1)]), Answer::AskAgain);
    assert_eq!(waiter.hear(250_000, LIFE, None, &[row(1)]), Answer::LeftBehind);
    assert_eq!(waiter.hear(1, LIFE, None, &[row(2)]), Answer::Done);
}

#[test]
fn a_narrowing_change_waits_for_the_longest_lease_and_one_percent() {
    let mut waiter = waiter(Settle::Narrowing, i64::MIN);
    let longer = LeaseRow { node: NodeId([3; 16]), lease_us: 60 * SECOND, ..row(1) };
    assert_eq!(waiter.hear(0, LIFE, None, &[row(1), longer]), Answer::AskAgain);
    // The longer one has it now; that it was found behind is not forgotten.
    assert_eq!(waiter.hear(60_599_999, LIFE, None, &[row(1)]), Answer::AskAgain);
    assert_eq!(waiter.hear(60_600_000, LIFE, None, &[row(1)]), Answer::WaitedOut);
}

#[test]
fn in_quarantine_acknowledgements_alone_prove_nothing() {
    let mut waiter = waiter(Settle::Narrowing, 3 * SECOND);
    assert_eq!(waiter.hear(0, LIFE, None, &[row(2)]), Answer::AskAgain);
    assert_eq!(waiter.hear(3 * SECOND, LIFE, None, &[row(2)]), Answer::Done);
}

#[test]
fn a_change_committed_to_another_life_of_the_database_is_never_reported_as_done() {
    let mut waiter = waiter(Settle::Narrowing, i64::MIN);
    let other = Incarnation([2; 32]);
    assert_eq!(waiter.hear(100 * SECOND, other, None, &[row(2)]), Answer::Unconfirmed);
}

#[test]
fn nothing_is_known_of_a_change_whose_rows_were_never_read() {
    let mut waiter = waiter(Settle::Narrowing, i64::MIN);
    assert_eq!(waiter.unheard(100 * SECOND), Answer::AskAgain);
    assert_eq!(waiter.hear(0, LIFE, None, &[row(1)]), Answer::AskAgain);
    assert_eq!(waiter.unheard(16 * SECOND), Answer::Done);
}
