//! Headers as others write them, split and cut anywhere, and hostile ones.

use std::string::ToString;
use std::vec::Vec;

use super::crc32c::Crc32c;
use super::*;
use crate::access::Network;
use crate::preread::testing::{Random, spoil};

const ROUTE: &str = "192.0.2.1:258 198.51.100.2:80";
const ROUTE_V6: &str = "[2001:db8::1]:1 [2001:db8::2]:65535";

fn route(text: &str) -> Route {
    let (client, local) = text.split_once(' ').unwrap();
    Route { client: client.parse().unwrap(), local: local.parse().unwrap() }
}

/// What becomes of bytes that come at once, and how many of them were read.
fn read(bytes: &[u8]) -> (usize, Reading) {
    Reader::new().read(bytes)
}

fn read_in_pieces<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> (usize, Reading) {
    let (mut reader, mut total) = (Reader::new(), 0);
    for piece in pieces {
        let (used, reading) = reader.read(piece);
        total += used;
        if reading != Reading::More {
            return (total, reading);
        }
    }
    (total, Reading::More)
}

/// A header of version 2 with a right length.
fn binary(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
    let length = (body.len() as u16).to_be_bytes();
    [&SIGNATURE[..], &[command, family], &length, body].concat()
}

fn body(family: u8) -> Vec<u8> {
    match family {
        0x11 | 0x12 => [192, 0, 2, 1, 198, 51, 100, 2, 1, 2, 0, 80].to_vec(),
        0x21 | 0x22 => {
            let mut body = [0; 36];
            body[..4].copy_from_slice(&[0x20, 1, 0xd, 0xb8]);
            body[15] = 1;
            body[16..20].copy_from_slice(&[0x20, 1, 0xd, 0xb8]);
            body[31] = 2;
            body[32..].copy_from_slice(&[0, 1, 255, 255]);
            body.to_vec()
        }
        _ => [0; 216].to_vec(),
    }
}

fn value(kind: u8, value: &[u8]) -> Vec<u8> {
    [&[kind][..], &(value.len() as u16).to_be_bytes(), value].concat()
}

fn with_values(values: &[u8]) -> Vec<u8> {
    binary(COMMAND_PROXY, 0x11, &[&body(0x11)[..], values].concat())
}

/// A header with a checksum that is right, and a value on either side of it.
fn checked() -> Vec<u8> {
    let values = [value(0x02, b"example.com"), value(VALUE_CRC32C, &[0; 4]), value(0x04, &[7; 9])];
    let mut header = with_values(&values.concat());
    let sum = Crc32c::of(&header).to_be_bytes();
    let at = header.len() - 12 - 4;
    header[at..at + 4].copy_from_slice(&sum);
    header
}

fn sound() -> Vec<(Vec<u8>, Option<Route>)> {
    let all_outbound =
        Outbound { unique_id: true, authority: true, crc32c: true, ..Outbound::PLAIN };
    let all = Identity { unique_id: Some(7), authority: Some(b"example.com") };
    let ours = Header::of_stream(&all_outbound, route(ROUTE_V6), all).as_bytes().to_vec();
    std::vec![
        (b"PROXY TCP4 192.0.2.1 198.51.100.2 258 80\r\n".to_vec(), Some(route(ROUTE))),
        (b"PROXY TCP6 2001:db8::1 2001:db8::2 1 65535\r\n".to_vec(), Some(route(ROUTE_V6))),
        (b"PROXY UNKNOWN\r\n".to_vec(), None),
        (b"PROXY UNKNOWN \xff anything at all\r\n".to_vec(), None),
        (binary(COMMAND_PROXY, 0x11, &body(0x11)), Some(route(ROUTE))),
        (binary(COMMAND_PROXY, 0x21, &body(0x21)), Some(route(ROUTE_V6))),
        (
            with_values(&[value(0xea, b"vpce"), value(4, b""), value(0x20, &[0; 600])].concat()),
            Some(route(ROUTE))
        ),
        (checked(), Some(route(ROUTE))),
        (ours, Some(route(ROUTE_V6))),
        (binary(COMMAND_LOCAL, 0x00, b""), None),
        (binary(COMMAND_LOCAL, 0xff, b"no addresses, no values"), None),
        (binary(COMMAND_PROXY, 0x00, b"nobody knows"), None),
        (binary(COMMAND_PROXY, 0x12, &body(0x12)), None),
        (binary(COMMAND_PROXY, 0x22, &body(0x22)), None),
        (binary(COMMAND_PROXY, 0x31, &body(0x31)), None),
        (binary(COMMAND_PROXY, 0x32, &[&body(0x31)[..], b"values"].concat()), None),
    ]
}

