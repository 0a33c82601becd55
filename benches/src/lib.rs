//! A balancer driven by hand, for benches and for the test that counts allocations.
//!
//! There is no kernel here: completions are made up and ops are read off, so that what is measured
//! is what the core itself does.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use pointsman_core::boundary::{
    Accepted, Buffer, Completion, Link, ListenerId, Memory, Op, Ops, Pool, PoolSizes, ReceiveEnd,
    SendEnd, Side, Train,
};
use pointsman_core::eligibility::Footing;
use pointsman_core::policy::{
    Decided, Decision, EndpointIndex, Flow, Policy, Scope, Source, maglev,
};
use pointsman_core::{
    AllFlows, Balancer, BalancerConfig, Candidates, Cluster, ClusterId, DatagramSettings, Endpoint,
    EndpointId, EndpointState, Generation, Instant, Listener, OnEndpointDown, Openness,
    PrefixLengths, Protocol, Queue, Snapshot, Timeouts,
};

pub mod datagrams;
pub mod processes;

/// Some endpoints that may be given new flows.
#[must_use]
pub fn candidates(count: u32) -> Arc<Candidates> {
    let endpoint = |n: u32| Endpoint {
        id: EndpointId(n),
        address: SocketAddr::from((Ipv4Addr::new(10, 0, (n >> 8) as u8, n as u8), 80)),
        weight: 1,
        flows_max: u32::MAX,
        load: Arc::default(),
    };
    let endpoints = (0..count).map(endpoint).collect();
    Arc::new(Candidates { generation: Generation(1), endpoints, table: None })
}

/// A flow from this client.
#[must_use]
pub fn flow(client: SocketAddr, random: u64) -> Flow<'static> {
    Flow {
        protocol: Protocol::Tcp,
        key: None,
        client,
        local: SocketAddr::from((Ipv4Addr::LOCALHOST, 80)),
        listener: ListenerId(0),
        attempt: 0,
        tried: &[],
        now: Instant::from_millis(1),
        random,
    }
}

/// Sends everyone to the first endpoint and has that kept for the client.
struct KeepForClient;

impl Policy for KeepForClient {
    fn decide(&mut self, _: &Flow<'_>, _: &Arc<Candidates>) -> Decided {
        let decision = Decision { scope: Scope::Client, ..Decision::forward(EndpointIndex(0)) };
        Decided { decision, source: Source::Native }
    }
}

/// Nothing is read here.
pub(crate) struct NoMemory;

impl Memory for NoMemory {
    fn bytes(&self, _: &Buffer) -> &[u8] {
        &[]
    }

    fn write(&mut self, _: &[u8]) -> Option<Buffer> {
        None
    }

    fn local_address(&self, _: Link) -> Option<SocketAddr> {
        None
    }

    fn first_datagram(&self, _: &Train) -> &[u8] {
        &[]
    }
}

/// One worker without a kernel.
pub struct Bench {
    balancer: Balancer,
    ops: Ops,
    now: Instant,
    buffer: u32,
}

impl Bench {
    /// A balancer with one listener, one cluster of four endpoints, and a policy whose decisions
    /// are kept for the client.
    #[must_use]
    pub fn new() -> Self {
        let pools = PoolSizes { small: 4_096, bulk: 64 };
        let config = BalancerConfig {
            worker: 0,
            sessions_max: 1_024,
            datagram_flows_max: 1_024,
            flow_table_entries_max: 65_536,
            board: None,
            pools,
            hash_key: [1, 2],
            seed: 3,
            record_flows: false,
        };
        let balancer =
            Balancer::new(&config, snapshot_of(candidates(4)), vec![Box::new(KeepForClient)]);
        let ops = Ops::with_capacity(4 * Balancer::OPS_PER_COMPLETION_MAX);
        Self { balancer, ops, now: Instant::from_millis(1_000), buffer: 0 }
    }

    fn handle(&mut self, completion: Completion) {
        self.balancer.handle(self.now, completion, &mut NoMemory, &mut self.ops);
    }

    /// Connects a client and its endpoint; returns the session's slot.
    ///
    /// # Panics
    /// If the client is refused.
    pub fn open(&mut self, client: SocketAddr) -> u32 {
        let socket = Accepted::new(9);
        self.handle(Completion::Accepted { listener: ListenerId(0), socket, client });
        let adopted = self.ops.drain().find_map(|op| match op {
            Op::Adopt { link, .. } => Some(link.slot()),
            _ => None,
        });
        let slot = adopted.expect("the client is adopted");
        self.handle(Completion::Connected { link: Link::new(slot, Side::Upstream) });
        self.ops.drain().for_each(drop);
        slot
    }

