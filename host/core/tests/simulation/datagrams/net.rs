//! One worker's datagram sockets, and the endpoints at their other end.
//!
//! It performs ops and produces completions under the contract of
//! [`boundary`](pointsman_core::boundary), in any order the contract allows, and panics at any op
//! that breaks it. Endpoints answer as they like: not at all, twice, late, from elsewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use pointsman_core::Instant;
use pointsman_core::boundary::{
    Buffer, Completion, DatagramSocket, Link, ListenerId, LossCause, Memory, Op, Path, PortId,
    PortKind, Train,
};
use pointsman_core::handover::{HandedPort, TakenPort};

use super::succession::renumbered;
use crate::rng::Rng;

/// How badly things go, in times per thousand.
#[derive(Debug, Clone)]
pub(super) struct Faults {
    pub(super) port_fails: u64,
    pub(super) lost: u64,
    pub(super) silent: u64,
    pub(super) strangers: u64,
    pub(super) repeats: u64,
    pub(super) unreachable: u64,
}

impl Faults {
    pub(super) const NONE: Self =
        Self { port_fails: 0, lost: 0, silent: 0, strangers: 0, repeats: 0, unreachable: 0 };
}

/// What one or more datagrams carry.
#[derive(Debug, Clone)]
pub(super) struct Cargo {
    pub(super) first: Vec<u8>,
    pub(super) len: u32,
    pub(super) segment: u32,
}

impl Cargo {
    /// A single datagram.
    pub(super) fn single(first: Vec<u8>) -> Self {
        Self { len: first.len() as u32, first, segment: 0 }
    }

    /// As many datagrams like the first, and a shorter one.
    pub(super) fn train(first: Vec<u8>, more: u32, rest: u32) -> Self {
        let segment = first.len() as u32;
        if segment == 0 {
            return Self::single(first);
        }
        Self { len: segment * (1 + more) + rest % segment, first, segment }
    }
}

/// What is on its way to the worker.
#[derive(Debug)]
enum Coming {
    Datagrams { socket: DatagramSocket, path: Path, cargo: Cargo },
    Lost { socket: DatagramSocket, datagrams: u32, cause: LossCause },
    Failed(PortId),
    Unreachable(PortId),
    Closed(PortId),
}

#[derive(Debug)]
struct Port {
    kind: PortKind,
    fails: bool,
    closing: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Listening {
    Open,
    Stopping,
    Ended,
}

pub(super) struct Net {
    rng: Rng,
    pub(super) faults: Faults,
    listeners: Vec<Listening>,
    ports: BTreeMap<PortId, Port>,
    /// Numbers of ports that failed and are not used again yet.
    failed: BTreeSet<PortId>,
    /// Those among them of which the balancer may not know yet.
    just_failed: BTreeSet<PortId>,
    ports_max: u32,
    /// First datagrams of the trains that the balancer has.
    trains: BTreeMap<u32, Vec<u8>>,
    buffers: u32,
    coming: Vec<(Instant, Coming)>,
    /// Whether datagrams are received.
    receives: bool,
    /// Whether it has been asked to hold, and has not said yet that it does.
    is_asked_to_hold: bool,
}

/// Sockets on their way to another process, and what waits in them.
pub(super) struct Sockets {
    /// In the order of the list.
    ports: Vec<Port>,
    coming: Vec<(Instant, Coming)>,
}

impl Coming {
    /// Whether it waits in a socket.
    fn waits(&self) -> bool {
        use LossCause::Truncated;
        matches!(self, Self::Datagrams { .. } | Self::Lost { cause: Truncated, .. })
    }

    /// Where, if it does not concern a port as such.
    fn socket(&mut self) -> Option<&mut DatagramSocket> {
        match self {
            Self::Datagrams { socket, .. } | Self::Lost { socket, .. } => Some(socket),
            _ => None,
        }
    }
}

impl Net {
    pub(super) fn new(rng: Rng, faults: Faults, listeners: usize, ports_max: u32) -> Self {
        Self {
            rng,
            faults,
            listeners: vec![Listening::Open; listeners],
            ports: BTreeMap::new(),
            failed: BTreeSet::new(),
            just_failed: BTreeSet::new(),
            ports_max,
            trains: BTreeMap::new(),
            buffers: 0,
            coming: Vec::new(),
            receives: true,
            is_asked_to_hold: false,
        }
    }

    /// A client sends to a listener; tells whether anybody receives it.
    pub(super) fn send(&mut self, now: Instant, listener: ListenerId, path: Path, cargo: Cargo) {
        if self.listeners[listener.index()] == Listening::Ended {
            return;
        }
        let socket = DatagramSocket::Listener(listener);
        if self.rng.chance(self.faults.lost / 4) {
            let cause = LossCause::Truncated;
            self.coming.push((now, Coming::Lost { socket, datagrams: 1, cause }));
        }
        self.coming.push((now, Coming::Datagrams { socket, path, cargo }));
    }

