//! The Call-ID of a SIP message (RFC 3261 sections 7 and 20.8).

use super::hash;
use crate::stats::KeylessReason;

const VERSION: &[u8] = b"SIP/2.0";

/// The key is the value of the first Call-ID, without the white space around it. A header must be
/// ended by the next one or by the empty line, so that what is cut off is not taken for a value.
pub(super) fn read(datagram: &[u8]) -> Result<u64, KeylessReason> {
    let (start_line, mut rest) = split_line(datagram).ok_or(KeylessReason::Malformed)?;
    if !is_start_line(start_line) {
        return Err(KeylessReason::Malformed);
    }
    while !rest.starts_with(b"\r\n") && !rest.starts_with(b"\n") {
        let (header, next) = split_header(rest).ok_or(KeylessReason::Malformed)?;
        if let Some(value) = call_id(header) {
            return hash_call_id(value);
        }
        rest = next;
    }
    Err(KeylessReason::Absent)
}

/// `INVITE sip:bob@example.com SIP/2.0`, or `SIP/2.0 200 OK`.
fn is_start_line(line: &[u8]) -> bool {
    let mut words = line.trim_ascii_end().split(|&byte| byte == b' ');
    let (first, last) = (words.next(), words.next_back());
    let is_version = |word: Option<&[u8]>| word.is_some_and(|it| it.eq_ignore_ascii_case(VERSION));
    is_version(first) && last.is_some() || is_version(last)
}

/// The value, if the header is a Call-ID. It may still have white space and folds around it.
fn call_id(header: &[u8]) -> Option<&[u8]> {
    let colon = header.iter().position(|&byte| byte == b':')?;
    let (name, value) = header.split_at(colon);
    let name = name.trim_ascii_end();
    let is_call_id = name.eq_ignore_ascii_case(b"call-id") || name.eq_ignore_ascii_case(b"i");
    is_call_id.then(|| &value[1..])
}

/// A Call-ID is one word, or two around an `@` (RFC 3261 section 25.1): no space is within.
fn hash_call_id(value: &[u8]) -> Result<u64, KeylessReason> {
    let value = value.trim_ascii();
    if value.is_empty() {
        return Err(KeylessReason::Absent);
    }
    if value.iter().any(u8::is_ascii_whitespace) {
        return Err(KeylessReason::Malformed);
    }
    Ok(hash(value))
}

/// The first header and what comes after it. Lines that start with white space continue the line
/// before them (RFC 3261 section 7.3.1).
fn split_header(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut length = 0;
    loop {
        let (line, rest) = split_line(&bytes[length..])?;
        length += line.len();
        if !matches!(rest.first()?, b' ' | b'\t') {
            return Some((&bytes[..length], rest));
        }
    }
}

/// The first line, with the line feed that ends it, and what comes after it.
fn split_line(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let line_feed = bytes.iter().position(|&byte| byte == b'\n')?;
    Some(bytes.split_at(line_feed + 1))
}

#[cfg(test)]
mod tests {
    use std::format;

    use super::super::testing::spoil;
    use super::*;

    const MALFORMED: Result<u64, KeylessReason> = Err(KeylessReason::Malformed);

    /// RFC 3261 section 24.2, F1, shortened.
    const INVITE: &str = "INVITE sip:bob@biloxi.com SIP/2.0\r\n\
        Via: SIP/2.0/UDP pc33.atlanta.com;branch=z9hG4bKnashds8\r\n\
        To: Bob <sip:bob@biloxi.com>\r\n\
        Call-ID: a84b4c76e66710\r\n\
        CSeq: 314159 INVITE\r\n\
        Content-Length: 13\r\n\
        \r\n\
        Call-ID: body";

    fn key() -> Result<u64, KeylessReason> {
        Ok(hash(b"a84b4c76e66710"))
    }

    /// What becomes of a request with these headers.
    fn read_headers(headers: &str) -> Result<u64, KeylessReason> {
        read(format!("BYE sip:a@b SIP/2.0\r\nTo: c\r\n{headers}\r\n\r\ni: body\r\n").as_bytes())
    }

