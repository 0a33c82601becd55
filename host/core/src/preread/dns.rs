//! The name asked for first in a DNS query (RFC 1035 section 4.1).

use super::hash;
use crate::stats::KeylessReason;

const HEADER_BYTES: usize = 12;
/// The bit of the header's third byte that is set in responses.
const RESPONSE: u8 = 0x80;
/// Greater lengths are compression pointers, which have nothing to point to in a first name, and
/// kinds of labels that are no more (RFC 6891 section 5).
const LABEL_BYTES_MAX: u8 = 63;
const NAME_BYTES_MAX: usize = 255;
/// The type and the class after the name.
const TYPE_AND_CLASS_BYTES: usize = 4;

/// The key is the name as it is on the wire, lengths included; the root is a name like any other.
pub(super) fn read(datagram: &[u8]) -> Result<u64, KeylessReason> {
    let (header, questions) =
        datagram.split_first_chunk::<HEADER_BYTES>().ok_or(KeylessReason::Malformed)?;
    if header[2] & RESPONSE != 0 {
        return Err(KeylessReason::Malformed);
    }
    if header[4..6] == [0, 0] {
        return Err(KeylessReason::Absent);
    }
    let name = first_name(questions).ok_or(KeylessReason::Malformed)?;
    let mut copy = [0; NAME_BYTES_MAX];
    let copy = &mut copy[..name.len()];
    copy.copy_from_slice(name);
    copy.make_ascii_lowercase(); // no length is a letter
    Ok(hash(copy))
}

/// The name of the first question, if the question is whole.
fn first_name(questions: &[u8]) -> Option<&[u8]> {
    let mut end = 0;
    loop {
        let length = *questions.get(end)?;
        end += 1 + usize::from(length);
        if length > LABEL_BYTES_MAX || end > NAME_BYTES_MAX {
            return None;
        }
        if length == 0 {
            break;
        }
    }
    questions.get(..end + TYPE_AND_CLASS_BYTES)?.get(..end)
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::super::testing::spoil;
    use super::super::tests::hex;
    use super::*;

    const MALFORMED: Result<u64, KeylessReason> = Err(KeylessReason::Malformed);

    /// A query with one question for this name, as it is on the wire.
    fn query(name: &[u8]) -> Vec<u8> {
        [&hex("1234 0100 0001 0000 0000 0000"), name, &hex("0001 0001")].concat()
    }

    /// So many labels of so many bytes, and the root.
    fn labels(count: usize, bytes: usize) -> Vec<u8> {
        let label = [&[bytes as u8], &[b'a'].repeat(bytes)[..]].concat();
        [&label.repeat(count)[..], &[0]].concat()
    }

    #[test]
    fn the_name_asked_for_is_the_key_in_any_case() {
        let key = Ok(hash(b"\x03www\x07example\x03com\x00"));
        assert_eq!(read(&query(b"\x03www\x07example\x03com\x00")), key);
        assert_eq!(read(&query(b"\x03wWw\x07EXAMPLE\x03Com\x00")), key);
        assert_ne!(read(&query(b"\x03www\x03com\x07example\x00")), key);
    }

    #[test]
    fn lengths_are_part_of_the_key() {
        assert_ne!(read(&query(b"\x02ab\x01c\x00")), read(&query(b"\x01a\x02bc\x00")));
    }

    #[test]
    fn the_root_is_a_name() {
        assert_eq!(read(&query(b"\x00")), Ok(hash(b"\x00")));
    }

    #[test]
    fn what_follows_the_first_question_does_not_matter() {
        let mut query = query(b"\x01a\x00");
        query[5] = 2;
        query.extend(hex("c00c 0001 0001 00 0029 04d0 00000000 0000"));
        assert_eq!(read(&query), Ok(hash(b"\x01a\x00")));
    }

    #[test]
    fn a_query_without_a_question_has_no_key() {
        assert_eq!(read(&hex("1234 0100 0000 0000 0000 0000")), Err(KeylessReason::Absent));
    }

    #[test]
    fn a_response_is_refused() {
        let mut response = query(b"\x01a\x00");
        response[2] |= 0x80;
        assert_eq!(read(&response), MALFORMED);
    }

    #[test]
    fn compression_pointers_and_unknown_labels_are_refused() {
        for name in [&b"\xc0\x0c"[..], b"\x01a\xc0\x0c", b"\x41x\x00", b"\x80\x00"] {
            let padded = [&query(name)[..], &[0; 80]].concat();
            assert_eq!(read(&padded), MALFORMED, "{name:x?}");
        }
    }

    #[test]
    fn labels_and_names_as_long_as_may_be_are_keys_and_longer_ones_are_not() {
        let name = [&labels(3, 63)[..192], &labels(1, 61)[..]].concat();
        assert_eq!(name.len(), 255);
        assert_eq!(read(&query(&name)), Ok(hash(&name)));
        let name = [&labels(3, 63)[..192], &labels(1, 62)[..]].concat();
        assert_eq!(read(&query(&name)), MALFORMED);
        assert_eq!(read(&query(&labels(127, 1))), Ok(hash(&labels(127, 1))));
        assert_eq!(read(&query(&labels(128, 1))), MALFORMED);
        assert_eq!(read(&query(&labels(1, 64))), MALFORMED);
    }

    #[test]
    fn a_query_that_ends_within_its_question_is_refused() {
        let query = query(b"\x03www\x07example\x03com\x00");
        for length in 0..query.len() {
            assert_eq!(read(&query[..length]), MALFORMED, "{length} bytes");
        }
    }

    #[test]
    fn a_spoilt_query_with_a_key_has_it_from_its_own_bytes() {
        spoil(&query(b"\x03www\x07example\x03com\x00"), |bytes| {
            if let Ok(key) = read(bytes) {
                let lower = bytes.to_ascii_lowercase();
                assert!((13..=lower.len()).any(|end| hash(&lower[HEADER_BYTES..end]) == key));
            }
        });
    }
}
