//! The checker: what must hold of a recorded history. Pure; it reads lines and knows no servers.
//!
//! It never raises a false alarm: where an operation was not answered, every order that is still
//! possible is allowed. Each right to be valid is a *gate* that changes close and some changes
//! open again (a key is disabled and enabled, a user suspended and restored); a key is good while
//! all its gates are open, so that a valid answer is wrong when a single gate was certainly closed.
//!
//! - **P2.** A verification that was called after an acknowledged closing returned must not answer
//!   valid, unless an opening was called before the answer came and may have come after that
//!   closing: it did not return before the closing was called.
//! - **P3.** A closing is answered, with success, within the time for its commit, L × 1.01 and the
//!   slack together; and a first attempt within L × 1.01 and the slack after the moment at which it
//!   was certainly committed, because that change or one with a larger `seq` had been answered.
//!   Left out are attempts that overlap a restart of the database, or a fault of the very node that
//!   was asked, from its begin to [`RECOVERY_US`] after its end; faults of other nodes excuse
//!   nothing. An attempt that was given up earlier, or whose connection broke, says nothing.
//! - **Counts.** A key's final count is at least the valid answers received, and at most these plus
//!   the verifications of it that were not answered. One node's counts of a key grow.
//! - **Cause.** A refusal has a change that may have caused it. Beyond L × 1.01 after a change that
//!   gives something was acknowledged, no node refuses for want of it.
//! - **Order.** A change that was called after another returned has the larger `seq`.
//! - Everything else that is odd was noted by the run: a 5xx that is not 503, a status that does
//!   not belong there, a node that ended by itself.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use crate::event::{Answer, Change, Event, Fault, Kind, Outcome, Run, Verify};

/// How long after a fault's end a node or a database is not held to P3 yet: connections are made
/// anew, and what piled up is carried out.
pub(crate) const RECOVERY_US: u64 = 3_000_000;

/// What was broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Rule {
    /// A valid answer after an acknowledged narrowing change.
    Stale,
    /// A narrowing change that took too long or was refused on a healthy node.
    Late,
    /// A final count that is not the answers.
    Count,
    /// A count that went back.
    CountWentBack,
    /// A refusal that nothing explains.
    Cause,
    /// Changes in an impossible order.
    Order,
    /// Noted by the run itself.
    Odd,
    /// A history that is not whole.
    Incomplete,
}

/// Something that must not be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Violation {
    pub(crate) rule: Rule,
    /// The lines of the history that show it, counted from 1.
    pub(crate) lines: Vec<usize>,
    pub(crate) what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<String> = self.lines.iter().map(usize::to_string).collect();
        let lines = lines.join(", ");
        write!(f, "{:?}: {} (lines {lines})", self.rule, self.what)
    }
}

/// One line with its number.
type Line<'a, T> = (usize, &'a T);

/// The lines by kind.
#[derive(Default)]
struct Lines<'a> {
    run: Option<&'a Run>,
    verifies: Vec<Line<'a, Verify>>,
    changes: Vec<Line<'a, Change>>,
    faults: Vec<Line<'a, Fault>>,
    /// Final counts by key.
    counts: HashMap<usize, (usize, u64)>,
    violations: Vec<Violation>,
}

/// What can be shut and sometimes opened again. The number is a key or a user.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Gate {
    KeyNotRevoked(usize),
    KeyEnabled(usize),
    SecretNotRotated(usize),
    UserNotDeleted(usize),
    UserNotSuspended(usize),
}

/// What happened to one gate.
#[derive(Default)]
struct Moves<'a> {
    closings: Vec<Line<'a, Change>>,
    openings: Vec<Line<'a, Change>>,
}

