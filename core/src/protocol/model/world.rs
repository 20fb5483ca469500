//! A small world in which the protocol is explored: a database, up to three nodes, calls that
//! change something, a network that delays, loses and reorders, and clocks that count in ticks.
//!
//! Time has no end here: every instant is kept relative to now, and what lies too far back to make
//! a difference is forgotten, so that the states are finite in number.
//!
//! [`Node`] and [`Waiter`] are the shipped code. What the server does around them is here in few
//! words, one database statement or transaction a step, and each mistake that the protocol must
//! not contain can be made *here*, never in the shipped code.
//!
//! What is one step: a telling's transaction, because it holds K shared and so nothing that matters
//! can happen inside it (with the mistake [`Mistake::HeadOutsideLock`] it is two); taking K and
//! reading the head; commit; reading the rows; hearing them, with the reaping. A node that is slow
//! or paused is one whose next step comes late. Polls extend no lease, so one is a single step.

#![expect(clippy::wildcard_enum_match_arm, reason = "each step is told apart before, in rules.rs")]

mod rules;

use crate::protocol::{
    Answer, Commit, Head, Incarnation, LeaseRow, Moment, Node, NodeId, Nonce, Own, Page, Settle,
    Snapshot, Standing, Step, Tell, Terms, Told, Waiter,
};

/// A single mistake, of consistency.md §3 and some more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mistake {
    DeadlineFromReply,
    HeadOutsideLock,
    HeadReadWithTheLock,
    WaitSetBeforeCommit,
    AcknowledgedBeforeApplied,
    ShortWait,
    StoppedClock,
    NoQuarantine,
    RetryNotWaiting,
    MissingRowIgnored,
    LateTellCounts,
}

/// How much of everything may happen.
#[derive(Clone, Copy, Debug)]
pub struct Scope {
    /// The length of each node's lease, in ticks.
    pub leases: &'static [i64],
    /// How many of the first nodes hold a lease at the start; the others have yet to load.
    pub settled: usize,
    /// Calls: which mutation, by which node. The same mutation again is a retry.
    pub calls: &'static [(usize, usize)],
    /// How many tellings take any time between question, work and answer, so that everything else
    /// can happen in between; the others happen at one instant.
    pub slow: u8,
    /// The same of transactions, between taking K and the commit.
    pub holds: u8,
    /// The same of readings of the rows, before they are heard.
    pub reads: u8,
    /// Tellings of which nothing is heard; they may be carried out nonetheless, at any time.
    pub losses: u8,
    pub crashes: u8,
    pub pauses: u8,
    /// Changes of the primary that lose one lease row.
    pub failovers: u8,
    /// Only the first node verifies; what the others call comes from commands without a node.
    pub is_sole: bool,
    pub mistake: Option<Mistake>,
}

const NODES: usize = 3;
const CALLS: usize = 4;
const NOW: Moment = Moment { boot_us: 0, wall_us: 0 };

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Row {
    generation: i64,
    acked_seq: i64,
}

#[derive(Clone, Debug, Hash)]
struct Database {
    life: u8,
    failed_over_at_us: i64,
    /// Which mutations were committed, in this order.
    log: Vec<usize>,
    rows: [Option<Row>; NODES],
    /// The call that holds K, and since when.
    lock: Option<(usize, i64)>,
}

