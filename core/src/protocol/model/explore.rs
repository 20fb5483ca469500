//! A breadth-first explorer of a model's states, in a page: the first violation it finds is one of
//! the shortest.
//!
//! Our own and not the crate stateright, which brings a web server and 40 other crates for what is
//! used here. Visited states are remembered by a 64-bit fingerprint, as TLC and stateright do: with
//! 10 million states the chance that two shared one, and some path was cut off, is 1 in 370,000.

use std::collections::{HashSet, VecDeque};
use std::fmt::Debug;
use std::hash::{BuildHasherDefault, DefaultHasher, Hash, Hasher};

/// What is explored.
pub trait Model {
    type State: Clone + Hash;
    type Action: Copy + Debug;

    fn start(&self) -> Self::State;
    /// Everything that can happen next.
    fn actions(&self, state: &Self::State) -> Vec<Self::Action>;
    /// What comes of it; none if it cannot happen after all.
    fn step(&self, state: &Self::State, action: Self::Action) -> Option<Self::State>;
    /// Which promise this state breaks.
    fn violation(&self, state: &Self::State) -> Option<String>;
}

/// How an exploration ended.
pub struct Explored<A> {
    pub states: usize,
    /// Steps from the start to the last state.
    pub depth: usize,
    /// The promise and how it was broken.
    pub violation: Option<(String, Vec<A>)>,
}

/// Fingerprints are hashes already.
#[derive(Default)]
struct AsIs(u64);

impl Hasher for AsIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("only whole fingerprints are hashed");
    }

    fn write_u64(&mut self, fingerprint: u64) {
        self.0 = fingerprint;
    }
}

fn fingerprint(state: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    state.hash(&mut hasher);
    hasher.finish()
}

/// Visits every state that can be reached, or all up to the first that breaks a promise.
///
/// # Panics
/// If there are more than `states_max`: the scope is wrong then, and nothing was proven.
pub fn explore<M: Model>(model: &M, states_max: usize) -> Explored<M::Action> {
    let start = model.start();
    let mut seen: HashSet<u64, BuildHasherDefault<AsIs>> = HashSet::default();
    seen.insert(fingerprint(&start));
    // How each state was reached first, for the trace.
    let mut reached: Vec<Option<(usize, M::Action)>> = vec![None];
    let mut waiting = VecDeque::from([(start, 0, 0)]);
    let mut depth = 0;
    while let Some((state, at, its_depth)) = waiting.pop_front() {
        depth = its_depth;
        if let Some(promise) = model.violation(&state) {
            let mut trace = Vec::new();
            let mut place = at;
            while let Some((before, action)) = reached[place] {
                trace.push(action);
                place = before;
            }
            trace.reverse();
            return Explored { states: reached.len(), depth, violation: Some((promise, trace)) };
        }
        for action in model.actions(&state) {
            let Some(next) = model.step(&state, action) else { continue };
            if seen.insert(fingerprint(&next)) {
                assert!(reached.len() < states_max, "more than {states_max} states");
                waiting.push_back((next, reached.len(), its_depth + 1));
                reached.push(Some((at, action)));
            }
        }
    }
    Explored { states: reached.len(), depth, violation: None }
}
