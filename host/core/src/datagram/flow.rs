//! One flow of datagrams, in one cache line.
//!
//! What nearly every IPv4 flow has stands in [`Flow`]; what few have (long addresses, a method that
//! differs from the default, an application key) stands in [`Details`], which only those take.

use core::hash::Hasher;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use core::time::Duration;

use siphasher::sip::SipHasher13;

use crate::boundary::{ListenerId, PortId, Side};
use crate::pace::Pace;
use crate::policy::{Method, Source};
use crate::stats::CloseReason;
use crate::time::Instant;

/// No flow, no binding, no port, no details.
pub(super) const NONE: u32 = u32::MAX;

/// What makes datagrams belong to one flow: who sent them, and where to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlowKey {
    /// Where they came in.
    pub listener: ListenerId,
    /// Who sent them.
    pub client: SocketAddr,
    /// Which of our addresses they were sent to.
    pub local: IpAddr,
}

impl FlowKey {
    #[inline]
    pub(super) fn hash(&self, mut hasher: SipHasher13) -> u64 {
        match (self.client.ip(), self.local) {
            (IpAddr::V4(client), IpAddr::V4(local)) => {
                hasher.write_u64(u64::from(client.to_bits()) << 32 | u64::from(local.to_bits()));
            }
            (client, local) => {
                hasher.write_u128(long(client).to_bits());
                hasher.write_u128(long(local).to_bits());
            }
        }
        hasher.write_u32(u32::from(self.client.port()) << 16 | u32::from(self.listener.0));
        hasher.finish()
    }
}

/// What makes a reply belong to a flow: the port it came to, and the endpoint it came from.
#[inline]
pub(super) fn hash_reply(port: PortId, endpoint: SocketAddr, mut hasher: SipHasher13) -> u64 {
    match endpoint.ip() {
        IpAddr::V4(v4) => hasher.write_u32(v4.to_bits()),
        IpAddr::V6(v6) => hasher.write_u128(v6.to_bits()),
    }
    hasher.write_u64(u64::from(port.0) << 16 | u64::from(endpoint.port()));
    hasher.finish()
}

fn long(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    }
}

/// A time to within 16 ms in four bytes. Differences are right up to a year.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Coarse(u32);

impl Coarse {
    const SHIFT: u32 = 4;

    /// The first such time that is not before `now`.
    #[inline]
    pub(super) const fn of(now: Instant) -> Self {
        Self(((now.as_millis() >> Self::SHIFT) + 1) as u32)
    }

    /// The first such time that is not before `then`, which was read from one before.
    const fn again(then: Instant) -> Self {
        Self(then.as_nanos().div_ceil(1_000_000 << Self::SHIFT) as u32)
    }

    /// This time on the full clock, `now` being no earlier and not a year later.
    pub(super) fn to_instant(self, now: Instant) -> Instant {
        let behind = Self::of(now).0.wrapping_sub(self.0);
        Instant::from_millis(((now.as_millis() >> Self::SHIFT) + 1) << Self::SHIFT)
            - Duration::from_millis(u64::from(behind) << Self::SHIFT)
    }
}

/// One flow. Which of its numbers mean something is for its table to know.
#[derive(Debug, Clone, Copy)]
#[repr(align(64))]
pub struct Flow {
    client: u32,
    local: u32,
    client_port: u16,
    pub(super) listener: ListenerId,
    /// Its endpoint, or `NONE` if it is denied.
    pub(super) binding: u32,
    /// Its upstream port, or `NONE`.
    pub(super) port: PortId,
    /// Its [`Details`], if it has any; in a free entry, the next free one.
    pub(super) details: u32,
    pub(super) last_active: Coarse,
    pub(super) started: Coarse,
    /// By the side they went to. Until the first reply, what would be the bytes downstream are the
    /// flow's neighbours among those without a reply.
    bytes: [u64; 2],
    /// By the side they went to.
    pub(super) datagrams: [u32; 2],
    pub(super) policy_generation: u32,
    /// Tells the flows of one entry apart.
    pub(super) stamp: u16,
    pub(super) source: Source,
    flags: u8,
}

const _: () = assert!(size_of::<Flow>() == 64, "a flow is one cache line");

/// The addresses are in the details.
const LONG: u8 = 1;
/// It is in use.
const LIVE: u8 = 1 << 1;
/// The client's next datagram does not belong to it.
const HIDDEN: u8 = 1 << 2;
/// The client sent again before the first reply.
const REFERENCED: u8 = 1 << 3;
/// The policy denied it.
const DENIED: u8 = 1 << 4;
/// The policy would have it reset, if datagrams could be.
const RESET: u8 = 1 << 5;
/// The first reply makes its endpoint that of its key.
const KEEPS: u8 = 1 << 6;