    /// Lets up to `count` things happen whose time has come, in any order.
    pub(super) fn collect(&mut self, now: Instant, count: u64) -> Vec<Completion> {
        let mut completions = Vec::new();
        self.just_failed.clear();
        for _ in 0..count {
            let is_due = |&place: &usize| {
                let (at, coming) = &self.coming[place];
                *at <= now && (self.receives || !coming.waits())
            };
            let due: Vec<usize> = (0..self.coming.len()).filter(is_due).collect();
            if due.is_empty() {
                break;
            }
            let (_, coming) = self.coming.swap_remove(self.rng.pick(&due));
            completions.extend(self.complete(coming));
        }
        for (place, listening) in self.listeners.iter_mut().enumerate() {
            if *listening == Listening::Stopping && self.rng.chance(300) {
                *listening = Listening::Ended;
                let listener = ListenerId(place as u16);
                completions.push(Completion::AcceptEnded { listener });
            }
        }
        if self.is_asked_to_hold && self.rng.chance(300) && (self.receives || !self.has_news()) {
            (self.is_asked_to_hold, self.receives) = (false, false);
            completions.push(Completion::Held);
        }
        completions
    }

    /// Whether something is to be said yet of what has been sent and opened.
    fn has_news(&self) -> bool {
        let is_news = |coming: &Coming| !coming.waits() && !matches!(coming, Coming::Closed(_));
        self.coming.iter().any(|(_, coming)| is_news(coming))
    }

    fn hold(&mut self, now: Instant) {
        self.is_asked_to_hold = true;
        for (at, coming) in &mut self.coming {
            if !coming.waits() {
                *at = now.min(*at);
            }
        }
    }

    /// Gives the sockets of listeners and of these ports away.
    pub(super) fn give(&mut self, ports: &[HandedPort]) -> Sockets {
        assert!(!self.receives && !self.has_news(), "something is under way");
        let is_given = |number: PortId| ports.iter().position(|port| port.port == number);
        let mut sockets = Sockets { ports: Vec::new(), coming: Vec::new() };
        for port in ports {
            let open = self.ports.remove(&port.port).expect("an open port goes over");
            assert!(!open.fails && !open.closing && open.kind.connected == port.connected);
            sockets.ports.push(open);
        }
        for (at, mut coming) in std::mem::take(&mut self.coming) {
            let goes = match coming.socket() {
                None => false,
                Some(DatagramSocket::Listener(_)) => true,
                Some(DatagramSocket::Port(number)) => match is_given(*number) {
                    Some(place) => {
                        *number = PortId(place as u32);
                        true
                    }
                    None => false,
                },
            };
            if goes { sockets.coming.push((at, coming)) } else { self.coming.push((at, coming)) }
        }
        sockets
    }

    /// Opens the sockets that are needed here.
    pub(super) fn take(&mut self, sockets: Sockets, taken: &[TakenPort]) {
        let mut numbers = BTreeMap::new();
        for (place, port) in sockets.ports.into_iter().enumerate() {
            let Some(TakenPort { port: number, kind, .. }) = renumbered(taken, place) else {
                continue;
            };
            let one_family = kind.towards.is_ipv4() == port.kind.towards.is_ipv4();
            assert!(one_family && kind.connected == port.kind.connected);
            assert!(!kind.connected || kind.towards == port.kind.towards);
            assert!(number.0 < self.ports_max, "numbers are below the maximum");
            self.failed.remove(number);
            self.just_failed.remove(number);
            let old = self.ports.insert(*number, port);
            assert!(old.is_none(), "{number:?} is not free");
            numbers.insert(PortId(place as u32), *number);
        }
        for (at, mut coming) in sockets.coming {
            if let Some(DatagramSocket::Port(number)) = coming.socket() {
                let Some(known) = numbers.get(number) else { continue };
                *number = *known;
            }
            self.coming.push((at, coming));
        }
    }

