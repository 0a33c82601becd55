//! A connection id is the range of bytes that the header says it is, whatever comes after it, and
//! the id that a server gives out is the one that its client is then known by.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pointsman_core::preread::KeyRule;

/// The header form, the version and the length of the first id.
const FIRST_ID: usize = 6;

fuzz_target!(|input: (u8, &[u8], &[u8])| {
    let (length, datagram, more) = input;
    let length = length % 20 + 1;
    let rule = KeyRule::QuicConnectionId { length };
    let longer = [datagram, more].concat();
    if let Ok(key) = rule.read_datagram(datagram) {
        let (offset, length) = place(datagram, length);
        assert_eq!(KeyRule::Bytes { offset, length }.read_datagram(datagram), Ok(key));
        assert_eq!(rule.read_datagram(&longer), Ok(key), "what follows does not matter");
    }
    if let Some(key) = rule.read_reply(datagram) {
        assert_eq!(rule.read_reply(&longer), Some(key), "what follows does not matter");
        assert_eq!(rule.read_datagram(&answer(datagram)), Ok(key), "the client comes back");
    }
});

/// Where the key of a packet is, by the rule's length.
fn place(packet: &[u8], length: u8) -> (u16, u16) {
    if packet[0] < 0x80 {
        (1, length.into())
    } else {
        (FIRST_ID as u16, packet[FIRST_ID - 1].min(length).into())
    }
}

/// The packet of a client without an id of its own that answers this packet of a server.
fn answer(reply: &[u8]) -> Vec<u8> {
    let source = FIRST_ID + usize::from(reply[FIRST_ID - 1]);
    let end = source + 1 + usize::from(reply[source]);
    [&reply[..FIRST_ID - 1], &reply[source..end], &[0]].concat()
}
