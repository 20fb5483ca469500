//! Everything that verification reads, in memory, and how it is kept up to date.
//!
//! Only the follower writes a [`Table`], one row of the store at a time, and writing a row twice
//! changes nothing. Rows may come in any order: what a key points at and is not there yet refuses
//! until its own row arrives, so a table that is behind never says yes too early. Locking is left
//! to the server, and what the rows amount to is in `verdict.rs`.
//!
//! Memory decides the layout, since 10 M keys are to fit in 3 GiB: a key is one 128-byte entry,
//! its name and metadata are one allocation, environments, APIs and owners are `u32` slots, scopes
//! are bits, and what few keys have (a second secret, a not-before, more than 64 scopes) is kept
//! aside.

use crate::digest::sha256;
use crate::index::{Index, hash_digest, hash_env, hash_id, hash_pair};
use crate::secret::{Parts, strip_scheme};
use crate::slab::Slab;
use crate::{
    ApiId, ApiRow, Digest, EnvId, EnvironmentRow, KeyId, KeyRow, MembershipRow, OrgCode, OrgRow,
    Owner, Pepper, Scheme, ScopeId, SecretRow, UserId, UserRow,
};
use std::collections::HashMap;
use std::sync::atomic::AtomicU32;

mod owners;

pub(crate) use owners::Owners;

/// No slot: the end of a chain, or an owner's place in a key that belongs to the environment.
const NONE: u32 = u32::MAX;
/// Marks a value of the digest index as a slot of `extras`; without it, it is a slot of `keys`.
const EXTRA: u32 = 1 << 31;
/// The scheme tag of unpeppered digests; the tag of a peppered one is a place in `pepper_ids`.
const SHA256: u16 = u16::MAX;
/// What [`KeyEntry::expires_at`] holds for a key that does not expire.
pub(crate) const NEVER: i64 = i64::MAX;
/// What [`Known::cell`](crate::Known::cell) holds until the server puts something there.
const NO_CELL: u32 = u32::MAX;

/// The in-memory image of all environments. See the module's first lines.
pub struct Table {
    pub(crate) envs: Slab<EnvEntry>,
    env_index: Index,
    pub(crate) apis: Slab<ApiEntry>,
    api_index: Index,
    pub(crate) users: Owners,
    pub(crate) orgs: Owners,
    pub(crate) members: Slab<MemberEntry>,
    member_index: Index,
    pub(crate) keys: Slab<KeyEntry>,
    key_index: Index,
    extras: Slab<ExtraSecret>,
    digest_index: Index,
    pub(crate) rare: HashMap<u32, Rare>,
    /// With their scheme tags, the current one first.
    peppers: Vec<(u16, Pepper)>,
    /// Every pepper id that was ever named; its place here is its scheme tag.
    pepper_ids: Vec<u32>,
}

pub(crate) struct EnvEntry {
    id: EnvId,
    pub(crate) prefixes: Vec<Box<str>>,
    /// True until the environment's row arrives, too.
    pub(crate) refused: bool,
    /// Keys that came from another system.
    imported_keys: usize,
}

pub(crate) struct ApiEntry {
    env: u32,
    pub(crate) id: ApiId,
    pub(crate) audience: Box<str>,
    /// True until the API's row arrives, too.
    pub(crate) deleted: bool,
    /// Every scope that was ever named, so that a bit never changes its meaning.
    pub(crate) scopes: Vec<Box<str>>,
    scope_bits: HashMap<ScopeId, u32>,
    /// The bits of the scopes that exist, in the API's order.
    pub(crate) order: Vec<u32>,
}

pub(crate) struct MemberEntry {
    pub(crate) user: u32,
    pub(crate) org: u32,
    pub(crate) member: bool,
}

/// A key: two cache lines, of which a verdict reads the first.
#[repr(C, align(64))]
pub(crate) struct KeyEntry {
    /// The digest of the first secret that is not superseded, if [`KeyEntry::INLINE`].
    digest: Digest,
    /// The lowest 64 of the API's scope bits; the others are in [`Rare::wide`].
    pub(crate) scopes: u64,
    pub(crate) expires_at: i64,
    pub(crate) api: u32,
    owner: u32,
    pub(crate) cell: AtomicU32,
    scheme: u16,
    owner_kind: OwnerKind,
    pub(crate) flags: Flags,

