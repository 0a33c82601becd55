//! A Call-ID does not depend on how lines end, on other headers, or on what follows the headers.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pointsman_core::KeylessReason;
use pointsman_core::preread::KeyRule;

fuzz_target!(|input: (bool, &[u8], &[u8])| {
    let (is_framed, bytes, more) = input;
    if is_framed {
        let message = [b"BYE sip:a SIP/2.0\n", bytes, b"\n\n"].concat();
        check(&message, more);
    } else {
        check(bytes, more);
    }
});

fn check(message: &[u8], more: &[u8]) {
    let answer = read(message);
    assert_ne!(answer, Err(KeylessReason::TooLong));
    assert_ne!(answer, Err(KeylessReason::Timeout));
    if answer != Err(KeylessReason::Malformed) {
        assert_eq!(read(&[message, more].concat()), answer, "what follows does not matter");
        assert!(message.windows(7).any(|word| word.eq_ignore_ascii_case(b"SIP/2.0")));
    }
    if !message.contains(&b'\r') {
        assert_eq!(read(&with_carriage_returns(message)), answer, "lines may end either way");
    }
    if answer.is_ok() {
        let first = message.iter().position(|&byte| byte == b'\n').expect("a start line") + 1;
        let (start, headers) = message.split_at(first);
        let other = [start, b"Via: x\r\n y\r\nSubject: i: no\r\n", headers].concat();
        // A line that continues the start line would continue the subject.
        if !matches!(headers.first(), Some(b' ' | b'\t')) {
            assert_eq!(read(&other), answer, "other headers do not matter");
        }
    }
}

fn read(message: &[u8]) -> Result<u64, KeylessReason> {
    KeyRule::SipCallId.read_datagram(message)
}

fn with_carriage_returns(message: &[u8]) -> Vec<u8> {
    let ends = |&byte: &u8| if byte == b'\n' { b"\r\n".to_vec() } else { vec![byte] };
    message.iter().flat_map(ends).collect()
}
