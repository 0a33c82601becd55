//! An attribute of a RADIUS packet (RFC 2865 sections 3 and 5).

use core::ops::RangeInclusive;

use super::hash;
use crate::stats::KeylessReason;

/// The code, the identifier, the length and the authenticator.
const HEADER_BYTES: usize = 20;
const PACKET_BYTES: RangeInclusive<usize> = HEADER_BYTES..=4096;

/// The key is the value of the first attribute of the type, unless that is empty. What comes after
/// it is not looked at, nor is what comes after the packet, which is padding.
pub(super) fn read(datagram: &[u8], kind: u8) -> Result<u64, KeylessReason> {
    let mut attributes = attributes(datagram).ok_or(KeylessReason::Malformed)?;
    while !attributes.is_empty() {
        let (found, value, rest) = split_first(attributes).ok_or(KeylessReason::Malformed)?;
        if found == kind && !value.is_empty() {
            return Ok(hash(value));
        }
        attributes = rest;
    }
    Err(KeylessReason::Absent)
}

fn attributes(datagram: &[u8]) -> Option<&[u8]> {
    let length = u16::from_be_bytes([*datagram.get(2)?, *datagram.get(3)?]).into();
    if PACKET_BYTES.contains(&length) { datagram.get(HEADER_BYTES..length) } else { None }
}

/// The type and the value of the first attribute, and the others.
fn split_first(attributes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&[kind, length], rest) = attributes.split_first_chunk()?;
    let (value, rest) = rest.split_at_checked(usize::from(length).checked_sub(2)?)?;
    Some((kind, value, rest))
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::super::testing::spoil;
    use super::*;

    const MALFORMED: Result<u64, KeylessReason> = Err(KeylessReason::Malformed);
    const USER_NAME: u8 = 1;
    const CALLING_STATION_ID: u8 = 31;

    fn packet(attributes: &[u8]) -> Vec<u8> {
        let length = (HEADER_BYTES + attributes.len()) as u16;
        [&[1, 0x7f], &length.to_be_bytes()[..], &[0xa5; 16], attributes].concat()
    }

    /// The first example of RFC 2865 section 7.1 without its password.
    fn sample() -> Vec<u8> {
        packet(b"\x01\x06nemo\x04\x06\xc0\xa8\x01\x10\x05\x06\0\0\0\x03\x1f\x07a1:b2")
    }

    #[test]
    fn the_value_of_the_attribute_is_the_key() {
        assert_eq!(read(&sample(), USER_NAME), Ok(hash(b"nemo")));
        assert_eq!(read(&sample(), CALLING_STATION_ID), Ok(hash(b"a1:b2")));
    }

    #[test]
    fn the_first_of_several_attributes_is_the_key() {
        assert_eq!(read(&packet(b"\x01\x03a\x01\x03b"), USER_NAME), Ok(hash(b"a")));
        assert_eq!(read(&packet(b"\x01\x02\x01\x03b"), USER_NAME), Ok(hash(b"b")));
    }

    #[test]
    fn a_packet_without_the_attribute_or_with_an_empty_one_has_no_key() {
        for attributes in [&b""[..], b"\x02\x03a", b"\x01\x02"] {
            assert_eq!(read(&packet(attributes), USER_NAME), Err(KeylessReason::Absent));
        }
    }

    #[test]
    fn what_follows_the_packet_is_padding() {
        let padded = [&packet(b"\x02\x03a")[..], b"\x01\x03b"].concat();
        assert_eq!(read(&padded, USER_NAME), Err(KeylessReason::Absent));
    }

    #[test]
    fn a_packet_shorter_than_it_says_is_refused() {
        let sample = sample();
        for length in 0..sample.len() {
            assert_eq!(read(&sample[..length], CALLING_STATION_ID), MALFORMED, "{length} bytes");
        }
    }

    #[test]
    fn lengths_that_no_packet_has_are_refused() {
        let mut bytes = packet(&b"\x02\xff".repeat(2_100)[..]);
        for length in [0_u16, 4, 19, 4_097, u16::MAX] {
            bytes[2..4].copy_from_slice(&length.to_be_bytes());
            assert_eq!(read(&bytes, USER_NAME), MALFORMED, "{length}");
        }
        let largest = packet(&[&b"\x02\x04ab".repeat(1_018)[..], b"\x01\x04cd"].concat());
        assert_eq!((largest.len(), read(&largest, USER_NAME)), (4_096, Ok(hash(b"cd"))));
    }

    #[test]
    fn attributes_that_do_not_fit_are_refused() {
        for attributes in [&b"\x01"[..], b"\x01\0", b"\x01\x01", b"\x01\x04a", b"\x02\xffa"] {
            assert_eq!(read(&packet(attributes), USER_NAME), MALFORMED, "{attributes:x?}");
        }
    }

    #[test]
    fn a_spoilt_packet_with_a_key_has_it_from_its_own_bytes() {
        spoil(&sample(), |bytes| {
            if let Ok(key) = read(bytes, USER_NAME) {
                let mut windows = (1..=253).flat_map(|length| bytes.windows(length));
                assert!(windows.any(|value| hash(value) == key));
            }
        });
    }
}
