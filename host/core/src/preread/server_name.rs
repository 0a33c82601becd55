//! The server name in a TLS `ClientHello` (RFC 8446 section 4.1.2, RFC 6066 section 3).
//!
//! Three layers lie on one another, and a border of any may stand anywhere in the others:
//!
//! ```text
//! chunks  | ------ | -- | ------------------- | ---- |    as they were received
//! records |h------------ |h-- |h------------------- |    a header of 5 bytes each
//! message    |client hello---------------------|          nested vectors
//! ```
//!
//! The whole hello is read although the name may come early: what is not a hello has no key,
//! however it starts.

#[cfg(test)]
mod tests;

use core::ops::RangeInclusive;

use super::cursor::Cursor;
use super::{Preread, hash};
use crate::stats::KeylessReason;

const MALFORMED: Preread = Preread::Keyless(KeylessReason::Malformed);

/// The first byte of the version of every TLS, and of SSL 3.0, in records and messages.
const VERSION_MAJOR: usize = 3;
/// The content type of records that carry handshake messages.
const HANDSHAKE: u8 = 22;
/// Bytes in a record. Handshake messages do not use empty ones (RFC 8446 section 5.1).
const RECORD_BYTES: RangeInclusive<usize> = 1..=1 << 14;
/// The type of the handshake message.
const CLIENT_HELLO: usize = 1;
/// The type of the extension.
const SERVER_NAME: usize = 0;
/// The type of the name in it.
const HOST_NAME: usize = 0;
/// No name of the DNS is longer.
const NAME_BYTES_MAX: usize = 255;

const U8_MAX: usize = 0xff;
const U16_MAX: usize = 0xffff;
const U24_MAX: usize = 0xff_ffff;

pub(super) fn read<'a>(chunks: impl Iterator<Item = &'a [u8]>) -> Preread {
    match Message::new(chunks).client_hello() {
        Ok(Some(name)) => Preread::Key(hash(name.as_bytes())),
        Ok(None) => Preread::Keyless(KeylessReason::Absent),
        Err(stop) => stop,
    }
}

/// The name itself, if all of its hello is there.
pub(crate) fn find<'a>(chunks: impl Iterator<Item = &'a [u8]>) -> Option<ServerName> {
    Message::new(chunks).client_hello().ok().flatten()
}

/// A name in lower case, without a dot at its end.
#[derive(Clone, Copy)]
pub(crate) struct ServerName {
    bytes: [u8; NAME_BYTES_MAX],
    len: u8,
}

impl ServerName {
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len.into()]
    }
}

/// A handshake message that is being read. Whatever cannot be read says what that means for the
/// whole: more must come, or nothing helps.
///
/// Vectors are known by their ends, positions in the message. Whatever is read lies within one.
struct Message<'a, I> {
    cursor: Cursor<'a, I>,
    record_left: usize,
    at: usize,
}

