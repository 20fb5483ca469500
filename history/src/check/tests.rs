//! Histories made by hand: each rule broken once and found, and what only looks like it let pass.

use super::*;
use crate::event::{Count, Odd};

const LEASE_US: u64 = 5_000_000;
const COMMIT_US: u64 = 3_000_000;
const SLACK_US: u64 = 2_000_000;
/// The time for the commit, L × 1.01 and the slack.
const BOUND_US: u64 = 10_050_000;

fn run() -> Event {
    let (lease_us, commit_us, slack_us) = (LEASE_US, COMMIT_US, SLACK_US);
    Event::Run(Run { seed: 1, seconds: 1, nodes: 3, lease_us, commit_us, slack_us })
}

fn change(kind: Kind, call_us: u64, return_us: u64) -> Change {
    Change {
        kind,
        node: 0,
        user: 0,
        key: Some(0),
        secret: 0,
        attempt: 0,
        idempotent: false,
        waited_us: BOUND_US + 1,
        call_us,
        return_us: Some(return_us),
        status: 200,
        code: String::new(),
        seq: None,
    }
}

fn lost(kind: Kind, call_us: u64) -> Change {
    Change { return_us: None, status: 0, waited_us: 100, ..change(kind, call_us, 0) }
}

fn verify(answer: Answer, call_us: u64, return_us: u64) -> Verify {
    let return_us = Some(return_us);
    Verify { node: 1, key: 0, secret: 0, call_us, return_us, answer, count: None }
}

fn count(verification_count: u64) -> Event {
    Event::Count(Count { key: 0, verification_count })
}

/// The rules that a history breaks; key 0 of user 0 is created at its beginning, and its final
/// count is right unless the history says one.
fn broken(changes: &[Change], verifies: &[Verify], others: &[Event]) -> Vec<Rule> {
    let mut events = vec![run(), Event::Change(change(Kind::Create, 0, 1))];
    events.extend(changes.iter().cloned().map(Event::Change));
    events.extend(verifies.iter().cloned().map(Event::Verify));
    if !others.iter().any(|event| matches!(event, Event::Count(_))) {
        let valid = verifies.iter().filter(|verify| verify.answer == Answer::Valid).count();
        events.push(count(u64::try_from(valid).expect("few")));
    }
    events.extend(others.iter().cloned());
    check(&events).into_iter().map(|violation| violation.rule).collect()
}

#[test]
fn a_yes_after_an_acknowledged_revocation_is_found_on_any_node() {
    let revoked = change(Kind::Revoke, 10, 20);
    assert_eq!(
        broken(std::slice::from_ref(&revoked), &[verify(Answer::Valid, 20, 25)], &[]),
        [Rule::Stale]
    );
    // Called before the acknowledgement: concurrent.
    assert_eq!(broken(&[revoked], &[verify(Answer::Valid, 19, 90)], &[]), []);
}

#[test]
fn a_violation_names_the_lines_that_show_it() {
    let events = [
        run(),
        Event::Change(change(Kind::Create, 0, 1)),
        Event::Change(change(Kind::Revoke, 10, 20)),
        Event::Verify(verify(Answer::Valid, 30, 31)),
        count(1),
    ];
    let found = check(&events);
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].lines, [4, 3]);
}

#[test]
fn a_revocation_that_was_not_acknowledged_promises_nothing() {
    let unconfirmed = Change { status: 503, ..change(Kind::Suspend, 10, 20) };
    let fault = Event::Fault(Fault {
        fault: "cut".to_owned(),
        node: Some(0),
        begin_us: 0,
        end_us: 30,
        happened: true,
    });
    let yes = [verify(Answer::Valid, 30, 31)];
    assert_eq!(broken(&[lost(Kind::Revoke, 10)], &yes, &[]), []);
    assert_eq!(broken(&[unconfirmed], &yes, &[fault]), []);
}

#[test]
fn a_repeat_that_is_told_so_is_an_acknowledgement() {
    let mut repeat = change(Kind::Rotate, 30, 40);
    (repeat.status, repeat.code) = (409, "IDEMPOTENT_REPLAY".to_owned());
    let changes = [lost(Kind::Rotate, 10), repeat];
    assert_eq!(broken(&changes, &[verify(Answer::Valid, 41, 42)], &[]), [Rule::Stale]);
    assert_eq!(broken(&changes, &[verify(Answer::Valid, 39, 42)], &[]), []);
}

#[test]
fn a_rotation_ends_the_secrets_before_it_and_not_its_own() {
    let rotated = change(Kind::Rotate, 10, 20);
    let new = Verify { secret: 1, ..verify(Answer::Valid, 30, 31) };
    assert_eq!(broken(std::slice::from_ref(&rotated), std::slice::from_ref(&new), &[]), []);
    let old = verify(Answer::Valid, 30, 31);
    assert_eq!(broken(std::slice::from_ref(&rotated), &[old], &[]), [Rule::Stale]);
    // The new one refused as rotated, with nobody having rotated it.
    let refused = Verify { answer: Answer::Rotated, ..new };
    assert_eq!(
        broken(std::slice::from_ref(&rotated), std::slice::from_ref(&refused), &[]),
        [Rule::Cause]
    );
    // An earlier attempt without an answer may come after the one that succeeded.
    assert_eq!(broken(&[lost(Kind::Rotate, 5), rotated], &[refused], &[]), []);
}