    /// One message from one side to the other.
    pub fn relay(&mut self, slot: u32, from: Side, bytes: u32) {
        self.buffer = (self.buffer + 1) % 4_096;
        let buffer = Buffer::new(Pool::Small, self.buffer, bytes);
        self.handle(Completion::Received { link: Link::new(slot, from), buffer });
        self.ops.drain().for_each(drop);
        let link = Link::new(slot, from.other());
        self.handle(Completion::Sent { link, bytes, end: SendEnd::Whole });
        self.ops.drain().for_each(drop);
    }

    /// The credit of one direction is used up and granted again.
    pub fn renew_credit(&mut self, slot: u32, from: Side) {
        let link = Link::new(slot, from);
        self.handle(Completion::ReceiveEnded { link, end: ReceiveEnd::Paused });
        self.ops.drain().for_each(drop);
    }

    /// Both sides end, and the slot is free again.
    pub fn close(&mut self, slot: u32) {
        for side in Side::BOTH {
            let link = Link::new(slot, side);
            self.handle(Completion::ReceiveEnded { link, end: ReceiveEnd::EndOfStream });
            self.ops.drain().for_each(drop);
        }
        for side in Side::BOTH {
            self.handle(Completion::Closed { link: Link::new(slot, side) });
        }
    }

    /// Time passes, and whatever is due is done.
    pub fn pass_time(&mut self, duration: Duration) {
        self.now = self.now + duration;
        self.balancer.handle_timeout(self.now, &mut self.ops);
        self.ops.drain().for_each(drop);
    }

    /// Decisions so far that were found in the flow table.
    #[must_use]
    pub fn cache_hits(&self) -> u64 {
        self.balancer.stats().clusters[0].decisions_total[Source::Cache.index()]
    }
}

impl Default for Bench {
    fn default() -> Self {
        Self::new()
    }
}

/// Endpoints with a lookup table.
pub(crate) fn candidates_with_table(count: u32) -> Arc<Candidates> {
    let plain = candidates(count);
    let keys: Vec<_> = plain.endpoints.iter().map(|known| known.address.to_string()).collect();
    let weighted: Vec<_> = keys.iter().map(|key| (key.as_str(), 1)).collect();
    let table = maglev::build(&weighted, maglev::DEFAULT_SIZE);
    Arc::new(Candidates { endpoints: plain.endpoints.clone(), table, generation: Generation(1) })
}

/// One listener and one cluster of these candidates.
pub(crate) fn snapshot_of(candidates: Arc<Candidates>) -> Arc<Snapshot> {
    let up = |endpoint: &Endpoint| EndpointState::sound(endpoint.clone());
    let listener = Listener {
        name: "web".into(),
        address: SocketAddr::from((Ipv4Addr::LOCALHOST, 80)),
        protocol: Protocol::Tcp,
        openness: Openness::Open,
        cluster: ClusterId(0),
        flows_max: 100_000,
        flows_active: Arc::default(),
        sockets_open: Arc::default(),
        all_flows: AllFlows::unlimited(),
        access: None,
        client_prefix: PrefixLengths { v4: 32, v6: 64 },
        connect_attempts: 3,
        on_endpoint_down: OnEndpointDown::Keep,
        timeouts: Timeouts {
            preread: Duration::from_secs(3),
            connect: Duration::from_secs(5),
            idle: Duration::from_secs(600),
            half_closed: Duration::from_secs(30),
        },
        key: None,
        preread_bytes_max: 16_384,
        new_flow_rate: None,
        new_flow_rate_per_client: None,
        flows_per_client: None,
        proxy: None,
        datagrams: DatagramSettings::DEFAULT,
    };
    let endpoints = candidates.endpoints.iter().map(up).collect();
    let cluster = Cluster {
        name: "web".into(),
        endpoints,
        candidates,
        footing: Footing::Sound,
        proxy: None,
        transparent: false,
        trial: None,
        queue: Queue::none(1),
    };
    Arc::new(Snapshot {
        generation: Generation(1),
        listeners: [listener].into(),
        clusters: [cluster].into(),
        drain_until: None,
    })
}
