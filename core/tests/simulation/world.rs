//! The simulated world: processes with drifting clocks, a network, a database and what goes wrong.
//!
//! Each process runs the shipped [`Node`], [`Waiter`] and [`Table`], with real keys and real
//! verdicts; everything between them is an event with a time. Chance decides how long each message
//! takes, whether it arrives once, twice or never, and when which fault begins. The judge knows
//! which revocations were acknowledged, and asks every process about them.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::hash::{DefaultHasher, Hash, Hasher};

use keyward_core::protocol::{
    Answer, Commit, Head, Incarnation, LeaseRow, Node, NodeId, Own, Settle, Snapshot, Standing,
    Step, Tell, Terms, Told, Waiter,
};
use keyward_core::{Decision, Table};

use crate::chance::{Chance, Clocks};
use crate::database::{Change, Database, Deed, Waiting};
use crate::keys;

/// The mistakes that the simulation must find; see the protocol's description.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mistake {
    DeadlineFromReply,
    HeadOutsideLock,
    WaitSetBeforeCommit,
    AcknowledgedBeforeApplied,
    ShortWait,
    StoppedClock,
    NoQuarantine,
    RetryNotWaiting,
    MissingRowIgnored,
    LateTellCounts,
    LifeUnchecked,
}

/// Everything is 25 times faster than a server with the default lease of 15 s, so that much
/// happens in few events. Two nodes have the longer lease.
const LEASE_US: i64 = 600_000;
const SHORT_LEASE_US: i64 = 400_000;
/// The longest lease and 1 %.
pub const QUARANTINE_US: i64 = LEASE_US + LEASE_US / 100;
/// How long the database lets a transaction idle that holds K.
const IDLE_MAX_US: i64 = 40_000;
/// How long a process waits for an answer.
const SILENCE_MAX_US: i64 = 150_000;
const ASK_AGAIN_US: i64 = 5_000;
/// Faults begin until then; the rest of a run must heal everything.
const FAULTS_UNTIL_US: i64 = 5_000_000;
const END_US: i64 = FAULTS_UNTIL_US + 6 * LEASE_US;
const SLOTS: usize = 3;
/// Changes in a page.
pub const PAGE: usize = 2;

#[derive(Clone, Debug, Hash)]
enum Request {
    Load,
    Poll(i64),
    Fetch(i64),
    Tell(Tell),
    Lock(usize),
    Commit(usize),
    Rows(usize),
    Reap(Vec<LeaseRow>),
}

#[derive(Clone, Debug, Hash)]
enum Reply {
    Loaded(Snapshot, Vec<Change>),
    Polled(Head),
    Fetched(Vec<Change>),
    Told(Tell, Told),
    Granted(usize),
    Committed { call: usize, seq: i64, incarnation: Incarnation, is_new: bool },
    Rows { call: usize, incarnation: Incarnation, rows: Vec<LeaseRow> },
}

#[derive(Clone, Debug, Hash)]
enum Event {
    /// A process wakes up by itself; the number says for which reason to wait this was.
    Wake(usize, u64),
    Timeout(usize, u64),
    Hint(usize),
    ToDatabase {
        process: usize,
        id: u64,
        request: Request,
    },
    ToProcess {
        process: usize,
        id: u64,
        reply: Reply,
    },
    /// The second half of a telling; only with a mistake.
    LateWrite {
        process: usize,
        id: u64,
        tell: Tell,
        head: Head,
    },
    /// The table gets what was acknowledged; only with a mistake.
    LateApply(usize, Vec<Change>),
    LockExpires(usize),
    /// For the rows, unless that question was asked again since.
    AskAgain(usize, u32),
    /// Somebody wants something done, or done again.
    Client {
        deed: Deed,
        attempt: u8,
    },
    Verify(usize, usize),
    Fault,
    Resume(usize),
    Restart(usize),
    DatabaseUp,
}

struct Process {
    slot: usize,
    is_alive: bool,
    paused_until_us: i64,
    /// Cut off from the database until then.
    cut_until_us: i64,
    clocks: Clocks,
    node: Node,
    terms: Terms,
    table: Table,
    /// The request whose answer it waits for.
    busy: Option<(u64, Request)>,
    asked: keyward_core::protocol::Moment,
    waiting: u64,
}

