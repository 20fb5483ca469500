//! One connection from its first byte to its end: which HTTP it speaks, whose turn it is, and when
//! it is over.
//!
//! Nobody keeps a connection by saying nothing, and nobody pays for that with a timer for each
//! request: one watch a connection looks now and then whether anything came.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper::{Method, Request};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::watch;

use super::auth::Connection;
use super::call::Answer;
use super::paced::Paced;
use super::{error, routes, verify};
use crate::App;

/// How long a connection without a request in flight is kept once it should end, for the last
/// answer to be written out.
const QUIET: Duration = Duration::from_millis(500);
/// How long to wait for the rest of a preface that began.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// How often. Those who speak HTTP/2 send their preface in one piece.
const LOOKS_FOR_PREFACE: u32 = 20;
/// How often the watch looks within the time that a connection may be silent.
const LOOKS: u32 = 4;
/// Most requests at once on one HTTP/2 connection.
const STREAMS_MAX: u32 = 128;
/// What an HTTP/2 connection begins with that knows what it wants (RFC 9113 §3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0";
/// Most bytes of a request's head.
const HEAD_BYTES_MAX: usize = 32 * 1024;

/// Which HTTP a connection speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Version {
    /// HTTP/1.1 or 1.0.
    One,
    /// HTTP/2.
    Two,
}

/// Finds out which HTTP a plain connection speaks by looking at its first bytes; `None` when they
/// do not come in time.
pub(crate) async fn version_of(app: &App, stream: &TcpStream) -> Option<Version> {
    let mut stop = app.stopping.subscribe();
    let looking = async {
        let mut first = [0; PREFACE.len()];
        for _ in 0..LOOKS_FOR_PREFACE {
            let seen = stream.peek(&mut first).await.ok().filter(|seen| *seen > 0)?;
            let known = first.get(..seen)?;
            if known == PREFACE {
                return Some(Version::Two);
            }
            if !PREFACE.starts_with(known) {
                return Some(Version::One);
            }
            // A part of the preface: the rest is on its way.
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        // Or it is a P that is all there is.
        Some(Version::One)
    };
    tokio::select! {
        looked = tokio::time::timeout(app.limits.idle_timeout, looking) => looked.ok().flatten(),
        () = stopped(&mut stop) => None,
    }
}

/// Answers the requests of one connection, one after the other, until it ends.
pub(crate) async fn converse<S>(
    app: Arc<App>,
    connection: Arc<Connection>,
    stream: S,
    version: Version,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut stop = app.stopping.subscribe();
    let idle = app.limits.idle_timeout;
    let watched = Arc::clone(&connection);
    let service = service_fn(move |request: Request<Incoming>| {
        let (app, connection) = (Arc::clone(&app), Arc::clone(&connection));
        async move {
            let open = connection.turn.open();
            let answer = answer(&app, &connection, request).await;
            drop(open);
            Ok::<_, std::convert::Infallible>(answer.map(|body| Paced::new(body, connection)))
        }
    });
    let over = async {
        tokio::select! {
            () = stopped(&mut stop) => false,
            () = silence(&watched, idle) => true,
        }
    };
    // The two versions' connections have no type in common, only the same words.
    macro_rules! until_over {
        ($connection:expr) => {{
            let mut serving = pin!($connection);
            tokio::select! {
                biased;
                ended = serving.as_mut() => ended,
                was_silent = over => {
                    serving.as_mut().graceful_shutdown();
                    loop {
                        let seen = watched.turn.steps();
                        tokio::select! {
                            biased;
                            ended = serving.as_mut() => break ended,
                            () = tokio::time::sleep(QUIET) => {}
                        }
                        // Half a request's head, or a reader who takes no answer. Who was not
                        // silent may still send the rest of a body.
                        let turn = &watched.turn;
                        let over = if was_silent { turn.is_their_turn() } else { turn.is_idle() };
                        if over && turn.steps() == seen {
                            return;
                        }
                    }
                }
            }
        }};
    }
    let io = TokioIo::new(stream);
    let ended = match version {
        Version::One => until_over!(
            http1::Builder::new()
                // Answers are small: one copy is cheaper than a list of pieces for the kernel.
                .writev(false)
                .max_buf_size(HEAD_BYTES_MAX)
                .serve_connection(io, service)
        ),
        Version::Two => until_over!(
            http2::Builder::new(TokioExecutor::new())
                .timer(TokioTimer::new())
                .max_header_list_size(HEAD_BYTES_MAX as u32)
                .max_concurrent_streams(STREAMS_MAX)
                .serve_connection(io, service)
        ),
    };
    if let Err(cause) = ended {
        tracing::debug!(%cause, "a connection broke");
    }
}

/// Ends when the server is told to.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    // OK to ignore: the sender lives as long as the app that every connection holds.
    let _ = stop.wait_for(|stopping| *stopping).await;
}

/// Ends when the other end has owed something for `idle`, or at most a quarter longer: a request,
/// the rest of one, or room for the next piece of an answer. HTTP/2 pings are no request.
async fn silence(connection: &Connection, idle: Duration) {
    let mut seen = connection.turn.steps();
    let mut quiet_looks = 0;
    while quiet_looks < LOOKS {
        tokio::time::sleep(idle / LOOKS).await;
        let steps = connection.turn.steps();
        let is_quiet = steps == seen && connection.turn.is_their_turn();
        quiet_looks = if is_quiet { quiet_looks + 1 } else { 0 };
        seen = steps;
    }
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
        let host = match routes::host(head.version, authority, &head.headers) {
            Ok(host) => host,
            Err(refused) => return error::answer(&refused),
        };
        let Some(tenant) = directory.by_host(host) else {
            return error::nobody_there(&directory);
        };
        return verify::answer_for(app, connection, &directory, tenant, &head.headers, body).await;
    }
    // Boxed, so that a verification does not move room for every other route's state around.
    Box::pin(routes::answer(app, connection, request)).await
}
