//! Weighted rendezvous hashing: every endpoint bids for a key, and the highest bid wins.
//!
//! A bid is −weight / ln u, with u drawn from the hash of key and endpoint (Schindelhauer and
//! Schomaker, "Weighted Distributed Hash Tables", SPAA 2005), so that shares follow the weights. An
//! endpoint that leaves hands over its own keys and no others; one that joins takes its share from
//! everybody; a weight that grows only attracts.

use crate::{Endpoints, Rng};

/// The bidders: a list of endpoints.
#[derive(Debug, Clone, Default)]
pub struct Rendezvous {
    bidders: Vec<Bidder>,
}

#[derive(Debug, Clone)]
struct Bidder {
    hash: u64,
    weight: f64,
}

impl Rendezvous {
    /// Lets these endpoints bid.
    #[must_use]
    pub fn new(endpoints: &Endpoints) -> Self {
        let bidders = endpoints.iter().map(|endpoint| Bidder {
            hash: hash_text(endpoint.address()),
            weight: endpoint.weight().into(),
        });
        Self { bidders: bidders.collect() }
    }

    /// The index of the highest bidder for a key, other than the one to avoid; `None` if there is no
    /// other. The key's bits must be well mixed.
    #[must_use]
    pub fn winner(&self, key: u64, avoid: Option<usize>) -> Option<usize> {
        let mut highest = (f64::NEG_INFINITY, None);
        for (index, bidder) in self.bidders.iter().enumerate() {
            let bid = -bidder.weight / Rng::new(key ^ bidder.hash).fraction().ln();
            if bid > highest.0 && avoid != Some(index) {
                highest = (bid, Some(index));
            }
        }
        highest.1
    }
}

/// FNV-1a, whose weak low bits the generator mixes again.
fn hash_text(text: &str) -> u64 {
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    Rng::new(hash).bits()
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: (&str, u32) = ("10.0.0.1:80", 5);
    const B: (&str, u32) = ("10.0.0.2:80", 3);
    const C: (&str, u32) = ("10.0.0.3:80", 2);

    fn winners<const N: usize>(list: [(&str, u32); N], avoid: Option<usize>) -> Vec<usize> {
        let bidders = Rendezvous::new(&Endpoints::from(list));
        let mut keys = Rng::new(7);
        (0..10_000).map(|_| bidders.winner(keys.bits(), avoid).unwrap()).collect()
    }

    #[test]
    fn shares_follow_the_weights() {
        let winners = winners([A, B, C], None);
        for (index, expected) in [5_000_usize, 3_000, 2_000].into_iter().enumerate() {
            let share = winners.iter().filter(|&&winner| winner == index).count();
            assert!(share.abs_diff(expected) < 150, "{share} of {expected}");
        }
    }

    #[test]
    fn who_leaves_hands_over_its_own_keys_and_no_others() {
        let (before, after) = (winners([A, B, C], None), winners([A, C], None));
        let stayed = before.into_iter().zip(after).filter(|(old, _)| *old != 1);
        assert!(stayed.into_iter().all(|(old, new)| old / 2 == new));
    }

    #[test]
    fn to_avoid_an_endpoint_is_as_if_it_had_left() {
        let (avoided, left) = (winners([A, B, C], Some(1)), winners([A, C], None));
        assert!(avoided.into_iter().zip(left).all(|(old, new)| old / 2 == new));
    }

    #[test]
    fn nobody_wins_where_nobody_bids() {
        assert_eq!(Rendezvous::default().winner(1, None), None);
        assert_eq!(Rendezvous::new(&Endpoints::from([A])).winner(1, Some(0)), None);
    }
}
