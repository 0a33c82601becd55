//! Hellos, sound and unsound, however they arrive.

use std::vec::Vec;

use super::super::testing::spoil;
use super::super::tests::hex;
use super::*;

const ABSENT: Preread = Preread::Keyless(KeylessReason::Absent);

/// The `ClientHello` of RFC 8448 section 3, without a record around it.
fn rfc_hello() -> Vec<u8> {
    hex("010000c0 0303
        cb34ecb1e78163ba1c38c6dacb196a6dffa21a8d9912ec18a2ef6283024dece7
        00 0006 130113031302 0100 0091
        0000 000b 0009 00 0006 736572766572
        ff01 0001 00
        000a 0014 0012 001d00170018001901000101010201030104
        0023 0000
        0033 0026 0024001d0020
        99381de560e4bd43d23d8e435a7dbafeb3c06e51c13cae4d5413691e529aaf2c
        002b 0003 020304
        000d 0020 001e040305030603020308040805080604010501060102010402050206020202
        002d 0002 0101
        001c 0002 4001")
}

fn vector(width: usize, body: &[u8]) -> Vec<u8> {
    let length = body.len().to_be_bytes();
    [&length[length.len() - width..], body].concat()
}

fn hello(extensions: Option<&[u8]>) -> Vec<u8> {
    let mut body = [&[3, 3][..], &[7; 32], &vector(1, &[9; 32]), &[0, 2, 0x13, 1, 1, 0]].concat();
    body.extend(extensions.map(|extensions| vector(2, extensions)).unwrap_or_default());
    [&[1], &vector(3, &body)[..]].concat()
}

fn extension(kind: u16, data: &[u8]) -> Vec<u8> {
    [&kind.to_be_bytes()[..], &vector(2, data)].concat()
}

fn named(name: &[u8]) -> Vec<u8> {
    extension(0, &vector(2, &[&[0], &vector(2, name)[..]].concat()))
}

/// A message in records that carry this many of its bytes each.
fn records(message: &[u8], bytes: usize) -> Vec<u8> {
    let record = |body: &[u8]| [&[22, 3, 1][..], &vector(2, body)].concat();
    message.chunks(bytes).flat_map(record).collect()
}

fn read_whole(bytes: &[u8]) -> Preread {
    read([bytes].into_iter())
}

/// What becomes of a hello with these extensions.
fn read_extensions(extensions: &[u8]) -> Preread {
    read_whole(&records(&hello(Some(extensions)), 1 << 14))
}

fn key(name: &[u8]) -> Preread {
    Preread::Key(hash(name))
}

#[test]
fn the_hello_of_rfc_8448_has_its_name_as_the_key() {
    let bytes = records(&rfc_hello(), 1 << 14);
    assert_eq!(bytes.len(), 201, "as long as in the RFC");
    assert_eq!(read_whole(&bytes), key(b"server"));
}

#[test]
fn a_hello_is_the_same_wherever_it_is_split() {
    let bytes = records(&rfc_hello(), 1 << 14);
    for at in 0..=bytes.len() {
        let (before, after) = bytes.split_at(at);
        assert_eq!(read([before, after].into_iter()), key(b"server"), "split at {at}");
        assert_eq!(read([before, b"", after].into_iter()), key(b"server"), "split at {at}");
    }
    assert_eq!(read(bytes.chunks(1)), key(b"server"));
}

#[test]
fn a_hello_is_the_same_over_any_number_of_records() {
    for per_record in 1..=rfc_hello().len() {
        let bytes = records(&rfc_hello(), per_record);
        assert_eq!(read_whole(&bytes), key(b"server"), "{per_record} bytes per record");
        for per_chunk in [1, 2, 3, 7] {
            assert_eq!(read(bytes.chunks(per_chunk)), key(b"server"), "{per_record} per record");
        }
    }
}

#[test]
fn every_prefix_of_a_hello_waits_for_more() {
    for per_record in [1, 3, 50, 1 << 14] {
        let bytes = records(&rfc_hello(), per_record);
        for length in 0..bytes.len() {
            assert_eq!(read_whole(&bytes[..length]), Preread::More, "{length} bytes");
            assert_eq!(read(bytes[..length].chunks(1)), Preread::More, "{length} bytes");
        }
    }
}

#[test]
fn what_follows_a_hello_does_not_change_its_key() {
    let mut bytes = records(&rfc_hello(), 1 << 14);
    bytes.extend(b"\x17\x03\x03early data or whatever");
    assert_eq!(read_whole(&bytes), key(b"server"));
    let mut joined = rfc_hello();
    joined.extend([20, 0, 0, 0]);
    assert_eq!(read_whole(&records(&joined, 64)), key(b"server"));
}

#[test]
fn a_name_is_the_same_in_any_case_and_with_a_dot_at_its_end() {
    for name in [&b"www.example.com"[..], b"WWW.Example.COM", b"www.example.com."] {
        assert_eq!(read_extensions(&named(name)), key(b"www.example.com"));
    }
    assert_eq!(read_extensions(&named(b"a..")), key(b"a."), "one dot is a matter of spelling");
}

#[test]
fn a_name_as_long_as_may_be_is_a_key_and_a_longer_one_is_not() {
    assert_eq!(read_extensions(&named(&[b'a'; 255])), key(&[b'a'; 255]));
    assert_eq!(read_extensions(&named(&[b'a'; 256])), MALFORMED);
}

#[test]
fn a_name_is_found_behind_other_extensions_and_kinds_of_names() {
    let padding = extension(21, &[0; 3_000]);
    assert_eq!(read_extensions(&[padding, named(b"x.y")].concat()), key(b"x.y"));
    let list = [&[1][..], &vector(2, b"other"), &[0], &vector(2, b"x.y")].concat();
    assert_eq!(read_extensions(&extension(0, &vector(2, &list))), key(b"x.y"));
}

#[test]
fn a_whole_hello_without_a_name_has_no_key() {
    assert_eq!(read_whole(&records(&hello(None), 1 << 14)), ABSENT, "as before TLS 1.2");
    assert_eq!(read_extensions(b""), ABSENT);
    assert_eq!(read_extensions(&extension(43, &[2, 3, 4])), ABSENT);
    let other = [&[1][..], &vector(2, b"other")].concat();
    assert_eq!(read_extensions(&extension(0, &vector(2, &other))), ABSENT);
    let bytes = records(&hello(None), 1 << 14);
    assert_eq!(read_whole(&bytes[..bytes.len() - 1]), Preread::More);
}

#[test]
fn old_versions_of_the_record_and_of_the_hello_are_tolerated() {
    for minor in 0..=4 {
        let mut bytes = records(&rfc_hello(), 1 << 14);
        (bytes[2], bytes[10]) = (minor, minor);
        assert_eq!(read_whole(&bytes), key(b"server"), "3.{minor}");
    }
}

#[test]
fn what_is_no_handshake_is_refused_at_the_first_byte_that_says_so() {
    let ssl2 = [0x80, 0x2e, 1, 0, 2, 0, 0x15];
    for other in [&b"GET / HTTP/1.1\r\n"[..], &ssl2, b"G", b"\x17", b"\x15\x03\x01", b"\x16\x02"] {
        assert_eq!(read_whole(other), MALFORMED, "{other:x?}");
    }
    assert_eq!(read_whole(b"\x16\x03\x01\x00\x10\x02"), MALFORMED, "a ServerHello");
    assert_eq!(read_whole(b"\x16\x03\x01\x00\x10\x01\0\0\x0c\x02"), MALFORMED, "version 2 inside");
}

#[test]
fn a_record_that_is_empty_or_too_long_is_refused() {
    assert_eq!(read_whole(b"\x16\x03\x01\0\0"), MALFORMED);
    assert_eq!(read_whole(b"\x16\x03\x01\x40\0"), Preread::More);
    assert_eq!(read_whole(b"\x16\x03\x01\x40\x01"), MALFORMED);
}

#[test]
fn another_record_between_the_parts_of_a_hello_is_refused() {
    let hello = rfc_hello();
    let mut bytes = records(&hello[..90], 1 << 14);
    bytes.extend([20, 3, 3, 0, 1, 1]);
    bytes.extend(records(&hello[90..], 1 << 14));
    assert_eq!(read_whole(&bytes), MALFORMED);
}

#[test]
fn vectors_longer_than_what_holds_them_are_refused() {
    let sound = named(b"x.y");
    assert_eq!(read_extensions(&sound), key(b"x.y"));
    // The lengths of the extension, of the list and of the name.
    for (place, off_by) in [(3, 1), (5, 1), (8, 1), (5, 255), (8, 255), (3, 255)] {
        let mut longer = sound.clone();
        longer[place] = longer[place].wrapping_add(off_by);
        assert_eq!(read_extensions(&longer), MALFORMED, "length at {place} off by {off_by}");
    }
    let hello = hello(Some(&sound));
    // The lengths of the message, of the session id, of the suites and of the extensions.
    for place in [3, 38, 72, 78] {
        for off_by in [1, 255] {
            let mut wrong = hello.clone();
            wrong[place] = wrong[place].wrapping_add(off_by);
            assert_eq!(read_whole(&records(&wrong, 1 << 14)), MALFORMED, "length at {place}");
        }
    }
}

#[test]
fn a_list_that_does_not_fill_its_extension_is_refused() {
    let list = vector(2, &[&[0][..], &vector(2, b"x.y")].concat());
    assert_eq!(read_extensions(&extension(0, &list)), key(b"x.y"));
    assert_eq!(read_extensions(&extension(0, &[&list[..], &[0]].concat())), MALFORMED);
}

#[test]
fn vectors_shorter_or_longer_than_a_hello_has_are_refused() {
    let hello = |session: &[u8], suites: &[u8], compressions: &[u8]| {
        let vectors = [vector(1, session), vector(2, suites), vector(1, compressions)].concat();
        let body = [&[3; 34], &vectors[..], &vector(2, &named(b"x.y"))].concat();
        read_whole(&records(&[&[1], &vector(3, &body)[..]].concat(), 1 << 14))
    };
    assert_eq!(hello(&[], &[0x13, 1], &[0]), key(b"x.y"));
    assert_eq!(hello(&[9; 32], &[0x13, 1], &[0]), key(b"x.y"));
    assert_eq!(hello(&[9; 33], &[0x13, 1], &[0]), MALFORMED);
    assert_eq!(hello(&[], &[], &[0]), MALFORMED);
    assert_eq!(hello(&[], &[0x13, 1], &[]), MALFORMED);
}

#[test]
fn a_length_that_does_not_fit_is_refused_before_the_bytes_come() {
    let prefix = hello(Some(&extension(21, &[0; 9])));
    let mut wrong = records(&prefix, 1 << 14);
    let last_length = wrong.len() - 10;
    wrong[last_length] = 10;
    wrong.truncate(last_length + 1);
    assert_eq!(read_whole(&wrong), MALFORMED);
}

#[test]
fn names_that_are_empty_or_given_twice_are_refused() {
    assert_eq!(read_extensions(&named(b"")), MALFORMED);
    assert_eq!(read_extensions(&named(b".")), MALFORMED);
    assert_eq!(read_extensions(&extension(0, b"")), MALFORMED);
    assert_eq!(read_extensions(&extension(0, &[0, 0])), MALFORMED);
    assert_eq!(read_extensions(&[named(b"a"), named(b"b")].concat()), MALFORMED);
    let twice = [&[0][..], &vector(2, b"a"), &[0], &vector(2, b"b")].concat();
    assert_eq!(read_extensions(&extension(0, &vector(2, &twice))), MALFORMED);
}

#[test]
fn an_answer_is_final_whatever_is_wrong_with_a_hello() {
    spoil(&records(&rfc_hello(), 60), |bytes| {
        let whole = read_whole(bytes);
        assert_eq!(read(bytes.chunks(1)), whole);
        for length in (0..bytes.len()).step_by(7) {
            let early = read_whole(&bytes[..length]);
            assert!(early == Preread::More || early == whole, "{length} bytes of {bytes:x?}");
        }
    });
}
