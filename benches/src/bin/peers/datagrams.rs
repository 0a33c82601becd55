//! The load of datagrams: flows that each keep one exchange with the endpoint under way.
//!
//! A flow starts its next exchange when the last one is complete, so a balancer that is slow is
//! asked less, not flooded. What is not complete in time is given up, counted as lost, and followed
//! by the next: a balancer that loses more than a few in ten thousand fails the comparison, since
//! work that it did not do would look like speed.

use std::io::{Error, ErrorKind};
use std::net::{SocketAddr, UdpSocket};
use std::ops::Range;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::unistd::Pid;

use crate::Load;
use crate::network::{Network, Place};
use crate::plans::Traffic;
use crate::proxies::Proxy;
use crate::reflector::{Reflector, prepare};
use crate::wire::{HEAD, Kind, LARGEST, SINGLE, TRAIN};

/// The core of the load and the endpoint.
const CORE: usize = 1;

/// After this time an exchange is taken for lost, where the speed of balancers is compared.
const PATIENCE: Duration = Duration::from_millis(200);

/// And here, where the machine is kept busy on purpose and only what never comes is lost.
const LONG_PATIENCE: Duration = Duration::from_secs(5);

/// How long a turn of the load takes at most, if nothing arrives and nothing disturbs it.
const TURN_MS: u8 = 20;

/// The part of all exchanges that may be lost.
const MAX_LOST: f64 = 0.001;

/// Flows that are opened at once; more could overflow the queue of a balancer that starts cold.
const OPENED_AT_ONCE: usize = 32;

/// How often they are tried: a machine that is busy with other things may hold everybody up.
const OPENING_TRIES: u32 = 5;

/// What epoll calls the endpoint. Flows have their index.
const REFLECTOR: u64 = u64::MAX;

/// What lies between the balancer and the others.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Across {
    Loopback,
    Links,
}

impl Across {
    pub(crate) fn network(self) -> Result<Network> {
        match self {
            Self::Loopback => Ok(Network::loopback()),
            Self::Links => Network::linked(CORE),
        }
    }
}

/// One kind of load.
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) across: Across,
    flows: usize,
    kind: Kind,
    patience: Duration,
}

impl Scenario {
    pub(crate) const ALL: [Self; 6] = [
        Self { name: "udp-64", ..Self::round_trips(64) },
        Self { name: "udp-1000", ..Self::round_trips(1_000) },
        // So few that their trains fit in the receive queue of a listener that takes them singly.
        Self { name: "udp-train", unit: "MiB", kind: Kind::Upload, ..Self::round_trips(4) },
        Self { name: "udp-train-down", unit: "MiB", kind: Kind::Download, ..Self::round_trips(4) },
        Self { name: "udp-links-64", across: Across::Links, ..Self::round_trips(64) },
        Self { name: "udp-links-1000", across: Across::Links, ..Self::round_trips(1_000) },
    ];

    /// As many flows as the storm of swaps has.
    pub(crate) const THOUSAND: Self = Self { patience: LONG_PATIENCE, ..Self::round_trips(1_000) };

    const fn round_trips(flows: usize) -> Self {
        let (unit, across, kind) = ("round trip", Across::Loopback, Kind::RoundTrip);
        Self { name: "", unit, across, flows, kind, patience: PATIENCE }
    }

    pub(crate) fn traffic(&self) -> Traffic {
        match self.kind {
            Kind::RoundTrip => Traffic::Datagrams,
            Kind::Upload | Kind::Download => Traffic::Trains,
        }
    }

    /// The bytes that start an exchange, and those that complete it.
    fn lengths(&self) -> (usize, usize) {
        match self.kind {
            Kind::RoundTrip => (SINGLE, SINGLE),
            Kind::Upload => (TRAIN, HEAD),
            Kind::Download => (HEAD, TRAIN),
        }
    }

    fn units_per_exchange(&self) -> f64 {
        match self.kind {
            Kind::RoundTrip => 1.0,
            Kind::Upload | Kind::Download => TRAIN as f64 / f64::from(1 << 20),
        }
    }
}

/// The flows of a scenario through one balancer.
pub(crate) struct Clients {
    kind: Kind,
    patience: Duration,
    answer_bytes: usize,
    units_per_exchange: f64,
    flows: Vec<Flow>,
    request: Vec<u8>,
    incoming: Vec<u8>,
    epoll: Epoll,
}

/// A client's socket and its exchange.
struct Flow {
    socket: UdpSocket,
    number: u64,
    arrived_bytes: usize,
    begun: Duration,
    is_open: bool,
}

