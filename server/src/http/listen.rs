//! Listeners: TCP with or without TLS, the operator's socket, and metrics for machines.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper::{Method, Request};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UnixListener};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::auth::Connection;
use super::call::{Answer, Reply};
use super::places::Places;
use super::{error, operational, routes, verify};
use crate::App;
use crate::error::{Error, Result};

/// Connections that the kernel may hold ready.
const BACKLOG: u32 = 1_024;
/// How long a TLS handshake may take.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
/// How long a connection without a request in flight is kept once the server stops, for the last
/// answer to be written out.
const QUIET: Duration = Duration::from_millis(500);
/// How long a listener rests when no connection can be accepted.
const ACCEPT_AGAIN: Duration = Duration::from_millis(50);
/// Most requests at once on one HTTP/2 connection.
const STREAMS_MAX: u32 = 128;
/// What an HTTP/2 connection begins with that knows what it wants (RFC 9113 §3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0";
/// Most bytes of a request's head.
const HEAD_BYTES_MAX: usize = 32 * 1024;

/// Binds `address`. A port that a killed server held can be bound again at once.
///
/// # Errors
/// `Unavailable` that names the address.
pub(crate) fn bind(address: SocketAddr) -> Result<TcpListener> {
    let bound = (|| {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    })();
    bound.map_err(|cause: io::Error| {
        Error::unavailable(format!("cannot listen on {address} ({})", cause.kind())).because(cause)
    })
}

/// Binds the operator's socket at `path`, for the owner of the folder alone.
///
/// # Errors
/// `Unavailable` that names the path.
pub(crate) fn bind_socket(path: &Path) -> Result<UnixListener> {
    let failed = |cause: io::Error| {
        let public = format!("cannot listen on {} ({})", path.display(), cause.kind());
        Error::unavailable(public).because(cause)
    };
    // OK to remove: we hold the folder's lock, so whoever left it is gone.
    match std::fs::remove_file(path) {
        Ok(()) => {}
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => {}
        Err(cause) => return Err(failed(cause)),
    }
    let listener = UnixListener::bind(path).map_err(failed)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
    Ok(listener)
}

/// Serves TCP connections until the server stops, then lets those in flight finish.
pub(crate) async fn serve_tcp(app: Arc<App>, listener: TcpListener, tls: Option<TlsAcceptor>) {
    let mut stop = app.stopping.subscribe();
    let places = Arc::new(Semaphore::new(app.limits.connections_max));
    let of_each = Arc::new(Places::default());
    let mut connections = JoinSet::new();
    loop {
        let place = tokio::select! {
            place = Arc::clone(&places).acquire_owned() => place,
            _ = stop.changed() => break,
        };
        let Ok(place) = place else { break };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stop.changed() => break,
        };
        while connections.try_join_next().is_some() {}
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(cause) => {
                // Out of descriptors or the like: waiting is all that can be done.
                tracing::warn!(%cause, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_AGAIN).await;
                continue;
            }
        };
        let per_address = app.limits.connections_per_address_max;
        let Some(own_place) = of_each.take(address.ip(), per_address) else {
            app.metrics.connection_refused();
            continue;
        };
        // OK to ignore: without it small answers only come later.
        let _ = stream.set_nodelay(true);
        let (app, tls) = (Arc::clone(&app), tls.clone());
        connections.spawn(async move {
            let _places = (place, own_place);
            let connection = Arc::new(Connection::from(address.ip()));
            match tls {
                None => {
                    if let Some(version) = version_of(&app, &stream).await {
                        converse(app, connection, stream, version).await;
                    }
                }
                Some(tls) => {
                    let handshake = tokio::time::timeout(HANDSHAKE_MAX, tls.accept(stream));
                    match handshake.await {
                        Ok(Ok(stream)) => {
                            let agreed = stream.get_ref().1.alpn_protocol();
                            let version =
                                if agreed == Some(b"h2") { Version::Two } else { Version::One };
                            converse(app, connection, stream, version).await;
                        }
                        Ok(Err(_)) | Err(_) => tracing::debug!("a TLS handshake failed"),
                    }
                }
            }
        });
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// Serves the operator's socket until the server stops.
pub(crate) async fn serve_socket(app: Arc<App>, listener: UnixListener) {
    let mut stop = app.stopping.subscribe();
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stop.changed() => break,
        };
        while connections.try_join_next().is_some() {}
        if let Ok((stream, _)) = accepted
            && let Ok(peer) = stream.peer_cred()
        {
            let connection = Arc::new(Connection::operator(peer.uid()));
            connections.spawn(converse(Arc::clone(&app), connection, stream, Version::One));
        }
    }
    while connections.join_next().await.is_some() {}
}

/// Serves metrics, health and readiness without a token, for a listener of their own.
pub(crate) async fn serve_metrics(app: Arc<App>, listener: TcpListener) {
    let mut stop = app.stopping.subscribe();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stop.changed() => return,
        };
        let Ok((stream, _)) = accepted else {
            tokio::time::sleep(ACCEPT_AGAIN).await;
            continue;
        };
        let app = Arc::clone(&app);
        tokio::spawn(async move {
            let service = service_fn(|request: Request<Incoming>| {
                let answer = measure(&app, &request);
                async move { Ok::<_, std::convert::Infallible>(answer) }
            });
            let served = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(app.limits.idle_timeout)
                .serve_connection(TokioIo::new(stream), service)
                .await;
            if let Err(cause) = served {
                tracing::debug!(%cause, "a metrics connection broke");
            }
        });
    }
}