struct Call {
    deed: Deed,
    process: usize,
    waiter: Option<Waiter>,
    /// How often it asked for the rows.
    asks: u32,
    /// Rows read too early; only with a mistake.
    early: Option<Vec<NodeId>>,
    is_over: bool,
}

pub struct World {
    pub now_us: i64,
    chance: Chance,
    queue: BinaryHeap<Reverse<(i64, u64)>>,
    events: std::collections::BTreeMap<u64, Event>,
    numbers: u64,
    database: Database,
    processes: Vec<Process>,
    /// The present process of each place.
    slots: [usize; SLOTS],
    calls: Vec<Call>,
    acknowledged: Vec<Deed>,
    mistake: Option<Mistake>,
    trace: DefaultHasher,
    pub is_told: bool,
    pub broken: Option<String>,
    pub yes: u32,
    pub no: u32,
}

impl World {
    pub fn new(seed: u64, mistake: Option<Mistake>) -> Self {
        let mut world = Self {
            now_us: 0,
            chance: Chance::new(seed),
            queue: BinaryHeap::new(),
            events: std::collections::BTreeMap::new(),
            numbers: 0,
            database: Database::new(mistake),
            processes: Vec::new(),
            slots: [0; SLOTS],
            calls: Vec::new(),
            acknowledged: Vec::new(),
            mistake,
            trace: DefaultHasher::new(),
            is_told: false,
            broken: None,
            yes: 0,
            no: 0,
        };
        for key in 0..keys::COUNT {
            if !key.is_multiple_of(4) {
                world.database.commit(Deed::Issued(key), usize::MAX);
            } else {
                let at_us = world.chance.range(0, FAULTS_UNTIL_US / 2);
                world.at(at_us, Event::Client { deed: Deed::Issued(key), attempt: 0 });
            }
            let at_us = world.chance.range(FAULTS_UNTIL_US / 20, FAULTS_UNTIL_US);
            world.at(at_us, Event::Client { deed: Deed::Revoked(key), attempt: 0 });
        }
        world.database.log.iter_mut().for_each(|change| change.is_replicated = true);
        for slot in 0..SLOTS {
            world.at(0, Event::Restart(slot));
        }
        world.at(50_000, Event::Fault);
        world
    }

    /// Lets everything happen; the hash of all that did.
    pub fn run(&mut self) -> u64 {
        while self.broken.is_none()
            && let Some(Reverse((at_us, number))) = self.queue.pop()
            && at_us < END_US
        {
            self.now_us = at_us;
            let event = self.events.remove(&number).expect("each event happens once");
            self.happen(event);
        }
        if self.broken.is_none() {
            self.check_that_all_is_well();
        }
        self.trace.finish()
    }

    fn has(&self, mistake: Mistake) -> bool {
        self.mistake == Some(mistake)
    }

    fn at(&mut self, at_us: i64, event: Event) {
        self.numbers += 1;
        self.queue.push(Reverse((at_us, self.numbers)));
        self.events.insert(self.numbers, event);
    }

    fn within(&mut self, us: i64, event: Event) {
        self.at(self.now_us + us, event);
    }

    fn is_quiet(&self) -> bool {
        self.now_us >= FAULTS_UNTIL_US
    }

    /// A message's way: how long it takes, for each time that it arrives.
    fn ways(&mut self) -> Vec<i64> {
        if self.is_quiet() {
            return vec![self.chance.range(100, 2_000)];
        }
        let way = match self.chance.index(100) {
            0 => return Vec::new(),
            1..3 => self.chance.range(2_000, 2 * LEASE_US),
            3..9 => self.chance.range(2_000, 100_000),
            _ => self.chance.range(100, 2_000),
        };
        if self.chance.one_in(50) {
            vec![way, way + self.chance.range(1, 200_000)]
        } else {
            vec![way]
        }
    }

