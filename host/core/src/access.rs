//! Who may come to a listener: networks that are allowed, and networks that are denied.
//!
//! The most specific network decides, whatever the order in which they were written, as in `geo` of
//! NGINX. So a list can deny a network and allow one host in it, or the other way round. Whom no
//! network names may come, unless some are allowed: then nobody else is.
//!
//! Networks nest or are disjoint, so that they divide all addresses into ranges in which the answer
//! is the same, and the answer alternates from range to range. What is kept is where the ranges
//! begin: a lookup is one binary search, without an allocation, however many networks there are.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::net::IpAddr;

/// A network: all addresses with these leading bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Network {
    /// Its first address.
    pub address: IpAddr,
    /// Leading bits that its addresses have in common: 0 to 32, or to 128.
    pub length: u8,
}

impl Network {
    /// Makes one; `None` if it has more bits than an address, or the address has some beyond them.
    #[must_use]
    pub fn new(address: IpAddr, length: u8) -> Option<Self> {
        let bits = if address.is_ipv4() { 32 } else { 128 };
        let network = (length <= bits).then_some(Self { address, length })?;
        (bits_of(address) & network.host_bits() == 0).then_some(network)
    }

    /// The bits in which its addresses differ, all set.
    fn host_bits(self) -> u128 {
        let bits = if self.address.is_ipv4() { 32 } else { 128 };
        u128::MAX.checked_shl(bits - u32::from(self.length)).map_or(u128::MAX, |mask| !mask)
    }

    fn first(self) -> u128 {
        bits_of(self.address)
    }

    fn last(self) -> u128 {
        self.first() | self.host_bits()
    }
}

fn bits_of(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

/// Who may come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessList {
    v4: Ranges,
    v6: Ranges,
}

impl AccessList {
    /// Makes a list. A network that is in both is denied.
    #[must_use]
    pub fn new(allow: &[Network], deny: &[Network]) -> Self {
        let others = allow.is_empty();
        let of = |is_v4: bool| {
            let all = allow.iter().map(|network| (*network, true));
            let all = all.chain(deny.iter().map(|network| (*network, false)));
            let mut named: Vec<_> =
                all.filter(|(network, _)| network.address.is_ipv4() == is_v4).collect();
            // Larger before smaller, and what is denied last.
            named.sort_by_key(|(network, allowed)| (network.first(), network.length, !allowed));
            Ranges::new(&named, others)
        };
        Self { v4: of(true), v6: of(false) }
    }

    /// Whether this client may come. An IPv4 client has its IPv4 address here.
    #[must_use]
    pub fn allows(&self, client: IpAddr) -> bool {
        let ranges = if client.is_ipv4() { &self.v4 } else { &self.v6 };
        ranges.allows(bits_of(client))
    }
}

/// All addresses of a family, divided where the answer changes.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Ranges {
    /// The answer for the lowest address.
    first: bool,
    /// Where it changes, in ascending order.
    changes: Box<[u128]>,
}

impl Ranges {
    /// From networks in order of their first address, larger ones first.
    fn new(named: &[(Network, bool)], others: bool) -> Self {
        let mut builder = Builder { first: others, answer: others, changes: Vec::new() };
        // The networks around the place that has been reached, with their last addresses.
        let mut around: Vec<(u128, bool)> = Vec::new();
        for (network, allowed) in named {
            builder.leave(&mut around, others, Some(network.first()));
            builder.turn(network.first(), *allowed);
            around.push((network.last(), *allowed));
        }
        builder.leave(&mut around, others, None);
        Self { first: builder.first, changes: builder.changes.into() }
    }

    fn allows(&self, address: u128) -> bool {
        let changes = self.changes.partition_point(|change| *change <= address);
        self.first ^ (changes % 2 == 1)
    }
}

struct Builder {
    first: bool,
    answer: bool,
    changes: Vec<u128>,
}

impl Builder {
    /// Leaves the networks that end before a place, or all of them.
    fn leave(&mut self, around: &mut Vec<(u128, bool)>, others: bool, before: Option<u128>) {
        while let Some((last, _)) = around.last().copied()
            && before.is_none_or(|before| last < before)
        {
            around.pop();
            let answer = around.last().map_or(others, |(_, allowed)| *allowed);
            if let Some(next) = last.checked_add(1) {
                self.turn(next, answer);
            }
        }
    }

