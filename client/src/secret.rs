//! A text that is never printed.
//!
//! It keeps secrets out of logs and panics. It does not wipe memory: the request that carries the
//! secret passes through buffers of the HTTP and TLS layers that nobody here can reach.

use std::fmt;

/// A client secret, an access token or a presented key.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Secret(String);

impl Secret {
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The plain text; what takes it must not print it.
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Secret(…)")
    }
}