    fn is_cut(&self, process: usize) -> bool {
        self.now_us < self.processes[process].cut_until_us
    }

    fn ask(&mut self, process: usize, id: u64, request: &Request) {
        // TCP delivers a request once or not at all.
        let mut way = self.ways().first().copied();
        // What the mistake is about, made likelier.
        let may_be_late = self.has(Mistake::LateTellCounts) && !self.is_quiet();
        if may_be_late && matches!(request, Request::Tell(_)) && self.chance.one_in(8) {
            way = Some(self.chance.range(SILENCE_MAX_US, 2 * LEASE_US));
        }
        if let Some(way) = way.filter(|_| !self.is_cut(process)) {
            self.within(way, Event::ToDatabase { process, id, request: request.clone() });
        }
    }

    fn answer(&mut self, process: usize, id: u64, reply: &Reply) {
        for way in self.ways() {
            self.within(way, Event::ToProcess { process, id, reply: reply.clone() });
        }
    }

    fn happen(&mut self, event: Event) {
        (self.now_us, &event).hash(&mut self.trace);
        if let Some(process) = self.concerns(&event) {
            let concerned = &self.processes[process];
            if !concerned.is_alive {
                return;
            }
            if concerned.paused_until_us > self.now_us {
                // It happens when the process goes on, in the same order.
                return self.at(self.processes[process].paused_until_us, event);
            }
        }
        if self.is_told {
            println!("{:>9} {event:?}", self.now_us);
        }
        match event {
            Event::Wake(process, waiting) => {
                if self.processes[process].waiting == waiting {
                    self.drive(process);
                }
            }
            Event::Timeout(process, id) => self.time_out(process, id),
            Event::Hint(process) => {
                self.processes[process].node.wake();
                self.drive(process);
            }
            Event::ToDatabase { process, id, request } => self.at_database(process, id, request),
            Event::ToProcess { process, id, reply } => self.at_process(process, id, reply),
            Event::LateWrite { process, id, tell, head } => {
                let told = self.database.tell(&tell, head);
                self.answer(process, id, &Reply::Told(tell, told));
            }
            Event::LateApply(process, changes) => {
                keys::apply(&mut self.processes[process].table, &changes);
            }
            Event::LockExpires(call) => {
                if self.database.lock == Some(call) {
                    self.unlock();
                }
            }
            Event::AskAgain(call, asks) => {
                if self.calls[call].asks == asks {
                    self.ask_rows(call);
                }
            }
            Event::Client { deed, attempt } => self.client(deed, attempt),
            Event::Verify(slot, key) => self.verify(slot, key),
            Event::Fault => self.fault(),
            Event::Resume(process) => {
                self.processes[process].waiting += 1;
                self.drive(process);
            }
            Event::Restart(slot) => self.start(slot),
            Event::DatabaseUp => self.database.is_up = true,
        }
    }

    /// The process in which an event happens.
    fn concerns(&self, event: &Event) -> Option<usize> {
        match event {
            Event::Wake(process, _)
            | Event::Timeout(process, _)
            | Event::Hint(process)
            | Event::ToProcess { process, .. }
            | Event::LateApply(process, _)
            | Event::Resume(process) => Some(*process),
            Event::AskAgain(call, _) => Some(self.calls[*call].process),
            Event::Verify(slot, _) => Some(self.slots[*slot]),
            Event::ToDatabase { .. }
            | Event::LateWrite { .. }
            | Event::LockExpires(_)
            | Event::Client { .. }
            | Event::Fault
            | Event::Restart(_)
            | Event::DatabaseUp => None,
        }
    }

    /// Starts a process: another than before, with a clock of its own.
    fn start(&mut self, slot: usize) {
        let process = self.processes.len();
        let lease_us = if slot == 0 { SHORT_LEASE_US } else { LEASE_US };
        let terms = Terms {
            lease_us,
            tell_every_us: lease_us / 3,
            tell_own_us: 8_000,
            poll_every_us: 20_000,
            is_sole: false,
        };
        let mut node = Node::new(node_id(process), terms);
        // As a server hears of them from the rows at its start.
        node.heard_of_lease(LEASE_US);
        let clocks = Clocks::random(&mut self.chance);
        let asked = clocks.read(self.now_us);
        self.processes.push(Process {
            slot,
            is_alive: true,
            paused_until_us: 0,
            cut_until_us: 0,
            clocks,
            node,
            terms,
            table: keys::table(),
            busy: None,
            asked,
            waiting: 0,
        });
        self.slots[slot] = process;
        self.drive(process);
    }

