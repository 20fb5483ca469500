//! Asking the running server: one HTTP request over the socket in the data folder.
//!
//! The socket belongs to the owner of the folder, so the server takes whoever connects for the
//! operator. One request goes out and one answer with a stated length comes back, which needs no
//! HTTP library.

use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::error::{Error, Result};
use crate::folder::Folder;

/// How long a local server may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Largest answer that is read.
const ANSWER_BYTES_MAX: u64 = 16 << 20;

/// A request as the command line makes them.
pub(super) struct Request<'a> {
    pub(super) method: &'static str,
    pub(super) path: &'a str,
    /// The host of the environment that is asked.
    pub(super) host: &'a str,
    pub(super) content_type: Option<&'static str>,
    pub(super) body: &'a [u8],
}

/// An answer: its status, and its body if that is JSON.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: Value,
}

/// Connects to the server that runs on `folder`; `None` when none does.
pub(super) async fn connect(folder: &Folder) -> Option<UnixStream> {
    UnixStream::connect(folder.socket()).await.ok()
}

/// Sends `request` over `stream` and reads the answer.
///
/// # Errors
/// `Unavailable` when no whole answer arrives in time.
pub(super) async fn ask<S>(mut stream: S, request: &Request<'_>) -> Result<Answer>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut head = format!(
        "{} {} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Length: {}\r\n",
        request.method,
        request.path,
        request.host,
        request.body.len()
    );
    if let Some(content_type) = request.content_type {
        head.push_str(&format!("Content-Type: {content_type}\r\n"));
    }
    head.push_str("\r\n");
    let exchange = async {
        stream.write_all(head.as_bytes()).await?;
        stream.write_all(request.body).await?;
        stream.flush().await?;
        let mut answer = Vec::new();
        stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    };
    let silent = || Error::unavailable("the running server does not answer");
    let answer = timeout(PATIENCE, exchange)
        .await
        .map_err(|_| silent())?
        .map_err(|cause| silent().because(cause))?;
    read(&answer).ok_or_else(silent)
}

/// Takes an answer apart. Its end is the end of the connection, which was asked for.
fn read(answer: &[u8]) -> Option<Answer> {
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n")?;
    let (head, body) = answer.split_at(end + 4);
    let status = std::str::from_utf8(head).ok()?.split(' ').nth(1)?.parse().ok()?;
    Some(Answer { status, body: serde_json::from_slice(body).unwrap_or(Value::Null) })
}

/// The failure that the server answered with.
pub(super) fn failure(answer: &Answer) -> Error {
    let errors = answer.body.get("errors");
    let first = errors.and_then(|errors| errors.get(0)).or(errors);
    let message = first.and_then(|error| error.get("message")).and_then(Value::as_str);
    let public = message.map_or_else(
        || format!("the running server answered with status {}", answer.status),
        |message| format!("the running server answered: {message}"),
    );
    Error::unavailable(public)
}

#[cfg(test)]
mod tests {
    use super::*;

    const REQUEST: Request<'_> = Request {
        method: "POST",
        path: "/x",
        host: "a.example",
        content_type: Some("application/json"),
        body: b"{}",
    };

    #[tokio::test]
    async fn a_request_is_sent_whole_and_its_answer_is_read() {
        let (near, mut far) = tokio::io::duplex(4_096);
        let server = tokio::spawn(async move {
            let mut seen = vec![0; 4_096];
            let length = far.read(&mut seen).await.expect("readable");
            far.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 37\r\n\r\n")
                .await
                .expect("writable");
            far.write_all(br#"{"errors":{"code":"X","message":"no"}}"#).await.expect("writable");
            String::from_utf8_lossy(&seen[..length]).into_owned()
        });
        let answer = ask(near, &REQUEST).await.expect("an answer");
        assert_eq!(answer.status, 404);
        assert_eq!(failure(&answer).public, "the running server answered: no");
        let seen = server.await.expect("ended");
        assert!(seen.starts_with("POST /x HTTP/1.1\r\nHost: a.example\r\n"), "{seen}");
    }

    #[tokio::test]
    async fn a_connection_that_ends_early_is_no_answer() {
        let (near, far) = tokio::io::duplex(64);
        drop(far);
        assert!(ask(near, &REQUEST).await.is_err());
    }
}
