//! One verifying node: what it knows, what it does next, and until when it may answer.
//!
//! A round is: ask for the head, fetch and apply what is new, *then* tell the others how far this
//! node is; the answer to that extends the lease. Only telling extends it where several nodes
//! verify, because it writes: a former primary that lost its standby still answers questions, but
//! cannot commit. Where one server verifies alone (SQLite), reading is enough.
//!
//! Why no lease outlives what was promised of it: the lease runs from the moment at which a head H
//! was asked for, and is extended once this node's row says that H is applied. A change up to H is
//! applied. A later one was committed after the question, found this node's row there, and waits
//! for it, or for longer than the lease can last.

use super::{Deadline, Head, Incarnation, Moment, NodeId, Nonce, with_margin};

/// How long a node waits between its doings, in µs. All but `lease_us` are matters of speed only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Terms {
    /// L: the length of a lease.
    pub lease_us: i64,
    /// How often others are told although nothing happened; a third of L leaves two attempts.
    pub tell_every_us: i64,
    /// How long others are left not knowing that this node applied changes of its own. They wait
    /// for that only when they repeat such a change, and a write for each would be dear.
    pub tell_own_us: i64,
    /// How often the store is asked for changes, and how soon a failed attempt is repeated.
    pub poll_every_us: i64,
    /// Whether no other process can verify from this store, so that reading extends the lease.
    pub is_sole: bool,
}

/// What a node does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// Load everything from one snapshot, then [`Node::loaded`].
    Load,
    /// Read both clocks, then the head, then [`Node::polled`].
    Poll,
    /// Read the changes after `after`, have them checked by [`Node::follows`], apply them to the
    /// table, then [`Node::applied`].
    Fetch {
        /// The last applied change.
        after: i64,
    },
    /// Read both clocks, call [`Node::tell`], carry it out, then [`Node::told`].
    Tell,
    /// Nothing until then, or until [`Node::wake`].
    Wait {
        /// By this node's clock, µs since boot.
        until_boot_us: i64,
    },
}

/// What a load read in its snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Snapshot {
    /// The head, with the nonce of the last change itself.
    pub head: Head,
    /// What is left of a quarantine that the store has on record, in µs. A process that has just
    /// started knows nothing of a failover a moment ago.
    pub quarantine_left_us: i64,
}

/// A page of changes that the table has now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Page {
    /// The last of them.
    pub seq: i64,
    /// Its nonce.
    pub nonce: Nonce,
    /// Whether another process made one of them, and waits for this node.
    pub is_waited_for: bool,
}

/// What to write into this node's row, and when not to.
///
/// The generation rises with every attempt. A row is updated only if its generation is at least
/// `confirmed` and below `generation`, so that an attempt that was given up and is carried out
/// late changes nothing, and a row that others removed is never mistaken for one that lasted. With
/// `confirmed` absent the row is inserted, or updated if its generation is below.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tell {
    /// Whose row.
    pub node: NodeId,
    /// Its lease length in µs.
    pub lease_us: i64,
    /// What is applied.
    pub acked_seq: i64,
    /// The nonce of that change; the head is to be read with the nonce in the log at `acked_seq`.
    pub nonce: Option<Nonce>,
    /// The database's life that was followed.
    pub incarnation: Incarnation,
    /// The generation that the row gets.
    pub generation: i64,
    /// The generation that was last confirmed; absent when the row is to be made.
    pub confirmed: Option<i64>,
}

impl Tell {
    /// Whether the database whose head is `head`, read under the lock, is the one that was
    /// followed. Otherwise nothing may be written: a number of another life means nothing here.
    #[must_use]
    pub fn continues(&self, head: &Head) -> bool {
        course(head, self.acked_seq, self.nonce, self.incarnation) == Course::Same
    }
}

/// What came of a [`Tell`], after its commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Told {
    /// Which one.
    pub generation: i64,
    /// The head, read under the lock.
    pub head: Head,
    /// Whether the row was written.
    pub is_written: bool,
}

/// What a change made by this process must know before it can be waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Standing {
    /// The life of the database that is followed.
    pub incarnation: Incarnation,
    /// Until then (µs since boot) acknowledgements alone prove nothing: lease rows may be lost.
    pub quarantine_until_us: i64,
    /// The longest lease that this process ever heard of, in µs; its own at least.
    pub longest_us: i64,
}

