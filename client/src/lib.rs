//! Asks a Keyward server whose key this is and what it may do right now.
//!
//! For people who protect an API in Rust: hold one [`Client`] for the life of the program, hand it
//! what the caller presented, and act on the [`Verdict`].
//!
//! ```no_run
//! use keyward_client::{Client, Presented, Verdict};
//!
//! # async fn example(authorization: &str) -> Result<(), Box<dyn std::error::Error>> {
//! let keyward = Client::builder("https://keys.example.com")
//!     .credentials("client-id", "client-secret")
//!     .audience("https://api.example.com")
//!     .build()?;
//!
//! let Some(presented) = Presented::from_authorization(authorization) else {
//!     return Ok(()); // No key at all: answer 401.
//! };
//! match keyward.verify(&presented.scope("read:reports")).await {
//!     Ok(Verdict::Valid(grant)) => println!("a call by {:?}", grant.owner),
//!     Ok(Verdict::Refused(refusal)) => println!("answer {}", refusal.reason.http_status()),
//!     // Keyward could not say. That is never a yes: answer 503, not 401.
//!     Err(error) => println!("answer 503: {error}"),
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # It never caches a verdict
//!
//! Keyward promises that once a revoke, a rotation or a suspension has been acknowledged, no
//! verification that starts afterwards succeeds, on any node. A verdict kept here for even one
//! second would break that promise from outside, where the server can do nothing about it, and the
//! person who revoked a leaked key would have been told that it is over when it is not. So every
//! call to [`Client::verify`] is one question to the server, which answers from memory, over a
//! connection that is kept open. There is no switch for it. What is kept are the connections and
//! this program's own access token.
//!
//! # It fails closed
//!
//! A [`Verdict`] is what Keyward said. An [`Error`] means that nobody knows: Keyward could not be
//! reached, does not accept this program, or answered something that is not a verdict. An error is
//! never a yes, and it is not a refusal of the key either. Whatever a question demanded is compared
//! once more with the answer, so that a server too old to know a demand cannot pass over it.

mod client;
mod error;
mod presented;
mod secret;
mod token;
mod transport;
mod verdict;

pub use client::{Builder, Client};
pub use error::{BuildError, Error, ErrorKind};
pub use presented::Presented;
pub use verdict::{Grant, Owner, Reason, Refusal, Verdict};
