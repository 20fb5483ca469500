//! Listeners: TCP with or without TLS, the operator's socket, and metrics for machines. What is
//! said on an accepted connection is `converse`'s.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpSocket, UnixListener};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::auth::Connection;
use super::call::{Answer, Reply};
use super::converse::{Version, converse, version_of};
use super::places::Places;
use super::{error, operational};
use crate::App;
use crate::error::{Error, Result};

/// Connections that the kernel may hold ready.
const BACKLOG: u32 = 1_024;
/// How long a TLS handshake may take.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
/// How long a listener rests when no connection can be accepted.
const ACCEPT_AGAIN: Duration = Duration::from_millis(50);

/// Binds `address` without listening yet: it is ours, and who connects is refused. A port that a
/// killed server held can be bound again at once.
///
/// # Errors
/// `Unavailable` that names the address.
pub(crate) fn bind(address: SocketAddr) -> Result<TcpSocket> {
    let bound = (|| {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        Ok(socket)
    })();
    bound.map_err(|cause| cannot(&address.to_string(), cause))
}

/// Listens at the address that was bound.
///
/// # Errors
/// As [`bind`].
pub(crate) fn listen(socket: TcpSocket) -> Result<TcpListener> {
    let address = socket.local_addr().map(|address| address.to_string()).unwrap_or_default();
    socket.listen(BACKLOG).map_err(|cause| cannot(&address, cause))
}

fn cannot(address: &str, cause: io::Error) -> Error {
    Error::unavailable(format!("cannot listen on {address} ({})", cause.kind())).because(cause)
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
            match tls {
                None => {
                    if let Some(version) = version_of(&app, &stream).await {
                        converse(app, from(address, version), stream, version).await;
                    }
                }
                Some(tls) => {
                    let handshake = tokio::time::timeout(HANDSHAKE_MAX, tls.accept(stream));
                    match handshake.await {
                        Ok(Ok(stream)) => {
                            let agreed = stream.get_ref().1.alpn_protocol();
                            let version =
                                if agreed == Some(b"h2") { Version::Two } else { Version::One };
                            converse(app, from(address, version), stream, version).await;
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

fn from(address: SocketAddr, version: Version) -> Arc<Connection> {
    Arc::new(Connection::from(address.ip(), version == Version::Two))
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
