//! Datagram sockets: what they receive, and their beginning and end.
//!
//! A listener's or a port's socket stands behind a *gate*, which receives for as long as it is open:
//!
//! ```text
//!            an empty datagram, an ICMP error, a full completion queue
//!         ┌────────┐
//!         │        ▼
//!   open ─┴─▶ armed ──── no buffers ────▶ starved ──┐
//!               ▲                            │      │
//!               └──────── buffers ───────────┘      │
//!               │ close                             │ close
//!               ▼                                   │
//!           cancelled ── the kernel's last word ──▶ closed
//! ```
//!
//! The end of a multishot receive means nothing here: a datagram socket has no end of stream, so an
//! open gate is armed again whatever ended it. Sending is elsewhere ([`forward`](crate::forward))
//! and leaves nothing in flight: a gate is closed as soon as its receive is over.
//!
//! A port that could not be opened is told of with the next wait and not at once. So the losses of
//! what is forwarded through it meanwhile come before its end, which is the last that is said of it.

use std::collections::VecDeque;
use std::io;
use std::net::UdpSocket;
use std::os::fd::{AsRawFd, OwnedFd};

use pointsman_core::boundary::{
    Completion, DatagramSocket, ListenerId, LossCause, Path, PortId, PortKind, Train,
};

use crate::Ring;
use crate::forward::is_unreachable;
use crate::message::Message;
use crate::ring::Event;
use crate::stats::BufferPool;
use crate::sys;
use crate::token::Token;

/// All datagram sockets of one ring.
#[derive(Debug)]
pub(crate) struct Datagrams {
    listeners: Vec<Gate>,
    /// One per port, up to the highest port seen so far.
    ports: Vec<Gate>,
    ports_max: u32,
    /// Sockets that wait for buffers, longest first.
    starved: VecDeque<DatagramSocket>,
    /// Ports that could not be opened, which has not been told.
    failed: Vec<PortId>,
}

/// One datagram socket, or the place for one.
#[derive(Debug)]
pub(crate) struct Gate {
    /// An open gate has one.
    socket: Option<UdpSocket>,
    receive: Receive,
    /// Whether the starved list has an entry for this gate, be it an old one.
    queued: bool,
    closing: bool,
    failed: bool,
    /// Whether addresses are IPv6 to this socket.
    pub(crate) v6: bool,
    /// Whether it sends from an address of one's choice.
    pub(crate) wildcard: bool,
    /// Whether the kernel knows the peer.
    pub(crate) connected: bool,
    /// Whether trains are received and sent whole.
    pub(crate) offload: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Receive {
    Idle,
    /// The kernel has its multishot receive.
    Armed,
    /// It waits for buffers; the kernel knows nothing of it.
    Starved,
}

impl Gate {
    const CLOSED: Self = Self {
        socket: None,
        receive: Receive::Idle,
        queued: false,
        closing: false,
        failed: false,
        v6: false,
        wildcard: false,
        connected: false,
        offload: false,
    };

    fn listener(socket: UdpSocket, offload: bool) -> io::Result<Self> {
        let address = socket.local_addr()?;
        let (v6, wildcard) = (address.is_ipv6(), address.ip().is_unspecified());
        Ok(Self { v6, wildcard, ..Self::open(socket, offload) })
    }

    fn port(socket: UdpSocket, kind: &PortKind) -> Self {
        let (v6, connected) = (kind.towards.is_ipv6(), kind.connected);
        Self { v6, wildcard: !connected, connected, ..Self::open(socket, kind.offload) }
    }

    fn open(socket: UdpSocket, offload: bool) -> Self {
        if offload {
            sys::receive_trains(&socket);
        }
        Self { socket: Some(socket), offload, ..Self::CLOSED }
    }

    pub(crate) fn socket(&self) -> Option<&UdpSocket> {
        self.socket.as_ref()
    }

    /// Whether this is a port that could not be opened, of which nobody knows.
    pub(crate) fn has_failed(&self) -> bool {
        self.failed
    }

    /// Makes way for another gate, but for its place in the starved list.
    fn replace(&mut self, with: Self) {
        *self = Self { queued: self.queued, ..with };
    }
}

impl Datagrams {
    pub(crate) fn new(listeners_max: u16, ports_max: u32) -> Self {
        let (listeners, ports) = (usize::from(listeners_max), ports_max as usize);
        Self {
            listeners: std::iter::repeat_with(|| Gate::CLOSED).take(listeners).collect(),
            ports: Vec::with_capacity(ports),
            ports_max,
            starved: VecDeque::with_capacity(ports + listeners),
            failed: Vec::with_capacity(ports),
        }
    }

    /// Whether a listener's number is taken by a datagram socket.
    pub(crate) fn listens(&self, id: ListenerId) -> bool {
        self.listeners.get(id.index()).is_some_and(|gate| gate.socket.is_some())
    }

    pub(crate) fn gate(&self, socket: DatagramSocket) -> Option<&Gate> {
        match socket {
            DatagramSocket::Listener(id) => self.listeners.get(id.index()),
            DatagramSocket::Port(id) => self.ports.get(id.index()),
        }
    }

