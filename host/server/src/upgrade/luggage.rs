//! What workers hand over, on its way from one process to the other.
//!
//! Sockets go in frames of their own with as many as the kernel takes, flows in frames of some thousands.
//! On arrival listeners and clusters get the numbers that they have in the new process. Of flows that name
//! one that it does not have the workers say that they cannot take them, and count them.

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
/// Numbers that nobody has.
const NO_LISTENER: ListenerId = ListenerId(u16::MAX);
const NO_CLUSTER: ClusterId = ClusterId(u16::MAX);

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
    let sockets: Vec<_> = handover.sockets.iter().filter(|(id, _)| goes(id)).collect();
    for sockets in sockets.chunks(DESCRIPTORS_MAX) {
        let mut frame = begin(worker);
        for (listener, socket) in sockets {
            frame.put(&Described { listener: *listener, shared: socket.shared });
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

/// Receives everything for so many workers.
pub(super) fn receive(
    wire: &Wire,
    workers: usize,
    numbers: &Numbers,
) -> Result<Vec<Handover>, Unheard> {
    let mut handovers: Vec<_> = (0..workers).map(|_| Handover::default()).collect();
    loop {
        let frame = wire.receive()?;
        if frame.kind == Kind::Whole {
            return Ok(handovers);
        }
        unpack(&mut handovers, frame, numbers)?;
    }
}

fn unpack(handovers: &mut [Handover], frame: Frame, numbers: &Numbers) -> io::Result<()> {
    let Frame { kind, payload, descriptors } = frame;
    let mut reader = Reader::new(&payload);
    let worker = reader.get::<u32>()? as usize;
    let handover = handovers.get_mut(worker);
    let handover = handover.ok_or_else(|| nonsense("a worker that there is not"))?;
    match kind {
        Kind::Sockets => {
            for (described, socket) in pairs(reader.rest::<Described>()?, descriptors)? {
                let Described { listener, shared } = described;
                let socket = WorkerSocket { socket, shared };
                handover.sockets.push((numbers.of_listener(listener), socket));
            }
        }
        Kind::Ports => {
            for (port, socket) in pairs(reader.rest::<HandedPort>()?, descriptors)? {
                let listener = numbers.of_listener(port.listener);
                handover.ports.push((HandedPort { listener, ..port }, socket));
            }
        }
        Kind::Flows => {
            let flows = reader.rest::<HandedFlow>()?;
            handover.flows.extend(flows.into_iter().map(|flow| numbers.of_flow(flow)));
        }
        Kind::Kept => {
            let kept = reader.rest::<HandedDecision>()?.into_iter();
            handover.kept.extend(kept.map(|it| {
                let cluster = numbers.of_cluster(it.cluster);
                HandedDecision { cluster, ..it }
            }));
        }
        _ => return Err(nonsense("a frame out of order")),
    }
    Ok(())
}

impl Numbers {
    fn of_flow(&self, mut flow: HandedFlow) -> HandedFlow {
        flow.listener = self.of_listener(flow.listener);
        if let HandedTarget::Endpoint { cluster, .. } = &mut flow.target {
            *cluster = self.of_cluster(*cluster);
        }
        flow
    }

    fn of_listener(&self, old: ListenerId) -> ListenerId {
        self.listeners.get(&old.0).copied().unwrap_or(NO_LISTENER)
    }

    fn of_cluster(&self, old: ClusterId) -> ClusterId {
        self.clusters.get(&old.0).copied().unwrap_or(NO_CLUSTER)
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
    fn carry(sent: Handover, listeners: &[u16], numbers: Numbers) -> (Handover, Vec<Handover>) {
        let (one, other) = pair();
        let receiver = thread::spawn(move || receive(&other, 2, &numbers).expect("it"));
        send(&one, 1, &sent, listeners).expect("it is sent");
        one.send(Kind::Whole, &[], &[]).expect("it is sent");
        (sent, receiver.join().expect("the receiver"))
    }

    #[test]
    fn sockets_ports_and_flows_arrive_at_their_worker_by_other_numbers() {
        let all = numbers(&[(0, 8), (1, 9)], &[(0, 4), (1, 5)]);
        let (sent, came) = carry(handover(10_000, 600), &[0, 1], all);
        assert!(came[0].flows.is_empty());
        let came = &came[1];
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
    fn what_the_new_process_does_not_have_gets_no_number_and_what_does_not_go_stays() {
        let (sent, came) = carry(handover(1_000, 6), &[1], numbers(&[(1, 0)], &[(1, 0)]));
        let there = &came[1];
        assert_eq!((there.sockets.len(), there.ports.len(), there.flows.len()), (1, 3, 500));
        let is_known = |flow: &&HandedFlow| match flow.target {
            HandedTarget::Endpoint { cluster, .. } => cluster == ClusterId(0),
            HandedTarget::Denied { .. } => true,
        };
        let of_known = |flow: &&HandedFlow| match flow.target {
            HandedTarget::Endpoint { cluster, .. } => cluster == ClusterId(1),
            HandedTarget::Denied { .. } => true,
        };
        let went = sent.flows.iter().filter(|flow| flow.listener == ListenerId(1));
        assert_eq!(there.flows.iter().filter(is_known).count(), went.filter(of_known).count());
        let left = without(sent, &[1]);
        assert_eq!((left.sockets.len(), left.ports.len(), left.flows.len()), (1, 3, 500));
        let nobody = numbers(&[], &[]);
        assert_eq!(nobody.of_listener(ListenerId(0)), NO_LISTENER);
        assert_eq!(nobody.of_cluster(ClusterId(0)), NO_CLUSTER);
    }

    #[test]
    fn sockets_that_do_not_fit_their_description_are_refused() {
        let numbers = numbers(&[(0, 0)], &[]);
        let mut handovers = vec![Handover::default()];
        let mut take = |kind, payload: &Writer| {
            let payload = payload.bytes.clone();
            let frame = Frame { kind, payload, descriptors: Vec::new() };
            unpack(&mut handovers, frame, &numbers)
        };
        assert!(take(Kind::Sockets, &begin(0)).is_ok());
        let mut described = begin(0);
        described.put(&Described { listener: ListenerId(0), shared: false });
        assert!(take(Kind::Sockets, &described).is_err());
        assert!(take(Kind::Ports, &begin(1)).is_err(), "there is no such worker");
        assert!(take(Kind::Ports, &Writer::default()).is_err(), "it breaks off");
        assert!(take(Kind::Estate, &begin(0)).is_err(), "it is out of order");
    }

    /// Prints how long a million flows take; `--ignored --nocapture`.
    #[test]
    #[ignore = "measures"]
    fn a_million_flows_on_their_way() {
        let all = numbers(&[(0, 0), (1, 1)], &[(0, 0), (1, 1)]);
        let sent = handover(1_000_000, 1_000);
        let begun = Instant::now();
        let (_, came) = carry(sent, &[0, 1], all);
        println!("{} flows in {:?}", came[1].flows.len(), begun.elapsed());
    }
}
