//! What can happen next in the small world, and what must never have happened.

use super::super::explore::Model;
use super::*;

impl Scope {
    fn node_actions(&self, world: &World, n: usize, actions: &mut Vec<Action>) {
        let server = &world.servers[n];
        if server.late.is_some() && world.database.lock.is_none() {
            actions.push(Action::LateWork(n));
        }
        match &server.wire {
            Some(Wire::Asked(_)) if world.database.lock.is_none() => {
                actions.push(Action::TellWork(n));
            }
            Some(Wire::Asked(_)) if self.has(Mistake::HeadOutsideLock) => {
                actions.push(Action::TellWork(n));
            }
            Some(Wire::Half(..)) => actions.push(Action::TellWork(n)),
            _ => {}
        }
        if matches!(server.poll, Some((_, None))) {
            actions.push(Action::PollAnswer(n));
        }
        match server.life {
            Life::Down => return,
            Life::Paused => return actions.push(Action::Resume(n)),
            Life::Up => {}
        }
        if world.crashes > 0 {
            actions.push(Action::Crash(n));
        }
        if world.pauses > 0 {
            actions.push(Action::Pause(n));
        }
        if server.node.applied_seq() > i64::from(server.table.count_ones()) {
            actions.push(Action::Apply(n));
        }
        match &server.wire {
            Some(Wire::Answered(..)) => actions.push(Action::TellHear(n)),
            Some(Wire::Asked(_) | Wire::Half(..)) | None => {}
        }
        if server.wire.is_some() && world.losses > 0 {
            actions.extend([Action::TellLose(n, false), Action::TellLose(n, true)]);
        }
        if matches!(server.poll, Some((_, Some(_)))) {
            actions.push(Action::PollHear(n));
        }
        match server.node.next(NOW) {
            Step::Load => actions.push(Action::Load(n)),
            Step::Tell => {
                if world.database.lock.is_none() {
                    actions.push(Action::Tell(n));
                }
                if world.slow > 0 {
                    actions.push(Action::TellAsk(n));
                }
            }
            Step::Poll | Step::Fetch { .. } | Step::Wait { .. } => {}
        }
        let is_loaded = server.node.standing().is_some();
        if is_loaded && server.node.next(NOW) != Step::Load {
            if self.is_sole && server.poll.is_none() {
                actions.push(Action::PollAsk(n));
            } else if !self.is_sole
                && server.wire.is_none()
                && server.node.applied_seq() < world.database.seq()
            {
                actions.push(Action::Poll(n));
            }
        }
    }

    fn call_actions(&self, world: &World, call: usize, actions: &mut Vec<Action>) {
        if !world.is_up(self.calls[call].1) {
            return;
        }
        let is_free = world.database.lock.is_none();
        match &world.calls[call] {
            Stage::Begun => {
                let is_hasty = self.has(Mistake::WaitSetBeforeCommit)
                    || self.has(Mistake::HeadReadWithTheLock);
                let is_loaded = world.servers[self.calls[call].1].node.standing().is_some();
                if is_hasty && is_loaded {
                    actions.push(Action::Hurry(call));
                } else if is_free && is_loaded {
                    actions.push(Action::Change(call));
                    if world.holds > 0 {
                        actions.push(Action::Lock(call));
                    }
                }
            }
            Stage::Hasty(..) if is_free => actions.push(Action::Change(call)),
            Stage::Locked(..) => actions.push(Action::Commit(call)),
            Stage::Waiting { read: None, .. } => {
                actions.push(Action::Ask(call));
                if world.reads > 0 {
                    actions.push(Action::Read(call));
                }
            }
            Stage::Waiting { read: Some(_), .. } => actions.push(Action::Hear(call)),
            Stage::Hasty(..) | Stage::Over => {}
        }
    }
}

impl Model for Scope {
    type State = World;
    type Action = Action;