    pub(crate) id: KeyId,
    /// Name and metadata, one after the other.
    text: Box<str>,
    pub(crate) issued_seq: i64,
    pub(crate) base_count: u64,
    pub(crate) base_verified_at: i64,
    name_bytes: u32,
    /// The first of its other secrets in `extras`.
    more: u32,
}

const _: () = assert!(size_of::<KeyEntry>() == 128, "the memory budget counts on this size");

#[derive(Clone, Copy)]
enum OwnerKind {
    User,
    Member,
    Org,
    Environment,
}

/// Whom a key belongs to, as slots.
#[derive(Clone, Copy)]
pub(crate) enum Held {
    User(u32),
    Member(u32),
    Org(u32),
    Environment,
}

/// Up to eight yes-or-no facts in a byte.
#[derive(Clone, Copy)]
pub(crate) struct Flags(u8);

impl Flags {
    const NONE: Self = Self(0);

    #[inline]
    pub(crate) const fn has(self, flag: Self) -> bool {
        self.0 & flag.0 != 0
    }

    const fn with(self, flag: Self, on: bool) -> Self {
        Self(if on { self.0 | flag.0 } else { self.0 & !flag.0 })
    }
}

/// A secret that did not fit into its key's entry.
struct ExtraSecret {
    digest: Digest,
    superseded_at: Option<i64>,
    key: u32,
    next: u32,
    scheme: u16,
}

/// What few keys have.
#[derive(Default, PartialEq)]
pub(crate) struct Rare {
    pub(crate) not_before: Option<i64>,
    /// Scope bits from the 64th on.
    pub(crate) wide: Box<[u64]>,
}

/// Where a presented secret was found.
#[derive(Clone, Copy)]
pub(crate) struct Match {
    pub(crate) key: u32,
    pub(crate) is_sha256: bool,
    pub(crate) superseded_at: Option<i64>,
}

impl Default for Table {
    fn default() -> Self {
        Self::new()
    }
}

impl Table {
    /// An empty table, in which every environment is withheld.
    #[must_use]
    pub fn new() -> Self {
        Self {
            envs: Slab::new(),
            env_index: Index::new(),
            apis: Slab::new(),
            api_index: Index::new(),
            users: Owners::new(),
            orgs: Owners::new(),
            members: Slab::new(),
            member_index: Index::new(),
            keys: Slab::new(),
            key_index: Index::new(),
            extras: Slab::new(),
            digest_index: Index::new(),
            rare: HashMap::new(),
            peppers: Vec::new(),
            pepper_ids: Vec::new(),
        }
    }

    /// Sets the peppers that presented secrets are tried with, the current one first. A key whose
    /// digest names another is not found.
    pub fn set_peppers(&mut self, peppers: Vec<Pepper>) {
        self.peppers = peppers
            .into_iter()
            .map(|pepper| (self.scheme_tag(Scheme::Pepper(pepper.id())), pepper))
            .collect();
    }

    /// Makes room for as many keys and users as are about to come, which is faster than growing.
    /// To be called while there are none; more may come, and fewer.
    pub fn expect(&mut self, keys: usize, users: usize) {
        self.key_index.expect(keys);
        self.digest_index.expect(keys);
        self.users.expect(users);
    }

    /// Adds or replaces an environment.
    pub fn put_environment(&mut self, row: EnvironmentRow) {
        let env = self.env_or_placeholder(row.env);
        let entry = self.envs.at_mut(env);
        entry.prefixes = row.prefixes;
        entry.refused = row.refused;
    }

    /// Adds or replaces an API with its scopes.
    pub fn put_api(&mut self, row: ApiRow) {
        let env = self.env_or_placeholder(row.env);
        let api = self.api_or_placeholder(env, row.api);
        let entry = self.apis.at_mut(api);
        entry.audience = row.audience;
        entry.deleted = row.deleted;
        entry.order.clear();
        for (id, key) in row.scopes {
            let bit = entry.scope_bit(id);
            *entry.scopes.get_mut(bit as usize).expect("a scope's bit is its place") = key;
            entry.order.push(bit);
        }
    }

    /// Adds or replaces a user.
    pub fn put_user(&mut self, row: UserRow) {
        let env = self.env_or_placeholder(row.env);
        let user = self.users.slot_or_placeholder(env, row.user.as_str());
        self.users.set_standing(user, row.suspended, row.deleted, row.revoked_up_to);
    }

