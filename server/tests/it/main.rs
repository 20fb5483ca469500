//! What Keyward promises, tried over HTTP against a running server, on both engines.
//!
//! One binary, a file for each area. [`world::World`] is a server of a test's own with a clock and
//! chance that the test holds in its hands, so ids and secrets appear literally.

#![expect(clippy::indexing_slicing, reason = "a test says with a panic what went wrong")]

mod allocations;
mod bad_input;
mod bad_secrets;
mod bad_tokens;
mod canary;
mod connections;
mod coverage;
mod environments;
mod idempotency;
mod import;
mod key_lists;
mod key_patches;
mod keys;
mod model;
mod owners;
mod process;
mod public;
mod rights;
mod settling;
mod tidy;
mod tokens;
mod verify;
mod world;
