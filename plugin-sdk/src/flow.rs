//! The flow that a policy decides on.

use std::net::{Ipv6Addr, SocketAddr};

use crate::Rng;

/// A new flow, or one whose endpoint could not be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow {
    pub(crate) protocol: Protocol,
    pub(crate) client: Address,
    pub(crate) local: Address,
    pub(crate) key: u64,
    pub(crate) attempt: u32,
    pub(crate) avoid: u32,
    pub(crate) now_ms: u64,
    pub(crate) random: u64,
}

/// An address as the interface has it, IPv4 in its IPv6 form: most policies never read one, and then
/// nothing is converted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) high: u64,
    pub(crate) low: u64,
    pub(crate) port: u16,
}

impl Address {
    const fn new(address: SocketAddr) -> Self {
        let bits = match address {
            SocketAddr::V4(v4) => v4.ip().to_ipv6_mapped().to_bits(),
            SocketAddr::V6(v6) => v6.ip().to_bits(),
        };
        Self { high: (bits >> 64) as u64, low: bits as u64, port: address.port() }
    }

    const fn get(self) -> SocketAddr {
        let bits = (self.high as u128) << 64 | self.low as u128;
        SocketAddr::new(Ipv6Addr::from_bits(bits).to_canonical(), self.port)
    }
}

/// What the interface says where there is no endpoint to avoid.
const NONE: u32 = u32::MAX;

/// What a policy reads.
impl Flow {
    /// TCP or UDP.
    #[must_use]
    pub const fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// The client's address and port. An IPv4 client has an IPv4 address here, never a mapped one.
    #[must_use]
    pub const fn client(&self) -> SocketAddr {
        self.client.get()
    }

    /// The listener's address and port.
    #[must_use]
    pub const fn local(&self) -> SocketAddr {
        self.local.get()
    }

    /// The hash of the application key; `None` where the listener takes none.
    #[must_use]
    pub const fn key(&self) -> Option<u64> {
        match self.key {
            0 => None,
            key => Some(key),
        }
    }

    /// 0 for a new flow, then 1, 2, … for each time connecting failed.
    #[must_use]
    pub const fn attempt(&self) -> u32 {
        self.attempt
    }

    /// The index of the endpoint that failed last: whoever chooses it again wastes an attempt.
    #[must_use]
    pub const fn avoid(&self) -> Option<usize> {
        match self.avoid {
            NONE => None,
            index => Some(index as usize),
        }
    }

    /// Milliseconds on a monotonic clock.
    #[must_use]
    pub const fn now_ms(&self) -> u64 {
        self.now_ms
    }

    /// 64 fresh random bits.
    #[must_use]
    pub const fn random(&self) -> u64 {
        self.random
    }

    /// A generator seeded with [`random`](Self::random), for a policy that needs several numbers.
    /// Each call starts the same sequence.
    #[must_use]
    pub const fn rng(&self) -> Rng {
        Rng::new(self.random)
    }
}

/// What a test sets.
impl Flow {
    /// The first attempt of a TCP flow from this client to a listener on `[::]:0`, at time 0, with
    /// no random bit set.
    #[must_use]
    pub const fn new(client: SocketAddr) -> Self {
        Self {
            protocol: Protocol::Tcp,
            client: Address::new(client),
            local: Address { high: 0, low: 0, port: 0 },
            key: 0,
            attempt: 0,
            avoid: NONE,
            now_ms: 0,
            random: 0,
        }
    }

    /// The same flow over this protocol.
    #[must_use]
    pub const fn with_protocol(self, protocol: Protocol) -> Self {
        Self { protocol, ..self }
    }

    /// The same flow to this address of the listener.
    #[must_use]
    pub const fn with_local(self, local: SocketAddr) -> Self {
        Self { local: Address::new(local), ..self }
    }

    /// The same flow with this hash of an application key; 0 is none.
    #[must_use]
    pub const fn with_key(self, key: u64) -> Self {
        Self { key, ..self }
    }

    /// The same flow at this time.
    #[must_use]
    pub const fn with_now_ms(self, now_ms: u64) -> Self {
        Self { now_ms, ..self }
    }

    /// The same flow with these random bits.
    #[must_use]
    pub const fn with_random(self, random: u64) -> Self {
        Self { random, ..self }
    }

    /// The same flow after connecting to the endpoint at this index has failed.
    ///
    /// # Panics
    ///
    /// If the index is no index of the interface, which are 32 bits wide.
    #[must_use]
    pub const fn retried_after(self, endpoint: usize) -> Self {
        assert!(endpoint < NONE as usize, "an endpoint's index has 32 bits");
        #[expect(clippy::cast_possible_truncation, reason = "asserted above")]
        Self { attempt: self.attempt + 1, avoid: endpoint as u32, ..self }
    }
}

/// The protocol of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// A TCP connection.
    Tcp,
    /// The datagrams between a client's port and the listener's.
    Udp,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_flow_avoids_nothing_and_a_retried_one_its_last_endpoint() {
        let flow = Flow::new("192.0.2.1:5000".parse().unwrap());
        assert_eq!((flow.attempt(), flow.avoid()), (0, None));
        let flow = flow.retried_after(2).retried_after(0);
        assert_eq!((flow.attempt(), flow.avoid()), (2, Some(0)));
    }

    #[test]
    fn addresses_are_read_as_they_were_given_and_never_mapped() {
        for address in ["192.0.2.1:5000", "[2001:db8::7]:443", "[::]:0"] {
            let address = address.parse().unwrap();
            assert_eq!(Flow::new(address).client(), address);
            assert_eq!(Flow::new(address).with_local(address).local(), address);
        }
        let mapped = Flow::new("[::ffff:192.0.2.1]:5000".parse().unwrap());
        assert_eq!(mapped.client(), "192.0.2.1:5000".parse().unwrap());
    }

    #[test]
    fn a_key_of_zero_is_no_key() {
        let flow = Flow::new("192.0.2.1:5000".parse().unwrap());
        assert_eq!(flow.key(), None);
        assert_eq!(flow.with_key(9).key(), Some(9));
    }
}
