//! What a worker counts: plain integers, written by one thread, copied when somebody asks.

use alloc::vec;
use alloc::vec::Vec;
use core::net::SocketAddr;
use core::time::Duration;

use crate::boundary::{ListenerId, Side, Train};
use crate::policy::Source;
use crate::snapshot::{ClusterId, EndpointId};
use crate::time::Instant;

/// Everything one worker has counted since it started.
#[derive(Debug, Clone)]
pub struct Stats {
    /// By [`ListenerId`].
    pub listeners: Vec<ListenerStats>,
    /// By [`ClusterId`].
    pub clusters: Vec<ClusterStats>,
    /// Sessions that hold a slot now.
    pub sessions_active: u32,
    /// Kept decisions and flows of datagrams in the flow tables now.
    pub flow_table_entries: u32,
    /// Upstream ports open now.
    pub ports_open: u32,
    /// Flows that another process has handed over and that do not go on here, by
    /// [`Untaken::index`].
    pub untaken_total: [u64; Untaken::ALL.len()],
}

impl Stats {
    pub(crate) fn new(listeners: usize, clusters: usize) -> Self {
        Self {
            listeners: vec![ListenerStats::default(); listeners],
            clusters: vec![ClusterStats::new(); clusters],
            sessions_active: 0,
            flow_table_entries: 0,
            ports_open: 0,
            untaken_total: [0; Untaken::ALL.len()],
        }
    }

    /// A listener has come: into a place that is new, or was another's.
    pub(crate) fn on_listener_came(&mut self, id: ListenerId) {
        match self.listeners.get_mut(id.index()) {
            Some(stats) => *stats = ListenerStats::default(),
            None => self.listeners.resize_with(id.index() + 1, ListenerStats::default),
        }
    }

    /// A cluster has come: into a place that is new, or was another's, whose policies are counted on.
    pub(crate) fn on_cluster_came(&mut self, id: ClusterId, policy_generation: u64) {
        let stats = ClusterStats { policy_generation, ..ClusterStats::default() };
        match self.clusters.get_mut(id.index()) {
            Some(old) => *old = stats,
            None => self.clusters.push(stats),
        }
    }

    pub(crate) fn listener(&mut self, id: ListenerId) -> &mut ListenerStats {
        &mut self.listeners[id.index()]
    }

    pub(crate) fn cluster(&mut self, id: ClusterId) -> &mut ClusterStats {
        &mut self.clusters[id.index()]
    }
}

/// What a worker counts per listener.
#[derive(Debug, Clone, Default)]
pub struct ListenerStats {
    /// Flows admitted. Each has at least one decision, or none for want of an endpoint.
    pub flows_total: u64,
    /// Flows admitted or taken over, and neither ended nor handed over.
    pub flows_active: u64,
    /// Flows of datagrams that another process has handed over to this one. They are not among those
    /// admitted.
    pub taken_over_total: u64,
    /// Flows of datagrams that this process has handed over to another. They are not among those that
    /// have ended.
    pub handed_over_total: u64,
    /// Times a flow was decided again because connecting failed.
    pub connect_retries_total: u64,
    /// Times a live flow was given another endpoint because its own was gone.
    pub reallocations_total: u64,
    /// Bytes delivered towards each [`Side`], by [`Side::index`].
    pub bytes_total: [u64; 2],
    /// Datagrams sent towards each [`Side`], by [`Side::index`].
    pub datagrams_total: [u64; 2],
    /// Datagrams forwarded by a stateless policy without a flow.
    pub stateless_total: u64,
    /// Flows whose first bytes showed no key, by [`KeylessReason::index`].
    pub keyless_total: [u64; KeylessReason::ALL.len()],
    /// Ended flows, by [`CloseReason::index`].
    pub closes_total: [u64; CloseReason::ALL.len()],
    /// Refused flows, by [`ShedReason::index`].
    pub sheds_total: [u64; ShedReason::ALL.len()],
    /// Things accepted and lost, by [`DropReason::index`].
    pub drops_total: [u64; DropReason::ALL.len()],
}

impl ListenerStats {
    pub(crate) fn on_delivered(&mut self, towards: Side, bytes: u32) {
        self.bytes_total[towards.index()] += u64::from(bytes);
    }

    pub(crate) fn on_shed(&mut self, reason: ShedReason) {
        self.sheds_total[reason.index()] += 1;
    }

    pub(crate) fn on_drops(&mut self, reason: DropReason, count: u32) {
        self.drops_total[reason.index()] += u64::from(count);
    }

