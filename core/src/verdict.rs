//! The verdict: whether a presented secret is good right now, and if not, the first reason.
//!
//! [`Table::decide`] reads the table and nothing else, allocates nothing and cannot fail. It
//! counts nothing either: the server counts what it answered. Addresses, rate limits and quotas
//! have their refusals here and are not judged yet.

use crate::table::{Held, KeyEntry, Match, NEVER, Owners, Table};
use crate::{ApiId, EnvId, KeyId, SECRET_BYTES_MAX};
use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;
use std::sync::atomic::AtomicU32;

/// What a verification asks. It has no `Debug`, since it holds a secret.
#[derive(Clone, Copy)]
pub struct Question<'a> {
    /// The environment that is asked.
    pub env: EnvId,
    /// The text as it was presented; a scheme of RFC 8959 in front is taken off here.
    pub secret: &'a str,
    /// Database time, in microseconds since the Unix epoch.
    pub now: i64,
    /// The API that asks, by id. A malformed id differs from every key's API.
    pub api: Option<&'a str>,
    /// The API that asks, by audience. With both given, both must fit.
    pub audience: Option<&'a str>,
    /// Keys of the scopes that are all needed.
    pub scopes: ScopesAsked<'a>,
    /// The user that the answer must name.
    pub user: Option<&'a str>,
    /// The organization that the answer must name.
    pub org: Option<&'a str>,
    /// Where the key's holder calls from.
    pub address: Option<IpAddr>,
}

/// The scopes that a verification asks for, borrowed as the caller has them.
#[derive(Clone, Copy, Debug)]
pub enum ScopesAsked<'a> {
    /// As literals and slices.
    Strs(&'a [&'a str]),
    /// As a JSON reader gives them, which copies only escaped text.
    Cows(&'a [Cow<'a, str>]),
}

impl<'a> ScopesAsked<'a> {
    /// No scope is asked for.
    pub const NONE: Self = Self::Strs(&[]);

    /// The scopes in the order asked.
    pub fn iter(self) -> impl Iterator<Item = &'a str> {
        let (strs, cows) = match self {
            Self::Strs(strs) => (strs, [].as_slice()),
            Self::Cows(cows) => ([].as_slice(), cows),
        };
        strs.iter().copied().chain(cows.iter().map(|cow| &**cow))
    }
}

/// The answer to a [`Question`].
#[derive(Clone, Copy, Debug)]
pub enum Decision<'t> {
    /// No secret of this environment: malformed, mistyped, guessed, or of a key long gone. It
    /// answers as [`Refusal::Invalid`].
    Unknown,
    /// No verdict, because the environment is held back after a restore or has no row yet. The
    /// server answers that it cannot know.
    Withheld,
    /// The key is good.
    Valid(Known<'t>),
    /// The key is known and refused, for the first reason that applies.
    Refused(Known<'t>, Refusal),
}

/// Why a key is refused. The order is the precedence when several reasons apply.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum Refusal {
    /// Malformed or unknown.
    Invalid,
    /// Revoked for good: itself, by its owner's or its API's end, or with all keys of its owner.
    Revoked,
    /// A superseded secret of a key.
    Rotated,
    /// Disabled for now.
    Inactive,
    /// Before its not-before.
    NotYetValid,
    /// At or after its expiry.
    Expired,
    /// Its owner is suspended, or no longer a member of its organization.
    OwnerSuspended,
    /// Of another API than the one that asks.
    WrongApi,
    /// Of another owner than the one asked for.
    WrongOwner,
    /// Without a scope that is needed.
    InsufficientScope,
    /// From an address that its policy excludes.
    AddressNotAllowed,
    /// Over a rate limit.
    RateLimited,
    /// Over a quota.
    QuotaExceeded,
}

impl Refusal {
    /// All refusals, in order of precedence; each one's place is its number.
    pub const ALL: [Refusal; 13] = [
        Self::Invalid,
        Self::Revoked,
        Self::Rotated,
        Self::Inactive,
        Self::NotYetValid,
        Self::Expired,
        Self::OwnerSuspended,
        Self::WrongApi,
        Self::WrongOwner,
        Self::InsufficientScope,
        Self::AddressNotAllowed,
        Self::RateLimited,
        Self::QuotaExceeded,
    ];

    /// The code that verify answers with.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::Invalid => "API_KEY_INVALID",
            Self::Revoked => "API_KEY_REVOKED",
            Self::Rotated => "API_KEY_ROTATED",
            Self::Inactive => "API_KEY_INACTIVE",
            Self::NotYetValid => "API_KEY_NOT_YET_VALID",
            Self::Expired => "API_KEY_EXPIRED",
            Self::OwnerSuspended => "API_KEY_OWNER_SUSPENDED",
            Self::WrongApi => "API_KEY_WRONG_API",
            Self::WrongOwner => "API_KEY_WRONG_OWNER",
            Self::InsufficientScope => "API_KEY_INSUFFICIENT_SCOPE",
            Self::AddressNotAllowed => "API_KEY_ADDRESS_NOT_ALLOWED",
            Self::RateLimited => "API_KEY_RATE_LIMITED",
            Self::QuotaExceeded => "API_KEY_QUOTA_EXCEEDED",
        }
    }
}