    /// From this place on the answer is another.
    fn turn(&mut self, at: u128, answer: bool) {
        if core::mem::replace(&mut self.answer, answer) == answer {
            return;
        }
        if at == 0 {
            self.first = answer;
        } else if self.changes.last() == Some(&at) {
            self.changes.pop();
        } else {
            self.changes.push(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    fn network(text: &str) -> Network {
        let (address, length) = text.split_once('/').unwrap();
        Network::new(address.parse().unwrap(), length.parse().unwrap()).unwrap()
    }

    fn list(allow: &[&str], deny: &[&str]) -> AccessList {
        let networks = |texts: &[&str]| texts.iter().map(|text| network(text)).collect::<Vec<_>>();
        AccessList::new(&networks(allow), &networks(deny))
    }

    fn allowed(list: &AccessList, clients: &[&str]) -> Vec<bool> {
        clients.iter().map(|client| list.allows(client.parse().unwrap())).collect()
    }

    #[test]
    fn nobody_is_denied_but_those_who_are_named() {
        let list = list(&[], &["10.0.0.0/8", "2001:db8::/32"]);
        let clients = ["9.255.255.255", "10.0.0.0", "10.255.255.255", "11.0.0.0"];
        assert_eq!(allowed(&list, &clients), [true, false, false, true]);
        let clients = ["2001:db7:ffff::", "2001:db8::", "2001:db8:ffff::1", "2001:db9::"];
        assert_eq!(allowed(&list, &clients), [true, false, false, true]);
    }

    #[test]
    fn where_some_are_allowed_nobody_else_is_in_either_family() {
        let list = list(&["192.0.2.0/24"], &[]);
        let clients = ["192.0.1.255", "192.0.2.0", "192.0.2.255", "192.0.3.0", "::1"];
        assert_eq!(allowed(&list, &clients), [false, true, true, false, false]);
    }

    #[test]
    fn the_most_specific_network_decides_in_both_directions() {
        let deep = list(&["10.1.0.0/16"], &["10.0.0.0/8", "10.1.2.0/24"]);
        let clients = ["10.0.0.1", "10.1.0.1", "10.1.2.3", "10.1.3.0", "10.2.0.0", "8.8.8.8"];
        assert_eq!(allowed(&deep, &clients), [false, true, false, true, false, false]);
        let same = list(&["10.0.0.0/8"], &["10.0.0.0/8"]);
        assert_eq!(allowed(&same, &["10.0.0.1"]), [false], "denied in doubt");
    }

    #[test]
    fn the_ends_of_all_addresses_are_no_exception() {
        let all = list(&[], &["0.0.0.0/0", "::/0"]);
        assert_eq!(allowed(&all, &["0.0.0.0", "255.255.255.255", "::", "ffff::ffff"]), [false; 4]);
        let last = list(&["0.0.0.0/0", "255.255.255.255/32", "0.0.0.0/32"], &[]);
        assert_eq!(allowed(&last, &["0.0.0.0", "255.255.255.255", "::"]), [true, true, false]);
    }

    #[test]
    fn a_network_is_named_by_its_first_address() {
        assert_eq!(Network::new("10.0.0.1".parse().unwrap(), 8), None);
        assert_eq!(Network::new("10.0.0.0".parse().unwrap(), 33), None);
        assert!(Network::new("::".parse().unwrap(), 0).is_some());
    }

    /// The answer of whoever looks at every network in turn.
    fn naive(named: &[(Network, bool)], others: bool, client: IpAddr) -> bool {
        let client = bits_of(client);
        let around = named.iter().filter(|(it, _)| (it.first()..=it.last()).contains(&client));
        around.max_by_key(|(it, allowed)| (it.length, !allowed)).map_or(others, |(_, it)| *it)
    }

    #[test]
    fn thousands_of_networks_answer_as_if_each_were_looked_at() {
        let mut state = 1_u64;
        let mut random = |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) % below
        };
        let mut named = vec![];
        while named.len() < 3_000 {
            let length = 8 + random(25) as u8;
            let mask = u32::MAX << (32 - u32::from(length));
            let bits = (10 << 24 | random(1 << 24) as u32) & mask;
            named.push((Network::new(IpAddr::V4(bits.into()), length).unwrap(), random(2) == 0));
        }
        let pick = |wanted: bool| -> Vec<Network> {
            let some = named.iter().filter(|(_, allowed)| *allowed == wanted);
            some.map(|(network, _)| *network).collect()
        };
        let list = AccessList::new(&pick(true), &pick(false));
        for _ in 0..3_000 {
            let client = IpAddr::V4((10 << 24 | random(1 << 24) as u32).into());
            assert_eq!(list.allows(client), naive(&named, false, client), "{client}");
        }
    }
}
