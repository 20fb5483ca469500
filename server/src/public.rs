//! Callers without a token, where an environment allows verification to everybody.
//!
//! Each address may ask so often and no more, so that guessing keys is not made cheap. The limit is
//! GCRA (one instant for each address); addresses are forgotten when their instant has passed.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

use crate::error::{Error, Result};

/// Verifications without a token that one address may ask for in a minute.
const PER_MINUTE: i64 = 120;
/// How many of them at once.
const BURST: i64 = 20;
/// Addresses that are remembered; beyond that, strangers wait.
const ADDRESSES_MAX: usize = 100_000;
/// One verification's share of a minute, in µs.
const STEP_US: i64 = 60_000_000 / PER_MINUTE;

/// When each address has used up what it was given.
#[derive(Debug, Default)]
pub struct PublicCallers(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    used_up: HashMap<IpAddr, i64>,
    /// Before this instant nobody is looked for who can be forgotten.
    look_at: i64,
}

impl Known {
    fn forget(&mut self, boot_us: i64) {
        self.used_up.retain(|_, used_up| *used_up > boot_us);
    }

    /// Whether one more address can be remembered. Those that waited long enough are forgotten to
    /// make room, at most once in the time of a verification: looking through all is slow.
    fn has_room(&mut self, boot_us: i64) -> bool {
        if self.used_up.len() >= ADDRESSES_MAX && boot_us >= self.look_at {
            self.look_at = boot_us + STEP_US;
            self.forget(boot_us);
        }
        self.used_up.len() < ADDRESSES_MAX
    }
}

impl PublicCallers {
    /// Admits a verification from `address` at `boot_us`.
    ///
    /// # Errors
    /// `TooMany` when the address has asked too often.
    pub(crate) fn admit(&self, address: Option<IpAddr>, boot_us: i64) -> Result<()> {
        let Some(address) = address.map(network) else { return Ok(()) };
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let remembered = known.used_up.get(&address).copied();
        let used_up = remembered.unwrap_or(boot_us).max(boot_us);
        let wait_us = used_up - boot_us - (BURST - 1) * STEP_US;
        // Who is remembered already takes no room.
        if wait_us > 0 || (remembered.is_none() && !known.has_room(boot_us)) {
            let seconds = u32::try_from(wait_us / 1_000_000 + 1).unwrap_or(1);
            let public = "too many verifications without a token from this address";
            return Err(Error::too_many(seconds, public));
        }
        known.used_up.insert(address, used_up + STEP_US);
        Ok(())
    }

    /// Forgets addresses that have waited long enough.
    pub(crate) fn forget(&self, boot_us: i64) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).forget(boot_us);
    }
}

/// What counts as one caller: an IPv4 address, or an IPv6 network of 64 bits, whose addresses are
/// all one subscriber's.
pub(crate) fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(v6) => IpAddr::from((u128::from(v6) >> 64 << 64).to_be_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_admitted_as_often_as_the_limit_says() {
        let callers = PublicCallers::default();
        let address = Some(IpAddr::from([203, 0, 113, 7]));
        let admitted = (0..60_000_000)
            .step_by(10_000)
            .filter(|at| callers.admit(address, *at).is_ok())
            .count();
        // A minute's worth, and the burst at its beginning.
        assert_eq!(admitted as i64, PER_MINUTE + BURST - 1);
        let other = Some(IpAddr::from([203, 0, 113, 8]));
        assert!(callers.admit(other, 60_000_000).is_ok());
    }

    #[test]
    fn who_is_known_is_admitted_while_there_is_no_room_for_strangers() {
        let callers = PublicCallers::default();
        let address = |n: usize| Some(IpAddr::from((n as u32).to_be_bytes()));
        for n in 0..ADDRESSES_MAX {
            assert!(callers.admit(address(n), 0).is_ok(), "{n}");
        }
        assert!(callers.admit(address(ADDRESSES_MAX), 0).is_err());
        assert!(callers.admit(address(0), 0).is_ok());
        // Those who have waited long enough make room.
        assert!(callers.admit(address(ADDRESSES_MAX), STEP_US).is_ok());
    }

    #[test]
    fn the_addresses_of_one_ipv6_network_share_one_limit() {
        let callers = PublicCallers::default();
        let admit = |text: String| callers.admit(text.parse().ok(), 0).is_ok();
        let admitted = (0..10 * BURST).filter(|n| admit(format!("2001:db8::{n:x}:1")));
        assert_eq!(admitted.count() as i64, BURST);
        assert!(!admit("2001:db8::ffff:ffff:ffff:ffff".to_owned()), "the last of the network");
        assert!(admit("2001:db8:0:1::1".to_owned()), "the first of the next");
    }
}
