//! HTTP/1.1 over one connection that stays open, one request at a time.

use std::net::SocketAddr;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

use crate::cluster::HOST;

/// A connection to a node.
pub(crate) struct Wire(SendRequest<Full<Bytes>>);

/// An answer that came whole.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    /// `null` if it is no JSON.
    pub(crate) body: Value,
}

impl Reply {
    /// The reply's code, or its first error's.
    pub(crate) fn code(&self) -> &str {
        let paths = ["/code", "/errors/code", "/errors/0/code"];
        paths.into_iter().find_map(|path| self.text(path)).unwrap_or("")
    }

    /// A text of the reply, by its path.
    pub(crate) fn text(&self, pointer: &str) -> Option<&str> {
        self.body.pointer(pointer).and_then(Value::as_str)
    }
}

impl Wire {
    /// Connects; `None` when nobody is there.
    pub(crate) async fn connect(address: SocketAddr) -> Option<Self> {
        let stream = TcpStream::connect(address).await.ok()?;
        stream.set_nodelay(true).ok()?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await.ok()?;
        // It ends with the connection, which ends when the sender is dropped.
        tokio::spawn(connection);
        Some(Self(sender))
    }

    /// Whether the other end has not closed it, as far as is known.
    pub(crate) fn is_open(&self) -> bool {
        !self.0.is_closed()
    }

    /// Sends a request and reads its whole answer; `None` when none came, after which the
    /// connection is of no use.
    pub(crate) async fn ask(
        &mut self,
        method: &str,
        path: &str,
        token: Option<&str>,
        idempotency_key: Option<&str>,
        body: Option<(&'static str, String)>,
    ) -> Option<Reply> {
        let mut request = Request::builder().method(method).uri(path).header("host", HOST);
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        if let Some(key) = idempotency_key {
            request = request.header("idempotency-key", key);
        }
        let body = match body {
            Some((content_type, text)) => {
                request = request.header("content-type", content_type);
                Bytes::from(text)
            }
            None => Bytes::new(),
        };
        let request = request.body(Full::new(body)).ok()?;
        self.0.ready().await.ok()?;
        let answer = self.0.send_request(request).await.ok()?;
        let status = answer.status().as_u16();
        let text = answer.into_body().collect().await.ok()?.to_bytes();
        let body = serde_json::from_slice(&text).unwrap_or(Value::Null);
        Some(Reply { status, body })
    }
}
