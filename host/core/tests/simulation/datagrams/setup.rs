//! The worlds that a seed may begin with, and the policies in them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pointsman_core::boundary::Path;
use pointsman_core::eligibility::Footing;
use pointsman_core::policy::{
    Decided, Decision, EndpointIndex, Flow, LeastFlows, Method, Policy, RoundRobin, Scope, Source,
    TablePolicy, Verdict,
};
use pointsman_core::preread::KeyRule;
use pointsman_core::{
    AccessList, AllFlows, Candidates, Cluster, ClusterId, DatagramSettings, Endpoint, EndpointId,
    EndpointState, Generation, Instant, Listener, Network, OnEndpointDown, Openness, PrefixLengths,
    Protocol, Queue, SharedRate, Snapshot, SourceCounts, SourceRates, Timeouts,
};

use super::model::Model;
use crate::passive::all_of;
use crate::rng::Rng;

pub(super) const PREFIX: PrefixLengths = PrefixLengths { v4: 32, v6: 64 };
/// Where the key stands in a datagram.
pub(super) const KEY: (u16, u16) = (2, 4);

/// What a policy under observation was asked and answered.
#[derive(Debug, Clone, Copy)]
pub(super) struct Call {
    pub(super) client: SocketAddr,
    pub(super) key: Option<u64>,
    pub(super) decision: Decision,
}

/// The calls since it was last looked at, and how many there have ever been.
pub(super) type CallLog = Arc<Mutex<(Vec<Call>, u32)>>;

/// The policies of a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Scripted,
    RoundRobin,
    LeastFlows,
    Maglev,
}

impl Kind {
    pub(super) fn pick(rng: &mut Rng) -> Self {
        let scripted = Self::Scripted;
        rng.pick(&[scripted, scripted, Self::RoundRobin, Self::LeastFlows, Self::Maglev])
    }

    pub(super) fn source(self) -> Source {
        match self {
            Self::Scripted => Source::Plugin,
            Self::RoundRobin | Self::LeastFlows => Source::Native,
            Self::Maglev => Source::Table,
        }
    }

    pub(super) fn policy(self, calls: &CallLog, taste: &Taste) -> Box<dyn Policy> {
        match self {
            Self::Scripted => Box::new(Scripted { calls: calls.clone(), taste: taste.clone() }),
            Self::RoundRobin => Box::new(RoundRobin::new()),
            Self::LeastFlows => Box::new(LeastFlows::new()),
            Self::Maglev => Box::new(TablePolicy::new()),
        }
    }
}

/// What a scripted policy likes to answer.
#[derive(Debug, Clone)]
pub(super) struct Taste {
    denies: u64,
    scopes: Vec<Scope>,
    throttles: u64,
}

impl Taste {
    pub(super) fn pick(rng: &mut Rng) -> Self {
        let all = vec![Scope::Flow, Scope::Client, Scope::Key, Scope::None];
        let scopes = match rng.below(4) {
            0 => vec![Scope::Flow],
            1 => vec![Scope::Client],
            _ => all,
        };
        Self { denies: rng.pick(&[0, 50, 300]), scopes, throttles: rng.pick(&[0, 200]) }
    }
}

/// A policy whose every answer is logged and has a mark of its own, and which answers all that a
/// plugin may.
struct Scripted {
    calls: CallLog,
    taste: Taste,
}

impl Policy for Scripted {
    fn decide(&mut self, flow: &Flow<'_>, among: &Arc<Candidates>) -> Decided {
        let mut rng = Rng::new(flow.random);
        let mut log = self.calls.lock().expect("nobody panicked");
        log.1 += 1;
        let index = EndpointIndex(rng.below(among.endpoints.len() as u64) as u32);
        let denied = if rng.chance(500) { Verdict::Reset } else { Verdict::Drop };
        let denies = rng.chance(self.taste.denies);
        let decision = Decision {
            verdict: if denies { denied } else { Verdict::Forward(index) },
            scope: rng.pick(&self.taste.scopes),
            ttl: Duration::from_millis(rng.pick(&[0, 40, 700, 10_000])),
            sliding: rng.chance(500),
            method: Method {
                idle_timeout: rng.chance(200).then_some(Duration::from_millis(300)),
                throttle_kib_s: rng.chance(self.taste.throttles).then(|| rng.pick(&[1, 100])),
                announce: false,
                tag: log.1,
            },
        };
        log.0.push(Call { client: flow.client, key: flow.key, decision });
        Decided { decision, source: Source::Plugin }
    }
}

