//! How flows have fared with their endpoints, and which endpoints they may be taken from.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use pointsman_core::{CloseReason, Endpoint, Instant, Snapshot};

/// What all flows together have seen of endpoints.
#[derive(Debug, Default)]
pub(crate) struct Fared {
    /// Flows that were served and flows that failed.
    counts: BTreeMap<SocketAddr, [u64; 2]>,
    /// When an endpoint could last not serve even the flows it had.
    lost: BTreeMap<SocketAddr, Instant>,
    /// When an endpoint could last no longer serve, of those that cannot.
    went: BTreeMap<SocketAddr, Instant>,
    known: Vec<SocketAddr>,
}

impl Fared {
    pub(crate) fn note(&mut self, endpoint: Option<SocketAddr>, well: bool) {
        let endpoint = endpoint.expect("a flow fares with an endpoint");
        self.counts.entry(endpoint).or_default()[usize::from(!well)] += 1;
    }

    /// A flow that had no byte of its endpoint has ended.
    pub(crate) fn on_unanswered(&mut self, endpoint: Option<SocketAddr>, reason: CloseReason) {
        match reason {
            CloseReason::Finished => self.note(endpoint, true),
            CloseReason::UpstreamReset => self.note(endpoint, false),
            _ => {}
        }
    }

    /// There is another world.
    pub(crate) fn on_world(&mut self, now: Instant, snapshot: &Snapshot) {
        let clusters = snapshot.clusters.iter();
        let serving = clusters.flat_map(|cluster| {
            let serves = |endpoint: &Endpoint| cluster.candidates.find(endpoint.id).is_some();
            let may_stay = cluster.endpoints.iter().filter(move |it| it.up || serves(&it.endpoint));
            may_stay.map(|state| state.endpoint.address)
        });
        let serving: Vec<SocketAddr> = serving.collect();
        let all = snapshot.clusters.iter().flat_map(|cluster| &cluster.endpoints);
        self.known.extend(all.map(|state| state.endpoint.address));
        let gone = self.known.iter().filter(|address| !serving.contains(address));
        self.lost.extend(gone.clone().map(|address| (*address, now)));
        gone.for_each(|address| _ = self.went.entry(*address).or_insert(now));
        self.went.retain(|address, _| !serving.contains(address));
    }

    /// Whether an endpoint can no longer serve a flow that was connected at this time.
    pub(crate) fn has_left(&self, endpoint: Option<SocketAddr>, connected: Instant) -> bool {
        let went = endpoint.and_then(|endpoint| self.went.get(&endpoint));
        went.is_some_and(|at| *at > connected)
    }

    /// Only an endpoint that went down or away takes its flows with it: one that is ejected, or
    /// drains, keeps them.
    pub(crate) fn assert_was_lost(&self, endpoint: Option<SocketAddr>, since: Instant) {
        let lost = endpoint.and_then(|endpoint| self.lost.get(&endpoint));
        assert!(lost.is_some_and(|at| *at >= since), "{endpoint:?} kept its flows");
    }

    /// What is counted of an endpoint is what its flows have seen.
    pub(crate) fn assert_counted(&self, endpoint: &Endpoint) {
        let outcomes = endpoint.load.outcomes();
        let known = self.counts.get(&endpoint.address).copied().unwrap_or_default();
        assert_eq!([outcomes.successes, outcomes.failures], known, "how flows have fared");
    }
}
