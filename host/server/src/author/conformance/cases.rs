//! What a policy is asked: the same for everybody, each time.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use pointsman_core::boundary::ListenerId;
use pointsman_core::policy::Flow;
use pointsman_core::{Candidates, Endpoint, EndpointId, Generation, Instant, Protocol};

/// How much time lies between two flows.
const GAP: Duration = Duration::from_millis(3);

/// One question, with all that it depends on.
#[derive(Debug, Clone)]
pub(super) struct Case {
    pub(super) among: Arc<Candidates>,
    pub(super) now: Instant,
    pub(super) tried: Vec<EndpointId>,
    protocol: Protocol,
    client: SocketAddr,
    local: SocketAddr,
    key: Option<u64>,
    attempt: u32,
    random: u64,
}

impl Case {
    pub(super) fn flow(&self) -> Flow<'_> {
        Flow {
            protocol: self.protocol,
            client: self.client,
            local: self.local,
            listener: ListenerId(0),
            key: self.key,
            attempt: self.attempt,
            tried: &self.tried,
            now: self.now,
            random: self.random,
        }
    }
}

/// Questions without end, and the list that they are about.
pub(super) struct Cases {
    among: Arc<Candidates>,
    generation: u64,
    now: Instant,
    bits: u64,
}

impl Cases {
    /// Questions about a list of this length.
    pub(super) fn new(length: usize) -> Self {
        let mut cases = Self {
            among: Arc::new(candidates(0, Vec::new())),
            generation: 0,
            now: Instant::from_millis(1_000),
            bits: 0x5eed,
        };
        cases.relist((0..length).map(endpoint).collect());
        cases
    }

    pub(super) fn list(&self) -> Arc<Candidates> {
        Arc::clone(&self.among)
    }

    /// The next question; by and by, all kinds come up.
    pub(super) fn next(&mut self) -> Case {
        let bits = self.random();
        self.live(bits);
        let number = (bits >> 32) as u32;
        let ip: IpAddr = match bits & 3 {
            0 => Ipv6Addr::from_bits(0x2001_0db8 << 96 | u128::from(number)).into(),
            _ => Ipv4Addr::from_bits(0x0a00_0000 | number & 0xff_ffff).into(),
        };
        Case {
            among: Arc::clone(&self.among),
            now: self.now,
            tried: Vec::new(),
            protocol: if bits & 4 == 0 { Protocol::Udp } else { Protocol::Tcp },
            client: SocketAddr::new(ip, 1_024 | number as u16),
            local: local(ip),
            key: (bits & 8 == 0).then(|| self.random() | 1),
            attempt: 0,
            random: self.random(),
        }
    }

    /// Questions at the edges.
    pub(super) fn of_every_kind(&mut self) -> Vec<(&'static str, Case)> {
        let case = |cases: &mut Self, client: &str| {
            let client = client.parse().expect("an address");
            Case { client, local: local(client.ip()), ..cases.next() }
        };
        let (v4, v6) = ("192.0.2.1:5000", "[2001:db8::1]:5000");
        vec![
            ("tcp over ipv4", Case { protocol: Protocol::Tcp, ..case(self, v4) }),
            ("udp over ipv4", Case { protocol: Protocol::Udp, ..case(self, v4) }),
            ("tcp over ipv6", Case { protocol: Protocol::Tcp, ..case(self, v6) }),
            ("udp over ipv6", Case { protocol: Protocol::Udp, ..case(self, v6) }),
            ("the smallest key", Case { key: Some(1), ..case(self, v4) }),
            ("the largest key", Case { key: Some(u64::MAX), ..case(self, v6) }),
            ("no key", Case { key: None, ..case(self, v4) }),
            ("no random bit", Case { random: 0, ..case(self, v4) }),
            ("every random bit", Case { random: u64::MAX, ..case(self, v4) }),
            ("the lowest address", case(self, "0.0.0.0:0")),
            ("the highest address", case(self, "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535")),
            ("the first moment", Case { now: Instant::ZERO, ..case(self, v4) }),
            ("years later", Case { now: Instant::from_millis(1 << 40), ..case(self, v4) }),
        ]
    }

    /// Connecting to an endpoint has failed: the same flow again.
    pub(super) fn retry(&mut self, case: &mut Case, endpoint: usize) {
        case.tried.push(case.among.endpoints[endpoint].id);
        case.attempt += 1;
        case.random = self.random();
    }

    /// Changes the list: somebody leaves, joins, or weighs something else; never to nothing.
    pub(super) fn change(&mut self) {
        let bits = self.random();
        let mut list = self.among.endpoints.to_vec();
        let place = (bits >> 8) as usize % list.len();
        match bits % 4 {
            0 if list.len() > 1 => {
                list.remove(place);
            }
            1 => list[place].weight = (bits >> 32) as u32 % 100 + 1,
            2 if list.len() > 1 => list.truncate(list.len() / 2),
            _ => {
                let known = |number: &usize| list.iter().any(|it| it.id == endpoint(*number).id);
                let fresh: Vec<_> = (0..64).filter(|number| !known(number)).take(2).collect();
                list.extend(fresh.into_iter().map(endpoint));
            }
        }
        list.sort_by_key(|endpoint| endpoint.id);
        self.relist(list);
    }

    fn relist(&mut self, list: Vec<Endpoint>) {
        self.generation += 1;
        self.among = Arc::new(candidates(self.generation, list));
    }

    /// Lets an endpoint have been busy.
    fn live(&mut self, bits: u64) {
        self.now = self.now + GAP;
        let place = (bits >> 16) as usize % self.among.len();
        let load = &self.among.endpoints[place].load;
        match bits >> 4 & 7 {
            0 => load.on_connect_failed(self.now),
            1 | 2 if load.flows_active() > 0 => load.on_flow_ended(),
            3 => load.on_connected(self.now, Duration::from_micros(bits >> 54)),
            4 => load.on_first_byte(self.now, Duration::from_micros(bits >> 50)),
            _ => load.on_flow_started(),
        }
    }

    /// `SplitMix64`.
    fn random(&mut self) -> u64 {
        self.bits = self.bits.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.bits;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }
}

fn candidates(generation: u64, list: Vec<Endpoint>) -> Candidates {
    Candidates { generation: Generation(generation), endpoints: list.into(), table: None }
}

/// The endpoint of this number; every other third one is reached by IPv6.
fn endpoint(number: usize) -> Endpoint {
    let number = number as u32;
    let ip: IpAddr = if number % 3 == 2 {
        Ipv6Addr::from_bits(0xfd00 << 112 | u128::from(number)).into()
    } else {
        Ipv4Addr::from_bits(0x0aff_0000 + number).into()
    };
    Endpoint {
        id: EndpointId(number),
        address: SocketAddr::new(ip, 80),
        weight: number % 5 + 1,
        flows_max: u32::MAX,
        load: Arc::default(),
    }
}

/// The listener's address, of the client's family.
fn local(client: IpAddr) -> SocketAddr {
    match client {
        IpAddr::V4(_) => SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 443),
        IpAddr::V6(_) => SocketAddr::new(Ipv6Addr::LOCALHOST.into(), 443),
    }
}
