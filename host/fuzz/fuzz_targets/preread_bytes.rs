//! A range of bytes is the same key from a datagram and from a connection, however that is split.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pointsman_core::KeylessReason;
use pointsman_core::preread::{KeyRule, Preread};

fuzz_target!(|input: (u16, u16, Vec<&[u8]>)| {
    let (offset, length, chunks) = input;
    let rule = KeyRule::Bytes { offset, length };
    let expected = match rule.read_datagram(&chunks.concat()) {
        Ok(key) => Preread::Key(key),
        Err(KeylessReason::Absent) => Preread::More,
        Err(reason) => panic!("a range is there or not: {reason:?}"),
    };
    // Of nothing, the start is as good as the end.
    if length > 0 {
        assert_eq!(rule.read_stream(chunks.iter().copied()), expected);
    }
});
