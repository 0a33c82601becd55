//! Where datagrams leave from towards endpoints: from ports of ours, or from their clients' addresses.
//!
//! A port with a client's address is one flow's own and connected, so that the kernel tells the
//! replies to a client's flows apart by the endpoints they come from. Two flows of one client to one
//! endpoint nobody can tell apart, so a decision on a single datagram holds for its client's next ones.

use core::net::SocketAddr;

use super::Turn;
use super::bindings::Binding;
use super::flow::FlowKey;
use super::ports::Wish;
use crate::boundary::ListenerId;
use crate::snapshot::ClusterId;

impl Turn<'_> {
    /// The address of the client, if that is what its flow to an endpoint has to leave from.
    pub(super) fn source(
        &self,
        cluster: ClusterId,
        (client, endpoint): (SocketAddr, SocketAddr),
    ) -> Option<SocketAddr> {
        self.snapshot.clusters[cluster.index()].source(client, endpoint)
    }

    /// What a client's flow wants of a port.
    pub(super) fn wish_of(&self, client: SocketAddr, binding: &Binding) -> Wish {
        let from = self.source(binding.cluster, (client, binding.endpoint.address));
        let flows = binding.flows;
        Wish { from, flows, ..self.wish(binding.listener, binding.endpoint.address) }
    }

    /// What a datagram without a flow wants. `None` if it had to leave from its client's address: a
    /// port for that would last no longer than the datagram.
    pub(super) fn stateless_wish(&self, key: &FlowKey, endpoint: SocketAddr) -> Option<Wish> {
        let cluster = self.listener(key.listener).cluster;
        let from = self.source(cluster, (key.client, endpoint));
        from.is_none().then(|| self.wish(key.listener, endpoint))
    }

    /// What is wanted for an endpoint that has no flows, from an address of ours.
    fn wish(&self, listener: ListenerId, endpoint: SocketAddr) -> Wish {
        let settings = self.listener(listener).datagrams;
        Wish { listener, endpoint, from: None, flows: 0, settings }
    }
}
