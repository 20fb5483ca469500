//! The processes under test: a PostgreSQL of our own and the nodes, each behind its proxy.
//!
//! Every process is known by its id and ended by it, also when the run fails: what is dropped here
//! ends what it started. The nodes share one secrets file and have a data folder each.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::proxy::Proxy;
use crate::wire::Wire;

/// The host name that the environment answers under.
pub(crate) const HOST: &str = "keys.test";
/// How long anything that must happen may take on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// How often it is looked whether it has happened.
const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// Verifications that one node may owe an answer at once.
pub(crate) const PENDING_MAX: u32 = 300;

/// What fails here ends the run, and is told in a sentence.
pub(crate) type Result<T, E = String> = std::result::Result<T, E>;

/// PostgreSQL, by the script that tests share.
pub(crate) struct Postgres {
    script: PathBuf,
    folder: PathBuf,
    address: SocketAddr,
}

impl Postgres {
    /// Starts a server in `folder`, which must not exist.
    pub(crate) fn start(script: &Path, folder: PathBuf) -> Result<Self> {
        let output = Command::new(script).arg("start").arg(&folder).stdin(Stdio::null()).output();
        let url = said(output, "PostgreSQL did not start")?;
        let port = url
            .trim()
            .rsplit_once("127.0.0.1:")
            .and_then(|(_, rest)| rest.split('/').next().and_then(|port| port.parse::<u16>().ok()));
        let port = port.ok_or_else(|| format!("`{url}` is no address of a server"))?;
        Ok(Self {
            script: script.to_path_buf(),
            folder,
            address: (Ipv4Addr::LOCALHOST, port).into(),
        })
    }

    /// Restarts it; returns when it accepts connections again.
    pub(crate) async fn restart(&self, immediate: bool) -> Result<()> {
        let mode = if immediate { "immediate" } else { "fast" };
        let mut command = Command::new(&self.script);
        command.arg("restart").arg(&self.folder).arg(mode).stdin(Stdio::null());
        let mut child = command.spawn().map_err(|error| format!("{error}"))?;
        let ended = until_ended(&mut child, PATIENCE).await?;
        if ended.success() { Ok(()) } else { Err(format!("the database did not restart: {ended}")) }
    }

    /// The address that a node behind the proxy at `port` is told.
    fn url(port: u16) -> String {
        format!("postgres://keyward@127.0.0.1:{port}/postgres?sslmode=disable")
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // OK to ignore: nothing can be done about it any more.
        let _ = Command::new(&self.script).arg("stop").arg(&self.folder).output();
    }
}

/// One node, running or not.
pub(crate) struct Node {
    pub(crate) index: usize,
    pub(crate) address: SocketAddr,
    pub(crate) proxy: Proxy,
    /// Held while something is being done to it.
    pub(crate) patient: tokio::sync::Mutex<()>,
    /// A permit for each verification that it may owe.
    pub(crate) pending: Arc<Semaphore>,
    command: NodeCommand,
    child: Mutex<Option<Child>>,
}

/// How a node is started.
struct NodeCommand {
    keyward: PathBuf,
    folder: PathBuf,
    secrets: PathBuf,
    lease: &'static str,
    log: PathBuf,
}

impl NodeCommand {
    fn keyward(&self, database_port: u16) -> Command {
        let mut command = Command::new(&self.keyward);
        command
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .stdin(Stdio::null())
            .arg("--data")
            .arg(&self.folder)
            .arg("--secrets-file")
            .arg(&self.secrets)
            .args(["--database", &Postgres::url(database_port)]);
        command
    }
}

impl Node {
    /// Starts the process.
    pub(crate) fn start(&self) -> Result<()> {
        let log = File::options().create(true).append(true).open(&self.command.log);
        let log = log.map_err(|error| format!("{}: {error}", self.command.log.display()))?;
        let mut command = self.command.keyward(self.proxy.port());
        command
            .args(["serve", "--lease", self.command.lease])
            .args(["--listen", &self.address.to_string()])
            .env("KEYWARD_LOG", "warn,keyward=info,keyward::request=warn")
            .stdout(log.try_clone().map_err(|error| error.to_string())?)
            .stderr(log);
        let child = command.spawn().map_err(|error| format!("a node did not start: {error}"))?;
        *self.child() = Some(child);
        Ok(())
    }

    fn child(&self) -> std::sync::MutexGuard<'_, Option<Child>> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its process id, while it runs.
    pub(crate) fn pid(&self) -> Option<Pid> {
        self.child().as_ref().map(Pid::from_child)
    }

    /// How the process ended, if it did although nobody told it to.
    pub(crate) fn ended_by_itself(&self) -> Option<ExitStatus> {
        self.child().as_mut().and_then(|child| child.try_wait().ok().flatten())
    }

    /// Sends a signal to the process, if it runs.
    pub(crate) fn signal(&self, signal: Signal) {
        if let Some(pid) = self.pid() {
            // OK to ignore: it may have ended meanwhile.
            let _ = kill_process(pid, signal);
        }
    }

    /// Kills the process where it stands.
    pub(crate) async fn kill(&self) -> Result<()> {
        let Some(mut child) = self.child().take() else { return Ok(()) };
        // OK to ignore: it may have ended already.
        let _ = child.kill();
        until_ended(&mut child, PATIENCE).await.map(|_| ())
    }