fn measure(app: &Arc<App>, request: &Request<Incoming>) -> Answer {
    match request.uri().path() {
        "/metrics" => {
            let text = app.metrics.render(app);
            Reply::text("text/plain; version=0.0.4; charset=utf-8", text).into_answer()
        }
        "/healthz" => operational::healthy().into_answer(),
        "/readyz" => operational::readiness(app)
            .map_or_else(|unready| error::answer(&unready), Reply::into_answer),
        _ => error::answer(&Error::not_found("route")),
    }
}

/// Which HTTP a connection speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    /// HTTP/1.1 or 1.0.
    One,
    /// HTTP/2.
    Two,
}

/// Finds out which HTTP a plain connection speaks by looking at its first bytes. Nobody may keep
/// its place by saying nothing: `None` when they do not come in time.
async fn version_of(app: &App, stream: &TcpStream) -> Option<Version> {
    let mut stop = app.stopping.subscribe();
    let looking = async {
        let mut first = [0; PREFACE.len()];
        loop {
            let seen = stream.peek(&mut first).await.ok().filter(|seen| *seen > 0)?;
            let known = first.get(..seen)?;
            if known == PREFACE {
                return Some(Version::Two);
            }
            if !PREFACE.starts_with(known) {
                return Some(Version::One);
            }
            // Part of the preface: the rest is on its way.
            tokio::time::sleep(ACCEPT_AGAIN).await;
        }
    };
    tokio::select! {
        looked = tokio::time::timeout(app.limits.idle_timeout, looking) => looked.ok().flatten(),
        () = stopped(&mut stop) => None,
    }
}

/// Answers the requests of one connection, one after the other, until it ends.
async fn converse<S>(app: Arc<App>, connection: Arc<Connection>, stream: S, version: Version)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut stop: watch::Receiver<bool> = app.stopping.subscribe();
    let idle = app.limits.idle_timeout;
    let in_flight = Arc::new(());
    let of_requests = Arc::clone(&in_flight);
    let requests = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&requests);
    let service = service_fn(move |request: Request<Incoming>| {
        let (app, connection) = (Arc::clone(&app), Arc::clone(&connection));
        let one = Arc::clone(&of_requests);
        counted.fetch_add(1, Ordering::Relaxed);
        async move {
            let answer = answer(&app, &connection, request).await;
            drop(one);
            Ok::<_, std::convert::Infallible>(answer)
        }
    });
    // The two versions' connections have no type in common, only the same words.
    macro_rules! until_stopped {
        ($connection:expr) => {{
            let mut serving = pin!($connection);
            tokio::select! {
                ended = serving.as_mut() => ended,
                () = stopped_or_idle(&mut stop, version, idle, &requests, &in_flight) => {
                    serving.as_mut().graceful_shutdown();
                    loop {
                        tokio::select! {
                            ended = serving.as_mut() => break ended,
                            () = tokio::time::sleep(QUIET) => {
                                if !is_asked(&in_flight) {
                                    // Half a request's head, or a reader who takes no answer.
                                    return;
                                }
                            }
                        }
                    }
                }
            }
        }};
    }
    let io = TokioIo::new(stream);
    let ended = match version {
        Version::One => until_stopped!(
            http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(idle)
                .max_buf_size(HEAD_BYTES_MAX)
                .serve_connection(io, service)
        ),
        Version::Two => until_stopped!(
            http2::Builder::new(TokioExecutor::new())
                .timer(TokioTimer::new())
                .keep_alive_interval(idle)
                .max_header_list_size(HEAD_BYTES_MAX as u32)
                .max_concurrent_streams(STREAMS_MAX)
                .serve_connection(io, service)
        ),
    };
    if let Err(cause) = ended {
        tracing::debug!(cause = %cause, "a connection broke");
    }
}

/// Whether a request is in flight: the connection and its service hold one each, and every request
/// another.
fn is_asked(in_flight: &Arc<()>) -> bool {
    Arc::strong_count(in_flight) > 2
}

/// Ends when the server is told to, or when an HTTP/2 connection asks nothing any longer: answering
/// pings keeps it open, and costs its holder nothing. HTTP/1 has its own limit in hyper. Looked at
/// once in each `idle`, so that an end comes between one and two of them after the last request.
async fn stopped_or_idle(
    stop: &mut watch::Receiver<bool>,
    version: Version,
    idle: Duration,
    requests: &AtomicU64,
    in_flight: &Arc<()>,
) {
    if version == Version::One {
        return stopped(stop).await;
    }
    let mut before = requests.load(Ordering::Relaxed);
    loop {
        tokio::select! {
            () = stopped(stop) => return,
            () = tokio::time::sleep(idle) => {}
        }
        let now = requests.load(Ordering::Relaxed);
        if now == before && !is_asked(in_flight) {
            return;
        }
        before = now;
    }
}

/// Ends when the server is told to.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    // OK to ignore: the sender lives as long as the app that every connection holds.
    let _ = stop.wait_for(|stopping| *stopping).await;
}

/// The way of a request: verification has one of its own, everything else goes by the route table.
async fn answer(app: &Arc<App>, connection: &Connection, request: Request<Incoming>) -> Answer {
    if request.uri().path() == "/api/v1/api_keys/verify"
        && request.method() == Method::POST
        && request.uri().query().is_none()
    {
        let (head, body) = request.into_parts();
        let directory = app.shared.directory.load_full();
        let authority = head.uri.authority().map(hyper::http::uri::Authority::as_str);
        let host = routes::host(authority, &head.headers);
        let Some(tenant) = directory.by_host(host) else {
            return error::nobody_there(&directory);
        };
        return verify::answer_for(app, connection, &directory, tenant, &head.headers, body).await;
    }
    routes::answer(app, connection, request).await
}
