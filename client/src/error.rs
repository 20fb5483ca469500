//! What it means that nobody knows, and that a client cannot be built.
//!
//! A refused key is not here: that is an answer, see [`crate::Refusal`].

use std::error::Error as StdError;
use std::fmt;
use std::time::Duration;

/// Keyward's verdict is not known. Never treat this as a yes, and do not tell the caller that the
/// key is bad: answer 503.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    message: String,
    retry_after: Option<Duration>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

/// Why the verdict is not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// Keyward cannot be reached, did not answer in time, or said itself that it cannot know.
    /// Trying again later may help.
    Unavailable,
    /// Keyward does not accept this program: wrong credentials, an application that is disabled, or
    /// one without the scope `verify:api_keys`. An operator has to act.
    Unauthenticated,
    /// The answer is not a verdict. Either the other end is not Keyward, or it did not accept the
    /// question (an unknown `api_id`, for example); the message says which.
    BadReply,
}

impl Error {
    pub(crate) fn unavailable(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unavailable, message)
    }

    pub(crate) fn unauthenticated(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unauthenticated, message)
    }

    pub(crate) fn bad_reply(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::BadReply, message)
    }

    fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), retry_after: None, source: None }
    }

    pub(crate) fn caused_by(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    pub(crate) fn retry_after(mut self, wait: Option<Duration>) -> Self {
        self.retry_after = wait;
        self
    }

    /// The same failure for one more caller who waited for the same attempt. The cause cannot be
    /// shared, so its text joins the message.
    pub(crate) fn repeated(&self) -> Self {
        let mut message = self.message.clone();
        let mut cause = self.source();
        while let Some(error) = cause {
            message.push_str(": ");
            message.push_str(&error.to_string());
            cause = error.source();
        }
        Self { kind: self.kind, message, retry_after: self.retry_after, source: None }
    }

    /// Why the verdict is not known.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// How long Keyward asks to be left alone, where it said so: what to put into the `Retry-After`
    /// of your own 503.
    pub fn retry_after_hint(&self) -> Option<Duration> {
        self.retry_after
    }
}

impl fmt::Display for Error {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            ErrorKind::Unavailable => "Keyward is unavailable",
            ErrorKind::Unauthenticated => "Keyward does not accept this client",
            ErrorKind::BadReply => "Keyward's answer is not a verdict",
        };
        write!(formatter, "{kind}: {}", self.message)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_ref().map(|source| &**source as &(dyn StdError + 'static))
    }
}

/// The settings given to [`crate::Builder`] do not make a client.
#[derive(Debug)]
pub struct BuildError(String);

impl BuildError {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }
}

impl fmt::Display for BuildError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl StdError for BuildError {}