    fn start(&self) -> World {
        assert!(self.leases.len() <= NODES && self.calls.len() <= CALLS);
        let server = |n| Server {
            node: Node::new(node_id(n), self.terms(n)),
            table: 0,
            life: Life::Up,
            wire: None,
            late: None,
            poll: None,
        };
        let mut world = World {
            database: Database {
                life: 0,
                failed_over_at_us: -self.longest(),
                log: Vec::new(),
                rows: [None; NODES],
                lock: None,
            },
            servers: (0..self.leases.len()).map(server).collect(),
            calls: vec![Stage::Begun; self.calls.len()],
            acknowledged: 0,
            slow: self.slow,
            holds: self.holds,
            reads: self.reads,
            losses: self.losses,
            crashes: self.crashes,
            pauses: self.pauses,
            failovers: self.failovers,
            broken: None,
        };
        for n in 0..self.settled {
            self.load(&mut world, n);
            if self.verifies(n) {
                self.tell(&mut world, n);
            }
        }
        world
    }

    fn actions(&self, world: &World) -> Vec<Action> {
        let mut actions = Vec::new();
        if world.is_over() {
            return actions;
        }
        // Nobody holds K for longer than a tick; the database sees to that.
        let is_stuck = world.database.lock.is_some_and(|(_, since)| since < 0);
        if !is_stuck {
            actions.push(Action::Tick);
        }
        if world.database.lock.is_some() {
            actions.push(Action::Expire);
        }
        for n in (0..self.leases.len()).filter(|n| self.verifies(*n)) {
            self.node_actions(world, n, &mut actions);
            if world.failovers > 0 && world.database.rows[n].is_some() {
                actions.push(Action::Failover(n));
            }
        }
        for call in 0..self.calls.len() {
            self.call_actions(world, call, &mut actions);
        }
        actions
    }

    fn step(&self, before: &World, action: Action) -> Option<World> {
        let mut world = before.clone();
        match action {
            // All that asking in vain leaves behind is the memory of a longer lease.
            Action::Ask(call) if self.asks_in_vain(before, call) => return None,
            Action::Tick => self.tick(&mut world),
            Action::Load(n) => self.load(&mut world, n),
            Action::Tell(n) => self.tell(&mut world, n),
            Action::Poll(n) => {
                let head = world.database.head(world.servers[n].node.applied_seq());
                world.servers[n].node.polled(NOW, NOW, &head);
                world.fetch(n, self);
            }
            Action::Apply(n) => world.servers[n].table = world.database.table(),
            Action::PollAsk(_)
            | Action::PollAnswer(_)
            | Action::PollHear(_)
            | Action::TellAsk(_)
            | Action::TellWork(_)
            | Action::TellHear(_)
            | Action::TellLose(..)
            | Action::LateWork(_) => self.wire_step(&mut world, action),
            Action::Pause(_)
            | Action::Resume(_)
            | Action::Crash(_)
            | Action::Failover(_)
            | Action::Expire => self.trouble_step(&mut world, action),
            Action::Hurry(_)
            | Action::Change(_)
            | Action::Lock(_)
            | Action::Commit(_)
            | Action::Ask(_)
            | Action::Read(_)
            | Action::Hear(_) => self.call_step(&mut world, action),
        }
        world.rank_generations();
        Some(world)
    }

    /// P2: whoever can answer has every acknowledged mutation. P3: whoever has waited for the
    /// longest lease is told an end, whatever the rows say.
    fn violation(&self, world: &World) -> Option<String> {
        if let Some(broken) = world.broken {
            return Some(broken.to_owned());
        }
        for n in 0..self.leases.len() {
            let server = &world.servers[n];
            let lacks = world.acknowledged & !server.table;
            if world.is_up(n) && server.node.deadline().is_held(NOW) && lacks != 0 {
                return Some(format!("P2: node {n} answers without an acknowledged change"));
            }
        }
        for (call, stage) in world.calls.iter().enumerate() {
            let n = self.calls[call].1;
            if let (Stage::Waiting { waiter, .. }, true) = (stage, world.is_up(n)) {
                let rows = lease_rows(&world.database.rows, u8::MAX, self);
                let late = waiter.begun_us() + self.longest();
                let (life, own) = (incarnation(world.database.life), world.own(n, self));
                if waiter.clone().hear(late, life, own, &rows) == Answer::AskAgain {
                    return Some(format!("P3: call {call} waits for longer than a lease"));
                }
            }
        }
        None
    }
}