    /// Adds or replaces an organization.
    pub fn put_org(&mut self, row: OrgRow) {
        let env = self.env_or_placeholder(row.env);
        let org = self.orgs.slot_or_placeholder(env, row.org.as_str());
        self.orgs.set_standing(org, row.suspended, row.deleted, row.revoked_up_to);
    }

    /// Adds or replaces a membership, an ended one too.
    pub fn put_membership(&mut self, row: MembershipRow) {
        let env = self.env_or_placeholder(row.env);
        let member = self.member_or_placeholder(env, &row.user, &row.org);
        self.members.at_mut(member).member = row.member;
    }

    /// Adds or replaces a key with all its secrets; its cell stays. An owner that has no row yet
    /// counts as suspended until it has, an API as deleted.
    ///
    /// A digest belongs to one key per environment: should another key have it, this one takes it
    /// over, as the store's later change did.
    pub fn put_key(&mut self, row: KeyRow) {
        let env = self.env_or_placeholder(row.env);
        let api = self.api_or_placeholder(env, row.api);
        let (owner_kind, owner) = self.owner_or_placeholder(env, &row.owner);
        let (scopes, wide) = self.apis.at_mut(api).scope_set(&row.scopes);
        let slot = match self.find_key(env, row.key) {
            Some(slot) => {
                self.forget_particulars(env, slot);
                slot
            }
            None => self.insert_key(env, api, row.key),
        };

        let rare = Rare { not_before: row.not_before, wide };
        let has_rare = rare != Rare::default();
        if has_rare {
            self.rare.insert(slot, rare);
        }
        // An unpeppered digest can only have come from elsewhere, whatever the row says.
        let imported = row.imported || row.secrets.iter().any(|s| s.scheme == Scheme::Sha256);
        if imported {
            self.envs.at_mut(env).imported_keys += 1;
        }

        let key = self.keys.at_mut(slot);
        key.flags = Flags::NONE
            .with(KeyEntry::DISABLED, row.disabled)
            .with(KeyEntry::REVOKED, row.revoked)
            .with(KeyEntry::IMPORTED, imported)
            .with(KeyEntry::METADATA, row.metadata.is_some())
            .with(KeyEntry::RARE, has_rare);
        key.name_bytes = u32::try_from(row.name.len()).expect("a name is shorter than 4 GiB");
        key.text = match row.metadata {
            None => row.name,
            Some(metadata) => [row.name, metadata].concat().into_boxed_str(),
        };
        key.api = api;
        key.owner_kind = owner_kind;
        key.owner = owner;
        key.scopes = scopes;
        key.issued_seq = row.issued_seq;
        key.expires_at = row.expires_at.unwrap_or(NEVER);
        key.base_count = row.base_count;
        key.base_verified_at = row.base_verified_at;
        for secret in row.secrets {
            self.insert_secret(env, slot, &secret);
        }
    }

    /// Takes a key out, if it is there. Its secrets are unknown from then on.
    pub fn remove_key(&mut self, env: EnvId, key: KeyId) {
        let Some(env) = self.find_env(env) else {
            return;
        };
        let Some(slot) = self.find_key(env, key) else {
            return;
        };
        self.forget_particulars(env, slot);
        self.key_index.remove(hash_id(env, key.bytes()), slot);
        self.keys.at_mut(slot).text = "".into();
        self.keys.free(slot);
    }

    /// Sets what other counter files know of a key's verifications, if the key is there.
    pub fn set_base(&mut self, env: EnvId, key: KeyId, count: u64, verified_at: i64) {
        let Some(env) = self.find_env(env) else {
            return;
        };
        let Some(slot) = self.find_key(env, key) else {
            return;
        };
        let entry = self.keys.at_mut(slot);
        entry.base_count = count;
        entry.base_verified_at = verified_at;
    }

    /// Keys of all environments.
    #[must_use]
    pub fn key_count(&self) -> usize {
        self.keys.len()
    }

    pub(crate) fn find_env(&self, id: EnvId) -> Option<u32> {
        self.env_index.find(hash_env(&id), |slot| self.envs.at(slot).id == id)
    }

    pub(crate) fn find_key(&self, env: u32, id: KeyId) -> Option<u32> {
        self.key_index.find(hash_id(env, id.bytes()), |slot| {
            let key = self.keys.at(slot);
            key.id == id && self.apis.at(key.api).env == env
        })
    }

