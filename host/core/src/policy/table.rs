//! Flows by a lookup table that stands beside the candidates: all of them decided on in advance.
//!
//! Who makes the table is no matter here: Maglev's construction, or a plugin. It is made once for
//! each list of endpoints, by the control thread, and all workers read the same one.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::net::IpAddr;

use twox_hash::XxHash64;

use super::{Choice, Decided, Decision, EndpointIndex, Flow, Policy, Source};
use crate::snapshot::{Candidates, Endpoint};

/// For each hash value modulo its size, the endpoint that gets it.
#[derive(Debug)]
pub struct Table {
    slots: Box<[u32]>,
    /// 2⁶⁴ divided by the number of slots, so that no hash has to be divided.
    reciprocal: u64,
    source: Source,
}

impl Table {
    /// The most entries that a table may have: 4 MiB, which is what a cache can hold of it.
    pub const SIZE_MAX: usize = 1 << 20;

    /// A table over this many endpoints; `None` if it has no entry, too many, or one that names no
    /// endpoint.
    #[must_use]
    pub fn new(slots: Box<[u32]>, endpoints: usize) -> Option<Self> {
        let is_sized = (1..=Self::SIZE_MAX).contains(&slots.len());
        let is_valid = is_sized && slots.iter().all(|&slot| (slot as usize) < endpoints);
        is_valid.then(|| Self {
            reciprocal: u64::MAX / slots.len() as u64,
            slots,
            source: Source::Table,
        })
    }

    /// The same table in place of one that could not be made.
    #[must_use]
    pub fn standing_in(self) -> Self {
        Self { source: Source::Fallback, ..self }
    }

    /// The endpoint for a hash: that of the slot at the hash modulo the number of slots.
    #[must_use]
    pub fn lookup(&self, hash: u64) -> EndpointIndex {
        EndpointIndex(self.slots[self.place_of(hash)])
    }

    /// The remainder by Barrett's reduction ("Implementing the Rivest Shamir and Adleman public key
    /// encryption algorithm", 1986): rounded down, the reciprocal gives the quotient or one less.
    fn place_of(&self, hash: u64) -> usize {
        let size = self.slots.len() as u64;
        let quotient = (u128::from(hash) * u128::from(self.reciprocal)) >> u64::BITS;
        let rest = hash - quotient as u64 * size;
        (if rest < size { rest } else { rest - size }) as usize
    }

    /// The entries.
    #[must_use]
    pub fn slots(&self) -> &[u32] {
        &self.slots
    }
}

/// Endpoints by a hash of the application key, or of the client's address: every worker and every
/// balancer with the same endpoints sends a client to the same one.
#[derive(Debug, Default)]
pub struct TablePolicy;

impl TablePolicy {
    /// A policy that reads the table of the candidates it is asked to choose among.
    #[must_use]
    pub fn new() -> Self {
        Self
    }
}

impl Policy for TablePolicy {
    fn decide(&mut self, flow: &Flow<'_>, among: &Arc<Candidates>) -> Decided {
        let hash = flow.hash();
        let source = among.table.as_ref().map_or(Source::Table, |table| table.source);
        let mut index = at(among, hash);
        if flow.attempt > 0 || among.get(index).is_some_and(Endpoint::is_full) {
            index = next_best(flow, among, hash).unwrap_or(index);
        }
        Decided { decision: Decision::forward(index), source }
    }

    fn is_stateless(&self) -> bool {
        true
    }
}

/// The endpoint for a hash; without a table, each gets an equal share.
fn at(among: &Candidates, hash: u64) -> EndpointIndex {
    match &among.table {
        Some(table) => table.lookup(hash),
        None => EndpointIndex((hash % among.endpoints.len() as u64) as u32),
    }
}

/// The first endpoint from the hash on that has a place for this flow, and has not failed it unless
/// all have.
fn next_best(flow: &Flow<'_>, among: &Candidates, hash: u64) -> Option<EndpointIndex> {
    let choice = Choice::of(flow, among);
    let slots = among.table.as_ref().map_or(0, |table| table.slots.len());
    let probes = slots.max(among.endpoints.len()) as u64;
    let mut probed = (0..probes).map(|probe| at(among, hash.wrapping_add(probe)));
    probed.find(|index| among.get(*index).is_some_and(|it| choice.holds(flow, it)))
}

/// The hash of a client's address, the same in every worker and every balancer.
pub(super) fn client_hash(client: IpAddr) -> u64 {
    match client {
        IpAddr::V4(v4) => XxHash64::oneshot(0, &v4.octets()),
        IpAddr::V6(v6) => XxHash64::oneshot(0, &v6.octets()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::testing::{candidates, flow};
    use crate::policy::{Verdict, maglev};
    use crate::snapshot::EndpointId;

    #[test]
    fn a_client_is_sent_elsewhere_only_while_its_endpoint_fails() {
        let among = candidates(1, &[1, 1, 1]);
        let Decision { verdict: first, .. } = TablePolicy.decide(&flow(0, &[]), &among).decision;
        let Verdict::Forward(EndpointIndex(place)) = first else { panic!() };
        let tried = [EndpointId(place)];
        let second = TablePolicy.decide(&flow(1, &tried), &among);
        assert_ne!(second.decision.verdict, first);
        assert_eq!(second.source, Source::Table);
    }

    #[test]
    fn a_client_whose_endpoint_is_full_is_served_by_the_next() {
        let mut among = candidates(1, &[1, 1, 1]);
        let place = |among: &Arc<Candidates>| {
            let decided = TablePolicy.decide(&flow(0, &[]), among).decision;
            let Verdict::Forward(EndpointIndex(place)) = decided.verdict else { panic!() };
            place as usize
        };
        let own = place(&among);
        Arc::get_mut(&mut among).unwrap().endpoints[own].flows_max = 1;
        among.endpoints[own].load.on_flow_started();
        assert_ne!(place(&among), own);
        among.endpoints[own].load.on_flow_ended();
        assert_eq!(place(&among), own);
    }

    #[test]
    fn every_hash_finds_the_slot_at_its_remainder() {
        for size in [1, 2, 3, 7, 64, 1_000, 65_537, 1 << 20] {
            let slots: Box<[u32]> = (0..size).collect();
            let table = Table::new(slots, size as usize).unwrap();
            let size = u64::from(size);
            let edges = [0, 1, size - 1, size, size + 1, u64::MAX - size, u64::MAX - 1, u64::MAX];
            let multiples = (0..1_000).map(|n| (u64::MAX / 1_000 * n) / size * size);
            let around = multiples.flat_map(|it| [it.wrapping_sub(1), it, it + 1]);
            for hash in edges.into_iter().chain(around) {
                assert_eq!(table.lookup(hash), EndpointIndex((hash % size) as u32), "{hash}");
            }
        }
    }

    #[test]
    fn a_table_that_names_nobody_or_has_no_size_is_none() {
        assert!(Table::new([0, 1, 1].into(), 2).is_some());
        assert!(Table::new([0, 2].into(), 2).is_none());
        assert!(Table::new([].into(), 2).is_none());
        assert!(Table::new(alloc::vec![0; Table::SIZE_MAX + 1].into(), 2).is_none());
    }

    #[test]
    fn a_table_that_stands_in_says_so() {
        let mut among = candidates(1, &[1, 1]);
        let table = maglev::build(&[("10.0.0.1:80", 1), ("10.0.0.2:80", 1)], 13);
        Arc::get_mut(&mut among).unwrap().table = table.map(Table::standing_in);
        assert_eq!(TablePolicy.decide(&flow(0, &[]), &among).source, Source::Fallback);
    }
}