#[test]
fn a_header_is_read_the_same_wherever_it_is_split() {
    for (header, route) in sound() {
        let whole = (header.len(), Reading::Whole(route));
        let bytes = [&header[..], b"the stream"].concat();
        assert_eq!(read(&bytes), whole, "{header:?}");
        assert_eq!(read_in_pieces(bytes.chunks(1)), whole);
        for cut in 0..=bytes.len() {
            let (before, after) = bytes.split_at(cut);
            assert_eq!(read_in_pieces([before, after]), whole, "split at {cut}");
        }
    }
}

#[test]
fn a_header_that_is_cut_off_is_waited_for() {
    for (header, _) in sound() {
        for cut in 0..header.len() {
            assert_eq!(read(&header[..cut]), (cut, Reading::More), "cut at {cut}: {header:?}");
        }
    }
}

#[test]
fn the_longest_headers_are_read_and_longer_ones_refused() {
    let filler = |bytes: usize| [&b"PROXY UNKNOWN "[..], &std::vec![b'x'; bytes], b"\r\n"].concat();
    let longest = filler(LINE_BYTES_MAX - 16);
    assert_eq!(longest.len(), 107);
    assert_eq!(read(&longest), (107, Reading::Whole(None)));
    assert_eq!(read(&filler(LINE_BYTES_MAX - 15)), (107, Reading::Invalid));
    let longest = with_values(&value(0xe0, &std::vec![0xff; 65_535 - 12 - 3]));
    assert_eq!(longest.len(), FIXED_BYTES + 65_535);
    assert_eq!(read(&longest), (longest.len(), Reading::Whole(Some(route(ROUTE)))));
}

#[test]
fn an_address_of_ipv4_that_comes_as_one_of_ipv6_is_what_it_is() {
    let mapped = b"PROXY TCP6 ::ffff:192.0.2.1 ::ffff:198.51.100.2 258 80\r\n";
    assert_eq!(read(mapped).1, Reading::Whole(Some(route(ROUTE))));
}

#[test]
fn what_is_no_line_of_version_1_is_refused() {
    let lines = [
        "GET / HTTP/1.1\r\n",
        "PROXY\r\n",
        "PROXY \r\n",
        "proxy TCP4 192.0.2.1 198.51.100.2 258 80\r\n",
        "PROXY TCP4 192.0.2.1 198.51.100.2 258 80\n",
        "PROXY TCP4 192.0.2.1 198.51.100.2 258\r\n",
        "PROXY TCP4 192.0.2.1 198.51.100.2 258 80 \r\n",
        "PROXY TCP4 192.0.2.1 198.51.100.2 258 80 9\r\n",
        "PROXY TCP4  192.0.2.1 198.51.100.2 258 80\r\n",
        "PROXY TCP4 192.0.2.1 198.51.100.2 0258 80\r\n",
        "PROXY TCP4 192.0.2.1 198.51.100.2 +258 80\r\n",
        "PROXY TCP4 192.0.2.1 198.51.100.2 65536 80\r\n",
        "PROXY TCP4 192.0.2.01 198.51.100.2 258 80\r\n",
        "PROXY TCP4 192.0.2 198.51.100.2 258 80\r\n",
        "PROXY TCP4 2001:db8::1 2001:db8::2 258 80\r\n",
        "PROXY TCP6 192.0.2.1 198.51.100.2 258 80\r\n",
        "PROXY UDP4 192.0.2.1 198.51.100.2 258 80\r\n",
        "PROXY UNKNOWNS\r\n",
    ];
    for line in lines {
        assert_eq!(read(line.as_bytes()).1, Reading::Invalid, "{line:?}");
        assert_eq!(read_in_pieces(line.as_bytes().chunks(1)).1, Reading::Invalid, "{line:?}");
    }
}

