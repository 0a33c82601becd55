//! The endpoints that flows of datagrams are bound to.
//!
//! A flow names its endpoint by a number in here, four bytes instead of a whole [`Endpoint`]. Each
//! listener has its own binding to an endpoint, because each has its own ports; it lasts as long as
//! the endpoint is configured or has flows.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::net::SocketAddr;

use super::lane::Lane;
use crate::boundary::ListenerId;
use crate::snapshot::{ClusterId, Endpoint, EndpointId, Snapshot};

/// An endpoint, as one listener's flows know it.
#[derive(Debug)]
pub(super) struct Binding {
    pub(super) listener: ListenerId,
    /// Whose endpoint it is. The listener may be given another cluster while flows go on.
    pub(super) cluster: ClusterId,
    pub(super) endpoint: Endpoint,
    /// Flows bound to it.
    pub(super) flows: u32,
    /// The most at a time since the ports were last looked after.
    pub(super) flows_peak: u32,
    /// Its free ports.
    pub(super) lane: Lane,
    /// Whether its flows may stay: it is up, or flows may be given to it for want of better.
    pub(super) serves: bool,
}

type Key = (ListenerId, ClusterId, EndpointId);
/// Whose flows go there, whose endpoint that is, and where it is.
pub(super) type Place = (ListenerId, ClusterId, SocketAddr);

/// All bindings, by number.
#[derive(Debug, Default)]
pub(super) struct Bindings {
    slots: Vec<Option<Binding>>,
    /// The number of each listener's binding to an endpoint, in order.
    numbers: Vec<(Key, u32)>,
}

impl Bindings {
    #[inline]
    pub(super) fn get(&self, number: u32) -> Option<&Binding> {
        self.slots.get(number as usize)?.as_ref()
    }

    /// A binding that has flows.
    #[inline]
    pub(super) fn of_flow(&self, number: u32) -> &Binding {
        self.get(number).expect("a binding outlives its flows")
    }

    /// All, with their numbers.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &Binding)> {
        (0..).zip(&self.slots).filter_map(|(number, slot)| Some((number, slot.as_ref()?)))
    }

    /// The listener's binding to this endpoint, which comes into being when it is first used.
    pub(super) fn number_of(
        &mut self,
        listener: ListenerId,
        (cluster, endpoint): (ClusterId, &Endpoint),
    ) -> u32 {
        let key = (listener, cluster, endpoint.id);
        match self.numbers.binary_search_by_key(&key, |&(key, _)| key) {
            Ok(place) => self.numbers[place].1,
            Err(place) => {
                let number = self.add(listener, cluster, endpoint.clone());
                self.numbers.insert(place, (key, number));
                number
            }
        }
    }

    /// The same for an endpoint that may be down, and its flows may not stay for that.
    pub(super) fn number_in(
        &mut self,
        snapshot: &Snapshot,
        listener: ListenerId,
        (cluster, endpoint): (ClusterId, &Endpoint),
    ) -> u32 {
        let number = self.number_of(listener, (cluster, endpoint));
        if let Some(Some(binding)) = self.slots.get_mut(number as usize) {
            binding.serves = snapshot.clusters[cluster.index()].serves(endpoint.id);
        }
        number
    }

    /// The endpoints that flows have been bound to, whether they are still configured or not: where they
    /// are, and the binding's number.
    pub(super) fn by_address(&self) -> BTreeMap<Place, u32> {
        let place = |it: &Binding| (it.listener, it.cluster, it.endpoint.address);
        self.iter().map(|(number, binding)| (place(binding), number)).collect()
    }

    fn add(&mut self, listener: ListenerId, cluster: ClusterId, endpoint: Endpoint) -> u32 {
        let binding = Binding {
            listener,
            cluster,
            endpoint,
            flows: 0,
            flows_peak: 0,
            lane: Lane::default(),
            serves: true,
        };
        let place = self.slots.iter().position(Option::is_none).unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        self.slots[place] = Some(binding);
        place as u32
    }

    /// The free ports of a binding.
    pub(super) fn lane(&mut self, number: u32) -> &mut Lane {
        let binding = self.slots.get_mut(number as usize).and_then(Option::as_mut);
        &mut binding.expect("a binding outlives its flows").lane
    }

    /// All flows that come with their ports have come.
    pub(super) fn settle_lanes(&mut self) {
        self.slots.iter_mut().flatten().for_each(|binding| binding.lane.settle());
    }

    /// The flows of these listeners leave with their ports: the ports that stay are free for every
    /// endpoint.
    pub(super) fn forget_lanes(&mut self, is_wanted: impl Fn(ListenerId) -> bool) {
        let bindings = self.slots.iter_mut().flatten();
        let theirs = bindings.filter(|binding| is_wanted(binding.listener));
        theirs.for_each(|binding| binding.lane = Lane::default());
    }

    /// A flow was bound that has its place at the endpoint.
    pub(super) fn on_bound(&mut self, number: u32) {
        if let Some(Some(binding)) = self.slots.get_mut(number as usize) {
            binding.flows += 1;
            binding.flows_peak = binding.flows_peak.max(binding.flows);
        }
    }

    /// A flow has left.
    pub(super) fn on_unbound(&mut self, number: u32) {
        if let Some(Some(binding)) = self.slots.get_mut(number as usize) {
            binding.flows -= 1;
        }
    }

    /// The most flows that one endpoint of this listener has had since this was last asked.
    pub(super) fn take_peak(&mut self, listener: ListenerId) -> u32 {
        let own = self.slots.iter_mut().flatten().filter(|binding| binding.listener == listener);
        own.map(|binding| core::mem::replace(&mut binding.flows_peak, binding.flows))
            .max()
            .unwrap_or(0)
    }

    /// Takes in a new world. Tells whether there is an endpoint with flows that does not serve.
    pub(super) fn apply(&mut self, snapshot: &Snapshot) -> bool {
        for slot in &mut self.slots {
            let Some(binding) = slot else { continue };
            let listener = snapshot.listener(binding.listener);
            let cluster = &snapshot.clusters[binding.cluster.index()];
            binding.serves = cluster.serves(binding.endpoint.id);
            let is_wanted = listener.cluster == binding.cluster && !listener.is_closed();
            if binding.flows == 0 && !(is_wanted && cluster.endpoint(binding.endpoint.id).is_some())
            {
                *slot = None;
            }
        }
        let slots = &self.slots;
        self.numbers.retain(|&(_, number)| slots[number as usize].is_some());
        self.iter().any(|(_, binding)| !binding.serves && binding.flows > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[test]
    fn an_endpoint_whose_flows_leave_with_their_ports_remembers_none() {
        let world = testing::snapshot(16);
        let endpoint = &world.clusters[0].endpoints[0].endpoint;
        let mut bindings = Bindings::default();
        let numbers = [0, 1].map(|listener| {
            let number = bindings.number_of(ListenerId(listener), (ClusterId(0), endpoint));
            bindings.lane(number).meet(7);
            number
        });
        bindings.settle_lanes();
        bindings.forget_lanes(|listener| listener == ListenerId(0));
        assert_eq!(numbers.map(|number| bindings.lane(number).has_met(7)), [false, true]);
    }
}
