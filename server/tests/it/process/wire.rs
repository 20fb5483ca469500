//! HTTP/1.1 over one socket that is kept open, as plainly and as fast as it goes.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};

use serde_json::Value;

use super::{HOST, PATIENCE};

/// A connection to a server, or to what stands in for one.
pub(super) struct Wire<S = TcpStream> {
    stream: S,
    /// What arrived after the last answer.
    ahead: Vec<u8>,
}

/// An answer.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) head: String,
    pub(super) body: String,
}

impl Wire {
    pub(super) fn connect(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self::over(stream))
    }

    /// A second handle on the same connection.
    pub(super) fn stream(&self) -> &TcpStream {
        &self.stream
    }
}

impl<S: Read + Write> Wire<S> {
    pub(super) fn over(stream: S) -> Self {
        Self { stream, ahead: Vec::new() }
    }

    /// Sends a request with a JSON body, or with none, and reads the answer.
    pub(super) fn ask(
        &mut self,
        method: &str,
        path: &str,
        token: Option<&str>,
        body: &str,
    ) -> io::Result<Reply> {
        self.send(&request(method, path, token, "application/json", body))
    }

    /// Sends a form.
    pub(super) fn form(&mut self, path: &str, body: &str) -> io::Result<Reply> {
        self.send(&request("POST", path, None, "application/x-www-form-urlencoded", body))
    }

    /// Verifies a secret.
    pub(super) fn verify(&mut self, token: &str, secret: &str) -> io::Result<Reply> {
        self.send(&verification(token, secret))
    }

    /// Sends bytes that are a whole request and reads the answer.
    pub(super) fn send(&mut self, request: &[u8]) -> io::Result<Reply> {
        self.write(request)?;
        self.read()
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Reads one answer.
    pub(super) fn read(&mut self) -> io::Result<Reply> {
        loop {
            if let Some(reply) = self.take() {
                return Ok(reply);
            }
            let mut piece = [0; 8_192];
            match self.stream.read(&mut piece)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                length => self.ahead.extend_from_slice(&piece[..length]),
            }
        }
    }

    /// Takes a whole answer off what has arrived.
    fn take(&mut self) -> Option<Reply> {
        let end = self.ahead.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
        let head = String::from_utf8_lossy(&self.ahead[..end]).to_ascii_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length:"));
        let length: usize = length.map_or(0, |text| text.trim().parse().expect("a length"));
        if self.ahead.len() < end + length {
            return None;
        }
        let body = String::from_utf8_lossy(&self.ahead[end..end + length]).into_owned();
        self.ahead.drain(..end + length);
        let status = head.split(' ').nth(1).and_then(|text| text.parse().ok()).expect("a status");
        Some(Reply { status, head, body })
    }
}

/// The bytes of a request.
pub(super) fn request(
    method: &str,
    path: &str,
    token: Option<&str>,
    content_type: &str,
    body: &str,
) -> Vec<u8> {
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {HOST}\r\n");
    if let Some(token) = token {
        head.push_str(&format!("Authorization: Bearer {token}\r\n"));
    }
    if !body.is_empty() {
        head.push_str(&format!("Content-Type: {content_type}\r\n"));
    }
    format!("{head}Content-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

/// The bytes of a verification.
pub(super) fn verification(token: &str, secret: &str) -> Vec<u8> {
    let body = format!("{{\"api_key\":\"{secret}\"}}");
    request("POST", "/api/v1/api_keys/verify", Some(token), "application/json", &body)
}

impl Reply {
    /// The body as JSON.
    pub(super) fn json(&self) -> Value {
        serde_json::from_str(&self.body)
            .unwrap_or_else(|error| panic!("no JSON ({error}): {}", self.body))
    }

    /// The body, which must come with this status.
    #[track_caller]
    pub(super) fn expect(&self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.body);
        self.json()
    }

    /// The verdict's code, of an answer that must be one.
    #[track_caller]
    pub(super) fn verdict(&self) -> String {
        self.expect(200)["code"].as_str().expect("a code").to_owned()
    }

    /// Whether the key was good; the answer must be a verdict.
    #[track_caller]
    pub(super) fn is_valid(&self) -> bool {
        self.verdict() == "API_KEY_VERIFIED"
    }
}
