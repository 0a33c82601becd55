//! What workers hand over, on its way from one process to the other.
//!
//! Sockets go in frames of their own with as many as the kernel takes, flows in frames of some thousands.
//! On arrival listeners and clusters get the numbers that they have in the new process; what has none is
//! left behind, and counted where it is a flow.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use pointsman_core::ClusterId;
use pointsman_core::boundary::ListenerId;
use pointsman_core::handover::{HandedDecision, HandedFlow, HandedPort, HandedTarget};

use super::layout::{Laid, Reader, Writer};
use super::wire::{DESCRIPTORS_MAX, Frame, Kind, Unheard, Wire, nonsense};
use crate::mailbox::Handover;
use crate::sockets::WorkerSocket;

/// Flows or decisions in a frame: some 100 bytes each.
const ITEMS_MAX: usize = 4096;

/// Sends the admin interface's sockets.
pub(super) fn send_doors(wire: &Wire, unix: &OwnedFd, http: Option<&OwnedFd>) -> io::Result<()> {
    let descriptors: Vec<_> = [Some(unix), http].into_iter().flatten().map(AsFd::as_fd).collect();
    wire.send(Kind::Doors, &[], &descriptors)
}

/// What [`send_doors`] has sent.
pub(super) fn doors(frame: Frame) -> io::Result<(OwnedFd, Option<OwnedFd>)> {
    let mut descriptors = frame.descriptors.into_iter();
    let unix = descriptors.next().ok_or_else(|| nonsense("no admin socket"))?;
    Ok((unix, descriptors.next()))
}

/// Sends what one worker has handed over, as far as it is of these listeners.
pub(super) fn send(
    wire: &Wire,
    worker: u32,
    handover: &Handover,
    listeners: &[u16],
) -> io::Result<()> {
    let goes = |listener: &ListenerId| listeners.contains(&listener.0);
    let socket = |(id, socket): &'_ (ListenerId, WorkerSocket)| (*id, socket.shared);
    let sockets: Vec<_> = handover.sockets.iter().filter(|(id, _)| goes(id)).collect();
    for sockets in sockets.chunks(DESCRIPTORS_MAX) {
        let mut frame = begin(worker);
        for (id, shared) in sockets.iter().map(|it| socket(it)) {
            frame.put(&id);
            frame.put(&shared);
        }
        let descriptors: Vec<_> = sockets.iter().map(|(_, it)| it.socket.as_fd()).collect();
        wire.send(Kind::Sockets, &frame.bytes, &descriptors)?;
    }
    let ports: Vec<_> = handover.ports.iter().filter(|(port, _)| goes(&port.listener)).collect();
    for ports in ports.chunks(DESCRIPTORS_MAX) {
        let mut frame = begin(worker);
        ports.iter().for_each(|(port, _)| frame.put(port));
        let descriptors: Vec<BorrowedFd<'_>> = ports.iter().map(|(_, it)| it.as_fd()).collect();
        wire.send(Kind::Ports, &frame.bytes, &descriptors)?;
    }
    let flows = handover.flows.iter().filter(|flow| goes(&flow.listener));
    send_all(wire, (Kind::Flows, worker), flows)?;
    send_all(wire, (Kind::Kept, worker), handover.kept.iter())
}

fn begin(worker: u32) -> Writer {
    let mut frame = Writer::default();
    frame.put(&worker);
    frame
}

fn send_all<'a, T: Laid + 'a>(
    wire: &Wire,
    (kind, worker): (Kind, u32),
    items: impl Iterator<Item = &'a T>,
) -> io::Result<()> {
    let mut items = items.peekable();
    while items.peek().is_some() {
        let mut frame = begin(worker);
        items.by_ref().take(ITEMS_MAX).for_each(|item| frame.put(item));
        wire.send(kind, &frame.bytes, &[])?;
    }
    Ok(())
}

/// What is left of it without these listeners, for whoever has handed it over.
pub(super) fn without(handover: Handover, listeners: &[u16]) -> Handover {
    let stays = |listener: &ListenerId| !listeners.contains(&listener.0);
    let Handover { mut sockets, mut ports, mut flows, .. } = handover;
    sockets.retain(|(id, _)| stays(id));
    ports.retain(|(port, _)| stays(&port.listener));
    flows.retain(|flow| stays(&flow.listener));
    Handover { sockets, ports, flows, kept: Vec::new() }
}

/// By which numbers the new process knows what the old one names.
#[derive(Debug, Default)]
pub(super) struct Numbers {
    pub(super) listeners: BTreeMap<u16, ListenerId>,
    pub(super) clusters: BTreeMap<u16, ClusterId>,
}

/// What has arrived.
#[derive(Debug)]
pub(super) struct Luggage {
    /// By worker.
    pub(super) workers: Vec<Handover>,
    /// Flows that nobody here has a place for.
    pub(super) flows_lost: u64,
}