/// Checks a whole history.
pub(crate) fn check(events: &[Event]) -> Vec<Violation> {
    let mut lines = Lines::of(events);
    let Some(run) = lines.run else {
        let what = "the first line, which says what was run, is missing".to_owned();
        return vec![Violation { rule: Rule::Incomplete, lines: vec![1], what }];
    };
    let mut violations = std::mem::take(&mut lines.violations);
    let gates = Gates::of(&lines);
    violations.extend(once_each(lines.verifies.iter().filter_map(|line| gates.judge(run, *line))));
    let commits = Commits::of(&lines.changes);
    let late = |line: &Line<'_, Change>| late(run, &lines.faults, &commits, *line);
    violations.extend(lines.changes.iter().filter_map(late));
    violations.extend(order(&lines.changes));
    violations.extend(counts(&lines));
    violations.extend(counts_went_back(&lines.verifies));
    violations.sort_by_key(|violation| (violation.rule, violation.lines.clone()));
    violations
}

/// The first violation of each kind that the same change shows, with the number of the others: a
/// change that was acknowledged too early shows in hundreds of answers.
fn once_each(found: impl Iterator<Item = Violation>) -> Vec<Violation> {
    let mut first: BTreeMap<(Rule, usize), (Violation, usize)> = BTreeMap::new();
    for violation in found {
        let shown_by = violation.lines.last().copied().unwrap_or(0);
        let entry = first.entry((violation.rule, shown_by));
        entry.and_modify(|(_, others)| *others += 1).or_insert((violation, 0));
    }
    let with_others = |(mut violation, others): (Violation, usize)| {
        if others > 0 {
            violation.what.push_str(&format!("; {others} more answers of this kind"));
        }
        violation
    };
    first.into_values().map(with_others).collect()
}

impl<'a> Lines<'a> {
    fn of(events: &'a [Event]) -> Self {
        let mut lines = Self::default();
        for (at, event) in events.iter().enumerate() {
            let at = at + 1;
            match event {
                Event::Run(run) => lines.run = Some(run),
                Event::Verify(verify) => lines.verifies.push((at, verify)),
                Event::Change(change) => lines.changes.push((at, change)),
                Event::Fault(fault) => lines.faults.push((at, fault)),
                Event::Count(count) => {
                    lines.counts.insert(count.key, (at, count.verification_count));
                }
                Event::Odd(odd) => lines.violations.push(Violation {
                    rule: Rule::Odd,
                    lines: vec![at],
                    what: match odd.node {
                        Some(node) => format!("node {node}: {}", odd.what),
                        None => odd.what.clone(),
                    },
                }),
            }
        }
        lines
    }
}

/// Every gate with its moves, and whose key is whose.
struct Gates<'a> {
    moves: HashMap<Gate, Moves<'a>>,
    owner: HashMap<usize, usize>,
    /// The acknowledged change that gave each key each of its secrets.
    givers: HashMap<(usize, usize), Line<'a, Change>>,
}

impl<'a> Gates<'a> {
    fn of(lines: &Lines<'a>) -> Self {
        let mut gates =
            Self { moves: HashMap::new(), owner: HashMap::new(), givers: HashMap::new() };
        for &(at, change) in &lines.changes {
            if change.outcome() == Outcome::Refused {
                continue;
            }
            let (user, key) = (change.user, change.key.unwrap_or(usize::MAX));
            if change.key.is_some() {
                gates.owner.insert(key, user);
            }
            let replied = matches!(change.status, 200..300);
            let (gate, closes) = match change.kind {
                Kind::Create => {
                    if replied {
                        gates.givers.insert((key, 0), (at, change));
                    }
                    continue;
                }
                Kind::Rotate => {
                    if replied {
                        gates.givers.insert((key, change.secret + 1), (at, change));
                    }
                    (Gate::SecretNotRotated(key), true)
                }
                Kind::Revoke => (Gate::KeyNotRevoked(key), true),
                Kind::Disable => (Gate::KeyEnabled(key), true),
                Kind::Enable => (Gate::KeyEnabled(key), false),
                Kind::Suspend => (Gate::UserNotSuspended(user), true),
                Kind::Restore => (Gate::UserNotSuspended(user), false),
                Kind::DeleteUser => (Gate::UserNotDeleted(user), true),
            };
            let moves = gates.moves.entry(gate).or_default();
            if closes { &mut moves.closings } else { &mut moves.openings }.push((at, change));
        }
        gates
    }

