//! Telling endpoints who sent a datagram: a PROXY protocol header before each.
//!
//! Before each, and not before a flow's first alone: datagrams get lost and overtake one another, and an
//! endpoint that has missed the header of a flow would take its client for somebody else. That is also
//! what dnsdist sends, and what resolvers behind it read.

use core::net::SocketAddr;

use super::{FlowKey, Turn};
use crate::boundary::{ListenerId, Op};
use crate::proxy::Route;

impl Turn<'_> {
    /// Whether endpoints are told who sent what comes to a listener.
    pub(super) fn announces(&self, listener: ListenerId) -> bool {
        self.listener(listener).datagrams.announce.is_some()
    }

    /// Puts the header, if there is to be one, before the datagrams that are forwarded next.
    pub(super) fn announce(&mut self, key: &FlowKey) {
        let listener = self.listener(key.listener);
        let Some(outbound) = listener.datagrams.announce else { return };
        let local = SocketAddr::new(key.local, listener.address.port());
        self.ops.push(Op::Announce { route: Route { client: key.client, local }, outbound });
    }
}