    /// Finds the key that a presented text belongs to, whatever its state. What cannot be a secret
    /// of this environment is not looked up.
    #[inline]
    pub(crate) fn find_secret(&self, env: u32, presented: &str) -> Option<Match> {
        let entry = self.envs.at(env);
        let text = strip_scheme(presented);
        if let Some(Parts { prefix, intact }) = Parts::of(text)
            && entry.prefixes.iter().any(|known| **known == *prefix)
        {
            return if intact { self.look_up(env, text) } else { None };
        }
        if entry.imported_keys == 0 {
            return None;
        }
        match self.look_up(env, text) {
            // An imported secret may itself begin with what looks like the scheme.
            None if text.len() < presented.len() => self.look_up(env, presented),
            found => found,
        }
    }

    #[inline]
    fn look_up(&self, env: u32, text: &str) -> Option<Match> {
        let mut peppers = self.peppers.iter();
        let peppered = peppers.find_map(|(scheme, pepper)| {
            self.find_digest(env, &pepper.digest(text.as_bytes()), *scheme)
        });
        let found = match peppered {
            None if self.envs.at(env).imported_keys > 0 => {
                self.find_digest(env, &sha256(text.as_bytes()), SHA256)?
            }
            found => found?,
        };
        Some(if found & EXTRA == 0 {
            let is_sha256 = self.keys.at(found).scheme == SHA256;
            Match { key: found, is_sha256, superseded_at: None }
        } else {
            let extra = self.extras.at(found & !EXTRA);
            let is_sha256 = extra.scheme == SHA256;
            Match { key: extra.key, is_sha256, superseded_at: extra.superseded_at }
        })
    }

    #[inline]
    fn find_digest(&self, env: u32, digest: &Digest, scheme: u16) -> Option<u32> {
        self.digest_index.find(hash_digest(env, digest), |value| {
            let (key, its_digest, its_scheme) = if value & EXTRA == 0 {
                let key = self.keys.at(value);
                (key, &key.digest, key.scheme)
            } else {
                let extra = self.extras.at(value & !EXTRA);
                (self.keys.at(extra.key), &extra.digest, extra.scheme)
            };
            its_digest == digest && its_scheme == scheme && self.apis.at(key.api).env == env
        })
    }

    fn insert_key(&mut self, env: u32, api: u32, id: KeyId) -> u32 {
        let slot = self.keys.insert(KeyEntry::new(id, api));
        assert!(slot < EXTRA, "memory ends before 2^31 keys");
        let (keys, apis) = (&self.keys, &self.apis);
        self.key_index.insert(hash_id(env, id.bytes()), slot, |slot| {
            let key = keys.at(slot);
            hash_id(apis.at(key.api).env, key.id.bytes())
        });
        slot
    }

    fn insert_secret(&mut self, env: u32, slot: u32, secret: &SecretRow) {
        let scheme = self.scheme_tag(secret.scheme);
        let hash = hash_digest(env, &secret.digest);
        if let Some(former) = self.find_digest(env, &secret.digest, scheme) {
            self.digest_index.remove(hash, former);
        }
        let key = self.keys.at_mut(slot);
        let value = if secret.superseded_at.is_none() && !key.flags.has(KeyEntry::INLINE) {
            key.digest = secret.digest;
            key.scheme = scheme;
            key.flags = key.flags.with(KeyEntry::INLINE, true);
            slot
        } else {
            let extra = self.extras.insert(ExtraSecret {
                digest: secret.digest,
                superseded_at: secret.superseded_at,
                key: slot,
                next: key.more,
                scheme,
            });
            assert!(extra < EXTRA, "memory ends before 2^31 secrets");
            key.more = extra;
            extra | EXTRA
        };
        let (keys, apis, extras) = (&self.keys, &self.apis, &self.extras);
        self.digest_index.insert(hash, value, |value| {
            let (key, digest) = if value & EXTRA == 0 {
                let key = keys.at(value);
                (key, &key.digest)
            } else {
                let extra = extras.at(value & !EXTRA);
                (keys.at(extra.key), &extra.digest)
            };
            hash_digest(apis.at(key.api).env, digest)
        });
    }

