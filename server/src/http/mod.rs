//! The contract with the network (wire.md): listeners, routes, and what goes over them.
//!
//! `listen` accepts connections, `converse` holds one, `routes` is the one table of what can be
//! asked, `call` carries a request to its handler and a reply back, `auth` finds out who asks. The
//! handlers of a resource are in the file of its name; `verify` alone has a path of its own through
//! all of this, because it is asked a thousand times as often as everything else together. Only
//! here are Kinde's words (`created_on`, `is_valid`, `org_code`) spoken.

pub(crate) mod apis;
pub(crate) mod applications;
pub(crate) mod auth;
pub(crate) mod body;
pub(crate) mod call;
pub(crate) mod converse;
pub(crate) mod denied;
pub(crate) mod discovery;
pub(crate) mod error;
pub(crate) mod fields;
pub(crate) mod json;
pub(crate) mod jwt;
pub(crate) mod keys;
pub(crate) mod listen;
pub(crate) mod once;
pub(crate) mod operational;
pub(crate) mod organizations;
pub(crate) mod paced;
pub(crate) mod page;
pub(crate) mod places;
pub(crate) mod reference;
pub mod routes;
pub(crate) mod token;
pub mod tokens;
pub(crate) mod turn;
pub(crate) mod unique;
pub(crate) mod users;
pub(crate) mod verify;
pub(crate) mod wire;

/// The OpenAPI document, as it is shipped.
pub const OPENAPI: &str = include_str!("../../openapi.json");
