//! Carrying out the plan: each fault is done, undone and recorded with the time of both.

use std::sync::Arc;
use std::time::Duration;

use rustix::process::Signal;
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use crate::cluster::{Node, PATIENCE, Result};
use crate::event::{self, Event};
use crate::load::Site;
use crate::plan::{Fault, Step};
use crate::proxy::{Mode, Place, Then, Trap};

/// How long a trap is laid for a node to run into it.
const TRAP_MAX: Duration = Duration::from_secs(6);

/// Carries out a plan; returns when every fault is undone.
pub(crate) async fn carry_out(site: &Arc<Site>, plan: Vec<Step>, began: Instant) {
    // Two restarts at once would be one.
    let database = Arc::new(Mutex::new(()));
    let mut running = JoinSet::new();
    for step in plan {
        sleep_until(began + step.at).await;
        let (site, database) = (Arc::clone(site), Arc::clone(&database));
        running.spawn(async move {
            let Some(node) = site.cluster.nodes.get(step.node) else { return };
            let _one_at_a_time = if is_of_database(step.fault) {
                database.lock().await
            } else {
                node.patient.lock().await
            };
            let begin_us = site.clock.now_us();
            let happened = match suffer(&site, node, step.fault).await {
                Ok(happened) => happened,
                Err(what) => {
                    site.odd(Some(step.node), what);
                    true
                }
            };
            site.history.add(&Event::Fault(event::Fault {
                fault: step.fault.name().to_owned(),
                node: (!is_of_database(step.fault)).then_some(step.node),
                begin_us,
                end_us: site.clock.now_us(),
                happened,
            }));
        });
    }
    while running.join_next().await.is_some() {}
}

fn is_of_database(fault: Fault) -> bool {
    matches!(fault, Fault::RestartDatabase { .. })
}

/// Does and undoes one fault; false when it was a trap that nobody ran into.
async fn suffer(site: &Site, node: &Node, fault: Fault) -> Result<bool> {
    match fault {
        Fault::Kill { down } => {
            if let Some(status) = node.ended_by_itself() {
                site.odd(Some(node.index), format!("ended by itself with {status}"));
            }
            node.kill().await?;
            tokio::time::sleep(down).await;
            restart(node).await?;
        }
        Fault::Stop { pause } => {
            node.signal(Signal::STOP);
            tokio::time::sleep(pause).await;
            node.signal(Signal::CONT);
        }
        Fault::StopAtLock { pause } => return stop_at(node, Place::Lock, pause).await,
        Fault::StopAtCommit { pause } => return stop_at(node, Place::Commit, pause).await,
        Fault::Cut { refuse } => {
            node.proxy.set(Mode::Refusing);
            node.proxy.cut();
            tokio::time::sleep(refuse).await;
            node.proxy.set(Mode::Open);
        }
        Fault::Stall { stall } => {
            node.proxy.set(Mode::Stalled);
            tokio::time::sleep(stall).await;
            node.proxy.set(Mode::Open);
        }
        Fault::Delay { by, during } => {
            node.proxy.set(Mode::Delayed(by));
            tokio::time::sleep(during).await;
            node.proxy.set(Mode::Open);
        }
        Fault::SwallowCommits { during } => {
            let sprung = node.proxy.sprung();
            node.proxy.lay(Some(Trap { place: Place::Commit, then: Then::Cut }));
            tokio::time::sleep(during).await;
            node.proxy.lay(None);
            return Ok(sprung.has_changed().unwrap_or(false));
        }
        Fault::RestartDatabase { immediate } => site.cluster.postgres.restart(immediate).await?,
    }
    Ok(true)
}

/// Stops a node at an exact place, and lets it go on later.
async fn stop_at(node: &Node, place: Place, pause: Duration) -> Result<bool> {
    let Some(pid) = node.pid() else { return Ok(false) };
    let mut sprung = node.proxy.sprung();
    node.proxy.lay(Some(Trap { place, then: Then::Stop(pid) }));
    let happened = timeout(TRAP_MAX, sprung.changed()).await.is_ok();
    node.proxy.lay(None);
    // OK to look again: it may have run into the trap just before the trap was taken away.
    let happened = happened || sprung.has_changed().unwrap_or(false);
    if happened {
        tokio::time::sleep(pause).await;
        node.signal(Signal::CONT);
    }
    Ok(happened)
}

/// Starts a node again. A database that is restarting meanwhile may keep it from starting, which a
/// supervisor would try again.
pub(crate) async fn restart(node: &Node) -> Result<()> {
    let mut tries = 0;
    loop {
        node.start()?;
        match node.wait_until_ready(PATIENCE).await {
            Ok(()) => return Ok(()),
            Err(why) if node.ended_by_itself().is_some() && tries < 20 => {
                tries += 1;
                node.kill().await?;
                tokio::time::sleep(Duration::from_millis(200)).await;
                drop(why);
            }
            Err(why) => return Err(format!("{why}:\n{}", node.last_words())),
        }
    }
}
