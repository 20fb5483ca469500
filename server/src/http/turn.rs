//! Whose turn it is on a connection: ours, while a request that came whole is being answered, or
//! the other end's.

use std::sync::atomic::{AtomicU32, Ordering};

/// What has happened on one connection. All of it is advice for closing connections; nothing is
/// decided about a request by it, so that no order between the numbers is needed.
#[derive(Debug, Default)]
pub(crate) struct Turn {
    /// Heads and bodies that came whole, answers given, and pieces of them taken; wraps around.
    steps: AtomicU32,
    /// Requests without their answer.
    open: AtomicU32,
    /// Of these, the ones whose body is still to come.
    awaited: AtomicU32,
}

impl Turn {
    /// A request's head came; it is open until what is returned is dropped.
    pub(crate) fn open(&self) -> impl Drop + use<'_> {
        Step::begin(self, &self.open)
    }

    /// A body is waited for until what is returned is dropped.
    pub(crate) fn wait_for_body(&self) -> impl Drop + use<'_> {
        Step::begin(self, &self.awaited)
    }

    /// A piece of an answer was taken.
    pub(crate) fn step(&self) {
        self.steps.fetch_add(1, Ordering::Relaxed);
    }

    /// Grows whenever something happens.
    pub(crate) fn steps(&self) -> u32 {
        self.steps.load(Ordering::Relaxed)
    }

    /// Whether no request is without its answer.
    pub(crate) fn is_idle(&self) -> bool {
        self.open.load(Ordering::Relaxed) == 0
    }

    /// Whether the other end is the one to go on.
    pub(crate) fn is_their_turn(&self) -> bool {
        self.open.load(Ordering::Relaxed) <= self.awaited.load(Ordering::Relaxed)
    }
}

/// Something that has begun on a connection and ends when this is dropped.
struct Step<'a>(&'a Turn, &'a AtomicU32);

impl<'a> Step<'a> {
    fn begin(turn: &'a Turn, number: &'a AtomicU32) -> Self {
        turn.steps.fetch_add(1, Ordering::Relaxed);
        number.fetch_add(1, Ordering::Relaxed);
        Self(turn, number)
    }
}

impl Drop for Step<'_> {
    fn drop(&mut self) {
        self.1.fetch_sub(1, Ordering::Relaxed);
        self.0.steps.fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_our_turn_only_while_a_whole_request_waits_for_its_answer() {
        let turn = Turn::default();
        assert!(turn.is_their_turn());
        let open = turn.open();
        assert!(!turn.is_their_turn());
        let body = turn.wait_for_body();
        assert!(turn.is_their_turn());
        drop(body);
        assert!(!turn.is_their_turn());
        drop(open);
        assert!(turn.is_their_turn());
    }

    #[test]
    fn everything_that_happens_is_a_step() {
        let turn = Turn::default();
        let mut seen = vec![turn.steps()];
        let open = turn.open();
        seen.push(turn.steps());
        let body = turn.wait_for_body();
        seen.push(turn.steps());
        drop(body);
        seen.push(turn.steps());
        drop(open);
        seen.push(turn.steps());
        seen.dedup();
        assert_eq!(seen.len(), 5);
    }
}