/// A telling under way.
#[derive(Clone, Debug, Hash)]
enum Wire {
    Asked(Tell),
    /// Its head was read, its row not written; only with [`Mistake::HeadOutsideLock`].
    Half(Tell, Head),
    Answered(Tell, Told),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Life {
    Up,
    Paused,
    Down,
}

#[derive(Clone, Debug, Hash)]
struct Server {
    node: Node,
    /// The mutations that its table has, a bit each.
    table: u8,
    life: Life,
    wire: Option<Wire>,
    /// A telling that was given up and is still on its way.
    late: Option<Tell>,
    /// A question asked in sole mode, and its answer.
    poll: Option<(Moment, Option<Head>)>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Stage {
    Begun,
    /// It read something too early, before it held K: the rows' owners and the head.
    Hasty(u8, usize),
    Locked(u8, usize),
    Waiting {
        waiter: Waiter,
        early: u8,
        read: Option<(u8, [Option<Row>; NODES])>,
    },
    Over,
}

/// The state of everything.
#[derive(Clone, Debug, Hash)]
pub struct World {
    database: Database,
    servers: Vec<Server>,
    calls: Vec<Stage>,
    /// The mutations that were acknowledged to somebody, a bit each.
    acknowledged: u8,
    slow: u8,
    holds: u8,
    reads: u8,
    losses: u8,
    crashes: u8,
    pauses: u8,
    failovers: u8,
    broken: Option<&'static str>,
}

#[derive(Clone, Copy, Debug)]
pub enum Action {
    Tick,
    Load(usize),
    /// Poll, and fetch what is new.
    Poll(usize),
    PollAsk(usize),
    PollAnswer(usize),
    PollHear(usize),
    /// A telling that takes no time.
    Tell(usize),
    TellAsk(usize),
    TellWork(usize),
    TellHear(usize),
    /// Gives up; the request vanishes, or is carried out late.
    TellLose(usize, bool),
    LateWork(usize),
    /// The table gets what was acknowledged; only with [`Mistake::AcknowledgedBeforeApplied`].
    Apply(usize),
    Pause(usize),
    Resume(usize),
    Crash(usize),
    Failover(usize),
    Hurry(usize),
    /// A whole transaction, and the beginning of the wait.
    Change(usize),
    Lock(usize),
    /// The transaction of a holder of K that does not go on is ended by the database.
    Expire,
    Commit(usize),
    /// Reads the rows and hears them at once.
    Ask(usize),
    Read(usize),
    Hear(usize),
}

fn node_id(n: usize) -> NodeId {
    NodeId([n as u8 + 1; 16])
}

fn incarnation(life: u8) -> Incarnation {
    Incarnation([life; 32])
}

fn nonce_of(seq: i64) -> Option<Nonce> {
    u8::try_from(seq).ok().filter(|seq| *seq > 0).map(|seq| Nonce([seq; 16]))
}

impl Database {
    fn seq(&self) -> i64 {
        self.log.len() as i64
    }

    fn head(&self, at: i64) -> Head {
        let nonce = nonce_of(at).filter(|_| at <= self.seq());
        Head { seq: self.seq(), nonce, incarnation: incarnation(self.life) }
    }

    fn table(&self) -> u8 {
        self.log.iter().fold(0, |table, mutation| table | 1 << mutation)
    }

    /// Writes a row under the conditions of [`Tell`].
    fn write(&mut self, n: usize, tell: &Tell, scope: &Scope) -> bool {
        let careless = scope.mistake == Some(Mistake::LateTellCounts);
        let row = &mut self.rows[n];
        let may = match (*row, tell.confirmed) {
            (None, None) => true,
            (None, Some(_)) => false,
            (Some(_), _) if careless => true,
            (Some(row), None) => row.generation < tell.generation,
            (Some(row), Some(confirmed)) => (confirmed..tell.generation).contains(&row.generation),
        };
        if may {
            *row = Some(Row { generation: tell.generation, acked_seq: tell.acked_seq });
        }
        may
    }
}

impl World {
    fn is_up(&self, n: usize) -> bool {
        self.servers[n].life == Life::Up
    }

    /// Fetches and applies everything, where the node wants that.
    fn fetch(&mut self, n: usize, scope: &Scope) {
        let server = &mut self.servers[n];
        if let Step::Fetch { after } = server.node.next(NOW) {
            let seq = self.database.seq();
            if server.node.follows(after + 1..=seq) {
                let nonce = nonce_of(seq).expect("a change has a number from 1");
                if scope.mistake != Some(Mistake::AcknowledgedBeforeApplied) {
                    server.table |= self.database.table();
                }
                server.node.applied(&Page { seq, nonce, is_waited_for: true });
            }
        }
        // When it polled is of no account here.
        server.node.wake();
    }

    /// The transaction of a telling.
    fn work(&mut self, n: usize, tell: &Tell, scope: &Scope) -> Told {
        let head = self.database.head(tell.acked_seq);
        let mut is_written = tell.continues(&head) && self.database.write(n, tell, scope);
        is_written |= scope.mistake == Some(Mistake::MissingRowIgnored);
        Told { generation: tell.generation, head, is_written }
    }

    fn hear_told(&mut self, n: usize, tell: &Tell, mut told: Told, scope: &Scope) {
        let node = &mut self.servers[n].node;
        if scope.mistake == Some(Mistake::DeadlineFromReply) {
            // As if it had been asked now.
            let again = node.tell(NOW).expect("it told before");
            told.generation = again.generation;
            if let Some(row) = &mut self.database.rows[n]
                && row.generation == tell.generation
            {
                row.generation = again.generation;
            }
        }
        node.told(NOW, &told);
        self.fetch(n, scope);
    }