impl Flow {
    const FREE: Self = Self {
        client: 0,
        local: 0,
        client_port: 0,
        listener: ListenerId(0),
        binding: NONE,
        port: PortId(NONE),
        details: NONE,
        last_active: Coarse(0),
        started: Coarse(0),
        bytes: [0; 2],
        datagrams: [0; 2],
        policy_generation: 0,
        stamp: 0,
        source: Source::Native,
        flags: 0,
    };

    /// An entry without a flow, and the next such.
    pub(super) const fn free(next: u32) -> Self {
        Self { details: next, ..Self::FREE }
    }

    /// A flow without an endpoint. The client's next datagram does not belong to one that is
    /// hidden.
    #[must_use]
    pub fn new(now: Instant, key: &FlowKey, is_hidden: bool) -> Self {
        let (client, local, long) = match (key.client.ip(), key.local) {
            (IpAddr::V4(client), IpAddr::V4(local)) => (client.to_bits(), local.to_bits(), 0),
            _ => (0, 0, LONG),
        };
        Self {
            client,
            local,
            client_port: key.client.port(),
            listener: key.listener,
            last_active: Coarse::of(now),
            started: Coarse::of(now),
            flags: LIVE | long | if is_hidden { HIDDEN } else { 0 },
            ..Self::FREE
        }
    }

    #[inline]
    pub(super) fn is_live(&self) -> bool {
        self.flags & LIVE != 0
    }

    #[inline]
    pub(super) fn is_hidden(&self) -> bool {
        self.flags & HIDDEN != 0
    }

    pub(super) fn is_referenced(&self) -> bool {
        self.flags & REFERENCED != 0
    }

    pub(super) fn set_referenced(&mut self, referenced: bool) {
        self.flags = self.flags & !REFERENCED | if referenced { REFERENCED } else { 0 };
    }

    /// Whether its endpoint is kept for its key with the first reply.
    pub(super) fn keeps_when_answered(&self) -> bool {
        self.flags & KEEPS != 0
    }

    pub(super) fn set_keeps_when_answered(&mut self, keeps: bool) {
        self.flags = self.flags & !KEEPS | if keeps { KEEPS } else { 0 };
    }

    /// The policy has denied it, with a reset or without a word.
    pub(super) fn set_denied(&mut self, reset: bool) {
        self.flags |= DENIED | if reset { RESET } else { 0 };
    }

    /// How it was denied, if it was.
    pub(super) fn denial(&self) -> Option<CloseReason> {
        match self.flags & (DENIED | RESET) {
            0 => None,
            DENIED => Some(CloseReason::DeniedDrop),
            _ => Some(CloseReason::DeniedReset),
        }
    }

    /// Whether its endpoint has replied.
    #[inline]
    pub(super) fn is_confirmed(&self) -> bool {
        self.datagrams[Side::Downstream.index()] > 0
    }

    /// Sets it back in time: it began, and something of it moved last, so long ago.
    pub(super) fn set_ages(&mut self, now: Instant, age: Duration, silent: Duration) {
        self.started = Coarse::again(now - age);
        self.last_active = Coarse::again(now - silent);
    }

    /// What it has sent so far, elsewhere. One whose endpoint has replied is no longer among those
    /// without a reply.
    pub(super) fn set_counts(&mut self, bytes: [u64; 2], datagrams: [u32; 2]) {
        self.datagrams = datagrams;
        let up = Side::Upstream.index();
        self.bytes[up] = bytes[up];
        if self.is_confirmed() {
            self.bytes = bytes;
        }
    }

    /// Bytes, by the side they went to.
    pub(super) fn bytes(&self) -> [u64; 2] {
        let [down, up] = self.bytes;
        if self.is_confirmed() { [down, up] } else { [0, up] }
    }

    /// The flows before and after it among those without a reply.
    pub(super) fn neighbours(&self) -> [u32; 2] {
        let both = self.bytes[Side::Downstream.index()];
        [both as u32, (both >> 32) as u32]
    }

    pub(super) fn set_neighbours(&mut self, [before, after]: [u32; 2]) {
        self.bytes[Side::Downstream.index()] = u64::from(after) << 32 | u64::from(before);
    }

    /// Whether it has this key, as far as the key is not in the details.
    #[inline]
    pub(super) fn has_short(&self, key: &FlowKey) -> bool {
        let addresses = match (key.client.ip(), key.local) {
            (IpAddr::V4(client), IpAddr::V4(local)) => {
                self.flags & LONG == 0
                    && self.client == client.to_bits()
                    && self.local == local.to_bits()
            }
            _ => self.flags & LONG != 0,
        };
        addresses && self.client_port == key.client.port() && self.listener == key.listener
    }

    #[inline]
    pub(super) fn is_long(&self) -> bool {
        self.flags & LONG != 0
    }

    /// Its key; `details` are its own.
    #[inline]
    pub(super) fn key(&self, details: Option<&Details>) -> FlowKey {
        let (client, local) = match details.and_then(|details| details.addresses) {
            Some(Addresses { client, local }) => (client, local),
            None => {
                let client = Ipv4Addr::from_bits(self.client);
                let local = Ipv4Addr::from_bits(self.local);
                ((client, self.client_port).into(), local.into())
            }
        };
        FlowKey { listener: self.listener, client, local }
    }

