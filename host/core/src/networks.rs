//! Ranges of addresses, as they are written in configurations: a prefix and its length.

use core::net::{IpAddr, Ipv6Addr};

/// All addresses with the same leading bits. IPv4 addresses are those that are mapped into IPv6, so a
/// mapped address is where the address is that it stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    prefix: Ipv6Addr,
    /// Leading bits that count, of 128.
    length: u8,
}

impl Network {
    /// The addresses that have their first `length` bits in common with this one. None if it has not
    /// as many bits.
    #[must_use]
    pub fn new(address: IpAddr, length: u8) -> Option<Self> {
        let (bits, length) = match address {
            IpAddr::V4(v4) if length <= 32 => (v4.to_ipv6_mapped(), 96 + length),
            IpAddr::V6(v6) if length <= 128 => (v6, length),
            _ => return None,
        };
        Some(Self { prefix: leading(bits, length), length })
    }

    /// Whether an address is among them.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        let bits = match address {
            IpAddr::V4(v4) => v4.to_ipv6_mapped(),
            IpAddr::V6(v6) => v6,
        };
        leading(bits, self.length) == self.prefix
    }
}

fn leading(address: Ipv6Addr, length: u8) -> Ipv6Addr {
    let mask = u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
    Ipv6Addr::from_bits(address.to_bits() & mask)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contains(network: (&str, u8), address: &str) -> bool {
        let network = Network::new(network.0.parse().unwrap(), network.1).unwrap();
        network.contains(address.parse().unwrap())
    }

    #[test]
    fn a_network_has_the_addresses_with_its_leading_bits() {
        assert!(contains(("10.1.0.0", 16), "10.1.255.3"));
        assert!(!contains(("10.1.0.0", 16), "10.2.0.0"));
        assert!(contains(("10.1.2.3", 8), "10.9.9.9"), "other bits do not count");
        assert!(contains(("192.0.2.1", 32), "192.0.2.1"));
        assert!(!contains(("192.0.2.1", 32), "192.0.2.2"));
        assert!(contains(("2001:db8::", 32), "2001:db8:ffff::1"));
        assert!(!contains(("2001:db8::", 32), "2001:db9::1"));
    }

    #[test]
    fn a_mapped_address_is_the_one_it_stands_for() {
        assert!(contains(("10.0.0.0", 8), "::ffff:10.0.0.1"));
        assert!(contains(("::ffff:10.0.0.0", 104), "10.0.0.1"));
    }

    #[test]
    fn every_address_is_in_the_network_of_no_bits_of_its_family() {
        assert!(contains(("0.0.0.0", 0), "255.255.255.255"));
        assert!(!contains(("0.0.0.0", 0), "2001:db8::1"));
        assert!(contains(("::", 0), "2001:db8::1"));
    }

    #[test]
    fn a_prefix_is_no_longer_than_its_address() {
        assert!(Network::new("10.0.0.0".parse().unwrap(), 33).is_none());
        assert!(Network::new("::".parse().unwrap(), 129).is_none());
    }
}