#[test]
fn what_happens_to_a_user_happens_to_the_users_keys() {
    for kind in [Kind::Suspend, Kind::DeleteUser] {
        let done = Change { key: None, ..change(kind, 10, 20) };
        assert_eq!(broken(&[done], &[verify(Answer::Valid, 20, 21)], &[]), [Rule::Stale]);
        let another = Change { key: None, user: 7, ..change(kind, 10, 20) };
        assert_eq!(broken(&[another], &[verify(Answer::Valid, 20, 21)], &[]), []);
    }
}

#[test]
fn a_key_that_may_have_been_enabled_again_may_be_valid() {
    let disabled = change(Kind::Disable, 10, 20);
    let yes = [verify(Answer::Valid, 30, 40)];
    for enabled in [
        // In order, still on its way, unanswered, and at the same time as the other.
        change(Kind::Enable, 21, 22),
        change(Kind::Enable, 39, 50),
        lost(Kind::Enable, 5),
        change(Kind::Enable, 5, 15),
    ] {
        assert_eq!(broken(&[disabled.clone(), enabled.clone()], &yes, &[]), [], "{enabled:?}");
    }
    for enabled in [change(Kind::Enable, 40, 50), change(Kind::Enable, 2, 9)] {
        let found = broken(&[disabled.clone(), enabled.clone()], &yes, &[]);
        assert_eq!(found, [Rule::Stale], "{enabled:?}");
    }
    // Disabled again: the enabling in between explains nothing after it.
    let again = [disabled, change(Kind::Enable, 21, 22), change(Kind::Disable, 23, 25)];
    assert_eq!(broken(&again, &yes, &[]), [Rule::Stale]);
    assert_eq!(broken(&again, &[verify(Answer::Valid, 24, 40)], &[]), []);
}

#[test]
fn a_narrowing_change_that_takes_longer_than_promised_is_found() {
    let slow = change(Kind::Revoke, 10, 11 + BOUND_US);
    assert_eq!(broken(std::slice::from_ref(&slow), &[], &[]), [Rule::Late]);
    assert_eq!(broken(&[change(Kind::Revoke, 10, 10 + BOUND_US)], &[], &[]), []);
    // What gives something may take longer.
    assert_eq!(broken(&[Change { kind: Kind::Enable, ..slow.clone() }], &[], &[]), []);
    let unanswered = Change { return_us: None, status: 0, ..slow.clone() };
    assert_eq!(broken(std::slice::from_ref(&unanswered), &[], &[]), [Rule::Late]);
    let impatient = Change { waited_us: BOUND_US, ..unanswered };
    assert_eq!(broken(&[impatient], &[], &[]), []);
    let refused = Change { status: 503, ..change(Kind::Revoke, 10, 20) };
    assert_eq!(broken(&[refused], &[], &[]), [Rule::Late]);
}

#[test]
fn after_a_commit_only_the_lease_is_waited_for() {
    let numbered = |change: Change, seq| Change { seq: Some(seq), ..change };
    // Another change with a larger number was answered at 100: this one was committed by then.
    let other = numbered(change(Kind::Enable, 10, 100), 6);
    let after_us = LEASE_US + LEASE_US / 100 + SLACK_US;
    let in_time = numbered(change(Kind::Revoke, 10, 100 + after_us), 5);
    let slow = numbered(change(Kind::Revoke, 10, 101 + after_us), 5);
    assert_eq!(broken(&[in_time, other.clone()], &[], &[]), []);
    assert_eq!(broken(&[slow.clone(), other.clone()], &[], &[]), [Rule::Late]);
    // A repeat has waited for its turn since; an earlier change says nothing of this one's commit.
    assert_eq!(broken(&[Change { attempt: 1, ..slow.clone() }, other], &[], &[]), []);
    assert_eq!(broken(&[slow, numbered(change(Kind::Enable, 10, 100), 4)], &[], &[]), []);
}

#[test]
fn only_a_fault_of_the_node_that_was_asked_or_of_the_database_excuses_a_late_answer() {
    let slow = change(Kind::Revoke, 20_000_000, 20_000_001 + BOUND_US);
    let fault = |node, begin_us, end_us| {
        Event::Fault(Fault { fault: "stop".to_owned(), node, begin_us, end_us, happened: true })
    };
    for (fault, expected) in [
        (fault(Some(0), 19_000_000, 21_000_000), vec![]),
        (fault(None, 19_000_000, 21_000_000), vec![]),
        (fault(Some(0), 1, 20_000_000 - RECOVERY_US), vec![]),
        (fault(Some(0), 1, 19_999_999 - RECOVERY_US), vec![Rule::Late]),
        (fault(Some(1), 19_000_000, 30_000_000), vec![Rule::Late]),
    ] {
        assert_eq!(
            broken(std::slice::from_ref(&slow), &[], std::slice::from_ref(&fault)),
            expected
        );
    }
    let nothing = Event::Fault(Fault {
        fault: "a trap".to_owned(),
        node: Some(0),
        begin_us: 19_000_000,
        end_us: 21_000_000,
        happened: false,
    });
    assert_eq!(broken(&[slow], &[], &[nothing]), [Rule::Late]);
}