    pub(crate) fn on_forwarded(&mut self, towards: Side, train: &Train) {
        self.bytes_total[towards.index()] += u64::from(train.len());
        self.datagrams_total[towards.index()] += u64::from(train.datagrams());
    }

    pub(crate) fn on_flow_started(&mut self) {
        self.flows_total += 1;
        self.flows_active += 1;
    }

    pub(crate) fn on_flow_taken_over(&mut self) {
        self.taken_over_total += 1;
        self.flows_active += 1;
    }

    pub(crate) fn on_flow_handed_over(&mut self) {
        self.handed_over_total += 1;
        self.flows_active -= 1;
    }

    pub(crate) fn on_flow_ended(&mut self, reason: CloseReason) {
        self.flows_active -= 1;
        self.closes_total[reason.index()] += 1;
    }
}

/// What a worker counts per cluster.
#[derive(Debug, Clone, Default)]
pub struct ClusterStats {
    /// Decisions, by [`Source::index`]. Their sum is the cluster's flows plus its retries, without
    /// those for whom nobody had a place.
    pub decisions_total: [u64; Source::ALL.len()],
    /// 1 for the policy the worker started with, one more for each swap.
    pub policy_generation: u64,
    /// Flows that went to another endpoint than was decided, because that one was full.
    pub overflows_total: u64,
    /// Flows that have waited for a place at an endpoint, whatever came of it.
    pub queued_total: u64,
    /// How long they have waited, all together.
    pub queued_time: Duration,
}

impl ClusterStats {
    fn new() -> Self {
        Self { policy_generation: 1, ..Self::default() }
    }
}

/// Makes an enum of named reasons dense and printable.
macro_rules! reasons {
    ($(#[$doc:meta])* $name:ident { $($(#[$why:meta])* $variant:ident => $label:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$why])* $variant,)+ }

        impl $name {
            /// All reasons, in the order of their [`index`](Self::index).
            pub const ALL: [Self; [$($label),+].len()] = [$(Self::$variant),+];

            /// Dense, from 0.
            #[must_use]
            pub const fn index(self) -> usize {
                self as usize
            }

            /// The value of the metric's `reason` label.
            #[must_use]
            pub const fn label(self) -> &'static str {
                match self { $(Self::$variant => $label,)+ }
            }
        }
    };
}

reasons! {
    /// Why a flow ended.
    CloseReason {
        /// Both directions finished in order.
        Finished => "finished",
        /// The client reset the connection, or it broke.
        DownstreamReset => "downstream-reset",
        /// The endpoint reset the connection, or it broke.
        UpstreamReset => "upstream-reset",
        /// No endpoint could be reached in as many attempts as the listener allows.
        ConnectFailed => "connect-failed",
        /// The last attempt to connect took too long.
        ConnectTimeout => "connect-timeout",
        /// This process had no descriptor or port left for the endpoint's side.
        Descriptors => "descriptors",
        /// The cluster had no endpoint to offer.
        NoEndpoint => "no-endpoint",
        /// Every endpoint had as many flows as it may, and there was no room to wait for a place.
        EndpointsFull => "endpoints-full",
        /// It waited for a place at an endpoint for too long.
        QueueTimeout => "queue-timeout",
        /// No byte moved for too long.
        IdleTimeout => "idle-timeout",
        /// One direction had ended and no byte moved in the other for too long.
        HalfClosedTimeout => "half-closed-timeout",
        /// The process ended before the flow did.
        DrainTimeout => "drain-timeout",
        /// The endpoint went down or was removed, and the listener resets such flows.
        EndpointDown => "endpoint-down",
        /// The policy's verdict was to reset it.
        DeniedReset => "denied-reset",
        /// The policy's verdict was to drop it.
        DeniedDrop => "denied-drop",
        /// It had got no reply, and a newer flow needed its place.
        Evicted => "evicted",
        /// The operator removed it.
        Forgotten => "forgotten",
        /// The PROXY header that had to come first had not come whole in time.
        ProxyTimeout => "proxy-timeout",
        /// What came first was no PROXY header, or ended within it.
        ProxyInvalid => "proxy-invalid",
        /// It was refused after it had been accepted; the sheds tell why.
        Shed => "shed",
    }
}