/// A world with one cluster for each listener.
pub(super) fn first_snapshot(rng: &mut Rng, listeners: usize, keyed: bool) -> Snapshot {
    let generation = Generation(1);
    let all_flows =
        AllFlows { max: rng.pick(&[u32::MAX, u32::MAX, 3, 12]), active: Arc::default() };
    let listener = |number| listener(rng, number, keyed, &all_flows);
    Snapshot {
        generation,
        listeners: (0..listeners).map(listener).collect(),
        clusters: (0..listeners).map(|number| cluster(rng, number, generation)).collect(),
        drain_until: None,
    }
}

fn listener(rng: &mut Rng, number: usize, keyed: bool, all_flows: &AllFlows) -> Listener {
    let per_client = rng.chance(300).then(|| Arc::new(source_counts(rng)));
    let own_rate = rng.chance(250).then(|| Arc::new(source_rates(rng)));
    let rate = rng.chance(250).then(|| Arc::new(SharedRate::new(rng.pick(&[1, 5, 50]))));
    let (offset, length) = KEY;
    Listener {
        name: format!("listener-{number}").into(),
        address: SocketAddr::from((Ipv4Addr::LOCALHOST, 53)),
        protocol: Protocol::Udp,
        openness: Openness::Open,
        cluster: ClusterId(number as u16),
        flows_max: rng.pick(&[2, 10, 1_000, 1_000]),
        flows_active: Arc::default(),
        sockets_open: Arc::default(),
        all_flows: all_flows.clone(),
        access: rng.chance(250).then(|| Arc::new(AccessList::new(&ALLOWED, &DENIED))),
        client_prefix: PREFIX,
        connect_attempts: 1,
        on_endpoint_down: rng.pick(&[
            OnEndpointDown::Keep,
            OnEndpointDown::Reallocate,
            OnEndpointDown::Reallocate,
            OnEndpointDown::Drop,
        ]),
        timeouts: Timeouts {
            preread: Duration::from_secs(1),
            connect: Duration::from_secs(1),
            idle: Duration::from_millis(rng.pick(&[200, 2_000, 60_000])),
            half_closed: Duration::from_secs(1),
        },
        key: (keyed && rng.chance(700)).then_some(KeyRule::Bytes { offset, length }),
        preread_bytes_max: 16_384,
        new_flow_rate: rate,
        new_flow_rate_per_client: own_rate,
        flows_per_client: per_client,
        proxy: None,
        datagrams: DatagramSettings {
            replies_expected: rng.pick(&[0, 0, 1, 2]),
            ports_max: rng.pick(&[1, 3, 12, 100]),
            ports_min: rng.pick(&[1, 2, 8, 32]),
            port_per_flow: rng.chance(300),
            offload: rng.chance(500),
            announce: crate::introduction::outbound(rng),
        },
    }
}

/// How much larger the numbers of endpoints are in a process that takes over from another.
pub(super) const RENUMBERED_BY: u32 = 7;

