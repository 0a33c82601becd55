//! The destination connection id of a QUIC packet.
//!
//! Only what all versions have in common is read (RFC 8999 section 5), so that a version nobody has
//! heard of keeps its flows together too:
//!
//! ```text
//! long   1....... | version (4) | length | destination id | length | source id | ...
//! short  0....... | destination id, as long as its owner made it | ...
//! ```
//!
//! What RFC 9000 calls the fixed bit, the second, is not looked at: it belongs to a version, and
//! endpoints that agree to may clear it (RFC 9287).

use super::hash;
use crate::stats::KeylessReason;

/// The first bit, which tells the headers apart.
const LONG: u8 = 0x80;
/// What stands in place of the version in a packet of Version Negotiation.
const NEGOTIATION: u32 = 0;
/// The versions whose ids are known to be short (RFC 9000 section 17.2, RFC 9369).
const VERSIONS: [u32; 2] = [1, 0x6b33_43cf];
const VERSIONS_ID_BYTES_MAX: u8 = 20;

/// The ids of a packet with a long header.
struct Ids<'a> {
    destination: &'a [u8],
    source: &'a [u8],
}

pub(super) fn read(datagram: &[u8], length: usize) -> Result<u64, KeylessReason> {
    let first = *datagram.first().ok_or(KeylessReason::Malformed)?;
    let id = if first & LONG == 0 {
        datagram.get(1..=length)
    } else {
        read_ids(datagram).map(|ids| ids.destination)
    };
    hash_start(id.ok_or(KeylessReason::Malformed)?, length).ok_or(KeylessReason::Absent)
}

/// The client takes the server's source id for its destination, that of a Retry too (RFC 9000
/// section 7.2).
pub(super) fn read_reply(datagram: &[u8], length: usize) -> Option<u64> {
    hash_start(read_ids(datagram)?.source, length)
}

/// None for a short header, for Version Negotiation, which has no id that anybody will use, and
/// for what is no packet.
fn read_ids(packet: &[u8]) -> Option<Ids<'_>> {
    let (&first, rest) = packet.split_first()?;
    let (&version, rest) = rest.split_first_chunk()?;
    let version = u32::from_be_bytes(version);
    if first & LONG == 0 || version == NEGOTIATION {
        return None;
    }
    let bytes_max = if VERSIONS.contains(&version) { VERSIONS_ID_BYTES_MAX } else { u8::MAX };
    let (destination, rest) = split_id(rest, bytes_max)?;
    let (source, _) = split_id(rest, bytes_max)?;
    Some(Ids { destination, source })
}

fn split_id(bytes: &[u8], bytes_max: u8) -> Option<(&[u8], &[u8])> {
    let (&length, rest) = bytes.split_first()?;
    if length <= bytes_max { rest.split_at_checked(length.into()) } else { None }
}

fn hash_start(id: &[u8], length: usize) -> Option<u64> {
    let start = id.get(..length).unwrap_or(id);
    (!start.is_empty()).then(|| hash(start))
}

#[cfg(test)]
mod tests {
    use super::super::testing::spoil;
    use super::super::tests::hex;
    use super::*;

    const MALFORMED: Result<u64, KeylessReason> = Err(KeylessReason::Malformed);

    #[test]
    fn a_first_packet_is_known_by_the_id_that_the_client_made_up() {
        let key = Ok(hash(&hex("8394c8f03e515708")));
        let version_1 = hex("c0 00000001 08 8394c8f03e515708 00 00449e 7b9aec34"); // RFC 9001 A.2
        let version_2 = hex("d7 6b3343cf 08 8394c8f03e515708 00 00449e a0c95e82"); // RFC 9369 A.2
        let unheard_of = hex("80 1a2a3a4a 08 8394c8f03e515708 00");
        for packet in [&version_1, &version_2, &unheard_of] {
            assert_eq!(read(packet, 8), key);
            assert_eq!(read(packet, 20), key, "an id shorter than the rule counts whole");
            assert_eq!(read(packet, 3), Ok(hash(&hex("8394c8"))));
        }
    }