/// The state of one verifying node.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Node {
    id: NodeId,
    terms: Terms,
    /// The life that is followed; none before the first load.
    incarnation: Option<Incarnation>,
    applied: i64,
    nonce: Option<Nonce>,
    /// The highest head that was heard of.
    head: i64,
    must_load: bool,
    /// What this node's row says.
    acknowledged: i64,
    /// The row's generation; none when it must be made.
    confirmed: Option<i64>,
    generation: i64,
    told_at_us: i64,
    telling: Option<Telling>,
    is_waited_for: bool,
    /// A head that was asked for while the row was there. The lease runs from then as soon as
    /// that much is applied and the row says so.
    question: Option<(Moment, i64)>,
    deadline: Deadline,
    quarantine_until_us: i64,
    longest_us: i64,
    polled_at_us: i64,
    /// After failures: not before these.
    resume_at_us: i64,
    tell_again_at_us: i64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Telling {
    tell: Tell,
    asked: Moment,
    was_waited_for: bool,
}

/// How a database relates to what was applied.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Course {
    /// It went on.
    Same,
    /// It went on for so long that its log no longer reaches back.
    Pruned,
    /// It is another, or went back in time.
    Other,
}

fn course(head: &Head, applied: i64, nonce: Option<Nonce>, incarnation: Incarnation) -> Course {
    if head.incarnation != incarnation || head.seq < applied {
        Course::Other
    } else if head.nonce == nonce {
        Course::Same
    } else if head.nonce.is_none() && head.seq > applied {
        Course::Pruned
    } else {
        Course::Other
    }
}

impl Node {
    /// A node that knows nothing and must load.
    #[must_use]
    pub fn new(id: NodeId, terms: Terms) -> Self {
        Self {
            id,
            terms,
            incarnation: None,
            applied: -1,
            nonce: None,
            head: -1,
            must_load: true,
            acknowledged: -1,
            confirmed: None,
            generation: 0,
            told_at_us: i64::MIN,
            telling: None,
            is_waited_for: false,
            question: None,
            deadline: Deadline::OVER,
            quarantine_until_us: i64::MIN,
            longest_us: terms.lease_us,
            polled_at_us: i64::MIN,
            resume_at_us: i64::MIN,
            tell_again_at_us: i64::MIN,
        }
    }

    /// What to do at `now`. Where telling is done in the background, the next step may be asked
    /// for before it ended; there is never a second telling at a time.
    #[must_use]
    pub fn next(&self, now: Moment) -> Step {
        let is_resumed = now.boot_us >= self.resume_at_us;
        if self.must_load {
            let until_boot_us = self.resume_at_us;
            return if is_resumed { Step::Load } else { Step::Wait { until_boot_us } };
        }
        if is_resumed && self.applied < self.head {
            return Step::Fetch { after: self.applied };
        }
        if self.must_tell(now) {
            return Step::Tell;
        }
        let poll_at_us =
            self.polled_at_us.saturating_add(self.terms.poll_every_us).max(self.resume_at_us);
        if now.boot_us >= poll_at_us {
            return Step::Poll;
        }
        let tell_at_us = self.told_at_us.saturating_add(self.terms.tell_every_us);
        let until_boot_us = match self.telling {
            None => poll_at_us.min(tell_at_us.max(self.tell_again_at_us)),
            Some(_) => poll_at_us,
        };
        Step::Wait { until_boot_us: until_boot_us.max(now.boot_us.saturating_add(1)) }
    }

    /// Whether others should hear how far this node is: at once when they wait for it, soon when
    /// it applied changes of its own, and otherwise now and then.
    fn must_tell(&self, now: Moment) -> bool {
        if self.telling.is_some() || now.boot_us < self.tell_again_at_us {
            return false;
        }
        let since_us = now.boot_us.saturating_sub(self.told_at_us);
        let is_behind = self.applied > self.acknowledged;
        // A wall clock that was set forward ends the lease too early.
        let is_over = !self.terms.is_sole && !self.deadline.is_held(now);
        self.confirmed.is_none()
            || self.is_waited_for
            || (is_behind && since_us >= self.terms.tell_own_us)
            || (is_over && since_us >= self.terms.poll_every_us)
            || since_us >= self.terms.tell_every_us
    }

