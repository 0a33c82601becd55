//! Writes the header that tells an endpoint who its client is.

use core::fmt::{self, Write};
use core::net::{IpAddr, SocketAddr};

use super::crc32c::Crc32c;
use super::{
    COMMAND_LOCAL, COMMAND_PROXY, FIXED_BYTES, Outbound, Route, SIGNATURE, VALUE_AUTHORITY,
    VALUE_CRC32C, VALUE_PREFIX_BYTES, VALUE_UNIQUE_ID, Version,
};

/// Bytes of an IPv6 address, a name and an id, with what is before each.
const HEADER_BYTES_MAX: usize = FIXED_BYTES + 36 + 3 * VALUE_PREFIX_BYTES + 255 + 16 + 4;
/// Where the length of version 2 stands.
const LENGTH_AT: usize = 14;

const TCP_OVER_V4: u8 = 0x11;
const UDP_OVER_V4: u8 = 0x12;
const TCP_OVER_V6: u8 = 0x21;
const UDP_OVER_V6: u8 = 0x22;
const UNSPECIFIED: u8 = 0x00;

/// What is told of a flow besides its addresses.
#[derive(Debug, Clone, Copy, Default)]
pub struct Identity<'a> {
    /// Its id, random and different for every flow.
    pub unique_id: Option<u128>,
    /// The server name that its client asked for; 255 bytes of it at most.
    pub authority: Option<&'a [u8]>,
}

/// A header, ready to be sent.
#[derive(Debug, Clone)]
pub struct Header {
    bytes: [u8; HEADER_BYTES_MAX],
    len: usize,
}

impl Header {
    const EMPTY: Self = Self { bytes: [0; HEADER_BYTES_MAX], len: 0 };

    /// The header of a connection. If only one of the addresses is IPv4, it is mapped.
    #[must_use]
    pub fn of_stream(outbound: &Outbound, route: Route, identity: Identity<'_>) -> Self {
        match outbound.version {
            Version::V1 => Self::line(route),
            Version::V2 => {
                let mut header = Self::begin(route, [TCP_OVER_V4, TCP_OVER_V6]);
                header.finish(outbound, identity);
                header
            }
        }
    }

    /// The header of a datagram: version 2, for version 1 knows none.
    #[must_use]
    pub fn of_datagram(outbound: &Outbound, route: Route, identity: Identity<'_>) -> Self {
        let mut header = Self::begin(route, [UDP_OVER_V4, UDP_OVER_V6]);
        header.finish(outbound, identity);
        header
    }

    /// The header of a connection that is nobody's but ours, such as a health check: its real
    /// addresses hold (`LOCAL` in section 2.2, `UNKNOWN` in section 2.1).
    #[must_use]
    pub fn of_our_own(version: Version) -> Self {
        let mut header = Self::EMPTY;
        match version {
            Version::V1 => header.put(b"PROXY UNKNOWN\r\n"),
            Version::V2 => {
                header.put(&SIGNATURE);
                header.put(&[COMMAND_LOCAL, UNSPECIFIED, 0, 0]);
            }
        }
        header
    }

    /// Its bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    fn line(route: Route) -> Self {
        let mut header = Self::EMPTY;
        let (from, to) = (route.client.port(), route.local.port());
        let written = match canonical(route) {
            (IpAddr::V4(client), IpAddr::V4(local)) => {
                write!(header, "PROXY TCP4 {client} {local} {from} {to}\r\n")
            }
            (client, local) => {
                let (client, local) = (in_v6(client), in_v6(local));
                write!(header, "PROXY TCP6 {client} {local} {from} {to}\r\n")
            }
        };
        debug_assert!(written.is_ok(), "a line is shorter than a header may be");
        header
    }

    fn begin(route: Route, families: [u8; 2]) -> Self {
        let mut header = Self::EMPTY;
        header.put(&SIGNATURE);
        match canonical(route) {
            (IpAddr::V4(client), IpAddr::V4(local)) => {
                header.put(&[COMMAND_PROXY, families[0], 0, 0]);
                header.put(&client.octets());
                header.put(&local.octets());
            }
            (client, local) => {
                header.put(&[COMMAND_PROXY, families[1], 0, 0]);
                header.put(&in_v6(client).octets());
                header.put(&in_v6(local).octets());
            }
        }
        header.put(&route.client.port().to_be_bytes());
        header.put(&route.local.port().to_be_bytes());
        header
    }

    /// Adds the values, and the length and checksum of all.
    fn finish(&mut self, outbound: &Outbound, identity: Identity<'_>) {
        if let Some(name) = identity.authority {
            self.put_value(VALUE_AUTHORITY, &name[..name.len().min(255)]);
        }
        if let Some(id) = identity.unique_id {
            self.put_value(VALUE_UNIQUE_ID, &id.to_be_bytes());
        }
        if outbound.crc32c {
            self.put_value(VALUE_CRC32C, &[0; 4]);
        }
        let length = (self.len - FIXED_BYTES) as u16;
        self.bytes[LENGTH_AT..FIXED_BYTES].copy_from_slice(&length.to_be_bytes());
        if outbound.crc32c {
            let sum = Crc32c::of(self.as_bytes());
            self.bytes[self.len - 4..self.len].copy_from_slice(&sum.to_be_bytes());
        }
    }

    fn put_value(&mut self, kind: u8, value: &[u8]) {
        let [high, low] = (value.len() as u16).to_be_bytes();
        self.put(&[kind, high, low]);
        self.put(value);
    }

    fn put(&mut self, bytes: &[u8]) {
        self.bytes[self.len..self.len + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
    }
}

impl Write for Header {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if text.len() > HEADER_BYTES_MAX - self.len {
            return Err(fmt::Error);
        }
        self.put(text.as_bytes());
        Ok(())
    }
}

fn canonical(route: Route) -> (IpAddr, IpAddr) {
    let ip = |address: SocketAddr| address.ip().to_canonical();
    (ip(route.client), ip(route.local))
}

fn in_v6(address: IpAddr) -> core::net::Ipv6Addr {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    }
}
