//! The clients: verifiers that ask as fast as they are answered, and mutators that make keys, take
//! things away from them, and ask every node at once whether it knows.
//!
//! What a mutator does follows from the seed; which of it meets which fault does not quite, since
//! clients and nodes run in the time of the machine.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::chance::Chance;
use crate::clock::{Clock, us};
use crate::cluster::{Cluster, Node};
use crate::event::{Answer, Change, Event, History, Kind, Odd, Outcome, Run, Verify};
use crate::wire::{Reply, Wire};

/// How long a client waits for a verification before it asks the next on another connection. The
/// question stays asked: a node that was stopped finds it when it wakes.
const HELD_UP: Duration = Duration::from_millis(250);
/// When a verification that is still not answered counts as lost.
const ANSWER_MAX: Duration = Duration::from_secs(20);
const CONNECT_MAX: Duration = Duration::from_secs(1);
/// How long to wait when a node cannot be asked.
const NOBODY_THERE: Duration = Duration::from_millis(20);
/// How long a verifier rests that was held up. It leaves room in the queue of a node that was
/// stopped for the questions that matter most: those of mutators, right after an acknowledgement.
const REST: Duration = Duration::from_millis(500);
/// Attempts at one change, on changing nodes.
const ATTEMPTS_MAX: u32 = 20;
/// Secrets that verifiers prefer, because something was just done to them.
const RECENT_MAX: usize = 24;

/// A secret and whose it is.
#[derive(Debug)]
pub(crate) struct Known {
    pub(crate) key: usize,
    pub(crate) secret: usize,
    pub(crate) user: usize,
    /// The key's id.
    pub(crate) id: String,
    text: String,
}

/// What all clients share.
pub(crate) struct Site {
    pub(crate) cluster: Cluster,
    pub(crate) clock: Clock,
    pub(crate) history: History,
    pub(crate) run: Run,
    pub(crate) token: String,
    pub(crate) api_id: String,
    pub(crate) known: Mutex<Vec<Arc<Known>>>,
    pub(crate) recent: Mutex<VecDeque<Arc<Known>>>,
    /// Becomes true when the clients shall end.
    pub(crate) stop: watch::Sender<bool>,
}

impl Site {
    /// Adds a secret to those that are verified.
    fn learn(&self, known: &Arc<Known>) {
        locked(&self.known).push(Arc::clone(known));
        self.prefer(known);
    }

    /// Has a secret verified more often for a while.
    fn prefer(&self, known: &Arc<Known>) {
        let mut recent = locked(&self.recent);
        recent.push_back(Arc::clone(known));
        if recent.len() > RECENT_MAX {
            recent.pop_front();
        }
    }

    fn choose(&self, chance: &mut Chance) -> Option<Arc<Known>> {
        let recent = locked(&self.recent);
        if chance.percent(70) {
            return recent.get(chance.below(recent.len())).cloned();
        }
        drop(recent);
        let known = locked(&self.known);
        known.get(chance.below(known.len())).cloned()
    }

    /// Notes what should never happen.
    pub(crate) fn odd(&self, node: Option<usize>, what: impl Into<String>) {
        let (at_us, what) = (self.clock.now_us(), what.into());
        self.history.add(&Event::Odd(Odd { node, at_us, what }));
    }

    pub(crate) fn is_stopping(&self) -> bool {
        *self.stop.borrow()
    }
}

/// The value of a lock that protects nothing but itself.
pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Verifies a secret and records it. Uses the connection in `slot`, or makes one. `None` when the
/// node could not be asked, or has not answered yet; it is recorded when it does.
pub(crate) async fn verify(
    site: &Arc<Site>,
    node: &Node,
    slot: &mut Option<Wire>,
    known: &Arc<Known>,
) -> Option<Answer> {
    let permit = Arc::clone(&node.pending).try_acquire_owned().ok()?;
    let mut wire = match slot.take().filter(Wire::is_open) {
        Some(wire) => wire,
        None => timeout(CONNECT_MAX, Wire::connect(node.address)).await.ok()??,
    };
    let (site, known, index) = (Arc::clone(site), Arc::clone(known), node.index);
    let mut flight = Box::pin(async move {
        let body = ("application/json", format!("{{\"api_key\":\"{}\"}}", known.text));
        let call_us = site.clock.now_us();
        let asked =
            wire.ask("POST", "/api/v1/api_keys/verify", Some(&site.token), None, Some(body));
        let reply = timeout(ANSWER_MAX, asked).await.ok().flatten();
        let return_us = reply.is_some().then(|| site.clock.now_us());
        let (answer, count) = match &reply {
            None => (Answer::Lost, None),
            Some(reply) => read(&site, index, &known, reply),
        };
        let (key, secret) = (known.key, known.secret);
        let verify = Verify { node: index, key, secret, call_us, return_us, answer, count };
        site.history.add(&Event::Verify(verify));
        drop(permit);
        (reply.is_some().then_some(wire), answer)
    });
    tokio::select! {
        (wire, answer) = &mut flight => {
            *slot = wire;
            Some(answer)
        }
        () = tokio::time::sleep(HELD_UP) => {
            tokio::spawn(flight);
            None
        }
    }
}

