//! A hash index of `u32` values that keeps no keys of its own: what a value stands for is compared
//! and re-hashed through the entry it names.
//!
//! With a million keys nothing is in the processor's cache, and a verdict costs what its cache
//! misses cost (some 200 ns each on a virtual machine). So a bucket is one cache line, 12 values
//! with a byte of their hashes each, and a search mostly ends in the first line it reads. A
//! `hashbrown::HashTable` reads control bytes and values in two places; with one, verdicts over a
//! million keys took 10 to 20 % longer. An index weighs 6 to 9 bytes per value.
//!
//! The index is split, so that growing moves 1/256 of it at a time: with 10 M keys some
//! milliseconds under the follower's lock instead of a second.

use crate::{Digest, EnvId};

const SHARDS: usize = 256;
const WIDTH: usize = 12;
/// The tag of an empty place.
const EMPTY: u8 = 0;

pub(crate) struct Index {
    shards: Vec<Shard>,
}

#[derive(Default)]
struct Shard {
    buckets: Vec<Bucket>,
    len: usize,
}

#[repr(align(64))]
#[derive(Clone, Default)]
struct Bucket {
    tags: [u8; WIDTH],
    values: [u32; WIDTH],
    /// How many values passed this bucket because it was full, and are in a later one. At 255 it
    /// stays, since it may have been more.
    passed: u8,
}

/// Where a value was found.
struct Place {
    /// In buckets from the home.
    distance: usize,
    place: usize,
    value: u32,
}

const _: () = assert!(size_of::<Bucket>() == 64, "a bucket is a cache line");

impl Index {
    pub(crate) fn new() -> Self {
        Self { shards: (0..SHARDS).map(|_| Shard::default()).collect() }
    }

    /// Makes room for `values` values at once, if the index is empty. Growing to a million would
    /// move each of them twice, and look up what it stands for.
    pub(crate) fn expect(&mut self, values: usize) {
        let each = values / SHARDS;
        // Hashes spread like random numbers, so a shard in 30,000 gets more than 4 deviations
        // above the mean. That one grows.
        let places = each + 4 * each.isqrt();
        let buckets = places * 8 / (7 * WIDTH) + 1;
        for shard in self.shards.iter_mut().filter(|shard| shard.len == 0) {
            shard.buckets = vec![Bucket::default(); buckets];
        }
    }

    #[inline]
    pub(crate) fn find(&self, hash: u64, is_it: impl FnMut(u32) -> bool) -> Option<u32> {
        Some(self.shards.get(shard(hash))?.locate(hash, is_it)?.value)
    }

    /// Adds a value; `rehash` gives the hash of any value that is already there.
    pub(crate) fn insert(&mut self, hash: u64, value: u32, rehash: impl Fn(u32) -> u64) {
        let shard = self.shards.get_mut(shard(hash)).expect("a shard number is below SHARDS");
        // At most 7/8 full, so that about 1 value in 20 is not in the first bucket searched.
        if (shard.len + 1) * 8 > shard.buckets.len() * WIDTH * 7 {
            shard.grow(rehash);
        }
        shard.add(hash, value);
        shard.len += 1;
    }

    /// Takes a value out, if it is there.
    pub(crate) fn remove(&mut self, hash: u64, value: u32) {
        let shard = self.shards.get_mut(shard(hash)).expect("a shard number is below SHARDS");
        shard.take(hash, value);
    }
}

impl Shard {
    /// The buckets in the order in which a hash is searched.
    #[inline]
    fn search(&self, hash: u64) -> impl Iterator<Item = &Bucket> {
        let (before, from) = self.buckets.split_at(home(hash, self.buckets.len()));
        from.iter().chain(before)
    }

    #[inline]
    fn search_mut(&mut self, hash: u64) -> impl Iterator<Item = &mut Bucket> {
        let home = home(hash, self.buckets.len());
        let (before, from) = self.buckets.split_at_mut(home);
        from.iter_mut().chain(before)
    }

    fn add(&mut self, hash: u64, value: u32) {
        for bucket in self.search_mut(hash) {
            let mut places = bucket.tags.iter_mut().zip(&mut bucket.values);
            if let Some((its_tag, its_value)) = places.find(|(its_tag, _)| **its_tag == EMPTY) {
                *its_tag = tag(hash);
                *its_value = value;
                return;
            }
            bucket.passed = bucket.passed.saturating_add(1);
        }
        unreachable!("insert leaves 1/8 of the places empty");
    }

    #[inline]
    fn locate(&self, hash: u64, mut is_it: impl FnMut(u32) -> bool) -> Option<Place> {
        let tag = tag(hash);
        for (distance, bucket) in self.search(hash).enumerate() {
            for (place, (its_tag, value)) in bucket.tags.iter().zip(&bucket.values).enumerate() {
                if *its_tag == tag && is_it(*value) {
                    return Some(Place { distance, place, value: *value });
                }
            }
            if bucket.passed == 0 {
                return None;
            }
        }
        None
    }

    fn take(&mut self, hash: u64, value: u32) {
        let Some(found) = self.locate(hash, |other| other == value) else {
            return;
        };
        for (distance, bucket) in self.search_mut(hash).take(found.distance + 1).enumerate() {
            if distance < found.distance {
                // OK to leave 255: searches then go one bucket further than they must.
                bucket.passed -= u8::from(bucket.passed != u8::MAX);
            } else if let Some(tag) = bucket.tags.get_mut(found.place) {
                *tag = EMPTY;
            }
        }
        self.len -= 1;
    }

