//! Flows by a lookup table that stands beside the candidates: all of them decided on in advance.
//!
//! Who makes the table is no matter here: Maglev's construction, or a plugin. It is made once for
//! each list of endpoints, by the control thread, and all workers read the same one.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::net::IpAddr;

use twox_hash::XxHash64;

use super::{Decided, Decision, EndpointIndex, Flow, Policy, Source};
use crate::snapshot::Candidates;

/// For each hash value modulo its size, the endpoint that gets it.
#[derive(Debug)]
pub struct Table {
    slots: Box<[u32]>,
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
        is_valid.then_some(Self { slots, source: Source::Table })
    }

    /// The same table in place of one that could not be made.
    #[must_use]
    pub fn standing_in(self) -> Self {
        Self { source: Source::Fallback, ..self }
    }

    /// The endpoint for a hash.
    #[must_use]
    pub fn lookup(&self, hash: u64) -> EndpointIndex {
        EndpointIndex(self.slots[(hash % self.slots.len() as u64) as usize])
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
        let (source, size) = among
            .table
            .as_ref()
            .map_or((Source::Table, 1), |table| (table.source, table.slots.len() as u64));
        let at = |probe: u64| match &among.table {
            Some(table) => table.lookup(hash.wrapping_add(probe)),
            None => EndpointIndex((hash.wrapping_add(probe) % among.endpoints.len() as u64) as u32),
        };
        let untried = |index: &EndpointIndex| {
            among.get(*index).is_some_and(|endpoint| !flow.has_tried(endpoint.id))
        };
        let probes = if flow.attempt == 0 { 1 } else { size.max(among.endpoints.len() as u64) };
        let index = (0..probes).map(at).find(untried).unwrap_or_else(|| at(0));
        Decided { decision: Decision::forward(index), source }
    }

    fn is_stateless(&self) -> bool {
        true
    }
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
