//! Endpoints that have come back, or are new, and whose share grows until it is whole.

use pointsman_core::{Endpoint, Instant};

use super::{ClusterState, Watched, World};
use crate::plan::weights;

impl World {
    /// Lets shares grow that are due to; tells whether there is another world to be published.
    pub fn grow(&mut self, now: Instant) -> bool {
        let grown = self.clusters.iter_mut().map(|cluster| cluster.grow(now));
        grown.fold(false, |any, grown| any | grown)
    }
}

impl ClusterState {
    fn grow(&mut self, now: Instant) -> bool {
        let lasting = self.slow_start;
        let grown = self.endpoints.iter_mut().map(|one| one.growth.advance(now, lasting));
        grown.fold(false, |any, grown| any | grown)
    }

    /// An endpoint as policies see it. Where shares grow all weights are multiplied, so that they
    /// keep their proportions whether somebody grows or not. What was found, or set before shares
    /// grew, may weigh more than the most that can be multiplied.
    pub(super) fn candidate(&self, watched: &Watched) -> Endpoint {
        let tenths = if self.slow_start.is_zero() { 1 } else { watched.growth.tenths() };
        let weight = watched.endpoint.weight.min(*weights(self.slow_start).end()) * tenths;
        Endpoint { weight, ..watched.endpoint.clone() }
    }
}
