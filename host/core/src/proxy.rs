//! The PROXY protocol: who the client is, told by whoever stands between.
//!
//! Both versions of <https://www.haproxy.org/download/2.9/doc/proxy-protocol.txt>; sections named in
//! this module are that document's. A header comes before the first byte of a connection and says
//! between which two addresses the original connection is. Whoever sends one can claim to be anybody,
//! so it is asked of trusted peers only, and of them always (section 5): a listener on which it were
//! optional would let every client choose its address.

mod crc32c;
mod read;
#[cfg(test)]
mod tests;
mod write;

use core::net::{IpAddr, SocketAddr};
use core::time::Duration;

use crate::access::AccessList;

pub use read::{Reader, Reading};
pub use write::{Header, Identity};

/// What a header of version 2 begins with (section 2.2). No version of any text protocol has it.
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// The longest line of version 1, its line break included (section 2.1).
const LINE_BYTES_MAX: usize = 107;
/// Bytes of version 2 before the addresses.
const FIXED_BYTES: usize = 16;
/// Bytes of a value's type and length (section 2.2.1).
const VALUE_PREFIX_BYTES: usize = 3;

/// Version and command of version 2.
const COMMAND_LOCAL: u8 = 0x20;
const COMMAND_PROXY: u8 = 0x21;

/// Types of values (section 2.2.1).
const VALUE_AUTHORITY: u8 = 0x02;
const VALUE_CRC32C: u8 = 0x03;
const VALUE_UNIQUE_ID: u8 = 0x05;

/// The two ends of the original connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// Who opened it.
    pub client: SocketAddr,
    /// Whom to.
    pub local: SocketAddr,
}

/// Who must introduce clients to a listener, and how soon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inbound {
    /// From where connections are taken; each must begin with a header.
    pub trusted: AccessList,
    /// How long a header may take to come, from the first byte to the last.
    pub timeout: Duration,
}

impl Inbound {
    /// Whether connections of this peer are taken.
    #[must_use]
    pub fn trusts(&self, peer: IpAddr) -> bool {
        self.trusted.allows(peer)
    }
}

/// How clients are announced to endpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outbound {
    /// Which header.
    pub version: Version,
    /// Whether it has an id of the flow. Version 2 only, as what follows.
    pub unique_id: bool,
    /// Whether it has the server name that the client asked for, where the listener reads it.
    pub authority: bool,
    /// Whether it has a checksum.
    pub crc32c: bool,
}

impl Outbound {
    /// Version 2, and nothing but the addresses.
    pub const PLAIN: Self =
        Self { version: Version::V2, unique_id: false, authority: false, crc32c: false };
}

/// Which of the two headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// A line of text (section 2.1).
    V1,
    /// Bytes (section 2.2).
    V2,
}
