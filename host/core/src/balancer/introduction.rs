//! Who a flow's client is, told by others and told to others: the PROXY protocol in a session's life.
//!
//! A header that comes in is read as it arrives and never held, so whatever its length it takes a
//! [`Reader`] and no buffers. One that goes out is written when the endpoint is connected, ahead of
//! what is held of the stream, and leaves with it.

use super::Balancer;
use crate::boundary::{Buffer, Link, Memory, Op, Ops, Side};
use crate::preread::KeyRule;
use crate::preread::server_name::{self, ServerName};
use crate::proxy::{Header, Identity, Outbound, Reader, Reading, Route};
use crate::relay::Step;
use crate::session::State;
use crate::stats::{CloseReason, ShedReason};
use crate::time::Instant;

impl Balancer {
    /// Waits for the header that says who the client is.
    pub(super) fn await_introduction(&mut self, now: Instant, slot: u32, ops: &mut Ops) {
        let reader = self.readers.insert(Reader::new());
        let session = &mut self.sessions[slot];
        let bytes_max = self.snapshot.listener(session.listener).preread_bytes_max;
        let mut step = Step { now, slot, chains: &mut self.chains, ops };
        session.introduce(reader, bytes_max, &mut step);
        self.set_timer(slot);
    }

    /// More of a header has come, and perhaps some of the stream behind it.
    pub(super) fn on_introduction(
        &mut self,
        now: Instant,
        (slot, buffer): (u32, Buffer),
        memory: &impl Memory,
        ops: &mut Ops,
    ) {
        let State::Introducing { reader } = self.sessions[slot].state else { return };
        let (used, reading) = self.readers[reader].read(memory.bytes(&buffer));
        let route = match reading {
            Reading::Whole(route) => route,
            Reading::More => return ops.push(Op::Recycle { buffer }),
            Reading::Invalid => {
                ops.push(Op::Recycle { buffer });
                return self.close(now, slot, CloseReason::ProxyInvalid, ops);
            }
        };
        self.readers.remove(reader);
        let session = &mut self.sessions[slot];
        session.on_introduced(now, route);
        match buffer.skip(used as u32) {
            Err(buffer) => ops.push(Op::Recycle { buffer }),
            Ok(rest) => {
                let mut step = Step { now, slot, chains: &mut self.chains, ops };
                session.relay_from(Side::Downstream).on_received(rest, &mut step);
            }
        }
        self.on_introduced(now, slot, memory, ops);
    }

    /// No more of a header comes for now: its sender has ended, or has used up the credit on values
    /// that nobody needs.
    pub(super) fn on_introduction_ended(&mut self, now: Instant, slot: u32, ops: &mut Ops) {
        let session = &mut self.sessions[slot];
        let listener = self.snapshot.listener(session.listener);
        let relay = session.relay_from(Side::Downstream);
        if relay.has_ended() {
            self.close(now, slot, CloseReason::ProxyInvalid, ops);
        } else {
            let mut step = Step { now, slot, chains: &mut self.chains, ops };
            relay.hold_more(listener.preread_bytes_max, &mut step);
        }
    }

    /// The client is known: what is asked of clients is asked, and then what else decides on the
    /// endpoint.
    fn on_introduced(&mut self, now: Instant, slot: u32, memory: &impl Memory, ops: &mut Ops) {
        let session = &mut self.sessions[slot];
        let listener = self.snapshot.listener(session.listener);
        let client = session.client.ip();
        let admitted = if listener.allows(client) {
            listener.admit_client(now, client)
        } else {
            Err(ShedReason::NotAllowed)
        };
        if let Err(reason) = admitted {
            session.set_state(State::Unbound);
            return self.shed(now, slot, reason, ops);
        }
        session.is_counted = true;
        if listener.key.is_none() {
            return self.allocate_held(now, slot, ops);
        }
        session.set_state(State::Prereading);
        self.set_timer(slot);
        self.on_preread(now, slot, memory, ops);
    }

    /// Refuses a flow that has a session already.
    pub(super) fn shed(&mut self, now: Instant, slot: u32, reason: ShedReason, ops: &mut Ops) {
        self.stats.listener(self.sessions[slot].listener).on_shed(reason);
        self.close(now, slot, CloseReason::Shed, ops);
    }

    /// The header that tells the endpoint who its client is, if it is to be told.
    ///
    /// # Errors
    /// There is no buffer for it, and without it the flow is not what was decided.
    pub(super) fn announcement(
        &mut self,
        slot: u32,
        memory: &mut impl Memory,
    ) -> Result<Option<Buffer>, NoBuffer> {
        let session = &mut self.sessions[slot];
        let listener = self.snapshot.listener(session.listener);
        let cluster = &self.snapshot.clusters[listener.cluster.index()];
        let by_policy = session.method().announce.then_some(Outbound::PLAIN);
        let Some(outbound) = cluster.proxy.or(by_policy) else { return Ok(None) };
        if outbound.unique_id && session.unique_id.is_none() {
            session.unique_id = Some(self.allocator.unique_id());
        }
        let link = Link::new(slot, Side::Downstream);
        let local = session.announced_local().or_else(|| memory.local_address(link));
        let local = local.unwrap_or(listener.address);
        let route = Route { client: session.client, local };
        let unique_id = session.unique_id.filter(|_| outbound.unique_id);
        let asks = outbound.authority && listener.key == Some(KeyRule::ServerName);
        let relay = session.relay_from(Side::Downstream);
        let name = asks.then(|| server_name::find(relay.held(&self.chains, memory))).flatten();
        let authority = name.as_ref().map(ServerName::as_bytes);
        let header = Header::of_stream(&outbound, route, Identity { unique_id, authority });
        memory.write(header.as_bytes()).map(Some).ok_or(NoBuffer)
    }
}

/// No buffer is free.
pub(super) struct NoBuffer;
