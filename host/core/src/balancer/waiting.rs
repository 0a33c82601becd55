//! Flows for which no endpoint has a place: turned away, or let wait until one has.

use alloc::vec::Drain;

use crate::Balancer;
use crate::allocation::{Denied, Request};
use crate::boundary::{ListenerId, Ops};
use crate::queue::Next;
use crate::relay::Step;
use crate::session::State;
use crate::snapshot::ClusterId;
use crate::stats::CloseReason;
use crate::time::Instant;

impl Balancer {
    /// The workers that are to be woken, because a flow of theirs is the next to have a place.
    pub fn take_calls(&mut self) -> Drain<'_, usize> {
        self.allocator.waiting.take_calls()
    }

    /// Whether a flow that got no endpoint may wait for one. Takes its room in the queue if so.
    pub(super) fn may_wait(&self, listener: ListenerId, denied: &Denied) -> bool {
        let cluster = self.snapshot.listener(listener).cluster;
        denied.reason == CloseReason::EndpointsFull
            && self.snapshot.clusters[cluster.index()].queue.try_enter()
    }

    /// A session that got no endpoint waits for one, or ends.
    pub(super) fn turn_away(&mut self, now: Instant, slot: u32, denied: Denied, ops: &mut Ops) {
        if self.may_wait(self.sessions[slot].listener, &denied) {
            self.wait(now, slot, ops);
            return;
        }
        self.sessions[slot].denied = Some(denied);
        self.close(now, slot, denied.reason, ops);
    }

    /// Lets a session wait that has been given room.
    pub(super) fn wait(&mut self, now: Instant, slot: u32, ops: &mut Ops) {
        let session = &mut self.sessions[slot];
        let cluster = self.snapshot.listener(session.listener).cluster;
        let queue = &self.snapshot.clusters[cluster.index()].queue;
        let until = now + queue.timeout;
        session.wait(until, &mut Step { now, slot, chains: &mut self.chains, ops });
        self.allocator.waiting.join(now, (cluster, queue), slot);
        self.stats.cluster(cluster).queued_total += 1;
        self.set_timer(slot);
    }

    /// A session that may be waiting does so no longer.
    pub(super) fn stop_waiting(&mut self, now: Instant, slot: u32) {
        let session = &mut self.sessions[slot];
        if !matches!(session.state, State::Waiting { .. }) {
            return;
        }
        let cluster = self.allocator.waiting.leave(&self.snapshot, slot);
        self.stats.cluster(cluster).queued_time += session.on_waited(now);
    }

    /// Gives places that have become free to those who wait, in their order. Bounded work; what is
    /// left is due at once.
    pub(super) fn serve_waiting(&mut self, now: Instant, ops: &mut Ops) {
        self.allocator.waiting.handle_timeout(now, &self.snapshot);
        let mut left = Self::STEPS_PER_TURN;
        while left > 0 && ops.room() >= Self::OPS_PER_COMPLETION_MAX {
            let Some(cluster) = self.allocator.waiting.next_due() else { return };
            self.serve_cluster(now, cluster, &mut left, ops);
        }
    }

    fn serve_cluster(&mut self, now: Instant, cluster: ClusterId, left: &mut u32, ops: &mut Ops) {
        while *left > 0 && ops.room() >= Self::OPS_PER_COMPLETION_MAX {
            let Next::Own(slot) = self.allocator.waiting.next(cluster, &self.snapshot) else {
                return;
            };
            *left -= 1;
            if !self.serve_one(now, slot, ops) {
                return;
            }
        }
        self.allocator.waiting.look_at(cluster);
    }

    /// Whether a session waits in the line of a cluster that serves its listener no longer.
    pub(super) fn is_in_old_line(&self, slot: u32) -> bool {
        let session = &self.sessions[slot];
        let wanted = self.snapshot.listener(session.listener).cluster;
        matches!(session.state, State::Waiting { .. })
            && self.allocator.waiting.cluster_of(slot) != wanted
    }

    /// Asks the cluster that serves its listener now, in whose line it is the last if it has to wait.
    pub(super) fn change_lines(&mut self, now: Instant, slot: u32, ops: &mut Ops) {
        self.stop_waiting(now, slot);
        let request = self.sessions[slot].request(now, &self.snapshot);
        match self.allocator.allocate(&request, &self.snapshot, &mut self.stats) {
            Ok(allocation) => self.bind(now, slot, allocation, ops),
            Err(denied) => self.turn_away(now, slot, denied, ops),
        }
    }

    /// Decides on the flow whose turn it is. Tells whether it waits there no longer.
    fn serve_one(&mut self, now: Instant, slot: u32, ops: &mut Ops) -> bool {
        if self.is_in_old_line(slot) {
            self.change_lines(now, slot, ops);
            return true;
        }
        let session = &self.sessions[slot];
        let request = Request { in_turn: true, ..session.request(now, &self.snapshot) };
        match self.allocator.allocate(&request, &self.snapshot, &mut self.stats) {
            // A retry of another worker was faster.
            Err(denied) if denied.reason == CloseReason::EndpointsFull => return false,
            Ok(allocation) => {
                self.stop_waiting(now, slot);
                self.bind(now, slot, allocation, ops);
            }
            Err(denied) => {
                self.stop_waiting(now, slot);
                self.sessions[slot].denied = Some(denied);
                self.close(now, slot, denied.reason, ops);
            }
        }
        true
    }
}