    /// Ends the process in order; its exit code.
    pub(crate) async fn terminate(&self) -> Result<Option<i32>> {
        let Some(mut child) = self.child().take() else { return Ok(Some(0)) };
        // OK to ignore: it may have ended already.
        let _ = kill_process(Pid::from_child(&child), Signal::TERM);
        let ended = until_ended(&mut child, PATIENCE).await;
        if ended.is_err() {
            // OK to ignore: what matters is that it did not end by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
        ended.map(|status| status.code())
    }

    /// Waits until the node answers verifications.
    pub(crate) async fn wait_until_ready(&self, patience: Duration) -> Result<()> {
        let ready = async {
            while !self.is_ready().await && self.ended_by_itself().is_none() {
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        };
        if timeout(patience, ready).await.is_err() {
            return Err(format!("was not ready within {} s", patience.as_secs()));
        }
        match self.ended_by_itself() {
            Some(status) => Err(format!("ended by itself with {status}")),
            None => Ok(()),
        }
    }

    async fn is_ready(&self) -> bool {
        let asked = async {
            let mut wire = Wire::connect(self.address).await?;
            wire.ask("GET", "/readyz", None, None, None).await
        };
        let answered = timeout(Duration::from_secs(1), asked).await;
        answered.ok().flatten().is_some_and(|reply| reply.status == 200)
    }

    /// What the node said when a part of it panicked, if one did.
    pub(crate) fn panic(&self) -> Option<String> {
        let log = self.log();
        log.lines().find(|line| line.contains("panicked")).map(str::to_owned)
    }

    fn log(&self) -> String {
        std::fs::read_to_string(&self.command.log).unwrap_or_default()
    }

    /// The end of what the node said.
    pub(crate) fn last_words(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        let from = lines.len().saturating_sub(12);
        lines.get(from..).unwrap_or_default().join("\n")
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(mut child) = self.child().take() {
            // OK to ignore: it may have ended already. SIGKILL also ends a stopped process.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The nodes and their database. The fields are dropped in this order.
pub(crate) struct Cluster {
    pub(crate) nodes: Vec<Node>,
    pub(crate) postgres: Postgres,
    pub(crate) client_id: String,
    pub(crate) client_secret: String,
}

impl Cluster {
    /// Starts a database and `count` nodes in `folder`, and waits until all are ready.
    pub(crate) async fn start(
        folder: &Path,
        script: &Path,
        keyward: &Path,
        count: usize,
        lease: &'static str,
    ) -> Result<Self> {
        // PostgreSQL runs as another user when we are root.
        std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755))
            .map_err(|error| error.to_string())?;
        let postgres = Postgres::start(script, folder.join("postgres"))?;
        let mut nodes = Vec::new();
        for index in 0..count {
            let command = NodeCommand {
                keyward: keyward.to_path_buf(),
                folder: folder.join(format!("node{index}")),
                secrets: folder.join("secrets.toml"),
                lease,
                log: folder.join(format!("node{index}.log")),
            };
            let proxy = Proxy::start(postgres.address).await.map_err(|error| error.to_string())?;
            nodes.push(Node {
                index,
                address: free_address(index)?,
                proxy,
                patient: tokio::sync::Mutex::new(()),
                pending: Arc::new(Semaphore::new(PENDING_MAX as usize)),
                command,
                child: Mutex::new(None),
            });
        }
        let first = nodes.first().ok_or("there must be at least one node")?;
        let mut init = first.command.keyward(postgres.address.port());
        init.args(["init", "--public-url", &format!("http://{HOST}"), "--json"]);
        let printed = said(init.output(), "`keyward init` failed")?;
        let made: Value = serde_json::from_str(&printed).map_err(|error| error.to_string())?;
        let text = |name: &str| made.get(name).and_then(Value::as_str).unwrap_or("").to_owned();
        let (client_id, client_secret) = (text("client_id"), text("client_secret"));
        let cluster = Self { nodes, postgres, client_id, client_secret };
        for node in &cluster.nodes {
            node.start()?;
        }
        for node in &cluster.nodes {
            let ready = node.wait_until_ready(PATIENCE).await;
            ready.map_err(|why| format!("node {} {why}:\n{}", node.index, node.last_words()))?;
        }
        Ok(cluster)
    }
}

/// What a command printed, which must have succeeded.
fn said(output: std::io::Result<Output>, otherwise: &str) -> Result<String> {
    let output = output.map_err(|error| format!("{otherwise}: {error}"))?;
    if !output.status.success() {
        return Err(format!("{otherwise}: {}", String::from_utf8_lossy(&output.stderr)));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Waits until a process has ended, without holding up a thread.
async fn until_ended(child: &mut Child, patience: Duration) -> Result<ExitStatus> {
    let ended = timeout(patience, async {
        loop {
            match child.try_wait() {
                Ok(Some(status)) => return Ok(status),
                Ok(None) => tokio::time::sleep(LOOK_AGAIN).await,
                Err(error) => return Err(error.to_string()),
            }
        }
    });
    ended.await.unwrap_or_else(|_| Err(format!("did not end within {} s", patience.as_secs())))
}

/// An address on loopback that nobody uses, below the range from which the kernel takes ports for
/// outgoing connections, so that it is still free when a node comes back to it.
fn free_address(index: usize) -> Result<SocketAddr> {
    // Nodes begin to look a hundred ports apart, so that no two find the same.
    let index = u32::try_from(index).unwrap_or(0);
    let first = std::process::id().wrapping_mul(41).wrapping_add(index * 100) % 9_000;
    (0..9_000)
        .find_map(|offset| {
            let port = u16::try_from(20_000 + (first + offset) % 9_000).ok()?;
            let bound = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).ok()?;
            bound.local_addr().ok()
        })
        .ok_or_else(|| "no port is free".to_owned())
}
