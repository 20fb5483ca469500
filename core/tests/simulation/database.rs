//! The simulated database: a log, lease rows, the lock K, and lives that can lose both.

use std::collections::{BTreeMap, VecDeque};

use keyward_core::protocol::{
    Head, Incarnation, LeaseRow, NodeId, Nonce, Page, Snapshot, Tell, Told,
};

use crate::world::{Mistake, PAGE, QUARANTINE_US};

/// What a change did: revoked the key, or issued it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Deed {
    Issued(usize),
    Revoked(usize),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Change {
    pub seq: i64,
    pub nonce: Nonce,
    pub deed: Deed,
    pub process: usize,
    /// Whether somebody was told of its commit, so that a standby has it.
    pub is_replicated: bool,
}

pub struct Database {
    pub is_up: bool,
    pub life: u8,
    failed_over_at_us: i64,
    pub log: Vec<Change>,
    pub rows: BTreeMap<NodeId, LeaseRow>,
    /// The call whose transaction holds K.
    pub lock: Option<usize>,
    /// What waits for K.
    pub queue: VecDeque<Waiting>,
    nonces: u64,
    pub mistake: Option<Mistake>,
}

/// What waits for K: who sent it, under which number, and what it is.
#[derive(Clone, Copy, Debug)]
pub enum Waiting {
    Call { process: usize, call: usize },
    Tell { process: usize, id: u64, tell: Tell },
}

impl Database {
    pub fn new(mistake: Option<Mistake>) -> Self {
        Self {
            is_up: true,
            life: 0,
            failed_over_at_us: -QUARANTINE_US,
            log: Vec::new(),
            rows: BTreeMap::new(),
            lock: None,
            queue: VecDeque::new(),
            nonces: 0,
            mistake,
        }
    }

    pub fn incarnation(&self) -> Incarnation {
        Incarnation([self.life; 32])
    }

    fn nonce_at(&self, seq: i64) -> Option<Nonce> {
        let place = usize::try_from(seq - 1).ok()?;
        self.log.get(place).map(|change| change.nonce)
    }

    pub fn head(&self, at: i64) -> Head {
        let seq = self.log.len() as i64;
        Head { seq, nonce: self.nonce_at(at), incarnation: self.incarnation() }
    }

    pub fn snapshot(&self, now_us: i64) -> Snapshot {
        let quarantine_left_us = match self.mistake {
            Some(Mistake::NoQuarantine) => 0,
            _ => (self.failed_over_at_us + QUARANTINE_US - now_us).max(0),
        };
        Snapshot { head: self.head(self.log.len() as i64), quarantine_left_us }
    }

    pub fn after(&self, seq: i64) -> Vec<Change> {
        let from = usize::try_from(seq).unwrap_or(0);
        self.log.iter().skip(from).take(PAGE).copied().collect()
    }

    pub fn page(process: usize, changes: &[Change]) -> Option<Page> {
        let last = changes.last()?;
        let is_waited_for = changes.iter().any(|change| change.process != process);
        Some(Page { seq: last.seq, nonce: last.nonce, is_waited_for })
    }

    /// The change that did this, made now unless it was before; false if it was. None if there is
    /// no such key, perhaps no longer.
    pub fn commit(&mut self, deed: Deed, process: usize) -> Option<(i64, bool)> {
        if let Some(known) = self.log.iter().find(|change| change.deed == deed) {
            return Some((known.seq, false));
        }
        if let Deed::Revoked(key) = deed
            && !self.log.iter().any(|change| change.deed == Deed::Issued(key))
        {
            return None;
        }
        self.nonces += 1;
        let mut nonce = [0; 16];
        nonce[..8].copy_from_slice(&self.nonces.to_be_bytes());
        let seq = self.log.len() as i64 + 1;
        let is_replicated = false;
        self.log.push(Change { seq, nonce: Nonce(nonce), deed, process, is_replicated });
        Some((seq, true))
    }

    /// The head as a telling reads it.
    pub fn head_for(&self, tell: &Tell) -> Head {
        let head = self.head(tell.acked_seq);
        match self.mistake {
            Some(Mistake::LifeUnchecked) => {
                let seq = head.seq.max(tell.acked_seq);
                Head { seq, nonce: tell.nonce, incarnation: tell.incarnation }
            }
            _ => head,
        }
    }

    /// Writes the row of a telling, under the conditions that [`Tell`] names.
    pub fn tell(&mut self, tell: &Tell, head: Head) -> Told {
        let careless = self.mistake == Some(Mistake::LateTellCounts);
        let known = self.rows.get(&tell.node).map(|row| row.generation);
        let may = match (known, tell.confirmed) {
            (None, None) => true,
            (None, Some(_)) => false,
            (Some(_), _) if careless => true,
            (Some(known), None) => known < tell.generation,
            (Some(known), Some(confirmed)) => (confirmed..tell.generation).contains(&known),
        };
        let mut is_written = may && tell.continues(&head);
        if is_written {
            let &Tell { node, generation, acked_seq, lease_us, .. } = tell;
            self.rows.insert(node, LeaseRow { node, generation, acked_seq, lease_us });
        }
        is_written |= self.mistake == Some(Mistake::MissingRowIgnored);
        Told { generation: tell.generation, head, is_written }
    }

    pub fn reap(&mut self, rows: &[LeaseRow]) {
        for row in rows {
            if self.rows.get(&row.node).is_some_and(|is| is.generation == row.generation) {
                self.rows.remove(&row.node);
            }
        }
    }

    /// A standby takes over. It has every change that somebody was told of, and of the others as
    /// many as `keeps` says; of the lease rows those that it `keeps`.
    pub fn fail_over(&mut self, now_us: i64, mut keeps: impl FnMut() -> bool) {
        self.life += 1;
        self.failed_over_at_us = now_us;
        self.lock = None;
        self.queue.clear();
        while self.log.last().is_some_and(|last| !last.is_replicated) && !keeps() {
            self.log.pop();
        }
        let head = self.log.len() as i64;
        self.rows.retain(|_, row| row.acked_seq <= head && keeps());
    }
}
