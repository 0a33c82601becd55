//! The immutable published world.
//!
//! The control thread builds one [`Snapshot`] for every change, whole: listeners, clusters, health,
//! candidates and tables are one object, so they can never disagree. Workers only ever swap one
//! `Arc` for another. The few numbers that all workers write ([`Load`]) hang off it in their own
//! cache lines and live on from snapshot to snapshot.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use core::net::{IpAddr, Ipv6Addr, SocketAddr};
use core::sync::atomic::{AtomicU32, Ordering::Relaxed};
use core::time::Duration;

use crate::access::AccessList;
use crate::boundary::ListenerId;
use crate::ejection::EjectionReason;
use crate::eligibility::Footing;
use crate::growth::Growth;
use crate::limits::{AllFlows, SharedRate, SourceCounts, SourceRates};
use crate::load::Load;
use crate::policy::{EndpointIndex, Table};
use crate::preread::KeyRule;
use crate::proxy::{Inbound, Outbound};
use crate::queue::Queue;
use crate::stats::ShedReason;
use crate::time::Instant;

/// Names a cluster; an index into the snapshot's clusters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterId(pub u16);

impl ClusterId {
    /// This cluster's place in a list of all clusters.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// Names an endpoint of one cluster for as long as it is configured: never reused, whatever
/// generation it is seen in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct EndpointId(pub u32);

/// Counts published worlds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Generation(pub u64);

/// Everything a worker acts on.
#[derive(Debug)]
pub struct Snapshot {
    /// Which world this is.
    pub generation: Generation,
    /// By [`ListenerId`](crate::boundary::ListenerId).
    pub listeners: Box<[Listener]>,
    /// By [`ClusterId`].
    pub clusters: Box<[Cluster]>,
    /// Set once the process is to end: nothing new is accepted, and what is left at this time is
    /// closed.
    pub drain_until: Option<Instant>,
}

/// Endpoints, by their cluster and address.
pub(crate) type EndpointsByAddress<'a> = BTreeMap<(ClusterId, SocketAddr), &'a Endpoint>;

impl Snapshot {
    pub(crate) fn listener(&self, id: ListenerId) -> &Listener {
        &self.listeners[id.index()]
    }

    /// All configured endpoints, by their cluster and address: so other processes name them.
    pub(crate) fn endpoints_by_address(&self) -> EndpointsByAddress<'_> {
        let clusters = (0..).map(ClusterId).zip(&self.clusters);
        let endpoints = clusters.flat_map(|(cluster, it)| {
            let endpoints = it.endpoints.iter().map(|state| &state.endpoint);
            endpoints.map(move |endpoint| ((cluster, endpoint.address), endpoint))
        });
        endpoints.collect()
    }
}

/// A local address that accepts traffic.
#[derive(Debug, Clone)]
pub struct Listener {
    /// Its name in the configuration.
    pub name: Box<str>,
    /// Where it listens.
    pub address: SocketAddr,
    /// What it speaks.
    pub protocol: Protocol,
    /// Whether it takes new flows.
    pub openness: Openness,
    /// Who serves its new flows.
    pub cluster: ClusterId,
    /// Flows at a time, over all workers.
    pub flows_max: u32,
    /// Flows now, over all workers.
    pub flows_active: Arc<SharedCount>,
    /// Workers that have its socket, which each gives up by itself.
    pub sockets_open: Arc<SharedCount>,
    /// Flows of this and all other listeners.
    pub all_flows: AllFlows,
    /// Who may come, if not everybody.
    pub access: Option<Arc<AccessList>>,
    /// Which clients count as one for decisions of client scope.
    pub client_prefix: PrefixLengths,
    /// How often a flow may try to connect, at least 1, at most [`Listener::CONNECT_ATTEMPTS_MAX`].
    pub connect_attempts: u32,
    /// What happens to established flows of an endpoint that goes down or is removed.
    pub on_endpoint_down: OnEndpointDown,
    /// How long each state may last.
    pub timeouts: Timeouts,
    /// What flows have in common that are to share an endpoint, if more than their client.
    pub key: Option<KeyRule>,
    /// Bytes that may be waited for until the key is found. Connections only.
    pub preread_bytes_max: u32,
    /// New flows per second, over all workers, if that is limited.
    pub new_flow_rate: Option<Arc<SharedRate>>,
    /// New flows of each client per second, over all workers, if that is limited.
    pub new_flow_rate_per_client: Option<Arc<SourceRates>>,
    /// Flows of each client at a time, over all workers, if that is limited.
    pub flows_per_client: Option<Arc<SourceCounts>>,
    /// Who must say for whom it connects, if anybody. Connections only.
    pub proxy: Option<Arc<Inbound>>,
    /// What only datagrams need.
    pub datagrams: DatagramSettings,
}