#[test]
fn counts_are_the_answers_received_and_at_most_the_unanswered_more() {
    let yes = [verify(Answer::Valid, 10, 11), verify(Answer::Valid, 12, 13)];
    let mut with_lost = yes.to_vec();
    with_lost.push(Verify { return_us: None, ..verify(Answer::Lost, 14, 0) });
    assert_eq!(broken(&[], &yes, &[count(1)]), [Rule::Count]);
    assert_eq!(broken(&[], &yes, &[count(3)]), [Rule::Count]);
    assert_eq!(broken(&[], &with_lost, &[count(2)]), []);
    assert_eq!(broken(&[], &with_lost, &[count(3)]), []);
    assert_eq!(broken(&[], &with_lost, &[count(4)]), [Rule::Count]);
    let unasked = Event::Change(Change { key: Some(1), ..change(Kind::Create, 0, 1) });
    assert_eq!(broken(&[], &[], &[unasked]), [Rule::Incomplete]);
}

#[test]
fn one_nodes_count_of_a_key_never_goes_back() {
    let counted = |call_us, return_us, count| Verify {
        count: Some(count),
        ..verify(Answer::Valid, call_us, return_us)
    };
    assert_eq!(broken(&[], &[counted(10, 11, 5), counted(12, 13, 6)], &[]), []);
    assert_eq!(broken(&[], &[counted(10, 20, 6), counted(12, 13, 5)], &[]), []);
    for count in [4, 5] {
        let found = broken(&[], &[counted(10, 11, 5), counted(12, 13, count)], &[]);
        assert_eq!(found, [Rule::CountWentBack]);
    }
    let elsewhere = Verify { node: 2, ..counted(12, 13, 1) };
    assert_eq!(broken(&[], &[counted(10, 11, 5), elsewhere], &[]), []);
}

#[test]
fn a_refusal_needs_a_cause() {
    for (answer, kind) in [
        (Answer::Revoked, Kind::Revoke),
        (Answer::Revoked, Kind::DeleteUser),
        (Answer::Inactive, Kind::Disable),
        (Answer::Rotated, Kind::Rotate),
        (Answer::OwnerSuspended, Kind::Suspend),
    ] {
        let no = [verify(answer, 30, 40)];
        assert_eq!(broken(&[], &no, &[]), [Rule::Cause]);
        assert_eq!(broken(&[change(kind, 40, 41)], &no, &[]), [Rule::Cause]);
        // Also one that nobody answered, or that is on its way.
        assert_eq!(broken(&[lost(kind, 10)], &no, &[]), []);
        assert_eq!(broken(&[change(kind, 39, 50)], &no, &[]), []);
    }
}

#[test]
fn what_was_given_is_known_everywhere_after_a_lease() {
    let longest_us = LEASE_US + LEASE_US / 100;
    let unknown = |call_us| [verify(Answer::Invalid, call_us, call_us + 1)];
    assert_eq!(broken(&[], &unknown(1 + longest_us), &[]), []);
    assert_eq!(broken(&[], &unknown(2 + longest_us), &[]), [Rule::Cause]);
    let changes = [change(Kind::Disable, 10, 20), change(Kind::Enable, 30, 40)];
    let refused = |call_us| [verify(Answer::Inactive, call_us, call_us + 1)];
    assert_eq!(broken(&changes, &refused(40 + longest_us), &[]), []);
    assert_eq!(broken(&changes, &refused(41 + longest_us), &[]), [Rule::Cause]);
}

#[test]
fn changes_are_numbered_in_the_order_of_their_calls_and_returns() {
    let numbered = |call_us, return_us, seq| Change {
        seq: Some(seq),
        ..change(Kind::Rotate, call_us, return_us)
    };
    assert_eq!(broken(&[numbered(10, 20, 5), numbered(20, 30, 6)], &[], &[]), []);
    assert_eq!(broken(&[numbered(10, 20, 6), numbered(19, 30, 5)], &[], &[]), []);
    for seq in [4, 5] {
        let found = broken(&[numbered(10, 20, 5), numbered(20, 30, seq)], &[], &[]);
        assert_eq!(found, [Rule::Order]);
    }
}

#[test]
fn what_the_run_found_odd_is_a_violation() {
    let odd = Event::Odd(Odd { node: Some(1), at_us: 5, what: "status 500".to_owned() });
    assert_eq!(broken(&[], &[], &[odd]), [Rule::Odd]);
}

#[test]
fn a_history_without_its_first_line_is_refused() {
    assert_eq!(check(&[]).first().map(|violation| violation.rule), Some(Rule::Incomplete));
}
