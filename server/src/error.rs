//! What can go wrong, told in eight kinds that a caller can act on.
//!
//! An [`Error`] knows nothing of HTTP: `http::error` turns it into a status and an envelope, the
//! command line into a sentence and an exit code. What the client may read (`public`) and what
//! only the log may read (`cause`) are different fields, and only the first has `Display`.

use std::fmt;

/// A failure, as far as the one who asked needs to tell kinds apart.
#[derive(Debug)]
pub struct Error {
    /// What the caller can do about it.
    pub kind: Kind,
    /// A stable word for programs, such as `API_KEY_NOT_FOUND`.
    pub code: &'static str,
    /// A sentence for the person who asked. Never holds a secret.
    pub public: String,
    /// The chain of causes, for the log alone.
    pub cause: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// The kinds of failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Nobody known is asking.
    Unauthenticated,
    /// Somebody known is asking for more than they hold.
    Forbidden,
    /// It does not exist, or belongs to another environment.
    NotFound,
    /// It contradicts what is stored.
    Conflict,
    /// The question itself is wrong.
    Invalid,
    /// Asked too often; seconds until it is worth asking again.
    TooMany {
        /// Seconds.
        retry_after: u32,
    },
    /// Keyward cannot know, or cannot confirm, right now.
    Unavailable,
    /// A defect of ours.
    Internal,
}

/// The code of a change that may or may not have happened.
pub const UNCONFIRMED: &str = "UNCONFIRMED";

/// What most functions here return.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    fn new(kind: Kind, code: &'static str, public: impl Into<String>) -> Self {
        Self { kind, code, public: public.into(), cause: None }
    }

    /// The question is wrong; `public` says which part and what would be right.
    pub fn invalid(code: &'static str, public: impl Into<String>) -> Self {
        Self::new(Kind::Invalid, code, public)
    }

    /// `what` does not exist here.
    pub fn not_found(what: &str) -> Self {
        Self::new(Kind::NotFound, "NOT_FOUND", format!("{what} not found"))
    }

    /// The change contradicts what is stored.
    pub fn conflict(code: &'static str, public: impl Into<String>) -> Self {
        Self::new(Kind::Conflict, code, public)
    }

    /// Nobody known is asking.
    pub fn unauthenticated(code: &'static str, public: impl Into<String>) -> Self {
        Self::new(Kind::Unauthenticated, code, public)
    }

    /// The caller lacks a scope or a right.
    pub fn forbidden(code: &'static str, public: impl Into<String>) -> Self {
        Self::new(Kind::Forbidden, code, public)
    }

    /// Keyward cannot know right now; nothing was changed, or it is not known whether.
    pub fn unavailable(public: impl Into<String>) -> Self {
        Self::new(Kind::Unavailable, "UNAVAILABLE", public)
    }

    /// A limit of requests was reached.
    pub fn too_many(retry_after: u32, public: impl Into<String>) -> Self {
        Self::new(Kind::TooMany { retry_after }, "TOO_MANY_REQUESTS", public)
    }

    /// A defect or a broken machine; the caller reads only that it happened.
    pub fn internal(cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        let public = "something went wrong inside Keyward; the log has the cause";
        Self::new(Kind::Internal, "INTERNAL", public).because(cause)
    }

    /// Keeps the cause for the log.
    #[must_use]
    pub fn because(mut self, cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.cause = Some(cause.into());
        self
    }

    /// The causes in one line, for the log.
    pub fn chain(&self) -> String {
        let mut line = String::new();
        let mut next: Option<&dyn std::error::Error> = self.cause.as_deref().map(|cause| {
            let cause: &dyn std::error::Error = cause;
            cause
        });
        while let Some(cause) = next {
            if !line.is_empty() {
                line.push_str(": ");
            }
            line.push_str(&cause.to_string());
            next = cause.source();
        }
        line
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.public)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.cause.as_deref().map(|cause| {
            let cause: &(dyn std::error::Error + 'static) = cause;
            cause
        })
    }
}