    /// Undoes what [`Table::put_key`] did for a key outside of its own entry, secrets included.
    fn forget_particulars(&mut self, env: u32, slot: u32) {
        let key = self.keys.at_mut(slot);
        if key.flags.has(KeyEntry::INLINE) {
            key.flags = key.flags.with(KeyEntry::INLINE, false);
            // OK if another key took the digest over: only this key's value is taken out.
            self.digest_index.remove(hash_digest(env, &key.digest), slot);
        }
        let mut more = std::mem::replace(&mut key.more, NONE);
        while more != NONE {
            let extra = self.extras.at(more);
            self.digest_index.remove(hash_digest(env, &extra.digest), more | EXTRA);
            let next = extra.next;
            self.extras.free(more);
            more = next;
        }
        if key.flags.has(KeyEntry::RARE) {
            self.rare.remove(&slot);
        }
        if key.flags.has(KeyEntry::IMPORTED) {
            self.envs.at_mut(env).imported_keys -= 1;
        }
    }

    fn scheme_tag(&mut self, scheme: Scheme) -> u16 {
        let Scheme::Pepper(id) = scheme else {
            return SHA256;
        };
        let place = self.pepper_ids.iter().position(|known| *known == id).unwrap_or_else(|| {
            self.pepper_ids.push(id);
            self.pepper_ids.len() - 1
        });
        let tag = u16::try_from(place).expect("there are fewer than 65,535 peppers");
        assert!(tag != SHA256, "there are fewer than 65,535 peppers");
        tag
    }

    fn env_or_placeholder(&mut self, id: EnvId) -> u32 {
        if let Some(slot) = self.find_env(id) {
            return slot;
        }
        let slot = self.envs.insert(EnvEntry {
            id,
            prefixes: Vec::new(),
            refused: true,
            imported_keys: 0,
        });
        let envs = &self.envs;
        self.env_index.insert(hash_env(&id), slot, |slot| hash_env(&envs.at(slot).id));
        slot
    }

    fn api_or_placeholder(&mut self, env: u32, id: ApiId) -> u32 {
        let hash = hash_id(env, id.bytes());
        let is_it = |slot| {
            let api = self.apis.at(slot);
            api.id == id && api.env == env
        };
        if let Some(slot) = self.api_index.find(hash, is_it) {
            return slot;
        }
        let slot = self.apis.insert(ApiEntry {
            env,
            id,
            audience: "".into(),
            deleted: true,
            scopes: Vec::new(),
            scope_bits: HashMap::new(),
            order: Vec::new(),
        });
        let apis = &self.apis;
        self.api_index.insert(hash, slot, |slot| {
            let api = apis.at(slot);
            hash_id(api.env, api.id.bytes())
        });
        slot
    }

    fn owner_or_placeholder(&mut self, env: u32, owner: &Owner) -> (OwnerKind, u32) {
        match owner {
            Owner::User(user) => {
                (OwnerKind::User, self.users.slot_or_placeholder(env, user.as_str()))
            }
            Owner::UserInOrg(user, org) => {
                (OwnerKind::Member, self.member_or_placeholder(env, user, org))
            }
            Owner::Org(org) => (OwnerKind::Org, self.orgs.slot_or_placeholder(env, org.as_str())),
            Owner::Environment => (OwnerKind::Environment, NONE),
        }
    }

    fn member_or_placeholder(&mut self, env: u32, user: &UserId, org: &OrgCode) -> u32 {
        let user = self.users.slot_or_placeholder(env, user.as_str());
        let org = self.orgs.slot_or_placeholder(env, org.as_str());
        let hash = hash_pair(user, org);
        let is_it = |slot| {
            let entry = self.members.at(slot);
            entry.user == user && entry.org == org
        };
        if let Some(slot) = self.member_index.find(hash, is_it) {
            return slot;
        }
        let slot = self.members.insert(MemberEntry { user, org, member: false });
        let members = &self.members;
        self.member_index.insert(hash, slot, |slot| {
            let entry = members.at(slot);
            hash_pair(entry.user, entry.org)
        });
        slot
    }
}

impl ApiEntry {
    /// The bit of a scope; one that was never named gets the next.
    fn scope_bit(&mut self, id: ScopeId) -> u32 {
        let next = u32::try_from(self.scopes.len()).expect("memory ends before 2^32 scopes");
        let bit = *self.scope_bits.entry(id).or_insert(next);
        if bit == next {
            self.scopes.push("".into());
        }
        bit
    }

