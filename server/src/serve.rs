//! `keyward serve`: putting the parts together, starting them, and ending them in order.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::TcpSocket;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::App;
use crate::clock::{Clock, Entropy};
use crate::config::{Config, Tls};
use crate::counting::Counting;
use crate::error::{Error, Result};
use crate::folder::{Folder, Lock};
use crate::follower::{Follower, Shared};
use crate::http::tokens::TokenCache;
use crate::http::verify::Rehash;
use crate::http::{denied, listen};
use crate::lease::{Lease, Others};
use crate::ops::keys;
use crate::progress::Progress;
use crate::public::PublicCallers;
use crate::secrets::Keyring;
use crate::store::{Location, Store, Unfinished, changes, engine, idempotency, nodes, schema};
use crate::telemetry::Metrics;

/// Imported secrets that may wait for being stored anew.
const REHASHES_MAX: usize = 10_000;
/// Imported secrets that are stored anew at the same time, to share commits.
const REHASHES_AT_ONCE: usize = 64;
/// How often old rows are swept out.
const SWEEP_EVERY: Duration = Duration::from_secs(600);
/// How often it is looked for standbys that commits do not wait for.
const STANDBYS_EVERY: Duration = Duration::from_secs(60);
/// How long the change log reaches back, in µs: seven days.
const CHANGES_KEPT_US: i64 = 7 * 24 * 3_600 * 1_000_000;

/// The addresses that a server is going to listen on, bound before anything is changed.
pub(crate) struct Addresses {
    main: TcpSocket,
    metrics: Option<TcpSocket>,
}

impl Addresses {
    /// Binds what the settings name.
    ///
    /// # Errors
    /// `Unavailable` that names the address which is taken.
    pub(crate) fn bind(config: &Config) -> Result<Self> {
        let main = listen::bind(config.listen)?;
        let metrics = config.metrics_listen.map(listen::bind).transpose()?;
        Ok(Self { main, metrics })
    }

    /// Where requests will be accepted: with the port that was taken for port 0.
    pub(crate) fn main(&self) -> Result<SocketAddr> {
        self.main.local_addr().map_err(Error::internal)
    }
}

/// A running server.
pub struct Server {
    /// Its parts.
    pub app: Arc<App>,
    /// Where it listens.
    pub address: SocketAddr,
    tasks: JoinSet<()>,
    folder: Folder,
    grace: Duration,
    _lock: Lock,
}

impl Server {
    /// Starts serving an initialised store; returns when verifications are answered.
    ///
    /// # Errors
    /// `Conflict` when another server uses the folder, `Invalid` when the secrets file or the
    /// store does not fit, `Unavailable` when something cannot be opened.
    pub async fn start(config: &Config, clock: Clock, entropy: Entropy) -> Result<Self> {
        Self::start_at(Addresses::bind(config)?, config, clock, entropy).await
    }

    async fn start_at(
        addresses: Addresses,
        config: &Config,
        clock: Clock,
        entropy: Entropy,
    ) -> Result<Self> {
        let folder = Folder::create(&config.folder)?;
        let lock = folder.lock_soon().await?;
        let tls = config.tls.as_ref().map(tls_acceptor).transpose()?;
        let listener = listen::listen(addresses.main)?;
        let metrics_listener = addresses.metrics.map(listen::listen).transpose()?;
        let keyring = Arc::new(Keyring::open(config.secrets_file.clone())?);
        let store = Store::open(&config.location, false, clock, entropy).await?;
        schema::bring_up(&store).await?;
        // A full disk keeps nobody from serving: then the dead one's lease is waited for.
        let before = lock.hand_over(store.node()).unwrap_or(None);
        if matches!(config.location, Location::File(_)) {
            // Under the folder's lock no other process can verify from this file.
            nodes::remove_all(&mut store.side().await?).await?;
        } else if let Some(dead) = before {
            nodes::remove(&mut store.side().await?, dead).await?;
        }
        let counting = Counting::open(folder.path(), &store, config.counting).await?;
        let shared = Arc::new(Shared::new(Lease::new(config.lease)));
        let (metrics, denials) = Metrics::new();
        let (rehashes, wishes) = mpsc::channel(REHASHES_MAX);
        let mut follower = Follower::new(
            store.clone(),
            Arc::clone(&shared),
            Arc::clone(&keyring),
            counting.file_id(),
        );
        let app = Arc::new(App {
            store,
            shared,
            keyring,
            counting,
            tokens: TokenCache::new(config.limits.token_cache_max),
            metrics,
            public: PublicCallers::default(),
            others: Others::default(),
            rehashes,
            limits: config.limits.clone(),
            stopping: watch::Sender::new(false),
        });
        let address = listener.local_addr().map_err(Error::internal)?;
        let socket = listen::bind_socket(&folder.socket())?;
        // Before the keys are loaded, so that whoever asks is told to wait instead of left waiting.
        let mut tasks = JoinSet::new();
        tasks.spawn(Counting::run(Arc::clone(&app)));
        tasks.spawn(denied::write(Arc::clone(&app), denials));
        tasks.spawn(rehash(Arc::clone(&app), wishes));
        tasks.spawn(sweep(Arc::clone(&app)));
        tasks.spawn(watch_standbys(Arc::clone(&app)));
        tasks.spawn(listen::serve_socket(Arc::clone(&app), socket));
        tasks.spawn(listen::serve_tcp(Arc::clone(&app), listener, tls));
        if let Some(listener) = metrics_listener {
            tasks.spawn(listen::serve_metrics(Arc::clone(&app), listener));
        }
        if let Err(error) = follower.start(&Progress::on_terminal()).await {
            app.stopping.send_replace(true);
            return Err(error);
        }
        tasks.spawn(follower.run(app.stopping.subscribe()));
        let grace = config.shutdown_grace;
        Ok(Self { app, address, tasks, folder, grace, _lock: lock })
    }

