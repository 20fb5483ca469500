//! One run from the first process to the last count.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use crate::chance::Chance;
use crate::clock::{Clock, us};
use crate::cluster::{Cluster, HOST, PATIENCE, PENDING_MAX, Result};
use crate::event::{Count, Event, History, Run};
use crate::faults;
use crate::load::{Mutator, Site, locked, verifier, verify};
use crate::plan::plan;
use crate::proxy::Mode;
use crate::wire::Wire;

/// The shortest lease that a server can be told, so that a run sees many of them end.
const LEASE: (&str, Duration) = ("strict", Duration::from_secs(5));
/// What a commit may take with its turn in the queue: up to 1.1 s for the lock of a node that was
/// stopped while holding it, up to 1.2 s for one with a slow connection, and a machine on which
/// everything runs at once.
const COMMIT: Duration = Duration::from_secs(4);
/// What a narrowing change may take beyond its commit and L × 1.01.
const SLACK: Duration = Duration::from_millis(1_500);
/// Verifying clients of each node.
const VERIFIERS: usize = 2;
/// Clients that change things.
const MUTATORS: usize = 20;

/// What shall be run.
pub(crate) struct Order {
    pub(crate) seed: u64,
    pub(crate) seconds: u64,
    pub(crate) nodes: usize,
    pub(crate) keyward: PathBuf,
    pub(crate) scratch_postgres: PathBuf,
    pub(crate) folder: PathBuf,
    pub(crate) history: PathBuf,
}

/// Runs it and writes its history. An error is a run that could not be made or did not end; what
/// nodes did wrong is in the history.
pub(crate) async fn run(order: Order) -> Result<()> {
    let history = History::create(&order.history);
    let history = history.map_err(|error| format!("{}: {error}", order.history.display()))?;
    let run = Run {
        seed: order.seed,
        seconds: order.seconds,
        nodes: order.nodes,
        lease_us: us(LEASE.1),
        commit_us: us(COMMIT),
        slack_us: us(SLACK),
    };
    history.add(&Event::Run(run.clone()));
    let (script, keyward) = (&order.scratch_postgres, &order.keyward);
    let cluster = Cluster::start(&order.folder, script, keyward, order.nodes, LEASE.0).await?;
    let token = token(&cluster).await?;
    let api_id = api(&cluster, &token).await?;
    let site = Arc::new(Site {
        cluster,
        clock: Clock::begin(),
        history,
        run,
        token,
        api_id,
        known: Mutex::new(Vec::new()),
        recent: Mutex::new(VecDeque::new()),
        stop: watch::Sender::new(false),
    });
    under_load(&site, Duration::from_secs(order.seconds)).await;
    settle(&site).await;
    if let Err(what) = count(&site).await {
        site.odd(None, what);
    }
    for node in &site.cluster.nodes {
        if let Some(panic) = node.panic() {
            site.odd(Some(node.index), panic);
        }
    }
    site.history.flush().map_err(|error| error.to_string())
}

/// Clients and faults together, to the end of both.
async fn under_load(site: &Arc<Site>, length: Duration) {
    let seed = site.run.seed;
    let mut clients = JoinSet::new();
    for number in 0..MUTATORS {
        clients.spawn(Mutator::new(Arc::clone(site), number).run());
    }
    for node in 0..site.run.nodes {
        for number in 0..VERIFIERS {
            let purpose = u64::try_from(100 + node * VERIFIERS + number).unwrap_or(0);
            clients.spawn(verifier(Arc::clone(site), node, Chance::of(seed, purpose)));
        }
    }
    let began = Instant::now();
    let plan = plan(seed, length, site.run.nodes, LEASE.1);
    faults::carry_out(site, plan, began).await;
    tokio::time::sleep_until(began + length).await;
    site.stop.send_replace(true);
    let ended = timeout(PATIENCE, async {
        while let Some(ended) = clients.join_next().await {
            if let Err(panic) = ended {
                site.odd(None, format!("a client ended badly: {panic}"));
            }
        }
    });
    if ended.await.is_err() {
        site.odd(None, format!("a client was still not done after {} s", PATIENCE.as_secs()));
    }
}