    fn complete(&mut self, coming: Coming) -> Option<Completion> {
        match coming {
            Coming::Datagrams { socket, path, cargo } => {
                let socket = self.receiver(socket);
                let open = match socket {
                    DatagramSocket::Listener(listener) => {
                        self.listeners[listener.index()] != Listening::Ended
                    }
                    DatagramSocket::Port(port) => self.is_open(port),
                };
                open.then(|| {
                    self.buffers += 1;
                    let train = Train::new(self.buffers, cargo.len, cargo.segment);
                    self.trains.insert(self.buffers, cargo.first);
                    Completion::Datagrams { socket, path, train }
                })
            }
            Coming::Lost { socket, datagrams, cause } => {
                let open = match socket {
                    DatagramSocket::Listener(at) => self.listeners[at.index()] != Listening::Ended,
                    DatagramSocket::Port(port) => self.is_open(port),
                };
                open.then_some(Completion::Lost { socket, datagrams, cause })
            }
            Coming::Failed(port) => {
                self.ports.remove(&port);
                self.failed.insert(port);
                self.just_failed.insert(port);
                Some(Completion::PortFailed { port })
            }
            Coming::Unreachable(port) => {
                self.is_open(port).then_some(Completion::PortUnreachable { port })
            }
            Coming::Closed(port) => {
                let heir = self.alike(port).find(|other| *other != port);
                self.ports.remove(&port);
                self.bequeath(port, heir);
                self.forget(port);
                Some(Completion::PortClosed { port })
            }
        }
    }

    /// Who receives what comes to a socket. Of the ports with one client's address towards one endpoint
    /// any may.
    fn receiver(&mut self, socket: DatagramSocket) -> DatagramSocket {
        let DatagramSocket::Port(number) = socket else { return socket };
        let alike: Vec<PortId> = self.alike(number).collect();
        DatagramSocket::Port(if alike.is_empty() { number } else { self.rng.pick(&alike) })
    }

    /// The ports that have the same client's address as this one, and the same peer.
    fn alike(&self, number: PortId) -> impl Iterator<Item = PortId> {
        let lent = self.ports.get(&number).map(|port| port.kind).filter(|kind| kind.from.is_some());
        let ports = self.ports.iter().filter(|(_, port)| !port.fails);
        let place = |kind: PortKind| (kind.from, kind.towards);
        let alike = ports.filter(move |(_, port)| Some(place(port.kind)) == lent.map(place));
        alike.map(|(number, _)| *number)
    }

    fn is_open(&self, port: PortId) -> bool {
        self.ports.get(&port).is_some_and(|port| !port.fails)
    }

    /// What was on its way to this port comes to the other that has the same address, if there is one.
    fn bequeath(&mut self, gone: PortId, heir: Option<PortId>) {
        let Some(heir) = heir else { return };
        for (_, coming) in &mut self.coming {
            if let Coming::Datagrams { socket, .. } = coming
                && *socket == DatagramSocket::Port(gone)
            {
                *socket = DatagramSocket::Port(heir);
            }
        }
    }

    /// Nothing that was on its way to this port arrives: the number may come to mean another.
    fn forget(&mut self, gone: PortId) {
        self.coming.retain(|(_, coming)| match coming {
            Coming::Datagrams { socket, .. } | Coming::Lost { socket, .. } => {
                *socket != DatagramSocket::Port(gone)
            }
            Coming::Failed(port) | Coming::Unreachable(port) | Coming::Closed(port) => {
                *port != gone
            }
        });
    }

    /// Performs one op, or panics if the contract does not allow it.
    pub(super) fn perform(&mut self, now: Instant, op: Op) {
        match op {
            Op::OpenPort { port, kind } => self.open(now, port, kind),
            // It crosses with the failure, which says it all.
            Op::ClosePort { port } if self.just_failed.remove(&port) => {}
            Op::ClosePort { port } => {
                let open = self.ports.get_mut(&port).expect("only an open port is closed");
                assert!(!open.closing, "a port is closed once");
                open.closing = true;
                if !open.fails {
                    let at = now + Duration::from_millis(self.rng.pick(&[0, 5, 500]));
                    self.coming.push((at, Coming::Closed(port)));
                }
            }
            Op::Forward { socket, peer, local, train } => {
                self.give_back(&train);
                match socket {
                    DatagramSocket::Listener(listener) => {
                        assert_eq!(self.listeners[listener.index()], Listening::Open);
                        assert!(local.is_some_and(|ip| ip.is_ipv4() == peer.is_ipv4()));
                        self.lose_some(now, socket, &train);
                    }
                    DatagramSocket::Port(port) => {
                        assert_eq!(local, None, "a port has one address");
                        self.deliver(now, port, peer, &train);
                    }
                }
            }
            Op::Discard { train } => self.give_back(&train),
            Op::Announce { .. } => {}
            Op::Hold => self.hold(now),
            Op::Resume => self.receives = true,
            Op::StopAccepting { listener } => {
                assert_eq!(self.listeners[listener.index()], Listening::Open, "stopped once");
                self.listeners[listener.index()] = Listening::Stopping;
            }
            other => panic!("no listener speaks streams: {other:?}"),
        }
    }

    fn give_back(&mut self, train: &Train) {
        assert!(self.trains.remove(&train.buffer()).is_some(), "a train leaves once");
    }

