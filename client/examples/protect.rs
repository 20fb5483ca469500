//! A small API that asks Keyward whose key it is on every call.
//!
//! ```text
//! KEYWARD_URL=http://127.0.0.1:8787 KEYWARD_CLIENT_ID=… KEYWARD_CLIENT_SECRET=… \
//!     cargo run -p keyward-client --example protect
//! curl -i -H 'Authorization: Bearer k_live_…' http://127.0.0.1:8080/whoami
//! ```
//!
//! `KEYWARD_AUDIENCE` names the API's own audience, so that keys of other APIs are refused, and
//! `KEYWARD_SCOPE` the scope that a call needs. `KEYWARD_CA` is a PEM file with the authority of
//! Keyward's certificate, where the machine does not trust it anyway.

use std::convert::Infallible;
use std::error::Error;
use std::net::SocketAddr;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, RETRY_AFTER, USER_AGENT, WWW_AUTHENTICATE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use keyward_client::{Client, Grant, Presented, Verdict};
use tokio::net::TcpListener;

type Reply = Response<Full<Bytes>>;

#[tokio::main]
#[expect(clippy::disallowed_methods, reason = "an example reads its settings where it starts")]
async fn main() -> Result<(), Box<dyn Error>> {
    let setting = |name: &str| std::env::var(name).ok();
    let needed = |name: &str| setting(name).ok_or_else(|| format!("{name} is not set"));
    let mut builder = Client::builder(needed("KEYWARD_URL")?)
        .credentials(needed("KEYWARD_CLIENT_ID")?, needed("KEYWARD_CLIENT_SECRET")?);
    if let Some(audience) = setting("KEYWARD_AUDIENCE") {
        builder = builder.audience(audience);
    }
    if let Some(path) = setting("KEYWARD_CA") {
        builder = builder.root_certificate(std::fs::read(path)?);
    }
    let keyward = builder.build()?;
    let scope = setting("KEYWARD_SCOPE");

    let listener = TcpListener::bind("127.0.0.1:8080").await?;
    println!("listening on http://{}", listener.local_addr()?);
    loop {
        let (stream, peer) = listener.accept().await?;
        let (keyward, scope) = (keyward.clone(), scope.clone());
        tokio::spawn(async move {
            let service = service_fn(|request| answer(&keyward, scope.as_deref(), peer, request));
            let served = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            if let Err(error) = served.await {
                eprintln!("a connection broke: {error}");
            }
        });
    }
}

async fn answer(
    keyward: &Client,
    scope: Option<&str>,
    peer: SocketAddr,
    request: Request<Incoming>,
) -> Result<Reply, Infallible> {
    Ok(match admit(keyward, scope, peer, &request).await {
        Ok(grant) => match request.uri().path() {
            "/whoami" => text(200, format!("{:?} may {:?}\n", grant.owner, grant.scopes)),
            _ => text(404, "nothing is here\n"),
        },
        Err(reply) => reply,
    })
}

/// The grant of a call's key, or the reply that the call gets instead. Errors end here as 503: who
/// cannot ask does not know, and who does not know does not let in.
async fn admit<B>(
    keyward: &Client,
    scope: Option<&str>,
    peer: SocketAddr,
    request: &Request<B>,
) -> Result<Grant, Reply> {
    let header = |name| request.headers().get(name).and_then(|value| value.to_str().ok());
    let Some(mut presented) = header(AUTHORIZATION).and_then(Presented::from_authorization) else {
        let mut reply = text(401, "a key is needed\n");
        reply.headers_mut().insert(WWW_AUTHENTICATE, "Bearer".parse().expect("a plain header"));
        return Err(reply);
    };
    // The path without its query, where a caller may have put a secret of their own.
    presented = presented.ip(peer.ip()).resource(request.uri().path());
    if let Some(scope) = scope {
        presented = presented.scope(scope);
    }
    if let Some(agent) = header(USER_AGENT) {
        presented = presented.user_agent(agent);
    }
    match keyward.verify(&presented).await {
        Ok(Verdict::Valid(grant)) => Ok(grant),
        Ok(Verdict::Refused(refusal)) => {
            let status = refusal.reason.http_status();
            let mut reply = text(status, format!("refused: {}\n", refusal.reason.code()));
            if let Some(wait) = refusal.retry_after {
                let seconds = wait.as_secs_f64().ceil();
                let value = seconds.to_string().parse().expect("a whole number");
                reply.headers_mut().insert(RETRY_AFTER, value);
            }
            Err(reply)
        }
        Err(error) => {
            eprintln!("no verdict: {error}");
            Err(text(503, "the key cannot be checked right now\n"))
        }
    }
}

fn text(status: u16, body: impl Into<Bytes>) -> Reply {
    let mut reply = Response::new(Full::new(body.into()));
    *reply.status_mut() = hyper::StatusCode::from_u16(status).expect("a status of three digits");
    let plain = hyper::header::HeaderValue::from_static("text/plain; charset=utf-8");
    reply.headers_mut().insert(CONTENT_TYPE, plain);
    reply
}
