//! What an API key is and when it is good.
//!
//! This crate holds the shape of a secret ([`shape`]), its stored form ([`Pepper`], [`Digest`]),
//! everything that verification reads ([`Table`]) and the verdict ([`Table::decide`]). It does no
//! I/O, has no clock and cannot fail: time and randomness are arguments, and a refused key is an
//! answer. Who fills the table (the server's follower), who counts verifications and who turns
//! verdicts into HTTP is left to the server.

#![forbid(unsafe_code)]

mod digest;
mod id;
mod index;
pub mod protocol;
mod row;
mod secret;
mod slab;
mod table;
mod text;
mod verdict;

pub use digest::{Digest, Pepper, sha256};
pub use id::{ApiId, AppId, EnvId, KeyId, OrgCode, ScopeId, UserId};
pub use row::{
    ApiRow, EnvironmentRow, KeyRow, MembershipRow, OrgRow, Owner, Scheme, SecretRow, UserRow,
};
pub use secret::{Prefix, SECRET_BYTES_MAX, Secret, Shape, shape, strip_scheme};
pub use table::Table;
pub use verdict::{Decision, Kind, Known, Question, Refusal, ScopesAsked, Status};