    fn gate_mut(&mut self, socket: DatagramSocket) -> Option<&mut Gate> {
        match socket {
            DatagramSocket::Listener(id) => self.listeners.get_mut(id.index()),
            DatagramSocket::Port(id) => self.ports.get_mut(id.index()),
        }
    }

    /// A port's gate, which comes into being when the port is first used.
    fn port_slot(&mut self, port: PortId) -> &mut Gate {
        let index = port.index();
        if index >= self.ports.len() {
            assert!(index < self.ports_max as usize, "ports are below ports_max");
            self.ports.resize_with(index + 1, || Gate::CLOSED);
        }
        &mut self.ports[index]
    }

    /// The gates of which something holds.
    fn numbers(&self, holds: impl Fn(&Gate) -> bool) -> Vec<DatagramSocket> {
        let listeners = (0..).map(|id| DatagramSocket::Listener(ListenerId(id)));
        let ports = (0..).map(|id| DatagramSocket::Port(PortId(id)));
        let all = listeners.zip(&self.listeners).chain(ports.zip(&self.ports));
        all.filter(|(_, gate)| holds(gate)).map(|(socket, _)| socket).collect()
    }

    /// Puts a gate's receive off until there are buffers.
    fn starve(&mut self, socket: DatagramSocket) {
        let Some(gate) = self.gate_mut(socket) else { return };
        gate.receive = Receive::Starved;
        if !std::mem::replace(&mut gate.queued, true) {
            self.starved.push_back(socket);
        }
    }

    /// The gate that has starved longest.
    fn next_starved(&mut self) -> Option<DatagramSocket> {
        while let Some(socket) = self.starved.pop_front() {
            let gate = self.gate_mut(socket)?;
            gate.queued = false;
            if gate.receive == Receive::Starved {
                return Some(socket);
            }
        }
        None
    }
}

impl Ring {
    /// Takes over a datagram socket, and reports what comes to it until
    /// [`StopAccepting`](pointsman_core::boundary::Op::StopAccepting). With `offload`, trains of
    /// datagrams are received and sent whole.
    ///
    /// The socket is closed with that; datagrams that are still queued in it are lost.
    ///
    /// # Errors
    /// The listener's number is taken or too high, the socket is none, or the ring was made without
    /// datagram buffers.
    pub fn listen_datagrams(
        &mut self,
        id: ListenerId,
        socket: OwnedFd,
        offload: bool,
    ) -> Result<(), crate::RingError> {
        let opened = self.open_listener(id, socket, offload);
        opened.map_err(crate::RingError::os("add a listener of datagrams"))
    }

    fn open_listener(&mut self, id: ListenerId, socket: OwnedFd, offload: bool) -> io::Result<()> {
        let errno = |errno| Err(io::Error::from_raw_os_error(errno));
        if !self.uring.buffers().take_datagrams() {
            return errno(libc::ENOBUFS);
        }
        if self.listeners.has(id) || self.datagrams.listens(id) {
            return errno(libc::EEXIST);
        }
        if !sys::is_datagram_socket(&socket) {
            return errno(libc::EINVAL);
        }
        let Some(slot) = self.datagrams.listeners.get_mut(id.index()) else {
            return errno(libc::ENOSPC);
        };
        slot.replace(Gate::listener(UdpSocket::from(socket), offload)?);
        self.arm_gate(DatagramSocket::Listener(id));
        Ok(())
    }

    /// Opens a port, if the socket can be had.
    ///
    /// # Panics
    /// The port is open, or beyond `ports_max`.
    pub(crate) fn open_port(
        &mut self,
        port: PortId,
        kind: &PortKind,
        socket: impl FnOnce() -> io::Result<UdpSocket>,
    ) {
        let pool = self.uring.buffers().take_datagrams();
        let slot = self.datagrams.port_slot(port);
        assert!(slot.socket.is_none() && !slot.failed, "a port is opened on a free number");
        match socket() {
            Ok(socket) if pool => {
                slot.replace(Gate::port(socket, kind));
                self.arm_gate(DatagramSocket::Port(port));
            }
            _ => {
                slot.failed = true;
                self.datagrams.failed.push(port);
            }
        }
    }

    /// Tells of ports that could not be opened.
    pub(crate) fn report_failed_ports(&mut self) {
        while let Some(port) = self.datagrams.failed.pop() {
            self.datagrams.port_slot(port).failed = false;
            self.pending.push_back(Completion::PortFailed { port });
        }
    }

    /// Closes a gate when the kernel has let go of it. One that is not open, because its port could
    /// not be opened, has nothing to say to this.
    pub(crate) fn close_gate(&mut self, socket: DatagramSocket) {
        let Some(gate) = self.datagrams.gate_mut(socket) else { return };
        if gate.socket.is_none() || std::mem::replace(&mut gate.closing, true) {
            return;
        }
        if gate.receive == Receive::Armed {
            self.uring.cancel(Token::Datagrams(socket));
        } else {
            self.end_gate(socket);
        }
    }