impl Listener {
    /// The upper bound of `connect_attempts`: a session remembers which endpoints failed it.
    pub const CONNECT_ATTEMPTS_MAX: u32 = 5;

    /// Whether this client may come at all.
    pub(crate) fn allows(&self, client: IpAddr) -> bool {
        self.access.as_ref().is_none_or(|access| access.allows(client))
    }

    /// Whether this client may have another flow at this time. It counts as one if so. What concerns
    /// the client alone comes first: one at its limit must not use up the rate of all.
    pub(crate) fn admit_client(&self, now: Instant, client: IpAddr) -> Result<(), ShedReason> {
        let counts = self.flows_per_client.as_ref();
        if counts.is_some_and(|counts| !counts.try_add(client)) {
            return Err(ShedReason::ClientFlowsMax);
        }
        let own = self.new_flow_rate_per_client.as_ref();
        let reason = if own.is_some_and(|rates| !rates.try_take(now, client)) {
            ShedReason::ClientNewFlowRate
        } else if self.new_flow_rate.as_ref().is_some_and(|rate| !rate.try_take(now)) {
            ShedReason::NewFlowRate
        } else {
            return Ok(());
        };
        self.dismiss_client(client);
        Err(reason)
    }

    /// A client that was admitted gets no flow: there is no place for it.
    pub(crate) fn dismiss_client(&self, client: IpAddr) {
        if let Some(counts) = &self.flows_per_client {
            counts.remove(client);
        }
    }

    /// A flow that was admitted elsewhere goes on here. Limits are for new flows: it is counted, and
    /// has its place.
    pub(crate) fn take_in(&self, client: IpAddr) {
        self.flows_active.add(1);
        self.all_flows.active.add(1);
        if let Some(counts) = &self.flows_per_client {
            counts.add(client);
        }
    }

    /// A flow that was admitted has ended, whoever its client was.
    pub(crate) fn give_back_place(&self) {
        self.flows_active.decrement();
        self.all_flows.remove();
    }

    /// A flow of this client that was admitted has ended.
    pub(crate) fn give_back(&self, client: IpAddr) {
        self.give_back_place();
        self.dismiss_client(client);
    }

    /// Whether it receives datagrams, not connections.
    #[must_use]
    pub fn is_datagrams(&self) -> bool {
        self.protocol == Protocol::Udp
    }
}

/// Whether a listener takes new flows.
///
/// ```text
///             removed                    no flow left, or no more time
///   Open ───────────────▶ Draining ─────────────────────────▶ Closed
///     ▲ datagrams: wanted again │                               │ its place is given
///     └─────────────────────────┘◀──────────────────────────────┘ to another listener
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Openness {
    /// It does.
    Open,
    /// It goes on with those that it has. Connections: it has stopped accepting. Datagrams: its
    /// sockets stay, because its flows' datagrams come through them.
    Draining,
    /// What it still has is closed.
    Closed,
}

/// What a listener speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// Connections.
    Tcp,
    /// Datagrams.
    Udp,
}

/// How a listener of datagrams treats its flows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DatagramSettings {
    /// Replies to each of the client's datagrams, after which a flow has ended; 0 if there is no
    /// such number.
    pub replies_expected: u32,
    /// Upstream ports each worker may open for this listener, at least 1.
    pub ports_max: u32,
    /// Ports that stay open once they are, however few flows there are: the fewer, the sooner a flow's
    /// late reply meets another flow on its port.
    pub ports_min: u32,
    /// Whether each flow has a connected port of its own.
    pub port_per_flow: bool,
    /// Whether trains are received and sent whole.
    pub offload: bool,
    /// How endpoints are told who has sent a datagram, if they are.
    pub announce: Option<Outbound>,
}

impl DatagramSettings {
    /// Any number of replies, shared ports, trains.
    pub const DEFAULT: Self = Self {
        replies_expected: 0,
        ports_max: 16_384,
        ports_min: 32,
        port_per_flow: false,
        offload: true,
        announce: None,
    };
}

