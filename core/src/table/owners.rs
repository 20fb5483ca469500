//! Users and organizations: who is known, and how they stand.
//!
//! An owner that is named before its own row arrives stands as suspended. Which keys it has, nobody
//! asks: a verdict goes from the key to its owner.

use super::Flags;
use crate::index::Index;
use crate::slab::Slab;
use crate::text::Text;
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

/// Users or organizations, by environment and id.
pub(crate) struct Owners {
    entries: Slab<OwnerEntry>,
    index: Index,
    /// Ids come from outside, so their hash is keyed.
    hasher: RandomState,
    /// By slot. A byte each, so that a verdict mostly finds it in the processor's cache.
    standings: Vec<Flags>,
    /// Of the owners whose keys were revoked at once: up to which change.
    revoked_up_to: HashMap<u32, i64>,
}

struct OwnerEntry {
    id: Text,
    env: u32,
}

impl Owners {
    /// Also while the owner's row has not arrived.
    pub(crate) const SUSPENDED: Flags = Flags(1);
    pub(crate) const DELETED: Flags = Flags(1 << 1);
    /// It has an entry in `revoked_up_to`.
    pub(crate) const REVOKED: Flags = Flags(1 << 2);

    pub(super) fn new() -> Self {
        Self {
            entries: Slab::new(),
            index: Index::new(),
            hasher: RandomState::new(),
            standings: Vec::new(),
            revoked_up_to: HashMap::new(),
        }
    }

    pub(super) fn expect(&mut self, owners: usize) {
        self.index.expect(owners);
    }

    pub(crate) fn id(&self, slot: u32) -> &str {
        self.entries.at(slot).id.as_str()
    }

    #[inline]
    pub(crate) fn standing(&self, slot: u32) -> Flags {
        *self.standings.get(slot as usize).expect("every owner has a standing")
    }

    /// The owner's keys issued by changes up to this one are revoked, if any are.
    pub(crate) fn revoked_up_to(&self, slot: u32) -> Option<i64> {
        self.revoked_up_to.get(&slot).copied()
    }

    pub(super) fn set_standing(
        &mut self,
        slot: u32,
        suspended: bool,
        deleted: bool,
        revoked_up_to: i64,
    ) {
        let has_revoked = revoked_up_to != i64::MIN;
        if has_revoked {
            self.revoked_up_to.insert(slot, revoked_up_to);
        } else {
            self.revoked_up_to.remove(&slot);
        }
        let standing = self.standings.get_mut(slot as usize);
        *standing.expect("every owner has a standing") = Flags::NONE
            .with(Self::SUSPENDED, suspended)
            .with(Self::DELETED, deleted)
            .with(Self::REVOKED, has_revoked);
    }

    pub(super) fn slot_or_placeholder(&mut self, env: u32, id: &str) -> u32 {
        let hash = self.hasher.hash_one((env, id));
        let is_it = |slot| {
            let entry = self.entries.at(slot);
            entry.env == env && entry.id.as_str() == id
        };
        if let Some(slot) = self.index.find(hash, is_it) {
            return slot;
        }
        let slot = self.entries.insert(OwnerEntry { id: Text::new(id), env });
        self.standings.push(Self::SUSPENDED);
        let (entries, hasher) = (&self.entries, &self.hasher);
        self.index.insert(hash, slot, |slot| {
            let entry = entries.at(slot);
            hasher.hash_one((entry.env, entry.id.as_str()))
        });
        slot
    }
}
