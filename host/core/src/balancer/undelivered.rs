//! Flows whose endpoint has gone before it had anything of them, and so may have another.
//!
//! A connection can come about in the backlog of a process that never takes it: one that is killed, or
//! has more clients than it can serve. What it was never given, another may be. A run of sends of which
//! the kernel took nothing comes back, and waits for the next endpoint with what comes meanwhile.

use super::{Balancer, Delivery};
use crate::boundary::{Buffer, Link, Op, Ops, SendEnd, Side};
use crate::relay::Step;
use crate::session::State;
use crate::stats::CloseReason;
use crate::time::Instant;

impl Balancer {
    /// A side has reset its connection. That ends the session, unless it was its endpoint, has had
    /// nothing of it, and is not the last that it may try.
    pub(super) fn on_reset(&mut self, now: Instant, link: Link, ops: &mut Ops) {
        let (slot, reason) = (link.slot(), reset_by(link.side()));
        if link.side() == Side::Downstream || !self.may_have_another(slot) {
            self.close(now, slot, reason, ops);
            return;
        }
        let mut step = Step { now, slot, chains: &mut self.chains, ops };
        self.sessions[slot].abandon(reason, &mut step);
        self.set_timer(slot);
    }

    /// A buffer is back that was to be sent.
    pub(super) fn on_returned(&mut self, link: Link, buffer: Buffer, ops: &mut Ops) {
        let session = &mut self.sessions[link.slot()];
        if matches!(session.state, State::Closing { .. }) {
            ops.push(Op::Recycle { buffer });
            return;
        }
        session.relay_from(link.side().other()).on_returned(buffer, &mut self.chains);
    }

    /// A run of sends is over that was not whole, or whose session is no longer established.
    pub(super) fn on_unfinished(
        &mut self,
        now: Instant,
        link: Link,
        delivery: Delivery,
        ops: &mut Ops,
    ) {
        let slot = link.slot();
        let session = &mut self.sessions[slot];
        if matches!(session.state, State::Closing { .. }) {
            return;
        }
        let is_abandoned = session.has_left(link.side());
        let relay = session.relay_from(link.side().other());
        let is_lost = delivery.bytes > 0 && delivery.end == SendEnd::Broken;
        if is_lost || !relay.is_undelivered() {
            self.close(now, slot, reset_by(link.side()), ops);
            return;
        }
        relay.on_undelivered(&mut Step { now, slot, chains: &mut self.chains, ops });
        if !is_abandoned {
            self.on_reset(now, link, ops);
        }
    }

    fn may_have_another(&self, slot: u32) -> bool {
        let session = &self.sessions[slot];
        let attempts = session.tried.as_slice().len() as u32 + 1;
        session.is_undelivered()
            && attempts < self.snapshot.listener(session.listener).connect_attempts
    }
}