    /// Everything was loaded from one snapshot and is in the table. The lease begins with the
    /// first telling, which finds out what was committed since.
    pub fn loaded(&mut self, now: Moment, snapshot: &Snapshot) {
        let Head { seq, nonce, incarnation } = snapshot.head;
        if self.incarnation.is_some_and(|known| known != incarnation) {
            self.quarantine(now);
        }
        let left_until_us = now.boot_us.saturating_add(snapshot.quarantine_left_us);
        if snapshot.quarantine_left_us > 0 {
            self.quarantine_until_us = self.quarantine_until_us.max(left_until_us);
        }
        self.incarnation = Some(incarnation);
        (self.applied, self.nonce, self.head) = (seq, nonce, seq);
        (self.acknowledged, self.confirmed, self.telling) = (-1, None, None);
        self.must_load = false;
        self.is_waited_for = false;
    }

    /// The head was read, after the clocks were read as `asked`.
    pub fn polled(&mut self, asked: Moment, now: Moment, head: &Head) {
        self.polled_at_us = now.boot_us;
        if self.is_followed(now, head, self.applied, self.nonce)
            && self.terms.is_sole
            && self.confirmed.is_some()
        {
            self.question = Some((asked, head.seq));
            self.extend();
        }
    }

    /// Whether changes with these numbers, at least one, are the next after what is applied. When
    /// not, they must not be applied, and this node loads anew.
    pub fn follows(&mut self, seqs: impl IntoIterator<Item = i64>) -> bool {
        let mut next = self.applied;
        let is_gapless = seqs.into_iter().all(|seq| {
            next = next.saturating_add(1);
            seq == next
        });
        if !is_gapless || next == self.applied {
            self.end();
            self.must_load = true;
            return false;
        }
        true
    }

    /// The table has the page.
    pub fn applied(&mut self, page: &Page) {
        (self.applied, self.nonce) = (page.seq, Some(page.nonce));
        self.head = self.head.max(page.seq);
        self.is_waited_for |= page.is_waited_for;
        self.extend();
    }

    /// What to tell others, after the clocks were read as `asked`; nothing before the first load.
    pub fn tell(&mut self, asked: Moment) -> Option<Tell> {
        let incarnation = self.incarnation?;
        self.generation = asked.boot_us.max(self.generation.saturating_add(1));
        let tell = Tell {
            node: self.id,
            lease_us: self.terms.lease_us,
            acked_seq: self.applied,
            nonce: self.nonce,
            incarnation,
            generation: self.generation,
            confirmed: self.confirmed,
        };
        let was_waited_for = std::mem::take(&mut self.is_waited_for);
        self.telling = Some(Telling { tell, asked, was_waited_for });
        Some(tell)
    }

    /// A telling was carried out and committed. One that was given up before changes nothing.
    pub fn told(&mut self, now: Moment, told: &Told) {
        let is_it = |telling: &mut Telling| telling.tell.generation == told.generation;
        let Some(Telling { tell, asked, .. }) = self.telling.take_if(is_it) else { return };
        if !self.is_followed(now, &told.head, tell.acked_seq, tell.nonce) {
            return;
        }
        if !told.is_written {
            // Somebody waited this node out, and nobody waits for it now.
            self.end();
            self.confirmed = None;
            self.must_load = true;
            return;
        }
        self.confirmed = Some(told.generation);
        self.told_at_us = asked.boot_us;
        self.acknowledged = tell.acked_seq;
        self.extend();
        self.question = Some((asked, told.head.seq));
        self.extend();
    }

    /// A telling failed, or its outcome is unknown; it may still be carried out later.
    pub fn tell_failed(&mut self, now: Moment) {
        if let Some(telling) = self.telling.take() {
            self.is_waited_for |= telling.was_waited_for;
        }
        self.tell_again_at_us = now.boot_us.saturating_add(self.terms.poll_every_us);
    }

    /// A load, a poll or a fetch failed.
    pub fn failed(&mut self, now: Moment) {
        self.resume_at_us = now.boot_us.saturating_add(self.terms.poll_every_us);
    }

    /// There may be a change: poll at once. Only a hint.
    pub fn wake(&mut self) {
        self.polled_at_us = i64::MIN;
    }

    /// Gives the lease up; to be called before the row is removed at the end of the process.
    pub fn end(&mut self) {
        self.deadline = Deadline::OVER;
        self.question = None;
    }