/// Heals everything, ends every node in order, and starts one again: by then every count is in the
/// database. Nodes that do not come back or do not end are noted.
async fn settle(site: &Arc<Site>) {
    for node in &site.cluster.nodes {
        node.proxy.lay(None);
        node.proxy.set(Mode::Open);
        node.signal(Signal::CONT);
        if let Some(status) = node.ended_by_itself() {
            site.odd(Some(node.index), format!("ended by itself with {status}"));
            // OK to ignore: it has ended.
            let _ = node.kill().await;
            if let Err(why) = faults::restart(node).await {
                site.odd(Some(node.index), why);
            }
        } else if let Err(why) = node.wait_until_ready(PATIENCE).await {
            let words = node.last_words();
            site.odd(Some(node.index), format!("after all faults it {why}:\n{words}"));
        }
        // What was asked while it was stopped is answered now, or lost.
        if timeout(PATIENCE, node.pending.acquire_many(PENDING_MAX)).await.is_err() {
            site.odd(Some(node.index), "verifications are neither answered nor lost");
        }
    }
    for node in &site.cluster.nodes {
        match node.terminate().await {
            Ok(Some(0)) => {}
            Ok(code) => site.odd(Some(node.index), format!("SIGTERM ended it with {code:?}")),
            Err(why) => site.odd(Some(node.index), format!("after SIGTERM it {why}")),
        }
    }
}

/// Asks one node, started anew, about every secret and every count.
async fn count(site: &Arc<Site>) -> Result<()> {
    let number = Chance::of(site.run.seed, 2).below(site.run.nodes);
    let node = site.cluster.nodes.get(number).ok_or("there is no node")?;
    faults::restart(node).await?;
    let known = locked(&site.known).clone();
    let mut slot = None;
    for known in &known {
        verify(site, node, &mut slot, known).await;
    }
    // A last one may have been slow.
    let all = timeout(PATIENCE, node.pending.acquire_many(PENDING_MAX)).await;
    drop(all.map_err(|_| "the last verifications are not answered")?);
    let mut wire = Wire::connect(node.address).await.ok_or("nobody is there to be asked")?;
    for known in known.iter().filter(|known| known.secret == 0) {
        let path = format!("/api/v1/api_keys/{}", known.id);
        let asked = wire.ask("GET", &path, Some(&site.token), None, None);
        let reply = timeout(PATIENCE, asked).await.ok().flatten().ok_or("a count has no answer")?;
        let total = reply.body.pointer("/api_key/verification_count").and_then(|n| n.as_u64());
        let verification_count =
            total.ok_or_else(|| format!("GET {path} got {} {}", reply.status, reply.code()))?;
        site.history.add(&Event::Count(Count { key: known.key, verification_count }));
    }
    match node.terminate().await? {
        Some(0) => Ok(()),
        code => Err(format!("the last SIGTERM ended the node with {code:?}")),
    }
}

/// A management token with every scope. It lives for a day.
async fn token(cluster: &Cluster) -> Result<String> {
    let form = format!(
        "grant_type=client_credentials&audience=http%3A%2F%2F{HOST}%2Fapi\
         &client_id={}&client_secret={}",
        cluster.client_id, cluster.client_secret,
    );
    let body = ("application/x-www-form-urlencoded", form);
    ask_first(cluster, "/oauth2/token", None, body, "/access_token").await
}

/// The API that all keys are for.
async fn api(cluster: &Cluster, token: &str) -> Result<String> {
    let body = json!({ "name": "Orders", "audience": "https://orders.example" }).to_string();
    let body = ("application/json", body);
    ask_first(cluster, "/api/v1/apis", Some(token), body, "/api/id").await
}

/// Asks the first node, before anything is done to it; the text at `pointer` of the reply.
async fn ask_first(
    cluster: &Cluster,
    path: &str,
    token: Option<&str>,
    body: (&'static str, String),
    pointer: &str,
) -> Result<String> {
    let node = cluster.nodes.first().ok_or("there is no node")?;
    let asked = async {
        let mut wire = Wire::connect(node.address).await?;
        wire.ask("POST", path, token, None, Some(body)).await
    };
    let reply = timeout(PATIENCE, asked).await.ok().flatten().ok_or("the first node is silent")?;
    let text = reply.text(pointer).map(str::to_owned);
    text.ok_or_else(|| format!("{path} got {} {}", reply.status, reply.body))
}