/// How long a session may stay in each state without progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// The first bytes, until they show the key.
    pub preread: Duration,
    /// One attempt to connect.
    pub connect: Duration,
    /// No byte moved in either direction.
    pub idle: Duration,
    /// No byte moved since one direction ended.
    pub half_closed: Duration,
}

/// Leading bits of a client address that decide whether two clients are the same one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PrefixLengths {
    /// 0 to 32.
    pub v4: u8,
    /// 0 to 128.
    pub v6: u8,
}

impl PrefixLengths {
    /// The leading bits of an address, IPv4 mapped into IPv6.
    #[must_use]
    pub fn mask(self, client: IpAddr) -> Ipv6Addr {
        let (bits, length) = match client {
            IpAddr::V4(v4) => (v4.to_ipv6_mapped(), 96 + u32::from(self.v4.min(32))),
            IpAddr::V6(v6) => (v6, u32::from(self.v6.min(128))),
        };
        let mask = u128::MAX.checked_shl(128 - length).unwrap_or(0);
        Ipv6Addr::from_bits(bits.to_bits() & mask)
    }
}

/// What happens to established flows when their endpoint is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnEndpointDown {
    /// They stay until they end by themselves.
    Keep,
    /// Both sides are reset. Connections only.
    Reset,
    /// They are given another endpoint. Datagrams only.
    Reallocate,
    /// They end; the client's next datagram starts another flow. Datagrams only.
    Drop,
}

/// A set of endpoints that serve the same thing.
#[derive(Debug)]
pub struct Cluster {
    /// Its name in the configuration.
    pub name: Box<str>,
    /// All configured endpoints, in order of [`EndpointId`].
    pub endpoints: Box<[EndpointState]>,
    /// Those that may be given a new flow. The same `Arc` as in the snapshot before if nothing in
    /// it has changed, so that policies keep their state.
    pub candidates: Arc<Candidates>,
    /// Who they are: those that are available, or others for want of them.
    pub footing: Footing,
    /// How its endpoints are told of their clients, if they always are.
    pub proxy: Option<Outbound>,
    /// Whether flows to its endpoints leave from their clients' addresses.
    pub transparent: bool,
    /// The same endpoints as a policy on trial sees them, where it has a table or weights of its
    /// own.
    pub trial: Option<Arc<Candidates>>,
    /// Flows that wait because every candidate is full.
    pub queue: Queue,
}

impl Cluster {
    /// Whether flows of this endpoint may stay with it: it is up, though it may drain, or flows are
    /// given to it for want of better.
    pub(crate) fn serves(&self, id: EndpointId) -> bool {
        self.endpoint(id).is_some_and(|state| self.keeps(state))
    }

    fn keeps(&self, state: &EndpointState) -> bool {
        state.up || self.candidates.find(state.endpoint.id).is_some()
    }

    /// Whether the same endpoints serve in both, whatever else differs.
    pub(crate) fn serves_alike(&self, other: &Self) -> bool {
        let of = |cluster: &Self, state: &EndpointState| (state.endpoint.id, cluster.keeps(state));
        let own = self.endpoints.iter().map(|state| of(self, state));
        own.eq(other.endpoints.iter().map(|state| of(other, state)))
    }

    /// From where a client's flow to an endpoint leaves, if not from an address of ours. The two must be of
    /// one family for that.
    pub(crate) fn source(&self, client: SocketAddr, endpoint: SocketAddr) -> Option<SocketAddr> {
        let one_family = client.is_ipv4() == endpoint.is_ipv4();
        (self.transparent && one_family).then_some(client)
    }

    /// The endpoint's state, or `None` if it is no longer configured.
    #[must_use]
    pub fn endpoint(&self, id: EndpointId) -> Option<&EndpointState> {
        let place = self.endpoints.binary_search_by_key(&id, |state| state.endpoint.id).ok()?;
        self.endpoints.get(place)
    }
}