    fn open(&mut self, now: Instant, number: PortId, kind: PortKind) {
        assert!(number.0 < self.ports_max, "numbers are below the maximum");
        let one_family = |from: SocketAddr| from.is_ipv4() == kind.towards.is_ipv4();
        assert!(kind.from.is_none_or(|from| kind.connected && one_family(from)));
        assert!(!kind.makes_way || !kind.connected);
        let fails = self.rng.chance(self.faults.port_fails);
        let port = Port { kind, fails, closing: false };
        assert!(self.ports.insert(number, port).is_none(), "{number:?} is not free");
        self.failed.remove(&number);
        if fails {
            let at = now + Duration::from_millis(self.rng.pick(&[0, 0, 20]));
            self.coming.push((at, Coming::Failed(number)));
        }
    }

    /// Datagrams leave through a port.
    fn deliver(&mut self, now: Instant, number: PortId, peer: SocketAddr, train: &Train) {
        if self.failed.contains(&number) {
            return;
        }
        let port = self.ports.get(&number).expect("datagrams go through open ports");
        let kind = port.kind;
        assert!(!port.closing, "{number:?} is being closed");
        assert_eq!(kind.towards.is_ipv4(), peer.is_ipv4(), "a port has one address family");
        assert!(!kind.connected || kind.towards == peer, "a connected port has one peer");
        if port.fails || self.lose_some(now, DatagramSocket::Port(number), train) {
            return;
        }
        if self.rng.chance(self.faults.silent) {
            if kind.connected && self.rng.chance(self.faults.unreachable) {
                self.coming.push((now, Coming::Unreachable(number)));
            }
            return;
        }
        for _ in 0..self.rng.pick(&[1, 1, 1, 2, 3]) {
            self.reply(now, number, peer);
        }
    }

    /// An endpoint answers, or somebody else does.
    fn reply(&mut self, now: Instant, number: PortId, endpoint: SocketAddr) {
        let kind = self.ports[&number].kind;
        let mut from = endpoint;
        if !kind.connected && self.rng.chance(self.faults.strangers) {
            from.set_port(self.rng.pick(&[54, 1, endpoint.port()]));
            if let SocketAddr::V4(v4) = &mut from {
                let [a, b, c, _] = v4.ip().octets();
                v4.set_ip([a, b, c, self.rng.below(5) as u8].into());
            }
        }
        let first = vec![0xee; self.rng.pick(&[0, 1, 60, 512, 1_200])];
        let cargo = if kind.offload && self.rng.chance(200) {
            Cargo::train(first, self.rng.below(4) as u32, self.rng.below(1_200) as u32)
        } else {
            Cargo::single(first)
        };
        let copies = if self.rng.chance(self.faults.repeats) { 2 } else { 1 };
        for _ in 0..copies {
            let delay = self.rng.pick(&[0, 0, 0, 1, 30, 400, 3_000, 12_000]);
            let socket = DatagramSocket::Port(number);
            let path = Path { peer: from, local: None };
            let coming = Coming::Datagrams { socket, path, cargo: cargo.clone() };
            self.coming.push((now + Duration::from_millis(delay), coming));
        }
    }

    fn lose_some(&mut self, now: Instant, socket: DatagramSocket, train: &Train) -> bool {
        let lost = self.rng.chance(self.faults.lost);
        if lost {
            let causes = [LossCause::Full, LossCause::TooLarge, LossCause::Unreachable];
            let cause = self.rng.pick(&causes);
            let datagrams = self.rng.between(1, train.datagrams().into()) as u32;
            self.coming.push((now, Coming::Lost { socket, datagrams, cause }));
        }
        lost
    }

    /// When the next thing happens by itself.
    pub(super) fn next(&self) -> Option<Instant> {
        self.coming.iter().map(|(at, _)| *at).min()
    }

    pub(super) fn all_listeners_have_ended(&self) -> bool {
        self.listeners.iter().all(|listening| *listening == Listening::Ended)
    }

    pub(super) fn assert_nothing_is_held(&self) {
        assert!(self.trains.is_empty(), "trains were lost: {:?}", self.trains.keys());
    }
}

impl Memory for Net {
    fn bytes(&self, buffer: &Buffer) -> &[u8] {
        panic!("there are no connections here: {buffer:?}")
    }

    fn write(&mut self, bytes: &[u8]) -> Option<Buffer> {
        panic!("there are no connections here: {bytes:?}")
    }

    fn local_address(&self, link: Link) -> Option<SocketAddr> {
        panic!("there are no connections here: {link:?}")
    }

    fn first_datagram(&self, train: &Train) -> &[u8] {
        &self.trains[&train.buffer()]
    }
}