pub(super) const fn reset_by(side: Side) -> CloseReason {
    match side {
        Side::Downstream => CloseReason::DownstreamReset,
        Side::Upstream => CloseReason::UpstreamReset,
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;
    use core::net::SocketAddr;

    use super::*;
    use crate::balancer::rig::{Nothing, Rig};
    use crate::boundary::{
        Accepted, Buffer, Completion, Goodbye, ListenerId, Op, Pool, ReceiveEnd, SendEnd,
    };
    use crate::snapshot::Protocol;
    use crate::testing;

    const CLIENT: Link = Link::new(0, Side::Downstream);
    const ENDPOINT: Link = Link::new(0, Side::Upstream);
    const LOST: Completion = Completion::ReceiveEnded { link: ENDPOINT, end: ReceiveEnd::Reset };

    fn rig() -> Rig {
        let mut snapshot = testing::snapshot(0);
        snapshot.listeners[0].protocol = Protocol::Tcp;
        snapshot.listeners[0].connect_attempts = 2;
        Rig::in_world(snapshot)
    }

    fn handle(rig: &mut Rig, completion: Completion) -> Vec<Op> {
        rig.balancer.handle(rig.now, completion, &mut Nothing, &mut rig.ops);
        rig.turn()
    }

    fn dialled(ops: &[Op]) -> SocketAddr {
        match ops {
            [.., Op::Connect { link: ENDPOINT, address, .. }] => *address,
            other => panic!("{other:?}"),
        }
    }

    /// A flow that is connected, and where to.
    fn connect(rig: &mut Rig) -> SocketAddr {
        let client = SocketAddr::from(([192, 0, 2, 1], 1));
        let socket = Accepted::new(3);
        let accepted = Completion::Accepted { listener: ListenerId(0), socket, client };
        let address = dialled(&handle(rig, accepted));
        handle(rig, Completion::Connected { link: ENDPOINT });
        address
    }

    fn is_reset(ops: &[Op]) -> bool {
        let close = |link| Op::Close { link, goodbye: Goodbye::Reset };
        ops.contains(&close(CLIENT)) && ops.contains(&close(ENDPOINT))
    }

    fn bytes(len: u32) -> Buffer {
        Buffer::new(Pool::Small, 0, len)
    }

    #[test]
    fn a_flow_that_is_reset_before_its_endpoint_had_anything_of_it_gets_another() {
        let mut rig = rig();
        let first = connect(&mut rig);
        let close = Op::Close { link: ENDPOINT, goodbye: Goodbye::Reset };
        assert_eq!(handle(&mut rig, LOST), [close]);
        let received = Completion::Received { link: CLIENT, buffer: bytes(5) };
        assert_eq!(handle(&mut rig, received), [], "it waits for the next");
        let second = dialled(&handle(&mut rig, Completion::Closed { link: ENDPOINT }));
        assert_ne!(first, second);
        let ops = handle(&mut rig, Completion::Connected { link: ENDPOINT });
        let send = Op::Send { link: ENDPOINT, buffer: bytes(5), more: false };
        assert_eq!(ops.first(), Some(&send));
        assert_eq!(rig.balancer.stats().listeners[0].connect_retries_total, 1);
        let endpoints = &rig.balancer.snapshot.clusters[0].candidates.endpoints;
        let load = &endpoints.iter().find(|it| it.address == first).expect("it is there").load;
        assert_eq!((load.outcomes().failures, load.connect_failures_total()), (1, 0));
        assert_eq!(load.flows_active(), 0, "its place there is free");
    }

    #[test]
    fn what_was_on_its_way_and_not_taken_goes_to_the_next_endpoint_in_its_order() {
        for loss_is_received_first in [true, false] {
            let mut rig = rig();
            connect(&mut rig);
            let buffer = |place: u32| Buffer::new(Pool::Small, place, 5 + place);
            let received = |place| Completion::Received { link: CLIENT, buffer: buffer(place) };
            handle(&mut rig, received(0));
            handle(&mut rig, received(1));
            if loss_is_received_first {
                handle(&mut rig, LOST);
            }
            handle(&mut rig, Completion::Returned { link: ENDPOINT, buffer: buffer(0) });
            handle(&mut rig, Completion::Sent { link: ENDPOINT, bytes: 0, end: SendEnd::Broken });
            handle(&mut rig, received(2));
            dialled(&handle(&mut rig, Completion::Closed { link: ENDPOINT }));
            let ops = handle(&mut rig, Completion::Connected { link: ENDPOINT });
            let send = |place, more| Op::Send { link: ENDPOINT, buffer: buffer(place), more };
            assert_eq!(ops[..3], [send(0, true), send(1, true), send(2, false)]);
        }
    }

    #[test]
    fn a_flow_that_a_part_of_a_run_was_taken_of_is_reset_with_its_endpoint() {
        let mut rig = rig();
        connect(&mut rig);
        handle(&mut rig, Completion::Received { link: CLIENT, buffer: bytes(5) });
        handle(&mut rig, LOST);
        let sent = Completion::Sent { link: ENDPOINT, bytes: 3, end: SendEnd::Broken };
        let ops = handle(&mut rig, sent);
        let close = Op::Close { link: CLIENT, goodbye: Goodbye::Reset };
        assert_eq!(ops, [close], "the other is being closed");
        let endpoints = &rig.balancer.snapshot.clusters[0].candidates.endpoints;
        let failures = |it: &crate::Endpoint| it.load.outcomes().failures;
        assert_eq!(endpoints.iter().map(failures).sum::<u64>(), 1);
    }

    #[test]
    fn a_flow_that_every_endpoint_resets_is_reset_and_each_failure_counts_once() {
        let mut rig = rig();
        connect(&mut rig);
        handle(&mut rig, LOST);
        handle(&mut rig, Completion::Closed { link: ENDPOINT });
        handle(&mut rig, Completion::Connected { link: ENDPOINT });
        assert!(is_reset(&handle(&mut rig, LOST)), "it may try two");
        let endpoints = &rig.balancer.snapshot.clusters[0].candidates.endpoints;
        let failures = |it: &crate::Endpoint| it.load.outcomes().failures;
        assert_eq!(endpoints.iter().map(failures).sum::<u64>(), 2);
    }

    #[test]
    fn a_flow_that_its_endpoint_has_had_a_byte_of_is_reset_with_it() {
        let mut rig = rig();
        connect(&mut rig);
        handle(&mut rig, Completion::Received { link: CLIENT, buffer: bytes(1) });
        let sent = Completion::Sent { link: ENDPOINT, bytes: 1, end: SendEnd::Whole };
        handle(&mut rig, sent);
        assert!(is_reset(&handle(&mut rig, LOST)));
    }

    #[test]
    fn a_flow_whose_client_has_said_that_it_says_nothing_is_reset_with_its_endpoint() {
        let mut rig = rig();
        connect(&mut rig);
        let end = ReceiveEnd::EndOfStream;
        handle(&mut rig, Completion::ReceiveEnded { link: CLIENT, end });
        assert!(is_reset(&handle(&mut rig, LOST)));
    }

    #[test]
    fn a_client_that_leaves_while_its_endpoint_is_given_up_leaves_nothing_behind() {
        let mut rig = rig();
        connect(&mut rig);
        handle(&mut rig, LOST);
        let end = ReceiveEnd::Reset;
        let ops = handle(&mut rig, Completion::ReceiveEnded { link: CLIENT, end });
        let close = Op::Close { link: CLIENT, goodbye: Goodbye::Reset };
        assert_eq!(ops, [close], "the other is being closed");
        handle(&mut rig, Completion::Closed { link: ENDPOINT });
        handle(&mut rig, Completion::Closed { link: CLIENT });
        assert_eq!(rig.balancer.stats().sessions_active, 0);
    }
}
