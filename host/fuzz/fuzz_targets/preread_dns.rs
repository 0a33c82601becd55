//! The key of a DNS query is its first name, in any case, and nothing else.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pointsman_core::preread::KeyRule;

const HEADER_BYTES: usize = 12;

fuzz_target!(|input: (&[u8], &[u8])| {
    let (datagram, more) = input;
    let read = |bytes: &[u8]| KeyRule::DnsName.read_datagram(bytes);
    let Ok(key) = read(datagram) else { return };
    let name = name(datagram);
    assert!(datagram.len() >= HEADER_BYTES + name.len() + 4, "the question is whole");
    assert!(name.len() <= 255, "a name that is too long");
    let lower = name.to_ascii_lowercase();
    let range = KeyRule::Bytes { offset: 0, length: lower.len() as u16 };
    assert_eq!(range.read_datagram(&lower), Ok(key));
    assert_eq!(read(&[datagram, more].concat()), Ok(key), "what follows does not matter");

    let rest = &datagram[HEADER_BYTES + name.len()..];
    let upper = name.to_ascii_uppercase();
    let minimal = [&[0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0], &upper[..], &rest[..4]].concat();
    assert_eq!(read(&minimal), Ok(key), "only the name matters");
    let mut response = minimal;
    response[2] = 0x80;
    assert!(read(&response).is_err(), "a response is no query");
});

/// The labels after the header, lengths and root included.
fn name(query: &[u8]) -> &[u8] {
    let mut end = HEADER_BYTES;
    while query[end] != 0 {
        assert!(query[end] < 64, "a label that is too long, or a pointer");
        end += 1 + usize::from(query[end]);
    }
    &query[HEADER_BYTES..=end]
}