    /// Ends when one of the server's tasks does, which none should before the server is stopped.
    /// What is left would be half a server; whoever started it can start a whole one.
    async fn lost_a_part(&mut self) {
        self.tasks.join_next().await;
    }

    /// Stops accepting, lets what is in flight finish, stores the counts and gives the lease back.
    pub async fn stop(mut self) {
        self.app.stopping.send_replace(true);
        let finished = tokio::time::timeout(self.grace, async {
            while self.tasks.join_next().await.is_some() {}
        });
        if finished.await.is_err() {
            tracing::warn!("some requests did not finish in time");
        }
        self.app.shared.lease.end();
        let store = &self.app.store;
        let gone =
            store.in_time(async { nodes::remove(&mut store.side().await?, store.node()).await });
        // At once, so that a database which is away is waited for only once.
        let (counted, gone) = tokio::join!(self.app.counting.close(store), gone);
        if let Err(error) = counted {
            let cause = error.chain();
            tracing::warn!(cause, "the last counts are in the counter file only");
        }
        if let Err(error) = gone {
            tracing::warn!(cause = error.chain(), "the lease could not be given back");
        }
        self.app.store.close().await;
        // OK to ignore: the next server removes it too.
        let _ = std::fs::remove_file(self.folder.socket());
    }
}

/// File descriptors that a server needs besides those of its connections: listeners, the database,
/// the counter file, and the runtime's own.
const DESCRIPTORS_BESIDES: u64 = 100;

/// How many file descriptors a server can have here, once it has raised its limit as far as it may;
/// `None` is no limit.
pub(crate) fn descriptors_max() -> Option<u64> {
    getrlimit(Resource::Nofile).maximum
}

/// Whether the file descriptors do for as many connections as the settings allow.
pub(crate) fn has_descriptors_for(connections_max: usize) -> bool {
    let wanted = (connections_max as u64).saturating_add(DESCRIPTORS_BESIDES);
    descriptors_max().is_none_or(|most| wanted <= most)
}

/// Raises the limit of file descriptors to the most that this process may have: the usual 1,024
/// are fewer than the connections that the defaults allow.
fn raise_descriptors(connections_max: usize) {
    let limit = getrlimit(Resource::Nofile);
    let most = limit.maximum;
    if limit.current != most
        && let Err(cause) = setrlimit(Resource::Nofile, Rlimit { current: most, maximum: most })
    {
        tracing::warn!(%cause, "the limit of file descriptors could not be raised");
    }
    match getrlimit(Resource::Nofile).current {
        Some(descriptors) => tracing::info!("{descriptors} file descriptors can be open"),
        None => tracing::info!("any number of file descriptors can be open"),
    }
    if !has_descriptors_for(connections_max) {
        tracing::warn!("they are too few for connections_max = {connections_max}");
    }
}

