//! Standing still, so that sockets can change hands.
//!
//! A ring that holds has no receive and no accept in the kernel, though every socket stays open: what
//! comes waits in them. The kernel's last word on each request that was under way comes after all that
//! the request has brought, so `Held` is said after the last of these, and nothing is lost between.
//!
//! To take a receive back costs some microseconds, and there may be tens of thousands of ports: that is
//! done for some of them in each turn, and connections go on in between. So it is when they receive again.
//!
//! Meanwhile sockets can be taken out, for another ring, perhaps of another process. Whatever is still
//! here when that is over goes on.

use std::io;
use std::net::UdpSocket;
use std::os::fd::OwnedFd;

use pointsman_core::boundary::{Completion, DatagramSocket, ListenerId, PortId, PortKind};

use crate::{Ring, sys};

/// Gates that are held in one turn.
const HELD_AT_ONCE: usize = 256;

/// Whether the ring stands still.
#[derive(Debug, Default)]
pub(crate) struct Hold {
    pub(crate) active: bool,
    /// Gates whose receives may have to be taken back yet, from the end on. So listeners, whose sockets
    /// fill fastest, come last.
    left: Vec<DatagramSocket>,
    /// Requests of which the kernel's last word has not come.
    awaited: u32,
    /// How often `Held` has to be said.
    asks: u32,
}

/// A listening socket that a ring has given away.
#[derive(Debug)]
pub struct GivenListener {
    /// The socket.
    pub socket: OwnedFd,
    /// Whether other rings accept from it too.
    pub shared: bool,
}

impl Ring {
    pub(crate) fn hold(&mut self) {
        if !self.hold.active {
            self.hold.active = true;
            self.hold.left = self.armed_gates();
            self.hold.awaited = self.hold.left.len() as u32 + self.hold_listeners();
        }
        self.hold.asks += 1;
        self.say_if_held();
    }

    /// Takes back the receives of some gates.
    pub(crate) fn hold_some_gates(&mut self) {
        for _ in 0..HELD_AT_ONCE {
            let Some(socket) = self.hold.left.pop() else { return };
            self.hold_gate(socket);
        }
    }

    /// Whether there are gates left of which that has to be done.
    pub(crate) fn can_hold_gates(&self) -> bool {
        !self.hold.left.is_empty()
    }

    /// The kernel's last word on a receive or an accept has come.
    pub(crate) fn on_request_over(&mut self) {
        if self.hold.active {
            self.hold.awaited = self.hold.awaited.saturating_sub(1);
            self.say_if_held();
        }
    }

    fn say_if_held(&mut self) {
        if self.hold.awaited > 0 {
            return;
        }
        self.report_failed_ports();
        for _ in 0..std::mem::take(&mut self.hold.asks) {
            self.pending.push_back(Completion::Held);
        }
    }

    pub(crate) fn resume(&mut self) {
        self.hold.active = false;
        self.hold.left.clear();
        self.resume_gates();
        self.resume_listeners();
    }

    /// Gives a listener's socket away, while the ring [holds](pointsman_core::boundary::Op::Hold).
    /// `None` if the listener has none here, or is about to end.
    pub fn give_listener(&mut self, id: ListenerId) -> Option<GivenListener> {
        let datagrams = self.take_gate(DatagramSocket::Listener(id));
        let given = datagrams.map(|socket| GivenListener { socket, shared: false });
        given.or_else(|| self.take_listener(id))
    }

    /// Gives a port's socket away, while the ring [holds](pointsman_core::boundary::Op::Hold): the number
    /// is free then. `None` if it is not open.
    pub fn give_port(&mut self, port: PortId) -> Option<OwnedFd> {
        self.take_gate(DatagramSocket::Port(port))
    }

    /// Opens a port with a socket that has been one before, on a free number. If it cannot be one of this
    /// kind, that is told as of a port that could not be opened.
    ///
    /// # Panics
    /// The port is open, or beyond `ports_max`.
    pub fn take_port(&mut self, port: PortId, kind: &PortKind, socket: OwnedFd) {
        self.open_port(port, kind, || taken_port(socket, kind));
    }
}

/// Looks whether a socket can be a port of this kind.
fn taken_port(socket: OwnedFd, kind: &PortKind) -> io::Result<UdpSocket> {
    let unfit = || io::Error::from_raw_os_error(libc::EINVAL);
    if !sys::is_datagram_socket(&socket) {
        return Err(unfit());
    }
    let socket = UdpSocket::from(socket);
    let peer = socket.peer_addr().ok();
    let fits = socket.local_addr()?.is_ipv6() == kind.towards.is_ipv6()
        && peer.is_some() == kind.connected
        && peer.is_none_or(|peer| {
            (peer.ip(), peer.port()) == (kind.towards.ip(), kind.towards.port())
        });
    if fits { Ok(socket) } else { Err(unfit()) }
}