#[test]
fn a_stranger_is_refused_at_the_first_byte_that_gives_it_away() {
    assert_eq!(read(b"GET / HTTP/1.1\r\n"), (1, Reading::Invalid));
    assert_eq!(read(b"PROXZ"), (5, Reading::Invalid));
    assert_eq!(read(b"\x16\x03\x01"), (1, Reading::Invalid));
    assert_eq!(read(b"\r\n\r\n\0\r\nQUIT\r"), (12, Reading::Invalid));
}

#[test]
fn what_is_no_header_of_version_2_is_refused() {
    let wrong = [
        binary(0x11, 0x11, &body(0x11)),
        binary(0x22, 0x11, &body(0x11)),
        binary(0x31, 0x11, &body(0x11)),
        binary(COMMAND_PROXY, 0x10, &body(0x11)),
        binary(COMMAND_PROXY, 0x13, &body(0x11)),
        binary(COMMAND_PROXY, 0x41, &body(0x31)),
        binary(COMMAND_PROXY, 0x11, &body(0x11)[..11]),
        binary(COMMAND_PROXY, 0x21, &body(0x21)[..35]),
        binary(COMMAND_PROXY, 0x31, &body(0x31)[..215]),
    ];
    for header in wrong {
        assert_eq!(read(&header).1, Reading::Invalid, "{header:?}");
    }
}

#[test]
fn values_must_fill_the_length_exactly() {
    for values in [&[4][..], &[4, 0], &[4, 0, 1], &[4, 0, 2, 7], &[4, 0, 0, 9]] {
        assert_eq!(read(&with_values(values)).1, Reading::Invalid, "{values:?}");
    }
    assert!(matches!(read(&with_values(&[4, 0, 0])).1, Reading::Whole(Some(_))));
}

#[test]
fn a_checksum_must_be_right_where_there_is_one() {
    let header = checked();
    let kind_at = header.len() - 12 - 4 - VALUE_PREFIX_BYTES;
    for at in (FIXED_BYTES..header.len()).filter(|at| *at != kind_at) {
        let mut header = header.clone();
        header[at] ^= 1;
        assert_eq!(read(&header).1, Reading::Invalid, "byte {at} is wrong");
    }
    let twice = [value(VALUE_CRC32C, &[0; 4]), value(VALUE_CRC32C, &[0; 4])].concat();
    assert_eq!(read(&with_values(&twice)).1, Reading::Invalid);
    assert_eq!(read(&with_values(&value(VALUE_CRC32C, &[0; 3]))).1, Reading::Invalid);
}

#[test]
fn what_is_written_is_what_is_read() {
    for text in [ROUTE, ROUTE_V6] {
        for version in [Version::V1, Version::V2] {
            let outbound = Outbound { version, ..Outbound::PLAIN };
            let header = Header::of_stream(&outbound, route(text), Identity::default());
            let whole = (header.as_bytes().len(), Reading::Whole(Some(route(text))));
            assert_eq!(read(header.as_bytes()), whole);
        }
    }
    for version in [Version::V1, Version::V2] {
        let header = Header::of_our_own(version);
        assert_eq!(read(header.as_bytes()), (header.as_bytes().len(), Reading::Whole(None)));
    }
}