/// Serves at `addresses` until the process is told to end by SIGTERM or SIGINT.
///
/// # Errors
/// As [`Server::start`].
pub(crate) async fn run(config: Config, addresses: Addresses) -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate()).map_err(Error::internal)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(Error::internal)?;
    raise_descriptors(config.limits.connections_max);
    let starting = Server::start_at(addresses, &config, Clock::system(), Entropy::system());
    let mut server = tokio::select! {
        started = starting => started?,
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    };
    let scheme = if config.tls.is_some() { "https" } else { "http" };
    tracing::info!(keys = server.app.key_count(), "serving at {scheme}://{}", server.address);
    let ended = tokio::select! {
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
        () = server.lost_a_part() => Err(Error::internal("a part of the server ended by itself")),
    };
    tracing::info!("stopping");
    server.stop().await;
    ended
}

/// Reads certificate and key.
///
/// # Errors
/// `Invalid` that names the file which will not do.
pub(crate) fn tls_acceptor(tls: &Tls) -> Result<TlsAcceptor> {
    let bad = |path: &std::path::Path, why: String| {
        Error::invalid("BAD_TLS", format!("{}: {why}", path.display()))
    };
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(&tls.cert)
        .and_then(Iterator::collect)
        .map_err(|cause| bad(&tls.cert, format!("is no PEM certificate chain ({cause})")))?;
    // OK to drop the cause: it could quote the key.
    let key = PrivateKeyDer::from_pem_file(&tls.key)
        .map_err(|_| bad(&tls.key, "is no PEM private key".to_owned()))?;
    let mut config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(|cause| bad(&tls.cert, format!("does not go with the key ({cause})")))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// Stores imported secrets under the current pepper, some at a time, until the server stops.
async fn rehash(app: Arc<App>, mut wishes: mpsc::Receiver<Rehash>) {
    let mut stop = app.stopping.subscribe();
    let mut waiting = Vec::new();
    loop {
        tokio::select! {
            received = wishes.recv_many(&mut waiting, REHASHES_AT_ONCE) => {
                if received == 0 {
                    return;
                }
            }
            _ = stop.wait_for(|stopping| *stopping) => return,
        }
        // The same key is often seen several times before its first wish is carried out.
        waiting.sort_by_key(|wish| wish.key);
        waiting.dedup_by_key(|wish| wish.key);
        let mut writing = tokio::task::JoinSet::new();
        for wish in waiting.drain(..) {
            let app = Arc::clone(&app);
            writing.spawn(async move {
                let Rehash { env, key, candidates, pepper_id } = wish;
                keys::rehash(&app.store, env, key, candidates, pepper_id).await.map(|_| ())
            });
        }
        while let Some(written) = writing.join_next().await {
            if let Ok(Err(error)) = written {
                tracing::warn!(cause = error.chain(), "an imported key was not stored anew yet");
            }
        }
    }
}

/// Warns of a standby that commits do not wait for, when one comes.
async fn watch_standbys(app: Arc<App>) {
    if app.store.is_sqlite() {
        app.goes_on_for(Duration::MAX).await;
        return;
    }
    loop {
        let asked = async {
            let mut conn = Unfinished::of(app.store.read().await?);
            let engine = engine::engine(&mut conn).await?;
            conn.finish();
            Ok(engine)
        };
        // OK to ignore a failure: a database that is away is the follower's to report.
        if let Ok(engine) = app.store.in_time(asked).await {
            let found = engine.has_asynchronous_standby();
            if found && !app.shared.loses_changes.swap(found, Ordering::Relaxed) {
                tracing::warn!(
                    "a standby of the database is not synchronous: a failover to it can lose \
                     revocations; set synchronous_standby_names"
                );
            }
            app.shared.loses_changes.store(found, Ordering::Relaxed);
        }
        if !app.goes_on_for(STANDBYS_EVERY).await {
            return;
        }
    }
}

/// Sweeps out rows that have had their time, now and then, until the server stops.
async fn sweep(app: Arc<App>) {
    while app.goes_on_for(SWEEP_EVERY).await {
        let now = app.clock().now_us();
        let swept = async {
            changes::prune(&app.store, now - CHANGES_KEPT_US).await?;
            idempotency::prune_any_environment(&app.store, now).await
        };
        if let Err(error) = swept.await {
            tracing::warn!(cause = error.chain(), "old rows could not be swept out");
        }
        app.public.forget(app.clock().boot_us());
    }
}
