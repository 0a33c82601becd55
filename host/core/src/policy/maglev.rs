//! Maglev hashing: a lookup table that changes little when the endpoints do.
//!
//! Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer" (NSDI 2016),
//! section 3.4, in the construction of Envoy (`maglev_lb.cc`), so that a fleet that runs both agrees
//! on every client: offset = xxh64(key, 0) mod M, skip = xxh64(key, 1) mod (M − 1) + 1, endpoints in
//! the order of their keys, weights by target accumulation.

use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;

use twox_hash::XxHash64;

use super::Table;

const VACANT: u32 = u32::MAX;

/// The size to use where nothing speaks for another; a prime.
pub const DEFAULT_SIZE: u32 = 65_537;

/// Builds the table over the key (`ip:port`) and weight of each candidate, in the candidates'
/// order. Takes time in proportion to `size` and to the number of endpoints.
///
/// `None` if `size` is not a prime larger than the number of endpoints, or if there are none.
#[must_use]
pub fn build(endpoints: &[(&str, u32)], size: u32) -> Option<Table> {
    if endpoints.is_empty() || endpoints.len() as u64 >= u64::from(size) || !is_prime(size) {
        return None;
    }
    let mut turns: Vec<Turn> = (0..)
        .zip(endpoints)
        .map(|(place, &(key, weight))| Turn::new(place, key, weight, size))
        .collect();
    turns.sort_by_key(|turn| endpoints[turn.endpoint as usize].0);
    Table::new(fill(&mut turns, size), endpoints.len())
}

/// One endpoint's walk over the table.
struct Turn {
    endpoint: u32,
    weight: f64,
    target: f64,
    next: u64,
    skip: u64,
}

impl Turn {
    fn new(endpoint: u32, key: &str, weight: u32, size: u32) -> Self {
        let size = u64::from(size);
        Self {
            endpoint,
            weight: f64::from(weight),
            target: 0.0,
            next: XxHash64::oneshot(0, key.as_bytes()) % size,
            skip: XxHash64::oneshot(1, key.as_bytes()) % (size - 1) + 1,
        }
    }
}

/// Lets the endpoints take vacant slots in turn, each in the order of its own permutation. In one
/// round an endpoint takes a slot if its share of the weight has earned it one.
fn fill(turns: &mut [Turn], size: u32) -> Box<[u32]> {
    let mut slots = vec![VACANT; size as usize].into_boxed_slice();
    let weight_max = turns.iter().map(|turn| turn.weight).fold(0.0, f64::max);
    let mut left = size;
    for round in 1_u32.. {
        for turn in &mut *turns {
            if left == 0 {
                return slots;
            }
            if f64::from(round) * turn.weight < turn.target {
                continue;
            }
            turn.target += weight_max;
            while slots[turn.next as usize] != VACANT {
                turn.next = (turn.next + turn.skip) % u64::from(size);
            }
            slots[turn.next as usize] = turn.endpoint;
            turn.next = (turn.next + turn.skip) % u64::from(size);
            left -= 1;
        }
    }
    slots
}

fn is_prime(number: u32) -> bool {
    let divisors = (2..).take_while(|divisor| divisor * divisor <= u64::from(number));
    number >= 2 && divisors.into_iter().all(|divisor| u64::from(number) % divisor != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::format;
    use std::string::String;

    fn keys(count: u32) -> Vec<String> {
        (0..count).map(|n| format!("10.0.0.{n}:80")).collect()
    }

    fn build(keys: &[String], weights: &[u32], size: u32) -> Option<Table> {
        let pairs: Vec<_> = keys.iter().map(String::as_str).zip(weights.iter().copied()).collect();
        super::build(&pairs, size)
    }

    fn shares(table: &Table, endpoints: usize) -> Vec<usize> {
        let mut shares = vec![0; endpoints];
        table.slots().iter().for_each(|&slot| shares[slot as usize] += 1);
        shares
    }

    #[test]
    fn every_endpoint_gets_its_share_of_the_table() {
        let table = build(&keys(5), &[1; 5], 65_537).unwrap();
        assert!(shares(&table, 5).iter().all(|&share| (13_107..=13_108).contains(&share)));
        let weighted = build(&keys(3), &[1, 2, 5], 65_537).unwrap();
        let expected = [65_537 / 8, 65_537 / 4, 65_537 * 5 / 8];
        for (share, expected) in shares(&weighted, 3).into_iter().zip(expected) {
            assert!(share.abs_diff(expected) <= 2, "{share} of {expected}");
        }
    }

    #[test]
    fn a_removed_endpoint_moves_few_clients_of_the_others() {
        let before = build(&keys(10), &[1; 10], 65_537).unwrap();
        let after = build(&keys(9), &[1; 9], 65_537).unwrap();
        let moved = before
            .slots()
            .iter()
            .zip(after.slots())
            .filter(|&(&old, &new)| old != 9 && old != new)
            .count();
        assert!(moved < 65_537 / 20, "{moved} slots moved");
    }

    #[test]
    fn the_order_of_the_endpoints_does_not_matter() {
        let (a, b) = ("10.0.0.1:80", "10.0.0.2:80");
        let forwards = super::build(&[(a, 1), (b, 1)], 13).unwrap();
        let backwards = super::build(&[(b, 1), (a, 1)], 13).unwrap();
        let flipped: Vec<u32> = backwards.slots().iter().map(|slot| 1 - slot).collect();
        assert_eq!(forwards.slots(), flipped);
    }

    #[test]
    fn a_size_that_is_not_a_prime_above_the_endpoints_is_refused() {
        for size in [0, 1, 4, 9, 65_536] {
            assert!(build(&keys(3), &[1; 3], size).is_none(), "size {size}");
        }
        assert!(build(&keys(3), &[1; 3], 3).is_none());
        assert!(build(&keys(3), &[1; 3], 5).is_some());
        assert!(build(&[], &[], 5).is_none());
    }
}