    /// Does what the node wants next, unless it waits for an answer.
    fn drive(&mut self, process: usize) {
        let now_us = self.now_us;
        let it = &mut self.processes[process];
        if it.busy.is_some() {
            return;
        }
        let now = it.clocks.read(now_us);
        let request = match it.node.next(now) {
            Step::Load => Request::Load,
            Step::Poll => Request::Poll(it.node.applied_seq()),
            Step::Fetch { after } => Request::Fetch(after),
            Step::Tell => match it.node.tell(now) {
                Some(tell) => Request::Tell(tell),
                None => Request::Load,
            },
            Step::Wait { until_boot_us } => {
                it.waiting += 1;
                let event = Event::Wake(process, it.waiting);
                // A little more than asked for: its clock may be slow.
                return self.within((until_boot_us - now.boot_us) * 101 / 100 + 1, event);
            }
        };
        it.asked = now;
        self.numbers += 1;
        let id = self.numbers;
        self.processes[process].busy = Some((id, request.clone()));
        self.within(SILENCE_MAX_US, Event::Timeout(process, id));
        self.ask(process, id, &request);
    }

    fn time_out(&mut self, process: usize, id: u64) {
        let now = self.processes[process].clocks.read(self.now_us);
        let it = &mut self.processes[process];
        let Some((_, request)) = it.busy.take_if(|(busy, _)| *busy == id) else { return };
        if matches!(request, Request::Tell(_)) {
            it.node.tell_failed(now);
        } else {
            it.node.failed(now);
        }
        self.drive(process);
    }

    fn at_database(&mut self, process: usize, id: u64, request: Request) {
        if !self.database.is_up {
            return;
        }
        match request {
            Request::Load => {
                let snapshot = self.database.snapshot(self.now_us);
                let all = self.database.log.clone();
                self.answer(process, id, &Reply::Loaded(snapshot, all));
            }
            Request::Poll(applied) => {
                let mut head = self.database.head(applied);
                if self.has(Mistake::LifeUnchecked) {
                    head.nonce = self.processes[process].node.applied_nonce();
                    head.seq = head.seq.max(applied);
                    let standing = self.processes[process].node.standing();
                    head.incarnation = standing.map_or(head.incarnation, |it| it.incarnation);
                }
                self.answer(process, id, &Reply::Polled(head));
            }
            Request::Fetch(after) => {
                let changes = self.database.after(after);
                self.answer(process, id, &Reply::Fetched(changes));
            }
            Request::Tell(tell) if self.has(Mistake::HeadOutsideLock) => {
                let head = self.database.head_for(&tell);
                let us = self.chance.range(20_000, 140_000);
                self.within(us, Event::LateWrite { process, id, tell, head });
            }
            Request::Tell(tell) => self.queue_up(Waiting::Tell { process, id, tell }),
            Request::Lock(call) => {
                self.queue_up(Waiting::Call { process, call });
            }
            Request::Commit(call) => self.commit(process, call),
            Request::Rows(call) => {
                let rows = self.database.rows.values().copied().collect();
                let incarnation = self.database.incarnation();
                self.answer(process, 0, &Reply::Rows { call, incarnation, rows });
            }
            Request::Reap(rows) => self.database.reap(&rows),
        }
    }

    fn queue_up(&mut self, waiting: Waiting) {
        self.database.queue.push_back(waiting);
        self.serve_queue();
    }

    fn unlock(&mut self) {
        self.database.lock = None;
        self.serve_queue();
    }