reasons! {
    /// Why a new flow was refused: before anything was allocated for it or, where that shows later,
    /// as soon as it was known whose it is.
    ShedReason {
        /// The client is not one of those that may come.
        NotAllowed => "not-allowed",
        /// The listener has as many flows as it may.
        FlowsMax => "flows-max",
        /// All listeners together have as many flows as they may.
        AllFlowsMax => "all-flows-max",
        /// The worker has no free session.
        Sessions => "sessions",
        /// The worker is short of buffers, and keeps the rest for established flows.
        Buffers => "buffers",
        /// The process has no descriptor left to accept with; the client waits in the backlog.
        Descriptors => "descriptors",
        /// The process is ending and its drain is over.
        Draining => "draining",
        /// More new flows came than the listener admits in this time.
        NewFlowRate => "new-flow-rate",
        /// More new flows came from the client than one client may start in this time.
        ClientNewFlowRate => "client-new-flow-rate",
        /// Its peer is not among those that may say for whom they connect.
        UntrustedPeer => "untrusted-peer",
        /// The client has as many flows as one client may.
        ClientFlowsMax => "client-flows-max",
        /// The worker's table has no place for another flow of datagrams.
        FlowTableFull => "flow-table-full",
        /// Every upstream port that may be opened is taken for the endpoint.
        Ports => "ports",
        /// Every endpoint has as many flows as it may. Connections end for the reason of this name.
        EndpointsFull => "endpoints-full",
    }
}

impl ShedReason {
    /// Whether it is meant to keep a datagram from every endpoint, and not for want of a place here.
    pub(crate) const fn yields(self) -> bool {
        matches!(
            self,
            Self::NotAllowed
                | Self::Draining
                | Self::ClientFlowsMax
                | Self::ClientNewFlowRate
                | Self::EndpointsFull
        )
    }
}

reasons! {
    /// Why a flow that another process has handed over does not go on here.
    Untaken {
        /// Its listener is not one of datagrams, does not take part, or is closed.
        Listener => "listener",
        /// Its cluster or its endpoint is not configured.
        Endpoint => "endpoint",
        /// Its endpoint is down, and the listener ends such flows.
        EndpointDown => "endpoint-down",
        /// Its port did not come with it, is of another listener, or has another flow to the endpoint.
        Port => "port",
        /// Its client has a flow already.
        Duplicate => "duplicate",
        /// The worker's table has no place for it.
        FlowTableFull => "flow-table-full",
    }
}

reasons! {
    /// Why the first bytes of a flow showed no key. The flow goes on without one.
    KeylessReason {
        /// They are not of the protocol that the rule reads.
        Malformed => "malformed",
        /// They are well formed and the key is not among them.
        Absent => "absent",
        /// The key had not come after as many bytes as may be waited for.
        TooLong => "too-long",
        /// The key had not come in time.
        Timeout => "timeout",
    }
}

reasons! {
    /// Why something accepted was lost.
    DropReason {
        /// A decision was to be kept, and the flow table had no room that could be freed.
        FlowTableFull => "flow-table-full",
        /// A reply came from somebody else than the endpoint that the port's flow is bound to.
        UnknownSource => "unknown-source",
        /// A datagram came whose end is missing.
        Truncated => "truncated",
        /// There was no room for a datagram where it was to be sent.
        SendFull => "send-full",
        /// A datagram is larger than the way to its receiver allows.
        TooLarge => "too-large",
        /// There was no way to a datagram's receiver.
        Unreachable => "unreachable",
        /// A datagram came faster than its flow's method allows.
        Throttled => "throttled",
        /// A datagram came from a client that the policy has denied.
        Denied => "denied",
        /// A datagram came and the cluster had no endpoint to offer.
        NoEndpoint => "no-endpoint",
    }
}

/// One ended flow, for the access log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FlowRecord {
    /// Where it came in.
    pub listener: ListenerId,
    /// Who served it.
    pub cluster: ClusterId,
    /// The client.
    pub client: SocketAddr,
    /// Who connected for the client, if it was announced by somebody.
    pub peer: Option<SocketAddr>,
    /// The id under which the endpoint was told of it, if it was told one.
    pub unique_id: Option<u128>,
    /// The endpoint it was bound to last, if any.
    pub endpoint: Option<(EndpointId, SocketAddr)>,
    /// The generation of the policy that decided on it.
    pub policy_generation: u64,
    /// Who made the last decision, if there was one.
    pub source: Option<Source>,
    /// Attempts to connect.
    pub attempts: u32,
    /// The policy's mark.
    pub tag: u32,
    /// When it was accepted.
    pub started: Instant,
    /// When the endpoint was connected.
    pub connected: Option<Instant>,
    /// How long it waited for a place at an endpoint.
    pub queued: Duration,
    /// When it ended.
    pub ended: Instant,
    /// Bytes delivered towards each [`Side`], by [`Side::index`].
    pub bytes: [u64; 2],
    /// Why it ended.
    pub reason: CloseReason,
}