impl Luggage {
    /// Receives everything for so many workers.
    pub(super) fn receive(wire: &Wire, workers: usize, numbers: &Numbers) -> Result<Self, Unheard> {
        let workers = (0..workers).map(|_| Handover::default()).collect();
        let mut luggage = Self { workers, flows_lost: 0 };
        loop {
            let frame = wire.receive()?;
            if frame.kind == Kind::Whole {
                return Ok(luggage);
            }
            luggage.take(frame, numbers)?;
        }
    }

    fn take(&mut self, frame: Frame, numbers: &Numbers) -> io::Result<()> {
        let Frame { kind, payload, descriptors } = frame;
        let mut reader = Reader::new(&payload);
        let worker = reader.get::<u32>()? as usize;
        let handover = self.workers.get_mut(worker);
        let handover = handover.ok_or_else(|| nonsense("a worker that there is not"))?;
        match kind {
            Kind::Sockets => {
                for (described, socket) in pairs(reader.rest::<Described>()?, descriptors)? {
                    let Described { listener, shared } = described;
                    let listener = numbers.listeners.get(&listener.0);
                    let socket = WorkerSocket { socket, shared };
                    handover.sockets.extend(listener.map(|listener| (*listener, socket)));
                }
            }
            Kind::Ports => {
                for (port, socket) in pairs(reader.rest::<HandedPort>()?, descriptors)? {
                    let listener = numbers.listeners.get(&port.listener.0);
                    let port = listener.map(|listener| HandedPort { listener: *listener, ..port });
                    handover.ports.extend(port.map(|port| (port, socket)));
                }
            }
            Kind::Flows => {
                let flows = reader.rest::<HandedFlow>()?;
                let count = flows.len() + handover.flows.len();
                handover.flows.extend(flows.into_iter().filter_map(|flow| numbers.of_flow(flow)));
                self.flows_lost += (count - handover.flows.len()) as u64;
            }
            Kind::Kept => {
                let kept = reader.rest::<HandedDecision>()?;
                handover.kept.extend(kept.into_iter().filter_map(|it| numbers.of_decision(it)));
            }
            _ => return Err(nonsense("a frame out of order")),
        }
        Ok(())
    }
}

impl Numbers {
    fn of_flow(&self, mut flow: HandedFlow) -> Option<HandedFlow> {
        flow.listener = *self.listeners.get(&flow.listener.0)?;
        if let HandedTarget::Endpoint { cluster, .. } = &mut flow.target {
            *cluster = *self.clusters.get(&cluster.0)?;
        }
        Some(flow)
    }

    fn of_decision(&self, decision: HandedDecision) -> Option<HandedDecision> {
        let cluster = *self.clusters.get(&decision.cluster.0)?;
        Some(HandedDecision { cluster, ..decision })
    }
}

/// What a frame says of a listener's socket.
struct Described {
    listener: ListenerId,
    shared: bool,
}

impl Laid for Described {
    fn write(&self, to: &mut Writer) {
        to.put(&self.listener);
        to.put(&self.shared);
    }

    fn read(from: &mut Reader<'_>) -> io::Result<Self> {
        Ok(Self { listener: from.get()?, shared: from.get()? })
    }
}

/// Each with its descriptor.
fn pairs<T>(
    described: Vec<T>,
    descriptors: Vec<OwnedFd>,
) -> io::Result<impl Iterator<Item = (T, OwnedFd)>> {
    if described.len() != descriptors.len() {
        return Err(nonsense("sockets that are not those that were described"));
    }
    Ok(described.into_iter().zip(descriptors))
}

#[cfg(test)]
mod tests {
    use super::super::layout::tests::flow;
    use super::*;
    use pointsman_core::boundary::PortId;
    use std::net::{SocketAddr, UdpSocket};
    use std::os::unix::net::UnixStream;
    use std::thread;
    use std::time::{Duration, Instant};

    fn pair() -> (Wire, Wire) {
        let (one, other) = UnixStream::pair().expect("a pair");
        let wire = |stream| Wire::new(stream, Duration::from_secs(600)).expect("an end");
        (wire(one), wire(other))
    }

    fn socket() -> OwnedFd {
        UdpSocket::bind("127.0.0.1:0").expect("a socket").into()
    }

    fn address(socket: &OwnedFd) -> SocketAddr {
        let socket = UdpSocket::from(socket.try_clone().expect("a descriptor"));
        socket.local_addr().expect("an address")
    }

    fn handover(flows: u32, ports: u32) -> Handover {
        let port = |number| {
            let listener = ListenerId(number as u16 % 2);
            (HandedPort { port: PortId(number), listener, connected: false }, socket())
        };
        let socket = |id| (ListenerId(id), WorkerSocket { socket: socket(), shared: id == 1 });
        Handover {
            sockets: [0, 1].map(socket).into(),
            ports: (0..ports).map(port).collect(),
            flows: (0..flows).map(flow).collect(),
            kept: Vec::new(),
        }
    }

