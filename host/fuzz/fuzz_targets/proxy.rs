//! A PROXY header does not depend on how it is split, is never longer than it may be, and what is
//! written is what is read.
#![no_main]

use std::net::{IpAddr, SocketAddr};

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use pointsman_core::proxy::{Header, Identity, Outbound, Reader, Reading, Route, Version};

const LINE_BYTES_MAX: usize = 107;
const BINARY_BYTES_MAX: usize = 16 + 65_535;

/// What the fuzzer's bytes are. What is around them is sound, since lengths that agree are hard to hit
/// upon.
#[derive(Debug, Arbitrary)]
enum Layer {
    Header,
    Line,
    Body { command: u8, family: u8 },
    Values,
    Written { from: (IpAddr, u16), to: (IpAddr, u16), id: u128, is_v1: bool },
}

fuzz_target!(|input: (Layer, u16, &[u8])| {
    let (layer, cut, bytes) = input;
    let cut = usize::from(cut);
    match layer {
        Layer::Header => check(bytes, cut),
        Layer::Line => check(&[b"PROXY TCP", bytes, b"\r\n"].concat(), cut),
        Layer::Body { command, family } => check(&binary(command, family, bytes), cut),
        Layer::Values => check(&binary(0x21, 0x11, &[&[7; 12], bytes].concat()), cut),
        Layer::Written { from, to, id, is_v1 } => {
            let address = |(ip, port): (IpAddr, u16)| SocketAddr::new(ip.to_canonical(), port);
            let route = Route { client: address(from), local: address(to) };
            let version = if is_v1 { Version::V1 } else { Version::V2 };
            let outbound = Outbound { version, unique_id: true, authority: true, crc32c: true };
            let identity = Identity { unique_id: Some(id), authority: Some(bytes) };
            let header = Header::of_stream(&outbound, route, identity);
            let whole = (header.as_bytes().len(), Reading::Whole(Some(route)));
            assert_eq!(Reader::new().read(header.as_bytes()), whole);
            check(header.as_bytes(), cut);
        }
    }
});

fn check(bytes: &[u8], cut: usize) {
    let whole = Reader::new().read(bytes);
    let longest = if bytes.starts_with(b"P") { LINE_BYTES_MAX } else { BINARY_BYTES_MAX };
    assert!(whole.0 <= bytes.len().min(longest), "{whole:?}");
    let (before, after) = bytes.split_at(cut.min(bytes.len()));
    assert_eq!(read([before, after].into_iter()), whole, "split at {cut}");
    assert_eq!(read(bytes.chunks(1)), whole, "single bytes");
}

fn read<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> (usize, Reading) {
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

/// A header of version 2 whose length is right.
fn binary(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
    let body = &body[..body.len().min(65_535)];
    let length = (body.len() as u16).to_be_bytes();
    [&b"\r\n\r\n\0\r\nQUIT\n"[..], &[command, family], &length, body].concat()
}
