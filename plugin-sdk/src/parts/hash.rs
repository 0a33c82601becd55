//! Hashes that others compute too.

use std::net::IpAddr;

const PRIMES: [u64; 5] = [
    0x9e37_79b1_85eb_ca87,
    0xc2b2_ae3d_27d4_eb4f,
    0x1656_67b1_9e37_79f9,
    0x85eb_ca77_c2b2_ae63,
    0x27d4_eb2f_1656_67c5,
];

/// The hash of a client's address, the same on every worker and every balancer. IPv4 and IPv6 have
/// no address in common.
#[must_use]
pub fn hash_address(address: IpAddr) -> u64 {
    match address {
        IpAddr::V4(address) => xxh64(&address.octets(), 0),
        IpAddr::V6(address) => xxh64(&address.octets(), 0),
    }
}

/// xxHash with 64 bits (`XXH64` of its specification, version 0.1.1): fast, evenly spread, and the
/// hash of Envoy's tables. It is no defence against a client that chooses its own input.
#[must_use]
pub fn xxh64(bytes: &[u8], seed: u64) -> u64 {
    let [first, second, third, fourth, fifth] = PRIMES;
    let (stripes, tail) = bytes.as_chunks::<32>();
    let mut hash =
        if stripes.is_empty() { seed.wrapping_add(fifth) } else { converge(stripes, seed) };
    hash = hash.wrapping_add(bytes.len() as u64);

    let (words, tail) = tail.as_chunks::<8>();
    for &word in words {
        hash = (hash ^ round(0, u64::from_le_bytes(word))).rotate_left(27);
        hash = hash.wrapping_mul(first).wrapping_add(fourth);
    }
    let (halves, tail) = tail.as_chunks::<4>();
    for &half in halves {
        let half = u64::from(u32::from_le_bytes(half));
        hash = (hash ^ half.wrapping_mul(first)).rotate_left(23);
        hash = hash.wrapping_mul(second).wrapping_add(third);
    }
    for &byte in tail {
        hash = (hash ^ u64::from(byte).wrapping_mul(fifth)).rotate_left(11).wrapping_mul(first);
    }

    hash = (hash ^ (hash >> 33)).wrapping_mul(second);
    hash = (hash ^ (hash >> 29)).wrapping_mul(third);
    hash ^ (hash >> 32)
}

/// Four lanes over whole stripes, and then one number of them.
fn converge(stripes: &[[u8; 32]], seed: u64) -> u64 {
    let [first, second, _, fourth, _] = PRIMES;
    let mut lanes = [
        seed.wrapping_add(first).wrapping_add(second),
        seed.wrapping_add(second),
        seed,
        seed.wrapping_sub(first),
    ];
    for stripe in stripes {
        let (words, _) = stripe.as_chunks::<8>();
        for (lane, &word) in lanes.iter_mut().zip(words) {
            *lane = round(*lane, u64::from_le_bytes(word));
        }
    }
    let turns = [1, 7, 12, 18];
    let sum = lanes
        .iter()
        .zip(turns)
        .fold(0_u64, |sum, (lane, turn)| sum.wrapping_add(lane.rotate_left(turn)));
    lanes
        .iter()
        .fold(sum, |hash, &lane| (hash ^ round(0, lane)).wrapping_mul(first).wrapping_add(fourth))
}

const fn round(lane: u64, word: u64) -> u64 {
    let [first, second, ..] = PRIMES;
    lane.wrapping_add(word.wrapping_mul(second)).rotate_left(31).wrapping_mul(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_values_come_out() {
        assert_eq!(xxh64(b"", 0), 0xef46_db37_51d8_e999);
        assert_eq!(xxh64(b"abc", 0), 0x44bc_2cf5_ad77_0999);
    }

    #[test]
    fn every_length_agrees_with_the_library_that_the_balancer_uses() {
        let bytes: Vec<u8> = (0..=255).collect();
        for length in 0..bytes.len() {
            for seed in [0, 1, u64::MAX] {
                let theirs = twox_hash::XxHash64::oneshot(seed, &bytes[..length]);
                assert_eq!(xxh64(&bytes[..length], seed), theirs, "{length} bytes, seed {seed}");
            }
        }
    }
}