/// The same world as another process has it: it has counted nothing, its endpoints have other numbers,
/// and sometimes one of them is no longer configured.
pub(super) fn afresh(rng: &mut Rng, before: &Snapshot, model: &Model) -> Snapshot {
    let mut after = crate::workload::copy(before);
    let all_flows = AllFlows { active: Arc::default(), ..before.listeners[0].all_flows.clone() };
    for (place, listener) in after.listeners.iter_mut().enumerate() {
        listener.flows_active = Arc::default();
        listener.all_flows = all_flows.clone();
        let rate = model.per_second[place].map(|rate| SharedRate::new(rate as u32));
        listener.new_flow_rate = rate.map(Arc::new);
        let own = model.per_second_of_client[place].map(|rate| rate as u32);
        let own = own.map(|rate| SourceRates::new(rate, 1, PREFIX, apart(rng)));
        listener.new_flow_rate_per_client = own.map(Arc::new);
        let counts = model.per_client[place];
        let counts = counts.map(|max| SourceCounts::new(max, 1, PREFIX, apart(rng)));
        listener.flows_per_client = counts.map(Arc::new);
    }
    for cluster in &mut after.clusters {
        let mut endpoints = cluster.endpoints.to_vec();
        if endpoints.len() > 1 && rng.chance(200) {
            endpoints.remove(rng.below(endpoints.len() as u64) as usize);
        }
        for EndpointState { endpoint, .. } in &mut endpoints {
            endpoint.id.0 += RENUMBERED_BY;
            endpoint.load = Arc::default();
        }
        cluster.candidates = Arc::new(all_of(after.generation, &endpoints));
        cluster.endpoints = endpoints.into();
    }
    after
}

/// Networks of whose clients some may come where there is a list.
const ALLOWED: [Network; 2] = [
    network4([192, 0, 2, 0], 24),
    Network { address: IpAddr::V6(Ipv6Addr::UNSPECIFIED), length: 0 },
];
/// Those who may not.
const DENIED: [Network; 2] = [network4([192, 0, 2, 2], 31), network4([192, 0, 2, 7], 32)];

const fn network4([a, b, c, d]: [u8; 4], length: u8) -> Network {
    Network { address: IpAddr::V4(Ipv4Addr::new(a, b, c, d)), length }
}

/// What the lists above mean for the clients there are.
pub(super) fn is_denied(client: IpAddr) -> bool {
    [2, 3, 7].map(|host| IpAddr::from([192, 0, 2, host])).contains(&client)
}

/// A secret with which no two of the clients fall on the same places.
fn apart(rng: &mut Rng) -> [u64; 2] {
    for _ in 0..1_000 {
        let key = [rng.next(), rng.next()];
        let alone = |client: &SocketAddr| {
            let counts = SourceCounts::new(1, 1, PREFIX, key);
            let prefix = PREFIX.mask(client.ip());
            let others = CLIENTS.iter().filter(|other| PREFIX.mask(other.ip()) != prefix);
            let added = others.filter(|other| counts.try_add(other.ip())).count();
            added > 0 && counts.try_add(client.ip())
        };
        if CLIENTS.iter().all(alone) {
            return key;
        }
    }
    panic!("whatever the secret, clients fall on the same places");
}

fn source_counts(rng: &mut Rng) -> SourceCounts {
    let max = rng.pick(&[1, 3]);
    SourceCounts::new(max, 1, PREFIX, apart(rng))
}

fn source_rates(rng: &mut Rng) -> SourceRates {
    let per_second = rng.pick(&[1, 4]);
    SourceRates::new(per_second, 1, PREFIX, apart(rng))
}

/// What `SourceRates` was told, which it does not say: as many at once after a quiet second.
pub(super) fn per_second_of_client(rates: &SourceRates) -> u64 {
    let nobody = IpAddr::from([203, 0, 113, 77]);
    let now = Instant::ZERO;
    (0..).take_while(|_| rates.try_take(now, nobody)).count() as u64
}

/// What `SourceCounts` was told, which it does not say: how many flows a client may have.
pub(super) fn per_client_max(counts: &SourceCounts) -> u32 {
    let nobody = IpAddr::from([203, 0, 113, 77]);
    let added = (0..).take_while(|_| counts.try_add(nobody)).count() as u32;
    (0..added).for_each(|_| counts.remove(nobody));
    added
}