#[test]
fn a_header_is_written_byte_for_byte_as_the_document_has_it() {
    let of = |outbound: &Outbound, text: &str, identity: Identity<'_>| {
        Header::of_stream(outbound, route(text), identity).as_bytes().to_vec()
    };
    let plain = Identity::default();
    assert_eq!(of(&Outbound::PLAIN, ROUTE, plain), binary(0x21, 0x11, &body(0x11)));
    assert_eq!(of(&Outbound::PLAIN, ROUTE_V6, plain), binary(0x21, 0x21, &body(0x21)));
    let line = of(&Outbound { version: Version::V1, ..Outbound::PLAIN }, ROUTE, plain);
    assert_eq!(line, b"PROXY TCP4 192.0.2.1 198.51.100.2 258 80\r\n");
    let outbound = Outbound { unique_id: true, authority: true, crc32c: true, ..Outbound::PLAIN };
    let identity = Identity { unique_id: Some(0x0102), authority: Some(b"a.example") };
    let header = of(&outbound, ROUTE, identity);
    let mut id = [0; 16];
    id[14..].copy_from_slice(&[1, 2]);
    let values = [value(2, b"a.example"), value(5, &id), value(3, &header[header.len() - 4..])];
    assert_eq!(header, with_values(&values.concat()));
    let datagram = Header::of_datagram(&Outbound::PLAIN, route(ROUTE), plain);
    assert_eq!(datagram.as_bytes(), binary(0x21, 0x12, &body(0x12)));
}

#[test]
fn a_mapped_address_is_announced_as_what_it_is_and_mixed_ones_as_ipv6() {
    let of = |text: &str, version| {
        let outbound = Outbound { version, ..Outbound::PLAIN };
        Header::of_stream(&outbound, route(text), Identity::default()).as_bytes().to_vec()
    };
    let mapped = "[::ffff:192.0.2.1]:258 [::ffff:198.51.100.2]:80";
    let mixed = "192.0.2.1:258 [2001:db8::2]:80";
    for version in [Version::V1, Version::V2] {
        assert_eq!(of(mapped, version), of(ROUTE, version));
        assert_eq!(read(&of(mixed, version)).1, Reading::Whole(Some(route(mixed))));
    }
}

#[test]
fn the_longest_line_that_is_written_is_within_what_may_be_read() {
    let far = "[1111:2222:3333:4444:5555:6666:7777:8888]:65535";
    let outbound = Outbound { version: Version::V1, ..Outbound::PLAIN };
    let text = [far.to_string(), far.to_string()].join(" ");
    let header = Header::of_stream(&outbound, route(&text), Identity::default());
    assert!(header.as_bytes().len() <= LINE_BYTES_MAX);
    assert_eq!(read(header.as_bytes()).1, Reading::Whole(Some(route(&text))));
}

#[test]
fn spoilt_headers_never_panic_and_read_the_same_in_pieces() {
    let mut random = Random::new(0x9e37_79b9_7f4a_7c15);
    for (header, _) in sound() {
        spoil(&header, |bytes| {
            let whole = read(bytes);
            assert!(whole.0 <= bytes.len());
            let cut = random.below(bytes.len() + 1);
            assert_eq!(read_in_pieces([&bytes[..cut], &bytes[cut..]]), whole);
        });
    }
}

#[test]
fn random_bytes_after_a_sound_beginning_never_panic() {
    let mut random = Random::new(11);
    for _ in 0..200_000 {
        let starts: [&[u8]; 4] =
            [&SIGNATURE, b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x40", b"PROXY TCP4 ", b""];
        let mut bytes = starts[random.below(4)].to_vec();
        bytes.extend((0..random.below(90)).map(|_| random.byte()));
        let (used, reading) = read(&bytes);
        assert!(used <= bytes.len());
        assert!(reading != Reading::More || used == bytes.len());
        assert_eq!(read_in_pieces(bytes.chunks(1)), (used, reading));
    }
}

#[test]
fn only_networks_that_are_named_are_trusted() {
    let network = |text: &str, length| Network::new(text.parse().unwrap(), length).unwrap();
    let trusted = AccessList::new(&[network("10.0.0.0", 8), network("2001:db8::", 32)], &[]);
    let inbound = Inbound { trusted, timeout: Duration::from_secs(1) };
    assert!(inbound.trusts("10.1.2.3".parse().unwrap()));
    assert!(inbound.trusts("2001:db8::7".parse().unwrap()));
    assert!(!inbound.trusts("192.0.2.1".parse().unwrap()));
}

#[test]
fn a_reader_costs_little() {
    let bytes = size_of::<Reader>();
    assert!(bytes <= 208, "{bytes} bytes");
}