    /// What the call does once it is known which change it waits for.
    fn finish(&mut self, call: usize, scope: &Scope) {
        self.acknowledged |= 1 << scope.calls[call].0;
        self.calls[call] = Stage::Over;
    }

    fn read(&mut self, call: usize) {
        let answer = (self.database.life, self.database.rows);
        if let Stage::Waiting { read, .. } = &mut self.calls[call] {
            *read = Some(answer);
        }
    }

    /// Whether nothing can go wrong any more: no table ever loses what it has.
    fn is_over(&self) -> bool {
        let is_done =
            |server: &Server| server.life == Life::Down || self.acknowledged & !server.table == 0;
        self.calls.iter().all(|call| *call == Stage::Over) && self.servers.iter().all(is_done)
    }

    /// Of generations only the order matters: numbers them from 1, node by node.
    fn rank_generations(&mut self) {
        for (n, server) in self.servers.iter_mut().enumerate() {
            let mut all: Vec<&mut i64> = server.node.generations();
            let tells = match &mut server.wire {
                Some(Wire::Asked(tell) | Wire::Half(tell, _)) => Some(tell),
                Some(Wire::Answered(tell, told)) => {
                    all.push(&mut told.generation);
                    Some(tell)
                }
                None => None,
            };
            for tell in tells.into_iter().chain(&mut server.late) {
                all.push(&mut tell.generation);
                all.extend(&mut tell.confirmed);
            }
            all.extend(self.database.rows[n].as_mut().map(|row| &mut row.generation));
            for stage in &mut self.calls {
                if let Stage::Waiting { read: Some((_, rows)), .. } = stage {
                    all.extend(rows[n].as_mut().map(|row| &mut row.generation));
                }
            }
            let mut order: Vec<i64> = all.iter().map(|generation| **generation).collect();
            order.sort_unstable();
            order.dedup();
            for generation in all {
                let place = order.binary_search(generation).expect("it is one of them");
                *generation = place as i64 + 1;
            }
        }
    }

    fn rows_present(&self) -> u8 {
        (0..NODES).fold(0, |set, n| set | u8::from(self.database.rows[n].is_some()) << n)
    }

    fn own(&self, n: usize, scope: &Scope) -> Option<Own> {
        let applied_seq = self.servers[n].node.applied_seq();
        let own = Own { node: node_id(n), applied_seq, lease_us: scope.leases[n] };
        scope.verifies(n).then_some(own)
    }
}

fn lease_rows(rows: &[Option<Row>; NODES], set: u8, scope: &Scope) -> Vec<LeaseRow> {
    let rows = rows.iter().enumerate().filter(|(n, _)| set >> n & 1 == 1);
    rows.filter_map(|(n, row)| {
        let Row { generation, acked_seq } = (*row)?;
        Some(LeaseRow { node: node_id(n), generation, acked_seq, lease_us: scope.leases[n] })
    })
    .collect()
}

impl Scope {
    fn terms(&self, n: usize) -> Terms {
        let (tell_every_us, tell_own_us, poll_every_us) = (1, 1, 1);
        let (lease_us, is_sole) = (self.leases[n], self.is_sole);
        Terms { lease_us, tell_every_us, tell_own_us, poll_every_us, is_sole }
    }

    fn longest(&self) -> i64 {
        *self.leases.iter().max().expect("there are nodes")
    }

    fn has(&self, mistake: Mistake) -> bool {
        self.mistake == Some(mistake)
    }

    fn verifies(&self, n: usize) -> bool {
        n == 0 || !self.is_sole
    }

    fn load(&self, world: &mut World, n: usize) {
        let seq = world.database.seq();
        let since_us = -world.database.failed_over_at_us;
        let quarantine_left_us = match self.mistake {
            Some(Mistake::NoQuarantine) => 0,
            _ => (self.longest() - since_us).max(0),
        };
        let snapshot = Snapshot { head: world.database.head(seq), quarantine_left_us };
        let server = &mut world.servers[n];
        server.table = world.database.table();
        server.node.loaded(NOW, &snapshot);
        server.node.wake();
    }

