//! The header that tells an endpoint who its client is.
//!
//! PROXY protocol, version 2 (<https://www.haproxy.org/download/2.9/doc/proxy-protocol.txt>,
//! section 2.2): twelve bytes of signature, the command PROXY over a stream of one address family,
//! the length of what follows, and both addresses and ports in network order.

use std::net::{IpAddr, SocketAddr};

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
const VERSION_2_PROXY: u8 = 0x21;
const TCP_OVER_V4: u8 = 0x11;
const TCP_OVER_V6: u8 = 0x21;

/// A header for a connection from `client` to `local`. If only one of them is IPv4, it is mapped.
pub(crate) fn header(client: SocketAddr, local: SocketAddr) -> Vec<u8> {
    let mut header = SIGNATURE.to_vec();
    match (client.ip().to_canonical(), local.ip().to_canonical()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            header.extend([VERSION_2_PROXY, TCP_OVER_V4, 0, 12]);
            header.extend(from.octets());
            header.extend(to.octets());
        }
        (from, to) => {
            header.extend([VERSION_2_PROXY, TCP_OVER_V6, 0, 36]);
            header.extend(mapped(from));
            header.extend(mapped(to));
        }
    }
    header.extend(client.port().to_be_bytes());
    header.extend(local.port().to_be_bytes());
    header
}

fn mapped(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(client: &str, local: &str) -> Vec<u8> {
        header(client.parse().expect("an address"), local.parse().expect("an address"))
    }

    #[test]
    fn a_connection_over_ipv4_is_28_bytes() {
        let header = of("192.0.2.1:258", "198.51.100.2:80");
        let expected: &[u8] = &[192, 0, 2, 1, 198, 51, 100, 2, 1, 2, 0, 80];
        assert_eq!(&header[..12], b"\r\n\r\n\0\r\nQUIT\n");
        assert_eq!(&header[12..16], &[0x21, 0x11, 0, 12]);
        assert_eq!(&header[16..], expected);
    }

    #[test]
    fn a_connection_over_ipv6_is_52_bytes() {
        let header = of("[2001:db8::1]:1", "[2001:db8::2]:2");
        assert_eq!(header.len(), 52);
        assert_eq!(&header[12..16], &[0x21, 0x21, 0, 36]);
        assert_eq!(&header[48..], &[0, 1, 0, 2]);
    }

    #[test]
    fn a_mapped_address_is_announced_as_what_it_is() {
        let mapped = of("[::ffff:192.0.2.1]:258", "[::ffff:198.51.100.2]:80");
        assert_eq!(mapped, of("192.0.2.1:258", "198.51.100.2:80"));
    }
}