    /// What is wrong with one answer.
    fn judge(&self, run: &Run, (at, verify): Line<'a, Verify>) -> Option<Violation> {
        let returned_us = verify.return_us.unwrap_or(u64::MAX);
        let user = self.owner.get(&verify.key).copied().unwrap_or(usize::MAX);
        let gates = [
            Gate::KeyNotRevoked(verify.key),
            Gate::KeyEnabled(verify.key),
            Gate::SecretNotRotated(verify.key),
            Gate::UserNotDeleted(user),
            Gate::UserNotSuspended(user),
        ];
        let blamed: &[Gate] = match verify.answer {
            Answer::Valid => {
                return gates.into_iter().find_map(|gate| self.stale(gate, (at, verify)));
            }
            Answer::Unavailable | Answer::Lost | Answer::Odd => return None,
            Answer::Invalid => return self.unknown(run, (at, verify)),
            Answer::Revoked => &[gates[0], gates[3]],
            Answer::Inactive => &[gates[1]],
            Answer::Rotated => &[gates[2]],
            Answer::OwnerSuspended => &[gates[4]],
        };
        let explained = blamed.iter().any(|gate| {
            let Some(moves) = self.moves.get(gate) else { return false };
            moves.closings.iter().any(|(_, closing)| {
                closing.call_us < returned_us
                    && self.may_concern(closing, verify)
                    && !undone(run, moves, closing, verify)
            })
        });
        let what = format!(
            "node {} refused key {} secret {} as {:?}, and no change explains it",
            verify.node, verify.key, verify.secret, verify.answer
        );
        (!explained).then(|| Violation { rule: Rule::Cause, lines: vec![at], what })
    }

    /// A valid answer although `gate` was certainly closed.
    fn stale(&self, gate: Gate, (at, verify): Line<'a, Verify>) -> Option<Violation> {
        let moves = self.moves.get(&gate)?;
        let returned_us = verify.return_us?;
        let (line, closing) = moves.closings.iter().find(|(_, closing)| {
            closing.outcome() == Outcome::Acknowledged
                && closing.settled_us() <= verify.call_us
                && (closing.kind != Kind::Rotate || verify.secret <= closing.secret)
                && !moves.openings.iter().any(|(_, opening)| {
                    opening.call_us < returned_us && opening.settled_us() >= closing.call_us
                })
        })?;
        let what = format!(
            "at {:.3} s node {} said yes to key {} secret {}, asked {} µs after its {} was \
             acknowledged by node {}",
            verify.call_us as f64 / 1_000_000.0,
            verify.node,
            verify.key,
            verify.secret,
            verify.call_us - closing.settled_us(),
            closing.kind,
            closing.node,
        );
        Some(Violation { rule: Rule::Stale, lines: vec![at, *line], what })
    }

    /// A secret that a node does not know although it was given out more than a lease ago.
    fn unknown(&self, run: &Run, (at, verify): Line<'a, Verify>) -> Option<Violation> {
        let (line, giver) = self.givers.get(&(verify.key, verify.secret))?;
        let late_us = verify.call_us.checked_sub(giver.settled_us())?;
        let what = format!(
            "node {} did not know key {} secret {}, {late_us} µs after its {} was acknowledged",
            verify.node, verify.key, verify.secret, giver.kind
        );
        (late_us > run.longest_wait_us()).then(|| Violation {
            rule: Rule::Cause,
            lines: vec![at, *line],
            what,
        })
    }

    /// Whether `closing` may have taken away what `verify` asked about. A rotation that was
    /// certainly over when another gave the secret cannot have ended it; the same with the one that
    /// gave it.
    fn may_concern(&self, closing: &Change, verify: &Verify) -> bool {
        if closing.kind != Kind::Rotate {
            return true;
        }
        match self.givers.get(&(verify.key, verify.secret)) {
            Some((_, giver)) => {
                !std::ptr::eq(*giver, closing) && closing.settled_us() > giver.call_us
            }
            None => true,
        }
    }
}

