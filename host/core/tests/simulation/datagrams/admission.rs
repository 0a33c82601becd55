//! Which new flows of datagrams there may be.

use pointsman_core::{CloseReason, Openness, ShedReason};

use super::model::{Flow, Model, Scene, Seen};
use super::oracle::Request;
use super::setup;

impl Model {
    pub(super) fn admit(
        &mut self,
        scene: &Scene<'_>,
        request: &Request,
        seen: &mut Seen,
    ) -> Result<(), ShedReason> {
        let id = request.listener;
        let client = request.client.ip();
        if scene.listener(id).access.is_some() && setup::is_denied(client) {
            return Err(ShedReason::NotAllowed);
        }
        if scene.snapshot.drain_until.is_some() || scene.listener(id).openness != Openness::Open {
            return Err(ShedReason::Draining);
        }
        if self.per_client[id].is_some_and(|max| self.active_of(id, client) >= max as usize) {
            return Err(ShedReason::ClientFlowsMax);
        }
        if !self.try_own_rate(scene.now, id, client) {
            return Err(ShedReason::ClientNewFlowRate);
        }
        if !self.try_rate(scene.now, id) {
            return Err(ShedReason::NewFlowRate);
        }
        let full = self.active(id) >= scene.listener(id).flows_max as usize;
        if full && !self.evict(scene, Some(id), seen) {
            return Err(ShedReason::FlowsMax);
        }
        let listeners = 0..scene.snapshot.listeners.len();
        let all: usize = listeners.map(|id| self.active(id)).sum();
        let full = all >= scene.listener(id).all_flows.max as usize;
        if full && !self.evict(scene, None, seen) {
            return Err(ShedReason::AllFlowsMax);
        }
        if self.is_full(scene) && !self.evict(scene, None, seen) {
            return Err(ShedReason::FlowTableFull);
        }
        Ok(())
    }

    /// Where every endpoint is full: takes the place of a flow without a reply at one of them, if one was
    /// given. Tells whether there is a place then: an endpoint may have more flows than it may.
    pub(super) fn evict_from_endpoint(
        &mut self,
        scene: &Scene<'_>,
        listener: usize,
        seen: &mut Seen,
    ) -> bool {
        let among = &scene.snapshot.clusters[listener].candidates;
        let helps = |flow: &Flow| {
            let id = flow.target.ok().map(|(id, _)| id);
            flow.listener == listener
                && !flow.is_confirmed()
                && id.is_some_and(|id| among.find(id).is_some())
        };
        let evicted =
            seen.records.front().is_some_and(|first| first.reason == CloseReason::Evicted);
        if !evicted {
            let weak = |flow: &Flow| helps(flow) && !flow.resent;
            let any_weak = self.workers[scene.worker].flows.iter().any(weak);
            assert!(!any_weak, "a flow could have given its place at an endpoint");
            return false;
        }
        let flow = self.end(scene, seen).1;
        assert!(helps(&flow), "it gave its place in vain: {flow:?}");
        !self.all_are_full(scene, listener)
    }
}

/// Whether not even a policy that needs no flow is followed.
pub(super) fn yields(reason: ShedReason) -> bool {
    let of_client = [ShedReason::ClientFlowsMax, ShedReason::ClientNewFlowRate];
    let of_all = [ShedReason::Draining, ShedReason::NotAllowed, ShedReason::EndpointsFull];
    of_client.contains(&reason) || of_all.contains(&reason)
}
