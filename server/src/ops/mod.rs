//! Changes: one function each, one transaction, one audit record.
//!
//! Everything that alters the store on somebody's behalf is a function here, whether it is asked
//! for by HTTP, by the command line or by background work. A function checks what it is asked
//! against the stored state, writes rows, and returns a [`crate::store::Fact`] for the audit
//! record. It never touches the table that verification reads: the follower does, when it sees the
//! change.

use std::net::IpAddr;

use keyward_core::AppId;
use serde_json::Value;

pub use crate::store::idempotency::IdempotencyKey;

pub mod apis;
pub mod applications;
pub mod environments;
pub mod keys;
pub mod organizations;
pub mod users;

/// Who is asking.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Actor {
    /// An application, by a management token.
    Application(AppId),
    /// Somebody with access to the store itself, by the command line; the account's name.
    Operator(String),
    /// Keyward's own background work.
    System,
    /// Nobody known.
    Stranger,
}

/// Who is asking, from where, and in which request.
#[derive(Clone, Debug)]
pub struct Context {
    /// Who.
    pub actor: Actor,
    /// From where, for requests over the network.
    pub address: Option<IpAddr>,
    /// With what, as it says itself.
    pub user_agent: Option<String>,
    /// Ties log lines, audit records and answers together.
    pub request_id: String,
    /// Makes the change happen once, however often it is asked for.
    pub idempotency: Option<IdempotencyKey>,
}

impl Context {
    /// Keyward's own background work.
    pub fn system(what: &str) -> Self {
        Self {
            actor: Actor::System,
            address: None,
            user_agent: None,
            request_id: what.to_owned(),
            idempotency: None,
        }
    }
}

macro_rules! actions {
    ($($(#[$doc:meta])* $name:ident = $word:literal,)*) => {
        /// What was done; every audit record has one.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Action {
            $($(#[$doc])* $name,)*
        }

        impl Action {
            /// The stable word in the audit log.
            pub fn word(self) -> &'static str {
                match self {
                    $(Action::$name => $word,)*
                }
            }
        }
    };
}

actions! {
    /// An environment was made.
    EnvironmentCreated = "environment.created",
    /// An environment's name, URL, prefix or settings were changed.
    EnvironmentUpdated = "environment.updated",
    /// An environment signs with a new key.
    SigningKeyRotated = "signing_key.rotated",
    /// A retired signing key was removed.
    SigningKeyRemoved = "signing_key.removed",
    /// New secrets are stored under a new pepper.
    PepperRotated = "pepper.rotated",
    /// A pepper under which nothing is stored was forgotten.
    PepperRemoved = "pepper.removed",
    /// The keys of a restored store were released.
    RestoreConfirmed = "restore.confirmed",
    /// A store was restored from a backup.
    StoreRestored = "store.restored",
    /// A store was carried to another database.
    StoreMoved = "store.moved",
    /// An application was made.
    ApplicationCreated = "application.created",
    /// An application was renamed, disabled or enabled.
    ApplicationUpdated = "application.updated",
    /// An application was deleted.
    ApplicationDeleted = "application.deleted",
    /// An application received a new client secret.
    ApplicationSecretRotated = "application.secret_rotated",
    /// An application received a management token.
    TokenIssued = "token.issued",
    /// A sign-in of an application failed.
    SignInFailed = "token.refused",
    /// A call was denied: no token, a bad one, or one without the scope.
    CallDenied = "call.denied",
    /// An API was made.
    ApiCreated = "api.created",
    /// An API was deleted and its keys revoked.
    ApiDeleted = "api.deleted",
    /// Applications were connected to an API or parted from it.
    ApiApplicationsUpdated = "api.applications_updated",
    /// An application received a scope.
    ApplicationScopeGranted = "application.scope_granted",
    /// An application lost a scope.
    ApplicationScopeTaken = "application.scope_taken",
    /// A scope was made.
    ScopeCreated = "scope.created",
    /// A scope was described anew.
    ScopeUpdated = "scope.updated",
    /// A scope was deleted.
    ScopeDeleted = "scope.deleted",
    /// A user was registered.
    UserCreated = "user.created",
    /// A user was changed, suspended or restored.
    UserUpdated = "user.updated",
    /// A user was deleted and their keys revoked.
    UserDeleted = "user.deleted",
    /// An organization was made.
    OrganizationCreated = "organization.created",
    /// An organization was changed, suspended or restored.
    OrganizationUpdated = "organization.updated",
    /// An organization was deleted and its keys revoked.
    OrganizationDeleted = "organization.deleted",
    /// Users joined an organization or left it.
    MembersUpdated = "organization.members_updated",
    /// A key was issued.
    KeyIssued = "key.issued",
    /// Keys made elsewhere were imported.
    KeysImported = "key.imported",
    /// A key was renamed, described, enabled, disabled, or given other dates.
    KeyUpdated = "key.updated",
    /// A key received a new secret; the old one ended.
    KeyRotated = "key.rotated",
    /// A key was revoked for good.
    KeyRevoked = "key.revoked",
    /// An imported key's hash was replaced by a peppered digest at its first use.
    KeyRehashed = "key.rehashed",
}

/// Adds a field to a state that an audit record keeps.
fn put(state: &mut Value, name: &str, value: Value) {
    if let Value::Object(fields) = state {
        fields.insert(name.to_owned(), value);
    }
}