/// Whether an acknowledged opening certainly came after `closing` and more than a lease before
/// `verify`.
fn undone(run: &Run, moves: &Moves<'_>, closing: &Change, verify: &Verify) -> bool {
    moves.openings.iter().any(|(_, opening)| {
        opening.outcome() == Outcome::Acknowledged
            && closing.settled_us() < opening.call_us
            && opening.settled_us().saturating_add(run.longest_wait_us()) < verify.call_us
    })
}

/// Whether P3 is promised for an attempt at `node` from `begin_us` to `end_us`.
pub(crate) fn is_promised<'a>(
    faults: impl IntoIterator<Item = &'a Fault>,
    node: usize,
    begin_us: u64,
    end_us: u64,
) -> bool {
    !faults.into_iter().any(|fault| {
        fault.happened
            && fault.node.is_none_or(|faulty| faulty == node)
            && fault.begin_us <= end_us
            && begin_us <= fault.end_us.saturating_add(RECOVERY_US)
    })
}

/// When each change was certainly committed.
struct Commits(BTreeMap<i64, u64>);

impl Commits {
    fn of(changes: &[Line<'_, Change>]) -> Self {
        let answered = changes.iter().filter_map(|(_, change)| Some((change.seq?, change)));
        let mut known_at: BTreeMap<i64, u64> = BTreeMap::new();
        for (seq, change) in answered {
            let at = known_at.entry(seq).or_insert(u64::MAX);
            *at = change.settled_us().min(*at);
        }
        // Changes are committed in the order of their numbers.
        let mut earliest = u64::MAX;
        for at in known_at.values_mut().rev() {
            earliest = earliest.min(*at);
            *at = earliest;
        }
        Self(known_at)
    }

    /// When `change` was certainly committed, if it is known to be the attempt that did it: a
    /// repeat may have been answered with the number of the attempt before it.
    fn at_us(&self, change: &Change) -> Option<u64> {
        self.0.get(&change.seq?).copied().filter(|_| change.attempt == 0)
    }
}

/// P3 for one attempt.
fn late(
    run: &Run,
    faults: &[Line<'_, Fault>],
    commits: &Commits,
    (at, change): Line<'_, Change>,
) -> Option<Violation> {
    if !change.kind.narrows() {
        return None;
    }
    let end_us = change.return_us.unwrap_or(change.call_us + change.waited_us);
    let took_us = end_us - change.call_us;
    let waited_us = commits.at_us(change).map_or(0, |at| end_us.saturating_sub(at));
    let wrong = match change.outcome() {
        Outcome::Acknowledged => {
            took_us > run.bound_us() || waited_us > run.longest_wait_us() + run.slack_us
        }
        Outcome::Refused => false,
        Outcome::Unknown => change.return_us.is_some() || took_us > run.bound_us(),
    };
    let all = faults.iter().map(|(_, fault)| *fault);
    if !wrong || !is_promised(all, change.node, change.call_us, end_us) {
        return None;
    }
    let answer = match (change.outcome(), change.status) {
        (Outcome::Acknowledged, _) => "was acknowledged".to_owned(),
        (_, 0) => "was not answered".to_owned(),
        (_, status) => format!("was answered {status} {}", change.code),
    };
    let what = format!(
        "at {:.3} s {} {answer} by node {} after {took_us} µs, {waited_us} of them certainly after \
         its commit, though neither that node nor the database was disturbed",
        change.call_us as f64 / 1_000_000.0,
        change.kind,
        change.node,
    );
    Some(Violation { rule: Rule::Late, lines: vec![at], what })
}

/// Sequence numbers against the order of calls and returns. Only changes that cannot have been
/// reached before have a number of their own: keys that were issued and secrets that were replaced.
fn order(changes: &[Line<'_, Change>]) -> Vec<Violation> {
    let mut called: Vec<(usize, &Change, i64)> = changes
        .iter()
        .filter(|(_, change)| matches!(change.kind, Kind::Create | Kind::Rotate))
        .filter_map(|(at, change)| Some((*at, *change, change.seq?)))
        .collect();
    let mut returned = called.clone();
    called.sort_by_key(|(_, change, _)| change.call_us);
    returned.sort_by_key(|(_, change, _)| change.settled_us());
    let mut returned = returned.into_iter().peekable();
    let mut newest: Option<(usize, i64)> = None;
    let mut violations = Vec::new();
    for (at, change, seq) in called {
        while let Some((line, _, before)) =
            returned.next_if(|(_, other, _)| other.settled_us() <= change.call_us)
        {
            if newest.is_none_or(|(_, seq)| before > seq) {
                newest = Some((line, before));
            }
        }
        if let Some((line, before)) = newest.filter(|(_, before)| *before >= seq) {
            let what = format!("change {seq} was called after change {before} had returned");
            violations.push(Violation { rule: Rule::Order, lines: vec![at, line], what });
        }
    }
    violations
}

/// Final counts against the answers.
fn counts(lines: &Lines<'_>) -> Vec<Violation> {
    let mut heard: BTreeMap<usize, (u64, u64)> = BTreeMap::new();
    for (_, change) in &lines.changes {
        if let (Kind::Create, Some(key), 200..300) = (change.kind, change.key, change.status) {
            heard.entry(key).or_default();
        }
    }
    for (_, verify) in &lines.verifies {
        let (valid, lost) = heard.entry(verify.key).or_default();
        match verify.answer {
            Answer::Valid => *valid += 1,
            Answer::Lost => *lost += 1,
            Answer::Revoked
            | Answer::Rotated
            | Answer::Inactive
            | Answer::OwnerSuspended
            | Answer::Invalid
            | Answer::Unavailable
            | Answer::Odd => {}
        }
    }
    let mut violations = Vec::new();
    let mut missing = 0;
    for (key, (valid, lost)) in heard {
        let Some((at, count)) = lines.counts.get(&key) else {
            missing += 1;
            continue;
        };
        if !(valid..=valid + lost).contains(count) {
            let what = format!(
                "key {key} was counted {count} times; {valid} valid answers were received and \
                 {lost} verifications were not answered"
            );
            violations.push(Violation { rule: Rule::Count, lines: vec![*at], what });
        }
    }
    if missing > 0 {
        let what = format!("{missing} keys have no final count");
        violations.push(Violation { rule: Rule::Incomplete, lines: Vec::new(), what });
    }
    violations
}

/// One node's counts of a key: a verification that was called after another returned counts more.
fn counts_went_back(verifies: &[Line<'_, Verify>]) -> Vec<Violation> {
    type Counted = (usize, u64, u64, u64);
    let mut by_cell: BTreeMap<(usize, usize), Vec<Counted>> = BTreeMap::new();
    for (at, verify) in verifies {
        if let (Some(returned_us), Some(count)) = (verify.return_us, verify.count) {
            let cell = by_cell.entry((verify.node, verify.key)).or_default();
            cell.push((*at, verify.call_us, returned_us, count));
        }
    }
    let mut violations = Vec::new();
    for ((node, key), mut called) in by_cell {
        let mut returned = called.clone();
        called.sort_by_key(|(_, call_us, _, _)| *call_us);
        returned.sort_by_key(|(_, _, returned_us, _)| *returned_us);
        let mut returned = returned.into_iter().peekable();
        let mut most = (0, 0);
        for (at, call_us, _, count) in called {
            while let Some((line, _, _, before)) = returned.next_if(|other| other.2 <= call_us) {
                most = most.max((before, line));
            }
            if most.0 >= count {
                let what = format!("node {node} counted key {key} {} times, then {count}", most.0);
                let rule = Rule::CountWentBack;
                violations.push(Violation { rule, lines: vec![at, most.1], what });
                break;
            }
        }
    }
    violations
}

#[cfg(test)]
mod tests;
