//! What a history shows, in figures for people. Nothing here decides whether it is right.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;

use crate::check::is_promised;
use crate::event::{Answer, Event, Fault, Kind, Outcome, Verify};

/// The figures of a history as text.
pub(crate) fn summary(events: &[Event]) -> String {
    let mut out = String::new();
    // OK to ignore: writing into a text cannot fail.
    let _ = verifies(&mut out, events)
        .and_then(|()| unknown(&mut out, events))
        .and_then(|()| changes(&mut out, events))
        .and_then(|()| faults(&mut out, events));
    out
}

fn all_verifies(events: &[Event]) -> impl Iterator<Item = &Verify> {
    events.iter().filter_map(|event| match event {
        Event::Verify(verify) => Some(verify),
        Event::Run(_) | Event::Change(_) | Event::Fault(_) | Event::Count(_) | Event::Odd(_) => {
            None
        }
    })
}

fn all_faults(events: &[Event]) -> Vec<&Fault> {
    let mut faults = Vec::new();
    for event in events {
        if let Event::Fault(fault) = event {
            faults.push(fault);
        }
    }
    faults
}

fn verifies(out: &mut String, events: &[Event]) -> std::fmt::Result {
    let mut answers: BTreeMap<String, usize> = BTreeMap::new();
    let (mut total, mut last_us, mut longest_us) = (0, 0, 0);
    for verify in all_verifies(events) {
        total += 1;
        last_us = last_us.max(verify.call_us);
        *answers.entry(format!("{:?}", verify.answer).to_lowercase()).or_default() += 1;
        if let (Some(at), Answer::Valid) = (verify.return_us, verify.answer) {
            longest_us = longest_us.max(at - verify.call_us);
        }
    }
    let each: Vec<String> = answers.iter().map(|(word, times)| format!("{word} {times}")).collect();
    let rate = total * 1_000_000 / usize::try_from(last_us.max(1)).unwrap_or(usize::MAX);
    writeln!(out, "verifications  {total} ({rate}/s): {}", each.join(", "))?;
    let refused = answers.get("unavailable").copied().unwrap_or(0);
    writeln!(out, "no lease       {refused} verifications refused with 503")?;
    writeln!(out, "longest yes    {} ms", longest_us / 1_000)
}

/// Secrets that a node did not know although their reply had been received. A change that gives
/// something waits for at most 250 ms, so that a node which is behind may not know it yet.
fn unknown(out: &mut String, events: &[Event]) -> std::fmt::Result {
    let faults = all_faults(events);
    let mut given_at: HashMap<(usize, usize), u64> = HashMap::new();
    for event in events {
        if let Event::Change(change) = event
            && let (Some(key), Some(at), 200..300) = (change.key, change.return_us, change.status)
        {
            match change.kind {
                Kind::Create => given_at.insert((key, 0), at),
                Kind::Rotate => given_at.insert((key, change.secret + 1), at),
                Kind::Revoke
                | Kind::Disable
                | Kind::Enable
                | Kind::Suspend
                | Kind::Restore
                | Kind::DeleteUser => None,
            };
        }
    }
    let (mut disturbed, mut undisturbed, mut longest_us) = (0, 0, 0);
    for verify in all_verifies(events).filter(|verify| verify.answer == Answer::Invalid) {
        let (Some(given_us), Some(return_us)) =
            (given_at.get(&(verify.key, verify.secret)), verify.return_us)
        else {
            continue;
        };
        if is_promised(faults.iter().copied(), verify.node, *given_us, return_us) {
            undisturbed += 1;
            longest_us = longest_us.max(return_us.saturating_sub(*given_us));
        } else {
            disturbed += 1;
        }
    }
    writeln!(
        out,
        "not known yet  {disturbed} answers of disturbed nodes, {undisturbed} of others, up to {} \
         ms after the secret was given",
        longest_us / 1_000
    )
}

fn changes(out: &mut String, events: &[Event]) -> std::fmt::Result {
    let faults = all_faults(events);
    let mut kinds: BTreeMap<Kind, (usize, usize, Vec<u64>)> = BTreeMap::new();
    let (mut promised, mut disturbed, mut repeats) = (Vec::new(), Vec::new(), 0);
    for event in events {
        let Event::Change(change) = event else { continue };
        let (acknowledged, unknown, took) = kinds.entry(change.kind).or_default();
        repeats += usize::from(change.attempt > 0);
        let Some(return_us) =
            change.return_us.filter(|_| change.outcome() == Outcome::Acknowledged)
        else {
            *unknown += 1;
            continue;
        };
        *acknowledged += 1;
        took.push(return_us - change.call_us);
        if change.kind.narrows() {
            let is_promised =
                is_promised(faults.iter().copied(), change.node, change.call_us, return_us);
            let times = if is_promised { &mut promised } else { &mut disturbed };
            times.push(return_us - change.call_us);
        }
    }
    for (kind, (acknowledged, unknown, mut took)) in kinds {
        let shown = quantiles(&mut took);
        writeln!(out, "{kind:<14} {acknowledged} acknowledged, {unknown} not; {shown}")?;
    }
    writeln!(out, "repeats        {repeats}")?;
    writeln!(out, "narrowing, node and database undisturbed: {}", quantiles(&mut promised))?;
    writeln!(out, "narrowing, otherwise:                     {}", quantiles(&mut disturbed))
}

/// p50, p99 and the longest of some times in µs, which are sorted.
fn quantiles(times_us: &mut [u64]) -> String {
    times_us.sort_unstable();
    let at = |percent: usize| {
        times_us.get((times_us.len() * percent / 100).min(times_us.len().saturating_sub(1)))
    };
    match (at(50), at(99), times_us.last()) {
        (Some(half), Some(most), Some(longest)) => {
            let [half, most, longest] = [half, most, longest].map(|us| *us as f64 / 1_000.0);
            let times = times_us.len();
            format!("p50 {half:.1} ms, p99 {most:.1} ms, longest {longest:.1} ms of {times}")
        }
        _ => "none".to_owned(),
    }
}

fn faults(out: &mut String, events: &[Event]) -> std::fmt::Result {
    let mut kinds: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for event in events {
        if let Event::Fault(fault) = event {
            let (happened, missed) = kinds.entry(&fault.fault).or_default();
            *if fault.happened { happened } else { missed } += 1;
        }
    }
    let each: Vec<String> = kinds
        .iter()
        .map(|(name, (happened, missed))| match missed {
            0 => format!("{name} {happened}"),
            _ => format!("{name} {happened} (and {missed} that nobody ran into)"),
        })
        .collect();
    writeln!(out, "faults         {}", each.join(", "))
}