    fn end_gate(&mut self, socket: DatagramSocket) {
        let Some(gate) = self.datagrams.gate_mut(socket) else { return };
        gate.replace(Gate::CLOSED);
        self.pending.push_back(match socket {
            DatagramSocket::Listener(listener) => Completion::AcceptEnded { listener },
            DatagramSocket::Port(port) => Completion::PortClosed { port },
        });
    }

    /// Gates whose receive the kernel has, listeners first.
    pub(crate) fn armed_gates(&self) -> Vec<DatagramSocket> {
        self.datagrams.numbers(|gate| gate.receive == Receive::Armed)
    }

    /// Takes back a gate's receive, if the kernel has it still.
    pub(crate) fn hold_gate(&mut self, socket: DatagramSocket) {
        if self.datagrams.gate(socket).is_some_and(|gate| gate.receive == Receive::Armed) {
            self.uring.cancel(Token::Datagrams(socket));
        }
    }

    /// Has all gates that wait for that receive again, as if they had waited for buffers.
    pub(crate) fn resume_gates(&mut self) {
        let idle = |gate: &Gate| gate.socket.is_some() && gate.receive == Receive::Idle;
        for socket in self.datagrams.numbers(idle) {
            self.datagrams.starve(socket);
        }
    }

    /// Takes the socket out of a gate of which the kernel has nothing.
    pub(crate) fn take_gate(&mut self, socket: DatagramSocket) -> Option<OwnedFd> {
        let holds = self.hold.active;
        let gate = self.datagrams.gate_mut(socket)?;
        if !holds || gate.receive == Receive::Armed {
            return None;
        }
        let taken = gate.socket.take()?;
        gate.replace(Gate::CLOSED);
        Some(taken.into())
    }

    /// Receives on an open gate, if there are buffers to receive into, and the ring does not hold.
    fn arm_gate(&mut self, socket: DatagramSocket) {
        if self.hold.active {
            return;
        }
        if self.uring.buffers().visible_messages() == 0 {
            self.starve_gate(socket);
            return;
        }
        let Some(gate) = self.datagrams.gate_mut(socket) else { return };
        gate.receive = Receive::Armed;
        let descriptor = gate.socket.as_ref().expect("an open gate has a socket").as_raw_fd();
        self.uring.receive_messages(Token::Datagrams(socket), descriptor);
    }

    /// Arms again as many starved gates as there are buffers to see.
    pub(crate) fn feed_starved_gates(&mut self) {
        if self.hold.active {
            return;
        }
        for _ in 0..self.uring.buffers().visible_messages() {
            let Some(socket) = self.datagrams.next_starved() else { return };
            self.arm_gate(socket);
        }
    }

    /// Whether gates wait for buffers that are there: the ones fed so far may not want theirs.
    pub(crate) fn can_feed_gates(&self) -> bool {
        !self.hold.active
            && !self.datagrams.starved.is_empty()
            && self.uring.buffers().visible_messages() > 0
    }

    pub(crate) fn on_datagrams(
        &mut self,
        socket: DatagramSocket,
        event: Event,
    ) -> Option<Completion> {
        let arrived = event.buffer().and_then(|number| self.arrived(socket, number, event.result));
        if !event.more() {
            self.on_datagrams_end(socket, event.result);
            self.on_request_over();
        }
        arrived
    }

    fn arrived(&mut self, socket: DatagramSocket, number: u16, result: i32) -> Option<Completion> {
        self.uring.taken_message(number);
        let written = usize::try_from(result).unwrap_or(0);
        let message = Message::parse(self.uring.buffers().message(number, written));
        let Some(message) = message.filter(|message| !message.truncated) else {
            self.uring.put_message(number.into());
            let lost = Completion::Lost { socket, datagrams: 1, cause: LossCause::Truncated };
            return message.map(|_| lost);
        };
        let train = Train::new(number.into(), message.len, message.segment);
        let path = Path { peer: message.peer, local: message.local };
        Some(Completion::Datagrams { socket, path, train })
    }

    /// Goes on after a multishot receive has ended.
    fn on_datagrams_end(&mut self, socket: DatagramSocket, result: i32) {
        let Some(gate) = self.datagrams.gate_mut(socket) else { return };
        gate.receive = Receive::Idle;
        if gate.closing {
            return self.end_gate(socket);
        }
        if gate.connected && is_unreachable(-result) {
            self.report_unreachable(socket);
        }
        if result == -libc::ENOBUFS {
            self.starve_gate(socket);
        } else {
            self.arm_gate(socket);
        }
    }

    fn starve_gate(&mut self, socket: DatagramSocket) {
        self.starved_total[BufferPool::Datagrams.index()] += 1;
        self.datagrams.starve(socket);
    }

    /// Tells that an ICMP error has come for the peer of a connected port.
    pub(crate) fn report_unreachable(&mut self, socket: DatagramSocket) {
        if let DatagramSocket::Port(port) = socket {
            self.pending.push_back(Completion::PortUnreachable { port });
        }
    }
}