    /// K goes to whoever waits longest: shared for an instant, or to a transaction.
    fn serve_queue(&mut self) {
        while self.database.lock.is_none()
            && let Some(waiting) = self.database.queue.pop_front()
        {
            match waiting {
                Waiting::Tell { process, id, tell } => {
                    let head = self.database.head_for(&tell);
                    let told = self.database.tell(&tell, head);
                    self.answer(process, id, &Reply::Told(tell, told));
                }
                Waiting::Call { process, call } => {
                    self.database.lock = Some(call);
                    self.within(IDLE_MAX_US, Event::LockExpires(call));
                    self.answer(process, 0, &Reply::Granted(call));
                }
            }
        }
    }

    fn commit(&mut self, process: usize, call: usize) {
        // A transaction that was ended cannot be committed.
        if self.database.lock != Some(call) {
            return;
        }
        let Some((seq, is_new)) = self.database.commit(self.calls[call].deed, process) else {
            return self.unlock();
        };
        let incarnation = self.database.incarnation();
        self.answer(process, 0, &Reply::Committed { call, seq, incarnation, is_new });
        for slot in 0..SLOTS {
            for way in self.ways() {
                self.within(way, Event::Hint(self.slots[slot]));
            }
        }
        self.unlock();
    }

    fn at_process(&mut self, process: usize, id: u64, reply: Reply) {
        let now = self.processes[process].clocks.read(self.now_us);
        match reply {
            Reply::Granted(call) => return self.ask(process, 0, &Request::Commit(call)),
            Reply::Committed { call, seq, incarnation, is_new } => {
                return self.committed(call, seq, incarnation, is_new);
            }
            Reply::Rows { call, incarnation, rows } => return self.hear(call, incarnation, rows),
            // Whatever comes late or twice is for the node itself to see through.
            Reply::Told(tell, told) => self.told(process, &tell, told),
            // Those are asked one by one; an answer to another question is dropped.
            Reply::Loaded(..) | Reply::Polled(_) | Reply::Fetched(_)
                if !self.is_awaited(process, id) =>
            {
                return;
            }
            Reply::Loaded(snapshot, all) => {
                let it = &mut self.processes[process];
                it.table = keys::table();
                keys::apply(&mut it.table, &all);
                it.node.loaded(now, &snapshot);
            }
            Reply::Polled(head) => {
                let it = &mut self.processes[process];
                it.node.polled(it.asked, now, &head);
            }
            Reply::Fetched(changes) => self.fetched(process, changes),
        }
        self.processes[process].busy.take_if(|(busy, _)| *busy == id);
        self.drive(process);
    }

    fn is_awaited(&self, process: usize, id: u64) -> bool {
        self.processes[process].busy.as_ref().is_some_and(|(busy, _)| *busy == id)
    }

    fn fetched(&mut self, process: usize, changes: Vec<Change>) {
        let it = &mut self.processes[process];
        if !it.node.follows(changes.iter().map(|change| change.seq)) {
            return;
        }
        let page = Database::page(process, &changes).expect("a page that follows is not empty");
        if self.mistake == Some(Mistake::AcknowledgedBeforeApplied) {
            it.node.applied(&page);
            let us = self.chance.range(1_000, 100_000);
            return self.within(us, Event::LateApply(process, changes));
        }
        keys::apply(&mut it.table, &changes);
        it.node.applied(&page);
    }

    fn told(&mut self, process: usize, tell: &Tell, mut told: Told) {
        let now = self.processes[process].clocks.read(self.now_us);
        let it = &mut self.processes[process];
        let is_awaited = matches!(&it.busy, Some((_, Request::Tell(busy))) if busy == tell);
        if self.mistake == Some(Mistake::DeadlineFromReply)
            && is_awaited
            && let Some(again) = it.node.tell(now)
        {
            told.generation = again.generation;
            if let Some(row) = self.database.rows.get_mut(&tell.node) {
                row.generation = again.generation;
            }
        }
        it.node.told(now, &told);
    }

