//! What stands between one node and PostgreSQL: a TCP proxy that can refuse, cut, stall, delay, and
//! lay a trap at an exact place in the conversation.
//!
//! It reads as much of the protocol as a trap needs: the text of the statement that commits, and of
//! the one that takes the lock of all changes. Both are sent as simple queries, whose text is on
//! the wire whole, and whose reply comes in one piece.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// Most bytes that are carried at once.
const PIECE_BYTES: usize = 16 << 10;

/// How bytes are carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Open,
    /// New connections are closed at once.
    Refusing,
    /// Nothing is carried and nothing is closed, as when a cable is pulled.
    Stalled,
    /// Every piece waits so long, both ways.
    Delayed(Duration),
}

/// A place in the conversation: between a statement and its reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// The lock of all changes was just taken.
    Lock,
    /// The commit was carried out, and the node does not know yet.
    Commit,
}

/// What happens at a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Then {
    /// The node is stopped, once.
    Stop(Pid),
    /// The reply is swallowed and the connection closed, as often as it comes to that.
    Cut,
}

/// A place and what happens there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Trap {
    pub(crate) place: Place,
    pub(crate) then: Then,
}

impl Place {
    /// What the statement's bytes hold. The parenthesis keeps the shared lock apart.
    fn marks(self) -> &'static [&'static [u8]] {
        match self {
            Place::Lock => &[b"pg_advisory_xact_lock("],
            Place::Commit => &[b"commit\0", b"COMMIT\0"],
        }
    }
}

/// A proxy; it ends with the runtime.
#[derive(Clone, Debug)]
pub(crate) struct Proxy(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    port: u16,
    upstream: SocketAddr,
    mode: watch::Sender<Mode>,
    /// Grows when every connection shall end.
    cuts: watch::Sender<u64>,
    trap: Mutex<Option<Trap>>,
    /// How often something ran into a trap.
    sprung: watch::Sender<u64>,
}

impl Proxy {
    /// Listens on a free port of the loopback.
    pub(crate) async fn start(upstream: SocketAddr) -> std::io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let proxy = Self(Arc::new(Shared {
            port: listener.local_addr()?.port(),
            upstream,
            mode: watch::Sender::new(Mode::Open),
            cuts: watch::Sender::new(0),
            trap: Mutex::new(None),
            sprung: watch::Sender::new(0),
        }));
        tokio::spawn(accept(Arc::clone(&proxy.0), listener));
        Ok(proxy)
    }

    /// Where the node finds its database.
    pub(crate) fn port(&self) -> u16 {
        self.0.port
    }

    /// Carries bytes so from now on.
    pub(crate) fn set(&self, mode: Mode) {
        self.0.mode.send_replace(mode);
    }

    /// Closes every connection.
    pub(crate) fn cut(&self) {
        self.0.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// Lays a trap in the place of another, or takes it away.
    pub(crate) fn lay(&self, trap: Option<Trap>) {
        *self.0.trap.lock().unwrap_or_else(PoisonError::into_inner) = trap;
    }

    /// Hears how often something ran into a trap.
    pub(crate) fn sprung(&self) -> watch::Receiver<u64> {
        self.0.sprung.subscribe()
    }
}