/// What a `SharedRate` was told, which it does not say: how many things may happen in a second.
pub(super) fn per_second(rate: &SharedRate) -> u64 {
    [1, 5, 50].into_iter().find(|rate_of| format!("{rate:?}") == shown(*rate_of)).expect("a rate")
}

fn shown(per_second: u64) -> String {
    format!("{:?}", SharedRate::new(per_second as u32))
}

fn cluster(rng: &mut Rng, number: usize, generation: Generation) -> Cluster {
    let limited = rng.chance(250);
    let ids = 0..rng.between(1, 5) as u32;
    let endpoints: Box<[EndpointState]> =
        ids.map(|id| endpoint(rng, number, (id, id), limited)).collect();
    Cluster {
        name: format!("cluster-{number}").into(),
        candidates: Arc::new(all_of(generation, &endpoints)),
        endpoints,
        footing: Footing::Sound,
        proxy: None,
        transparent: rng.chance(250),
        trial: None,
        queue: Queue::none(2),
    }
}

/// An endpoint that stands at the `host`th address of its cluster.
pub(super) fn endpoint(
    rng: &mut Rng,
    cluster: usize,
    (id, host): (u32, u32),
    limited: bool,
) -> EndpointState {
    let address: IpAddr = if host % 3 == 2 {
        Ipv6Addr::new(0x2001, 0xdb8, 10, cluster as u16, 0, 0, 0, host as u16).into()
    } else {
        Ipv4Addr::new(10, 0, cluster as u8, host as u8).into()
    };
    let endpoint = Endpoint {
        id: EndpointId(id),
        address: (address, 53).into(),
        weight: rng.between(1, 4) as u32,
        flows_max: if limited { rng.pick(&[1, 2, 4]) } else { u32::MAX },
        load: Arc::default(),
    };
    EndpointState::sound(endpoint)
}

const fn v4(host: u8, port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, host)), port)
}

const fn v6(link: u16, host: u16, port: u16, scope: u32) -> SocketAddr {
    let start = if scope == 0 { 0x2001 } else { 0xfe80 };
    let address = Ipv6Addr::new(start, 0xdb8, 0, link, 0, 0, 0, host);
    SocketAddr::V6(SocketAddrV6::new(address, port, 0, scope))
}

/// Everybody who sends: some behind one address, some in one IPv6 prefix, one on our own link.
pub(super) const CLIENTS: [SocketAddr; 16] = [
    v4(1, 1_000),
    v4(1, 1_001),
    v4(1, 1_002),
    v4(2, 1_000),
    v4(2, 7),
    v4(3, 1_000),
    v4(4, 1_000),
    v4(5, 1_000),
    v4(6, 1_000),
    v4(7, 1_000),
    v6(1, 1, 1_000, 0),
    v6(1, 2, 1_000, 0),
    v6(1, 2, 1_001, 0),
    v6(2, 1, 1_000, 0),
    v6(3, 1, 1_000, 7),
    v6(3, 2, 1_000, 7),
];

/// A client's way to one of our addresses.
pub(super) fn path(rng: &mut Rng, clients: usize) -> Path {
    let peer = CLIENTS[(rng.below(clients as u64) as usize * 7) % CLIENTS.len()];
    let second = rng.chance(200);
    let local: IpAddr = match (peer, second) {
        (SocketAddr::V4(_), false) => Ipv4Addr::new(198, 51, 100, 1).into(),
        (SocketAddr::V4(_), true) => Ipv4Addr::new(198, 51, 100, 2).into(),
        (SocketAddr::V6(_), false) => Ipv6Addr::new(0x2001, 0xdb8, 0xf, 0, 0, 0, 0, 1).into(),
        (SocketAddr::V6(_), true) => Ipv6Addr::new(0x2001, 0xdb8, 0xf, 0, 0, 0, 0, 2).into(),
    };
    let is_known = peer.is_ipv6() || !rng.chance(100);
    Path { peer, local: is_known.then_some(local) }
}