/// How far some exchanges have come.
struct Progress {
    now: Instant,
    /// The time that the load has lived through, to the last turn. A turn counts for no more than it
    /// would have taken undisturbed: that the load itself was held up is no loss of the balancer.
    lived: Duration,
    /// From then on flows end instead of beginning their next exchange.
    until: Instant,
    open_flows: usize,
    complete: u64,
    lost: u64,
}

impl Clients {
    /// Opens all flows, and sees one exchange through in each.
    pub(crate) fn open(
        scenario: &Scenario,
        (place, balancer): (&Place, SocketAddr),
        reflector: &mut Reflector,
    ) -> Result<Self> {
        let mut clients = Self::connect(scenario, (place, balancer), reflector)?;
        for begin in (0..scenario.flows).step_by(OPENED_AT_ONCE) {
            let flows = begin..scenario.flows.min(begin + OPENED_AT_ONCE);
            let mut lost = 0;
            for _ in 0..OPENING_TRIES {
                lost = clients.exchange(flows.clone(), reflector, Duration::ZERO)?.lost;
                if lost == 0 {
                    break;
                }
            }
            ensure!(lost == 0, "{lost} flows got no answer after {begin} that did");
        }
        Ok(clients)
    }

    fn connect(
        scenario: &Scenario,
        (place, balancer): (&Place, SocketAddr),
        reflector: &Reflector,
    ) -> Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(reflector, EpollEvent::new(EpollFlags::EPOLLIN, REFLECTOR))?;
        let mut flows = Vec::with_capacity(scenario.flows);
        for index in 0..scenario.flows {
            let flow = place.enter(|| Flow::connect(place, balancer))??;
            epoll.add(&flow.socket, EpollEvent::new(EpollFlags::EPOLLIN, index as u64))?;
            flows.push(flow);
        }
        let (request_bytes, answer_bytes) = scenario.lengths();
        Ok(Self {
            kind: scenario.kind,
            patience: scenario.patience,
            answer_bytes,
            units_per_exchange: scenario.units_per_exchange(),
            flows,
            request: vec![0; request_bytes],
            incoming: vec![0; LARGEST],
            epoll,
        })
    }

    /// Puts the load on the balancer.
    pub(crate) fn run(&mut self, reflector: &mut Reflector, duration: Duration) -> Result<Load> {
        let Progress { complete, lost, .. } =
            self.exchange(0..self.flows.len(), reflector, duration)?;
        let all = complete + lost;
        if lost as f64 > all as f64 * MAX_LOST {
            bail!("{lost} of {all} exchanges were lost; a larger net.core.rmem_max may help");
        }
        Ok(Load { units: complete as f64 * self.units_per_exchange, errors: 0, lost })
    }

    /// One exchange in each flow, then a pause: flows that are there and take little of the machine.
    pub(crate) fn trickle(&mut self, reflector: &mut Reflector, pause: Duration) -> Result<Load> {
        let all = 0..self.flows.len();
        let Progress { complete, lost, .. } = self.exchange(all, reflector, Duration::ZERO)?;
        std::thread::sleep(pause);
        Ok(Load { units: complete as f64, errors: 0, lost })
    }

    /// Exchanges in these flows for a time, at least one in each. Ends when the last has ended.
    fn exchange(
        &mut self,
        flows: Range<usize>,
        reflector: &mut Reflector,
        duration: Duration,
    ) -> Result<Progress> {
        let now = Instant::now();
        let (until, lived) = (now + duration, Duration::ZERO);
        let open_flows = flows.len();
        let mut progress = Progress { now, lived, until, open_flows, complete: 0, lost: 0 };
        for flow in flows.clone() {
            self.begin(flow, lived)?;
        }
        let mut swept = lived;
        let mut events = [EpollEvent::empty(); 256];
        while progress.open_flows > 0 {
            let count = self.epoll.wait(&mut events, TURN_MS)?;
            progress.tick();
            for event in &events[..count] {
                match event.data() {
                    REFLECTOR => reflector.serve()?,
                    flow => self.receive(flow as usize, &mut progress)?,
                }
            }
            if progress.lived - swept > PATIENCE / 10 {
                swept = progress.lived;
                self.give_up_late_ones(flows.clone(), &mut progress)?;
            }
        }
        Ok(progress)
    }

    fn begin(&mut self, flow: usize, lived: Duration) -> Result<()> {
        let flow = &mut self.flows[flow];
        flow.number += 1;
        (flow.arrived_bytes, flow.begun, flow.is_open) = (0, lived, true);
        self.kind.stamp(flow.number, &mut self.request);
        match flow.socket.send(&self.request) {
            // What is not sent is made up for like any other loss.
            Err(error) if !is_nothing(&error) => Err(error).context("a client cannot send"),
            _ => Ok(()),
        }
    }

    /// Takes what has arrived in a flow, to the end of its exchange.
    fn receive(&mut self, index: usize, progress: &mut Progress) -> Result<()> {
        loop {
            let flow = &mut self.flows[index];
            let bytes = match flow.socket.recv(&mut self.incoming) {
                Ok(bytes) => bytes,
                Err(error) if is_nothing(&error) => return Ok(()),
                Err(error) => return Err(error).context("a client cannot receive"),
            };
            let is_awaited = Kind::read(&self.incoming[..bytes]) == Some((self.kind, flow.number));
            if !is_awaited || !flow.is_open {
                continue;
            }
            flow.arrived_bytes += bytes;
            if flow.arrived_bytes == self.answer_bytes {
                progress.complete += 1;
                return self.go_on(index, progress);
            }
        }
    }

    fn give_up_late_ones(&mut self, flows: Range<usize>, progress: &mut Progress) -> Result<()> {
        for index in flows {
            let flow = &self.flows[index];
            if flow.is_open && progress.lived - flow.begun > self.patience {
                progress.lost += 1;
                self.go_on(index, progress)?;
            }
        }
        Ok(())
    }

    /// Begins the next exchange of a flow, or ends the flow for this time.
    fn go_on(&mut self, index: usize, progress: &mut Progress) -> Result<()> {
        if progress.now < progress.until {
            return self.begin(index, progress.lived);
        }
        self.flows[index].is_open = false;
        progress.open_flows -= 1;
        Ok(())
    }
}