impl Shared {
    fn trap(&self) -> Option<Trap> {
        *self.trap.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs into the trap that is laid now; returns whether the connection ends there.
    fn spring(&self) -> bool {
        let mut trap = self.trap.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(Trap { then, .. }) = *trap else { return false };
        if let Then::Stop(pid) = then {
            *trap = None;
            // OK to ignore: a node that is gone need not be stopped.
            let _ = kill_process(pid, Signal::STOP);
        }
        drop(trap);
        self.sprung.send_modify(|times| *times += 1);
        then == Then::Cut
    }
}

async fn accept(shared: Arc<Shared>, listener: TcpListener) {
    loop {
        let Ok((node, _)) = listener.accept().await else { continue };
        if *shared.mode.borrow() != Mode::Refusing {
            tokio::spawn(carry(Arc::clone(&shared), node));
        }
    }
}

/// Carries one connection until either end or a cut closes it; then both ends are closed.
async fn carry(shared: Arc<Shared>, node: TcpStream) {
    let mut cuts = shared.cuts.subscribe();
    let Ok(database) = TcpStream::connect(shared.upstream).await else { return };
    // OK to ignore: without it the connection is only slower.
    let _ = (node.set_nodelay(true), database.set_nodelay(true));
    let (from_node, to_node) = node.into_split();
    let (from_database, to_database) = database.into_split();
    // Whether the next reply is the one that a trap waits for.
    let is_trapped = AtomicBool::new(false);
    tokio::select! {
        () = pump(&shared, from_node, to_database, |piece| {
            let trap = shared.trap();
            if trap.is_some_and(|trap| trap.place.marks().iter().any(|mark| holds(piece, mark))) {
                is_trapped.store(true, Ordering::Release);
            }
            true
        }) => {}
        () = pump(&shared, from_database, to_node, |_| {
            !(is_trapped.swap(false, Ordering::AcqRel) && shared.spring())
        }) => {}
        _ = cuts.changed() => {}
    }
}

/// Carries one direction to its end, or until `look` says of a piece that it shall not arrive.
async fn pump(
    shared: &Shared,
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    look: impl Fn(&[u8]) -> bool,
) {
    let mut mode = shared.mode.subscribe();
    let mut buffer = vec![0; PIECE_BYTES];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        let Some(piece) = buffer.get(..length) else { return };
        let now = *mode.borrow_and_update();
        if let Mode::Delayed(by) = now {
            tokio::time::sleep(by).await;
        }
        // OK to ignore the error: the sender lives as long as the proxy.
        let _ = mode.wait_for(|mode| *mode != Mode::Stalled).await;
        if !look(piece) || to.write_all(piece).await.is_err() {
            return;
        }
    }
}

/// Whether `mark` is part of `piece`.
fn holds(piece: &[u8], mark: &[u8]) -> bool {
    piece.windows(mark.len()).any(|window| window == mark)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A node's end and a database's end of one connection through a proxy.
    async fn connected() -> (Proxy, TcpStream, TcpStream) {
        let database = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let address = database.local_addr().expect("an address");
        let proxy = Proxy::start(address).await.expect("started");
        let node = TcpStream::connect((Ipv4Addr::LOCALHOST, proxy.port())).await.expect("open");
        let (database, _) = database.accept().await.expect("accepted");
        (proxy, node, database)
    }

    async fn read(stream: &mut TcpStream) -> Vec<u8> {
        let mut buffer = [0; 64];
        let length = stream.read(&mut buffer).await.unwrap_or(0);
        buffer[..length].to_vec()
    }

    #[tokio::test]
    async fn a_stalled_proxy_carries_nothing_until_it_is_opened_again() {
        let (proxy, mut node, mut database) = connected().await;
        proxy.set(Mode::Stalled);
        node.write_all(b"question").await.expect("written");
        let waited =
            tokio::time::timeout(Duration::from_millis(50), read(&mut database)).await.is_err();
        assert!(waited);
        proxy.set(Mode::Open);
        assert_eq!(read(&mut database).await, b"question");
    }

    #[tokio::test]
    async fn a_cut_closes_both_ends_and_a_refusing_proxy_takes_nobody_new() {
        let (proxy, mut node, mut database) = connected().await;
        proxy.set(Mode::Refusing);
        proxy.cut();
        assert_eq!(read(&mut node).await, b"");
        assert_eq!(read(&mut database).await, b"");
        let mut refused =
            TcpStream::connect((Ipv4Addr::LOCALHOST, proxy.port())).await.expect("accepted");
        assert_eq!(read(&mut refused).await, b"");
    }

    #[tokio::test]
    async fn the_reply_to_a_commit_is_swallowed_and_other_replies_are_not() {
        let (proxy, mut node, mut database) = connected().await;
        let mut sprung = proxy.sprung();
        proxy.lay(Some(Trap { place: Place::Commit, then: Then::Cut }));
        node.write_all(b"select 1\0").await.expect("written");
        assert_eq!(read(&mut database).await, b"select 1\0");
        database.write_all(b"one").await.expect("written");
        assert_eq!(read(&mut node).await, b"one");
        node.write_all(b"Q\0\0\0\x0bcommit\0").await.expect("written");
        assert_eq!(read(&mut database).await, b"Q\0\0\0\x0bcommit\0");
        database.write_all(b"done").await.expect("written");
        assert_eq!(read(&mut node).await, b"");
        sprung.changed().await.expect("the proxy lives");
        assert_eq!(*sprung.borrow(), 1);
    }
}
