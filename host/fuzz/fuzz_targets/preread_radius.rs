//! The key of a RADIUS packet is the value of its first attribute of the type, as a walk over the
//! attributes finds it, and padding does not matter.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pointsman_core::KeylessReason;
use pointsman_core::preread::KeyRule;

fuzz_target!(|input: (u8, &[u8], &[u8])| {
    let (kind, datagram, padding) = input;
    let read = |bytes: &[u8]| KeyRule::RadiusAttribute(kind).read_datagram(bytes);
    let answer = read(datagram);
    match first_value(kind, datagram) {
        Some((offset, length)) => {
            assert_eq!(answer, KeyRule::Bytes { offset, length }.read_datagram(datagram));
        }
        None => assert!(answer.is_err(), "a key that is not there"),
    }
    if answer != Err(KeylessReason::Malformed) {
        assert_eq!(read(&[datagram, padding].concat()), answer, "padding does not matter");
    }
});

/// Where the first value that is not empty is.
fn first_value(kind: u8, packet: &[u8]) -> Option<(u16, u16)> {
    let end = usize::from(packet.get(2).copied()?) << 8 | usize::from(packet.get(3).copied()?);
    if !(20..=4096).contains(&end) || end > packet.len() {
        return None;
    }
    let mut at = 20;
    while at + 2 <= end {
        let length = usize::from(packet[at + 1]);
        if length < 2 || at + length > end {
            return None;
        }
        if packet[at] == kind && length > 2 {
            return Some((at as u16 + 2, length as u16 - 2));
        }
        at += length;
    }
    None
}