    fn tell(&self, world: &mut World, n: usize) {
        let Some(tell) = world.servers[n].node.tell(NOW) else { return };
        let told = world.work(n, &tell, self);
        world.hear_told(n, &tell, told, self);
    }

    fn call_step(&self, world: &mut World, action: Action) {
        match action {
            Action::Hurry(call) => {
                world.calls[call] = Stage::Hasty(world.rows_present(), world.database.log.len());
            }
            Action::Change(call) => {
                self.lock(world, call);
                self.commit(world, call);
            }
            Action::Lock(call) => {
                world.holds -= 1;
                self.lock(world, call);
            }
            Action::Commit(call) => self.commit(world, call),
            Action::Ask(call) => {
                world.read(call);
                self.hear(world, call);
            }
            Action::Read(call) => {
                world.reads -= 1;
                world.read(call);
            }
            Action::Hear(call) => self.hear(world, call),
            _ => unreachable!("no step of a call"),
        }
    }

    /// Lets a tick pass, and forgets what can make no difference any more.
    fn tick(&self, world: &mut World) {
        let longest_us = self.longest();
        let database = &mut world.database;
        database.failed_over_at_us = (database.failed_over_at_us - 1).max(-longest_us);
        if let Some((_, since)) = &mut database.lock {
            *since -= 1;
        }
        let stops =
            |server: &Server| self.has(Mistake::StoppedClock) && server.life == Life::Paused;
        for (call, stage) in world.calls.iter_mut().enumerate() {
            if let Stage::Waiting { waiter, .. } = stage
                && !stops(&world.servers[self.calls[call].1])
            {
                waiter.age(1, longest_us);
            }
        }
        for server in world.servers.iter_mut().filter(|server| !stops(server)) {
            server.node.age(1);
            if let Some((asked, _)) = &mut server.poll {
                let at_us = (asked.boot_us - 1).max(-longest_us);
                *asked = Moment { boot_us: at_us, wall_us: at_us };
            }
        }
    }

    fn lock(&self, world: &mut World, call: usize) {
        let head = world.database.log.len();
        let (early, head) = match world.calls[call] {
            Stage::Hasty(early, _) if self.has(Mistake::WaitSetBeforeCommit) => (early, head),
            Stage::Hasty(_, early) => (u8::MAX, early),
            _ => (u8::MAX, head),
        };
        world.database.lock = Some((call, 0));
        world.calls[call] = Stage::Locked(early, head);
    }

    /// Commits and begins to wait: to begin later would only be to wait longer.
    fn commit(&self, world: &mut World, call: usize) {
        let Stage::Locked(early, head) = world.calls[call] else { return };
        let mutation = self.calls[call].0;
        let log = &mut world.database.log;
        let (place, is_repeat) = match log.iter().position(|known| *known == mutation) {
            Some(place) => (place, true),
            None => {
                if head != log.len() {
                    world.broken = Some("two changes have one number");
                }
                log.push(mutation);
                (log.len() - 1, false)
            }
        };
        world.database.lock = None;
        if is_repeat && self.has(Mistake::RetryNotWaiting) {
            return world.finish(call, self);
        }
        let (seq, n) = (place as i64 + 1, self.calls[call].1);
        let standing = world.servers[n].node.standing().expect("its node was loaded");
        let mut at_us = NOW.boot_us;
        if self.has(Mistake::ShortWait) {
            at_us -= 1;
        }
        let incarnation = incarnation(world.database.life);
        let commit = Commit { seq, incarnation, at_us };
        let standing = match self.mistake {
            Some(Mistake::NoQuarantine) => {
                Standing { incarnation, quarantine_until_us: i64::MIN, ..standing }
            }
            _ => standing,
        };
        let waiter = Waiter::begin(Settle::Narrowing, commit, &standing);
        world.calls[call] = Stage::Waiting { waiter, early, read: None };
    }

    fn asks_in_vain(&self, world: &World, call: usize) -> bool {
        let n = self.calls[call].1;
        let Stage::Waiting { waiter, early, .. } = &world.calls[call] else { return true };
        let rows = lease_rows(&world.database.rows, *early, self);
        let (life, own) = (incarnation(world.database.life), world.own(n, self));
        waiter.clone().hear(NOW.boot_us, life, own, &rows) == Answer::AskAgain
    }