    /// Half as much again: half of the waste of doubling, for two moves per value instead of one.
    fn grow(&mut self, rehash: impl Fn(u32) -> u64) {
        let buckets = self.buckets.len() + self.buckets.len() / 2 + 1;
        let old = std::mem::replace(&mut self.buckets, vec![Bucket::default(); buckets]);
        for bucket in old {
            for (tag, value) in bucket.tags.into_iter().zip(bucket.values) {
                if tag != EMPTY {
                    self.add(rehash(value), value);
                }
            }
        }
    }
}

/// Bits 48–55. The tag comes from the bits above, the home bucket from the lower half.
#[inline]
const fn shard(hash: u64) -> usize {
    (hash >> 48) as usize % SHARDS
}

#[inline]
const fn tag(hash: u64) -> u8 {
    match (hash >> 56) as u8 {
        EMPTY => 1,
        tag => tag,
    }
}

/// The lower 32 bits as a fraction of the number of buckets, which need not be a power of two.
#[inline]
const fn home(hash: u64, buckets: usize) -> usize {
    ((hash as u32 as u64 * buckets as u64) >> 32) as usize
}

/// The first 8 bytes of a digest are as random as all 32; two environments may hold the same one.
#[inline]
pub(crate) const fn hash_digest(env: u32, digest: &Digest) -> u64 {
    match digest.bytes().first_chunk::<8>() {
        Some(first) => fold(u64::from_le_bytes(*first), env as u64),
        None => 0,
    }
}

#[inline]
pub(crate) const fn hash_env(env: &EnvId) -> u64 {
    hash_id(0, env.bytes())
}

/// Ids start with a time (UUIDv7) or may be anything, so all 16 bytes are folded together.
#[inline]
pub(crate) const fn hash_id(env: u32, id: &[u8; 16]) -> u64 {
    let id = u128::from_le_bytes(*id);
    fold(id as u64 ^ (env as u64).wrapping_mul(ODD_A), (id >> 64) as u64)
}

#[inline]
pub(crate) const fn hash_pair(a: u32, b: u32) -> u64 {
    fold(a as u64, b as u64)
}

const ODD_A: u64 = 0x9e37_79b9_7f4a_7c15;
const ODD_B: u64 = 0xe703_7ed1_a0b4_28db;

/// The two halves of a 64 × 64 bit product, as in wyhash.
#[inline]
const fn fold(a: u64, b: u64) -> u64 {
    let product = (a ^ ODD_A) as u128 * (b ^ ODD_B) as u128;
    product as u64 ^ (product >> 64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    /// A poor hash, so that buckets overflow, wrap around and share tags.
    fn poor_hash(value: u32) -> u64 {
        u64::from(value % 5) << 56 | u64::from(value % 3) << 30 | u64::from(value % 2) << 48
    }

    proptest! {
        #[test]
        fn an_index_finds_what_was_put_in_and_not_taken_out(
            steps in proptest::collection::vec((0..300_u32, 0..3_u8), 0..1500),
            good in any::<bool>(),
        ) {
            let hash = if good { |value| hash_pair(value, 0) } else { poor_hash };
            let mut index = Index::new();
            let mut model = BTreeSet::new();
            for (value, step) in steps {
                if step == 0 {
                    index.remove(hash(value), value);
                    model.remove(&value);
                } else if model.insert(value) {
                    index.insert(hash(value), value, hash);
                }
            }
            for value in 0..300 {
                let found = index.find(hash(value), |other| other == value);
                prop_assert_eq!(found, model.get(&value).copied());
            }
            let len: usize = index.shards.iter().map(|shard| shard.len).sum();
            prop_assert_eq!(len, model.len());
        }
    }

    #[test]
    fn an_index_that_was_told_how_many_values_to_expect_does_not_grow() {
        let mut index = Index::new();
        let hash = |value| hash_pair(value, 7);
        index.expect(200_000);
        let buckets = |index: &Index| -> Vec<usize> {
            index.shards.iter().map(|shard| shard.buckets.len()).collect()
        };
        let before = buckets(&index);
        for value in 0..200_000 {
            index.insert(hash(value), value, hash);
        }
        assert_eq!(buckets(&index), before);
        for value in 0..200_000 {
            assert_eq!(index.find(hash(value), |other| other == value), Some(value));
        }
    }

    #[test]
    fn values_of_one_hash_stay_found_when_hundreds_of_them_leave() {
        let mut index = Index::new();
        for value in 0..600 {
            index.insert(1, value, |_| 1);
        }
        for value in 0..500 {
            index.remove(1, value);
        }
        for value in 0..600 {
            let expected = (value >= 500).then_some(value);
            assert_eq!(index.find(1, |other| other == value), expected);
        }
    }

    #[test]
    fn an_index_of_many_values_is_more_than_half_full_and_finds_each() {
        let mut index = Index::new();
        let hash = |value| hash_pair(value, 7);
        for value in 0..200_000 {
            index.insert(hash(value), value, hash);
        }
        for value in 0..200_000 {
            assert_eq!(index.find(hash(value), |other| other == value), Some(value));
        }
        assert_eq!(index.find(hash(200_000), |other| other == 200_000), None);
        let places: usize = index.shards.iter().map(|shard| shard.buckets.len() * WIDTH).sum();
        assert!(places < 400_000, "{places} places");
    }
}
