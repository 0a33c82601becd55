//! The rules that need no parser, and what holds for all of them.

use std::vec::Vec;

use super::testing::Random;
use super::*;

const RULES: [KeyRule; 7] = [
    KeyRule::Bytes { offset: 3, length: 4 },
    KeyRule::ServerName,
    KeyRule::QuicConnectionId { length: 8 },
    KeyRule::QuicConnectionId { length: 20 },
    KeyRule::DnsName,
    KeyRule::RadiusAttribute(1),
    KeyRule::SipCallId,
];

/// Bytes from their hexadecimal digits; spaces and line breaks are skipped.
pub(super) fn hex(digits: &str) -> Vec<u8> {
    let digits: Vec<u8> =
        digits.chars().filter_map(|digit| digit.to_digit(16)).map(|digit| digit as u8).collect();
    digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

#[test]
fn random_bytes_never_panic() {
    let mut random = Random::new(7);
    for _ in 0..20_000 {
        let bytes: Vec<u8> = (0..random.below(80)).map(|_| random.byte()).collect();
        let cut = random.below(bytes.len() + 1);
        for rule in RULES {
            let _ = rule.read_datagram(&bytes);
            let _ = rule.read_reply(&bytes);
            let split = rule.read_stream([&bytes[..cut], &bytes[cut..]].into_iter());
            assert_eq!(split, rule.read_stream([&bytes[..]].into_iter()));
        }
    }
}

#[test]
fn a_range_of_a_datagram_is_a_key_only_if_it_is_all_there() {
    let rule = KeyRule::Bytes { offset: 2, length: 3 };
    assert_eq!(rule.read_datagram(b"..key"), Ok(hash(b"key")));
    assert_eq!(rule.read_datagram(b"..key and more"), Ok(hash(b"key")));
    for short in [&b""[..], b".", b"..", b"..ke"] {
        assert_eq!(rule.read_datagram(short), Err(KeylessReason::Absent));
    }
}

#[test]
fn a_range_of_a_connection_is_the_same_wherever_it_is_split() {
    let bytes = b"before, a key that is longer than one block of the hash, after";
    let rule = KeyRule::Bytes { offset: 8, length: 47 };
    let key = Preread::Key(hash(&bytes[8..55]));
    for first in 0..=bytes.len() {
        for second in first..=bytes.len() {
            let chunks = [&bytes[..first], &bytes[first..second], &bytes[second..]];
            assert_eq!(rule.read_stream(chunks.into_iter()), key);
        }
    }
    assert_eq!(rule.read_stream(bytes.chunks(1)), key);
}

#[test]
fn a_range_of_a_connection_is_waited_for() {
    let rule = KeyRule::Bytes { offset: 2, length: 3 };
    for prefix in [&b""[..], b".", b"..", b"..ke"] {
        assert_eq!(rule.read_stream(prefix.chunks(1)), Preread::More);
    }
    assert_eq!(rule.read_stream(core::iter::empty()), Preread::More);
}

#[test]
fn a_range_at_the_very_end_of_what_can_be_named_does_not_overflow() {
    let rule = KeyRule::Bytes { offset: u16::MAX, length: u16::MAX };
    assert_eq!(rule.read_datagram(&[0; 1_500]), Err(KeylessReason::Absent));
    assert_eq!(rule.read_stream([&[0; 1_500][..]].into_iter()), Preread::More);
}

#[test]
fn a_rule_for_the_other_protocol_finds_nothing() {
    let malformed = KeylessReason::Malformed;
    for rule in &RULES[2..] {
        assert_eq!(rule.read_stream([&b"\x16"[..]].into_iter()), Preread::Keyless(malformed));
    }
    assert_eq!(KeyRule::ServerName.read_datagram(b"\x16\x03\x01"), Err(malformed));
}

#[test]
fn only_quic_learns_from_replies() {
    let reply = hex("cf00000001 00 08f067a5502a4262b5 00");
    for rule in RULES {
        let is_quic = matches!(rule, KeyRule::QuicConnectionId { .. });
        assert_eq!(rule.read_reply(&reply).is_some(), is_quic);
    }
}

#[test]
fn a_key_is_xxh64_and_never_0() {
    assert_eq!(hash(b""), 0xef46_db37_51d8_e999);
    let zero = hex("7385807d8f0b5339");
    assert_eq!(XxHash64::oneshot(0, &zero), 0, "whoever wants can find such a key");
    assert_eq!(hash(&zero), 1);
    let rule = KeyRule::Bytes { offset: 0, length: 8 };
    assert_eq!(rule.read_stream(zero.chunks(3)), Preread::Key(1));
}