    /// A lease of this length was seen in another's row.
    pub fn heard_of_lease(&mut self, lease_us: i64) {
        self.longest_us = self.longest_us.max(lease_us);
    }

    /// Until when verifications may be answered from memory.
    #[must_use]
    pub fn deadline(&self) -> Deadline {
        self.deadline
    }

    /// Whether everything must be loaded anew, so that the table is not what the number of the
    /// last applied change says.
    #[must_use]
    pub fn must_load(&self) -> bool {
        self.must_load
    }

    /// The last applied change; -1 before the first load.
    #[must_use]
    pub fn applied_seq(&self) -> i64 {
        self.applied
    }

    /// The nonce of the last applied change.
    #[must_use]
    pub fn applied_nonce(&self) -> Option<Nonce> {
        self.nonce
    }

    /// What others can read of how far this node is; -1 when they cannot.
    #[must_use]
    pub fn acknowledged_seq(&self) -> i64 {
        self.acknowledged
    }

    /// What waiting for a change of this process begins with; none before the first load.
    #[must_use]
    pub fn standing(&self) -> Option<Standing> {
        self.incarnation.map(|incarnation| Standing {
            incarnation,
            quarantine_until_us: self.quarantine_until_us,
            longest_us: self.longest_us,
        })
    }

    /// Whether `head` is one of the database that was followed; takes note of it.
    fn is_followed(&mut self, now: Moment, head: &Head, at: i64, nonce: Option<Nonce>) -> bool {
        let Some(incarnation) = self.incarnation else { return false };
        match course(head, at, nonce, incarnation) {
            Course::Same => {
                self.head = self.head.max(head.seq);
                return true;
            }
            Course::Pruned => self.end(),
            Course::Other => {
                self.end();
                self.quarantine(now);
            }
        }
        self.must_load = true;
        false
    }

    fn quarantine(&mut self, now: Moment) {
        let until_us = now.boot_us.saturating_add(with_margin(self.longest_us));
        self.quarantine_until_us = self.quarantine_until_us.max(until_us);
    }

    /// Extends the lease if what its question asked for has been done.
    fn extend(&mut self) {
        let done = if self.terms.is_sole { self.applied } else { self.acknowledged };
        let Some((asked, _)) = self.question.take_if(|(_, head)| *head <= done) else { return };
        let boot_us = asked.boot_us.saturating_add(self.terms.lease_us);
        // Both or neither: a wall clock that was set back must not keep a lease by what it said.
        if boot_us > self.deadline.boot_us {
            let wall_us = asked.wall_us.saturating_add(self.terms.lease_us);
            self.deadline = Deadline { boot_us, wall_us };
        }
    }
}

/// For the model, which keeps every instant relative to now.
#[cfg(test)]
impl Node {
    /// Lets `us` pass, and forgets what can make no difference any more.
    pub(super) fn age(&mut self, us: i64) {
        let oldest_us = -self.terms.lease_us;
        let aged = |asked: &mut Moment| {
            let at_us = (asked.boot_us - us).max(oldest_us);
            *asked = Moment { boot_us: at_us, wall_us: at_us };
        };
        self.question.iter_mut().for_each(|(asked, _)| aged(asked));
        self.telling.iter_mut().for_each(|telling| aged(&mut telling.asked));
        let longest_us = self.terms.tell_every_us.max(self.terms.poll_every_us);
        self.told_at_us = self.told_at_us.saturating_sub(us).max(-longest_us);
        let ends =
            [&mut self.quarantine_until_us, &mut self.resume_at_us, &mut self.tell_again_at_us];
        for end_us in ends {
            *end_us = if *end_us <= us { i64::MIN } else { *end_us - us };
        }
        let left_us = self.deadline.boot_us.saturating_sub(us);
        self.deadline = if left_us <= 0 {
            Deadline::OVER
        } else {
            Deadline { boot_us: left_us, wall_us: left_us }
        };
    }

    /// All generations that it keeps.
    pub(super) fn generations(&mut self) -> Vec<&mut i64> {
        let mut all = vec![&mut self.generation];
        all.extend(&mut self.confirmed);
        if let Some(Telling { tell, .. }) = &mut self.telling {
            all.push(&mut tell.generation);
            all.extend(&mut tell.confirmed);
        }
        all
    }
}
