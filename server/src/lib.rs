//! Keyward: issues API keys to the users and organizations of a product and verifies them.
//!
//! One binary and the library that its tests use. `store` is the database and the only place with
//! SQL, `ops` the changes, `follower` what makes the in-memory table out of them, `lease` how long
//! that table may be answered from, `counters` the counts that survive, `http` the contract with
//! the network and `cli` the contract with the terminal. ARCHITECTURE.md is the map.

pub mod app;
pub mod cli;
pub mod clock;
pub mod config;
pub mod counters;
pub mod counting;
pub mod directory;
pub mod error;
pub mod folder;
pub mod follower;
pub mod http;
pub mod lease;
mod load;
pub mod ops;
pub mod progress;
pub mod public;
pub mod scope;
pub mod secrets;
pub mod serve;
pub mod store;
pub mod telemetry;

pub use app::App;