    fn hear(&self, world: &mut World, call: usize) {
        let n = self.calls[call].1;
        let own = world.own(n, self);
        let Stage::Waiting { waiter, early, read } = &mut world.calls[call] else { return };
        let Some((life, rows)) = read.take() else { return };
        let rows = lease_rows(&rows, *early, self);
        match waiter.hear(NOW.boot_us, incarnation(life), own, &rows) {
            Answer::AskAgain => {}
            Answer::Unconfirmed => world.calls[call] = Stage::Over,
            Answer::Done | Answer::LeftBehind => world.finish(call, self),
            Answer::WaitedOut => {
                let behind: Vec<LeaseRow> = waiter.behind(own, &rows).copied().collect();
                for row in behind {
                    let place = usize::from(row.node.0[0]) - 1;
                    let found = &mut world.database.rows[place];
                    // A sole server's row stays for as long as it lives.
                    let is_same = found.is_some_and(|is| is.generation == row.generation);
                    if is_same && !self.is_sole {
                        *found = None;
                    }
                }
                world.finish(call, self);
            }
        }
    }

    fn trouble_step(&self, world: &mut World, action: Action) {
        match action {
            Action::Pause(n) => {
                world.pauses -= 1;
                world.servers[n].life = Life::Paused;
            }
            Action::Resume(n) => world.servers[n].life = Life::Up,
            Action::Crash(n) => {
                world.crashes -= 1;
                let server = &mut world.servers[n];
                server.life = Life::Down;
                // What it knew is of no account any more.
                server.node = Node::new(node_id(n), self.terms(n));
                (server.table, server.poll, server.wire) = (0, None, None);
                for call in 0..self.calls.len() {
                    let holds = world.database.lock.is_some_and(|(holder, _)| holder == call);
                    if self.calls[call].1 == n && !holds {
                        world.calls[call] = Stage::Over;
                    }
                }
            }
            Action::Failover(lost) => {
                world.failovers -= 1;
                world.database.life += 1;
                world.database.failed_over_at_us = 0;
                world.database.rows[lost] = None;
                if let Some((holder, _)) = world.database.lock.take() {
                    world.calls[holder] = Stage::Over;
                }
            }
            Action::Expire => {
                if let Some((holder, _)) = world.database.lock.take() {
                    world.calls[holder] = Stage::Over;
                }
            }
            _ => unreachable!("no trouble"),
        }
    }

    fn wire_step(&self, world: &mut World, action: Action) {
        match action {
            Action::TellAsk(n) => {
                world.slow -= 1;
                world.servers[n].wire = world.servers[n].node.tell(NOW).map(Wire::Asked);
            }
            Action::TellWork(n) => {
                let done = match world.servers[n].wire.take() {
                    Some(Wire::Asked(tell)) if self.has(Mistake::HeadOutsideLock) => {
                        Wire::Half(tell, world.database.head(tell.acked_seq))
                    }
                    Some(Wire::Asked(tell)) => Wire::Answered(tell, world.work(n, &tell, self)),
                    Some(Wire::Half(tell, head)) => {
                        let is_written =
                            tell.continues(&head) && world.database.write(n, &tell, self);
                        let told = Told { generation: tell.generation, head, is_written };
                        Wire::Answered(tell, told)
                    }
                    Some(done @ Wire::Answered(..)) => done,
                    None => return,
                };
                world.servers[n].wire = Some(done);
            }
            Action::TellHear(n) => {
                if let Some(Wire::Answered(tell, told)) = world.servers[n].wire.take() {
                    world.hear_told(n, &tell, told, self);
                }
            }
            Action::TellLose(n, is_late) => {
                world.losses -= 1;
                let server = &mut world.servers[n];
                server.node.tell_failed(NOW);
                if let Some(Wire::Asked(tell)) = server.wire.take()
                    && is_late
                {
                    server.late = Some(tell);
                }
            }
            Action::LateWork(n) => {
                if let Some(tell) = world.servers[n].late.take() {
                    world.work(n, &tell, self);
                }
            }
            Action::PollAsk(n) => world.servers[n].poll = Some((NOW, None)),
            Action::PollAnswer(n) => {
                let head = world.database.head(world.servers[n].node.applied_seq());
                if let Some((_, answer)) = &mut world.servers[n].poll {
                    *answer = Some(head);
                }
            }
            Action::PollHear(n) => {
                if let Some((asked, Some(head))) = world.servers[n].poll.take() {
                    world.servers[n].node.polled(asked, NOW, &head);
                    world.fetch(n, self);
                }
            }
            _ => unreachable!("nothing of the network"),
        }
    }
}