impl<'a, I: Iterator<Item = &'a [u8]>> Message<'a, I> {
    fn new(chunks: I) -> Self {
        Self { cursor: Cursor::new(chunks), record_left: 0, at: 0 }
    }

    /// The name, if the hello has one.
    fn client_hello(&mut self) -> Result<Option<ServerName>, Preread> {
        ensure(self.number(1, U24_MAX)? == CLIENT_HELLO)?;
        let hello = self.vector(0..=U24_MAX, usize::MAX)?;
        ensure(self.number(1, hello)? == VERSION_MAJOR)?;
        let (version_minor, random) = (1, 32);
        self.skip(version_minor + random, hello)?;
        self.skip_vector(0..=32, hello)?; // session id
        self.skip_vector(2..=U16_MAX - 1, hello)?; // cipher suites
        self.skip_vector(1..=U8_MAX, hello)?; // compression methods
        if self.at == hello {
            return Ok(None);
        }
        let extensions = self.vector(0..=U16_MAX, hello)?;
        ensure(extensions == hello)?;
        self.extensions(extensions)
    }

    fn extensions(&mut self, end: usize) -> Result<Option<ServerName>, Preread> {
        let mut server_name = None;
        while self.at < end {
            let kind = self.number(2, end)?;
            let data = self.vector(0..=U16_MAX, end)?;
            if kind == SERVER_NAME {
                ensure(server_name.is_none())?;
                server_name = self.server_names(data)?;
            }
            self.skip_to(data)?;
        }
        Ok(server_name)
    }

    fn server_names(&mut self, end: usize) -> Result<Option<ServerName>, Preread> {
        let list = self.vector(1..=U16_MAX, end)?;
        ensure(list == end)?;
        let mut host_name = None;
        while self.at < list {
            let kind = self.number(1, list)?;
            let name = self.vector(1..=U16_MAX, list)?;
            if kind == HOST_NAME {
                ensure(host_name.is_none())?;
                host_name = Some(self.host_name(name)?);
            }
            self.skip_to(name)?;
        }
        Ok(host_name)
    }

    fn host_name(&mut self, end: usize) -> Result<ServerName, Preread> {
        let mut bytes = [0; NAME_BYTES_MAX];
        let name = bytes.get_mut(..end - self.at).ok_or(MALFORMED)?;
        for byte in name.iter_mut() {
            *byte = self.byte()?.to_ascii_lowercase();
        }
        let len = name.strip_suffix(b".").unwrap_or(name).len() as u8;
        ensure(len > 0)?;
        Ok(ServerName { bytes, len })
    }

    fn skip_vector(
        &mut self,
        lengths: RangeInclusive<usize>,
        within: usize,
    ) -> Result<(), Preread> {
        let end = self.vector(lengths, within)?;
        self.skip_to(end)
    }

    /// Where the vector that starts here ends. Its length takes as many bytes as the greatest length
    /// needs (RFC 8446 section 3.4).
    fn vector(&mut self, lengths: RangeInclusive<usize>, within: usize) -> Result<usize, Preread> {
        let width = (usize::BITS - lengths.end().leading_zeros()).div_ceil(8);
        let length = self.number(width, within)?;
        ensure(lengths.contains(&length) && length <= within - self.at)?;
        Ok(self.at + length)
    }

    fn number(&mut self, width: u32, within: usize) -> Result<usize, Preread> {
        ensure(width as usize <= within - self.at)?;
        let mut number = 0;
        for _ in 0..width {
            number = number << 8 | usize::from(self.byte()?);
        }
        Ok(number)
    }

    fn skip(&mut self, length: usize, within: usize) -> Result<(), Preread> {
        ensure(length <= within - self.at)?;
        self.skip_to(self.at + length)
    }

    fn skip_to(&mut self, end: usize) -> Result<(), Preread> {
        while self.at < end {
            self.advance(end - self.at)?;
        }
        Ok(())
    }

    fn byte(&mut self) -> Result<u8, Preread> {
        self.advance(1)?.first().copied().ok_or(Preread::More)
    }

    /// Reads at least one byte and at most so many, through as many borders as stand here.
    fn advance(&mut self, bytes_max: usize) -> Result<&'a [u8], Preread> {
        if self.record_left == 0 {
            self.record_left = self.record_header()?;
        }
        let bytes_max = bytes_max.min(self.record_left);
        let piece = self.cursor.piece(bytes_max).ok_or(Preread::More)?;
        self.record_left -= piece.len();
        self.at += piece.len();
        Ok(piece)
    }

    /// The length of the record that starts here. The minor version is to be ignored.
    fn record_header(&mut self) -> Result<usize, Preread> {
        let mut byte = || self.cursor.byte().ok_or(Preread::More);
        ensure(byte()? == HANDSHAKE)?;
        ensure(usize::from(byte()?) == VERSION_MAJOR)?;
        byte()?;
        let length = u16::from_be_bytes([byte()?, byte()?]).into();
        ensure(RECORD_BYTES.contains(&length))?;
        Ok(length)
    }
}

fn ensure(is_sound: bool) -> Result<(), Preread> {
    if is_sound { Ok(()) } else { Err(MALFORMED) }
}