    /// Somebody asks a process for a change, and asks another when no answer comes.
    fn client(&mut self, deed: Deed, attempt: u8) {
        if self.acknowledged.contains(&deed) {
            return;
        }
        let patience_us = if self.is_quiet() { LEASE_US / 2 } else { 2 * LEASE_US };
        let again_us = self.chance.range(SILENCE_MAX_US, patience_us);
        self.within(again_us, Event::Client { deed, attempt: attempt.saturating_add(1) });
        let process = self.slots[self.chance.index(SLOTS)];
        let it = &self.processes[process];
        let is_there = it.is_alive && it.paused_until_us <= self.now_us;
        if !is_there || it.node.standing().is_none() {
            return;
        }
        let call = self.calls.len();
        let is_hasty = self.has(Mistake::WaitSetBeforeCommit);
        let early = is_hasty.then(|| self.database.rows.keys().copied().collect());
        self.calls.push(Call { deed, process, waiter: None, asks: 0, early, is_over: false });
        self.ask(process, 0, &Request::Lock(call));
    }

    fn committed(&mut self, call: usize, seq: i64, incarnation: Incarnation, is_new: bool) {
        if self.calls[call].waiter.is_some() {
            return;
        }
        // Synchronous replication: whoever is told of a commit can rely on it.
        if incarnation == self.database.incarnation() {
            let replicated = usize::try_from(seq).expect("changes are numbered from 1");
            self.database.log[..replicated].iter_mut().for_each(|it| it.is_replicated = true);
        }
        if !is_new && self.has(Mistake::RetryNotWaiting) {
            return self.acknowledge(call);
        }
        let it = &self.processes[self.calls[call].process];
        let mut at_us = it.clocks.read(self.now_us).boot_us;
        if self.has(Mistake::ShortWait) {
            at_us -= LEASE_US / 2;
        }
        let Some(standing) = it.node.standing() else { return };
        let standing = match self.mistake {
            Some(Mistake::NoQuarantine) => {
                Standing { incarnation, quarantine_until_us: i64::MIN, ..standing }
            }
            _ => standing,
        };
        let settle = match self.calls[call].deed {
            Deed::Issued(_) => Settle::Widening,
            Deed::Revoked(_) => Settle::Narrowing,
        };
        let commit = Commit { seq, incarnation, at_us };
        self.calls[call].waiter = Some(Waiter::begin(settle, commit, &standing));
        self.ask_rows(call);
    }

    fn ask_rows(&mut self, call: usize) {
        let process = self.calls[call].process;
        let now_us = self.processes[process].clocks.read(self.now_us).boot_us;
        let Some(waiter) = &self.calls[call].waiter else { return };
        if self.calls[call].is_over {
            return;
        }
        if matches!(waiter.unheard(now_us), Answer::Done | Answer::LeftBehind) {
            return self.acknowledge(call);
        }
        self.ask(process, 0, &Request::Rows(call));
        self.calls[call].asks += 1;
        let asks = self.calls[call].asks;
        self.within(SILENCE_MAX_US / 4, Event::AskAgain(call, asks));
    }

    fn hear(&mut self, call: usize, incarnation: Incarnation, mut rows: Vec<LeaseRow>) {
        let process = self.calls[call].process;
        let it = &self.processes[process];
        let now_us = it.clocks.read(self.now_us).boot_us;
        let applied_seq = it.node.applied_seq();
        let own = Some(Own { node: node_id(process), applied_seq, lease_us: it.terms.lease_us });
        if let Some(early) = &self.calls[call].early {
            rows.retain(|row| early.contains(&row.node));
        }
        if self.calls[call].is_over {
            return;
        }
        let Some(waiter) = &mut self.calls[call].waiter else { return };
        match waiter.hear(now_us, incarnation, own, &rows) {
            Answer::AskAgain => {
                if now_us - waiter.begun_us() >= QUARANTINE_US {
                    self.broken = Some(format!("P3: call {call} waits for longer than a lease"));
                }
                let asks = self.calls[call].asks;
                self.within(ASK_AGAIN_US, Event::AskAgain(call, asks));
            }
            Answer::Unconfirmed => self.calls[call].is_over = true,
            Answer::Done | Answer::LeftBehind => self.acknowledge(call),
            Answer::WaitedOut => {
                let behind: Vec<LeaseRow> = waiter.behind(own, &rows).copied().collect();
                self.acknowledge(call);
                self.ask(process, 0, &Request::Reap(behind));
            }
        }
    }

