//! A server name does not depend on how its hello is split into chunks and records, and an answer
//! other than "more" is final.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use pointsman_core::KeylessReason;
use pointsman_core::preread::{KeyRule, Preread};

/// Bytes in a record at most.
const RECORD_BYTES_MAX: usize = 1 << 14;
/// Bytes in a name at most.
const NAME_BYTES_MAX: usize = 255;

/// What the fuzzer's bytes are. All around them is sound, since lengths that agree are hard to hit
/// upon.
#[derive(Debug, Arbitrary)]
enum Layer {
    Chunks,
    Message,
    Extensions,
    Names,
    Name,
}

fuzz_target!(|input: (Layer, u8, u16, &[u8])| {
    let (layer, per_record, cut, bytes) = input;
    let (per_record, cut) = (usize::from(per_record).max(1), usize::from(cut));
    match layer {
        Layer::Chunks => _ = check_chunks(bytes, cut),
        Layer::Message => _ = check_records(bytes, per_record, cut),
        Layer::Extensions => _ = check_records(&hello(bytes), per_record, cut),
        Layer::Names => _ = check_records(&hello(&names(bytes)), per_record, cut),
        Layer::Name => {
            let name = &bytes[..bytes.len().min(NAME_BYTES_MAX)];
            let list = [&[0][..], &vector(2, name)].concat();
            let answer = check_records(&hello(&names(&list)), per_record, cut);
            assert_eq!(answer, expected(name));
        }
    }
});

/// What a sound hello with this name says.
fn expected(name: &[u8]) -> Preread {
    let lower = name.to_ascii_lowercase();
    let name = lower.strip_suffix(b".").unwrap_or(&lower);
    let range = KeyRule::Bytes { offset: 0, length: name.len() as u16 };
    match range.read_datagram(name) {
        Ok(key) if !name.is_empty() => Preread::Key(key),
        _ => Preread::Keyless(KeylessReason::Malformed),
    }
}

/// The bytes are a message, and its records do not matter. Returns what they say.
fn check_records(message: &[u8], per_record: usize, cut: usize) -> Preread {
    let whole = check_chunks(&in_records(message, RECORD_BYTES_MAX), cut);
    let parts = check_chunks(&in_records(message, per_record), cut);
    assert_eq!(whole, parts, "{per_record} bytes per record");
    whole
}

/// The bytes are all that came, and their chunks do not matter. Returns what they say.
fn check_chunks(bytes: &[u8], cut: usize) -> Preread {
    let (before, after) = bytes.split_at(cut.min(bytes.len()));
    let whole = read([bytes]);
    assert_eq!(read([before, after]), whole, "split at {cut}");
    assert_eq!(KeyRule::ServerName.read_stream(bytes.chunks(1)), whole, "single bytes");
    let early = read([before]);
    assert!(early == Preread::More || early == whole, "{early:?} was not final: {whole:?}");
    let later = read([bytes, before]);
    assert!(whole == Preread::More || later == whole, "{whole:?} was not final: {later:?}");
    whole
}

fn read<const CHUNKS: usize>(chunks: [&[u8]; CHUNKS]) -> Preread {
    KeyRule::ServerName.read_stream(chunks.into_iter())
}

fn in_records(message: &[u8], per_record: usize) -> Vec<u8> {
    let record = |body: &[u8]| [&[22, 3, 1][..], &vector(2, body)].concat();
    message.chunks(per_record).flat_map(record).collect()
}

/// A message with these extensions.
fn hello(extensions: &[u8]) -> Vec<u8> {
    let version_and_random = [3; 2 + 32];
    let session_suites_and_compression = [0, 0, 2, 0x13, 1, 1, 0];
    let extensions = vector(2, extensions);
    let body = [&version_and_random[..], &session_suites_and_compression, &extensions].concat();
    [&[1][..], &vector(3, &body)].concat()
}

/// An extension with this list of names.
fn names(list: &[u8]) -> Vec<u8> {
    [&[0, 0][..], &vector(2, &vector(2, list))].concat()
}

/// The body after its length, which takes this many bytes and loses what does not fit.
fn vector(width: usize, body: &[u8]) -> Vec<u8> {
    let length = body.len().to_be_bytes();
    [&length[length.len() - width..], body].concat()
}