/// What kind of owner a key has.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Kind {
    /// A user, inside an organization or not.
    User,
    /// An organization.
    Organization,
    /// The environment itself.
    Environment,
}

/// The lasting state of a key. Expiry and suspension do not change it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Status {
    /// Neither of the others.
    Active,
    /// Disabled.
    Inactive,
    /// Revoked for good.
    Revoked,
}

impl Table {
    /// Judges a presented secret.
    #[must_use]
    pub fn decide<'t>(&'t self, question: &Question<'_>) -> Decision<'t> {
        let Some(env) = self.find_env(question.env) else {
            return Decision::Withheld;
        };
        if self.envs.at(env).refused {
            return Decision::Withheld;
        }
        if question.secret.len() > SECRET_BYTES_MAX {
            return Decision::Unknown;
        }
        let Some(found) = self.find_secret(env, question.secret) else {
            return Decision::Unknown;
        };
        let known = Known { table: self, key: self.keys.at(found.key), found };
        match known.refusal(question) {
            None => Decision::Valid(known),
            Some(refusal) => Decision::Refused(known, refusal),
        }
    }

    /// A key by its id, without a question; also of an environment that is held back.
    #[must_use]
    pub fn key(&self, env: EnvId, key: KeyId) -> Option<Known<'_>> {
        let slot = self.find_key(self.find_env(env)?, key)?;
        let found = Match { key: slot, is_sha256: false, superseded_at: None };
        Some(Known { table: self, key: self.keys.at(slot), found })
    }
}

/// A key of the table, good or not.
#[derive(Clone, Copy)]
pub struct Known<'t> {
    table: &'t Table,
    key: &'t KeyEntry,
    found: Match,
}

impl<'t> Known<'t> {
    /// The key's id.
    #[must_use]
    pub fn key_id(self) -> KeyId {
        self.key.id
    }

