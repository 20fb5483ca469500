//! How many connections each client has open, so that one of them cannot take every place.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use crate::public::network;

/// The open connections of each client. It holds clients that have one, and nobody else.
#[derive(Debug, Default)]
pub(crate) struct Places(Mutex<HashMap<IpAddr, usize>>);

/// One connection's place, given back with the value.
#[derive(Debug)]
pub(crate) struct Place {
    of: Arc<Places>,
    client: IpAddr,
}

impl Places {
    /// A place for one more connection from `address`, unless it has `max`; 0 is no limit.
    pub(crate) fn take(self: &Arc<Self>, address: IpAddr, max: usize) -> Option<Place> {
        let client = network(address.to_canonical());
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = open.entry(client).or_default();
        // OK to leave the entry: a client who is refused has others open.
        if max > 0 && *taken >= max {
            return None;
        }
        *taken += 1;
        Some(Place { of: Arc::clone(self), client })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.of.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(taken) = open.get_mut(&self.client) {
            *taken -= 1;
            if *taken == 0 {
                open.remove(&self.client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_has_as_many_places_as_the_limit_says_and_gets_them_back() {
        let places = Arc::new(Places::default());
        let take = |text: &str| places.take(text.parse().expect("an address"), 2);
        let held = [take("203.0.113.7"), take("::ffff:203.0.113.7")];
        assert!(held.iter().all(Option::is_some));
        assert!(take("203.0.113.7").is_none(), "however it is written");
        assert!(take("203.0.113.8").is_some());
        drop(held);
        assert!(take("203.0.113.7").is_some());
        let network = [take("2001:db8::1"), take("2001:db8::2")];
        assert!(network.iter().all(Option::is_some) && take("2001:db8::3").is_none());
        drop(network);
        assert!(places.0.lock().expect("whole").is_empty(), "nobody is remembered");
    }

    #[test]
    fn without_a_limit_there_is_none() {
        let places = Arc::new(Places::default());
        let address = IpAddr::from([203, 0, 113, 7]);
        let held: Vec<Option<Place>> = (0..5_000).map(|_| places.take(address, 0)).collect();
        assert!(held.iter().all(Option::is_some));
    }
}
