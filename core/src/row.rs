//! The rows that the follower hands to the [`Table`](crate::Table): the part of the store's rows
//! that a verdict can depend on, and no more.
//!
//! Every instant is in microseconds since the Unix epoch by the database's clock.

use crate::{ApiId, Digest, EnvId, KeyId, OrgCode, ScopeId, UserId};

/// An environment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EnvironmentRow {
    /// Its id.
    pub env: EnvId,
    /// Current and former prefixes. A text of our format with another prefix is foreign here.
    pub prefixes: Vec<Box<str>>,
    /// No key of it gets a verdict, because a restore waits for the operator's word.
    pub refused: bool,
}

/// An API.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ApiRow {
    /// Its environment.
    pub env: EnvId,
    /// Its id.
    pub api: ApiId,
    /// Its audience, unique in the environment.
    pub audience: Box<str>,
    /// Deleted for good; its keys are revoked.
    pub deleted: bool,
    /// The scopes that exist, id and key, in the order in which answers name them.
    pub scopes: Vec<(ScopeId, Box<str>)>,
}

/// A user.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UserRow {
    /// Its environment.
    pub env: EnvId,
    /// Its id.
    pub user: UserId,
    /// Its keys are refused while this lasts.
    pub suspended: bool,
    /// Its keys are revoked.
    pub deleted: bool,
    /// Every key of this user whose `issued_seq` is not above this is revoked; `i64::MIN` for
    /// none.
    pub revoked_up_to: i64,
}

/// An organization.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OrgRow {
    /// Its environment.
    pub env: EnvId,
    /// Its code.
    pub org: OrgCode,
    /// Its keys, and its members' keys inside it, are refused while this lasts.
    pub suspended: bool,
    /// The same keys are revoked.
    pub deleted: bool,
    /// Of the same keys, every one whose `issued_seq` is not above this is revoked; `i64::MIN` for
    /// none.
    pub revoked_up_to: i64,
}

/// Whether a user belongs to an organization.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MembershipRow {
    /// Their environment.
    pub env: EnvId,
    /// The organization.
    pub org: OrgCode,
    /// The user.
    pub user: UserId,
    /// True while the user belongs to it.
    pub member: bool,
}

/// Whom a key belongs to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Owner {
    /// A user, in no organization.
    User(UserId),
    /// A user inside an organization; refused while the user is not a member.
    UserInOrg(UserId, OrgCode),
    /// An organization.
    Org(OrgCode),
    /// The environment itself.
    Environment,
}

/// How a digest was made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scheme {
    /// HMAC-SHA-256 under the pepper of this id.
    Pepper(u32),
    /// SHA-256 without a pepper: imported and not used since.
    Sha256,
}

/// One secret of a key. A key has several while a rotation's grace lasts, and as long as a
/// superseded secret is to be recognised.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SecretRow {
    /// The digest; at most one key of an environment has it.
    pub digest: Digest,
    /// How the digest was made.
    pub scheme: Scheme,
    /// The secret is good until then; from then on it is superseded.
    pub superseded_at: Option<i64>,
}

/// A key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KeyRow {
    /// Its environment.
    pub env: EnvId,
    /// Its id.
    pub key: KeyId,
    /// What its holder calls it.
    pub name: Box<str>,
    /// JSON text, passed through untouched.
    pub metadata: Option<Box<str>>,
    /// Whom it belongs to.
    pub owner: Owner,
    /// The API it is for.
    pub api: ApiId,
    /// The scopes it was issued with. Those that no longer exist on the API count for nothing.
    pub scopes: Vec<ScopeId>,
    /// The sequence number of the change that issued it.
    pub issued_seq: i64,
    /// Refused before this.
    pub not_before: Option<i64>,
    /// Refused from this on.
    pub expires_at: Option<i64>,
    /// Refused while this lasts.
    pub disabled: bool,
    /// Refused for good.
    pub revoked: bool,
    /// It came from another system, so its secret may have any format.
    pub imported: bool,
    /// Its secrets.
    pub secrets: Vec<SecretRow>,
    /// Verifications that other counter files know of.
    pub base_count: u64,
    /// The latest of those, or 0 for never.
    pub base_verified_at: i64,
}