    fn numbers(listeners: &[(u16, u16)], clusters: &[(u16, u16)]) -> Numbers {
        Numbers {
            listeners: listeners.iter().map(|(old, new)| (*old, ListenerId(*new))).collect(),
            clusters: clusters.iter().map(|(old, new)| (*old, ClusterId(*new))).collect(),
        }
    }

    /// Sends for worker 1 of two and receives on another thread.
    fn carry(sent: Handover, listeners: &[u16], numbers: Numbers) -> (Handover, Luggage) {
        let (one, other) = pair();
        let receiver = thread::spawn(move || Luggage::receive(&other, 2, &numbers).expect("it"));
        send(&one, 1, &sent, listeners).expect("it is sent");
        one.send(Kind::Whole, &[], &[]).expect("it is sent");
        (sent, receiver.join().expect("the receiver"))
    }

    #[test]
    fn sockets_ports_and_flows_arrive_at_their_worker_by_other_numbers() {
        let all = numbers(&[(0, 8), (1, 9)], &[(0, 4), (1, 5)]);
        let (sent, came) = carry(handover(10_000, 600), &[0, 1], all);
        assert!(came.workers[0].flows.is_empty() && came.flows_lost == 0);
        let came = &came.workers[1];
        for ((old, sent), (new, came)) in sent.sockets.iter().zip(&came.sockets) {
            assert_eq!((old.0 + 8, sent.shared), (new.0, came.shared));
            assert_eq!(address(&sent.socket), address(&came.socket));
        }
        for ((old, sent), (new, came)) in sent.ports.iter().zip(&came.ports) {
            assert_eq!((old.listener.0 + 8, old.port), (new.listener.0, new.port));
            assert_eq!(address(sent), address(came));
        }
        assert_eq!((came.sockets.len(), came.ports.len()), (2, 600));
        assert_eq!(came.flows.len(), 10_000);
        for (old, new) in sent.flows.iter().zip(&came.flows) {
            assert_eq!((old.listener.0 + 8, old.client), (new.listener.0, new.client));
            let clusters = match (old.target, new.target) {
                (
                    HandedTarget::Endpoint { cluster: old, .. },
                    HandedTarget::Endpoint { cluster: new, .. },
                ) => (old.0 + 4, new.0),
                _ => (0, 0),
            };
            assert_eq!(clusters.0, clusters.1);
        }
    }

    #[test]
    fn what_has_no_place_there_is_counted_and_what_does_not_go_stays() {
        let some = numbers(&[(1, 0)], &[(1, 0)]);
        let (sent, came) = carry(handover(1_000, 6), &[1], some);
        let there = &came.workers[1];
        let of_listener = |flow: &&HandedFlow| flow.listener == ListenerId(1);
        let went = sent.flows.iter().filter(of_listener).count();
        assert!(!there.flows.is_empty() && there.flows.len() + came.flows_lost as usize == went);
        assert_eq!((there.sockets.len(), there.ports.len()), (1, 3));
        let left = without(sent, &[1]);
        assert_eq!((left.sockets.len(), left.ports.len(), left.flows.len()), (1, 3, 500));
    }

    #[test]
    fn sockets_that_do_not_fit_their_description_are_refused() {
        let numbers = numbers(&[(0, 0)], &[]);
        let mut luggage = Luggage { workers: vec![Handover::default()], flows_lost: 0 };
        let mut frame = begin(0);
        frame.put(&ListenerId(0));
        frame.put(&false);
        let frame = |kind, payload: &[u8]| Frame {
            kind,
            payload: payload.to_owned(),
            descriptors: Vec::new(),
        };
        let bytes = Writer { bytes: begin(0).bytes };
        assert!(luggage.take(frame(Kind::Sockets, &bytes.bytes), &numbers).is_ok());
        let mut described = begin(0);
        described.put(&Described { listener: ListenerId(0), shared: false });
        assert!(luggage.take(frame(Kind::Sockets, &described.bytes), &numbers).is_err());
        assert!(luggage.take(frame(Kind::Ports, &begin(1).bytes), &numbers).is_err(), "no worker");
        assert!(luggage.take(frame(Kind::Ports, &[]), &numbers).is_err(), "breaks off");
        assert!(luggage.take(frame(Kind::Estate, &begin(0).bytes), &numbers).is_err());
    }

    /// Prints how long a million flows take; `--ignored --nocapture`.
    #[test]
    #[ignore = "measures"]
    fn a_million_flows_on_their_way() {
        let all = numbers(&[(0, 0), (1, 1)], &[(0, 0), (1, 1)]);
        let sent = handover(1_000_000, 1_000);
        let begun = Instant::now();
        let (_, came) = carry(sent, &[0, 1], all);
        println!("{} flows in {:?}", came.workers[1].flows.len(), begun.elapsed());
    }
}