/// An endpoint and what is known of it.
#[derive(Debug, Clone)]
pub struct EndpointState {
    /// The endpoint.
    pub endpoint: Endpoint,
    /// Whether health checks (or the lack of them) say that it serves.
    pub up: bool,
    /// Whether that is not known yet, because it was added and its first check is under way.
    pub unproven: bool,
    /// Whether it is to get nothing new.
    pub draining: bool,
    /// Why it is to get nothing new for a time, if its flows have failed.
    pub ejected: Option<EjectionReason>,
    /// How often that has ever been so.
    pub ejections_total: u64,
    /// Whether it is to be used only where no other is available.
    pub backup: bool,
    /// How much of its weight counts, if it has come back lately.
    pub growth: Growth,
}

impl EndpointState {
    /// An endpoint against which nothing speaks.
    #[must_use]
    pub fn sound(endpoint: Endpoint) -> Self {
        Self {
            endpoint,
            up: true,
            unproven: false,
            draining: false,
            ejected: None,
            ejections_total: 0,
            backup: false,
            growth: Growth::default(),
        }
    }

    /// Whether nothing speaks against giving it new flows.
    #[must_use]
    pub const fn is_available(&self) -> bool {
        self.up && !self.draining && self.ejected.is_none()
    }
}

/// One address in a cluster.
#[derive(Debug, Clone)]
pub struct Endpoint {
    /// Its lasting name.
    pub id: EndpointId,
    /// Where it serves.
    pub address: SocketAddr,
    /// Its share of flows relative to the others, at least 1.
    pub weight: u32,
    /// Flows at a time, over all workers; [`u32::MAX`] if that is not limited.
    pub flows_max: u32,
    /// What all workers count about it.
    pub load: Arc<Load>,
}

impl Endpoint {
    /// Whether its flows are limited.
    pub(crate) const fn is_limited(&self) -> bool {
        self.flows_max != u32::MAX
    }

    /// Whether it has as many flows as it may.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.is_limited() && self.load.flows_active() >= self.flows_max
    }

    /// Takes a place for a flow, if there is one; tells whether there was.
    pub(crate) fn try_start(&self) -> bool {
        self.load.try_start(self.flows_max)
    }
}

/// The endpoints that may be given a new flow, as a policy sees them.
///
/// Those that [`Eligibility`](crate::eligibility::Eligibility) chooses.
#[derive(Debug)]
pub struct Candidates {
    /// The generation in which this list came about.
    pub generation: Generation,
    /// Indexed by [`EndpointIndex`], in order of [`EndpointId`].
    pub endpoints: Box<[Endpoint]>,
    /// The lookup table, where the cluster's policy is one.
    pub table: Option<Table>,
}

impl Candidates {
    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.endpoints.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.endpoints.is_empty()
    }

    /// The endpoint at `index`.
    #[must_use]
    pub fn get(&self, index: EndpointIndex) -> Option<&Endpoint> {
        self.endpoints.get(index.0 as usize)
    }

    /// Where the endpoint stands in this list, if it may be given a new flow.
    #[must_use]
    pub fn find(&self, id: EndpointId) -> Option<&Endpoint> {
        let place = self.endpoints.binary_search_by_key(&id, |endpoint| endpoint.id).ok()?;
        self.endpoints.get(place)
    }
}

/// A count that all workers share, alone in its cache line.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct SharedCount(AtomicU32);

impl SharedCount {
    /// Adds one if fewer than `max` are counted; tells whether it did.
    pub fn try_increment(&self, max: u32) -> bool {
        let before = self.0.fetch_add(1, Relaxed);
        if before >= max {
            self.decrement();
        }
        before < max
    }

    /// Adds so many.
    pub fn add(&self, count: u32) {
        self.0.fetch_add(count, Relaxed);
    }

    /// Takes one away.
    pub fn decrement(&self) {
        self.0.fetch_sub(1, Relaxed);
    }

    /// The count.
    #[must_use]
    pub fn get(&self) -> u32 {
        self.0.load(Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::snapshot;

    #[test]
    fn flows_leave_from_the_clients_address_where_the_endpoint_has_one_of_its_kind() {
        let mut snapshot = snapshot(1);
        let cluster = &mut snapshot.clusters[0];
        let [v4, v6] = ["192.0.2.1:80", "[2001:db8::1]:80"].map(|text| text.parse().unwrap());
        assert_eq!(cluster.source(v4, v4), None);
        cluster.transparent = true;
        assert_eq!([cluster.source(v4, v4), cluster.source(v6, v6)], [Some(v4), Some(v6)]);
        assert_eq!([cluster.source(v4, v6), cluster.source(v6, v4)], [None, None]);
    }
}