    fn scope_set(&mut self, ids: &[ScopeId]) -> (u64, Box<[u64]>) {
        let mut scopes = 0;
        let mut wide = Vec::new();
        for id in ids {
            let bit = self.scope_bit(*id);
            match bit.checked_sub(64) {
                None => scopes |= 1 << bit,
                Some(beyond) => {
                    let word = (beyond / 64) as usize;
                    wide.resize(wide.len().max(word + 1), 0);
                    *wide.get_mut(word).expect("the line above made room") |= 1 << (beyond % 64);
                }
            }
        }
        (scopes, wide.into_boxed_slice())
    }
}

impl KeyEntry {
    pub(crate) const DISABLED: Flags = Flags(1);
    pub(crate) const REVOKED: Flags = Flags(1 << 1);
    const IMPORTED: Flags = Flags(1 << 2);
    const METADATA: Flags = Flags(1 << 3);
    /// It has an entry in [`Table::rare`].
    pub(crate) const RARE: Flags = Flags(1 << 4);
    /// A digest stands in the entry itself.
    const INLINE: Flags = Flags(1 << 5);

    /// An entry that nothing points at yet.
    fn new(id: KeyId, api: u32) -> Self {
        Self {
            id,
            digest: Digest::from_bytes([0; 32]),
            text: "".into(),
            scopes: 0,
            issued_seq: 0,
            expires_at: NEVER,
            base_count: 0,
            base_verified_at: 0,
            name_bytes: 0,
            api,
            owner: NONE,
            more: NONE,
            cell: AtomicU32::new(NO_CELL),
            scheme: SHA256,
            owner_kind: OwnerKind::Environment,
            flags: Flags::NONE,
        }
    }

    #[inline]
    pub(crate) fn name(&self) -> &str {
        self.text.get(..self.name_bytes as usize).expect("the text starts with the name")
    }

    #[inline]
    pub(crate) fn metadata(&self) -> Option<&str> {
        let metadata = || self.text.get(self.name_bytes as usize..);
        self.flags.has(KeyEntry::METADATA).then(metadata)?
    }

    #[inline]
    pub(crate) fn owner(&self) -> Held {
        match self.owner_kind {
            OwnerKind::User => Held::User(self.owner),
            OwnerKind::Member => Held::Member(self.owner),
            OwnerKind::Org => Held::Org(self.owner),
            OwnerKind::Environment => Held::Environment,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Decision, Question, ScopesAsked};

    fn env(slot: u32) -> EnvId {
        EnvId::from_bytes(u128::from(slot).to_be_bytes())
    }

    fn imported_key(slot: u32, text: &str) -> KeyRow {
        let digest = sha256(text.as_bytes());
        KeyRow {
            env: env(slot),
            key: KeyId::from_bytes([1; 16]),
            name: "".into(),
            metadata: None,
            owner: Owner::Environment,
            api: ApiId::from_bytes([2; 16]),
            scopes: vec![],
            issued_seq: 1,
            not_before: None,
            expires_at: None,
            disabled: false,
            revoked: false,
            imported: true,
            secrets: vec![SecretRow { digest, scheme: Scheme::Sha256, superseded_at: None }],
            base_count: 0,
            base_verified_at: 0,
        }
    }

    /// A text, and two environments in which its digest lands in the same shard with the same tag.
    fn meeting() -> (String, u32, u32) {
        let texts = (0..1000).map(|number: u32| number.to_string());
        let mut meetings = texts.filter_map(|text| {
            let digest = sha256(text.as_bytes());
            let mut seen = HashMap::new();
            (0..1000).find_map(|slot| {
                let other = seen.insert(hash_digest(slot, &digest) >> 48, slot)?;
                Some((text.clone(), other, slot))
            })
        });
        meetings.next().expect("a million hashes meet in 16 bits")
    }

    #[test]
    fn a_digest_of_another_environment_is_not_found_where_the_hashes_meet() {
        let (text, has_it, has_it_not) = meeting();
        let mut table = Table::new();
        for slot in 0..1000 {
            table.put_environment(EnvironmentRow {
                env: env(slot),
                prefixes: vec![],
                refused: false,
            });
        }
        table.put_key(imported_key(has_it, &text));
        table.put_key(imported_key(has_it_not, "something else"));
        let decide = |slot| {
            table.decide(&Question {
                env: env(slot),
                secret: &text,
                now: 0,
                api: None,
                audience: None,
                scopes: ScopesAsked::NONE,
                user: None,
                org: None,
                address: None,
            })
        };
        assert!(matches!(decide(has_it), Decision::Refused(..)), "its API is not there");
        assert!(matches!(decide(has_it_not), Decision::Unknown));
    }
}