    /// What its holder calls it.
    #[must_use]
    pub fn name(self) -> &'t str {
        self.key.name()
    }

    /// JSON text, as it came.
    #[must_use]
    pub fn metadata(self) -> Option<&'t str> {
        self.key.metadata()
    }

    /// The API it is for.
    #[must_use]
    pub fn api_id(self) -> ApiId {
        self.table.apis.at(self.key.api).id
    }

    /// The user it belongs to.
    #[must_use]
    pub fn user(self) -> Option<&'t str> {
        self.owners().0.map(|user| self.table.users.id(user))
    }

    /// The organization it belongs to, or inside which its user has it.
    #[must_use]
    pub fn org(self) -> Option<&'t str> {
        self.owners().1.map(|org| self.table.orgs.id(org))
    }

    /// What kind of owner it has.
    #[must_use]
    pub fn kind(self) -> Kind {
        match self.key.owner() {
            Held::User(_) | Held::Member(_) => Kind::User,
            Held::Org(_) => Kind::Organization,
            Held::Environment => Kind::Environment,
        }
    }

    /// Keys of those of its scopes that still exist on the API, in the API's order.
    pub fn scopes(self) -> impl Iterator<Item = &'t str> {
        let api = self.table.apis.at(self.key.api);
        let rare = self.key.flags.has(KeyEntry::RARE).then(|| self.table.rare.get(&self.found.key));
        let wide = rare.flatten().map_or([].as_slice(), |rare| &rare.wide);
        let words = move |bit: u32| match bit.checked_sub(64) {
            None => self.key.scopes,
            Some(beyond) => wide.get((beyond / 64) as usize).copied().unwrap_or(0),
        };
        let held = move |bit: &&u32| words(**bit) >> (**bit % 64) & 1 == 1;
        api.order.iter().filter(held).filter_map(|bit| api.scopes.get(*bit as usize)).map(|s| &**s)
    }

    /// Those of the asked scopes that [`Known::scopes`] lacks, in the order asked.
    pub fn missing_scopes<'a>(self, asked: ScopesAsked<'a>) -> impl Iterator<Item = &'a str> {
        asked.iter().filter(move |asked| !self.scopes().any(|scope| scope == *asked))
    }

    /// Its lasting state.
    #[must_use]
    pub fn status(self) -> Status {
        if self.is_revoked() {
            Status::Revoked
        } else if self.key.flags.has(KeyEntry::DISABLED) {
            Status::Inactive
        } else {
            Status::Active
        }
    }

    /// When it expires, in microseconds since the Unix epoch.
    #[must_use]
    pub fn expires_at(self) -> Option<i64> {
        (self.key.expires_at != NEVER).then_some(self.key.expires_at)
    }

    /// From when on it is good, in microseconds since the Unix epoch.
    #[must_use]
    pub fn not_before(self) -> Option<i64> {
        if !self.key.flags.has(KeyEntry::RARE) {
            return None;
        }
        self.table.rare.get(&self.found.key)?.not_before
    }

    /// Verifications that other counter files know of.
    #[must_use]
    pub fn base_count(self) -> u64 {
        self.key.base_count
    }

    /// The latest of those, in microseconds since the Unix epoch, or 0 for never.
    #[must_use]
    pub fn base_verified_at(self) -> i64 {
        self.key.base_verified_at
    }

    /// A number that the server keeps with the key, `u32::MAX` at first. It stays as long as the
    /// key is in the table, through every [`Table::put_key`].
    #[must_use]
    pub fn cell(self) -> &'t AtomicU32 {
        &self.key.cell
    }

    /// Whether the presented secret matched an unpeppered digest, which the server then replaces.
    #[must_use]
    pub fn matched_sha256(self) -> bool {
        self.found.is_sha256
    }

    /// Whether the presented secret has a successor: in its grace if the key is good, else past
    /// it.
    #[must_use]
    pub fn matched_secret_superseded(self) -> bool {
        self.found.superseded_at.is_some()
    }

    /// The first reason to refuse; the order of the tests is that of [`Refusal`].
    fn refusal(self, question: &Question<'_>) -> Option<Refusal> {
        let now = question.now;
        if self.is_revoked() {
            Some(Refusal::Revoked)
        } else if self.found.superseded_at.is_some_and(|superseded_at| superseded_at <= now) {
            Some(Refusal::Rotated)
        } else if self.key.flags.has(KeyEntry::DISABLED) {
            Some(Refusal::Inactive)
        } else if self.not_before().is_some_and(|not_before| now < not_before) {
            Some(Refusal::NotYetValid)
        } else if self.expires_at().is_some_and(|expires_at| expires_at <= now) {
            Some(Refusal::Expired)
        } else if self.is_owner_suspended() {
            Some(Refusal::OwnerSuspended)
        } else if !self.is_of_api(question.api, question.audience) {
            Some(Refusal::WrongApi)
        } else if !self.is_of_owner(question.user, question.org) {
            Some(Refusal::WrongOwner)
        } else if self.missing_scopes(question.scopes).next().is_some() {
            Some(Refusal::InsufficientScope)
        } else {
            None
        }
    }

    fn is_revoked(self) -> bool {
        let (user, org) = self.owners();
        self.key.flags.has(KeyEntry::REVOKED)
            || self.table.apis.at(self.key.api).deleted
            || user.is_some_and(|user| self.is_ended_by(&self.table.users, user))
            || org.is_some_and(|org| self.is_ended_by(&self.table.orgs, org))
    }

    #[inline]
    fn is_ended_by(self, owners: &Owners, owner: u32) -> bool {
        let standing = owners.standing(owner);
        standing.has(Owners::DELETED)
            || standing.has(Owners::REVOKED)
                && owners.revoked_up_to(owner).is_some_and(|up_to| up_to >= self.key.issued_seq)
    }

    fn is_owner_suspended(self) -> bool {
        let has_left = match self.key.owner() {
            Held::Member(member) => !self.table.members.at(member).member,
            Held::User(_) | Held::Org(_) | Held::Environment => false,
        };
        let is_suspended = |owners: &Owners, owner| owners.standing(owner).has(Owners::SUSPENDED);
        let (user, org) = self.owners();
        has_left
            || user.is_some_and(|user| is_suspended(&self.table.users, user))
            || org.is_some_and(|org| is_suspended(&self.table.orgs, org))
    }

    fn is_of_api(self, id: Option<&str>, audience: Option<&str>) -> bool {
        let api = self.table.apis.at(self.key.api);
        id.is_none_or(|id| ApiId::parse(id) == Some(api.id))
            && audience.is_none_or(|audience| *audience == *api.audience)
    }

    fn is_of_owner(self, user: Option<&str>, org: Option<&str>) -> bool {
        user.is_none_or(|user| self.user() == Some(user))
            && org.is_none_or(|org| self.org() == Some(org))
    }

    /// The user and the organization that have a say in whether the key is good.
    #[inline]
    fn owners(self) -> (Option<u32>, Option<u32>) {
        match self.key.owner() {
            Held::User(user) => (Some(user), None),
            Held::Member(member) => {
                let member = self.table.members.at(member);
                (Some(member.user), Some(member.org))
            }
            Held::Org(org) => (None, Some(org)),
            Held::Environment => (None, None),
        }
    }
}

impl fmt::Debug for Known<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Known").field("key_id", &self.key.id).finish_non_exhaustive()
    }
}