    /// Counts datagrams that go to `side`.
    #[inline]
    pub(super) fn on_forwarded(&mut self, now: Instant, side: Side, bytes: u32, datagrams: u32) {
        self.last_active = Coarse::of(now);
        let is_first_reply = side == Side::Downstream && !self.is_confirmed();
        let side = side.index();
        if is_first_reply {
            self.bytes[side] = 0;
        }
        self.bytes[side] += u64::from(bytes);
        self.datagrams[side] = self.datagrams[side].saturating_add(datagrams);
    }
}

/// What few flows have.
#[derive(Debug, Clone)]
pub struct Details {
    /// Addresses that do not fit into the flow.
    addresses: Option<Addresses>,
    pub(super) method: Method,
    /// The hashes of its application keys: the one it came with, and the one its endpoint gave it.
    pub(super) keys: [Option<u64>; 2],
    /// What limits its speed, by the side its datagrams go to.
    pub(super) paces: [Option<Pace>; 2],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Addresses {
    client: SocketAddr,
    local: IpAddr,
}

impl Details {
    /// The details of a flow, if it needs any.
    pub(super) fn of(
        now: Instant,
        key: &FlowKey,
        method: Method,
        application_key: Option<u64>,
    ) -> Option<Self> {
        let short = matches!((key.client.ip(), key.local), (IpAddr::V4(_), IpAddr::V4(_)));
        if short && method == Method::DEFAULT && application_key.is_none() {
            return None;
        }
        let pace = method.throttle_kib_s.map(|kib_s| Pace::new(kib_s, now));
        Some(Self {
            addresses: (!short).then_some(Addresses { client: key.client, local: key.local }),
            method,
            keys: [application_key, None],
            paces: [pace; 2],
        })
    }

    /// Whether these are the long addresses of the key. What a link-local client calls its link is
    /// no part of who it is.
    pub(super) fn has(&self, key: &FlowKey) -> bool {
        let unscoped = |address: SocketAddr| match address {
            SocketAddr::V6(v6) => SocketAddr::V6(SocketAddrV6::new(*v6.ip(), v6.port(), 0, 0)),
            v4 @ SocketAddr::V4(_) => v4,
        };
        self.addresses.is_some_and(|addresses| {
            unscoped(addresses.client) == unscoped(key.client) && addresses.local == key.local
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(client: &str, local: &str) -> FlowKey {
        FlowKey {
            listener: ListenerId(3),
            client: client.parse().unwrap(),
            local: local.parse().unwrap(),
        }
    }

    #[test]
    fn a_flow_gives_back_the_key_it_was_made_with() {
        let now = Instant::from_millis(1_000);
        for key in [
            key("192.0.2.1:53", "198.51.100.2"),
            key("[2001:db8::1]:53", "2001:db8::2"),
            key("[fe80::1%7]:53", "fe80::2"),
        ] {
            let details = Details::of(now, &key, Method::DEFAULT, None);
            let flow = Flow::new(now, &key, false);
            assert_eq!(flow.is_long(), details.is_some());
            assert_eq!(flow.key(details.as_ref()), key);
            assert!(flow.has_short(&key));
            assert!(details.is_none_or(|details| details.has(&key)));
        }
    }

    #[test]
    fn each_part_of_the_key_counts() {
        let hasher = SipHasher13::new_with_keys(1, 2);
        let flow = Flow::new(Instant::ZERO, &key("192.0.2.1:53", "198.51.100.2"), false);
        let mut hashes = std::vec![key("192.0.2.1:53", "198.51.100.2").hash(hasher)];
        for other in [
            key("192.0.2.1:54", "198.51.100.2"),
            key("192.0.2.2:53", "198.51.100.2"),
            key("192.0.2.1:53", "198.51.100.3"),
            FlowKey { listener: ListenerId(4), ..key("192.0.2.1:53", "198.51.100.2") },
            key("[::ffff:192.0.2.1]:53", "::ffff:198.51.100.2"),
        ] {
            assert!(!flow.has_short(&other), "{other:?}");
            hashes.push(other.hash(hasher));
        }
        hashes.sort_unstable();
        hashes.dedup();
        assert_eq!(hashes.len(), 6);
    }

    #[test]
    fn a_coarse_time_is_never_early_and_at_most_a_tick_late() {
        for millis in [0, 1, 15, 16, 17, 1_000, 68_719_476_736, 70_000_000_000] {
            let then = Instant::from_millis(millis);
            for later in [0, 3, 16, 60_000, 86_400_000] {
                let now = Instant::from_millis(millis + later);
                let read = Coarse::of(then).to_instant(now);
                assert!(read >= then && read.since(then) <= Duration::from_millis(16), "{millis}");
            }
        }
    }
}