    /// Somebody reads that it is done; the judge asks everywhere, at once and again.
    fn acknowledge(&mut self, call: usize) {
        let Call { deed, is_over, .. } = &mut self.calls[call];
        *is_over = true;
        let deed = *deed;
        self.acknowledged.push(deed);
        if let Deed::Revoked(key) = deed {
            for slot in 0..SLOTS {
                self.within(0, Event::Verify(slot, key));
                for _ in 0..4 {
                    let us = self.chance.range(1, LEASE_US);
                    self.within(us, Event::Verify(slot, key));
                }
            }
        }
    }

    /// A verification, as the server does it: the lease first, then the table.
    fn verify(&mut self, slot: usize, key: usize) {
        let it = &self.processes[self.slots[slot]];
        if !it.node.deadline().is_held(it.clocks.read(self.now_us)) {
            return;
        }
        let is_valid = matches!(it.table.decide(&keys::question(key)), Decision::Valid(_));
        is_valid.hash(&mut self.trace);
        if is_valid {
            self.yes += 1;
        } else {
            self.no += 1;
        }
        if is_valid && self.acknowledged.contains(&Deed::Revoked(key)) {
            self.broken = Some(format!("P2: slot {slot} says yes to key {key}, which was revoked"));
        }
    }

    fn fault(&mut self) {
        if self.is_quiet() {
            return;
        }
        let next_us = self.chance.range(20_000, 400_000);
        self.within(next_us, Event::Fault);
        let slot = self.chance.index(SLOTS);
        let process = self.slots[slot];
        // Until the end of the faults at most; the rest must heal.
        let left_us = FAULTS_UNTIL_US - self.now_us;
        let us = self.chance.range(1_000, 3 * LEASE_US).min(left_us);
        let key = self.chance.index(keys::COUNT);
        self.within(0, Event::Verify(slot, key));
        let (until_us, stops) = (self.now_us + us, self.has(Mistake::StoppedClock));
        match self.chance.index(8) {
            0..2 => {
                let it = &mut self.processes[process];
                if it.paused_until_us <= self.now_us {
                    it.paused_until_us = until_us;
                    if stops {
                        it.clocks.stand_still(us);
                    }
                    self.within(us, Event::Resume(process));
                }
            }
            2 => {
                if self.processes[process].is_alive {
                    self.processes[process].is_alive = false;
                    self.within(us.min(LEASE_US), Event::Restart(slot));
                }
            }
            3..5 => self.processes[process].cut_until_us = until_us,
            5 => {
                self.database.is_up = false;
                self.database.lock = None;
                self.database.queue.clear();
                self.within(us.min(LEASE_US), Event::DatabaseUp);
            }
            6 => {
                let chance = &mut self.chance;
                self.database.fail_over(self.now_us, || chance.one_in(2));
            }
            _ => {
                let by_us = self.chance.range(-7_200_000_000, 7_200_000_000);
                self.processes[process].clocks.jump(by_us);
            }
        }
    }

    /// Long after the last fault, every process answers, knows everything, and nobody waits.
    fn check_that_all_is_well(&mut self) {
        let head = self.database.log.len() as i64;
        for slot in 0..SLOTS {
            let it = &self.processes[self.slots[slot]];
            let is_held = it.node.deadline().is_held(it.clocks.read(self.now_us));
            if it.slot != slot || !is_held || it.node.applied_seq() != head {
                self.broken = Some(format!("slot {slot} has not recovered"));
            }
        }
        let is_revoked = |key| self.acknowledged.contains(&Deed::Revoked(key));
        if let Some(key) = (0..keys::COUNT).find(|key| !is_revoked(*key)) {
            self.broken = Some(format!("nobody could revoke key {key}"));
        }
    }
}

fn node_id(process: usize) -> NodeId {
    let mut id = [0; 16];
    id[..8].copy_from_slice(&(process as u64).to_be_bytes());
    NodeId(id)
}