impl Progress {
    fn tick(&mut self) {
        let now = Instant::now();
        let turn = now.duration_since(self.now);
        self.lived += turn.min(Duration::from_millis(TURN_MS.into()));
        self.now = now;
    }
}

impl Flow {
    fn connect(place: &Place, balancer: SocketAddr) -> Result<Self> {
        let socket = UdpSocket::bind((place.address, 0))?;
        socket.connect(balancer)?;
        socket.set_nonblocking(true)?;
        prepare(&socket)?;
        Ok(Self { socket, number: 0, arrived_bytes: 0, begun: Duration::ZERO, is_open: false })
    }
}

/// Waits until a balancer that has been started answers.
pub(crate) fn await_ready(proxy: &Proxy, place: &Place, reflector: &mut Reflector) -> Result<()> {
    let way = (place, proxy.address);
    let mut clients = Clients::connect(&Scenario::round_trips(1), way, reflector)?;
    for _ in 0..50 {
        if clients.exchange(0..1, reflector, Duration::ZERO)?.complete > 0 {
            return Ok(());
        }
    }
    bail!("{} does not answer datagrams at {}", proxy.name, proxy.address)
}

/// Opens many flows, sees one round trip through in each, leaves them idle, and tells what each of
/// them costs the balancer beside what it held before.
pub(crate) fn idle_memory(
    proxy: &Proxy,
    place: &Place,
    reflector: &mut Reflector,
    flows: usize,
) -> Result<f64> {
    let before = proxy.memory_bytes()?;
    let _open = Clients::open(&Scenario::round_trips(flows), (place, proxy.address), reflector)?;
    let after = proxy.memory_bytes()?;
    Ok(after.saturating_sub(before) as f64 / flows as f64)
}

/// Moves this thread, which is the load and the endpoint, off the balancers' core.
pub(crate) fn pin_to_core() -> Result<()> {
    let mut cores = CpuSet::new();
    cores.set(CORE)?;
    sched_setaffinity(Pid::from_raw(0), &cores).context("cannot pin the load to its core")
}

/// Whether a send or a receive found nothing to do, or was told that nobody listens yet.
fn is_nothing(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::ConnectionRefused)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scenario_is_answered_without_a_balancer_in_between() {
        let Network { clients: place, endpoint, .. } = Network::loopback();
        let mut reflector = Reflector::start(&endpoint).unwrap();
        let balancer = reflector.address();
        for scenario in &Scenario::ALL {
            let way = (&place, balancer);
            let mut clients = Clients::open(scenario, way, &mut reflector).unwrap();
            let load = clients.run(&mut reflector, Duration::from_millis(10)).unwrap();
            assert!(load.units > 0.0, "{}", scenario.name);
        }
    }

    #[test]
    fn a_balancer_that_swallows_everything_fails_the_comparison() {
        let Network { clients: place, endpoint, .. } = Network::loopback();
        let mut reflector = Reflector::start(&endpoint).unwrap();
        let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
        let scenario = Scenario::round_trips(1);
        let balancer = silent.local_addr().unwrap();
        let mut clients = Clients::connect(&scenario, (&place, balancer), &reflector).unwrap();
        assert!(clients.run(&mut reflector, Duration::ZERO).is_err());
    }
}