    #[test]
    fn the_call_id_of_a_request_and_of_its_response_is_the_same_key() {
        assert_eq!(read(INVITE.as_bytes()), key());
        let response = INVITE.replace("INVITE sip:bob@biloxi.com SIP/2.0", "SIP/2.0 200 OK");
        assert_eq!(read(response.as_bytes()), key());
    }

    #[test]
    fn lines_may_end_in_a_line_feed_alone() {
        assert_eq!(read(INVITE.replace("\r\n", "\n").as_bytes()), key());
    }

    #[test]
    fn a_call_id_is_found_however_it_is_spelt() {
        let spellings = [
            "Call-ID:a84b4c76e66710",
            "CALL-id \t :  a84b4c76e66710 \t",
            "i: a84b4c76e66710",
            "I:a84b4c76e66710",
            "call-id:\r\n a84b4c76e66710",
            "call-id: \r\n\t \r\n  a84b4c76e66710\r\n ",
            "Call-ID: a84b4c76e66710\r\nCall-ID: other",
            "no colon in here\r\ni: a84b4c76e66710",
            "Subject: folded\r\n i: other\r\ni: a84b4c76e66710",
        ];
        for spelling in spellings {
            assert_eq!(read_headers(spelling), key(), "{spelling:?}");
        }
    }

    #[test]
    fn letters_in_a_call_id_keep_their_case() {
        assert_ne!(read_headers("i: ABC@host"), read_headers("i: abc@host"));
    }

    #[test]
    fn a_message_without_a_call_id_has_no_key() {
        for headers in ["From: x", "i:", "Call-ID: \r\n ", "Call-IDs: x", "ii: x", "X: i: x"] {
            assert_eq!(read_headers(headers), Err(KeylessReason::Absent), "{headers:?}");
        }
        assert_eq!(
            read(b"BYE sip:a@b SIP/2.0\r\n\r\n i: body\r\n\r\n"),
            Err(KeylessReason::Absent)
        );
    }

    #[test]
    fn what_continues_the_start_line_is_no_header() {
        let message = b"BYE sip:a@b SIP/2.0\r\n i: x\r\n\r\n";
        assert_eq!(read(message), Err(KeylessReason::Absent));
    }

    #[test]
    fn a_call_id_of_several_words_is_refused() {
        assert_eq!(read_headers("i: a b"), MALFORMED);
        assert_eq!(read_headers("i: a\r\n b"), MALFORMED);
    }

    #[test]
    fn what_is_no_sip_is_refused() {
        let others = [
            "GET / HTTP/1.1\r\ni: x\r\n\r\n",
            "SIP/2.0\r\ni: x\r\n\r\n",
            "INVITE sip:SIP/2.0\r\ni: x\r\n\r\n",
            "INVITE sip:a SIP/3.0\r\ni: x\r\n\r\n",
            "xSIP/2.0 200 OK\r\ni: x\r\n\r\n",
            "\r\n\r\n",
            "\n",
            "",
        ];
        for other in others {
            assert_eq!(read(other.as_bytes()), MALFORMED, "{other:?}");
        }
    }

    #[test]
    fn a_message_that_ends_before_its_call_id_does_is_refused() {
        let end = INVITE.find("CSeq").expect("it is there");
        for length in 0..=end {
            assert_eq!(read(&INVITE.as_bytes()[..length]), MALFORMED, "{length} bytes");
        }
        assert_eq!(read(&INVITE.as_bytes()[..=end]), key());
    }

    #[test]
    fn a_spoilt_message_with_a_key_has_it_from_its_own_bytes() {
        spoil(INVITE.as_bytes(), |bytes| {
            let words = bytes.split(u8::is_ascii_whitespace).flat_map(|word| {
                let colons = word.iter().enumerate().filter(|(_, byte)| **byte == b':');
                colons.map(|(at, _)| &word[at + 1..]).chain([word])
            });
            if let Ok(key) = read(bytes) {
                assert!(words.into_iter().any(|word| hash(word) == key), "{bytes:x?}");
            }
        });
    }
}