/// What a reply to a verification says.
fn read(site: &Site, node: usize, known: &Known, reply: &Reply) -> (Answer, Option<u64>) {
    if reply.status == 503 {
        return (Answer::Unavailable, None);
    }
    let answer = match (reply.status, reply.code()) {
        (200, "API_KEY_VERIFIED") => {
            let user = format!("user{}", known.user);
            let whose = (reply.text("/key_id"), reply.text("/user_id"));
            if whose == (Some(known.id.as_str()), Some(user.as_str())) {
                let count = reply.body.get("verification_count").and_then(|count| count.as_u64());
                return (Answer::Valid, count);
            }
            Answer::Odd
        }
        (200, "API_KEY_REVOKED") => Answer::Revoked,
        (200, "API_KEY_ROTATED") => Answer::Rotated,
        (200, "API_KEY_INACTIVE") => Answer::Inactive,
        (200, "API_KEY_OWNER_SUSPENDED") => Answer::OwnerSuspended,
        (200, "API_KEY_INVALID") => Answer::Invalid,
        _ => Answer::Odd,
    };
    if answer == Answer::Odd {
        let (status, code) = (reply.status, reply.code());
        let whose = (reply.text("/key_id"), reply.text("/user_id"));
        site.odd(
            Some(node),
            format!("key {} was verified with {status} {code} {whose:?}", known.key),
        );
    }
    (answer, None)
}

/// Verifies on one node until the clients shall end.
pub(crate) async fn verifier(site: Arc<Site>, node: usize, mut chance: Chance) {
    let Some(node) = site.cluster.nodes.get(node) else { return };
    let mut slot = None;
    while !site.is_stopping() {
        let Some(known) = site.choose(&mut chance) else {
            tokio::time::sleep(NOBODY_THERE).await;
            continue;
        };
        let began_us = site.clock.now_us();
        if verify(&site, node, &mut slot, &known).await.is_none() {
            let is_held_up = site.clock.now_us() - began_us >= us(HELD_UP);
            tokio::time::sleep(if is_held_up { REST } else { NOBODY_THERE }).await;
        }
    }
}

/// A key as its mutator knows it.
struct Key {
    key: usize,
    id: String,
    /// The newest secret's number, and the secret unless its reply was never seen.
    secret: usize,
    known: Option<Arc<Known>>,
}

/// One client that changes things, through any node.
pub(crate) struct Mutator {
    site: Arc<Site>,
    number: usize,
    /// Connections for changes, and for asking what came of them.
    wires: Vec<Option<Wire>>,
    probes: Vec<Option<Wire>>,
    changes: usize,
}

/// What shall be changed.
#[derive(Clone, Copy)]
struct Wish<'a> {
    kind: Kind,
    user: usize,
    key: Option<&'a Key>,
    /// The number of a key that is to be made.
    new_key: usize,
}

impl Mutator {
    pub(crate) fn new(site: Arc<Site>, number: usize) -> Self {
        let nodes = site.cluster.nodes.len();
        let (wires, probes) =
            ((0..nodes).map(|_| None).collect(), (0..nodes).map(|_| None).collect());
        Self { site, number, wires, probes, changes: 0 }
    }

    /// Lets one user after the other live and end, until the clients shall end.
    pub(crate) async fn run(mut self) {
        let seed = self.site.run.seed;
        for story in 0.. {
            if self.site.is_stopping() {
                return;
            }
            let user = self.number * 100_000 + story;
            let purpose = u64::try_from(user).unwrap_or(0) + 1_000_000;
            // OK to ignore: a story that was given up has said in the history how far it came.
            let _ = self.live(user, Chance::of(seed, purpose)).await;
        }
    }

