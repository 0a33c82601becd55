//! A balancer of datagrams driven by hand: a client's datagram in, its way to the endpoint out.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use pointsman_core::boundary::{
    Completion, DatagramSocket, ListenerId, Op, Ops, Path, PoolSizes, PortId, Train,
};
use pointsman_core::handover::Handed;
use pointsman_core::policy::{Policy, RoundRobin, TablePolicy};
use pointsman_core::{
    AllFlows, Balancer, BalancerConfig, DatagramSettings, Instant, Listener, Protocol, Snapshot,
    Timeouts,
};

use crate::NoMemory;

/// Enough that a million flows need no more ports than one address has.
const ENDPOINTS: u32 = 128;
const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// Where a client's datagram was sent to.
#[derive(Debug, Clone, Copy)]
pub struct Way {
    /// The upstream port.
    pub port: PortId,
    /// The endpoint.
    pub endpoint: SocketAddr,
}

/// One worker without a kernel.
pub struct DatagramBench {
    balancer: Balancer,
    ops: Ops,
    /// The time of the next turn.
    pub now: Instant,
}

/// The address of client `number`, as scattered as those of strangers.
#[must_use]
pub fn client(number: u32) -> SocketAddr {
    let scattered = number.wrapping_mul(2_654_435_761);
    let address = Ipv4Addr::from_bits(10 << 24 | scattered >> 8);
    SocketAddr::from((address, 1_024 + (scattered & 0xff) as u16))
}

/// A client's datagram of 64 bytes.
#[must_use]
pub fn request(client: SocketAddr) -> Completion {
    Completion::Datagrams {
        socket: DatagramSocket::Listener(ListenerId(0)),
        path: Path { peer: client, local: Some(LOCAL) },
        train: Train::new(0, 64, 0),
    }
}

/// An endpoint's reply of 64 bytes.
#[must_use]
pub fn reply(way: Way) -> Completion {
    Completion::Datagrams {
        socket: DatagramSocket::Port(way.port),
        path: Path { peer: way.endpoint, local: None },
        train: Train::new(0, 64, 0),
    }
}

impl DatagramBench {
    /// A balancer for `flows_max` flows that may be idle for `idle`, with a policy that is asked
    /// for each flow, or with one that is stateless.
    #[must_use]
    pub fn new(flows_max: u32, idle: Duration, stateless: bool) -> Self {
        let config = BalancerConfig {
            worker: 0,
            sessions_max: 16,
            datagram_flows_max: flows_max,
            flow_table_entries_max: 16,
            board: None,
            pools: PoolSizes { small: 16, bulk: 1 },
            hash_key: [1, 2],
            seed: 3,
            record_flows: false,
        };
        let policy: Box<dyn Policy> =
            if stateless { Box::new(TablePolicy::new()) } else { Box::new(RoundRobin::new()) };
        let balancer = Balancer::new(&config, snapshot(flows_max, idle), vec![policy]);
        for range in balancer.tables() {
            pointsman_ring::prefer_large_pages(range);
        }
        let ops = Ops::with_capacity(256 * Balancer::OPS_PER_COMPLETION_MAX);
        Self { balancer, ops, now: Instant::from_millis(1_000) }
    }

    /// Bytes of the flow table.
    #[must_use]
    pub fn table_bytes(&self) -> usize {
        self.balancer.tables_bytes()[0]
    }

    /// Flows now.
    #[must_use]
    pub fn flows(&self) -> u64 {
        self.balancer.stats().listeners[0].flows_active
    }

    /// What has been counted.
    #[must_use]
    pub fn stats(&self) -> &pointsman_core::Stats {
        self.balancer.stats()
    }

    /// One turn of a worker; what it leads to stays until it is read.
    pub fn turn(&mut self, completions: &mut Vec<Completion>) {
        self.balancer.look_ahead(completions);
        self.handle(completions);
    }

    /// A turn without a look ahead.
    pub fn handle(&mut self, completions: &mut Vec<Completion>) {
        for completion in completions.drain(..) {
            self.balancer.handle(self.now, completion, &mut NoMemory, &mut self.ops);
        }
        self.balancer.handle_timeout(self.now, &mut self.ops);
    }

    /// The ways of what the last turns have forwarded to endpoints.
    pub fn forwarded(&mut self) -> impl Iterator<Item = Way> + '_ {
        self.ops.drain().filter_map(|op| match op {
            Op::Forward { socket: DatagramSocket::Port(port), peer, .. } => {
                Some(Way { port, endpoint: peer })
            }
            _ => None,
        })
    }

    /// Has everything ready to be handed over.
    pub fn stand_still(&mut self) {
        self.balancer.begin_handing_over(&mut self.ops);
        self.handle(&mut vec![Completion::Held, Completion::Held]);
        self.ops.drain().for_each(drop);
    }

    /// Hands over a slice, at most `steps` flows; all of it once there is no more.
    pub fn hand_over(&mut self, steps: u32) -> Option<Handed> {
        self.balancer.hand_over(self.now, steps, &mut self.ops)
    }

    /// Goes on with what another has handed over. Tells how many flows that is.
    pub fn take_over(&mut self, handed: &Handed) -> u32 {
        self.balancer.take_over(self.now, handed, &mut self.ops).0.flows
    }

    /// Starts the flows of clients `from` to `to`, confirmed by a reply. Returns their ways.
    pub fn open(&mut self, clients: std::ops::Range<u32>) -> Vec<Way> {
        let mut ways = Vec::with_capacity(clients.len());
        for number in clients {
            self.turn(&mut vec![request(client(number))]);
            let way = self.forwarded().next().expect("the client is admitted");
            self.turn(&mut vec![reply(way)]);
            self.ops.drain().for_each(drop);
            ways.push(way);
        }
        ways
    }
}

fn snapshot(flows_max: u32, idle: Duration) -> Arc<Snapshot> {
    let tcp = crate::snapshot_of(crate::candidates_with_table(ENDPOINTS));
    let listener = &tcp.listeners[0];
    let listener = Listener {
        name: listener.name.clone(),
        protocol: Protocol::Udp,
        flows_max,
        flows_active: Arc::default(),
        sockets_open: Arc::default(),
        all_flows: AllFlows::unlimited(),
        access: None,
        timeouts: Timeouts { idle, ..listener.timeouts },
        datagrams: DatagramSettings { ports_max: 16_384, ..DatagramSettings::DEFAULT },
        key: None,
        new_flow_rate: None,
        new_flow_rate_per_client: None,
        flows_per_client: None,
        proxy: None,
        ..*listener
    };
    let clusters = tcp.clusters.iter().map(|cluster| pointsman_core::Cluster {
        name: cluster.name.clone(),
        endpoints: cluster.endpoints.clone(),
        candidates: Arc::clone(&cluster.candidates),
        footing: cluster.footing,
        proxy: None,
        transparent: false,
        trial: None,
        queue: cluster.queue.clone(),
    });
    Arc::new(Snapshot {
        generation: tcp.generation,
        listeners: [listener].into(),
        clusters: clusters.collect(),
        drain_until: None,
    })
}
