//! The flows that a policy was asked about lately.
//!
//! A policy that is to take its place is asked about the same ones first, off the data path, and
//! does not come near traffic if it fails.

use alloc::vec::Vec;
use core::net::SocketAddr;

use crate::boundary::ListenerId;
use crate::policy::Flow;
use crate::snapshot::Protocol;

/// What was known of a flow when it was decided on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlowFacts {
    /// What it speaks.
    pub protocol: Protocol,
    /// The client's address and port.
    pub client: SocketAddr,
    /// The listener's address and port.
    pub local: SocketAddr,
    /// The listener.
    pub listener: ListenerId,
    /// The hash of its application key.
    pub key: Option<u64>,
}

/// The last flows of one cluster in one worker.
#[derive(Debug)]
pub(crate) struct RecentFlows {
    ring: Vec<FlowFacts>,
    next: usize,
}

impl RecentFlows {
    /// How many are remembered.
    pub(crate) const MAX: usize = 64;

    pub(crate) fn new() -> Self {
        Self { ring: Vec::with_capacity(Self::MAX), next: 0 }
    }

    pub(crate) fn note(&mut self, flow: &Flow<'_>) {
        let &Flow { protocol, client, local, listener, key, .. } = flow;
        let facts = FlowFacts { protocol, client, local, listener, key };
        match self.ring.get_mut(self.next) {
            Some(oldest) => *oldest = facts,
            None => self.ring.push(facts),
        }
        self.next = (self.next + 1) % Self::MAX;
    }

    /// All that are remembered, in no order.
    pub(crate) fn all(&self) -> &[FlowFacts] {
        &self.ring
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::testing::flow;

    #[test]
    fn the_oldest_gives_its_place_to_the_newest() {
        let mut recent = RecentFlows::new();
        for port in 0..70 {
            let mut flow = flow(0, &[]);
            flow.client.set_port(port);
            recent.note(&flow);
        }
        let mut ports: Vec<_> = recent.all().iter().map(|facts| facts.client.port()).collect();
        ports.sort_unstable();
        assert_eq!(ports, (6..70).collect::<Vec<_>>());
    }
}
