//! How flows of datagrams have fared with their endpoints.

use std::collections::BTreeMap;

use pointsman_core::boundary::PortId;
use pointsman_core::{CloseReason, EndpointId, EndpointState};

use super::model::{Flow, Model, Scene, Seen};

/// Flows that were served and flows that failed, by cluster and endpoint.
pub(super) type Fared = BTreeMap<(usize, EndpointId), [u64; 2]>;

impl Model {
    /// A connected port's endpoint is not there: its flow ends if it was never answered.
    pub(super) fn on_unreachable(&mut self, scene: &Scene<'_>, port: PortId, seen: &mut Seen) {
        let mut flows = self.workers[scene.worker].flows.iter();
        let flow = flows.find(|flow| flow.port == Some(port)).cloned();
        if let Some(flow) = &flow {
            self.note(flow, false);
        }
        if flow.is_some_and(|flow| !flow.is_confirmed()) {
            let (reason, ended) = self.end(scene, seen);
            assert_eq!((reason, ended.port), (CloseReason::ConnectFailed, Some(port)));
        }
    }

    /// A reply is about to be counted.
    pub(super) fn on_replied(&mut self, flow: &Flow) {
        if !flow.is_confirmed() {
            self.note(flow, true);
        }
    }

    /// A flow has ended in idleness.
    pub(super) fn on_idle(&mut self, scene: &Scene<'_>, flow: &Flow) {
        let replies_expected = scene.listener(flow.listener).datagrams.replies_expected;
        if replies_expected > 0 && !flow.is_confirmed() {
            self.note(flow, false);
        }
    }

    fn note(&mut self, flow: &Flow, well: bool) {
        if let Ok((endpoint, _)) = flow.target {
            self.fared.entry((flow.listener, endpoint)).or_default()[usize::from(!well)] += 1;
        }
    }

    /// What is counted of an endpoint is what its flows have seen.
    pub(super) fn assert_fared(&self, cluster: usize, state: &EndpointState) {
        let outcomes = state.endpoint.load.outcomes();
        let known = self.fared.get(&(cluster, state.endpoint.id)).copied().unwrap_or_default();
        assert_eq!([outcomes.successes, outcomes.failures], known, "how flows have fared");
        assert!(u64::from(outcomes.in_a_row) <= outcomes.failures);
    }
}