    /// One user from the first key to the end. `None` when a change could not be made.
    async fn live(&mut self, user: usize, mut chance: Chance) -> Option<()> {
        let mut keys = Vec::new();
        for number in 0..1 + chance.below(3) {
            let wish = Wish { kind: Kind::Create, user, key: None, new_key: user * 4 + number };
            let reply = self.change(wish, chance.fork()).await?;
            // A repeat that was told so holds no secret.
            let Some((id, text)) = issued(&reply) else { continue };
            let known = Known { key: wish.new_key, secret: 0, user, id: id.clone(), text };
            let known = Arc::new(known);
            self.site.learn(&known);
            keys.push(Key { key: wish.new_key, id, secret: 0, known: Some(known) });
        }
        self.probe(&keys).await;
        for _ in 0..chance.below(4) {
            let at = chance.below(keys.len());
            let step = chance.below(4);
            let forks = (chance.fork(), chance.fork());
            tokio::time::sleep(chance.ms(0, 150)).await;
            match step {
                0 => {
                    let key = keys.get(at)?;
                    self.on_key(Kind::Disable, user, key, forks.0).await?;
                    self.on_key(Kind::Enable, user, key, forks.1).await?;
                }
                1 => {
                    self.on_user(Kind::Suspend, user, &keys, forks.0).await?;
                    self.on_user(Kind::Restore, user, &keys, forks.1).await?;
                }
                _ => self.rotate(user, keys.get_mut(at)?, forks.0).await?,
            }
        }
        let fork = chance.fork();
        match chance.below(8) {
            0 | 1 => self.on_user(Kind::DeleteUser, user, &keys, fork).await?,
            2 => self.on_user(Kind::Suspend, user, &keys, fork).await?,
            3 => self.on_key(Kind::Disable, user, keys.first()?, fork).await?,
            _ => {
                for key in &keys {
                    self.on_key(Kind::Revoke, user, key, chance.fork()).await?;
                }
            }
        }
        Some(())
    }

    async fn on_key(&mut self, kind: Kind, user: usize, key: &Key, chance: Chance) -> Option<()> {
        self.change(Wish { kind, user, key: Some(key), new_key: 0 }, chance).await?;
        self.probe(std::slice::from_ref(key)).await;
        Some(())
    }

    async fn on_user(
        &mut self,
        kind: Kind,
        user: usize,
        keys: &[Key],
        chance: Chance,
    ) -> Option<()> {
        self.change(Wish { kind, user, key: None, new_key: 0 }, chance).await?;
        self.probe(keys).await;
        Some(())
    }

    /// Gives a key another secret; afterwards both are asked for.
    async fn rotate(&mut self, user: usize, key: &mut Key, chance: Chance) -> Option<()> {
        let wish = Wish { kind: Kind::Rotate, user, key: Some(key), new_key: 0 };
        let reply = self.change(wish, chance).await?;
        self.probe(std::slice::from_ref(key)).await;
        key.secret += 1;
        key.known = issued(&reply)
            .map(|(id, text)| Arc::new(Known { key: key.key, secret: key.secret, user, id, text }));
        if let Some(known) = &key.known {
            self.site.learn(known);
        }
        self.probe(std::slice::from_ref(key)).await;
        Some(())
    }

    /// Asks every node about the keys, at once.
    async fn probe(&mut self, keys: &[Key]) {
        for known in keys.iter().filter_map(|key| key.known.as_ref()) {
            self.site.prefer(known);
            let mut asking = JoinSet::new();
            for (index, slot) in self.probes.iter_mut().enumerate() {
                let (site, known, mut slot) =
                    (Arc::clone(&self.site), Arc::clone(known), slot.take());
                asking.spawn(async move {
                    if let Some(node) = site.cluster.nodes.get(index) {
                        verify(&site, node, &mut slot, &known).await;
                    }
                    (index, slot)
                });
            }
            while let Some(asked) = asking.join_next().await {
                if let Ok((index, wire)) = asked
                    && let Some(slot) = self.probes.get_mut(index)
                {
                    *slot = wire;
                }
            }
        }
    }

