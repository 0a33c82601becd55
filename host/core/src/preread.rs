//! Application keys: what related flows have in common, read from their first bytes.
//!
//! The bytes are a stranger's. Each parser is linear in them, copies nothing but a name, and says
//! [`KeylessReason::Malformed`] of whatever it does not understand: a flow without a key is
//! allocated like any other, so nothing is worth a guess.

mod cursor;
mod dns;
mod quic;
mod radius;
pub(crate) mod server_name;
mod sip;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use core::hash::Hasher;

use twox_hash::XxHash64;

use crate::stats::KeylessReason;
use cursor::Cursor;

/// Where a flow's application key stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyRule {
    /// A range of bytes, in a datagram or at the start of a connection.
    Bytes {
        /// Bytes before it.
        offset: u16,
        /// Bytes in it, at least 1.
        length: u16,
    },
    /// The server name of a TLS `ClientHello` (RFC 8446 section 4.1.2, RFC 6066 section 3), in lower
    /// case and without a dot at its end. Connections only.
    ServerName,
    /// The destination connection id of a QUIC packet (RFC 8999 section 5). Datagrams only.
    QuicConnectionId {
        /// Leading bytes of the id that count, and bytes of the ids that servers give out at least;
        /// 1 to 20. Packets with a short header do not tell how long their id is.
        length: u8,
    },
    /// The name asked for first in a DNS query (RFC 1035 section 4.1.2), in lower case. Datagrams
    /// only.
    DnsName,
    /// The first attribute of this type in a RADIUS packet (RFC 2865 section 5). Datagrams only.
    RadiusAttribute(u8),
    /// The Call-ID of a SIP message (RFC 3261 section 20.8). Datagrams only.
    SipCallId,
}

/// What the first bytes of a connection say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Preread {
    /// The key's hash.
    Key(u64),
    /// Nothing yet: the key may be in what follows.
    More,
    /// There is none.
    Keyless(KeylessReason),
}

impl KeyRule {
    /// Reads the key of a flow from its first datagram.
    ///
    /// # Errors
    /// Why there is none.
    pub fn read_datagram(&self, datagram: &[u8]) -> Result<u64, KeylessReason> {
        match *self {
            Self::Bytes { offset, length } => {
                let end = usize::from(offset) + usize::from(length);
                let range = datagram.get(usize::from(offset)..end);
                range.map(hash).ok_or(KeylessReason::Absent)
            }
            Self::QuicConnectionId { length } => quic::read(datagram, length.into()),
            Self::DnsName => dns::read(datagram),
            Self::RadiusAttribute(kind) => radius::read(datagram, kind),
            Self::SipCallId => sip::read(datagram),
            Self::ServerName => Err(KeylessReason::Malformed),
        }
    }

    /// Reads the key of a connection from all that has come of it, split anywhere. Linear in the
    /// bytes and chunks up to the key. An answer other than [`Preread::More`] is final: what comes
    /// later does not change it.
    pub fn read_stream<'a>(&self, chunks: impl Iterator<Item = &'a [u8]> + Clone) -> Preread {
        match *self {
            Self::Bytes { offset, length } => read_bytes(chunks, offset.into(), length.into()),
            Self::ServerName => server_name::read(chunks),
            Self::QuicConnectionId { .. }
            | Self::DnsName
            | Self::RadiusAttribute(_)
            | Self::SipCallId => Preread::Keyless(KeylessReason::Malformed),
        }
    }

    /// Reads from an endpoint's reply a key under which the client may come back: the connection id
    /// that a QUIC server gives out for itself in its long headers.
    #[must_use]
    pub fn read_reply(&self, datagram: &[u8]) -> Option<u64> {
        match *self {
            Self::QuicConnectionId { length } => quic::read_reply(datagram, length.into()),
            _ => None,
        }
    }
}

fn read_bytes<'a>(
    chunks: impl Iterator<Item = &'a [u8]>,
    mut skipped: usize,
    mut hashed: usize,
) -> Preread {
    let mut cursor = Cursor::new(chunks);
    let mut hasher = XxHash64::with_seed(0);
    while skipped > 0 {
        let Some(piece) = cursor.piece(skipped) else { return Preread::More };
        skipped -= piece.len();
    }
    while hashed > 0 {
        let Some(piece) = cursor.piece(hashed) else { return Preread::More };
        hasher.write(piece);
        hashed -= piece.len();
    }
    Preread::Key(finish(&hasher))
}

/// xxh64, seed 0, of the key's bytes, so that every worker and every balancer agrees; never 0.
fn hash(key: &[u8]) -> u64 {
    let mut hasher = XxHash64::with_seed(0);
    hasher.write(key);
    finish(&hasher)
}

fn finish(hasher: &XxHash64) -> u64 {
    hasher.finish().max(1)
}