    #[test]
    fn later_packets_are_known_by_the_id_that_the_server_gave_out() {
        let initial = hex("cf 00000001 00 08 f067a5502a4262b5 00 4075 c0d9"); // RFC 9001 A.3
        let retry = hex("ff 00000001 00 08 f067a5502a4262b5 746f6b656e 04a265ba"); // A.4
        let key = hash(&hex("f067a550"));
        for reply in [initial, retry] {
            assert_eq!(read_reply(&reply, 4), Some(key));
        }
        let long = hex("e0 00000001 08 f067a5502a4262b5 04 c0ffee00 4075 c0d9");
        let short = hex("4c f067a5502a4262b5 189655e5");
        let greased = hex("0c f067a5502a4262b5 189655e5");
        for packet in [long, short, greased] {
            assert_eq!(read(&packet, 4), Ok(key));
        }
    }

    #[test]
    fn nothing_is_learnt_from_replies_that_give_out_no_id() {
        let none = [
            "4c f067a5502a4262b5 189655e5",                // a short header
            "4f 00000001 00 08 f067a5502a4262b5 00",       // another, which looks like a long one
            "80 00000000 00 08 f067a5502a4262b5 00000001", // Version Negotiation
            "c0 00000001 08 f067a5502a4262b5 00 00",       // a server without an id
            "c0 00000001 00 08 f067a5502a4262",            // a byte short
            "c0 00000001 00 15 000102030405060708090a0b0c0d0e0f1011121314 00",
        ];
        for reply in none {
            assert_eq!(read_reply(&hex(reply), 8), None, "{reply}");
        }
    }

    #[test]
    fn an_empty_id_is_no_key() {
        assert_eq!(read(&hex("c0 00000001 00 04 c0ffee00 00"), 8), Err(KeylessReason::Absent));
    }

    #[test]
    fn ids_longer_than_their_version_allows_are_refused() {
        let packet = |version: &str, length: u8| {
            let mut packet = hex(version);
            packet.push(length);
            packet.resize(packet.len() + usize::from(length), 0xab);
            packet.push(0);
            packet
        };
        for version in ["c0 00000001", "c0 6b3343cf"] {
            assert_eq!(read(&packet(version, 20), 20), Ok(hash(&[0xab; 20])));
            assert_eq!(read(&packet(version, 21), 20), MALFORMED);
        }
        assert_eq!(read(&packet("c0 00000002", 255), 20), Ok(hash(&[0xab; 20])));
    }

    #[test]
    fn a_packet_that_ends_within_its_ids_is_refused() {
        let long = hex("c0 00000001 08 8394c8f03e515708 04 c0ffee00");
        for length in 0..long.len() {
            assert_eq!(read(&long[..length], 8), MALFORMED, "{length} bytes");
        }
        let short = hex("40 8394c8f03e515708");
        for length in 0..short.len() {
            assert_eq!(read(&short[..length], 8), MALFORMED, "{length} bytes");
        }
        assert!(read(&short, 8).is_ok());
    }

    #[test]
    fn a_client_does_not_negotiate_versions() {
        assert_eq!(read(&hex("80 00000000 00 08 f067a5502a4262b5 00000001"), 8), MALFORMED);
    }

    #[test]
    fn a_spoilt_packet_has_a_key_of_its_own_bytes_or_none() {
        spoil(&hex("c0 00000001 08 8394c8f03e515708 04 c0ffee00 449e"), |packet| {
            let windows = (1..=8).flat_map(|length| packet.windows(length));
            if let Ok(key) = read(packet, 8) {
                assert!(windows.clone().any(|id| hash(id) == key));
            }
            if let Some(key) = read_reply(packet, 8) {
                assert!(windows.clone().any(|id| hash(id) == key));
            }
        });
    }
}