    /// Makes a change, with as many attempts as it takes; the reply that acknowledged it. The same
    /// call is repeated after a time-out, on another node.
    async fn change(&mut self, wish: Wish<'_>, mut chance: Chance) -> Option<Reply> {
        let nodes = self.site.cluster.nodes.len();
        self.changes += 1;
        let idempotent = chance.percent(50);
        let key = format!("{}-{}-{}", self.site.run.seed, self.number, self.changes);
        let key = idempotent.then_some(key.as_str());
        // Some clients give up long before the bound, the others wait for longer.
        let long = Duration::from_micros(self.site.run.bound_us() + 1_000_000);
        let mut node = chance.below(nodes);
        let mut attempt = 0;
        while attempt < ATTEMPTS_MAX {
            let patience = if chance.percent(40) { chance.ms(30, 900) } else { long };
            match self.attempt(wish, node, attempt, key, patience).await {
                None => {}
                Some((Outcome::Acknowledged, reply)) => return reply,
                Some((Outcome::Refused, _)) => return None,
                Some((Outcome::Unknown, _)) => attempt += 1,
            }
            if self.site.is_stopping() && attempt > 2 {
                return None;
            }
            node = (node + 1 + chance.below(nodes.saturating_sub(1).max(1))) % nodes;
            tokio::time::sleep(chance.ms(10, 150)).await;
        }
        None
    }

    /// One attempt; `None` when the node could not be asked at all.
    async fn attempt(
        &mut self,
        wish: Wish<'_>,
        node: usize,
        attempt: u32,
        idempotency_key: Option<&str>,
        patience: Duration,
    ) -> Option<(Outcome, Option<Reply>)> {
        let site = Arc::clone(&self.site);
        let address = site.cluster.nodes.get(node)?.address;
        let mut wire = match self.wires.get_mut(node)?.take().filter(Wire::is_open) {
            Some(wire) => wire,
            None => timeout(CONNECT_MAX, Wire::connect(address)).await.ok()??,
        };
        let (method, path, body) = request(&site, wish);
        let body = body.map(|body| ("application/json", body));
        let call_us = site.clock.now_us();
        let asked = wire.ask(method, &path, Some(&site.token), idempotency_key, body);
        let reply = timeout(patience, asked).await.ok().flatten();
        let ended_us = site.clock.now_us();
        let change = Change {
            kind: wish.kind,
            node,
            user: wish.user,
            key: match wish.kind {
                Kind::Create => Some(wish.new_key),
                Kind::Revoke | Kind::Rotate | Kind::Disable | Kind::Enable => {
                    wish.key.map(|key| key.key)
                }
                Kind::Suspend | Kind::Restore | Kind::DeleteUser => None,
            },
            secret: wish.key.map_or(0, |key| key.secret),
            attempt,
            idempotent: idempotency_key.is_some(),
            waited_us: ended_us - call_us,
            call_us,
            return_us: reply.is_some().then_some(ended_us),
            status: reply.as_ref().map_or(0, |reply| reply.status),
            code: reply.as_ref().map_or("", Reply::code).to_owned(),
            seq: reply.as_ref().and_then(|reply| reply.body.get("seq")?.as_i64()),
        };
        let outcome = change.outcome();
        if outcome == Outcome::Refused || (change.status >= 500 && change.status != 503) {
            let (kind, status, code) = (change.kind, change.status, &change.code);
            site.odd(Some(node), format!("{kind} of user {} got {status} {code}", wish.user));
        }
        site.history.add(&Event::Change(change));
        if reply.is_some()
            && let Some(slot) = self.wires.get_mut(node)
        {
            *slot = Some(wire);
        }
        Some((outcome, reply))
    }
}

/// What is sent for a wish.
fn request(site: &Site, wish: Wish<'_>) -> (&'static str, String, Option<String>) {
    let key = format!("/api/v1/api_keys/{}", wish.key.map_or("", |key| &key.id));
    let user = format!("/api/v1/user?id=user{}", wish.user);
    match wish.kind {
        Kind::Create => {
            let body = json!({
                "name": format!("key {}", wish.new_key),
                "api_id": site.api_id,
                "type": "user",
                "user_id": format!("user{}", wish.user),
            });
            ("POST", "/api/v1/api_keys".to_owned(), Some(body.to_string()))
        }
        Kind::Revoke => ("DELETE", key, None),
        Kind::Rotate => ("PUT", key, None),
        Kind::Disable => ("PATCH", key, Some(json!({ "status": "inactive" }).to_string())),
        Kind::Enable => ("PATCH", key, Some(json!({ "status": "active" }).to_string())),
        Kind::Suspend => ("PATCH", user, Some(json!({ "is_suspended": true }).to_string())),
        Kind::Restore => ("PATCH", user, Some(json!({ "is_suspended": false }).to_string())),
        Kind::DeleteUser => ("DELETE", user, None),
    }
}

/// The id and the secret that a reply shows.
fn issued(reply: &Reply) -> Option<(String, String)> {
    let text = |path| reply.text(path).map(str::to_owned);
    Some((text("/api_key/id")?, text("/api_key/key")?))
}
